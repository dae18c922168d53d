"""Sequence parameters by the names that signal models ask for, wherever the header has them."""

from __future__ import annotations

import pytest

from gadgets.header import Header, HeaderError
from gadgets.sequence_parameters import per_contrast, sequence_parameters
from tests.service.maps_scan import elements, header, users


def parameters(sequence: str = "", user: str = "") -> dict[str, object]:
    return sequence_parameters(Header(header(1, "cartesian", sequence, user)))


def test_elements_of_sequence_parameters() -> None:
    found = parameters(elements(TR=12.5, TE=[2, 4, 8], TI=30, flipAngle_deg=[5, 10], echo_spacing=4))
    assert found == {"TR": 12.5, "TE": [2, 4, 8], "TI": 30, "flip_angle": [5, 10], "echo_spacing": 4}


def test_numbered_user_parameters_are_lists_and_units_may_be_left_out() -> None:
    found = parameters(elements(TR=12, flipAngle_deg=2), users(FlipAngle_0_deg=2, FlipAngle_1_deg=5, FlipAngle_2_deg=9, TI_first_ms=14))
    assert found["flip_angle"] == [2, 5, 9]
    assert found["TI_first"] == found["TI_first_ms"] == 14


def test_a_list_with_a_gap_is_none() -> None:
    assert "FlipAngle" not in parameters("", users(FlipAngle_0_deg=2, FlipAngle_2_deg=9))


def test_diffusion() -> None:
    one = "<diffusion><gradientDirection><rl>{}</rl><ap>{}</ap><fh>{}</fh></gradientDirection><bvalue>{}</bvalue></diffusion>"
    found = parameters(one.format(1, 0, 0, 0) + one.format(0, 0.6, 0.8, 700))
    assert found["b_value"] == [0, 700]
    assert found["DWI_dir"] == [[1, 0, 0], [0, 0.6, 0.8]]


def test_pulses_of_a_spin_echo() -> None:
    found = parameters(elements(flipAngle_deg=[90, 160], sequence_type="TurboSpinEcho"))
    assert (found["excitation_angle"], found["refocusing_angle"]) == (90, 160)
    assert "refocusing_angle" not in parameters(elements(flipAngle_deg=[5, 10], sequence_type="Flash"))


def test_values_follow_the_counter_they_belong_to() -> None:
    contrasts = [(echo, 0, 0, repetition) for echo in range(3) for repetition in range(2)]
    found = per_contrast({"TE": [10, 20, 30], "TI": [1, 2], "TR": 5, "phases": [0, 1, 2, 3]}, contrasts)
    assert found == {"TE": [10, 10, 20, 20, 30, 30], "TI": [1, 2, 1, 2, 1, 2], "TR": 5, "phases": [0, 1, 2, 3]}


def test_text_where_a_number_belongs() -> None:
    with pytest.raises(HeaderError, match="sequenceParameters/TR"):
        parameters("<TR>fast</TR>")
