"""Partial Fourier, k-space filter, field of view, scaling, noise maps: on image arrays with known content."""

import numpy as np
import pytest

from gadgets.base import Context, ParameterError, run
from gadgets.field_of_view import FieldOfViewAdjustment, crop, resample
from gadgets.filtering import KSpaceFilter
from gadgets.grappa import CartesianGrappa
from gadgets.items import ImageArray
from gadgets.layout import IMAGE_HEADER
from gadgets.partial_fourier import PartialFourierFilter, PartialFourierPOCS
from gadgets.reference import ReferencePrep
from gadgets.scaling import ImageArrayScaling, NoiseStdMap
from gadgets.stock import find
from recon.fourier import fftc
from recon.metrics import nrmse
from tests.gadgets.cartesian_scan import Scan


def images_of(data, *, limits=None, **meta):
    """Image array of ``[N, Z, Y, X]``."""
    data = np.asarray(data, np.complex64)[None, None, :, None]
    attributes = {"encoding": "0", "GADGETRON_DataRole": "Image", "GADGETRON_ImageComment": "GT", **meta}
    for name, (first, last), n in zip(("RO", "E1", "E2"), limits or (), data.shape[:-4:-1], strict=False):
        attributes[f"sampling_limits_{name}"] = [str(first), str(n // 2), str(last)]
    headers = np.zeros(data.shape[:3], IMAGE_HEADER)
    headers["image_series_index"] = 300
    return ImageArray(data, headers, [dict(attributes) for _ in range(data.shape[2])])


def through(gadget, *arrays, scan=None):
    return list(run([gadget], arrays, Context(header=(scan or Scan()).header, measurement="test")))


def noise(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


# -- partial Fourier ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gadget", [PartialFourierFilter, PartialFourierPOCS])
@pytest.mark.parametrize(
    "limits",
    [
        None,
        [(0, 63), (0, 63), (0, 0)],
        [(0, 63), (0, 64), (0, 0)],  # does not fit the matrix
        [(0, 63), (1, 63), (0, 0)],  # one line less: no partial Fourier
    ],
)
def test_fully_sampled_images_pass(gadget, limits):
    images = images_of(noise(1, 1, 64, 64), limits=limits)
    assert through(gadget(), images) == [images]


def test_imbalance_of_the_acceleration_is_no_partial_fourier():
    images = images_of(noise(1, 1, 64, 64), limits=[(0, 63), (3, 63), (0, 0)])
    assert through(PartialFourierFilter(), images, scan=Scan(acceleration=(1, 3))) == [images]
    assert through(PartialFourierFilter(), images, scan=Scan(acceleration=(1, 1))) != [images]


@pytest.mark.parametrize("gadget", [PartialFourierFilter, PartialFourierPOCS, KSpaceFilter])
def test_marked_images_pass(gadget):
    images = images_of(noise(1, 1, 64, 64), limits=[(0, 63), (20, 63), (0, 0)], Skip_processing_after_recon="1")
    assert through(gadget(), images) == [images]
    (processed,) = through(gadget(skip_processing_meta_field="other"), images)
    assert nrmse(images.data, processed.data) > 0.01


def test_partial_fourier_filter_clears_what_was_not_sampled():
    images = images_of(noise(2, 1, 64, 64), limits=[(0, 63), (20, 63), (0, 0)])
    (filtered,) = through(PartialFourierFilter(partial_fourier_filter_E1_width="0.1"), images)
    kspace = np.abs(fftc(filtered.data, (-2, -1)))
    assert kspace[..., :20, :].max() < 1e-5
    assert kspace[..., 20, :].max() < kspace[..., 40, :].max()
    assert filtered.data.dtype == np.complex64


@pytest.mark.parametrize(("gadget", "bound"), [(PartialFourierPOCS, 0.6), (PartialFourierFilter, 1.4)])
def test_partial_fourier_scan_end_to_end(gadget, bound):
    """A phantom without phase: POCS beats zero filling, and a volume goes through as well."""
    scan = Scan(first=22)
    (images,) = scan.run(ReferencePrep(), CartesianGrappa())
    assert images.meta[0]["sampling_limits_E1"] == ["22", "32", "63"]
    (completed,) = through(gadget(), images, scan=scan)
    truth = np.abs(scan.truth)
    scale = np.sqrt(64 / 42)  # SNR units

    def error(array):
        return nrmse(truth, np.abs(array.data[0, 0, 0, 0]) / scale)

    assert error(completed) < bound * error(images)


def test_pocs_treats_every_image_on_its_own():
    pair = np.concatenate([noise(1, 1, 64, 64, seed=1), 1e-3 * noise(1, 1, 64, 64, seed=2)])
    limits = [(0, 63), (20, 63), (0, 0)]
    gadget = PartialFourierPOCS(partial_fourier_POCS_thres=0.2)
    (both,) = through(gadget, images_of(pair, limits=limits))
    (alone,) = through(gadget, images_of(pair[1:], limits=limits))
    np.testing.assert_allclose(both.data[:, :, 1:], alone.data, rtol=1e-4, atol=1e-9)


# -- k-space filter -------------------------------------------------------------------------------------------------------------


def test_kspace_filter_multiplies_with_gaussians_of_unit_noise():
    point = np.zeros((1, 1, 32, 48))
    point[0, 0, 16, 24] = 1
    (filtered,) = through(KSpaceFilter(filterRO_sigma=2.0), images_of(point))
    kspace = fftc(filtered.data[0, 0, 0, 0, 0], (-2, -1)).real * np.sqrt(32 * 48)
    x, y = (np.arange(48) - 24) / 23, (np.arange(32) - 16) / 15
    along_x, along_y = np.exp(-2 * x**2) * (x >= -1), np.exp(-0.5 * y**2) * (y >= -1)
    expected = np.outer(along_y / np.sqrt(np.mean(along_y**2)), along_x / np.sqrt(np.mean(along_x**2)))
    np.testing.assert_allclose(kspace, expected, atol=1e-4)


@pytest.mark.parametrize("limits", [None, [(0, 47), (10, 31), (0, 0)], [(6, 40), (4, 29), (0, 0)]])
@pytest.mark.parametrize("kind", ["Gaussian", "Hanning", "TaperedHanning"])
def test_kspace_filter_keeps_the_noise_level(limits, kind):
    white = noise(40, 1, 32, 48)
    sampled = np.zeros((32, 48))
    (x0, x1), (y0, y1), _ = limits or [(0, 47), (0, 31), (0, 0)]
    sampled[y0 : y1 + 1, x0 : x1 + 1] = 1
    images = images_of(np.fft.ifft2(np.fft.fft2(white) * np.fft.ifftshift(sampled)), limits=limits)
    (filtered,) = through(KSpaceFilter(filterRO=kind, filterE1=kind), images)
    assert filtered.data.std() == pytest.approx(images.data.std(), rel=0.03)


def test_kspace_filter_can_be_switched_off_along_each_axis():
    images = images_of(noise(1, 4, 32, 48))
    off = {"filterRO": "None", "filterE1": "None", "filterE2": "None"}
    assert through(KSpaceFilter(**off), images) == [images]
    for axis, name in ((-1, "RO"), (-2, "E1"), (-3, "E2")):
        (filtered,) = through(KSpaceFilter(**{**off, f"filter{name}": "Hanning"}), images)
        ratio = np.abs(fftc(filtered.data, (-3, -2, -1)) / fftc(images.data, (-3, -2, -1)))[0, 0, 0, 0]
        other = tuple(a for a in (-3, -2, -1) if a != axis)
        np.testing.assert_allclose(ratio.std(axis=other), 0, atol=1e-3)
        assert ratio.mean(axis=other).std() > 0.1


def test_unknown_window_is_refused():
    with pytest.raises(ParameterError, match="TaperedHanning"):
        KSpaceFilter(filterRO="Hamming")


# -- field of view --------------------------------------------------------------------------------------------------------------


def test_interpolation_keeps_brightness_and_place():
    n = 32
    x = np.arange(n) - n // 2
    wave = (1 + np.cos(2 * np.pi * 3 * x / n))[None]
    fine = resample(wave.astype(np.complex64), 80, -1)
    positions = (np.arange(80) - 40) * n / 80
    np.testing.assert_allclose(fine[0], 1 + np.cos(2 * np.pi * 3 * positions / n), atol=1e-4)
    coarse = resample(fine, n, -1) / np.sqrt(80 / n)
    np.testing.assert_allclose(coarse, wave, atol=1e-4)
    np.testing.assert_array_equal(crop(np.arange(7), 3, 0), [2, 3, 4])


@pytest.mark.parametrize("size", [(1, 128, 96), (8, 64, 128)])
def test_images_get_the_matrix_of_the_protocol(size):
    z, y, x = size
    scan = Scan(partitions=4 if z > 1 else 1, recon=(x, y, z))
    smooth = np.multiply.outer(np.ones(4 if z > 1 else 1), np.outer(np.hanning(64), np.hanning(64)))[None]
    (images,) = through(FieldOfViewAdjustment(), images_of(smooth), scan=scan)
    assert images.data.shape[-3:] == size
    assert tuple(images.headers[0, 0, 0]["matrix_size"]) == (x, y, z)
    assert np.abs(images.data).max() == pytest.approx(smooth.max(), rel=0.01)


def test_a_larger_encoded_field_of_view_is_cropped():
    """Phase oversampling: 64 lines over 400 mm, 48 wanted over 300 mm."""
    scan = Scan(recon=(64, 48, 1), encoded_fov=400.0, recon_fov=300.0)
    data = noise(1, 1, 64, 64)
    (images,) = through(FieldOfViewAdjustment(), images_of(data), scan=scan)
    np.testing.assert_allclose(images.data[0, 0, 0, 0, 0], data[0, 0, 8:56], atol=1e-6)


def test_a_larger_recon_field_of_view_passes_with_a_warning(caplog):
    scan = Scan(recon=(64, 80, 1), encoded_fov=300.0, recon_fov=375.0)
    images = images_of(noise(1, 1, 64, 64))
    with caplog.at_level("WARNING", "reconstream"):
        assert through(FieldOfViewAdjustment(), images, scan=scan) == [images]
    assert "375" in caplog.text


# -- scaling --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("role", "extra", "factor"),
    [
        ("Image", {}, 4.0),
        ("SNR_MAP", {}, 10.0),
        ("Gfactor", {}, 100.0),
        ("STD_MAP", {}, 1000.0),
        ("Image", {"Use_dedicated_scaling_factor": "1"}, 100.0),
        ("Gfactor", {"Use_dedicated_scaling_factor": "1"}, 100.0),
    ],
)
def test_every_kind_of_image_has_its_factor(role, extra, factor):
    images = images_of(noise(2, 1, 8, 8), GADGETRON_DataRole=role, **extra)
    (scaled,) = through(ImageArrayScaling(), images)
    np.testing.assert_allclose(scaled.data, images.data * factor, rtol=1e-6)
    for meta in scaled.meta:
        assert float(meta["GADGETRON_ScaleRatio"]) == factor
        assert float(meta["RescaleSlope"]) == pytest.approx(1 / factor)
        assert meta["GADGETRON_ImageComment"] == ["GT", f"x{factor:.4g}"]
    assert images.meta[0]["GADGETRON_ImageComment"] == "GT"


@pytest.mark.parametrize(
    ("maximum", "factor"),
    [(500.0, 4.0), (1500.0, 2.0), (3000.0, 1.0), (4095.0, 1.0), (10.0, 204.8), (1e5, 0.02048), (0.0, 2048.0)],
)
def test_automatic_factor_fits_the_brightness(maximum, factor):
    data = np.zeros((1, 1, 8, 8))
    data[0, 0, 3, 3] = maximum
    (scaled,) = through(ImageArrayScaling(use_constant_scalingFactor="false"), images_of(data))
    assert float(scaled.meta[0]["GADGETRON_ScaleRatio"]) == pytest.approx(factor)
    assert np.abs(scaled.data).max() == pytest.approx(maximum * factor)


@pytest.mark.parametrize(("once", "factors"), [(True, [4, 4]), (False, [4, 2])])
def test_automatic_factor_is_found_once_or_for_every_array(once, factors):
    arrays = [images_of(np.full((1, 1, 4, 4), value)) for value in (500, 1500)]
    out = through(ImageArrayScaling(scalingFactor=0, auto_scaling_only_once=once), *arrays)
    assert [float(one.meta[0]["GADGETRON_ScaleRatio"]) for one in out] == factors


def test_automatic_factor_ignores_values_that_are_not_finite():
    data = np.full((1, 1, 4, 4), 500.0)
    data[0, 0, 0, 0] = np.nan
    (scaled,) = through(ImageArrayScaling(use_constant_scalingFactor=False), images_of(data))
    assert scaled.data[0, 0, 0, 0, 0, 1, 1] == 2000


# -- noise over frames ----------------------------------------------------------------------------------------------------------


def test_std_map_is_the_deviation_over_later_frames():
    data = 50 + noise(30, 1, 8, 8)
    data[:5] += 100  # not yet steady
    images = images_of(data, GADGETRON_DataRole="SNR_MAP")
    same, deviation = through(NoiseStdMap(), images)
    assert same is images
    assert deviation.data.shape == (1, 1, 1, 1, 1, 8, 8)
    expected = np.sqrt(np.mean((np.abs(data[5:, 0]) - np.abs(data[5:, 0]).mean(0)) ** 2, axis=0))
    np.testing.assert_allclose(deviation.data[0, 0, 0, 0, 0].real, expected, rtol=1e-4)
    assert deviation.headers[0, 0, 0]["image_series_index"] == 3000
    assert deviation.meta[0]["GADGETRON_DataRole"] == "STD_MAP"
    assert deviation.meta[0]["GADGETRON_ImageComment"] == ["GT", "SNR", "STD_MAP"]


@pytest.mark.parametrize(("frames", "role"), [(30, "Image"), (6, "SNR_MAP"), (3, "SNR_MAP")])
def test_other_images_and_too_few_frames_have_no_std_map(frames, role):
    images = images_of(noise(frames, 1, 4, 4), GADGETRON_DataRole=role)
    assert through(NoiseStdMap(), images) == [images]


# -- names ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "classname",
    [
        "GenericReconCartesianReferencePrepGadget",
        "GenericReconEigenChannelGadget",
        "GenericReconCartesianFFTGadget",
        "GenericReconCartesianGrappaGadget",
        "GenericReconPartialFourierHandlingFilterGadget",
        "GenericReconPartialFourierHandlingPOCSGadget",
        "GenericReconKSpaceFilteringGadget",
        "GenericReconFieldOfViewAdjustmentGadget",
        "GenericReconNoiseStdMapComputingGadget",
        "GenericReconImageArrayScalingGadget",
    ],
)
def test_stock_names_are_known_and_debug_properties_accepted(classname):
    gadget = find("gadgetron_mricore", classname)
    gadget(verbose="true", perform_timing="false", debug_folder="")
    with pytest.raises(ParameterError, match="no property"):
        gadget(no_such_thing="1")
