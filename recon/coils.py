"""Receiver channels: noise whitening, sensitivity maps, combination, compression.

Multi-coil images are `[..., coil, y, x]` (or `[..., coil, z, y, x]` with `rank=3`), readouts `[..., coil, sample]`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import uniform_filter

from recon import device
from recon.arrays import Array, complex_dtype, is_tensor, real_dtype, through_arrays
from recon.namespace import namespace
from recon.resident import call_resident, resident

_SLAB_VALUES = 2**22
"""Values of the pixel-wise coil covariances held at once (32 MiB)."""
_WORTH_A_COPY = 2**18
"""Values of coil images from which a GPU is faster, copies included: 5 ms whatever the size, a CPU 40 ns a value."""
_DEPENDENT = 1e-9
"""Smallest eigenvalue of the noise correlation matrix, relative to the largest, that still counts as full rank."""


class SingularNoiseError(ValueError):
    """A noise covariance that cannot be whitened; `channels` are the ones at fault."""

    def __init__(self, faulty: np.ndarray, fault: str) -> None:
        self.channels = tuple(int(index) for index in np.flatnonzero(faulty))
        names = ", ".join(map(str, self.channels)) or "unknown"
        super().__init__(f"the noise covariance cannot be whitened: channel(s) {names} (counted from 0) have {fault}")


def noise_covariance(samples: np.ndarray) -> np.ndarray:
    """Covariance E(n n^H) of noise samples `[..., coil, sample]`, averaged over all axes but the coils.

    Returns:
        complex128 `[coil, coil]`.
    """
    samples = np.asarray(samples, np.complex128)
    flat = np.moveaxis(samples, -2, 0).reshape(samples.shape[-2], -1)
    covariance: np.ndarray = flat @ flat.conj().T / flat.shape[1]
    return covariance


def whitening_matrix(covariance: np.ndarray) -> np.ndarray:
    """Matrix W with W C W^H = I: the inverse of the lower Cholesky factor of the noise covariance C.

    Args:
        covariance: `[coil, coil]`, Hermitian.

    Returns:
        complex128 `[coil, coil]`, lower triangular.

    Raises:
        SingularNoiseError: the covariance is singular or not finite; names the channels.
        ValueError: no square matrix.
    """
    covariance = np.asarray(covariance, np.complex128)
    if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1]:
        raise ValueError(f"a noise covariance is a square matrix, not an array of shape {covariance.shape}")
    variance = covariance.diagonal().real
    finite = np.isfinite(covariance).all(axis=1) & np.isfinite(covariance).all(axis=0)
    if not finite.all():
        raise SingularNoiseError(~np.isfinite(variance), "noise that is not finite (NaN, Inf)")
    dead = variance <= 1e-12 * np.median(variance)
    if dead.any() or not variance.any():
        raise SingularNoiseError(dead | (variance <= 0), "no noise at all (dead or unplugged)")
    deviation = np.sqrt(variance)
    values, vectors = np.linalg.eigh(covariance / np.outer(deviation, deviation))
    if values[0] <= _DEPENDENT * values[-1]:
        involved = np.abs(vectors[:, 0]) > 0.1 * np.abs(vectors[:, 0]).max()
        raise SingularNoiseError(involved, "noise that is a copy or a sum of other channels' (or too few noise samples)")
    return np.linalg.inv(np.linalg.cholesky(covariance))


def apply_channels(matrix: np.ndarray, data: Array, coil_axis: int = -2) -> Array:
    """Mix channels: `matrix` `[out, coil]` applied along `coil_axis` of `data`; keeps the dtype of `data`.

    `coil_axis` is -2 for readouts `[..., coil, sample]` and -3 for images `[..., coil, y, x]`.
    """
    if is_tensor(data):
        import tensorflow as tf

        moved = tf.experimental.numpy.moveaxis(data, coil_axis, -2)
        mixed = tf.linalg.matmul(tf.cast(matrix, data.dtype), moved)
        return tf.experimental.numpy.moveaxis(mixed, -2, coil_axis)
    xp = namespace(data)
    data = xp.asarray(data)
    matrix = xp.asarray(np.asarray(matrix).astype(complex_dtype(data), copy=False))
    if coil_axis == -2:
        return matrix @ data
    flat = xp.moveaxis(data, coil_axis, 0)
    mixed = (matrix @ flat.reshape(flat.shape[0], -1)).reshape(-1, *flat.shape[1:])
    return xp.ascontiguousarray(xp.moveaxis(mixed, 0, coil_axis))


def combine(images: Array, maps: Array | None = None, rank: int = 2) -> Array:
    """Combine coil images `[..., coil, y, x]` to `[..., y, x]`.

    Without maps: root sum of squares (real). With maps: the least-squares (matched-filter) combination
    sum conj(s) x / sum |s|^2, zero where all maps are zero (Roemer 1990).
    """
    axis = -1 - rank
    if is_tensor(images, maps):
        return _combine_tensor(images, maps, axis)
    xp = namespace(images)
    if maps is None:
        return np.sqrt(_power(images, axis)) if xp is np else xp.linalg.norm(images, axis=axis)  # one kernel of CuPy's
    power = (maps.real**2 + maps.imag**2).sum(axis)
    return (maps.conj() * images).sum(axis) * xp.where(power > 0, 1 / xp.where(power > 0, power, 1), 0)


def _power(images: np.ndarray, axis: int) -> np.ndarray:
    """Sum of squared magnitudes along an axis, without arrays of all coils' squares: a third of the time."""
    dtype = complex_dtype(images)
    parts = np.moveaxis(np.ascontiguousarray(images, dtype).view(real_dtype(dtype)).reshape(*images.shape, 2), axis - 1, 0)
    power: np.ndarray = np.einsum("c...,c...->...", parts, parts).sum(-1)
    return power


