"""Gradient delays: simulated shifts are found and corrected."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from recon import nufft
from recon.density import radial_weights
from recon.gradient_delay import estimate_shifts, shifted
from recon.phantoms import birdcage_coils, shepp_logan
from recon.sense import gridding
from recon.trajectory import radial_trajectory
from tests.recon.conftest import random_complex, relative_error

SIZE = 64
SPACING = np.pi / SIZE  # of samples, rad/pixel


def measure(spokes: np.ndarray, shifts: np.ndarray, noise: float = 0.0) -> np.ndarray:
    """k-space `[coil, view, sample]` at the shifted positions, by definition S n added to every sample."""
    angles = np.arctan2(spokes[:, -1, 1] - spokes[:, 0, 1], spokes[:, -1, 0] - spokes[:, 0, 0])
    moved = spokes + (np.stack([np.cos(angles), np.sin(angles)], -1) @ shifts.T)[:, None].astype(np.float32)
    images = shepp_logan((SIZE, SIZE)).astype(np.complex64) * birdcage_coils(6, (SIZE, SIZE))
    kspace = nufft.Nufft(moved.reshape(-1, 2), (SIZE, SIZE), 1e-5).forward(images.astype(np.complex64))
    kspace = kspace.reshape(6, *spokes.shape[:2])
    return kspace + noise * np.abs(kspace).max() * random_complex(kspace.shape)


@pytest.mark.parametrize(("ordering", "views"), [("linear", 48), ("golden", 55), ("tiny", 89)])
@pytest.mark.parametrize("samples", [(0.0, 0.0, 0.0), (-0.9, -0.3, 0.0), (0.5, -1.2, 0.3)])
def test_shifts_are_found(ordering: Any, views: int, samples: tuple[float, float, float]) -> None:
    yy, xx, yx = samples
    truth = np.array([[yy, yx], [yx, xx]]) * SPACING
    spokes = radial_trajectory(SIZE, views, ordering=ordering)
    found = estimate_shifts(measure(spokes, truth, noise=1e-4), spokes)
    assert found == pytest.approx(truth, abs=0.04 * SPACING)


def test_a_delay_in_time_is_minus_the_distance_travelled() -> None:
    # 3 us at 4 us a sample: the gradients lag, the samples come earlier on their way.
    spokes = radial_trajectory(SIZE, 48)
    late = -3 / 4 * SPACING * np.eye(2)
    moved = shifted(spokes, late)
    assert moved.dtype == np.float32
    between = spokes[:, :-1] + np.diff(spokes, axis=1) * (1 - 3 / 4)
    assert moved[:, 1:] == pytest.approx(between, abs=1e-6)


def test_the_corrected_image_is_that_of_a_scan_without_delays() -> None:
    truth = np.array([[1.1, 0.2], [0.2, -0.8]]) * SPACING
    spokes = radial_trajectory(SIZE, 96)
    kspace = measure(spokes, truth)
    weights = radial_weights(spokes, (SIZE, SIZE)).reshape(-1)

    def image(positions: np.ndarray, data: np.ndarray) -> np.ndarray:
        return gridding(data.reshape(6, -1), positions.reshape(-1, 2), weights, (SIZE, SIZE))

    ideal = image(spokes, measure(spokes, np.zeros((2, 2))))
    corrected = image(shifted(spokes, estimate_shifts(kspace, spokes)), kspace)
    assert relative_error(image(shifted(spokes, truth), kspace), corrected) < 0.02
    # What is left is density compensation: moved spokes do not meet in the centre.
    assert relative_error(ideal, corrected) < 0.5 * relative_error(ideal, image(spokes, kspace))


def test_sideways_shifts_bias_the_pairs_until_refined() -> None:
    truth = np.diag([1.1, -0.8]) * SPACING
    spokes = radial_trajectory(SIZE, 55, ordering="golden")
    kspace = measure(spokes, truth)
    assert np.abs(estimate_shifts(kspace, spokes, refinements=0) - truth).max() > 0.08 * SPACING
    assert np.abs(estimate_shifts(kspace, spokes) - truth).max() < 0.02 * SPACING


def test_constant_phases_of_readouts_do_not_matter_to_the_pairs() -> None:
    spokes = radial_trajectory(SIZE, 48)
    truth = np.diag([0.6, -0.4]) * SPACING
    kspace = measure(spokes, truth)
    phases = np.exp(2j * np.pi * np.random.default_rng(0).random(48))[:, None]
    assert estimate_shifts(kspace * phases, spokes, 0) == pytest.approx(estimate_shifts(kspace, spokes, 0), abs=1e-3 * SPACING)


@pytest.mark.parametrize(
    ("kspace", "trajectory", "message"),
    [
        (np.ones((2, 40, 16)), radial_trajectory(8, 40, angle_range="half"), "opposing"),
        (np.ones((2, 4, 16)), radial_trajectory(8, 4), "three directions"),
        (np.zeros((2, 40, 16)), radial_trajectory(8, 40), "no signal"),
        (np.full((2, 40, 16), np.nan), radial_trajectory(8, 40), "finite"),
        (np.ones((2, 39, 16)), radial_trajectory(8, 40), "does not fit"),
        (np.ones((2, 4, 16)), np.zeros((4, 16, 2)), "centre"),
        (np.ones((2, 4, 8)), radial_trajectory(8, 4)[:, 8:], "centre"),
    ],
)
def test_what_cannot_be_estimated_is_explained(kspace: np.ndarray, trajectory: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        estimate_shifts(kspace, trajectory)


def test_shifts_of_a_wrong_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[2, 2\]"):
        shifted(radial_trajectory(8, 4), np.zeros(2))
