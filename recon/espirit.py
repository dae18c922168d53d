"""ESPIRiT: sensitivity maps as eigenvectors of the reconstruction operator that a fully sampled centre of k-space defines.

Uecker, Lai, Murphy, Virtue, Elad, Pauly, Vasanawala, Lustig, Magn. Reson. Med. 71 (2014) 990. Patches of k-space of a
multi-coil image span a small space; with P the projector on it, the average over all patches of "project the patch" is a
multiplication of the coil images with a matrix M(r) at every pixel r. Its eigenvalues lie between 0 and 1, and the
sensitivities are its eigenvectors of eigenvalue 1: one where the field of view holds the object once, several where it folds.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.linalg

from recon.arrays import Array, complex_dtype, like, real_dtype, through_arrays
from recon.coils import mean_coil
from recon.namespace import namespace
from recon.resident import resident
from recon.waves import waves

_SLAB_PRODUCT = 2**15
"""Size of the products that give the matrices of a slab: below `recon.waves.SMALL_PRODUCT`, and small enough for a core's cache."""
_GPU_SLAB = 2**24
"""Values of the matrices that a GPU holds at once (128 MiB in single precision)."""
_SQUARINGS = 3
"""The power iteration multiplies with M to the power of 2 to this."""
_ITERATIONS = 4


@through_arrays
@resident
def espirit(
    kspace: Array,
    image_shape: Sequence[int] | None = None,
    calibration: int | Sequence[int] = 24,
    kernel_size: int | Sequence[int] = 6,
    sets: int | None = None,
    threshold: float = 0.02,
    crop: float = 0.8,
    soft: bool = False,
    rank: int = 2,
) -> Array:
    """Sensitivity maps by ESPIRiT.

    Args:
        kspace: complex `[..., coil, y, x]` (or `z, y, x`), its centre (index n // 2) fully sampled.
        image_shape: pixels per axis of the maps; None for those of `kspace`.
        calibration: edge of the centre that is used, in samples, one for all axes or one an axis.
        kernel_size: edge of a patch of k-space in samples, likewise.
        sets: None for one map a coil; a number for so many sets of maps, the later ones for where the object folds over itself
            (soft-SENSE).
        threshold: singular values of the calibration matrix below this fraction of the largest are noise.
        crop: maps are zero where their eigenvalue lies below.
        soft: no sharp edge there: weigh the maps by a ramp over their eigenvalue, 0 at 2 `crop` - 1, 1/2 at `crop`, 1 at 1.
        rank: number of image axes.

    Returns:
        Maps `[..., coil, *image_shape]`, or with `sets` `[..., set, coil, *image_shape]`, for `recon.operators.Encoding`. Of unit
        length over the coils or zero (or between with `soft`); orthogonal from set to set; with a phase relative to one fixed
        combination of the coils.

    Raises:
        ValueError: shapes do not fit, values that are not finite, no signal, or thresholds outside 0 to 1.
    """
    if not 0 <= crop <= 1:
        raise ValueError(f"espirit: crop {crop}, expected an eigenvalue between 0 and 1")
    maps, values = espirit_eigen(kspace, image_shape, calibration, kernel_size, sets or 1, threshold, rank)
    if soft:
        ramp = ((values - 2 * crop + 1) / max(2 - 2 * crop, 1e-6)).clip(0, 1)
        weight = ramp * ramp * (3 - 2 * ramp)
    else:
        weight = (values >= crop).astype(values.dtype)
    maps *= namespace(maps).expand_dims(weight, -1 - rank)
    return maps if sets is not None else maps.squeeze(-2 - rank)


