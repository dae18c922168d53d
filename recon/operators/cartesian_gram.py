"""S^H F^H M F S of Cartesian data without centring: the fastest way on a CPU."""

from __future__ import annotations

from typing import Any, TypeGuard

import numpy as np
import scipy.fft

from recon.arrays import Array, complex_dtype, real_dtype
from recon.operators.encoding import Encoding, _coil_by_coil
from recon.operators.fourier import Fourier
from recon.operators.frames import Frames
from recon.operators.linear import LinearOperator


class CartesianGram(LinearOperator):
    """The Gram operator of a Cartesian `Encoding` for NumPy images `[..., *image_shape]`.

    F^H M F is a circular convolution, which commutes with the shifts of a centred FFT: they cancel. So do the transforms
    along axes on which the mask does not depend.

    Args:
        encoding: Cartesian, of one set of maps, with a mask that is the same for all coils and frames.
        axes: to transform; None for those on which the mask depends.
    """

    def __init__(self, encoding: Encoding, axes: tuple[int, ...] | None = None) -> None:
        self.encoding = encoding
        shape = encoding.image_shape
        mask = getattr(encoding.fourier, "mask", None)
        square = np.broadcast_to(1.0 if mask is None else np.abs(np.asarray(mask, float)) ** 2, shape)
        needed = tuple(axis for axis in range(-len(shape), 0) if np.ptp(square, axis=axis).any())
        self.axes = needed if axes is None else axes
        self._square = scipy.fft.ifftshift(square, self.axes)
        self._cast: dict[Any, np.ndarray] = {}

    @staticmethod
    def of(encoding: LinearOperator, like: Array) -> LinearOperator:
        """This class where it can stand for `encoding.gram` on arrays such as `like`, else that."""
        if isinstance(encoding, Frames):
            return Frames([CartesianGram.of(part, like) for part in encoding.operators])
        return CartesianGram(encoding) if isinstance(like, np.ndarray) and _fits(encoding) else encoding.gram

    def forward(self, x: Array) -> Array:
        square = self.square(real_dtype(complex_dtype(x)))

        def convolve(image: np.ndarray) -> np.ndarray:
            if not self.axes:
                scaled: np.ndarray = image * square
                return scaled
            spectrum = scipy.fft.fftn(image, axes=self.axes, overwrite_x=True)
            spectrum *= square
            result: np.ndarray = scipy.fft.ifftn(spectrum, axes=self.axes, overwrite_x=True)
            return result

        images = x.reshape(-1, *self.encoding.image_shape)
        result: np.ndarray = np.stack([_coil_by_coil(convolve, image, self.encoding.maps) for image in images]).reshape(x.shape)
        return result

    def square(self, dtype: np.dtype) -> np.ndarray:
        """The squared mask `[*image_shape]`, shifted as the transform has it."""
        if dtype not in self._cast:
            self._cast[dtype] = np.ascontiguousarray(self._square, dtype)
        return self._cast[dtype]

    def adjoint(self, y: Array) -> Array:
        return self.forward(y)


def _fits(encoding: LinearOperator, anywhere: bool = False) -> TypeGuard[Encoding]:
    """Whether `CartesianGram` can stand for the Gram operator; `anywhere`: of CuPy maps, too."""
    if not isinstance(encoding, Encoding) or not isinstance(encoding.fourier, Fourier):
        return False
    if not anywhere and not isinstance(encoding.maps, np.ndarray):
        return False
    mask, shape = encoding.fourier.mask, encoding.image_shape
    one_set = encoding.maps.ndim == len(shape) + 1
    return one_set and (mask is None or np.broadcast_shapes(np.shape(mask), shape) == shape)