def _combine_tensor(images: Array, maps: Array | None, axis: int) -> Array:
    import tensorflow as tf

    if maps is None:
        return tf.sqrt(tf.reduce_sum(tf.math.real(images * tf.math.conj(images)), axis))
    power = tf.reduce_sum(maps * tf.math.conj(maps), axis)
    return tf.math.divide_no_nan(tf.reduce_sum(tf.math.conj(maps) * images, axis), power)


@through_arrays
@resident
def walsh(images: Array, kernel_size: int = 5, rank: int = 2, exact: bool = False) -> Array:
    """Sensitivity maps as the dominant eigenvector of the local coil covariance.

    Walsh, Gmitro, Marcellin, Magn. Reson. Med. 43 (2000). The covariance is averaged over a box.

    Args:
        images: complex `[..., coil, y, x]` (or `z, y, x`).
        kernel_size: edge of the box in pixels.
        rank: number of image axes.
        exact: decompose every covariance fully (`eigh`) instead of 16 power iterations, which leave a trace of weaker eigenvectors
            where noise dominates; many times slower.

    Returns:
        Maps of the shape of `images`, with sum |s|^2 = 1 over the coils (zero where the images are), and a phase
        relative to one fixed combination of the coils.
    """
    return _each_batch(images, rank, lambda batch: _walsh(batch, kernel_size, _dominant_exactly if exact else _dominant))


@through_arrays
def inati(images: Array, kernel_size: int | tuple[int, ...] = 5, iterations: int = 5, tolerance: float = 1e-3, rank: int = 2) -> Array:
    """Sensitivity maps and combined image found together by local power iterations.

    Inati, Hansen, Kellman, Proc. ISMRM 22 (2014) 4407: alternate between maps, smoothed over a box from coil images times
    the conjugate image, and the image combined with these maps; keep the phase of the mean coil combination smooth.
    CuPy arrays stay on their GPU; of NumPy arrays only large ones are copied to one.

    Args:
        images: complex `[..., coil, y, x]` (or `z, y, x`).
        kernel_size: edge of the box in pixels, one for all image axes or one an axis.
        iterations: at most so many.
        tolerance: stop when the combined image changes by less than this (relative l2).
        rank: number of image axes.

    Returns:
        Maps of the shape of `images`, with sum |s|^2 = 1 over the coils (zero where the images are).
    """

    def estimate(values: Array) -> Array:
        return _each_batch(values, rank, lambda batch: _inati(batch, kernel_size, iterations, tolerance))

    large = isinstance(images, np.ndarray) and images.size >= _WORTH_A_COPY
    return call_resident("inati", estimate, images) if large else estimate(images)


