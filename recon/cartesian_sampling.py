"""Which samples of a Cartesian grid to acquire: regular and random masks, the centre at index n // 2."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np


def regular_mask(
    shape: Sequence[int], acceleration: Sequence[int], calibration: Sequence[int] | None = None, caipi_shift: int = 0
) -> np.ndarray:
    """Every R-th sample of each axis, counted from the centre, and a fully sampled block around it.

    Args:
        shape: samples an axis, phase-encoded axes only.
        acceleration: R of each axis.
        calibration: size of the block; none by default.
        caipi_shift: with two axes, how far the sampled points of the last axis move on from one sampled line of the first
            to the next (Breuer et al., Magn. Reson. Med. 55 (2006)).

    Returns:
        bool of `shape`.

    Raises:
        ValueError: lengths do not fit, factors below 1, or a shift without two axes.
    """
    blocks = [0] * len(shape) if calibration is None else list(calibration)
    if not len(shape) == len(acceleration) == len(blocks) or min(acceleration) < 1 or min(blocks) < 0:
        raise ValueError(f"regular_mask: shape {tuple(shape)}, acceleration {tuple(acceleration)} and calibration {calibration} do not fit")
    if caipi_shift and len(shape) != 2:
        raise ValueError(f"regular_mask: caipi_shift needs two axes, not {len(shape)}")
    offsets = list(np.meshgrid(*(np.arange(n) - n // 2 for n in shape), indexing="ij", sparse=True))
    if caipi_shift:
        offsets[1] = offsets[1] - caipi_shift * (offsets[0] // acceleration[0])
    mask = np.ones(tuple(shape), bool)
    for offset, step in zip(offsets, acceleration, strict=True):
        mask &= offset % step == 0
    starts = [n // 2 - block // 2 for n, block in zip(shape, blocks, strict=True)]
    mask[tuple(slice(max(start, 0), start + block) for start, block in zip(starts, blocks, strict=True))] = True
    return mask


def density_grid(
    shape: Sequence[int],
    inner_density: float = 1.0,
    outer_density: float = 1.0,
    inner_cutoff: float = 0.0,
    outer_cutoff: float = 1.0,
    transition: Literal["linear", "quadratic", "hann"] = "linear",
) -> np.ndarray:
    """Probability of each sample: constant within and beyond two radii, falling or rising in between.

    Args:
        shape: samples an axis.
        inner_density: probability at the centre, 0 to 1.
        outer_density: probability at the edge, 0 to 1.
        inner_cutoff: radius of the inner region; 1 is the edge of an axis.
        outer_cutoff: radius where the outer region begins.
        transition: course in between.

    Returns:
        float64 of `shape`.

    Raises:
        ValueError: a probability outside 0 to 1, radii that do not rise, or an unknown transition.
    """
    courses = {"linear": lambda u: u, "quadratic": lambda u: u**2, "hann": lambda u: 0.5 - 0.5 * np.cos(np.pi * u)}
    if transition not in courses:
        raise ValueError(f"density_grid: transition {transition!r}, expected one of {', '.join(courses)}")
    if not (0 <= inner_density <= 1 and 0 <= outer_density <= 1 and 0 <= inner_cutoff < outer_cutoff):
        raise ValueError(
            f"density_grid: densities {inner_density} and {outer_density} must lie between 0 and 1, "
            f"cutoffs {inner_cutoff} and {outer_cutoff} must rise"
        )
    axes = np.meshgrid(*((np.arange(n) - n // 2) / (n / 2) for n in shape), indexing="ij", sparse=True)
    radius = np.sqrt(sum(axis**2 for axis in axes))
    inward = np.clip((outer_cutoff - radius) / (outer_cutoff - inner_cutoff), 0, 1)
    grid: np.ndarray = outer_density + (inner_density - outer_density) * courses[transition](inward)
    return grid


def random_mask(shape: Sequence[int], density: float | np.ndarray, seed: int | None = None) -> np.ndarray:
    """Each sample independently with its probability.

    Args:
        shape: samples an axis.
        density: probabilities, a number or an array that fits `shape` (see `density_grid`).
        seed: same seed, same mask; without it every call differs.

    Returns:
        bool of `shape`.

    Raises:
        ValueError: a probability outside 0 to 1.
    """
    density = np.asarray(density, float)
    if not ((density >= 0) & (density <= 1)).all():
        raise ValueError(f"random_mask: densities must lie between 0 and 1, not {density.min()} to {density.max()}")
    draws = np.random.default_rng(seed).random(math.prod(shape)).reshape(tuple(shape))
    mask: np.ndarray = draws < density
    return mask


def sampled_centre(mask: np.ndarray) -> tuple[int, ...]:
    """Size of the largest fully sampled block around the centre, grown by turns along every axis.

    Args:
        mask: bool, of any number of axes.

    Returns:
        Samples an axis, the block starting at n // 2 - size // 2; all 0 where the centre itself is missing.
    """
    sizes = [1] * mask.ndim

    def complete() -> bool:
        return bool(mask[tuple(slice(n // 2 - m // 2, n // 2 - m // 2 + m) for n, m in zip(mask.shape, sizes, strict=True))].all())

    if not complete():
        return (0,) * mask.ndim
    growing = set(range(mask.ndim))
    while growing:
        for axis in sorted(growing):
            sizes[axis] += 1
            if sizes[axis] > mask.shape[axis] or not complete():
                sizes[axis] -= 1
                growing.discard(axis)
    return tuple(sizes)
