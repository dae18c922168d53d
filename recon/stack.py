"""Stacks: a two-dimensional trajectory repeated at every Cartesian partition (stack of stars, stack of spirals)."""

from __future__ import annotations

import numpy as np

from recon.trajectory import AngleRange, Ordering, radial_trajectory


def stack(trajectory: np.ndarray, partitions: int, rotation: float = 0.0) -> np.ndarray:
    """Repeat a trajectory at kz = (p - partitions // 2) 2 pi / partitions.

    Args:
        trajectory: `[..., view, sample, 2]` in rad/pixel.
        partitions: number of kz steps.
        rotation: angle by which every partition is turned against the one before it, rad, from the first axis of the
            plane to the second; the golden angle / partitions, for example, fills the gaps between spokes along kz.

    Returns:
        `[..., partitions, view, sample, 3]` (kz, then the axes of `trajectory`), of the trajectory's dtype.

    Raises:
        ValueError: not a two-dimensional trajectory with views, or no partition.
    """
    trajectory = np.asarray(trajectory)
    if trajectory.ndim < 3 or trajectory.shape[-1] != 2:
        raise ValueError(f"stack needs a trajectory [..., view, sample, 2], not the shape {trajectory.shape}")
    if partitions < 1:
        raise ValueError(f"partitions must be at least 1, not {partitions}")
    number = np.arange(partitions)[:, None, None]
    cosine, sine = np.cos(number * rotation), np.sin(number * rotation)
    first, second = trajectory[..., None, :, :, 0], trajectory[..., None, :, :, 1]
    turned = (first * cosine - second * sine, first * sine + second * cosine)
    kz = np.broadcast_to((number - partitions // 2) * (2 * np.pi / partitions), turned[0].shape)
    return np.stack([kz, *turned], axis=-1).astype(trajectory.dtype)


def stack_of_stars(
    base_resolution: int,
    views: int,
    partitions: int,
    phases: int | None = None,
    ordering: Ordering = "golden",
    angle_range: AngleRange = "full",
    tiny_number: int = 7,
    readout_os: float = 2.0,
    rotation: float = 0.0,
) -> np.ndarray:
    """Stack of `radial_trajectory`; arguments as there and in `stack`.

    Returns:
        float32 `[partitions, views, samples, 3]` or `[phases, partitions, views, samples, 3]`, (kz, ky, kx) in rad/pixel.
    """
    return stack(radial_trajectory(base_resolution, views, phases, ordering, angle_range, tiny_number, readout_os), partitions, rotation)
