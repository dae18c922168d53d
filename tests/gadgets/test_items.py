"""Items agree with ismrmrd's classes, byte for byte."""

from __future__ import annotations

import ctypes

import ismrmrd
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gadgets.items import Acquisition, AcquisitionBucket, Image, ImageArray, Waveform, meta_from_xml, meta_to_xml
from gadgets.layout import ACQUISITION_HEADER, ELEMENT_TYPES, IMAGE_HEADER, WAVEFORM_HEADER, Flag

NAMES = {ACQUISITION_HEADER: ismrmrd.AcquisitionHeader, IMAGE_HEADER: ismrmrd.ImageHeader, WAVEFORM_HEADER: ismrmrd.WaveformHeader}


@pytest.mark.parametrize("dtype", NAMES, ids=lambda dtype: NAMES[dtype].__name__)
def test_header_layout_is_ismrmrds(dtype: np.dtype) -> None:
    theirs = NAMES[dtype]
    assert dtype.itemsize == ctypes.sizeof(theirs)
    assert {name: dtype.fields[name][1] for name in dtype.names} == {name: getattr(theirs, name).offset for name, *_ in theirs._fields_}


def test_flags_are_ismrmrds() -> None:
    for flag in Flag:
        theirs = getattr(ismrmrd, f"ACQ_{flag.name}", None)
        assert theirs is None or theirs == flag.value
    assert Flag.IS_NOISE_MEASUREMENT == ismrmrd.ACQ_IS_NOISE_MEASUREMENT


@given(st.integers(1, 4), st.integers(1, 9), st.integers(0, 3), st.sets(st.sampled_from(list(Flag))), st.integers(0, 65535))
def test_acquisition_round_trip_through_ismrmrd(channels: int, samples: int, dimensions: int, flags: set[Flag], line: int) -> None:
    rng = np.random.default_rng(line)
    data = (rng.standard_normal((channels, samples)) + 1j * rng.standard_normal((channels, samples))).astype(np.complex64)
    trajectory = rng.standard_normal((samples, dimensions)).astype(np.float32) if dimensions else None
    ours = Acquisition(None, data, trajectory)
    for flag in flags:
        ours.set_flag(flag)
    ours.idx["kspace_encode_step_1"] = line
    theirs = ours.to_ismrmrd()
    assert all(theirs.is_flag_set(flag) for flag in flags)
    assert theirs.idx.kspace_encode_step_1 == line
    back = Acquisition.from_ismrmrd(theirs)
    assert back.header == ours.header
    np.testing.assert_array_equal(back.data, data)
    np.testing.assert_array_equal(back.traj, ours.traj)


def test_with_data_leaves_the_received_header_alone() -> None:
    received = Acquisition(None, np.zeros((2, 8), np.complex64))
    cropped = received.with_data(received.data[:, 2:6])
    assert (received.number_of_samples, cropped.number_of_samples) == (8, 4)


@pytest.mark.parametrize("dtype", ELEMENT_TYPES.values(), ids=str)
def test_image_round_trip_through_ismrmrd(dtype: np.dtype) -> None:
    data = np.arange(24).reshape(2, 1, 3, 4).astype(dtype)
    image = Image(None, data, {"GADGETRON_ImageComment": ["a", "b<c"], "x": "1"})
    if dtype == np.int32:  # ismrmrd reads type 4 as the platform's int; its own class cannot hold it
        assert image.data_type == 4
        return
    back = Image.from_ismrmrd(image.to_ismrmrd())
    assert back.data.dtype == dtype
    np.testing.assert_array_equal(back.data, data)
    assert back.meta == image.meta
    assert list(back.header["matrix_size"]) == [4, 3, 1]


def test_an_image_that_only_passes_keeps_its_attribute_bytes() -> None:
    xml = b'<?xml version="1.0"?>\n<ismrmrdMeta>\n <meta><name>k</name><value>v</value></meta></ismrmrdMeta>\n'
    image = Image(None, np.zeros((1, 1, 1, 1), np.float32), xml)
    assert image.attribute_string == xml
    image.meta["k"] = "w"
    assert meta_from_xml(image.attribute_string) == {"k": "w"}


@given(
    st.dictionaries(
        st.from_regex(r"[A-Za-z_][\w]{0,8}", fullmatch=True), st.lists(st.text("aB <&>\"'é1", max_size=6), min_size=2, max_size=3)
    )
)
def test_meta_round_trip(meta: dict[str, list[str]]) -> None:
    assert meta_from_xml(meta_to_xml(meta) + b"\0") == meta


@pytest.mark.parametrize("bad", [np.zeros((2, 2), np.float32), np.zeros((1, 1, 2, 2), np.int64), np.zeros((1, 1, 2, 2), bool)])
def test_image_refuses_what_ismrmrd_cannot_carry(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="Image"):
        Image(None, bad)


@given(hnp.arrays(np.uint32, st.tuples(st.integers(1, 4), st.integers(1, 20))))
def test_waveform_round_trip(data: np.ndarray) -> None:
    back = Waveform.from_ismrmrd(Waveform(None, data).to_ismrmrd())
    np.testing.assert_array_equal(back.data, data)
    assert (back.channels, back.number_of_samples) == data.shape


def test_bucket_statistics_cover_every_encoding_space() -> None:
    readouts = [Acquisition(None, np.zeros((1, 2), np.complex64)) for _ in range(3)]
    for i, acquisition in enumerate(readouts):
        acquisition.idx["slice"] = i
        acquisition.encoding_space_ref = 2 * (i % 2)
    stats = AcquisitionBucket(readouts).datastats
    assert [stat.values["slice"] for stat in stats] == [{0, 2}, set(), {1}]


def test_image_array_checks_its_shapes() -> None:
    with pytest.raises(ValueError, match="LOC, S, N"):
        ImageArray(np.zeros((1, 1, 2, 1, 1, 4, 4), np.complex64), np.zeros((1, 1, 1), IMAGE_HEADER))
