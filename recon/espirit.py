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

from recon.arrays import complex_dtype, real_dtype, through_numpy
from recon.waves import waves

_SLAB_PRODUCT = 2**15
"""Size of the products that give the matrices of a slab: below `recon.waves.SMALL_PRODUCT`, and small enough for a core's cache."""
_SQUARINGS = 3
"""The power iteration multiplies with M to the power of 2 to this."""
_ITERATIONS = 4


@through_numpy
def espirit(
    kspace: np.ndarray,
    image_shape: Sequence[int] | None = None,
    calibration: int | Sequence[int] = 24,
    kernel_size: int | Sequence[int] = 6,
    sets: int | None = None,
    threshold: float = 0.02,
    crop: float = 0.8,
    soft: bool = False,
    rank: int = 2,
) -> np.ndarray:
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
        ramp = np.clip((values - 2 * crop + 1) / max(2 - 2 * crop, 1e-6), 0, 1)
        weight = ramp * ramp * (3 - 2 * ramp)
    else:
        weight = (values >= crop).astype(values.dtype)
    maps *= np.expand_dims(weight, -1 - rank)
    return maps if sets is not None else maps.squeeze(-2 - rank)


def espirit_eigen(
    kspace: np.ndarray,
    image_shape: Sequence[int] | None = None,
    calibration: int | Sequence[int] = 24,
    kernel_size: int | Sequence[int] = 6,
    sets: int = 1,
    threshold: float = 0.02,
    rank: int = 2,
) -> tuple[np.ndarray, np.ndarray]:
    """The `sets` largest eigenvalues of ESPIRiT's operator at every pixel, and their eigenvectors.

    Found by power iteration (40 steps), one set across the last: vectors whose eigenvalues are nearly equal come as some
    orthonormal basis of their space. The other arguments and errors are those of `espirit`.

    Returns:
        Vectors `[..., set, coil, *image_shape]` of unit length, and values `[..., set, *image_shape]`, real, 0 to 1.
    """
    kspace = np.asarray(kspace)
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
    vectors = np.empty((len(centre), sets, coils, *shape), kspace.dtype)
    values = np.empty((len(centre), sets, *shape), real_dtype(kspace.dtype))
    for index, one in enumerate(centre):
        _eigen(_lags(_projector(one, kernel, threshold), coils, kernel), _reference(one), vectors[index], values[index])
    return vectors.reshape(*batch, *vectors.shape[1:]), values.reshape(*batch, *values.shape[1:])


def _each_axis(name: str, given: int | Sequence[int], rank: int) -> tuple[int, ...]:
    sizes = (given,) * rank if isinstance(given, int) else tuple(int(n) for n in given)
    if len(sizes) != rank or min(sizes) < 1:
        raise ValueError(f"espirit: {name} {given}, expected a positive number or one for each of {rank} axes")
    return sizes


def _reference(centre: np.ndarray) -> np.ndarray:
    """Dominant combination of the coils, `[coil]`."""
    flat = centre.reshape(len(centre), -1)
    vector: np.ndarray = np.linalg.eigh(flat @ flat.conj().T)[1][:, -1]
    return vector


def _projector(centre: np.ndarray, kernel: tuple[int, ...], threshold: float) -> np.ndarray:
    """Projector `[coil * patch, coil * patch]` on the space of the patches of k-space `[coil, *region]`.

    From the eigenvectors of the smaller of the two Gram matrices of the patches, instead of their singular value decomposition.
    """
    if not np.isfinite(centre).all():
        raise ValueError("espirit: the calibration region holds values that are not finite")
    rank = len(kernel)
    windows = np.lib.stride_tricks.sliding_window_view(centre, kernel, axis=tuple(range(1, rank + 1)))
    patches = np.moveaxis(windows, 0, rank).reshape(-1, len(centre) * math.prod(kernel)).T
    scale = np.abs(centre).max()
    if scale == 0:
        raise ValueError("espirit: the calibration region is zero; the centre of k-space must be sampled")
    patches = patches / scale
    wide = patches.shape[0] < patches.shape[1]
    gram = patches @ patches.conj().T if wide else patches.conj().T @ patches
    strengths, vectors = scipy.linalg.eigh(gram, overwrite_a=True, check_finite=False)
    kept = strengths > threshold**2 * strengths[-1]
    basis = vectors[:, kept] if wide else patches @ (vectors[:, kept] / np.sqrt(strengths[kept]))
    projector: np.ndarray = basis @ basis.conj().T
    return projector


