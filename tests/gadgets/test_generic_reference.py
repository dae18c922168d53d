"""Calibration data: averaging, cropping, limits, eigen channels."""

import numpy as np
import pytest

from gadgets.accumulate import AcquisitionAccumulateTrigger
from gadgets.base import Context, GadgetError, run
from gadgets.items import ReconBit, ReconBuffer, ReconData
from gadgets.layout import ACQUISITION_HEADER, SAMPLING_DESCRIPTION, blank
from gadgets.reference import EigenChannels, ReferencePrep, average
from recon.fourier import fftc
from tests.gadgets.cartesian_scan import Scan


def test_embedded_lines_are_cropped_and_centred():
    scan = Scan(acceleration=(1, 3), calibration=(1, 24))
    (item,) = scan.run(ReferencePrep())
    ref = item.bits[0].ref
    truth = fftc(scan.maps * scan.truth, (-2, -1))
    np.testing.assert_allclose(ref.data[0, 0, 0], truth[:, :, 20:44], atol=1e-3)
    limits = ref.sampling["sampling_limits"]
    assert [tuple(one) for one in limits] == [(0, 32, 63), (0, 12, 23), (0, 0, 0)]
    # The imaging data keep their own limits and stay undersampled.
    assert tuple(item.bits[0].data.sampling["sampling_limits"][1]) == (0, 32, 63)
    assert np.count_nonzero(np.abs(item.bits[0].data.data[0, 0, 0, 0, 0]).sum(-1)) == len(range(2, 64, 3))


def test_partial_fourier_lines_before_the_first_are_cropped():
    scan = Scan(first=12)
    (item,) = scan.run(ReferencePrep())
    ref = item.bits[0].ref
    assert ref.data.shape[-2] == 52
    assert tuple(ref.sampling["sampling_limits"][1]) == (0, 20, 51)  # the k-space centre 32 lies at 20 of the cropped lines


def test_interleaved_frames_complete_one_another():
    scan = Scan(acceleration=(1, 3), mode="interleaved", repetitions=3)
    (item,) = scan.run(ReferencePrep())
    truth = fftc(scan.maps * scan.truth, (-2, -1))
    np.testing.assert_allclose(item.bits[0].ref.data[0, 0, 0], truth, atol=1e-3)
    assert tuple(item.bits[0].ref.sampling["sampling_limits"][1]) == (0, 32, 63)


def test_interleaved_lines_are_divided_by_how_often_they_were_sampled():
    data = np.zeros((1, 2, 4, 1, 1, 3, 2), np.complex64)
    data[0, 0, :3, 0, 0, 0] = [[3, 6], [6, 9], [9, 12]]
    data[0, 0, 1, 0, 0, 1] = [5, 7]
    data[0, 1, :, 0, 0, 2] = 8
    counted = average(data, True, False, True)[0, :, 0, 0, 0]
    np.testing.assert_allclose(counted[0], [[6, 9], [5, 7], [0, 0]])
    np.testing.assert_allclose(counted[1], [[0, 0], [0, 0], [8, 8]])
    plain = average(data, True, True, False)[0, 0, 0, 0, 0]
    np.testing.assert_allclose(plain, [[2.25, 3.375], [0.625, 0.875], [4, 4]])


@pytest.mark.parametrize(("options", "expected"), [({"N_for_ref": 1}, 1), ({"N_for_ref": 7}, 0.5), ({"average_all_ref_N": False}, None)])
def test_one_frame_may_be_chosen(options, expected):
    scan = Scan(repetitions=2, n=16, coils=2)
    items = scan.run()
    items[0].bits[0].data.data[0, 0, 0] = 0  # the first frame empty
    (item,) = run([ReferencePrep(**options)], items, Context(header=scan.header))
    frame = items[0].bits[0].data.data[0, 0, 1]
    if expected is None:
        assert item.bits[0].ref.data.shape[2] == 2
    else:
        np.testing.assert_allclose(item.bits[0].ref.data[0, 0, 0], expected * frame, rtol=1e-5, atol=1e-4)


def test_calibration_lines_can_be_filled_into_the_image():
    scan = Scan(acceleration=(1, 3))
    (item,) = scan.run(ReferencePrep(ref_fill_into_data_embedded="true"))
    truth = fftc(scan.maps * scan.truth, (-2, -1))
    np.testing.assert_allclose(item.bits[0].data.data[0, 0, 0][:, :, 20:44], truth[:, :, 20:44], atol=1e-3)


def by_repetition(scan):
    return [AcquisitionAccumulateTrigger(trigger_dimension="repetition"), *scan.buffers(N_dimension="none")[1:]]


