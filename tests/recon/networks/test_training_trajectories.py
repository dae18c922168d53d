"""Trajectories to train on: angles, extent, and weights that keep amplitudes, by direct sums."""

from __future__ import annotations

import numpy as np
import pytest

from recon.density import pipe_weights
from recon.networks.training import trajectories
from recon.networks.training.trajectories import Frame


def amplitude(frame: Frame, n: int = 32) -> tuple[float, float]:
    """What gridding makes of the peak of a broad Gaussian, and of all of it, as fractions of what they are."""
    points, weights = frame
    y, x = np.meshgrid(*[np.arange(n) - n // 2] * 2, indexing="ij")
    blob = np.exp(-(y**2 + x**2) / 72).ravel()
    encoding = np.exp(-1j * (np.outer(points[:, 0], y) + np.outer(points[:, 1], x)))
    gridded = encoding.conj().T @ (weights * (encoding @ blob)) / n**2
    return abs(gridded[blob.argmax()]), float(np.vdot(blob, gridded).real / np.vdot(blob, blob))


def angles(points: np.ndarray) -> np.ndarray:
    return np.rad2deg(np.arctan2(points[:, 1], points[:, 0]))


def turned(points: np.ndarray, degrees: float) -> np.ndarray:
    return points @ np.array([[np.cos(a := np.deg2rad(degrees)), np.sin(a)], [-np.sin(a), np.cos(a)]])


def test_spokes_go_on_by_the_seventh_tiny_golden_angle() -> None:
    frames = trajectories.radial((32, 32), 3, 13, 48)
    assert [points.shape for points, _ in frames] == [(13 * 48, 2)] * 3
    ends = np.concatenate([points.reshape(13, 48, 2)[:, -1] for points, _ in frames])
    golden = 180 / ((1 + np.sqrt(5)) / 2 + 6)
    assert golden == pytest.approx(23.6281, abs=1e-4)
    np.testing.assert_allclose(np.mod(np.diff(angles(ends)), 360), golden, atol=1e-3)
    assert trajectories.radial((32, 32), 1)[0][0].shape == (13 * 64, 2)


@pytest.mark.parametrize(
    "frame",
    [
        trajectories.radial((32, 32), 1, 13, 48)[0],
        trajectories.radial((32, 32), 1, 24)[0],
        trajectories.sodium((32, 32), 1)[0],
        *(trajectories.random_spiral((32, 32), 1, np.random.default_rng(seed))[0] for seed in (5, 6)),
    ],
)
def test_gridding_keeps_amplitudes(frame: Frame) -> None:
    """Low frequencies are sampled fully by all of them."""
    assert amplitude(frame) == (pytest.approx(1, abs=0.02), pytest.approx(1, abs=0.02))


def test_a_spiral_turns_as_published_or_as_told() -> None:
    protocol = {"base_resolution": 240, "field_of_view": 400.0}
    published = trajectories.spiral((240, 240), 3, **protocol)
    assert len(published[0][0]) == 15 * 1171
    np.testing.assert_allclose(published[2][0], turned(published[0][0], 2 * 2.0), atol=1e-5)  # 360 degrees / 15 arms / 12 phases
    other = trajectories.spiral((240, 240), 2, turn=111.246, **protocol)
    np.testing.assert_array_equal(other[0][0], published[0][0])
    np.testing.assert_allclose(other[1][0], turned(published[0][0], 111.246), atol=1e-5)


def test_turning_changes_no_weights() -> None:
    points = trajectories.random_spiral((24, 24), 1, np.random.default_rng(5))[0][0]
    (first, weights), (second, again) = trajectories.turning(points, (24, 24), 2, 10.0, 33.0)
    assert again is weights
    np.testing.assert_allclose(second, turned(first, 33.0), atol=1e-5)
    own = pipe_weights(second, (24, 24))
    assert np.linalg.norm(own - weights) < 0.02 * np.linalg.norm(own)


def test_sodium_is_twenty_arms_and_rests() -> None:
    frames = trajectories.sodium((80, 80), 2)
    assert frames[0] is frames[1]
    arms = frames[0][0].reshape(20, -1, 2)
    np.testing.assert_allclose(arms[3], turned(arms[0], 3 * 360 / 20), atol=1e-4)


def test_random_spirals_are_random_symmetric_and_of_both_kinds() -> None:
    made = [trajectories.random_spiral((32, 32), 2, np.random.default_rng(seed)) for seed in range(8)]
    again = trajectories.random_spiral((32, 32), 2, np.random.default_rng(3))
    np.testing.assert_array_equal(made[3][1][0], again[1][0])
    senses, turns = set(), set()
    for first, second in made:
        points = first[0]
        radius = np.linalg.norm(points, axis=1)
        assert 0.85 * np.pi < radius.max() <= np.pi + 1e-3
        assert np.linalg.norm(points.mean(0)) < 1e-3  # arms all around
        turns.add(round(float(np.mod(angles(second[0]) - angles(points), 360)[radius.argmax()]), 2))
        arm = points[: np.flatnonzero(np.diff(radius) < -0.5 * radius.max())[0] + 1]
        winding = np.diff(np.unwrap(np.deg2rad(angles(arm[np.linalg.norm(arm, axis=1) > 0.3])))).sum()
        senses.add(np.sign(winding))
    assert senses == {-1, 1}
    assert len(turns) > 4