def _lags(projector: np.ndarray, coils: int, kernel: tuple[int, ...]) -> np.ndarray:
    """Fourier coefficients of M: the projector summed over equal distances of its two patch positions, `[*lag, coil, coil]`."""
    rank = len(kernel)
    blocks = projector.reshape(coils, *kernel, coils, *kernel)
    blocks = np.moveaxis(blocks, (0, rank + 1), (-2, -1))  # [*left, *right, coil, coil]
    lags = np.zeros((*(2 * k - 1 for k in kernel), coils, coils), projector.dtype)
    for right in itertools.product(*map(range, kernel)):
        at = tuple(slice(k - 1 - r, 2 * k - 1 - r) for k, r in zip(kernel, right, strict=True))
        lags[at] += blocks[(slice(None),) * rank + right]
    return lags / math.prod(kernel)


def _eigen(lags: np.ndarray, reference: np.ndarray, vectors: np.ndarray, values: np.ndarray) -> None:
    """Write the leading eigenvectors `[set, coil, *shape]` and eigenvalues `[set, *shape]` of M at every pixel."""
    from recon.nufft import run_each

    sets, coils, *shape = vectors.shape
    first, *others = (waves(n, m // 2, lags.dtype) for n, m in zip(shape, lags.shape[:-2], strict=True))
    partial = lags
    for matrix in others:
        partial = np.tensordot(partial, matrix, (1, 1))
    # [other pixels, lag, coil * coil]
    partial = np.ascontiguousarray(np.moveaxis(partial.reshape(len(lags), coils**2, -1), -1, 0))
    slabs = -(-shape[0] // max(4, _SLAB_PRODUCT // partial[0].size))

    def slab(index: int) -> None:
        rows = slice(shape[0] * index // slabs, shape[0] * (index + 1) // slabs)
        matrices = (first[rows] @ partial).reshape(-1, coils, coils)  # pixels: the first axis runs fastest
        for number in range(sets):
            vector, value = _dominant(matrices)
            if number < sets - 1:
                matrices = _without(matrices, vector)
            phase = vector @ reference.conj()
            vector *= (phase.conj() / np.maximum(np.abs(phase), np.finfo(value.dtype).tiny))[:, None]
            vectors[number, :, rows] = np.moveaxis(vector.T.reshape(coils, *shape[1:], -1), -1, 1)
            values[number, rows] = np.moveaxis(value.reshape(*shape[1:], -1), -1, 0)

    run_each(slab, slabs)


def _dominant(matrices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Dominant eigenvectors `[n, coil]` and eigenvalues `[n]` of positive semidefinite `[n, coil, coil]`."""
    # Where nothing is, eigenvalues are tiny, and their eighth powers would underflow.
    trace = np.einsum("nii->n", matrices).real
    power = matrices * np.divide(1, trace, out=np.zeros_like(trace), where=trace > np.finfo(trace.dtype).tiny)[:, None, None]
    for _ in range(_SQUARINGS):
        power = power @ power
    strongest = np.einsum("nii->ni", power).real.argmax(axis=1)
    vector = _unit(np.take_along_axis(power, strongest[:, None, None], axis=2))
    for _ in range(_ITERATIONS):
        vector = _unit(power @ vector)
    vector = vector[..., 0]
    value = np.einsum("nc,nc->n", vector.conj(), (matrices @ vector[..., None])[..., 0]).real
    return vector, value.clip(0, 1)


def _without(matrices: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """(I - v v^H) M (I - v v^H): what is left of M across `vectors` `[n, coil]`, which need not be exact eigenvectors."""
    images = (matrices @ vectors[..., None])[..., 0]
    inner = np.einsum("nc,nc->n", vectors.conj(), images)
    rest = images - inner[:, None] * vectors
    result: np.ndarray = matrices - vectors[:, :, None] * images.conj()[:, None] - rest[:, :, None] * vectors.conj()[:, None]
    return result


def _unit(vectors: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: np.ndarray = vectors / np.maximum(length, np.finfo(length.dtype).tiny)
    return unit
