"""Radial trajectories and conversion of acquired ones. (Others: spiral.py, koosh_ball.py, stack.py, epi.py, rosette.py.)

Trajectories are `[..., sample, axis]` in rad/pixel, axes in the order of the image's axes: (ky, kx), (kz, ky, kx).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np

Ordering = Literal["linear", "golden", "golden_half", "tiny", "tiny_half", "sorted", "sorted_half"]
AngleRange = Literal["full", "half"]
GOLDEN = (1 + 5**0.5) / 2


def radial_angles(
    views: int,
    phases: int | None = None,
    ordering: Ordering = "linear",
    angle_range: AngleRange = "full",
    tiny_number: int = 7,
) -> np.ndarray:
    """Angles of radial views in rad, measured from the first image axis (y) towards the second (x).

    Successive views differ by range / views (`linear`), range / golden ratio (`golden`; Winkelmann 2007), or
    range / (golden ratio + `tiny_number` - 1) (`tiny`; Wundrak 2015); `sorted` sorts the golden angles of each phase,
    `sorted_half` does so in a sweep of pi that starts where that of the phase before ended. The range is 2 pi (`full`) or
    pi (`half`, and every `*_half` ordering). Golden angles count on from phase to phase, linear phases are interleaved.

    Angles are exact to double precision. (TensorFlow MRI multiplies golden angles in single precision: its hundredth view
    is off by 1e-4 rad, and more for later ones.)

    Args:
        views: number of views per phase.
        phases: number of phases; None for a single set without a phase axis.
        ordering: order of the angles.
        angle_range: range of the angles.
        tiny_number: order of the tiny golden angle, at least 2.

    Returns:
        float64 `[views]` or `[phases, views]`.

    Raises:
        ValueError: unknown ordering or range, or a number below its bound.
    """
    if ordering not in get_args(Ordering):
        raise ValueError(f"ordering {ordering!r} is unknown; use one of {', '.join(get_args(Ordering))}")
    if angle_range not in get_args(AngleRange):
        raise ValueError(f"angle_range {angle_range!r} is unknown; use 'full' or 'half'")
    if views < 1 or (phases is not None and phases < 1) or tiny_number < 2:
        raise ValueError(f"views {views} and phases {phases} must be at least 1, tiny_number {tiny_number} at least 2")
    half = angle_range == "half" or ordering.endswith("_half")
    span = np.pi if half else 2 * np.pi
    view = np.arange(views)
    phase = np.arange(phases or 1)[:, None]
    if ordering == "linear":
        step = span / views
        angles = view * step + phase * step / (phases or 1)
    else:
        divisor = GOLDEN if not ordering.startswith("tiny") else GOLDEN + tiny_number - 1
        # Half-range golden angles keep both readout directions; only sorting folds them into the range.
        turn = span if ordering.startswith("sorted") else 2 * np.pi
        angles = np.mod((phase * views + view) * (span / divisor), turn)
    if ordering == "sorted":
        angles = np.sort(angles, axis=-1)
    elif ordering == "sorted_half":
        angles = _sweep(angles)
    return angles if phases is not None else angles[0]


def _sweep(angles: np.ndarray) -> np.ndarray:
    """Sort angles of lines (modulo pi) `[phase, view]` so that every phase turns on from the last angle of the one before."""
    swept = np.empty_like(angles)
    start = 0.0
    for phase, lines in enumerate(angles):
        swept[phase] = np.sort(start + np.mod(lines - start, np.pi))
        start = swept[phase, -1]
    return np.asarray(np.mod(swept, 2 * np.pi))


def radial_trajectory(
    base_resolution: int,
    views: int,
    phases: int | None = None,
    ordering: Ordering | Literal["sphere_archimedean"] = "linear",
    angle_range: AngleRange = "full",
    tiny_number: int = 7,
    readout_os: float = 2.0,
) -> np.ndarray:
    """Radial trajectory, two-dimensional or (`sphere_archimedean`) three-dimensional.

    A readout has `base_resolution * readout_os` samples at -pi, -pi + d, ... (rad/pixel); sample n // 2 is the centre.

    Args:
        base_resolution: image size in pixels.
        readout_os: readout oversampling.
        views, phases, ordering, angle_range, tiny_number: see `radial_angles`; for `sphere_archimedean` see
            `recon.koosh_ball.sphere_spiral`.

    Returns:
        float32 `[views, samples, 2 or 3]` or `[phases, views, samples, 2 or 3]`. Flatten views and samples for a NUFFT
        (`recon.views.flatten_trajectory`).

    Raises:
        ValueError: no sample, or angles that `radial_angles` refuses.
    """
    if ordering == "sphere_archimedean":
        from recon.koosh_ball import koosh_ball_trajectory

        return koosh_ball_trajectory(base_resolution, views, phases, angle_range, readout_os)
    angles = radial_angles(views, phases, ordering, angle_range, tiny_number)
    radius = spoke(base_resolution, readout_os)
    return rotate(np.stack([radius, np.zeros_like(radius)], axis=-1), angles).astype(np.float32)


def spoke(base_resolution: int, readout_os: float = 2.0) -> np.ndarray:
    """Positions along one spoke through the centre: float64 `[samples]`, rad/pixel, sample n // 2 in the centre.

    Raises:
        ValueError: no sample.
    """
    samples = round(base_resolution * readout_os)
    if samples < 1:
        raise ValueError(f"base_resolution {base_resolution} times readout_os {readout_os} gives no sample")
    radius: np.ndarray = (np.arange(samples) - samples / 2) * (2 * np.pi / samples)
    return radius


def rotate(readout: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Turn one readout `[sample, 2]` by angles `[...]` in rad, from the first axis to the second: `[..., sample, 2]`."""
    cosine, sine = np.cos(angles)[..., None], np.sin(angles)[..., None]
    first, second = readout[:, 0], readout[:, 1]
    return np.stack([first * cosine - second * sine, first * sine + second * cosine], axis=-1)


