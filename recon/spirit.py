"""SPIRiT: k-space that agrees with itself, as every sample is a combination of its neighbours in all coils."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from recon import device
from recon.arrays import Array, is_tensor, like
from recon.blas import one_blas_thread
from recon.fourier import fftc, ifftc
from recon.namespace import namespace
from recon.operators.linear import LinearOperator
from recon.resident import resident
from recon.solvers.conjugate_gradient import conjugate_gradient
from recon.waves import along_axes, waves


class _CoilMatrices(LinearOperator):
    """A matrix of the coils at every pixel, `matrices` `[*image, coil, coil]`, on coil images `[..., coil, *image]`."""

    def __init__(self, matrices: Array) -> None:
        self.matrices = matrices
        self.rank = matrices.ndim - 2

    def forward(self, x: Array) -> Array:
        return self._apply(like(self.matrices, x), x)

    def adjoint(self, y: Array) -> Array:
        return self._apply(like(self.matrices.conj().swapaxes(-1, -2), y), y)

    @property
    def gram(self) -> LinearOperator:
        return _SelfAdjoint(self.matrices.conj().swapaxes(-1, -2) @ self.matrices)

    def _apply(self, matrices: Array, x: Array) -> Array:
        coil = -self.rank - 1
        if not is_tensor(x):
            space = namespace(x)
            return space.moveaxis((matrices @ space.moveaxis(x, coil, -1)[..., None])[..., 0], -1, coil)
        import tensorflow as tf

        lead = list(range(len(x.shape) + coil))
        axes = list(range(len(x.shape)))
        image = axes[coil + 1 :]
        vectors = tf.transpose(x, [*lead, *image, len(lead)])
        result = tf.linalg.matvec(tf.cast(matrices, x.dtype), vectors)
        return tf.transpose(result, [*lead, axes[-1], *axes[len(lead) : -1]])


class _SelfAdjoint(_CoilMatrices):
    """Hermitian matrices."""

    def adjoint(self, y: Array) -> Array:
        return self.forward(y)


class SpiritConsistency(_CoilMatrices):
    """G - I on coil images `[..., coil, *image]`: the convolution of k-space as a matrix of the coils at every pixel.

    Args:
        kernel: `[target, source, *offset]` of odd sizes from `calibrate`, NumPy or CuPy.
        image_shape: pixels per axis.
    """

    def __init__(self, kernel: Array, image_shape: Sequence[int]) -> None:
        shape = tuple(image_shape)
        space = namespace(kernel)
        double = [waves(n, size // 2, np.dtype(np.complex128))[:, ::-1] for n, size in zip(shape, kernel.shape[2:], strict=True)]
        matrices = along_axes(double, kernel.astype(np.complex128))
        matrices = space.moveaxis(matrices, (0, 1), (-2, -1)) - space.eye(len(kernel))
        super().__init__(space.ascontiguousarray(matrices.astype(kernel.dtype)))


@one_blas_thread()
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
    own = np.arange(coils) * math.prod(size) + middle
    # Least squares without the own sample: the column of the inverse that belongs to it, scaled to -1 there.
    columns = np.linalg.solve(gram, np.eye(len(gram))[:, own])
    kernel: np.ndarray = -(columns / columns[own, range(coils)]).T
    kernel[range(coils), own] = 0
    return kernel.reshape(coils, coils, *size).astype(calibration.dtype)


def spirit(
    kspace: Array,
    mask: np.ndarray | None = None,
    calibration: int | Sequence[int] = 24,
    kernel_size: int | Sequence[int] = 5,
    iterations: int = 30,
    regularisation: float = 0.01,
    tolerance: float = 1e-4,
) -> Array:
    """Calibrate the kernel on the centre of k-space (`calibrate`), then fill the missing samples (`fill`).

    Args:
        kspace: complex `[coil, *image]`, zero where nothing was sampled; array or tensor.
        mask, iterations, tolerance: see `fill`.
        calibration: size of the fully sampled centre, one number or one for each axis (larger than an axis: all of it).
        kernel_size, regularisation: see `calibrate`.

    Returns:
        k-space `[coil, *image]`, complete.

    Raises:
        ValueError: the centre is not fully sampled, or see `calibrate`; inside `tf.function`, where the kernel must be
            calibrated beforehand.
    """
    sampled = _sampled(kspace, mask)
    shape = sampled.shape
    sizes = (calibration,) * len(shape) if isinstance(calibration, int) else tuple(calibration)
    region = tuple(slice(max(n // 2 - size // 2, 0), n // 2 - size // 2 + size) for n, size in zip(shape, sizes, strict=True))
    if not sampled[region].all():
        raise ValueError(f"the centre of {sizes} samples is not fully sampled; give a smaller calibration, or one for each axis")
    everywhere: tuple[slice, ...] = (slice(None), *region)
    return fill(kspace, calibrate(_values(kspace[everywhere]), kernel_size, regularisation), sampled, iterations, tolerance)


@resident
def fill(kspace: Array, kernel: Array, mask: np.ndarray | None = None, iterations: int = 30, tolerance: float = 1e-4) -> Array:
    """Fill the missing samples: minimise |(G - I) x|^2 with the measured samples of x kept as they are.

    Lustig and Pauly, Magn. Reson. Med. 64 (2010), equation 10, by conjugate gradients over the missing samples. A volume
    with fully sampled readouts (its last axis) is solved slice by slice along them.

    Args:
        kspace: complex `[coil, *image]`, zero where nothing was sampled; array or tensor (also inside `tf.function`). NumPy arrays
            are filled on a GPU where one is in use.
        kernel: of `calibrate`.
        mask: `[*image]`; None takes samples that are 0 in all coils as missing.
        iterations, tolerance: of the conjugate gradients.

    Returns:
        k-space `[coil, *image]`, complete.

    Raises:
        ValueError: the kernel does not fit.
    """
    shape = tuple(int(n) for n in kspace.shape[1:])
    if kernel.ndim != len(shape) + 2 or kernel.shape[1] != kspace.shape[0]:
        raise ValueError(f"a kernel {kernel.shape} ([target, source, *offset]) does not fit k-space {tuple(kspace.shape)}")
    sampled = _sampled(kspace, mask)
    if sampled.all():
        return kspace
    kernel = like(kernel, kspace)
    if len(shape) == 3 and (sampled == sampled[..., :1]).all():
        return _slices(kspace, kernel, sampled[..., 0], iterations, tolerance)
    return _filled(kspace, kernel, sampled, iterations, tolerance)


def _filled(kspace: Array, kernel: Array, sampled: np.ndarray, iterations: int, tolerance: float) -> Array:
    space, axes = namespace(kspace), tuple(range(-sampled.ndim, 0))
    gram, zero = SpiritConsistency(kernel, sampled.shape).gram, space.zeros_like(kspace)
    known = like(sampled, kspace)

    def normal(samples: Array) -> Array:
        return space.where(known, zero, fftc(gram(ifftc(samples, axes)), axes))

    measured = space.where(known, kspace, zero)
    return measured + conjugate_gradient(normal, -normal(measured), iterations, tolerance)


def _slices(kspace: Array, kernel: Array, sampled: np.ndarray, iterations: int, tolerance: float) -> Array:
    """A volume as slices at every position along its last axis, where the kernel is one of two dimensions."""
    n = int(kspace.shape[-1])
    hybrid = ifftc(kspace, -1)
    kernels = along_axes([waves(n, kernel.shape[-1] // 2, np.dtype(np.complex128))[:, ::-1]], kernel.astype(np.complex128))
    kernels = kernels.astype(kernel.dtype)
    filled: list[Array] = [None] * n

    def fill_slice(index: int) -> None:
        filled[index] = _filled(hybrid[..., index], kernels[..., index], sampled, iterations, tolerance)

    if isinstance(kspace, np.ndarray):
        from recon.nufft import run_each

        run_each(fill_slice, n)
    else:
        for index in range(n):
            fill_slice(index)
    return fftc(namespace(kspace).stack(filled, -1), -1)


def _sampled(kspace: Array, mask: np.ndarray | None) -> np.ndarray:
    shape = tuple(int(n) for n in kspace.shape[1:])
    if mask is not None:
        return np.broadcast_to(np.asarray(mask, bool), shape)
    sampled: np.ndarray = (_values(kspace) != 0).any(0)
    return sampled


def _values(kspace: Array) -> np.ndarray:
    try:
        return device.get(kspace) if hasattr(kspace, "get") else np.asarray(kspace)
    except NotImplementedError as error:
        raise ValueError("inside tf.function, calibrate beforehand and call fill with kernel and mask") from error
