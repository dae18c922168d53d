"""Partial Fourier: tapering, projection onto convex sets, homodyne detection.

k-space is ``[..., e2, e1, e0]`` (the last two or three axes), complete in size and zero where nothing was sampled. The sampled part
is one block, given as `Region`: one (first, last) index pair an axis in the order of the axes, last included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from recon.filters import apply_windows, partial_fourier_window, reference_window
from recon.fourier import fftc, ifftc

Region = Sequence[tuple[int, int]]


def taper_filter(
    kspace: np.ndarray, region: Region, *, width: float | Sequence[float] = 0.15, density_compensation: bool = False
) -> np.ndarray:
    """Taper the borders of the sampled block, so that the zero-filled image does not ring.

    Args:
        kspace: complex ``[..., n_1, ..., n_k]``.
        region: sampled (first, last) index for each of the last k axes.
        width: taper as a fraction of the length of the axis, one for all axes or one an axis.
        density_compensation: samples without a mirror image count twice.

    Returns:
        k-space of the shape and dtype of `kspace`.

    Raises:
        ValueError: the region does not fit.
    """
    shape = kspace.shape[-len(region) :]
    widths = [width] * len(region) if isinstance(width, (int, float)) else list(width)
    windows = [
        None if last - first + 1 == n else _tapered(n, first, last, fraction, density_compensation)
        for n, (first, last), fraction in zip(shape, region, widths, strict=True)
    ]
    return apply_windows(kspace, windows)


def _tapered(n: int, first: int, last: int, fraction: float, density_compensation: bool) -> np.ndarray:
    """Window of one axis; a block that touches neither edge is treated as the middle of a shorter k-space."""
    if first == 0 or last == n - 1:
        return partial_fourier_window(n, first, last, width=int(n * fraction), density_compensation=density_compensation)
    center, sampled = n // 2, last - first + 1
    upper, lower = 2 * (last - center + 1), 2 * (center - first)
    inner = max(upper, lower)
    start = inner - sampled if upper > lower else 0
    if not 0 <= start <= start + sampled - 1 < inner <= n:
        raise ValueError(f"partial Fourier: samples {first} to {last} of {n} leave out the k-space centre {center}")
    weights = partial_fourier_window(
        inner, start, start + sampled - 1, width=int(inner * fraction), density_compensation=density_compensation
    )
    full = np.zeros(n)
    offset = center - inner // 2
    full[offset : offset + inner] = weights
    return full


def low_resolution_phase(kspace: np.ndarray, region: Region) -> np.ndarray:
    """exp(i phase) of the image from the symmetric centre of the sampled block. Shape of `kspace`; 1 where there is no signal."""
    shape, axes = kspace.shape[-len(region) :], _axes(region)
    windows = [reference_window(n, first, last) if n > 1 else None for n, (first, last) in zip(shape, region, strict=True)]
    image = ifftc(apply_windows(kspace, windows), axes)
    magnitude = np.abs(image)
    phase: np.ndarray = np.where(magnitude > 0, image / np.where(magnitude > 0, magnitude, 1), 1).astype(kspace.dtype)
    return phase


def pocs(
    kspace: np.ndarray, region: Region, *, iterations: int = 6, tolerance: float = 0.01, transition: int | Sequence[int] = 24
) -> np.ndarray:
    """Fill in the missing part of k-space by projection onto convex sets.

    Alternates between the images that have the low-resolution phase and the k-spaces that agree with the samples
    (Haacke et al., J Magn Reson 1991;92:126). The measured and the estimated part are blended over `transition` samples inside the
    border.

    Args:
        kspace: complex ``[..., n_1, ..., n_k]``.
        region: sampled (first, last) index for each of the last k axes.
        iterations: at most this many.
        tolerance: stops when the relative change of the image falls below it.
        transition: samples of the blend, one for all axes or one an axis; 0 keeps every sample as measured.

    Returns:
        k-space of the shape and dtype of `kspace`.

    Raises:
        ValueError: the region does not fit or leaves out the k-space centre.
    """
    shape, axes = kspace.shape[-len(region) :], _axes(region)
    if all(last - first + 1 == n for n, (first, last) in zip(shape, region, strict=True)):
        return kspace
    phase = low_resolution_phase(kspace, region)
    block: tuple[Any, ...] = (..., *(slice(first, last + 1) for first, last in region))
    image = ifftc(kspace, axes)
    estimate = kspace
    for _ in range(max(iterations, 1)):
        estimate = fftc(np.abs(image) * phase, axes)
        consistent = estimate.copy()
        consistent[block] = kspace[block]
        previous, image = image, ifftc(consistent, axes)
        if np.linalg.norm(image - previous) <= tolerance * np.linalg.norm(previous):
            break
    bands = [transition] * len(region) if isinstance(transition, int) else list(transition)
    share = _blend(shape, region, bands).astype(kspace.real.dtype)
    result: np.ndarray = estimate + share * (kspace - estimate)
    return result


def _axes(region: Region) -> tuple[int, ...]:
    return tuple(range(-len(region), 0))


def _blend(shape: Sequence[int], region: Region, bands: Sequence[int]) -> np.ndarray:
    """Share of the measured samples in the result: 1 inside, falling to 0 at the inner borders of the block."""
    share = np.ones(tuple(shape))
    for axis, (n, (first, last), band) in enumerate(zip(shape, region, bands, strict=True)):
        weights = np.zeros(n)
        weights[first : last + 1] = 1.0
        if (first, last) != (0, n - 1) and band > 0:
            fitting = max(min(band, n // 2 - first, last - n // 2), 1)
            weights = partial_fourier_window(n, first, last, width=fitting)
            weights = weights / weights[n // 2]
        share = share * weights.reshape([-1 if other == axis else 1 for other in range(len(shape))])
    return share


def homodyne(kspace: np.ndarray, region: Region, *, width: float = 0.15) -> np.ndarray:
    """Homodyne detection of a real-valued object with slowly varying phase.

    Samples without a mirror image count twice, the low-resolution phase is taken out, the imaginary part, which holds the error,
    is dropped and the phase put back (Noll et al., IEEE Trans Med Imaging 1991;10:154).

    Args:
        kspace: complex ``[..., n_1, ..., n_k]``.
        region: sampled (first, last) index for each of the last k axes; only one axis may be partial.
        width: transition as a fraction of the length of the axis.

    Returns:
        Image (not k-space) of the shape and dtype of `kspace`.

    Raises:
        ValueError: more than one axis is partial, or the region leaves out the k-space centre.
    """
    shape, axes = kspace.shape[-len(region) :], _axes(region)
    partial = [axis for axis, (n, (first, last)) in enumerate(zip(shape, region, strict=True)) if last - first + 1 < n]
    if len(partial) > 1:
        raise ValueError(f"homodyne: {len(partial)} axes are partial; homodyne detection fits one, use pocs for more")
    if not partial:
        image: np.ndarray = ifftc(kspace, axes)
        return image
    axis = partial[0]
    windows: list[np.ndarray | None] = [None] * len(region)
    windows[axis] = _homodyne_weights(shape[axis], *region[axis], width)
    phase = low_resolution_phase(kspace, region)
    weighted = ifftc(apply_windows(kspace, windows), axes)
    detected: np.ndarray = ((weighted * phase.conj()).real * phase).astype(kspace.dtype)
    return detected


def _homodyne_weights(n: int, first: int, last: int, width: float) -> np.ndarray:
    """Weights w with w(k) + w(-k) = 2 wherever one of the two is sampled: a smooth step from 0 to 2.

    Of an even number of samples the first is its own mirror image, with the weight 1.
    """
    center = n // 2
    if not first <= center <= last:
        raise ValueError(f"homodyne: samples {first} to {last} of {n} leave out the k-space centre {center}")
    half = min(center - first, last - center)
    band = max(min(half, int(n * width)), 1)
    k = np.arange(n) - center
    if center - first > last - center:
        k = -k

    def rise(position: np.ndarray) -> np.ndarray:
        step: np.ndarray = 0.5 * (1 - np.cos(np.pi * np.clip((position + half) / band, 0, 1)))
        return step

    weights: np.ndarray = rise(k) + 1 - rise(-k)
    if n % 2 == 0:
        weights[0] = 1
    weights[:first] = 0
    weights[last + 1 :] = 0
    return weights