def from_acquisition_units(trajectory: np.ndarray, matrix_size: int | Sequence[int]) -> np.ndarray:
    """Convert an acquired trajectory, columns (kx, ky[, kz]), to rad/pixel with columns ([kz,] ky, kx).

    Two units are in use. If no coordinate exceeds 1, they are taken as cycles per pixel (ISMRMRD, +-0.5); otherwise as
    cycles per field of view (+-N/2).

    Args:
        trajectory: `[..., sample, 2 or 3]`; other columns, such as density weights, must be cut off before.
        matrix_size: image shape ([nz,] ny, nx) in pixels, in the order of the image's axes, or one number for all.

    Returns:
        float32 (float64 if given) `[..., sample, axis]`.

    Raises:
        ValueError: wrong number of columns, coordinates not finite, or beyond k-space in both units.
    """
    trajectory = np.asarray(trajectory)
    axes = trajectory.shape[-1] if trajectory.ndim else 0
    if axes not in (2, 3):
        raise ValueError(f"a trajectory has 2 or 3 columns (kx, ky[, kz]), not {axes}: cut off other columns")
    size = np.broadcast_to(np.asarray(matrix_size, float), axes)
    if not np.isfinite(trajectory).all():
        raise ValueError("the trajectory holds values that are not finite (NaN or Inf)")
    dtype = np.float64 if trajectory.dtype == np.float64 else np.float32
    k = trajectory[..., ::-1].astype(np.float64)
    if np.abs(k).max(initial=0) > 1:
        k = k / size
    if np.abs(k).max(initial=0) > 0.55:
        raise ValueError(
            f"the trajectory reaches {np.abs(trajectory).max():g}, beyond the edge of k-space both in cycles per pixel "
            f"(0.5) and in cycles per field of view ({', '.join(f'{n / 2:g}' for n in size)}): check its matrix size"
        )
    return (2 * np.pi * k).astype(dtype)
