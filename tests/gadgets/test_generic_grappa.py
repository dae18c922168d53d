"""The reconstructions: images, g-factor, SNR units, caching, headers, attributes, errors."""

import numpy as np
import pytest

import gadgets.grappa
from gadgets.accumulate import AcquisitionAccumulateTrigger
from gadgets.base import Context, GadgetError, run
from gadgets.grappa import CartesianFFT, CartesianGrappa
from gadgets.items import ImageArray, Waveform
from gadgets.reference import EigenChannels, ReferencePrep
from gadgets.scaling import NoiseStdMap
from recon.metrics import nrmse
from tests.gadgets.cartesian_scan import Scan


def magnitude_error(scan, image, scale=1.0):
    """NRMSE of the magnitude after the known scale."""
    return nrmse(np.abs(scan.truth), np.abs(image) / scale)


def series(items):
    return {int(item.headers[0, 0, 0]["image_series_index"]): item for item in items if isinstance(item, ImageArray)}


def snr_scale(scan, items):
    """Images are in SNR units: sqrt(effective acceleration) / acceleration times the signal."""
    data = items[0].bits[0].data.data
    lines = np.count_nonzero(np.abs(data[0, :, :, 0]).sum(-1))
    return np.sqrt(data.shape[1] * data.shape[2] * data.shape[4] * data.shape[5] / lines) / np.prod(scan.acceleration)


@pytest.mark.parametrize("gadget", [CartesianFFT, CartesianGrappa])
def test_fully_sampled_scan(gadget):
    scan = Scan()
    (images,) = scan.run(ReferencePrep(), EigenChannels(), gadget())
    assert images.data.shape == (1, 1, 1, 1, 1, 64, 64)
    assert images.data.dtype == np.complex64
    assert magnitude_error(scan, images.data[0, 0, 0, 0]) < 0.03


def test_fft_without_reference_gadget_uses_the_data_for_maps():
    scan = Scan()
    (images,) = scan.run(CartesianFFT())
    assert magnitude_error(scan, images.data[0, 0, 0, 0]) < 0.03


@pytest.mark.parametrize(("factor", "bound"), [(2, 0.02), (3, 0.03), (4, 0.08)])
@pytest.mark.parametrize("algorithm", ["Inati", "Inati_Iter"])
def test_embedded_calibration(factor, bound, algorithm):
    scan = Scan(n=66 if factor == 3 else 64, acceleration=(1, factor), coils=12)  # a multiple: the last gap is as wide as the others
    before = scan.run(ReferencePrep(), EigenChannels(upstream_coil_compression_thres=1e-5))
    (images,) = run([CartesianGrappa(coil_map_algorithm=algorithm, grappa_reg_lamda=1e-5)], before, Context(header=scan.header))
    assert magnitude_error(scan, images.data[0, 0, 0, 0], snr_scale(scan, before)) < bound
    (aliased,) = run([CartesianFFT(coil_map_algorithm=algorithm)], before, Context(header=scan.header))
    assert magnitude_error(scan, aliased.data[0, 0, 0, 0], 1 / factor) > 2 * bound


def test_interleaved_calibration():
    scan = Scan(n=66, acceleration=(1, 3), mode="interleaved", repetitions=3, coils=12)
    before = scan.run(ReferencePrep())
    (images,) = run([CartesianGrappa(grappa_reg_lamda="1e-5")], before, Context(header=scan.header))
    assert images.data.shape[:3] == (1, 1, 3)
    for frame in images.data[0, 0, :, 0]:
        assert magnitude_error(scan, frame, snr_scale(scan, before)) < 0.03


def test_volume_accelerated_in_both_directions():
    scan = Scan(n=40, partitions=20, acceleration=(2, 2), calibration=(12, 20), coils=6)
    before = scan.run(ReferencePrep(), EigenChannels(upstream_coil_compression_thres=1e-4))
    properties = {"grappa_kSize_E2": 2, "coil_map_kernel_size_readout": 5, "grappa_calib_over_determine_ratio": 5}
    (images,) = run([CartesianGrappa(**properties)], before, Context(header=scan.header))
    assert images.data.shape == (1, 1, 1, 1, 20, 40, 40)
    assert magnitude_error(scan, images.data[0, 0, 0, 0], snr_scale(scan, before)) < 0.2
    (aliased,) = run([CartesianFFT()], before, Context(header=scan.header))
    assert magnitude_error(scan, aliased.data[0, 0, 0, 0], 1 / 4) > 0.5