def espirit_eigen(
    kspace: Array,
    image_shape: Sequence[int] | None = None,
    calibration: int | Sequence[int] = 24,
    kernel_size: int | Sequence[int] = 6,
    sets: int = 1,
    threshold: float = 0.02,
    rank: int = 2,
) -> tuple[Array, Array]:
    """The `sets` largest eigenvalues of ESPIRiT's operator at every pixel, and their eigenvectors.

    Found by power iteration (40 steps), one set across the last: vectors whose eigenvalues are nearly equal come as some
    orthonormal basis of their space. The other arguments and errors are those of `espirit`.

    Returns:
        Vectors `[..., set, coil, *image_shape]` of unit length, and values `[..., set, *image_shape]`, real, 0 to 1; CuPy arrays of one.
    """
    kspace = kspace if hasattr(kspace, "get") else np.asarray(kspace)
    if kspace.ndim < rank + 1:
        raise ValueError(f"espirit: k-space of shape {kspace.shape}, expected [..., coil, *{rank} image axes]")
    kspace = kspace.astype(complex_dtype(kspace), copy=False)
    batch, coils, sampled = kspace.shape[: -1 - rank], kspace.shape[-1 - rank], kspace.shape[-rank:]
    shape = sampled if image_shape is None else tuple(int(n) for n in image_shape)
    region = tuple(min(n, m) for n, m in zip(_each_axis("calibration", calibration, rank), sampled, strict=True))
    kernel = _each_axis("kernel_size", kernel_size, rank)
    if len(shape) != rank or min(shape) < 1 or any(k > n for k, n in zip(kernel, region, strict=True)):
        raise ValueError(f"espirit: kernel {kernel}, calibration region {region} and image shape {shape} do not fit together")
    if not 1 <= sets <= coils:
        raise ValueError(f"espirit: {sets} sets of maps, expected 1 to the number of coils, {coils}")
    if not 0 < threshold < 1:
        raise ValueError(f"espirit: threshold {threshold}, expected a fraction between 0 and 1")
    inside: tuple[Any, ...] = (..., *(slice(n // 2 - m // 2, n // 2 - m // 2 + m) for n, m in zip(sampled, region, strict=True)))
    centre = kspace[inside].reshape(-1, coils, *region)
    space = namespace(kspace)
    vectors = space.empty((len(centre), sets, coils, *shape), kspace.dtype)
    values = space.empty((len(centre), sets, *shape), real_dtype(kspace.dtype))
    for index, one in enumerate(centre):
        _eigen(_lags(_projector(one, kernel, threshold), coils, kernel), mean_coil(one), vectors[index], values[index])
    return vectors.reshape(*batch, *vectors.shape[1:]), values.reshape(*batch, *values.shape[1:])


def _each_axis(name: str, given: int | Sequence[int], rank: int) -> tuple[int, ...]:
    sizes = (given,) * rank if isinstance(given, int) else tuple(int(n) for n in given)
    if len(sizes) != rank or min(sizes) < 1:
        raise ValueError(f"espirit: {name} {given}, expected a positive number or one for each of {rank} axes")
    return sizes


def _projector(centre: Array, kernel: tuple[int, ...], threshold: float) -> Array:
    """Projector `[coil * patch, coil * patch]` on the space of the patches of k-space `[coil, *region]`.

    From the eigenvectors of the smaller of the two Gram matrices of the patches, instead of their singular value decomposition.
    """
    space = namespace(centre)
    if not bool(space.isfinite(centre).all()):
        raise ValueError("espirit: the calibration region holds values that are not finite")
    scale = space.abs(centre).max()
    if not scale > 0:
        raise ValueError("espirit: the calibration region is zero; the centre of k-space must be sampled")
    patches = _patches(centre / scale, kernel)
    wide = patches.shape[0] < patches.shape[1]
    gram = patches @ patches.conj().T if wide else patches.conj().T @ patches
    strengths, vectors = _eigh(gram)
    kept = int((strengths > threshold**2 * strengths[-1]).sum())
    strengths, vectors = strengths[-kept:], vectors[:, -kept:]
    basis = vectors if wide else patches @ (vectors / space.sqrt(strengths))
    return basis @ basis.conj().T


def _patches(centre: Array, kernel: tuple[int, ...]) -> Array:
    """All patches of `[coil, *region]` as columns, `[coil * patch, position]`."""
    counts = [n - k + 1 for n, k in zip(centre.shape[1:], kernel, strict=True)]
    everything = (slice(None),)
    shifted = [
        centre[everything + tuple(slice(first, first + count) for first, count in zip(corner, counts, strict=True))]
        for corner in itertools.product(*map(range, kernel))
    ]
    return namespace(centre).stack(shifted, 1).reshape(len(centre) * math.prod(kernel), -1)


def _eigh(matrix: Array) -> tuple[Array, Array]:
    """Eigenvalues, ascending, and eigenvectors of a Hermitian matrix, which may be overwritten."""
    if not isinstance(matrix, np.ndarray):
        values, vectors = namespace(matrix).linalg.eigh(matrix)
        return values, vectors
    values, vectors = scipy.linalg.eigh(matrix, overwrite_a=True, check_finite=False)
    return values, vectors


def _lags(projector: Array, coils: int, kernel: tuple[int, ...]) -> Array:
    """Fourier coefficients of M: the projector summed over equal distances of its two patch positions, `[*lag, coil, coil]`."""
    rank, space = len(kernel), namespace(projector)
    blocks = projector.reshape(coils, *kernel, coils, *kernel)
    blocks = space.moveaxis(blocks, (0, rank + 1), (-2, -1))  # [*left, *right, coil, coil]
    lags = space.zeros((*(2 * k - 1 for k in kernel), coils, coils), projector.dtype)
    for right in itertools.product(*map(range, kernel)):
        at = tuple(slice(k - 1 - r, 2 * k - 1 - r) for k, r in zip(kernel, right, strict=True))
        lags[at] += blocks[(slice(None),) * rank + right]
    return lags / math.prod(kernel)


def _eigen(lags: Array, reference: Array, vectors: Array, values: Array) -> None:
    """Write the leading eigenvectors `[set, coil, *shape]` and eigenvalues `[set, *shape]` of M at every pixel."""
    from recon.nufft import run_each

    space = namespace(lags)
    sets, coils, *shape = vectors.shape
    first, *others = (like(waves(n, m // 2, lags.dtype), lags) for n, m in zip(shape, lags.shape[:-2], strict=True))
    partial = lags
    for matrix in others:
        partial = space.tensordot(partial, matrix, (1, 1))
    # [other pixels, lag, coil * coil]
    partial = space.ascontiguousarray(space.moveaxis(partial.reshape(len(lags), coils**2, -1), -1, 0))
    rows_at_once = max(4, _SLAB_PRODUCT // partial[0].size) if space is np else max(1, _GPU_SLAB // (len(partial) * coils**2))
    slabs = -(-shape[0] // rows_at_once)

    def slab(index: int) -> None:
        rows = slice(shape[0] * index // slabs, shape[0] * (index + 1) // slabs)
        matrices = (first[rows] @ partial).reshape(-1, coils, coils)  # pixels: the first axis runs fastest
        for number in range(sets):
            vector, value = _dominant(matrices)
            if number < sets - 1:
                matrices = _without(matrices, vector)
            phase = vector @ reference.conj()
            vector *= (phase.conj() / space.maximum(space.abs(phase), np.finfo(value.dtype).tiny))[:, None]
            vectors[number, :, rows] = space.moveaxis(vector.T.reshape(coils, *shape[1:], -1), -1, 1)
            values[number, rows] = space.moveaxis(value.reshape(*shape[1:], -1), -1, 0)

    if space is np:
        run_each(slab, slabs)
    else:
        for index in range(slabs):
            slab(index)


def _dominant(matrices: Array) -> tuple[Array, Array]:
    """Dominant eigenvectors `[n, coil]` and eigenvalues `[n]` of positive semidefinite `[n, coil, coil]`."""
    space = namespace(matrices)
    # Where nothing is, eigenvalues are tiny, and their eighth powers would underflow.
    trace = space.einsum("nii->n", matrices).real
    seen = trace > np.finfo(trace.dtype).tiny
    power = matrices * space.where(seen, 1 / space.where(seen, trace, 1), 0)[:, None, None]
    for _ in range(_SQUARINGS):
        power = power @ power
    strongest = space.einsum("nii->ni", power).real.argmax(axis=1)
    vector = _unit(space.take_along_axis(power, strongest[:, None, None], axis=2))
    for _ in range(_ITERATIONS):
        vector = _unit(power @ vector)
    vector = vector[..., 0]
    value = space.einsum("nc,nc->n", vector.conj(), (matrices @ vector[..., None])[..., 0]).real
    return vector, value.clip(0, 1)


def _without(matrices: Array, vectors: Array) -> Array:
    """(I - v v^H) M (I - v v^H): what is left of M across `vectors` `[n, coil]`, which need not be exact eigenvectors."""
    images = (matrices @ vectors[..., None])[..., 0]
    inner = namespace(matrices).einsum("nc,nc->n", vectors.conj(), images)
    rest = images - inner[:, None] * vectors
    return matrices - vectors[:, :, None] * images.conj()[:, None] - rest[:, :, None] * vectors.conj()[:, None]


def _unit(vectors: Array) -> Array:
    space = namespace(vectors)
    length = space.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / space.maximum(length, np.finfo(length.dtype).tiny)
