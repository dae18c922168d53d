"""Spiral design: the gradient system's limits, the distance between turns, and parity with TensorFlow MRI."""

from __future__ import annotations

import ast
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recon.spiral import SpiralDesign, spiral_arm, spiral_trajectory

SMALL = {"base_resolution": 128, "spiral_arms": 64, "field_of_view": 300, "max_grad_ampl": 20, "min_rise_time": 10, "dwell_time": 2.6}
VARIABLE = {
    **{"base_resolution": 192, "spiral_arms": 24, "field_of_view": 350, "max_grad_ampl": 22, "min_rise_time": 10, "dwell_time": 1.6},
    **{"vd_inner_cutoff": 0.15, "vd_outer_cutoff": 0.6, "vd_outer_density": 0.3},
}
# The protocol of HyperSLICE (real-time cardiac).
CARDIAC = {
    **{"base_resolution": 240, "spiral_arms": 16, "field_of_view": 400, "max_grad_ampl": 22, "min_rise_time": 10, "dwell_time": 1.4},
    **{"gradient_delay": 0.56, "vd_inner_cutoff": 0.15, "vd_outer_cutoff": 0.55966, "vd_outer_density": 0.07, "vd_type": "hanning"},
}


@pytest.mark.parametrize("name", ["a", "sodium", "vd_linear", "vd_quadratic", "vd_hanning"])
def test_equals_the_oracle(oracle: Any, name: str) -> None:
    expected = oracle[f"spiral_{name}"]
    ours = spiral_trajectory(**ast.literal_eval(str(oracle[f"spiral_{name}_params"])), views=3)
    assert ours.shape == expected.shape
    assert np.abs(ours - expected).max() < 1e-5


def test_equals_the_cardiac_oracle(oracle: Any) -> None:
    ours = spiral_trajectory(**CARDIAC, views=15, phases=12)  # type: ignore[arg-type]
    # It leaves the first sample out.
    assert np.abs(ours[0, :, 1:] - oracle["hyperslice_trajectory_phase0"]).max() < 1e-5
    assert np.abs(ours[1, 0, 1:] - oracle["hyperslice_trajectory_phase1_arm0"]).max() < 1e-5


def test_equals_samples_known_from_tensorflow_mri() -> None:
    arm = spiral_trajectory(**SMALL)[0]  # type: ignore[arg-type]
    assert arm.shape == (494, 2)
    known = [[0, 0], [4.48288e-4, 2.6281e-6], [-0.0900579, 0.8345395], [-0.4168492, -2.2255323], [3.1275332, -0.0954085]]
    assert arm[[0, 1, 100, 300, 493]] == pytest.approx(np.array(known), abs=2e-6)
    assert spiral_arm(SpiralDesign(**CARDIAC)).readout_us == 1640  # type: ignore[arg-type]


designs = st.builds(
    SpiralDesign,
    base_resolution=st.integers(96, 192),
    spiral_arms=st.integers(4, 24),
    field_of_view=st.floats(180, 400),
    max_grad_ampl=st.just(40.0),
    min_rise_time=st.floats(5, 20),
    dwell_time=st.floats(1.8, 5),
    vd_inner_cutoff=st.floats(0.1, 0.4),
    vd_outer_cutoff=st.floats(0.5, 0.9),
    vd_outer_density=st.floats(0.2, 1.5),
    vd_type=st.sampled_from(["linear", "quadratic", "hanning"]),
)


@settings(max_examples=25, deadline=None)
@given(design=designs)
def test_limits_are_kept_and_turns_have_their_distance(design: SpiralDesign) -> None:
    arm = spiral_arm(design)
    assert np.linalg.norm(arm.gradient, axis=1).max() <= min(design.amplitude, design.max_grad_ampl) * (1 + 1e-9)
    slew = np.linalg.norm(np.diff(arm.gradient, axis=0), axis=1) / 10  # mT/m per us
    assert slew.max() <= 1 / design.min_rise_time * (1 + 1e-9)
    assert not arm.gradient[0].any()
    assert np.abs(arm.gradient[-1]).max() < 1e-12

    radius = np.linalg.norm(arm.trajectory, axis=1)
    edge = np.pi * (1 - 1 / design.base_resolution)
    last = int((arm.readout_us - 10) / design.dwell_time)
    assert radius[last] == pytest.approx(edge, abs=20 * design.amplitude * design.radians_per_mt_m_us)  # two raster times
    angle = np.unwrap(np.arctan2(arm.trajectory[:, 1], arm.trajectory[:, 0]))
    nyquist = 2 * np.pi * design.spiral_arms / design.base_resolution
    # Beyond the start, where the path has no angle yet, and away from the corners of the density's course.
    for low, high in [(0.05, design.vd_inner_cutoff), (design.vd_outer_cutoff, 0.97)]:
        inside = np.flatnonzero((radius > (low + 0.02) * np.pi) & (radius < (high - 0.02) * np.pi))
        turns = np.ptp(angle[inside]) / (2 * np.pi)
        if turns < 0.5:
            continue
        distance = np.ptp(radius[inside]) / turns
        assert distance == pytest.approx(nyquist * design.spacing((low + high) / 2), rel=0.04)


