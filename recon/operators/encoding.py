"""The encoding operator of parallel MRI."""

from __future__ import annotations

import math

import numpy as np

from recon import nufft
from recon.arrays import Array, complex_dtype, is_tensor, like, real_dtype
from recon.operators.fourier import Fourier, Nufft, ToeplitzGram
from recon.operators.linear import LinearOperator
from recon.operators.sensitivity import Sensitivity


class Encoding(LinearOperator):
    """E = W^1/2 F S: sensitivities, then an FFT with a mask or a NUFFT, then the root of the density weights.

    Data of the scanner must be scaled to match, `E.weigh(kspace)`; then E^H E = S^H F^H W F S.

    Args:
        maps: complex `[coil, y, x]` or `[coil, z, y, x]`.
        trajectory: `[sample, axis]` in rad/pixel; None for Cartesian data `[..., coil, *image_shape]`.
        mask: for Cartesian data, broadcast against `[*image_shape]`.
        weights: real, at least 0, `[sample]` (with a trajectory); None for ones.
        toeplitz: apply the Gram operator as a convolution (with a trajectory).
        tolerance: relative accuracy of the NUFFT.

    Raises:
        ValueError: trajectory and mask, or weights without a trajectory, or shapes that do not fit.
    """

    def __init__(
        self,
        maps: Array,
        trajectory: np.ndarray | None = None,
        mask: np.ndarray | None = None,
        weights: np.ndarray | None = None,
        toeplitz: bool = False,
        tolerance: float = nufft.TOLERANCE,
    ) -> None:
        self.image_shape = tuple(int(n) for n in maps.shape[1:])
        rank = len(self.image_shape)
        if trajectory is None:
            if weights is not None or toeplitz:
                raise ValueError("weights and toeplitz need a trajectory; for Cartesian data use a mask")
            self.fourier: LinearOperator = Fourier(rank, mask)
        elif mask is not None:
            raise ValueError("give either a trajectory or a mask")
        else:
            trajectory = np.asarray(trajectory)
            if weights is not None and np.shape(weights) != trajectory.shape[:-1]:
                raise ValueError(f"weights {np.shape(weights)} do not fit a trajectory {trajectory.shape}")
            self.fourier = Nufft(trajectory, self.image_shape, tolerance)
        self.maps = maps
        self.sensitivity = Sensitivity(maps, rank)
        self.weights = None if weights is None else like(np.asarray(weights), maps)
        self._toeplitz = ToeplitzGram(trajectory, self.image_shape, weights) if toeplitz and trajectory is not None else None

    def forward(self, x: Array) -> Array:
        return self.weigh(self.fourier(self.sensitivity(x)))

    def adjoint(self, y: Array) -> Array:
        return self.sensitivity.adjoint(self.fourier.adjoint(self.weigh(y)))

    def weigh(self, kspace: Array) -> Array:
        """Multiply k-space with the root of the weights."""
        if self.weights is None:
            return kspace
        return kspace * np.sqrt(self.weights, dtype=real_dtype(complex_dtype(kspace)))

    @property
    def mean_diagonal(self) -> float:
        """Mean of the diagonal of F^H W F, the natural unit of a regularisation."""
        if isinstance(self.fourier, Nufft):
            total = self.fourier.trajectory.shape[0] if self.weights is None else float(self.weights.sum())
            return total / math.prod(self.image_shape)
        mask = getattr(self.fourier, "mask", None)
        return 1.0 if mask is None else float(np.broadcast_to(np.abs(mask) ** 2, self.image_shape).mean())

    @property
    def gram(self) -> LinearOperator:
        return _EncodingGram(self)


class _EncodingGram(LinearOperator):
    """S^H F^H W F S, coil by coil on the threads of the CPU, or as a convolution."""

    def __init__(self, encoding: Encoding) -> None:
        self.encoding = encoding

    def forward(self, x: Array) -> Array:
        encoding = self.encoding
        if encoding._toeplitz is not None:
            return encoding.sensitivity.adjoint(encoding._toeplitz(encoding.sensitivity(x)))
        if is_tensor(x) or not isinstance(encoding.fourier, Nufft):
            return encoding.adjoint(encoding.forward(x))
        dtype = complex_dtype(x)
        plan = encoding.fourier.plan(dtype)
        weights = None if encoding.weights is None else encoding.weights.astype(real_dtype(dtype), copy=False)
        images = x.reshape(-1, *encoding.image_shape)
        return np.stack([plan.gram(image, encoding.maps, weights) for image in images]).reshape(x.shape)

    def adjoint(self, y: Array) -> Array:
        return self.forward(y)
