"""BucketToBuffer: where each readout lands, and the sampling description Gadgetron would write."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gadgets.base import Context, GadgetError
from gadgets.buffer import BucketToBuffer, empty_buffer
from gadgets.items import AcquisitionBucket, ReconData, Waveform
from gadgets.layout import Flag
from tests.gadgets.readouts import make_header, noise_like, readout, through

RNG = np.random.default_rng(4)
DATA = noise_like(RNG, 2, 8)
BOTH = {"kspace_encoding_step_1": (0, 7, 4), "kspace_encoding_step_2": (0, 0, 0)}


def line(number: int, flags=(), *, data=DATA, fields=None, **counters):
    return readout(data, flags, line=number, fields=fields, **counters)


def sort(items, header, ref=(), *, context=None, **properties) -> list[ReconData]:
    context = context or Context(header=header)
    return through(BucketToBuffer(**properties), [AcquisitionBucket(list(items), list(ref))], context)


def limits(sampling) -> list[tuple[int, int, int]]:
    return [tuple(int(entry[name]) for name in ("min", "center", "max")) for entry in sampling["sampling_limits"]]


def test_lines_and_headers_land_at_their_counters():
    items = [line(number, data=DATA * (number + 1)) for number in (6, 1, 3)]
    (out,) = sort(items, make_header((8, 8, 1), limits=BOTH))
    (bit,) = out.bits
    assert bit.ref is None
    assert bit.data.data.shape == (1, 1, 1, 2, 1, 8, 8)
    for number in range(8):
        expected = DATA * (number + 1) if number in (1, 3, 6) else 0 * DATA
        np.testing.assert_array_equal(bit.data.data[0, 0, 0, :, 0, number], expected)
        assert bool(bit.data.headers[0, 0, 0, 0, number]["number_of_samples"]) == (number in (1, 3, 6))
    assert bit.data.headers[0, 0, 0, 0, 6]["idx"]["kspace_encode_step_1"] == 6


def test_the_centre_of_the_limits_lands_in_the_middle():
    """Numbers of a real scan: 144 lines, the limits' centre at 54 (checked against Gadgetron's attributes for that scan)."""
    header = make_header(
        (384, 144, 1),
        (192, 144, 1),
        encoded_mm=(560, 210, 8),
        recon_mm=(280, 210, 8),
        limits={"kspace_encoding_step_1": (0, 105, 54), "kspace_encoding_step_2": (0, 0, 0)},
        calibration="embedded",
        acceleration=3,
    )
    data = noise_like(RNG, 2, 192)
    (out,) = sort([line(54, data=data)], header, [line(60, [Flag.IS_PARALLEL_CALIBRATION], data=data)])
    (bit,) = out.bits
    assert bit.ref is not None
    assert bit.data.headers["number_of_samples"].nonzero()[-1].tolist() == [72]
    assert bit.ref.headers["number_of_samples"].nonzero()[-1].tolist() == [78]
    for sampling in (bit.data.sampling, bit.ref.sampling):
        assert limits(sampling) == [(0, 96, 191), (18, 72, 123), (0, 0, 0)]
        assert sampling["encoded_matrix"].tolist() == sampling["recon_matrix"].tolist() == [192, 144, 1]
        assert sampling["encoded_FOV"].tolist() == sampling["recon_FOV"].tolist() == [280, 210, 8]


def test_three_dimensions_with_partial_fourier():
    header = make_header((8, 8, 6), limits={"kspace_encoding_step_1": (0, 5, 2), "kspace_encoding_step_2": (0, 4, 2)})
    (out,) = sort([line(5, partition=4)], header)
    assert np.argwhere(out.bits[0].data.headers["number_of_samples"]).tolist() == [[0, 0, 0, 5, 7]]
    assert limits(out.bits[0].data.sampling)[1:] == [(2, 4, 7), (1, 3, 5)]


def test_no_limits_in_the_header():
    (out,) = sort([line(7, partition=2)], make_header((8, 8, 4)))
    assert np.argwhere(out.bits[0].data.headers["number_of_samples"]).tolist() == [[0, 0, 0, 2, 7]]
    assert limits(out.bits[0].data.sampling) == [(0, 4, 7), (0, 4, 7), (0, 2, 3)]


@given(
    st.lists(st.tuples(st.integers(2, 4), st.integers(1, 2), st.integers(0, 2), st.integers(0, 7)), min_size=1, max_size=30, unique=True),
    st.sampled_from(["none", "repetition", "contrast"]),
    st.sampled_from(["none", "set"]),
    st.booleans(),
)
def test_every_readout_is_found_once(places, n_dimension, s_dimension, split):
    items = [
        readout(np.full((1, 4), n + 1), repetition=repetition, set=a_set, slice=number, line=e1)
        for n, (repetition, a_set, number, e1) in enumerate(places)
    ]
    out = sort(
        items,
        make_header((4, 8, 1), limits=BOTH),
        N_dimension=n_dimension,
        S_dimension=s_dimension,
        split_slices="true" if split else "false",
    )
    found = {}
    for recon_data in out:
        buffer = recon_data.bits[0].data
        for index in np.argwhere(buffer.headers["number_of_samples"]):
            header = buffer.headers[tuple(index)]["idx"]
            loc, s, n, e2, e1 = index
            value = buffer.data[loc, s, n, 0, e2, e1]
            assert (value == value[0]).all()
            key = (int(header["repetition"]), int(header["set"]), int(header["slice"]), int(header["kspace_encode_step_1"]))
            found[key] = int(value[0].real) - 1
            assert e1 == key[3]
    assert found == {place: n for n, place in enumerate(places)}


def test_keys_come_in_ascending_order():
    items = [line(0, repetition=r, slice=s, average=a) for r in (1, 0) for s in (2, 1) for a in (1, 0)]
    out = sort(items, make_header((8, 8, 1), limits=BOTH), split_slices="true")
    found = [recon_data.bits[0].data.headers[0, 0, 0, 0, 0]["idx"] for recon_data in out]
    keys = [(int(idx["average"]), int(idx["slice"]), int(idx["repetition"])) for idx in found]
    assert keys == sorted(keys)
    assert len(keys) == 8


def test_dimensions_start_at_the_lowest_counter_that_came():
    items = [line(0, repetition=r, segment=g, slice=s) for r in (5, 6) for g in (2, 4) for s in (3, 4)]
    (out,) = sort(items, make_header((8, 8, 1), limits=BOTH), N_dimension="repetition", S_dimension="segment")
    headers = out.bits[0].data.headers
    assert headers.shape == (2, 3, 2, 1, 8)
    assert headers[1, 2, 1, 0, 0]["idx"]["repetition"] == 6
    assert np.count_nonzero(headers["number_of_samples"]) == 8


def test_ignore_segment_joins_segments():
    items = [line(number, segment=number) for number in range(4)]
    assert len(sort(items, make_header((8, 8, 1), limits=BOTH))) == 4
    assert len(sort(items, make_header((8, 8, 1), limits=BOTH), ignore_segment="true")) == 1


def test_separate_calibration_has_its_own_array():
    header = make_header((8, 16, 1), limits={"kspace_encoding_step_1": (0, 15, 8)}, calibration="separate", acceleration=2)
    ref = [line(number, [Flag.IS_PARALLEL_CALIBRATION]) for number in range(5, 11)]
    (out,) = sort([line(3)], header, ref)
    assert out.bits[0].data.data.shape[-2] == 16
    assert out.bits[0].ref is not None
    assert out.bits[0].ref.data.shape[-2] == 6
    assert out.bits[0].ref.headers[0, 0, 0, 0, 0]["idx"]["kspace_encode_step_1"] == 5


def test_encoding_spaces_become_bits():
    items = [line(1, fields={"encoding_space_ref": 1})]
    (out,) = sort(items, make_header((8, 8, 1), limits=BOTH, encodings=2))
    assert len(out.bits) == 2
    assert out.bits[0].data.data.size == 0
    assert out.bits[1].data.headers[0, 0, 0, 0, 1]["number_of_samples"] == 8
    assert empty_buffer().data.ndim == 7


def test_asymmetric_echo_is_placed_by_its_centre():
    full = line(0)
    short = line(1, data=DATA[:, :5], fields={"center_sample": 1})
    (out,) = sort([full, short], make_header((8, 8, 1), limits=BOTH))
    np.testing.assert_array_equal(out.bits[0].data.data[0, 0, 0, :, 0, 1, 3:], DATA[:, :5])


def test_discarded_samples_do_not_shift_a_short_echo():
    short = line(1, data=DATA[:, :5], fields={"center_sample": 2, "discard_pre": 1})
    (out,) = sort([line(0), short], make_header((8, 8, 1), limits=BOTH))
    np.testing.assert_array_equal(out.bits[0].data.data[0, 0, 0, :, 0, 1, 3:7], DATA[:, 1:5])
    assert not out.bits[0].data.data[0, 0, 0, :, 0, 1, :3].any()


def test_zeros_of_a_filled_echo_keep_their_place():
    """After AsymmetricEchoAdjustRO: full length, the zeros marked as discarded."""
    item = line(0, fields={"discard_pre": 3, "center_sample": 4})
    (out,) = sort([item], make_header((8, 8, 1), limits=BOTH))
    buffer = out.bits[0].data
    np.testing.assert_array_equal(buffer.data[0, 0, 0, :, 0, 0, 3:], DATA[:, 3:])
    assert limits(buffer.sampling)[0] == (3, 4, 7)


def test_samples_to_discard_are_removed():
    """Longer than the matrix: the discarded samples are cut off."""
    item = readout(noise_like(RNG, 2, 12), fields={"discard_pre": 3, "discard_post": 1, "center_sample": 7})
    (out,) = sort([item], make_header((8, 8, 1), limits=BOTH))
    np.testing.assert_array_equal(out.bits[0].data.data[0, 0, 0, :, 0, 0], item.data[:, 3:11])
    assert limits(out.bits[0].data.sampling)[0] == (0, 4, 7)


def test_off_centre_echo_of_full_length_stays_and_is_counted():
    context = Context(header=make_header((8, 8, 1), limits=BOTH))
    (out,) = sort([line(0, fields={"center_sample": 3})], context.header, context=context)
    np.testing.assert_array_equal(out.bits[0].data.data[0, 0, 0, :, 0, 0], DATA)
    assert context.counts == {"full-length readouts with an off-centre echo": 1}


def test_what_does_not_fit_is_an_error():
    header = make_header((8, 8, 1), limits=BOTH)
    with pytest.raises(GadgetError, match="does not fit the 8 samples"):
        sort([line(0), readout(noise_like(RNG, 2, 10), line=1)], header)
    with pytest.raises(GadgetError, match="3 channels, the first of its k-space had 2"):
        sort([line(0), line(1, data=noise_like(RNG, 3, 8))], header)
    with pytest.raises(GadgetError, match="kspace_encode_step_1 is 9, the header's encoding limits are 0 to 7"):
        sort([line(9)], header)
    with pytest.raises(GadgetError, match="some readouts of its k-space have a trajectory"):
        sort([line(0), readout(DATA, line=1, trajectory=np.zeros((8, 2), np.float32))], header)


def test_lines_outside_the_matrix_are_left_out_counted_and_logged_once(caplog):
    header = make_header((8, 8, 1), limits={"kspace_encoding_step_1": (0, 15, 8)})
    context = Context(header=header)
    with caplog.at_level(logging.WARNING, "reconstream"):
        (out,) = sort([line(number) for number in range(16)], header, context=context)
    assert np.count_nonzero(out.bits[0].data.headers["number_of_samples"]) == 8
    assert context.counts == {"readouts outside the encoded matrix left out": 8}
    assert len(caplog.records) == 1


def test_a_readout_that_overwrites_another_is_counted():
    context = Context(header=make_header((8, 8, 1), limits=BOTH))
    (out,) = sort([line(2), line(2, data=2 * DATA)], context.header, context=context)
    np.testing.assert_array_equal(out.bits[0].data.data[0, 0, 0, :, 0, 2], 2 * DATA)
    assert context.counts == {"readouts overwritten by a later one with the same counters": 1}


def test_radial_readouts_and_trajectories_by_their_counter():
    header = make_header((8, 8, 1), trajectory="radial", limits={"kspace_encoding_step_1": (0, 9, 0)})
    spokes = [np.full((8, 2), number, np.float32) for number in range(10)]
    items = [readout(DATA * number, line=number, trajectory=spokes[number]) for number in (4, 9)]
    (out,) = sort(items, header)
    buffer = out.bits[0].data
    assert buffer.trajectory is not None
    assert buffer.data.shape[-2:] == (10, 8)
    assert buffer.trajectory.shape == (1, 1, 1, 1, 10, 8, 2)
    np.testing.assert_array_equal(buffer.trajectory[0, 0, 0, 0, 9], spokes[9])
    np.testing.assert_array_equal(buffer.data[0, 0, 0, :, 0, 4], DATA * 4)
    assert limits(buffer.sampling) == [(0, 4, 7), (0, 0, 9), (0, 0, 0)]
    assert buffer.sampling["encoded_matrix"].tolist() == [8, 8, 1]


def test_radial_counters_beyond_the_header_are_counted_from_their_lowest():
    header = make_header((8, 8, 1), trajectory="goldenangle", limits={"kspace_encoding_step_1": (0, 3, 0)})
    (out,) = sort([line(number) for number in (13, 14, 15)], header)
    assert out.bits[0].data.headers[0, 0, 0, 0]["idx"]["kspace_encode_step_1"].tolist() == [13, 14, 15]


def test_waveforms_come_along():
    waveform = Waveform(None, np.zeros((1, 4), np.uint32))
    bucket = AcquisitionBucket([line(0)], waveforms=[waveform])
    (out,) = through(BucketToBuffer(verbose="true"), [bucket], make_header((8, 8, 1), limits=BOTH))
    assert out.waveforms == [waveform]