def _each_batch(images: Array, rank: int, estimate: Callable[[Array], Array]) -> Array:
    images = images if hasattr(images, "get") else np.asarray(images)
    if images.ndim < rank + 1:
        raise ValueError(f"coil images need a coil axis and {rank} image axes, not shape {images.shape}")
    images = images.astype(complex_dtype(images), copy=False)
    batch = images.reshape(-1, *images.shape[-1 - rank :])
    maps = namespace(images).empty_like(batch)
    for index, one in enumerate(batch):
        maps[index] = estimate(one)
    return maps.reshape(images.shape)


def _smooth(values: Array, kernel_size: int | tuple[int, ...]) -> Array:
    """Box filter over all axes but the first; zeros outside."""
    if not isinstance(values, np.ndarray):
        return _smooth_on_gpu(values, kernel_size)
    result = np.empty_like(values)
    for index, one in enumerate(values):
        uniform_filter(one, kernel_size, output=result[index], mode="constant")
    return result


def _smooth_on_gpu(values: Array, kernel_size: int | tuple[int, ...]) -> Array:
    """The same, as sums of shifted copies."""
    rank = values.ndim - 1
    space = namespace(values)
    sizes = (kernel_size,) * rank if isinstance(kernel_size, int) else kernel_size
    for axis, size in enumerate(sizes, start=1):
        n, before = values.shape[axis], size // 2
        padded = space.pad(values, [(before, size - 1 - before) if a == axis else (0, 0) for a in range(rank + 1)])
        before_axis: tuple[slice, ...] = (slice(None),) * axis
        parts = (padded[before_axis + (slice(first, first + n),)] for first in range(size))  # noqa: RUF005
        values = sum(parts, next(parts)) * real_dtype(values.dtype).type(1 / size)
    return values


