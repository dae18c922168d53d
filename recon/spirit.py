"""SPIRiT: k-space that agrees with itself, as every sample is a combination of its neighbours in all coils."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from recon.arrays import Array, like
from recon.fourier import fftc, ifftc
from recon.operators.linear import LinearOperator
from recon.solvers.conjugate_gradient import conjugate_gradient
from recon.waves import along_axes, waves


class SpiritConsistency(LinearOperator):
    """G - I on coil images `[..., coil, *image]`: the convolution of k-space as a matrix of the coils at every pixel.

    Args:
        kernel: `[target, source, *offset]` of odd sizes from `calibrate`.
        image_shape: pixels per axis.
    """

    def __init__(self, kernel: np.ndarray, image_shape: Sequence[int]) -> None:
        self.image_shape = tuple(image_shape)
        rank = len(self.image_shape)
        double = [waves(n, size // 2, np.dtype(np.complex128))[:, ::-1] for n, size in zip(image_shape, kernel.shape[2:], strict=True)]
        matrices = along_axes(double, kernel.astype(np.complex128))
        matrices = np.moveaxis(matrices, (0, 1), (-2, -1)) - np.eye(len(kernel))
        self.matrices = np.ascontiguousarray(matrices.astype(kernel.dtype))
        self.rank = rank

    def forward(self, x: Array) -> Array:
        return self._apply(like(self.matrices, x), x)

    def adjoint(self, y: Array) -> Array:
        return self._apply(like(self.matrices.conj().swapaxes(-1, -2), y), y)

    def _apply(self, matrices: Array, x: Array) -> Array:
        coil = -self.rank - 1
        if isinstance(x, np.ndarray):
            return np.moveaxis((matrices @ np.moveaxis(x, coil, -1)[..., None])[..., 0], -1, coil)
        import tensorflow as tf

        lead = list(range(len(x.shape) + coil))
        axes = list(range(len(x.shape)))
        image = axes[coil + 1 :]
        vectors = tf.transpose(x, [*lead, *image, len(lead)])
        result = tf.linalg.matvec(tf.cast(matrices, x.dtype), vectors)
        return tf.transpose(result, [*lead, axes[-1], *axes[len(lead) : -1]])


def calibrate(calibration: np.ndarray, kernel_size: int | Sequence[int] = 5, regularisation: float = 0.01) -> np.ndarray:
    """The kernel that predicts each sample from its neighbours, by least squares over a fully sampled region.

    Args:
        calibration: complex `[coil, *region]`.
        kernel_size: odd, one number or one for each axis.
        regularisation: Tikhonov, in units of the mean diagonal of the normal equations (Lustig's is relative likewise).

    Returns:
        `[target, source, *offset]`, 0 for a coil's own sample in the middle.

    Raises:
        ValueError: even sizes, or a region smaller than the kernel, empty or not finite.
    """
    rank = calibration.ndim - 1
    size = (kernel_size,) * rank if isinstance(kernel_size, int) else tuple(kernel_size)
    if len(size) != rank or any(n < 1 or n % 2 == 0 for n in size):
        raise ValueError(f"kernel_size must be {rank} odd numbers, not {kernel_size}")
    if any(n < k for n, k in zip(calibration.shape[1:], size, strict=True)):
        raise ValueError(f"the calibration region {calibration.shape[1:]} is smaller than the kernel {size}")
    if not np.isfinite(calibration).all() or not calibration.any():
        raise ValueError("the calibration region is empty or holds values that are not finite: the centre of k-space must be sampled")
    coils = len(calibration)
    windows = np.lib.stride_tricks.sliding_window_view(calibration, size, axis=tuple(range(1, rank + 1)))
    patches = np.moveaxis(windows, 0, rank).reshape(-1, coils * math.prod(size)).astype(np.complex128)
    gram = patches.conj().T @ patches
    gram += regularisation * np.trace(gram).real / len(gram) * np.eye(len(gram))
    middle = math.prod(size) // 2
    kernel = np.zeros((coils, coils * math.prod(size)), np.complex128)
    for coil in range(coils):
        own = coil * math.prod(size) + middle
        others = np.delete(np.arange(len(gram)), own)
        kernel[coil, others] = np.linalg.solve(gram[np.ix_(others, others)], gram[others, own])
    return kernel.reshape(coils, coils, *size).astype(calibration.dtype)


def spirit(
    kspace: np.ndarray,
    mask: np.ndarray | None = None,
    calibration: int | Sequence[int] = 24,
    kernel_size: int | Sequence[int] = 5,
    iterations: int = 30,
    regularisation: float = 0.01,
    tolerance: float = 1e-4,
) -> np.ndarray:
    """Fill the missing samples: minimise |(G - I) x|^2 with the measured samples of x kept as they are.

    Lustig and Pauly, Magn. Reson. Med. 64 (2010), equation 10, by conjugate gradients over the missing samples.

    Args:
        kspace: complex `[coil, *image]`, zero where nothing was sampled.
        mask: `[*image]`; None takes samples that are 0 in all coils as missing.
        calibration: size of the fully sampled centre, one number or one for each axis (larger than an axis: all of it).
        kernel_size, regularisation: see `calibrate`.
        iterations, tolerance: of the conjugate gradients.

    Returns:
        k-space `[coil, *image]`, complete.

    Raises:
        ValueError: the centre is not fully sampled, or see `calibrate`.
    """
    shape = kspace.shape[1:]
    rank, axes = len(shape), tuple(range(-len(shape), 0))
    sampled = np.broadcast_to((kspace != 0).any(0) if mask is None else np.asarray(mask, bool), shape)
    sizes = (calibration,) * rank if isinstance(calibration, int) else tuple(calibration)
    region = tuple(slice(max(n // 2 - size // 2, 0), n // 2 - size // 2 + size) for n, size in zip(shape, sizes, strict=True))
    if not sampled[region].all():
        raise ValueError(f"the centre of {sizes} samples is not fully sampled; give a smaller calibration, or one for each axis")
    everywhere: tuple[slice, ...] = (slice(None), *region)
    centre = kspace[everywhere]
    consistency = SpiritConsistency(calibrate(centre, kernel_size, regularisation), shape)
    missing = (~sampled).astype(kspace.real.dtype)

    def normal(samples: np.ndarray) -> np.ndarray:
        image = ifftc(samples, axes)
        result: np.ndarray = missing * fftc(consistency.adjoint(consistency(image)), axes)
        return result

    measured = np.where(sampled, kspace, np.zeros((), kspace.dtype))
    if not missing.any():
        return measured
    filled: np.ndarray = measured + conjugate_gradient(normal, -normal(measured), iterations, tolerance)
    return filled