def test_reference_can_be_prepared_once():
    scan = Scan(acceleration=(1, 2), repetitions=3)
    items = scan.run(ReferencePrep(prepare_ref_always=False), front=by_repetition(scan))
    assert [item.bits[0].ref is not None for item in items] == [True, False, False]


def test_buffers_without_calibration_lines_go_without():
    scan = Scan(acceleration=(1, 2), repetitions=3, calibrated={0, 2})
    items = scan.run(ReferencePrep(), front=by_repetition(scan))
    assert [item.bits[0].ref is not None for item in items] == [True, False, True]


def test_empty_calibration_is_an_error_that_names_the_flags():
    scan = Scan(n=16, coils=2)
    items = scan.run()
    items[0].bits[0].data.data[:] = 0
    with pytest.raises(GadgetError, match="IS_PARALLEL_CALIBRATION"):
        list(run([ReferencePrep()], items, Context(header=scan.header)))


def test_received_buffers_are_left_as_they_were():
    scan = Scan(acceleration=(1, 3))
    items = scan.run()
    before = items[0].bits[0].data.data.copy(), items[0].bits[0].ref.data.copy(), items[0].bits[0].ref.sampling.tobytes()
    gadgets = [ReferencePrep(ref_fill_into_data_embedded=True), EigenChannels()]
    list(run(gadgets, items, Context(header=scan.header)))
    np.testing.assert_array_equal(items[0].bits[0].data.data, before[0])
    np.testing.assert_array_equal(items[0].bits[0].ref.data, before[1])
    assert items[0].bits[0].ref.sampling.tobytes() == before[2]


def correlated(frames=1, sets=1):
    """A buffer of six channels that hold three signals."""
    rng = np.random.default_rng(1)
    signals = rng.standard_normal((sets, frames, 3, 1, 12, 10)) + 1j * rng.standard_normal((sets, frames, 3, 1, 12, 10))
    mixing = rng.standard_normal((sets, 6, 3))
    data = np.einsum("sab,snb...->sna...", mixing, signals)[None].astype(np.complex64)
    buffer = ReconBuffer(data, np.zeros((1, sets, frames, 1, 12), ACQUISITION_HEADER), blank(SAMPLING_DESCRIPTION))
    return ReconData([ReconBit(buffer)])


def rotate(*items, **properties):
    return list(run([EigenChannels(**properties)], items, Context(header=Scan(n=12).header)))


def test_eigen_channels_keep_all_signal_and_drop_the_rest():
    item = correlated()
    (out,) = rotate(item, upstream_coil_compression_thres="1e-6")
    before, after = item.bits[0].data.data, out.bits[0].data.data
    assert after.shape[3] == 3
    np.testing.assert_allclose(np.linalg.norm(after), np.linalg.norm(before), rtol=1e-3)
    energy = np.sum(np.abs(after) ** 2, axis=(0, 1, 2, 4, 5, 6))
    assert (np.diff(energy) < 0).all()


@pytest.mark.parametrize(
    ("properties", "channels"),
    [
        ({"upstream_coil_compression_num_modesKept": 2}, 2),
        ({"upstream_coil_compression_num_modesKept": 9}, 6),
        ({"upstream_coil_compression": False, "upstream_coil_compression_thres": 0.1}, 6),
        ({}, 6),
    ],
)
def test_number_of_eigen_channels(properties, channels):
    (out,) = rotate(correlated(), **properties)
    assert out.bits[0].data.data.shape[3] == channels


def test_every_set_has_its_own_rotation_unless_averaged():
    item = correlated(sets=2)
    (own,) = rotate(item, upstream_coil_compression_num_modesKept=3)
    np.testing.assert_allclose(np.linalg.norm(own.bits[0].data.data), np.linalg.norm(item.bits[0].data.data), rtol=1e-3)
    (common,) = rotate(item, upstream_coil_compression_num_modesKept=3, average_all_ref_S=True)
    assert np.linalg.norm(common.bits[0].data.data) < 0.97 * np.linalg.norm(item.bits[0].data.data)


def test_the_rotation_stays_for_the_measurement():
    first, second = correlated(), correlated()
    second.bits[0].data.data = second.bits[0].data.data[:, :, :, ::-1].copy()
    kept = rotate(first, second, upstream_coil_compression_num_modesKept=3)
    fresh = rotate(first, second, upstream_coil_compression_num_modesKept=3, update_eigen_channel_coefficients=True)
    np.testing.assert_array_equal(kept[0].bits[0].data.data, fresh[0].bits[0].data.data)
    assert np.linalg.norm(kept[1].bits[0].data.data) < 0.97 * np.linalg.norm(fresh[1].bits[0].data.data)
