"""Rosette trajectories: an oscillation through the centre of k-space whose direction turns."""

from __future__ import annotations

import numpy as np

from recon.trajectory import AngleRange, Ordering, radial_angles, rotate


def rosette_trajectory(
    samples: int,
    oscillations: float,
    rotations: float,
    views: int = 1,
    phases: int | None = None,
    ordering: Ordering = "linear",
    angle_range: AngleRange = "full",
    tiny_number: int = 7,
) -> np.ndarray:
    """Rosette k(t) = pi sin(2 pi `oscillations` t) exp(2 pi i `rotations` t), 0 <= t < 1 during the readout.

    Noll, IEEE Trans. Med. Imaging 16 (1997) 372. The path starts in the centre and crosses it every half oscillation.

    Args:
        samples: samples of a readout, evenly spaced in time.
        oscillations: radial oscillations of a readout.
        rotations: turns of the direction during a readout.
        views, phases, ordering, angle_range, tiny_number: rotations of the readout, see `radial_angles`.

    Returns:
        float32 `[views, samples, 2]` or `[phases, views, samples, 2]`, rad/pixel.

    Raises:
        ValueError: too few samples: two neighbours would lie more than half the width of k-space apart.
    """
    if not oscillations > 0 or not np.isfinite(rotations):
        raise ValueError(f"oscillations must be positive and rotations finite, not {oscillations} and {rotations}")
    fastest = 2 * np.pi * max(oscillations, abs(rotations))
    if samples < fastest:
        raise ValueError(
            f"{samples} samples are too few for {oscillations:g} oscillations and {rotations:g} rotations: use at least {fastest:.0f}"
        )
    time = np.arange(samples) / samples
    path = np.pi * np.sin(2 * np.pi * oscillations * time) * np.exp(2j * np.pi * rotations * time)
    readout = np.stack([path.real, path.imag], axis=-1)
    return rotate(readout, radial_angles(views, phases, ordering, angle_range, tiny_number)).astype(np.float32)
