"""Density weights: true amplitude, agreement with theory and with the oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from recon import density, nufft
from recon.density import RotatedWeights, jackson_weights, pipe_weights, radial_weights, uniform_radial_weights
from recon.koosh_ball import koosh_ball_trajectory
from recon.phantoms import shepp_logan
from recon.sense import gridding
from recon.spiral import spiral_trajectory
from recon.trajectory import radial_trajectory
from recon.views import flatten_trajectory
from tests.recon.conftest import random_trajectory, relative_error

SIZE = 64


def amplitude_and_error(trajectory: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Scale that fits A^H W A x to x, and the error that remains, for a disc inscribed in the image."""
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE // 2
    # A smooth object: its spectrum does not reach the corners of k-space, which radial sampling leaves out.
    truth = (np.exp(-(x**2 + y**2) / 128) * (1 + 0.3 * np.cos(x / 3))).astype(np.complex64)
    kspace = nufft.Nufft(trajectory, truth.shape, 1e-5).forward(truth[None])
    image = gridding(kspace, trajectory, weights, truth.shape)[0]
    scale = np.vdot(truth, image).real / np.vdot(truth, truth).real
    return float(scale), relative_error(truth * scale, image)


@pytest.mark.parametrize("ordering", ["linear", "golden", "golden_half", "tiny"])
@pytest.mark.parametrize("readout_os", [1.0, 2.0])
def test_radial_gridding_returns_the_true_amplitude(ordering: Any, readout_os: float) -> None:
    spokes = radial_trajectory(SIZE, 144, ordering=ordering, readout_os=readout_os)
    scale, error = amplitude_and_error(spokes.reshape(-1, 2), radial_weights(spokes, (SIZE, SIZE)).reshape(-1))
    assert scale == pytest.approx(1, abs=0.02)
    # Without oversampling the readout aliases a little into the field of view.
    assert error < (0.03 if readout_os == 2 else 0.12)


@pytest.mark.parametrize("readout_os", [1.0, 2.0])
def test_pipe_gridding_returns_the_true_amplitude(readout_os: float) -> None:
    trajectory = radial_trajectory(SIZE, 144, ordering="golden", readout_os=readout_os).reshape(-1, 2)
    scale, error = amplitude_and_error(trajectory, pipe_weights(trajectory, (SIZE, SIZE)))
    assert scale == pytest.approx(1, abs=0.03)
    assert error < 0.05


def test_gridding_a_phantom_keeps_its_amplitude() -> None:
    spokes = radial_trajectory(128, 256, ordering="golden")
    trajectory = spokes.reshape(-1, 2)
    truth = shepp_logan((128, 128)).astype(np.complex64)
    kspace = nufft.Nufft(trajectory, truth.shape).forward(truth[None])
    image = gridding(kspace, trajectory, radial_weights(spokes, truth.shape).reshape(-1), truth.shape)[0]
    inside = np.isclose(truth, 0.2)
    assert image[inside].real.mean() == pytest.approx(0.2, rel=0.03)


def test_a_full_cartesian_grid_has_weights_of_one() -> None:
    k = (np.arange(32) - 16) * (2 * np.pi / 32)
    grid = np.stack(np.meshgrid(k, k, indexing="ij"), -1).reshape(-1, 2)
    assert pipe_weights(grid, (32, 32)) == pytest.approx(1, abs=0.02)


def test_pipe_agrees_with_the_oracle(oracle: Any) -> None:
    # Its scale is another: it makes the iteration's kernel, not the object's amplitude, the unit.
    expected = 1 / oracle["density_pipe"].ravel()
    ours = pipe_weights(oracle["radial33"].reshape(-1, 2), (64, 64))
    scale = np.vdot(ours, expected) / np.vdot(ours, ours)
    assert relative_error(expected, scale * ours) < 0.01


def test_radial_weights_agree_with_the_oracle(oracle: Any) -> None:
    # The oracle counts the area of a square for the disc (4 / pi), and 1/4 instead of 1/6 for the centre.
    expected = np.pi / 4 / oracle["density_radial"]
    expected[:, 64] *= 2 / 3
    ours = np.broadcast_to(uniform_radial_weights(64, 33), (33, 128))
    assert relative_error(expected, ours) < 1e-5


def test_jackson_agrees_with_the_oracle(oracle: Any) -> None:
    expected = 1 / oracle["density_jackson"].ravel()
    ours = jackson_weights(oracle["radial33"].reshape(-1, 2), (64, 64))
    scale = np.vdot(ours, expected) / np.vdot(ours, ours)
    assert scale == pytest.approx(1.26, abs=0.01)
    assert relative_error(expected, scale * ours) < 0.01


