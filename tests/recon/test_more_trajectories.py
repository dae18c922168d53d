"""Koosh ball, stacks, rosettes, echo-planar lines; views flattened and expanded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from recon.epi import EpiReadout, epi_trajectory, resampling_matrix
from recon.fourier import fftc
from recon.koosh_ball import koosh_ball_trajectory, sphere_spiral
from recon.rosette import rosette_trajectory
from recon.stack import stack, stack_of_stars
from recon.trajectory import radial_trajectory
from recon.views import expand_samples, expand_trajectory, flatten_samples, flatten_trajectory
from tests.recon.conftest import random_complex, relative_error

GOLDEN = np.pi * (5**0.5 - 1)


# -- koosh ball -----------------------------------------------------------------------------------------------------------


def test_koosh_ball_equals_the_oracle(oracle: Any) -> None:
    assert np.abs(koosh_ball_trajectory(32, 50) - oracle["radial_sphere_archimedean_base32_views50"]).max() < 1e-5


@pytest.mark.parametrize("angle_range", ["full", "half"])
def test_koosh_ball_covers_its_part_of_the_sphere_evenly(angle_range: Any) -> None:
    polar, azimuth = sphere_spiral(2000, angle_range=angle_range)
    directions = np.stack([np.cos(polar), np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth)], -1)
    if angle_range == "half":
        assert (directions[:, 0] > -1e-3).all() or (directions[:, 0] < 1e-3).all()
        directions = np.concatenate([directions, -directions])
    # Even: no mean direction, the same second moment along all axes, and a nearest neighbour at about the same distance.
    assert np.abs(directions.mean(0)).max() < 2e-3
    assert directions.T @ directions / len(directions) == pytest.approx(np.eye(3) / 3, abs=2e-3)
    cosines = directions @ directions.T
    np.fill_diagonal(cosines, -1)
    nearest = np.arccos(cosines.max(1))
    assert np.percentile(nearest, 2) > 0.7 * np.median(nearest)
    assert np.percentile(nearest, 98) < 1.3 * np.median(nearest)


def test_koosh_ball_runs_through_the_centre_and_interleaves_phases() -> None:
    one = koosh_ball_trajectory(16, 60)
    assert one.shape == (60, 32, 3)
    assert one.dtype == np.float32
    assert not one[:, 16].any()
    assert np.linalg.norm(one[:, 0], axis=-1) == pytest.approx(np.pi, rel=1e-6)
    phases = koosh_ball_trajectory(16, 15, 4)
    assert np.array_equal(phases, one.reshape(15, 4, 32, 3).swapaxes(0, 1))
    assert np.array_equal(radial_trajectory(16, 15, 4, "sphere_archimedean"), phases)


@pytest.mark.parametrize(
    ("arguments", "message"), [((0, 4), "sample"), ((4, 0), "views"), ((4, 4, 0), "phases"), ((4, 4, 1, "third"), "half")]
)
def test_koosh_ball_refuses(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        koosh_ball_trajectory(*arguments)


# -- stacks ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("partitions", [1, 5, 6])
def test_partitions_are_cartesian_and_turn(partitions: int) -> None:
    stars = stack_of_stars(8, 7, partitions, rotation=0.3)
    plane = radial_trajectory(8, 7, ordering="golden")
    assert stars.shape == (partitions, 7, 16, 3)
    assert stars.dtype == np.float32
    kz = (np.arange(partitions) - partitions // 2) * 2 * np.pi / partitions
    assert stars[..., 0] == pytest.approx(np.broadcast_to(kz[:, None, None], stars.shape[:-1]), abs=1e-6)
    turned = (plane[..., 0] + 1j * plane[..., 1]) * np.exp(0.3j * np.arange(partitions))[:, None, None]
    assert stars[..., 1] + 1j * stars[..., 2] == pytest.approx(turned, abs=1e-6)


def test_phases_stay_in_front_of_partitions() -> None:
    stars = stack_of_stars(8, 5, 3, phases=2)
    assert stars.shape == (2, 3, 5, 16, 3)
    assert np.array_equal(stars[:, 1, ..., 1:], radial_trajectory(8, 5, 2, "golden"))


@pytest.mark.parametrize(
    ("trajectory", "partitions", "message"), [(np.zeros((4, 2)), 3, "view, sample"), (np.zeros((2, 4, 2)), 0, "partitions")]
)
def test_stack_refuses(trajectory: np.ndarray, partitions: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stack(trajectory, partitions)


# -- rosette --------------------------------------------------------------------------------------------------------------


def test_rosette_crosses_the_centre_and_turns() -> None:
    rosette = rosette_trajectory(1200, 5, 3, views=2)
    radius = np.linalg.norm(rosette, axis=-1)
    assert radius[0, ::120] == pytest.approx(0, abs=1e-5)  # twice an oscillation
    assert radius[0, 60::120] == pytest.approx(np.pi, rel=1e-6)  # petals end at the edge of k-space
    angle = np.arctan2(rosette[0, 60::240, 1], rosette[0, 60::240, 0])
    assert np.exp(1j * np.diff(angle)) == pytest.approx(np.exp(2j * np.pi * 3 / 5), abs=1e-5)
    assert rosette[1] == pytest.approx(-rosette[0], abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"), [((20, 5, 3), "at least 31"), ((20, 0, 1), "oscillations"), ((20, 1, np.nan), "rotations")]
)
def test_rosette_refuses(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rosette_trajectory(*arguments)


# -- EPI ------------------------------------------------------------------------------------------------------------------

RAMPED = EpiReadout(samples=160, dwell_time=4, ramp_up_time=150, flat_top_time=440, ramp_down_time=100, acquisition_delay=30)


def test_positions_are_the_integral_of_the_gradient() -> None:
    times = np.linspace(0, 690, 690_001)
    gradient = np.interp(times, [0, 150, 590, 690], [0, 1, 1, 0])
    integral = np.concatenate([[0], np.cumsum((gradient[1:] + gradient[:-1]) / 2) * (times[1] - times[0])])
    at = np.interp(30 + 4 * (np.arange(160) + 0.5), times, integral)
    covered = np.interp(670, times, integral) - np.interp(30, times, integral)
    assert RAMPED.positions() == pytest.approx((at - integral[-1] / 2) * 2 * np.pi / covered, abs=1e-6)


def test_without_ramps_the_line_is_cartesian() -> None:
    plain = EpiReadout(64, 5, 320, sample_at=0)
    assert plain.positions() == pytest.approx((np.arange(64) - 32) * 2 * np.pi / 64)
    centred = EpiReadout(64, 5, 320).positions()
    assert centred == pytest.approx(-centred[::-1])


def test_lines_alternate_and_shots_interleave() -> None:
    shots = epi_trajectory(RAMPED, lines=12, shots=2, acceleration=2)
    assert shots.shape == (2, 3, 160, 2)
    ky = np.round(shots[:, :, 0, 0] / (2 * np.pi / 12)).astype(int) + 6
    assert ky.tolist() == [[0, 4, 8], [2, 6, 10]]
    assert shots[:, 0, :, 1] == pytest.approx(np.broadcast_to(RAMPED.positions(), (2, 160)), abs=1e-6)
    assert np.array_equal(shots[:, 1, :, 1], -shots[:, 0, :, 1])
    partial = epi_trajectory(RAMPED, lines=12, first_line=3)
    assert partial[0, 0, 0, 0] == pytest.approx(-np.pi / 2)
    assert partial.shape[1] == 9


@pytest.mark.parametrize("reverse", [False, True])
def test_resampling_restores_the_even_line(reverse: bool) -> None:
    size = 64
    positions = RAMPED.positions() * (-1 if reverse else 1)
    image = random_complex((3, size), dtype="complex128")
    pixels = np.arange(size) - size // 2
    line = image @ np.exp(-1j * pixels[:, None] * positions) / np.sqrt(size)
    matrix = resampling_matrix(positions, size)
    assert matrix.shape == (size, 160)
    assert relative_error(fftc(image, -1), line @ matrix.T) < 1e-9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dwell_time": 5}, "do not fit"),
        ({"samples": 0}, "samples"),
        ({"ramp_up_time": -1}, "trapezoid"),
        ({"sample_at": 2}, "sample_at"),
        ({"acquisition_delay": -5}, "acquisition_delay"),
    ],
)
def test_impossible_readouts_are_explained(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EpiReadout(**{"samples": 160, "dwell_time": 4, "ramp_up_time": 150, "flat_top_time": 440, "ramp_down_time": 100, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"), [({"shots": 5}, "evenly"), ({"first_line": 12}, "first_line"), ({"acceleration": 0}, "accel")]
)
def test_impossible_trains_are_explained(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        epi_trajectory(RAMPED, lines=12, **arguments)


@pytest.mark.parametrize("positions", [np.zeros(3), np.full(80, np.nan), np.zeros((2, 80))])
def test_resampling_refuses(positions: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"samples|positions"):
        resampling_matrix(positions, 64)


# -- views ----------------------------------------------------------------------------------------------------------------


def test_views_are_flattened_and_expanded_in_order(tf: Any) -> None:
    trajectory = np.arange(3 * 4 * 5 * 2.0).reshape(3, 4, 5, 2)
    flat = flatten_trajectory(trajectory)
    assert flat.shape == (3, 20, 2)
    assert np.array_equal(flat[:, 7], trajectory[:, 1, 2])
    assert np.array_equal(expand_trajectory(flat, 5), trajectory)
    values = trajectory[..., 0]
    assert np.array_equal(flatten_samples(values), flat[..., 0])
    assert np.array_equal(expand_samples(flatten_samples(values), 5), values)

    tensor = tf.constant(trajectory)
    assert np.array_equal(flatten_trajectory(tensor).numpy(), flat)
    unknown = tf.function(lambda t: expand_samples(flatten_samples(t), 5), input_signature=[tf.TensorSpec([3, None, 5], tf.float64)])
    assert np.array_equal(unknown(tf.constant(values)).numpy(), values)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: flatten_trajectory(np.zeros((4, 2))), "view, sample, axis"),
        (lambda: flatten_samples(np.zeros(4)), "view, sample"),
        (lambda: expand_trajectory(np.zeros((10, 2)), 4), "10 samples"),
        (lambda: expand_samples(np.zeros(10), 0), "0 samples"),
        (lambda: expand_trajectory(np.zeros(2), 1), "sample, axis"),
        (lambda: expand_samples(np.zeros(()), 1), "single number"),
    ],
)
def test_views_that_do_not_fit_are_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
