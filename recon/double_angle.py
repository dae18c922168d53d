"""Flip-angle (B1) maps from two images whose nominal flip angles are in the ratio of one to two."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import distance_transform_edt, gaussian_filter

_SIGNAL = 0.02
"""Fraction of the strongest smoothed power above which the angle is taken as measured."""


def relative_flip_angle(first: np.ndarray, second: np.ndarray, nominal_deg: float, smoothing: float | Sequence[float] = 1.0) -> np.ndarray:
    """Actual over nominal flip angle: arccos(S2 / 2 S1) / nominal, for signals S1 ~ sin(a), S2 ~ sin(2 a) of full relaxation.

    The ratio is the least-squares one in a Gaussian neighbourhood, so that B1, which varies slowly, is known better than the images;
    where there is no signal, the nearest value is continued. Insko and Bolinger, J. Magn. Reson. A 103 (1993); Stollberger and Wach,
    Magn. Reson. Med. 35 (1996) 246.

    Args:
        first, second: `[*voxels]` at the nominal angle and at twice that, complex (their relative sign then tells angles above 90 degrees)
            or magnitudes.
        nominal_deg: nominal angle of the first, degrees.
        smoothing: standard deviation of the neighbourhood in voxels, of all axes or each.

    Raises:
        ValueError: shapes differ, values are not finite, or there is no signal.
    """
    if first.shape != second.shape:
        raise ValueError(f"the two images of the double-angle pair differ in shape: {first.shape} and {second.shape}")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("an image of the double-angle pair holds values that are not finite (NaN, Inf)")
    power = gaussian_filter(np.abs(first).astype(np.float64) ** 2, smoothing)
    product = gaussian_filter(np.real(second * np.conj(first)).astype(np.float64), smoothing)
    known = power > _SIGNAL * power.max()
    if not known.any():
        raise ValueError("there is no signal in the first image of the double-angle pair")
    ratio = np.divide(product, 2 * power, out=np.zeros_like(power), where=known)
    relative = np.arccos(np.clip(ratio, -1, 1)) / np.deg2rad(nominal_deg)
    return nearest(relative, known)


def nearest(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """`values` with those that are not `known` replaced by the nearest that are; both `[*voxels]`."""
    places = distance_transform_edt(~known, return_distances=False, return_indices=True)
    filled: np.ndarray = values[tuple(places)]
    return filled
