"""Sensitivity maps found on a coarse grid: they are smooth, so a grid that holds the centre of k-space holds them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.fft import next_fast_len

from recon.coils import inati
from recon.density import pipe_weights
from recon.sense import gridding


def coarse_maps(
    kspace: np.ndarray, trajectory: np.ndarray, image_shape: Sequence[int], weights: np.ndarray | None = None, bandwidth: float = 0.2
) -> np.ndarray:
    """Self-calibrated sensitivity maps from a coarse grid of the same field of view, interpolated to the image's pixels.

    As `recon.sense.self_calibrated_maps` (Hann-windowed gridding, then `recon.coils.inati`) at about a fifth of the cost, for a
    real-time reconstruction that needs maps before its first image.

    Args:
        kspace: complex `[coil, sample]`.
        trajectory: `[sample, axis]` in rad per pixel of `image_shape`.
        image_shape: pixels per axis of the maps.
        weights: density weights `[sample]`; None finds them by `pipe_weights`.
        bandwidth: radius of the Hann window that is kept, as a fraction of the k-space radius pi.

    Returns:
        Complex `[coil, *image_shape]` with sum |s|^2 = 1 over the coils.

    Raises:
        ValueError: shapes do not fit, or no sample lies within the bandwidth.
    """
    shape = tuple(int(n) for n in image_shape)
    if weights is None:
        weights = pipe_weights(trajectory, shape)
    # Nearly twice the pixels that the window needs leave room to interpolate linearly between them.
    coarse = tuple(min(n, 2 * next_fast_len(max(16, math.ceil(0.94 * bandwidth * n)))) for n in shape)
    scale = np.array([n / m for n, m in zip(shape, coarse, strict=True)], trajectory.dtype)
    radius = np.linalg.norm(trajectory, axis=-1) / (np.pi * bandwidth)
    near = (radius < 1) & (np.abs(trajectory * scale) <= np.pi).all(axis=-1)
    if not near.any():
        raise ValueError(f"no sample lies within a fraction {bandwidth} of k-space; raise the bandwidth")
    window = weights[near] * (0.5 + 0.5 * np.cos(np.pi * radius[near]))
    images = gridding(kspace[:, near], trajectory[near] * scale, window, coarse)
    maps: np.ndarray = inati(images, kernel_size=3, rank=len(shape))
    for axis, n in enumerate(shape, start=1):
        maps = _interpolate(maps, axis, n)
    norm = np.sqrt((maps.real**2 + maps.imag**2).sum(0))
    maps *= np.divide(1, norm, out=np.zeros_like(norm), where=norm > 0)
    return maps


def _interpolate(values: np.ndarray, axis: int, n: int) -> np.ndarray:
    """Linear interpolation along an axis to `n` pixels over the same field of view; the origins m // 2 and n // 2 coincide."""
    m = values.shape[axis]
    if m == n:
        return values
    position = (np.arange(n) - n // 2) * (m / n) + m // 2
    lower = np.clip(np.floor(position).astype(int), 0, m - 2)
    fraction = np.clip(position - lower, 0, 1).astype(values.real.dtype)
    fraction = fraction.reshape(-1, *(1,) * (values.ndim - axis - 1))
    result: np.ndarray = np.take(values, lower, axis) * (1 - fraction) + np.take(values, lower + 1, axis) * fraction
    return result