@pytest.mark.parametrize("properties", [{"downstream_coil_compression": "false"}, {"downstream_coil_compression_thres": -1}])
def test_without_downstream_compression(properties):
    scan = Scan(acceleration=(1, 2))
    before = scan.run(ReferencePrep(), EigenChannels())
    (images,) = run([CartesianGrappa(**properties)], before, Context(header=scan.header))
    assert magnitude_error(scan, images.data[0, 0, 0, 0], snr_scale(scan, before)) < 0.06


@pytest.mark.parametrize("properties", [{"downstream_coil_compression_num_modesKept": 4}, {"downstream_coil_compression_thres": 0.05}])
def test_fewer_target_channels_keep_the_signal(properties):
    scan = Scan(acceleration=(1, 2))
    before = scan.run(ReferencePrep(), EigenChannels())
    (images,) = run([CartesianGrappa(**properties)], before, Context(header=scan.header))
    (all_targets,) = run([CartesianGrappa(downstream_coil_compression_thres=-1)], before, Context(header=scan.header))
    assert magnitude_error(scan, images.data[0, 0, 0, 0], snr_scale(scan, before)) < 0.1
    assert nrmse(all_targets.data, images.data) > 1e-3


def test_a_single_coil_is_reconstructed():
    scan = Scan(coils=1)
    (images,) = scan.run(ReferencePrep(), CartesianGrappa())
    assert magnitude_error(scan, images.data[0, 0, 0, 0]) < 1e-4


def test_images_are_in_snr_units():
    """Unit noise in every coil: the noise over frames is the g-factor, and 1 in the SNR map (where signal is strong)."""
    scan = Scan(acceleration=(1, 2), repetitions=90, coils=6, noise=1.0, n=48)
    gadgets = [ReferencePrep(), CartesianGrappa(send_out_gfactor=True, send_out_snr_map=True), NoiseStdMap()]
    out = series(scan.run(*gadgets))
    assert sorted(out) == [1, 20, 300, 3000]
    strong = np.abs(scan.truth[0]) > 15
    noise = np.abs(out[1].data[0, 0, 5:, 0, 0]).std(axis=0) * np.sqrt(2)  # magnitude noise is one of two components
    analytic = out[20].data[0, 0, 0, 0, 0].real
    # Embedded calibration lines lower the noise of the image; the SNR scale accounts for the lines that were sampled.
    assert np.median(noise[strong] / analytic[strong]) == pytest.approx(1, abs=0.05)
    deviation = out[3000].data[0, 0, 0, 0, 0].real * np.sqrt(2)
    assert np.median(deviation[strong]) == pytest.approx(1, abs=0.05)
    np.testing.assert_allclose(out[300].data * analytic, out[1].data, rtol=1e-4, atol=1e-4)


def test_series_numbers_and_roles():
    scan = Scan(acceleration=(1, 2), repetitions=2)
    items = scan.run(ReferencePrep(), CartesianGrappa(send_out_gfactor="true", send_out_snr_map="true", image_series=7))
    assert [int(item.headers[0, 0, 0]["image_series_index"]) for item in items] == [27, 307, 8]
    assert [item.meta[0]["GADGETRON_DataRole"] for item in items] == ["Gfactor", "SNR_MAP", "Image"]
    assert [item.meta[0]["GADGETRON_SeqDescription"] for item in items] == ["Gfactor", "SNR_MAP", "_GT"]
    assert [item.meta[0]["GADGETRON_ImageComment"] for item in items] == ["Gfactor", "SNR_MAP", "GT"]
    assert ["Skip_processing_after_recon" in item.meta[0] for item in items] == [True, False, False]
    assert [item.data.shape[2] for item in items] == [1, 2, 2]  # one calibration for both frames


def test_no_gfactor_without_acceleration():
    items = Scan(n=32).run(ReferencePrep(), CartesianGrappa(send_out_gfactor=True, send_out_snr_map=True))
    out = series(items)
    assert sorted(out) == [1, 300]
    np.testing.assert_array_equal(out[1].data, out[300].data)


