"""Coils made of waves: like birdcage coils, and their k-space is that of the image they weigh."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from recon.ellipsoids import Ellipsoid, density
from recon.phantoms import birdcage_coils, phantom, phantom_ellipsoids
from recon.sense import cg_sense
from recon.sinusoidal_coils import SinusoidalCoils, sinusoidal_coils
from recon.trajectory import radial_trajectory
from recon.views import flatten_trajectory
from tests.recon.conftest import random_trajectory, relative_error


@pytest.mark.parametrize(("coils", "shape"), [(8, (60, 64)), (1, (32, 32)), (6, (12, 14, 16))])
def test_waves_follow_the_birdcage(coils: int, shape: tuple[int, ...]) -> None:
    fitted = sinusoidal_coils(coils, len(shape))
    maps = fitted.maps(shape)
    assert maps.shape == (coils, *shape)
    assert relative_error(birdcage_coils(coils, shape), maps) < 0.03


def test_kspace_equals_a_sum_over_a_fine_grid() -> None:
    shape, fine = (24, 28), 20
    objects = [Ellipsoid(1.0, (0.5, 0.3), (0.1, -0.3), 20.0)]
    coils = sinusoidal_coils(3)
    points = random_trajectory(2 * 6, 2, dtype="float64").reshape(2, 6, 2)
    lines = [(np.arange(n * fine) + 0.5) / fine - 0.5 - n // 2 for n in shape]
    positions = np.stack(np.meshgrid(*lines, indexing="ij"), -1).reshape(-1, 2)
    inside = density(objects, positions / (np.array(shape) / 2)) > 0
    positions = positions[inside]
    seen = np.exp(1j * positions / (np.array(shape) / 2) @ coils.frequencies.T) @ coils.coefficients.T
    expected = np.einsum("rc,vsr->vcs", seen, np.exp(-1j * points @ positions.T)) / fine**2 / np.sqrt(24 * 28)
    assert relative_error(expected, coils.kspace(objects, points, shape)) < 0.01


def test_a_single_flat_wave_changes_nothing() -> None:
    flat = SinusoidalCoils(np.ones((1, 1)), np.zeros((1, 2)))
    assert np.array_equal(flat.maps((8, 8)), np.ones((1, 8, 8)))
    centre = flat.kspace(phantom_ellipsoids(), np.zeros((1, 2), np.float32), (64, 64))
    assert centre.dtype == np.complex64
    assert centre[0, 0] == pytest.approx(phantom(shape=(64, 64), oversampling=8).sum() / 64, rel=2e-3)
    with pytest.raises(ValueError, match="4 axes"):
        sinusoidal_coils(2, 4)


def test_reconstruction_of_exact_data_gives_the_phantom() -> None:
    """No grid in the simulation: amplitude, place and orientation are those of the phantom, edges ring."""
    shape = (64, 64)
    coils = sinusoidal_coils(4)
    trajectory = flatten_trajectory(radial_trajectory(64, 100, ordering="golden"))
    kspace = coils.kspace(phantom_ellipsoids(), trajectory, shape)
    image = cg_sense(kspace, trajectory, coils.maps(shape), iterations=16)
    truth = phantom(shape=shape, oversampling=8)
    assert relative_error(truth, image) < 0.2
    inside = gaussian_filter(truth, 2), gaussian_filter(image.real, 2)  # ringing averages out
    assert relative_error(*inside) < 0.01
