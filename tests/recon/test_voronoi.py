"""Voronoi weights: areas known by construction, and true amplitudes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.spatial import cKDTree

from recon.density import radial_weights
from recon.koosh_ball import koosh_ball_trajectory
from recon.spiral import spiral_trajectory
from recon.trajectory import radial_trajectory
from recon.views import flatten_trajectory
from recon.voronoi import voronoi_weights
from tests.recon.conftest import random_trajectory, relative_error
from tests.recon.test_density import SIZE, amplitude_and_error


@pytest.mark.parametrize("shape", [(24, 24), (20, 8), (9, 8, 6)])
def test_a_full_cartesian_grid_has_weights_of_one(shape: tuple[int, ...]) -> None:
    axes = [(np.arange(n) - n // 2) * (2 * np.pi / n) for n in shape]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(shape))
    assert voronoi_weights(grid, shape) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("ordering", ["golden", "tiny"])
def test_spokes_have_the_areas_of_radial_weights(ordering: Any) -> None:
    spokes = radial_trajectory(SIZE, 34, ordering=ordering)
    expected = radial_weights(spokes, (SIZE, SIZE))
    ours = voronoi_weights(flatten_trajectory(spokes), (SIZE, SIZE)).reshape(expected.shape)
    away = np.abs(np.arange(128) - 64) > 1  # the centre is a polygon here, and by theory less
    assert ours[:, away] == pytest.approx(expected[:, away], rel=0.01)
    # The centre's samples share one polygon: between the disc that it holds and the one that holds it.
    step = SIZE / 128
    assert np.pi / 4 * step**2 < ours[:, 64].sum() < 1.3 * np.pi / 4 * step**2


def test_a_spiral_covers_its_disc_and_keeps_the_amplitude() -> None:
    arms = spiral_trajectory(SIZE, 12, 300, 20, 10, 2.6, views=12)
    trajectory = flatten_trajectory(arms)
    weights = voronoi_weights(trajectory, (SIZE, SIZE))
    assert weights.sum() == pytest.approx(np.pi / 4 * SIZE**2, rel=0.05)
    scale, error = amplitude_and_error(trajectory, weights)
    assert scale == pytest.approx(1, abs=0.03)
    assert error < 0.02


def test_a_koosh_ball_fills_its_sphere() -> None:
    weights = voronoi_weights(flatten_trajectory(koosh_ball_trajectory(8, 120)), (8, 8, 8))
    assert weights.sum() == pytest.approx(4 / 3 * np.pi * 4**3, rel=0.1)
    assert weights.min() > 0


def test_every_cell_is_the_area_nearest_to_its_sample() -> None:
    points = random_trajectory(300, 2, dtype="float64")
    weights = voronoi_weights(points, (16, 16))
    axis = np.linspace(-np.pi, np.pi, 800)
    plane = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    nearest = cKDTree(points).query(plane)[1]
    counted = np.bincount(nearest, minlength=300) * (16 / 800) ** 2
    inside = np.abs(points).max(1) < 2.2
    assert weights[inside] == pytest.approx(counted[inside], rel=0.05)


def test_samples_at_one_place_share_their_cell() -> None:
    spokes = radial_trajectory(16, 13)
    once = voronoi_weights(flatten_trajectory(spokes), (16, 16))
    twice = voronoi_weights(flatten_trajectory(np.concatenate([spokes, spokes])), (16, 16))
    assert twice == pytest.approx(np.tile(once / 2, 2), rel=1e-4)


def test_batches_are_separate_and_precision_is_kept() -> None:
    trajectories = random_trajectory(2 * 100, 2).reshape(2, 100, 2)
    both = voronoi_weights(trajectories, (20, 24))
    assert both.dtype == np.float32
    for index in range(2):
        assert relative_error(voronoi_weights(trajectories[index], (20, 24)), both[index]) == 0
    both[:] = 0  # the caller may change what it got
    assert voronoi_weights(trajectories, (20, 24)).min() > 0
    assert voronoi_weights(trajectories.astype(np.float64), (20, 24)).dtype == np.float64


@pytest.mark.parametrize(
    ("trajectory", "message"),
    [
        (np.zeros((5, 4)), "2 or 3"),
        (np.zeros(4), "2 or 3"),
        (np.full((5, 2), np.nan), "finite"),
        (np.linspace(-1, 1, 20)[:, None] * [1, 0.5], "one line"),
        (np.zeros((2, 2)), "one line"),
    ],
)
def test_unusable_trajectories_are_refused(trajectory: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        voronoi_weights(trajectory, (8, 8))