def test_geometric_weights_agree_with_the_oracle(oracle: Any) -> None:
    expected = 1 / oracle["density_geometric"]
    ours = radial_weights(radial_trajectory(64, 34, ordering="golden"), (64, 64)) * (4 / np.pi)
    ours[:, 64] *= 3 / 2  # as in the test above
    assert relative_error(expected, ours) < 1e-4


def test_radial_density_of_five_views_known_from_tensorflow_mri() -> None:
    density = 1 / (4 / np.pi * radial_weights(radial_trajectory(4, 5), (4, 4)))
    density[:, 4] *= 2 / 3
    assert density == pytest.approx(np.tile(20 * np.array([0.0625, 1 / 12, 0.125, 0.25, 1, 0.25, 0.125, 1 / 12]), (5, 1)), rel=1e-5)


def test_pipe_agrees_with_the_oracle_of_a_spiral(oracle: Any) -> None:
    arms = spiral_trajectory(
        *(240, 16, 400, 22, 10, 1.4, 16),
        **{"gradient_delay": 0.56, "vd_inner_cutoff": 0.15, "vd_outer_cutoff": 0.55966, "vd_outer_density": 0.07, "vd_type": "hanning"},
    )[:, 1:]
    ours = pipe_weights(flatten_trajectory(arms), (240, 240)).reshape(16, -1)[:15]
    expected = oracle["hyperslice_weights"]
    scale = np.vdot(ours, expected) / np.vdot(ours, ours)
    assert scale == pytest.approx(1.26, abs=0.01)
    assert relative_error(expected, scale * ours) < 0.01


def test_jackson_smooths_what_pipe_resolves() -> None:
    grid = np.stack(np.meshgrid(*[(np.arange(32) - 16) * (2 * np.pi / 32)] * 2, indexing="ij"), -1).reshape(-1, 2)
    assert jackson_weights(grid, (32, 32)) == pytest.approx(1, abs=0.02)
    trajectory = flatten_trajectory(radial_trajectory(SIZE, 144, ordering="golden"))
    scale, error = amplitude_and_error(trajectory, jackson_weights(trajectory, (SIZE, SIZE)))
    assert scale == pytest.approx(1, abs=0.1)
    assert 0.1 < error < 0.4
    assert amplitude_and_error(trajectory, pipe_weights(trajectory, (SIZE, SIZE)))[1] < error / 5


def test_pipe_is_batched_and_deterministic() -> None:
    trajectories = random_trajectory(2 * 300, 2).reshape(2, 300, 2)
    both = pipe_weights(trajectories, (20, 24))
    assert both.shape == (2, 300)
    for index in range(2):
        assert np.array_equal(both[index], pipe_weights(trajectories[index], (20, 24)))
    both[:] = 0  # the caller may change what it got
    assert pipe_weights(trajectories, (20, 24)).min() > 0


def test_views_that_were_not_joined_are_refused() -> None:
    spokes = radial_trajectory(16, 13, 2)
    with pytest.raises(ValueError, match="flatten_trajectory"):
        pipe_weights(spokes[0], (16, 16))
    with pytest.raises(ValueError, match="flatten_trajectory"):
        jackson_weights(koosh_ball_trajectory(16, 13), (16, 16, 16))
    assert pipe_weights(flatten_trajectory(spokes), (16, 16)).shape == (2, 13 * 32)


def test_pipe_in_three_dimensions_and_double_precision() -> None:
    weights = pipe_weights(random_trajectory(4000, 3, dtype="float64"), (12, 10, 8))
    assert weights.dtype == np.float64
    # Random points over all of k-space share its area, N units, among themselves.
    assert weights.sum() == pytest.approx(12 * 10 * 8, rel=0.1)


def test_radial_weights_cover_the_disc_for_any_angles() -> None:
    spokes = radial_trajectory(SIZE, 55, ordering="golden")
    area = radial_weights(spokes, (SIZE, SIZE)).sum()
    assert area == pytest.approx(np.pi / 4 * SIZE**2, rel=0.02)
    uniform = radial_trajectory(SIZE, 34, angle_range="half")
    formula = np.broadcast_to(uniform_radial_weights(SIZE, 34), (34, 2 * SIZE))
    assert relative_error(formula, radial_weights(uniform, (SIZE, SIZE))) < 1e-5


