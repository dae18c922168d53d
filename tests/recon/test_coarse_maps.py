"""Sensitivity maps from a coarse grid against the true ones and against those of the full grid."""

from __future__ import annotations

import numpy as np
import pytest

from recon.coarse_maps import coarse_maps
from recon.density import pipe_weights, radial_weights
from recon.nufft import Nufft
from recon.phantoms import birdcage_coils, moving_heart
from recon.sense import self_calibrated_maps
from recon.trajectory import radial_trajectory

SHAPE = (96, 80)


@pytest.fixture(scope="module")
def scan() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """k-space, trajectory, weights, true maps, object."""
    trajectory = radial_trajectory(96, 150, ordering="golden_half", readout_os=1.0)
    image, maps = moving_heart(SHAPE), birdcage_coils(6, SHAPE)
    points = trajectory.reshape(-1, 2)
    kspace = Nufft(points, SHAPE, 1e-5).forward((image * maps).astype(np.complex64))
    return kspace, points, radial_weights(trajectory, SHAPE).reshape(-1), maps, image


def likeness(found: np.ndarray, true: np.ndarray, where: np.ndarray) -> np.ndarray:
    """|<found, true>| over the coils, 1 where they agree up to a phase."""
    return np.abs((found * true.conj()).sum(0))[where]


def test_maps_agree_with_the_true_ones_inside_the_object(scan: tuple[np.ndarray, ...]) -> None:
    kspace, trajectory, weights, maps, image = scan
    found = coarse_maps(kspace, trajectory, SHAPE, weights, 0.2)
    assert found.shape == maps.shape
    assert found.dtype == np.complex64
    inside = likeness(found, maps, image > 0.3)
    assert np.median(inside) > 0.999
    assert np.percentile(inside, 1) > 0.99
    assert (np.abs(found) ** 2).sum(0) == pytest.approx(np.ones(SHAPE), abs=1e-5)


def test_maps_lie_where_those_of_the_full_grid_lie(scan: tuple[np.ndarray, ...]) -> None:
    """A map that was a coarse pixel off would agree less than its neighbour."""
    kspace, trajectory, weights, _, image = scan
    coarse = coarse_maps(kspace, trajectory, SHAPE, weights, 0.2)
    full = self_calibrated_maps(kspace, trajectory, SHAPE, weights, bandwidth=0.2, kernel_size=5)
    here = likeness(coarse, full, image > 0.3).mean()
    assert here > 0.9995
    assert all(likeness(np.roll(coarse, shift, axis), full, image > 0.3).mean() < here for shift in (-1, 1) for axis in (1, 2))


def test_weights_are_found_where_none_are_given(scan: tuple[np.ndarray, ...]) -> None:
    kspace, trajectory, _, _, _ = scan
    own = coarse_maps(kspace, trajectory, SHAPE, None, 0.1)
    assert np.array_equal(own, coarse_maps(kspace, trajectory, SHAPE, pipe_weights(trajectory, SHAPE), 0.1))


def test_an_image_no_larger_than_the_coarse_grid(scan: tuple[np.ndarray, ...]) -> None:
    trajectory = radial_trajectory(20, 30, readout_os=1.0)
    maps, image = birdcage_coils(4, (20, 20)), moving_heart((20, 20))
    points = trajectory.reshape(-1, 2)
    kspace = Nufft(points, (20, 20), 1e-5).forward((image * maps).astype(np.complex64))
    found = coarse_maps(kspace, points, (20, 20), radial_weights(trajectory, (20, 20)).reshape(-1), 0.5)
    assert np.median(likeness(found, maps, image > 0.3)) > 0.99


def test_no_sample_near_the_centre_is_an_error() -> None:
    trajectory = np.full((5, 2), 2.0, np.float32)
    with pytest.raises(ValueError, match=r"no sample lies within a fraction 0\.1 of k-space; raise the bandwidth"):
        coarse_maps(np.ones((2, 5), np.complex64), trajectory, (32, 32), np.ones(5, np.float32), 0.1)
