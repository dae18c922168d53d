"""Radial trajectories and units of acquired ones."""

from __future__ import annotations

from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recon.trajectory import _sweep, from_acquisition_units, radial_angles, radial_trajectory, rotate, spoke

GOLDEN_HALF = np.deg2rad(111.24611797498108)


GOLDEN_ORDERINGS = ["golden", "golden_half", "tiny", "tiny_half", "sorted", "sorted_half"]


@pytest.mark.parametrize("phases", [None, 4])
def test_linear_equals_the_oracle(oracle: Any, phases: int | None) -> None:
    expected = oracle["radial_linear_base64_views34" + ("_phases4" if phases else "")]
    assert np.abs(radial_trajectory(64, 34, phases, "linear") - expected).max() < 1e-5


@pytest.mark.parametrize("phases", [None, 4])
@pytest.mark.parametrize("ordering", GOLDEN_ORDERINGS)
def test_golden_equals_the_oracle_but_for_its_single_precision(oracle: Any, ordering: Any, phases: int | None) -> None:
    """The oracle multiplies golden angles in single precision, and is off by 1.5e-4 rad/pixel after 136 views."""
    expected = oracle[f"radial_{ordering}_base64_views34" + ("_phases4" if phases else "")].reshape(-1, 128, 2)
    ours = radial_trajectory(64, 34, phases, ordering).reshape(-1, 128, 2)
    views, readout = 34 * (phases or 1), spoke(64)[:, None] * [1, 0]
    # Its arithmetic repeated gives its numbers: nothing else is different.
    repeated = _sorted(_single_precision_angles(ordering, views), ordering, phases or 1)
    assert np.abs(rotate(readout, repeated) - expected).max() < 2e-6
    # Ours are the exact ones, everywhere nearer than the oracle's, and equal to them as far as single precision reaches.
    exact = _sorted(_exact_angles(_unsorted(ordering), views), ordering, phases or 1)
    truth = rotate(readout, exact)
    assert np.abs(ours - truth).max() < 5e-7
    off = np.pi * np.abs(np.angle(np.exp(1j * (repeated - exact))))
    near = off < 9e-6
    assert near.sum() > 5
    assert np.abs(ours - expected)[near].max() < 1e-5
    farther = np.abs(expected - truth).max(axis=(1, 2))[~near]
    assert (farther > np.abs(ours - truth).max(axis=(1, 2))[~near]).all()


def _unsorted(ordering: str) -> Any:
    return ordering.replace("sorted", "golden")


def _sorted(angles: np.ndarray, ordering: str, phases: int) -> np.ndarray:
    """Angles in rad in the order of `ordering`."""
    of_phases = angles.reshape(phases, -1)
    if ordering == "sorted":
        return np.sort(of_phases, axis=1).ravel()
    if ordering == "sorted_half":
        return _sweep(np.mod(of_phases, np.pi)).ravel()
    return angles


def _single_precision_angles(ordering: str, views: int) -> np.ndarray:
    single = np.float32
    golden = single(2) / (single(1) + np.sqrt(single(5)))
    fraction = single(1) / (golden + single(7)) if "tiny" in ordering else golden
    step = fraction * single(np.pi if ordering.endswith("half") else 2 * np.pi)
    return np.mod(np.arange(views, dtype=single) * step, single(2 * np.pi)).astype(float)


def _exact_angles(ordering: str, views: int) -> np.ndarray:
    """Golden angles of 50 digits, rounded once."""
    with localcontext() as context:
        context.prec = 50
        pi = Decimal("3.14159265358979323846264338327950288419716939937511")
        golden = (1 + Decimal(5).sqrt()) / 2
        step = (pi if ordering.endswith("half") else 2 * pi) / (golden + (6 if "tiny" in ordering else 0))
        return np.array([float(n * step % (2 * pi)) for n in range(views)])


@pytest.mark.parametrize("ordering", ["golden", "golden_half", "tiny", "tiny_half"])
def test_golden_angles_are_exact(ordering: Any) -> None:
    assert np.abs(radial_angles(10_000, ordering=ordering) - _exact_angles(ordering, 10_000)).max() < 1e-10


def test_sorted_half_turns_on_from_phase_to_phase() -> None:
    angles = radial_angles(13, 5, "sorted_half")
    steps = np.mod(np.diff(angles.ravel()), 2 * np.pi)
    assert steps.max() < 3 * np.pi / 13
    golden = radial_angles(13, 5, "golden_half")
    # The same lines as the golden angles of every phase.
    assert np.sort(np.mod(2 * angles + 1e-9, 2 * np.pi)) == pytest.approx(np.sort(np.mod(2 * golden + 1e-9, 2 * np.pi)), abs=1e-9)


def test_golden_angles_are_those_of_the_literature() -> None:
    assert np.allclose(radial_angles(3, ordering="golden_half"), np.arange(3) * GOLDEN_HALF)
    assert np.rad2deg(radial_angles(2, ordering="tiny", tiny_number=7)[1]) == pytest.approx(47.2562, abs=1e-3)
    assert np.rad2deg(radial_angles(2, ordering="tiny_half", tiny_number=7)[1]) == pytest.approx(23.6281, abs=1e-3)


def test_golden_phases_continue_and_linear_phases_interleave() -> None:
    assert np.allclose(radial_angles(5, 3, "golden").ravel(), radial_angles(15, ordering="golden"))
    linear = radial_angles(6, 3, "linear", "half")
    assert np.allclose(np.sort(linear.ravel()), np.arange(18) * np.pi / 18)


def test_readout_runs_through_the_centre_along_rows_first() -> None:
    spokes = radial_trajectory(8, 2, angle_range="half", readout_os=1)
    assert np.allclose(spokes[0, :, 0], np.arange(-4, 4) * np.pi / 4)  # angle 0 runs along y, the first axis
    assert np.allclose(spokes[1, :, 1], np.arange(-4, 4) * np.pi / 4)
    assert np.allclose(spokes[:, 4], 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"ordering": "silver"}, "golden_half"), ({"angle_range": "third"}, "full"), ({"views": 0}, "views"), ({"tiny_number": 1}, "tiny")],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        radial_angles(**{"views": 4, **arguments})


@settings(max_examples=40, deadline=None)
@given(ny=st.integers(8, 512), nx=st.integers(8, 512), fraction=st.floats(0.2, 1))
def test_both_units_give_the_same_points(ny: int, nx: int, fraction: float) -> None:
    cycles = np.random.default_rng(0).uniform(-0.5, 0.5, (20, 2)) * fraction
    cycles[0] = [-0.5 * fraction, 0.5 * fraction]
    expected = 2 * np.pi * cycles[:, ::-1]
    assert np.allclose(from_acquisition_units(cycles, (ny, nx)), expected)
    per_field = cycles * [nx, ny]
    if np.abs(per_field).max() > 1:
        assert np.allclose(from_acquisition_units(per_field, (ny, nx)), expected)


def test_three_axes_are_reversed_and_precision_kept() -> None:
    k = np.array([[0.1, 0.2, 0.3]], np.float32)
    converted = from_acquisition_units(k, 64)
    assert converted.dtype == np.float32
    assert np.allclose(converted, 2 * np.pi * k[:, ::-1])


@pytest.mark.parametrize("faulty", [np.full((4, 2), np.nan), np.full((4, 2), 900.0), np.zeros((4, 4)), np.float32(1)])
def test_faulty_trajectories_are_refused(faulty: np.ndarray) -> None:
    with pytest.raises(ValueError, match="trajectory"):
        from_acquisition_units(faulty, (64, 64))