@pytest.mark.parametrize("readout_os", [1.0, 2.0])
def test_a_koosh_ball_returns_the_true_amplitude(readout_os: float) -> None:
    z, y, x = np.mgrid[:20, :20, :20] - 10
    truth = (np.exp(-(x**2 + y**2 + z**2) / 16) * (1 + 0.3 * np.cos(x / 3))).astype(np.complex64)
    trajectory = flatten_trajectory(koosh_ball_trajectory(20, 900, readout_os=readout_os))
    weights = np.tile(uniform_radial_weights(20, 900, readout_os, axes=3), 900)
    image = gridding(nufft.Nufft(trajectory, truth.shape, 1e-4).forward(truth[None]), trajectory, weights, truth.shape)[0]
    assert np.vdot(truth, image).real / np.vdot(truth, truth).real == pytest.approx(1, abs=0.005)
    assert relative_error(truth, image) < (0.005 if readout_os == 2 else 0.2)
    # Together the samples stand for the ball.
    assert weights.sum() == pytest.approx(4 / 3 * np.pi * 10**3, rel=0.01)
    with pytest.raises(ValueError, match="axes"):
        uniform_radial_weights(20, 900, axes=4)


def test_a_single_and_coincident_spokes_have_finite_weights() -> None:
    one = radial_trajectory(8, 1)
    assert np.isfinite(radial_weights(one, (8, 8))).all()
    twice = np.concatenate([one, one])
    assert radial_weights(twice, (8, 8)).sum() == pytest.approx(radial_weights(one, (8, 8)).sum(), rel=1e-5)


@pytest.mark.parametrize("trajectory", [np.zeros((5, 3)), np.zeros(4), np.full((5, 2), np.nan)])
def test_unusable_trajectories_are_refused(trajectory: np.ndarray) -> None:
    with pytest.raises(ValueError, match="trajectory"):
        pipe_weights(trajectory, (8, 8))
    with pytest.raises(ValueError, match="view, sample"):
        radial_weights(trajectory, (8, 8))


def arms(turns: float = 8, views: int = 12, samples: int = 400, angle: float = 0.0) -> np.ndarray:
    """A spiral that keeps half a pixel from the edge, turned by an angle in radians; the centre once only."""
    t = (np.arange(samples) + 0.5) / samples
    phase = 2 * np.pi * (turns / 2 * t + np.arange(views)[:, None] / views) + angle
    return (np.pi * (1 - 1 / SIZE) * np.stack([t * np.cos(phase), t * np.sin(phase)], -1)).reshape(-1, 2).astype(np.float32)


@pytest.mark.parametrize("angle", [0.2, 0.8, 1.9, 4.0])
def test_rotated_spirals_have_the_weights_of_the_first(angle: float, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = RotatedWeights()
    assert np.array_equal(weights.of(arms(), (SIZE, SIZE)), pipe_weights(arms(), (SIZE, SIZE)))
    turned = arms(angle=angle)
    own = pipe_weights(turned, (SIZE, SIZE))
    monkeypatch.setattr(density, "pipe_weights", None)
    found = weights.of(turned, (SIZE, SIZE))
    assert relative_error(own, found) < 5e-3
    images = [amplitude_and_error(turned, one) for one in (own, found)]
    assert images[1] == pytest.approx(images[0], abs=2e-3)
    kspace = nufft.Nufft(turned, (SIZE, SIZE)).forward(shepp_logan((SIZE, SIZE)).astype(np.complex64)[None])
    gridded = [gridding(kspace, turned, one, (SIZE, SIZE)) for one in (own, found)]
    assert relative_error(*gridded) < 3e-3


def test_what_is_no_rotation_gets_weights_of_its_own() -> None:
    weights, first = RotatedWeights(), arms()
    moved = first.copy()
    moved[100] += 1e-3
    others = [moved, first[::-1].copy(), first * np.float32(0.999), first * np.float32([1, -1]), arms(views=6, samples=800), first[:-5]]
    weights.of(first, (SIZE, SIZE))
    for other in others:
        assert np.array_equal(weights.of(other, (SIZE, SIZE)), pipe_weights(other, (SIZE, SIZE)))
    to_the_edge = [arms(angle=angle) * np.float32(1.015) for angle in (0, 1)]
    for other in to_the_edge:
        assert np.array_equal(weights.of(other, (SIZE, SIZE)), pipe_weights(other, (SIZE, SIZE)))
    assert np.array_equal(weights.of(arms(angle=1), (SIZE, SIZE + 8)), pipe_weights(arms(angle=1), (SIZE, SIZE + 8)))
    volume = random_trajectory(300, 3)
    assert np.array_equal(weights.of(volume, (16, 16, 16)), pipe_weights(volume, (16, 16, 16)))
    assert len(weights.of(np.zeros((5, 2), np.float32), (SIZE, SIZE))) == 5  # all in the centre
