"""k-space windows: Gaussian, Hanning, tapered Hanning, reference and partial Fourier windows.

Windows are scaled to unit noise gain (root mean square 1 over the sampled points), so that a filtered image keeps its SNR units.
They are zero-phase: symmetric about index ``n // 2``. For an even length the first sample has no mirror image and is set to zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

WindowKind = Literal["Gaussian", "Hanning", "TaperedHanning", "None"]


def window(n: int, kind: WindowKind = "Gaussian", *, sigma: float = 1.0, width: int = 1) -> np.ndarray:
    """Symmetric window with unit noise gain.

    Args:
        n: length.
        kind: ``Gaussian`` exp(-sigma² x² / 2) with x from -1 to 1; ``Hanning`` raised cosine over the whole length;
            ``TaperedHanning`` raised cosine over `width` samples at either end; ``None`` ones.
        sigma: steepness of the Gaussian.
        width: samples of the taper; a width that does not fit counts as 1.

    Returns:
        float64 ``[n]``, symmetric about ``n // 2``.

    Raises:
        ValueError: unknown kind, or n < 1.
    """
    if n < 1:
        raise ValueError(f"window: length {n}, expected at least 1")
    if n <= 2:
        return np.ones(n)
    if kind == "None":
        return np.ones(n)
    mirrored = n - 1 + n % 2  # samples that have a mirror image: all but the first of an even length
    if kind == "Gaussian":
        core = np.exp(-0.5 * (sigma * np.linspace(-1, 1, mirrored)) ** 2)
    elif kind == "Hanning":
        core = _raised_cosine(np.arange(1, mirrored + 1), mirrored + 1)
    elif kind == "TaperedHanning":
        ramp = taper(width if 0 < 2 * width <= mirrored else 1)
        core = np.ones(mirrored)
        core[: ramp.size] = ramp
        core[-ramp.size :] = ramp[::-1]
    else:
        raise ValueError(f"window: kind {kind!r}, expected Gaussian, Hanning, TaperedHanning or None")
    return _unit_noise(np.concatenate([np.zeros(n - mirrored), core]), n)


def taper(width: int) -> np.ndarray:
    """Rising raised cosine of `width` samples between, not including, 0 and 1."""
    return _raised_cosine(np.arange(1, width + 1), 2 * width + 1)


def partial_fourier_window(n: int, start: int, end: int, *, width: int, density_compensation: bool = False) -> np.ndarray:
    """Window for k-space that is sampled from `start` to `end` only, with unit noise gain over the sampled points.

    The inner borders of the sampled range are tapered over `width` samples; a border that coincides with the edge of k-space is not.
    With `density_compensation` samples whose mirror image about ``n // 2`` is missing count twice (homodyne weighting, with a
    transition of `width` samples inside the symmetric part).

    Args:
        n: length of k-space.
        start: first sampled index.
        end: last sampled index (included).
        width: samples of the taper; a width that does not fit counts as 1.
        density_compensation: weigh the conjugate-missing part by 2.

    Returns:
        float64 ``[n]``, zero outside the sampled range.

    Raises:
        ValueError: the range is not inside 0 to n - 1.
    """
    _check_range("partial_fourier_window", n, start, end)
    length = end - start + 1
    ramp = taper(width if 0 < width <= length // 2 else 1)
    weights = np.zeros(n)
    weights[start : end + 1] = 1.0
    complete = start == 0 and end == n - 1
    if start > 0 or complete:
        weights[start : start + ramp.size] = ramp
    if end < n - 1 or complete:
        weights[end + 1 - ramp.size : end + 1] = ramp[::-1]
    if density_compensation and not complete:
        _double_unpaired(weights, start, end, ramp)
    return _unit_noise(weights, length)


def _double_unpaired(weights: np.ndarray, start: int, end: int, ramp: np.ndarray) -> None:
    """Add the weight of the missing mirror images in place."""
    center = weights.size // 2
    half = min(center - start, end - center)
    first, last = center - half, center + half
    band = min(ramp.size, 2 * half + 1)
    if start < first:
        weights[start:first] = 2.0
        weights[first : first + band] = 1.0 + ramp[::-1][:band]
    elif last < end:
        weights[last + 1 : end + 1] = 2.0
        weights[last + 1 - band : last + 1] = 1.0 + ramp[-band:]


def reference_window(n: int, start: int, end: int) -> np.ndarray:
    """Hanning window over the part of `start`..`end` that is symmetric about ``n // 2``; zero elsewhere.

    Meant for calibration lines: it removes ringing from the low-resolution image without shifting its phase.

    Args:
        n: length of k-space.
        start: first sampled index.
        end: last sampled index (included).

    Returns:
        float64 ``[n]``.

    Raises:
        ValueError: the range is not inside 0 to n - 1 or does not reach the centre.
    """
    _check_range("reference_window", n, start, end)
    if start == 0 and end == n - 1:
        return window(n, "Hanning")
    center = n // 2
    if not start <= center <= end:
        raise ValueError(f"reference_window: samples {start} to {end} of {n} leave out the k-space centre {center}")
    half = min(center - start if start > 0 else n, end - center if end < n - 1 else n)
    weights = np.zeros(n)
    weights[center - half : center + half + 1] = window(2 * half + 1, "Hanning")
    return weights


def apply_windows(kspace: np.ndarray, windows: Sequence[np.ndarray | None]) -> np.ndarray:
    """Multiply k-space with one window an axis.

    Args:
        kspace: ``[..., n_1, ..., n_k]``.
        windows: k windows for the last k axes in order; None leaves an axis as it is.

    Returns:
        Array of the shape and dtype of `kspace`.
    """
    result = kspace
    for axis, weights in enumerate(windows, start=-len(windows)):
        if weights is not None:
            shape = [1] * kspace.ndim
            shape[axis] = -1
            result = result * weights.astype(kspace.real.dtype).reshape(shape)
    return result


def _raised_cosine(index: np.ndarray, period: int) -> np.ndarray:
    result: np.ndarray = 0.5 * (1 - np.cos(2 * np.pi * index / period))
    return result


def _unit_noise(weights: np.ndarray, sampled: int) -> np.ndarray:
    scaled: np.ndarray = weights / np.sqrt(np.sum(weights**2) / sampled)
    return scaled


def _check_range(name: str, n: int, start: int, end: int) -> None:
    if not 0 <= start <= end < n:
        raise ValueError(f"{name}: sampled range {start} to {end} is not inside 0 to {n - 1}")