def test_headers_and_attributes_are_those_of_the_central_readout():
    scan = Scan(acceleration=(1, 3), repetitions=2)
    (images,) = scan.run(ReferencePrep(), CartesianGrappa())
    readouts = scan.readouts()
    for n in range(2):
        central = next(r for r in readouts if r.idx["repetition"] == n and r.idx["kspace_encode_step_1"] == 32)
        header, meta = images.headers[0, 0, n], images.meta[n]
        assert header["acquisition_time_stamp"] == central.acquisition_time_stamp
        assert header["repetition"] == n
        assert header["image_index"] == n + 1
        assert tuple(header["matrix_size"]) == (64, 64, 1)
        assert tuple(header["field_of_view"]) == (300, 300, 5)
        assert tuple(header["position"]) == (1, 2, 3)
        assert header["user_int"][0] == 42
        assert header["image_type"] == 1
        assert meta["GADGETRON_ImageNumber"] == str(n + 1)
        assert (meta["deviceID"], meta["patientID"], meta["studyID"], meta["measurementNumber"]) == ("dev", "pat", "study", "7")
        # Of lines that are both calibration and image, the time is counted among the image's.
        imaging = [r.acquisition_time_stamp for r in readouts if r.idx["repetition"] == n and not r.is_flag_set(20)]
        assert meta["acquisition_time_range"] == [str(min(imaging)), str(max(imaging))]
        assert meta["sampling_limits_E1"] == ["0", "32", "63"]
        assert meta["user_int_0"] == "42"
        assert meta["encoding"] == "0"


def by_repetition(scan):
    return [AcquisitionAccumulateTrigger(trigger_dimension="repetition"), *scan.buffers(N_dimension="none")[1:]]


@pytest.mark.parametrize(("calibrated", "fits"), [({0}, 1), ({0, 2}, 1), (None, 1)])
def test_kernels_are_fitted_only_when_the_calibration_changes(monkeypatch, calibrated, fits):
    calls = []
    original = gadgets.grappa.calibrate
    monkeypatch.setattr(gadgets.grappa, "calibrate", lambda *args, **options: calls.append(1) or original(*args, **options))
    scan = Scan(acceleration=(1, 2), repetitions=4, calibrated=calibrated, n=48)
    images = scan.run(ReferencePrep(), CartesianGrappa(), front=by_repetition(scan))
    assert len(images) == 4
    assert len(calls) == fits
    noisy = Scan(acceleration=(1, 2), repetitions=4, calibrated=calibrated, n=48, noise=1.0)
    calls.clear()
    noisy.run(ReferencePrep(), CartesianGrappa(), front=by_repetition(noisy))
    assert len(calls) == (4 if calibrated is None else len(calibrated))


def test_zero_regularization_gives_no_nan():
    scan = Scan(acceleration=(1, 2), coils=4)
    (images,) = scan.run(ReferencePrep(), CartesianGrappa(grappa_reg_lamda=0))
    assert np.isfinite(images.data).all()
    assert np.abs(images.data).max() > 10


def test_missing_calibration_lines_are_an_error_that_names_flags_and_remedy():
    scan = Scan(acceleration=(1, 3), calibrated=set())
    with pytest.raises(GadgetError, match=r"\[CartesianGrappa\].*21 of 61 lines.*IS_PARALLEL_CALIBRATION \(20\)"):
        scan.run(ReferencePrep(), CartesianGrappa())
    with pytest.raises(GadgetError, match="ReferencePrep"):
        scan.run(CartesianGrappa())


def test_interleaved_frames_must_share_a_buffer():
    scan = Scan(acceleration=(1, 3), mode="interleaved", repetitions=3)
    with pytest.raises(GadgetError, match="N_dimension"):
        scan.run(ReferencePrep(), CartesianGrappa(), front=by_repetition(scan))


def test_too_few_calibration_lines_are_an_error():
    scan = Scan(acceleration=(1, 4), calibration=(1, 8))
    with pytest.raises(GadgetError, match="acquire more calibration lines"):
        scan.run(ReferencePrep(), CartesianGrappa())


def test_values_that_are_not_finite_are_an_error_not_an_image():
    scan = Scan(acceleration=(1, 2), n=48)
    items = scan.run(ReferencePrep())
    items[0].bits[0].ref.data[0, 0, 0, 2, 0, 3, 4] = np.nan
    with pytest.raises(GadgetError, match="not finite"), np.errstate(invalid="ignore"):
        list(run([CartesianGrappa()], items, Context(header=scan.header)))


def test_waveforms_stay_with_the_images():
    scan = Scan(n=32)
    items = scan.run(ReferencePrep())
    items[0].waveforms = [Waveform(None, np.ones((1, 4), np.uint32))]
    for gadget in (CartesianGrappa(), CartesianFFT()):
        (images,) = run([ReferencePrep(), EigenChannels(), gadget], items, Context(header=scan.header))
        assert images.waveforms == items[0].waveforms
        assert images.acquisition_headers.shape == (1, 1, 1, 1, 32)
