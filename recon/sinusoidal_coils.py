"""Coils whose sensitivities are sums of plane waves, so that multi-coil k-space of ellipsoids has a closed form.

Guerquin-Kern, Lejeune, Pruessmann, Unser, IEEE Trans. Med. Imaging 31 (2012).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from recon.ellipsoids import Ellipsoid, kspace
from recon.phantoms import birdcage_coils

# The waves repeat after 1.6 fields of view, so that they need not be periodic in one.
_PERIOD = 3.2


@dataclass(frozen=True)
class SinusoidalCoils:
    """Sensitivity of coil c at position r: sum over m of coefficients[c, m] exp(i frequencies[m] r).

    Args:
        coefficients: complex128 `[coil, wave]`.
        frequencies: float64 `[wave, axis]` in rad per half field of view.
    """

    coefficients: np.ndarray
    frequencies: np.ndarray

    def maps(self, shape: Sequence[int]) -> np.ndarray:
        """Sensitivities at the pixels of an image, complex64 `[coil, *shape]`."""
        axes = [(np.arange(n) - n // 2) / (n / 2) for n in shape]
        waves = np.exp(1j * np.stack(np.meshgrid(*axes, indexing="ij"), -1) @ self.frequencies.T)
        maps: np.ndarray = np.moveaxis(waves @ self.coefficients.T, -1, 0).astype(np.complex64)
        return maps

    def kspace(self, objects: Iterable[Ellipsoid], trajectory: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """k-space of `objects` seen by every coil, `[..., coil, sample]`, scaled as `recon.ellipsoids.kspace`.

        Args:
            objects: ellipses for two axes, ellipsoids for three.
            trajectory: `[..., sample, axis]` in rad/pixel.
            shape: pixels of the field of view.
        """
        shifts = self.frequencies / (np.array(shape) / 2)
        waves = np.stack([kspace(objects, trajectory - shift.astype(trajectory.dtype), shape) for shift in shifts], -2)
        return np.asarray(self.coefficients.astype(waves.dtype) @ waves)


def sinusoidal_coils(coils: int, axes: int = 2, order: int = 3) -> SinusoidalCoils:
    """Waves fitted to `birdcage_coils`: with the default order their values agree within a few per cent.

    Args:
        coils: how many.
        axes: 2 or 3.
        order: waves of up to this many periods in 1.6 fields of view along each axis.

    Raises:
        ValueError: no coils, a negative order, or neither two nor three axes.
    """
    if axes not in (2, 3) or coils < 1 or order < 0:
        raise ValueError(f"sinusoidal_coils: {coils} coils, {axes} axes, order {order}; expected at least 1, 2 or 3, at least 0")
    frequencies = 2 * math.pi / _PERIOD * np.array(list(itertools.product(range(-order, order + 1), repeat=axes)), float)
    samples = 8 * (order + 1) if axes == 2 else 4 * (order + 1)
    shape = (samples,) * axes
    waves = SinusoidalCoils(np.eye(len(frequencies)), frequencies).maps(shape).reshape(len(frequencies), -1)
    target = birdcage_coils(coils, shape).reshape(coils, -1)
    # Waves of a period beyond the field of view are nearly dependent there: leave out what single precision cannot tell.
    coefficients = np.linalg.lstsq(waves.T.astype(complex), target.T.astype(complex), rcond=1e-4)[0].T
    return SinusoidalCoils(coefficients, frequencies)
