"""Joint reconstruction in a moving window: what it minimises, what stays fixed, how it goes on from one window to the next."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import pytest

from recon.arrays import Array
from recon.compressed_sensing import compressed_sensing, encode
from recon.functionals.total_variation import TotalVariation
from recon.low_rank import low_rank_plus_sparse as reference_low_rank_plus_sparse
from recon.moving_window import MovingWindow
from recon.phantoms import birdcage_coils, moving_heart
from recon.sense import cg_sense
from recon.series_priors import SeriesPrior, blockwise_low_rank, low_rank_plus_sparse, temporal_variation
from recon.solvers.power_iteration import dominant, power_iteration, random_like
from recon.trajectory import radial_trajectory
from tests.recon.conftest import random_complex, relative_error

SIZE, COILS, SPOKES, FRAMES = 32, 5, 9, 10
PRIORS: dict[str, Callable[[Array], SeriesPrior]] = {
    "grasp": temporal_variation,
    "low_rank": blockwise_low_rank,
    "both": low_rank_plus_sparse,
}


class Scan(NamedTuple):
    """kspace [frame, coil, sample], trajectory [frame, sample, 2], maps, truth [frame, y, x]."""

    kspace: np.ndarray
    trajectory: np.ndarray
    maps: np.ndarray
    truth: np.ndarray

    def window(self, prior: Callable[[Array], SeriesPrior], size: int | None = None, **settings: float) -> MovingWindow:
        window = MovingWindow(prior, size, **settings)
        for frame in range(len(self.kspace)):
            window.add(self.kspace[frame], self.trajectory[frame], self.maps)
        return window


def simulated(size: int, spokes: int, frames: int) -> Scan:
    maps = birdcage_coils(COILS, (size, size)).astype(np.complex64)
    maps /= np.sqrt((np.abs(maps) ** 2).sum(0))
    trajectory = radial_trajectory(size, spokes, frames, "tiny_half").reshape(frames, -1, 2).astype(np.float32)
    truth = np.stack([moving_heart((size, size), 40.0 * t) for t in range(frames)]).astype(np.complex64)
    kspace = encode(maps, trajectory).forward(truth).astype(np.complex64)
    return Scan(kspace + 0.02 * random_complex(kspace.shape).astype(np.complex64), trajectory, maps, truth)


@pytest.fixture(scope="module")
def scan() -> Scan:
    """Undersampled threefold."""
    return simulated(SIZE, SPOKES, FRAMES)


@pytest.fixture(scope="module")
def dense() -> Scan:
    """So well sampled that solvers reach the minimum."""
    return simulated(24, 40, 5)


def misfit(scan: Scan, images: np.ndarray) -> float:
    return float(np.linalg.norm(encode(scan.maps, scan.trajectory).forward(images) - scan.kspace) ** 2 / 2)


def test_all_frames_at_once_minimise_what_another_solver_does(dense: Scan) -> None:
    """ADMM on the same problem: other steps, another split."""
    encoding = encode(dense.maps, dense.trajectory)
    first = encoding.operators[0].adjoint(dense.kspace[0])  # type: ignore[attr-defined]
    functional = TotalVariation(0.02 * float(np.abs(first).max()), (-3,))
    expected = compressed_sensing(encoding, dense.kspace, functional, 30, "admm")
    found = dense.window(partial(temporal_variation, weight=0.02)).solve(60)
    alone = dense.window(partial(temporal_variation, weight=0.0)).solve(60)
    values = [misfit(dense, images) + functional(images) for images in (found, expected, alone)]
    assert values[0] < 1.01 * values[1]
    assert values[1] < 0.5 * values[2]
    assert relative_error(found, expected) < 0.06 < relative_error(alone, expected)


def test_two_parts_are_those_of_low_rank_plus_sparse(dense: Scan) -> None:
    """The same weights, which the thin function takes as fractions of what all frames show."""
    rhs = encode(dense.maps, dense.trajectory).adjoint(dense.kspace)
    spectral = np.linalg.norm(rhs.reshape(len(rhs), -1), 2) / np.linalg.norm(rhs[0])
    peak = np.abs(np.fft.fft(rhs, axis=0, norm="ortho")).max() / np.abs(rhs[0]).max()
    parts = reference_low_rank_plus_sparse(dense.kspace, dense.maps, dense.trajectory, low_rank=0.01, sparse=0.01, iterations=120)
    found = dense.window(partial(low_rank_plus_sparse, weight=0.01 * spectral, sparse=0.01 * peak)).solve(120)
    assert relative_error(found, parts[0] + parts[1]) < 0.03
    assert relative_error(found, dense.window(low_rank_plus_sparse).solve(120)) > 0.03


@pytest.mark.parametrize("name", PRIORS)
def test_a_few_iterations_a_frame_beat_each_frame_alone(scan: Scan, name: str) -> None:
    window = MovingWindow(PRIORS[name], 5)
    newest = []
    for frame in range(FRAMES):
        window.add(scan.kspace[frame], scan.trajectory[frame], scan.maps)
        images = window.solve(4)
        assert len(images) == len(window) == min(frame + 1, 5)
        newest.append(relative_error(images[-1], scan.truth[frame]))
    alone = [relative_error(cg_sense(y, t, scan.maps, 10, 0, 0.01), x) for y, t, x in zip(*scan[:2], scan.truth, strict=True)]
    assert np.median(newest[3:]) < 0.75 * np.median(alone[3:])


@pytest.mark.parametrize("name", PRIORS)
def test_the_same_frames_give_the_same_bits(scan: Scan, name: str) -> None:
    first, second = (scan.window(PRIORS[name], 6).solve(3) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_the_window_goes_on_from_its_last_images(scan: Scan) -> None:
    """Each solve of the same frames lowers what is minimised further."""
    encoding = encode(scan.maps, scan.trajectory)
    first = encoding.operators[0].adjoint(scan.kspace[0])  # type: ignore[attr-defined]
    functional = TotalVariation(0.006 * float(np.abs(first).max()), (-3,))
    window = scan.window(PRIORS["grasp"])
    values = []
    for _ in range(6):
        images = window.solve(3)
        values.append(np.linalg.norm(encoding.forward(images) - scan.kspace) ** 2 / 2 + functional(images))
    assert (np.diff(values) < 0).all()
    assert values[-1] < 0.9 * values[0]


def test_weights_are_fixed_by_the_first_frame_that_shows_something(scan: Scan) -> None:
    seen: list[float] = []

    def prior(first: Array) -> SeriesPrior:
        seen.append(float(np.abs(first).max()))
        return temporal_variation(first)

    window = MovingWindow(prior, 3)
    for factor in (0, 0, 2, 1, 50):
        window.add(np.float32(factor) * scan.kspace[0], scan.trajectory[0], scan.maps)
        assert np.isfinite(window.solve(2)).all()
    assert seen[:2] == [0, 0]
    assert len(seen) == 3
    assert seen[2] > 0


def test_other_maps_turn_the_images_along(scan: Scan) -> None:
    """Maps with another phase in every pixel explain the same data by images of the opposite phase."""
    turn = np.exp(1j * np.linspace(0, 5, SIZE)).astype(np.complex64)
    same, turned = MovingWindow(PRIORS["grasp"], 4), MovingWindow(PRIORS["grasp"], 4)
    for frame in range(5):
        same.add(scan.kspace[frame], scan.trajectory[frame], scan.maps)
        turned.add(scan.kspace[frame], scan.trajectory[frame], scan.maps if frame < 4 else scan.maps * turn)
        expected, found = same.solve(3), turned.solve(3)
    assert relative_error(found, expected * turn.conj()) < 2e-3
    assert relative_error(found, expected) > 0.5


def test_frames_of_many_more_readouts_do_not_make_the_step_too_long(scan: Scan) -> None:
    """Eight times the samples have eight times the largest eigenvalue."""
    window = MovingWindow(PRIORS["grasp"], 4)
    window.add(scan.kspace[0], scan.trajectory[0], scan.maps)
    window.add(np.concatenate(scan.kspace[:8], -1), np.concatenate(scan.trajectory[:8]), scan.maps)
    images = window.solve(100)
    assert relative_error(images[1], scan.truth[:8].mean(0)) < 0.2


def test_density_weights_and_damping_are_those_of_cg_sense(scan: Scan) -> None:
    weights = np.linspace(0.5, 2, scan.trajectory.shape[1]).astype(np.float32)
    window = MovingWindow(partial(temporal_variation, weight=0.0), damping=0.5)
    window.add(scan.kspace[0], scan.trajectory[0], scan.maps, weights)
    expected = cg_sense(scan.kspace[0], scan.trajectory[0], scan.maps, 60, 0.0, 0.5, weights)
    assert relative_error(window.solve(200)[0], expected) < 5e-3


def test_a_cleared_window_begins_anew(scan: Scan) -> None:
    window = scan.window(PRIORS["grasp"], 4)
    window.solve(3)
    window.clear()
    assert len(window) == 0
    with pytest.raises(ValueError, match="window is empty"):
        window.solve(1)
    fresh = MovingWindow(PRIORS["grasp"], 4)
    for one in (window, fresh):
        one.add(scan.kspace[0], scan.trajectory[0], scan.maps)
    np.testing.assert_array_equal(window.solve(3), fresh.solve(3))


@pytest.mark.parametrize("settings", [{"size": 0}, {"damping": -1.0}, {"damping": float("nan")}])
def test_impossible_windows_are_refused(settings: dict) -> None:
    with pytest.raises(ValueError, match="size of at least 1 and a damping of at least 0"):
        MovingWindow(temporal_variation, **settings)


def test_power_iteration_goes_on_where_it_ended() -> None:
    values = np.array([1.0, 0.99, 0.5, 0.1])
    start = random_like(np.zeros(4))
    norm, vector = dominant(lambda x: values * x, start, 200)
    assert norm == power_iteration(lambda x: values * x, np.zeros(4), 200)
    assert dominant(lambda x: values * x, vector, 200)[0] == power_iteration(lambda x: values * x, np.zeros(4), 400)
    assert dominant(lambda x: 0 * x, start, 3)[0] == 0
