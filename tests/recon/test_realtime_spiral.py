"""The HyperSLICE protocol: its figures, its trajectory and its zero-filled frame."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from recon.nufft import Nufft
from recon.phantoms import birdcage_coils, shepp_logan
from recon.realtime_spiral import RealtimeSpiral


@pytest.fixture(scope="module")
def protocol() -> RealtimeSpiral:
    """The published one."""
    return RealtimeSpiral()


def test_the_published_protocol(protocol: RealtimeSpiral) -> None:
    assert protocol.design.spiral_arms == 16
    assert protocol.arms == 15
    assert protocol.repetition_time == pytest.approx(3.6408)
    assert protocol.arms * protocol.repetition_time == pytest.approx(54.6, abs=0.05)
    assert protocol.trajectory.shape == (12, 15, 1171, 2)
    assert protocol.weights.shape == (15, 1171)


def test_frames_turn_by_two_degrees(protocol: RealtimeSpiral) -> None:
    first, second = (protocol.trajectory[phase, 0].astype(np.float64) @ [1, 1j] for phase in (0, 1))
    turn = np.angle(second[100:] / first[100:], deg=True)
    assert np.abs(turn) == pytest.approx(2.0, abs=1e-3)


def test_equals_the_oracle(protocol: RealtimeSpiral, oracle: Any) -> None:
    assert np.abs(protocol.trajectory[0] - oracle["hyperslice_trajectory_phase0"]).max() < 1e-5
    assert np.abs(protocol.trajectory[1, 0] - oracle["hyperslice_trajectory_phase1_arm0"]).max() < 1e-5
    expected = oracle["hyperslice_weights"]
    scale = np.vdot(protocol.weights, expected) / np.vdot(protocol.weights, protocol.weights)
    assert np.linalg.norm(scale * protocol.weights - expected) < 0.01 * np.linalg.norm(expected)


SAMPLES = [0, 300, 600, 900, 1170]
POINTS = [
    (1.0286e-4, 3.2145e-6),
    (0.2877129, -0.2371079),
    (-0.6675539, -0.0572069),
    (1.7916470, -0.5250245),
    (1.6102210, 2.6717567),
]
WEIGHTS = [0.0026781, 0.2706763, 0.5620229, 0.8813150, 2.3482907]
"""Of the first arm as TensorFlow MRI computes it."""


def test_equals_samples_known_from_tensorflow_mri(protocol: RealtimeSpiral) -> None:
    np.testing.assert_allclose(protocol.trajectory[0, 0, SAMPLES], POINTS, atol=2e-5)
    weights = protocol.weights[0, SAMPLES]
    np.testing.assert_allclose(weights / weights[2], np.divide(WEIGHTS, WEIGHTS[2]), rtol=0.02, atol=0.001)
    extent = np.array([protocol.weights.min(), protocol.weights.max()]) / protocol.weights.mean()
    np.testing.assert_allclose(extent, np.divide([0.0026781, 2.3614795], 0.5501574), rtol=0.02, atol=0.001)


def test_too_many_arms_are_reduced_and_too_few_raised(protocol: RealtimeSpiral) -> None:
    for start in (10, 24):
        found = RealtimeSpiral(spiral_arms=start)
        assert found.shortest_arm < found.repetition_time - found.dead_time < found.longest_arm


def test_limits_that_nothing_meets() -> None:
    with pytest.raises(ValueError, match=r"no spiral of 240 pixels reads out in 0\.001 to 0\.002 ms"):
        _ = RealtimeSpiral(shortest_arm=0.001, longest_arm=0.002).design
    with pytest.raises(ValueError, match="frame_time of 2 ms"):
        _ = RealtimeSpiral(frame_time=2).arms


def test_zero_filled_frame(protocol: RealtimeSpiral) -> None:
    """Gridding keeps the object where k-space is sampled densely: low frequencies with weights that sum to their area."""
    truth = shepp_logan((240, 240)) * birdcage_coils(1, (240, 240))[0]
    plan = Nufft(protocol.trajectory[0].reshape(-1, 2), (240, 240), 1e-4, np.complex128)
    gridded = plan.adjoint(protocol.weights.reshape(-1) * plan.forward(truth[None]))[0]
    low = np.hypot(*np.meshgrid(*[np.arange(240) - 120] * 2)) < 12
    blurred, expected = (np.fft.ifft2(np.fft.ifftshift(low) * np.fft.fft2(image)) for image in (gridded, truth))
    factor = np.vdot(expected, blurred) / np.vdot(expected, expected)
    assert abs(factor) == pytest.approx(15 / 16, abs=0.03)
    assert np.linalg.norm(blurred - factor * expected) < 0.3 * np.linalg.norm(expected)


def test_zero_filled_frame_has_the_published_figures(protocol: RealtimeSpiral, oracle: Any) -> None:
    """Ten coils, the brightest coil pixel 1, weights in TensorFlow MRI's scale: largest pixel 2.197, sum 20948."""
    images = shepp_logan((240, 240)) * birdcage_coils(10, (240, 240))
    images /= np.abs(images).max()
    scale = np.vdot(protocol.weights, oracle["hyperslice_weights"]) / np.vdot(protocol.weights, protocol.weights)
    plan = Nufft(protocol.trajectory[0].reshape(-1, 2), (240, 240), 1e-4)
    gridded = plan.adjoint((scale * protocol.weights.reshape(-1) * plan.forward(images.astype(np.complex64))).astype(np.complex64))
    frame = np.linalg.norm(gridded, axis=0)
    assert frame.max() == pytest.approx(2.197, rel=0.02)
    assert frame.sum() == pytest.approx(20948, rel=0.02)
