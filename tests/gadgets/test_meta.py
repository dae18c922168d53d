"""Image attributes in both dialects."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gadgets.items import meta_from_xml, meta_to_xml
from gadgets.layout import ACQUISITION_HEADER, SAMPLING_DESCRIPTION, blank
from gadgets.meta import PAIRS, describe, number, put, record_scaling
from tests.gadgets.readouts import make_header


def test_both_dialects_say_the_same():
    meta = describe(
        make_header(),
        role="T1",
        comment=["T1", "x10"],
        series_description="_T1",
        window_center=1300,
        window_width=1300.5,
        color_map="a.pal",
    )
    for names in PAIRS.values():
        assert len({str(meta.get(name)) for name in names}) == 1, names
    assert meta["GADGETRON_DataRole"] == "T1"
    assert meta["ImageComment"] == ["T1", "x10"]
    assert meta["WindowWidth"] == "1300.5"
    assert (meta["measurementID"], meta["protocolName"], meta["patient_position"]) == ("m1", "gre", "HFS")


def test_geometry_sampling_and_echo_time():
    acquisition, sampling = blank(ACQUISITION_HEADER), blank(SAMPLING_DESCRIPTION)
    acquisition["position"], acquisition["read_dir"], acquisition["phase_dir"] = (1.5, -2, 0.1), (1, 0, 0), (0, 1, 0)
    acquisition["idx"]["contrast"] = 1
    sampling["recon_FOV"], sampling["encoded_matrix"] = (256, 192, 5), (128, 96, 1)
    sampling["sampling_limits"]["min"], sampling["sampling_limits"]["center"], sampling["sampling_limits"]["max"] = 1, 2, 3
    meta = describe(make_header(te=[2.3, 4.6]), acquisition_header=acquisition, sampling=sampling)
    assert meta["PatientPosition"] == ["1.5", "-2", "0.100000001"]
    assert meta["ImageRowDir"] == meta["read_dir"] == ["1", "0", "0"]
    assert meta["ImageColumnDir"] == ["0", "1", "0"]
    assert meta["recon_FOV"] == ["256", "192", "5"]
    assert meta["encoded_matrix"] == ["128", "96", "1"]
    assert meta["sampling_limits_E1"] == ["1", "2", "3"]
    assert meta["EchoTime"] == meta["GADGETRON_TE"] == "4.6"
    assert meta_from_xml(meta_to_xml(meta)) == meta


def test_what_is_unknown_is_left_out():
    meta = describe(make_header(), custom=np.float32(0.5), nothing="", echo_time=3)
    assert meta["custom"] == "0.5"
    assert "nothing" not in meta
    assert "ImageComment" not in meta
    assert (meta["EchoTime"], meta["GADGETRON_TE"]) == ("3", "3")


scalings = st.lists(st.tuples(st.floats(0.01, 100), st.floats(-100, 100)), min_size=1, max_size=4)


@given(scalings, st.floats(-10, 10))
def test_scaling_can_be_undone(steps, value):
    meta = {}
    put(meta, "window_center", value)
    pixel = value
    for factor, offset in steps:
        pixel = factor * pixel + offset
        record_scaling(meta, factor, offset)
    tolerance = 1e-6 * (abs(pixel) + sum(abs(offset) for _, offset in steps) + 1) / number(meta, "GADGETRON_ScaleRatio", 0)
    assert number(meta, "RescaleSlope", 0) * pixel + number(meta, "RescaleIntercept", 0) == pytest.approx(
        value, rel=1e-5, abs=1e2 * tolerance
    )
    assert number(meta, "WindowCenter", 0) == pytest.approx(pixel, rel=1e-5, abs=1e-4)


def test_numbers_that_are_none():
    assert number({"a": "x", "b": [], "c": ["2", "3"]}, "a", 5.0) == 5.0
    assert number({"b": []}, "b", 6.0) == 6.0
    assert number({"c": ["2", "3"]}, "c", 7.0) == 2.0