def test_full_speed_is_one_pixel_of_k_space_per_raw_dwell_time() -> None:
    design = SpiralDesign(**{**SMALL, "spiral_arms": 16})  # type: ignore[arg-type]
    step = np.linalg.norm(np.diff(spiral_arm(design).trajectory, axis=0), axis=1)
    assert step.max() * design.readout_os == pytest.approx(2 * np.pi / 128, rel=1e-3)


@pytest.mark.parametrize("samples", [1, 3])
def test_a_delay_of_whole_samples_shifts_the_trajectory(samples: int) -> None:
    plain = spiral_trajectory(**SMALL)[0]  # type: ignore[arg-type]
    late = spiral_trajectory(**SMALL, gradient_delay=2.6 * samples)[0]  # type: ignore[arg-type]
    assert late[samples:] == pytest.approx(plain[:-samples], abs=1e-6)
    assert not late[:samples].any()


@pytest.mark.parametrize("readout_os", [1.0, 1.5, 3.0])
def test_any_oversampling_samples_the_same_path(readout_os: float) -> None:
    plain = spiral_arm(SpiralDesign(**SMALL))  # type: ignore[arg-type]
    other = spiral_arm(SpiralDesign(**{**SMALL, "readout_os": readout_os, "dwell_time": 5.2 / readout_os}))  # type: ignore[arg-type]
    assert other.gradient == pytest.approx(plain.gradient)
    assert len(other.trajectory) == pytest.approx(len(plain.trajectory) * readout_os / 2, abs=1)
    coarse = np.arange(0, 400, 10)
    times = coarse * 2.6 / (5.2 / readout_os)
    whole = np.isclose(times, np.round(times))
    assert other.trajectory[np.round(times[whole]).astype(int)] == pytest.approx(plain.trajectory[coarse[whole]], abs=1e-9)


def test_arms_are_rotations_of_one() -> None:
    arms = spiral_trajectory(**SMALL, views=4, ordering="golden")  # type: ignore[arg-type]
    assert arms.dtype == np.float32
    complex_arms = arms[..., 0] + 1j * arms[..., 1]
    golden = 4 * np.pi / (1 + 5**0.5)
    assert complex_arms == pytest.approx(complex_arms[0] * np.exp(1j * golden * np.arange(4))[:, None], abs=2e-6)


def test_a_sparser_edge_shortens_the_readout() -> None:
    uniform = SpiralDesign(**{**VARIABLE, "vd_outer_density": 1.0})  # type: ignore[arg-type]
    assert spiral_arm(SpiralDesign(**VARIABLE)).readout_us < 0.6 * spiral_arm(uniform).readout_us  # type: ignore[arg-type]


def test_designs_are_kept_and_cannot_be_written_to() -> None:
    arm = spiral_arm(SpiralDesign(**SMALL))  # type: ignore[arg-type]
    assert spiral_arm(SpiralDesign(**SMALL)) is arm  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="read-only"):
        arm.trajectory[0] = 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dwell_time": 0.5}, "dwell_time of at least"),
        ({"dwell_time": 0}, "dwell_time must be positive"),
        ({"spiral_arms": -1}, "spiral_arms"),
        ({"readout_os": 0.4}, "readout_os"),
        ({"field_of_view": float("nan")}, "field_of_view"),
        ({"gradient_delay": float("inf")}, "gradient_delay"),
        ({"min_rise_time": 0.05}, "larger min_rise_time"),
        ({"vd_inner_cutoff": 0.5, "vd_outer_cutoff": 0.2}, "vd_inner_cutoff <= vd_outer_cutoff"),
        ({"vd_type": "cubic"}, "hanning"),
        ({"ordering": "silver"}, "golden_half"),
        ({"spiral_arms": 1, "dwell_time": 40, "base_resolution": 512}, "longer than 200 ms"),
    ],
)
def test_impossible_designs_are_explained(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spiral_trajectory(**{**SMALL, **change})
