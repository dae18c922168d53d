"""Fourier operators: Cartesian, nonuniform, and the Gram operator of the latter as a convolution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from recon import device, nufft
from recon.arrays import Array, complex_dtype, is_tensor, like, real_dtype
from recon.fourier import fft_module, fftc, ifftc
from recon.operators.linear import LinearOperator


class Fourier(LinearOperator):
    """Centred orthonormal FFT over the last `rank` axes, times a sampling mask.

    Args:
        rank: number of image axes.
        mask: real or boolean, broadcast against `[..., *image_shape]`; None samples everything.
    """

    def __init__(self, rank: int = 2, mask: np.ndarray | None = None) -> None:
        self.axes = tuple(range(-rank, 0))
        self.mask = mask
        self._on_gpu: dict[np.dtype, Any] = {}

    def forward(self, x: Array) -> Array:
        return self._sample(fftc(x, self.axes))

    def adjoint(self, y: Array) -> Array:
        return ifftc(self._sample(y), self.axes)

    def _sample(self, kspace: Array) -> Array:
        if self.mask is None:
            return kspace
        dtype = real_dtype(complex_dtype(kspace))
        if is_tensor(kspace) or isinstance(kspace, np.ndarray):
            return kspace * np.asarray(self.mask, dtype)
        if dtype not in self._on_gpu:
            self._on_gpu[dtype] = like(np.asarray(self.mask, dtype), kspace)
        return kspace * self._on_gpu[dtype]


class Nufft(LinearOperator):
    """Orthonormal NUFFT, images `[..., *image_shape]` to k-space `[..., sample]`.

    Args:
        trajectory: `[sample, axis]` in rad/pixel.
        image_shape: pixels per axis.
        tolerance: relative accuracy.
    """

    def __init__(self, trajectory: np.ndarray, image_shape: Sequence[int], tolerance: float = nufft.TOLERANCE) -> None:
        self.trajectory = np.asarray(trajectory)
        self.image_shape = tuple(image_shape)
        self.tolerance = tolerance

    def plan(self, dtype: Any) -> nufft.Nufft:
        """The cached plan for data of this dtype."""
        return nufft.plan(self.trajectory, self.image_shape, self.tolerance, dtype)

    def forward(self, x: Array) -> Array:
        if is_tensor(x):
            return nufft.nufft(x, self.trajectory, self.image_shape, 2, self.tolerance)
        return self.plan(complex_dtype(x)).forward(x)

    def adjoint(self, y: Array) -> Array:
        if is_tensor(y):
            return nufft.nufft(y, self.trajectory, self.image_shape, 1, self.tolerance)
        return self.plan(complex_dtype(y)).adjoint(y)


class ToeplitzGram(LinearOperator):
    """A^H W A of a NUFFT as a convolution: FFTs of twice the size, no interpolation.

    Fessler et al., IEEE Trans. Signal Process. 53 (2005). Its cost does not depend on the number of samples.

    Args:
        trajectory: `[sample, axis]` in rad/pixel.
        image_shape: pixels per axis.
        weights: real `[sample]`; None for ones.
        tolerance: relative accuracy of the convolution kernel.
    """

    def __init__(
        self,
        trajectory: np.ndarray,
        image_shape: Sequence[int],
        weights: np.ndarray | None = None,
        tolerance: float = 1e-6,
    ) -> None:
        self.image_shape = tuple(image_shape)
        doubled = tuple(2 * n for n in self.image_shape)
        values = np.ones(len(trajectory)) if weights is None else np.asarray(weights)
        plan = nufft.Nufft(trajectory, doubled, tolerance, np.complex128)
        spread = plan.adjoint(device.put(values).astype(np.complex128))
        spread *= math.sqrt(math.prod(doubled)) / math.prod(self.image_shape)
        # Distance -n never occurs between n pixels; without it the kernel is Hermitian and its transform real.
        for axis in range(len(doubled)):
            spread[(slice(None),) * axis + (0,)] = 0
        fft, _ = fft_module(spread)
        self.kernel: Any = fft.fftn(fft.ifftshift(spread)).real
        self._kernels: dict[Any, Any] = {}

    def forward(self, x: Array) -> Array:
        if is_tensor(x):
            return convolve_tensor(x, self.kernel_like(x))
        return convolve(x, self.kernel_like(x), len(self.image_shape))

    def adjoint(self, y: Array) -> Array:
        return self.forward(y)

    def kernel_like(self, x: Any) -> Any:
        """The Fourier transform of the kernel, real `[2 y, 2 x]`, in the precision and of the kind of `x`."""
        dtype = real_dtype(complex_dtype(x))
        key = ("tensor" if is_tensor(x) else type(x), dtype)
        if key not in self._kernels:
            self._kernels[key] = self._converted(x, dtype)
        return self._kernels[key]

    def _converted(self, x: Any, dtype: np.dtype) -> Any:
        if not isinstance(x, np.ndarray) and not is_tensor(x):
            return like(self.kernel, x).astype(dtype)
        host = device.get(self.kernel).astype(dtype)
        if not is_tensor(x):
            return host
        import tensorflow as tf

        with tf.init_scope():  # outlives the graph that may be under construction
            return tf.constant(host)


def convolve(x: Array, kernel: Array, rank: int) -> Array:
    """Convolve NumPy or CuPy `[..., *image_shape]` with kernels given by their real Fourier transforms on grids of twice the size.

    Args:
        x: of `rank` image axes.
        kernel: of the kind and precision of `x`, broadcast against `[..., *doubled]`.
    """
    fft, options = fft_module(x)
    shape, axes = x.shape[x.ndim - rank :], range(-rank, 0)
    # Zeros need no transform: an axis is padded when its turn comes, and cropped as soon as it is done. The last axis,
    # contiguous in memory, comes while the others are long.
    for axis in axes:
        x = fft.fft(x, 2 * shape[axis], axis)
    x *= kernel
    for axis in reversed(axes):
        inside = (..., slice(shape[axis]), *[slice(None)] * (-1 - axis))
        x = fft.ifft(x, axis=axis, **options)[inside]
    return x


def convolve_tensor(x: Any, kernel: Any) -> Any:
    """Convolve a tensor `[..., *image_shape]` with a kernel given by its real Fourier transform on a grid of twice the size."""
    import tensorflow as tf

    rank = kernel.shape.rank
    shape = [n // 2 for n in kernel.shape]
    to, back = {
        1: (tf.signal.fft, tf.signal.ifft),
        2: (tf.signal.fft2d, tf.signal.ifft2d),
        3: (tf.signal.fft3d, tf.signal.ifft3d),
    }[rank]
    padding = [[0, 0]] * (x.shape.rank - rank) + [[0, n] for n in shape]
    spectrum = to(tf.pad(x, padding)) * tf.cast(kernel, x.dtype)
    inside = (..., *(slice(n) for n in shape))
    return back(spectrum)[inside]
