"""Three-dimensional radial trajectories whose readouts start along a spiral on a sphere."""

from __future__ import annotations

import numpy as np

from recon.trajectory import AngleRange, spoke


def sphere_spiral(views: int, phases: int | None = None, angle_range: AngleRange = "full") -> tuple[np.ndarray, np.ndarray]:
    """Directions that cover the sphere evenly, one after another along a spiral from pole to pole.

    Saff and Kuijlaars, Math. Intelligencer 19 (1997): even steps along the polar axis, azimuth steps of
    3.6 / sqrt(n (1 - h^2)). Phases are interleaved: phase p holds directions p, p + phases, ...

    Args:
        views: readouts of a phase.
        phases: number of phases; None for one set without a phase axis.
        angle_range: `full` covers the sphere, `half` one half of it.

    Returns:
        Polar angles from the first axis and azimuths from the second axis to the third, rad, each float64 `[views]` or
        `[phases, views]`.

    Raises:
        ValueError: unknown range or a number below 1.
    """
    if angle_range not in ("full", "half"):
        raise ValueError(f"angle_range {angle_range!r} is unknown; use 'full' or 'half'")
    if views < 1 or (phases is not None and phases < 1):
        raise ValueError(f"views {views} and phases {phases} must be at least 1")
    count = views * (phases or 1)
    on_sphere = count if angle_range == "full" else 2 * count
    height = 2 * np.arange(count) / on_sphere - 1
    polar = np.pi - np.arccos(height)
    step = np.zeros(count)
    step[1:] = 3.6 / np.sqrt(on_sphere * (1 - height[1:] ** 2))
    azimuth = np.mod(np.cumsum(step), 2 * np.pi)
    if phases is None:
        return polar, azimuth
    return polar.reshape(views, phases).T, azimuth.reshape(views, phases).T


def koosh_ball_trajectory(
    base_resolution: int,
    views: int,
    phases: int | None = None,
    angle_range: AngleRange = "full",
    readout_os: float = 2.0,
) -> np.ndarray:
    """Three-dimensional radial trajectory with the directions of `sphere_spiral`.

    Readouts run through the centre, from -pi in steps of 2 pi / samples (rad/pixel), as in two dimensions.

    Args:
        base_resolution: image size in pixels, the same along all axes.
        views, phases, angle_range: see `sphere_spiral`.
        readout_os: readout oversampling.

    Returns:
        float32 `[views, samples, 3]` or `[phases, views, samples, 3]`.

    Raises:
        ValueError: no sample, or what `sphere_spiral` refuses.
    """
    polar, azimuth = sphere_spiral(views, phases, angle_range)
    direction = np.stack([np.cos(polar), np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth)], axis=-1)
    trajectory: np.ndarray = (spoke(base_resolution, readout_os)[:, None] * direction[..., None, :]).astype(np.float32)
    return trajectory