def _walsh(images: Array, kernel_size: int, dominant: Callable[[Array], Array]) -> Array:
    from recon.nufft import run_each

    space = namespace(images)
    coils, rows, *rest = images.shape
    maps = space.empty_like(images)
    reference = mean_coil(images)
    height = max(1, _SLAB_VALUES // (coils**2 * math.prod(rest)))
    halo = kernel_size // 2

    def slab(index: int) -> None:
        start, stop = index * height, min((index + 1) * height, rows)
        first, last = max(0, start - halo), min(rows, stop + halo)
        part = images[:, first:last]
        pairs = (part[:, None] * part.conj()).reshape(coils**2, *part.shape[1:])
        covariance = _smooth(pairs, kernel_size)[:, start - first : stop - first]
        covariance = space.moveaxis(covariance.reshape(coils, coils, -1), -1, 0)
        vector = dominant(covariance)
        phase = space.exp(-1j * space.angle(vector @ reference.conj()))
        maps[:, start:stop] = (vector * phase[:, None]).T.reshape(coils, stop - start, *rest)

    slabs = -(-rows // height)
    if space is np:
        run_each(slab, slabs)
    else:
        for index in range(slabs):
            slab(index)
    return maps


def _dominant(matrices: Array) -> Array:
    """Dominant eigenvectors `[n, coil]` of positive semidefinite `[n, coil, coil]`; zero for zero matrices.

    Sixteen power iterations, eight times faster than a full decomposition; the second eigenvalue is small wherever there
    is signal.
    """
    space = namespace(matrices)
    power = matrices * _inverse(space.einsum("nii->n", matrices).real)[:, None, None]
    power = power @ power
    power = power @ power
    strongest = space.einsum("nii->ni", power).real.argmax(axis=1)
    vector = space.take_along_axis(power, strongest[:, None, None], axis=2)
    for _ in range(3):
        vector = power @ _normalised(vector)
    return _normalised(vector)[..., 0]


def _dominant_exactly(matrices: Array) -> Array:
    """The same from a full decomposition."""
    values, vectors = namespace(matrices).linalg.eigh(matrices)
    return vectors[:, :, -1] * (values[:, -1:] > 0)


def _normalised(vectors: Array) -> Array:
    return vectors * _inverse(namespace(vectors).linalg.norm(vectors, axis=1, keepdims=True))


def _inverse(values: Array) -> Array:
    """1 / `values` where they are above 0, else 0."""
    space = namespace(values)
    above = values > 0
    return space.where(above, 1 / space.where(above, values, 1), 0)


def mean_coil(images: Array) -> Array:
    """Dominant coil combination `[coil]` of images or k-space `[coil, ...]`; the first coil of some weight has the phase 0.

    (An eigenvector's phase is otherwise what the library happens to give.)
    """
    flat = images.reshape(images.shape[0], -1)
    space = namespace(flat)
    vector = space.linalg.eigh(flat @ flat.conj().T)[1][:, -1]
    size = space.abs(vector)
    first = vector[(size > 0.1 * size.max()).argmax()]
    return vector * (first.conj() / space.abs(first))


def _inati(images: Array, kernel_size: int | tuple[int, ...], iterations: int, tolerance: float) -> Array:
    space = namespace(images)
    tiny = np.finfo(images.real.dtype).tiny
    combined = space.einsum("c,c...->...", _unit(images.reshape(images.shape[0], -1).sum(1)).conj(), images)
    maps = images
    for _ in range(iterations):
        previous = combined
        maps = _smooth(images * combined.conj(), kernel_size)
        maps = maps * _inverse(space.sqrt((maps.real**2 + maps.imag**2).sum(0)))
        combined = (maps.conj() * images).sum(0)
        mean = _unit((maps * combined).reshape(maps.shape[0], -1).sum(1))
        phase = space.einsum("c,c...->...", mean.conj(), maps)
        phase /= space.maximum(space.abs(phase), tiny)
        combined *= phase
        maps *= phase.conj()
        if float(space.linalg.norm(combined - previous)) <= tolerance * float(space.linalg.norm(combined)):
            break
    return maps


def _unit(vector: Array) -> Array:
    space = namespace(vector)
    norm = space.linalg.norm(vector)
    return vector / norm if norm > 0 else vector


@dataclass(frozen=True)
class CoilCompressor:
    """Linear coil compression by singular value decomposition (Buehrer 2007; Huang 2008).

    `matrix` `[virtual, coil]` has orthonormal rows, strongest first; `energy` is the share of each virtual coil.
    """

    matrix: np.ndarray
    energy: np.ndarray

    @classmethod
    def fit(cls, data: Array, coils: int | None = None, energy: float | None = None, coil_axis: int = -2) -> CoilCompressor:
        """Find the compression from calibration data.

        Args:
            data: complex, coils along `coil_axis`; NumPy or CuPy.
            coils: number of virtual coils to keep, at most the number of coils.
            energy: or: keep the fewest coils that hold at least this share of the energy, 0 to 1. (TensorFlow MRI's
                `variance_ratio` keeps the most that hold no more than it: one fewer.)

        Raises:
            ValueError: neither or both of `coils` and `energy`, or out of range.
        """
        if (coils is None) == (energy is None):
            raise ValueError("give either the number of virtual coils or the share of energy to keep")
        xp = namespace(data)
        flat = xp.moveaxis(xp.asarray(data), coil_axis, 0)
        flat = flat.reshape(flat.shape[0], -1).astype(np.complex128)
        values, vectors = np.linalg.eigh(device.get(flat @ flat.conj().T))
        values, vectors = values[::-1].clip(0), vectors[:, ::-1]
        share = values / (values.sum() or 1)
        if energy is not None:
            if not 0 < energy <= 1:
                raise ValueError(f"energy must lie between 0 and 1, not {energy}")
            coils = min(int(np.searchsorted(share.cumsum(), energy - 1e-12)) + 1, flat.shape[0])
        elif coils is None or not 1 <= coils <= flat.shape[0]:
            raise ValueError(f"coils must lie between 1 and {flat.shape[0]}, not {coils}")
        return cls(vectors[:, :coils].conj().T, share)

    def apply(self, data: Array, coil_axis: int = -2) -> Array:
        """Compress `data` along `coil_axis`."""
        return apply_channels(self.matrix, data, coil_axis)


def compress_svd(data: Array, coils: int | None = None, energy: float | None = None, coil_axis: int = -2) -> Array:
    """Fit a `CoilCompressor` to `data` and apply it to the same data; NumPy or CuPy."""
    return CoilCompressor.fit(data, coils, energy, coil_axis).apply(data, coil_axis)
