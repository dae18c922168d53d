"""Scans that are sampled on no lattice of the header's factors: CAIPIRINHA, variable density, a dense centre without flags."""

import numpy as np
import pytest

import gadgets.irregular
from gadgets.accumulate import AcquisitionAccumulateTrigger
from gadgets.base import Context, GadgetError, run
from gadgets.grappa import CartesianFFT, CartesianGrappa
from gadgets.irregular import is_lattice, sampled_centre
from gadgets.items import ReconBuffer
from gadgets.reference import EigenChannels, ReferencePrep
from recon.cartesian_sampling import regular_mask
from recon.metrics import nrmse
from service.local import ReconstructionError, reconstruct
from tests.gadgets.cartesian_scan import Scan
from tests.gadgets.test_generic_grappa import magnitude_error, snr_scale

Z, N = 20, 40
CAIPI = regular_mask((Z, N), (2, 2), caipi_shift=1)
DENSE = regular_mask((Z, N), (2, 2), (12, 20), caipi_shift=1)
VARIABLE = regular_mask((Z, N), (2, 2), (14, 26), caipi_shift=1) & (regular_mask((Z, N), (1, 3), (16, 28)) | CAIPI)


def volume(lines: np.ndarray, **options) -> Scan:
    return Scan(n=N, partitions=Z, acceleration=(2, 2), calibration=(12, 20), coils=6, lines=lines, **options)


def gadget(**properties) -> CartesianGrappa:
    return CartesianGrappa(**{"coil_map_kernel_size_readout": 5, **properties})


@pytest.mark.parametrize(
    ("lines", "calibrated"),
    [(CAIPI, None), (DENSE, set()), (VARIABLE, set()), (np.ones((Z, N), bool), None)],
    ids=["caipi", "dense centre without flags", "variable density", "nothing missing"],
)
def test_volumes_are_unaliased(lines, calibrated):
    scan = volume(lines, calibrated=calibrated)
    before = scan.run(ReferencePrep(), EigenChannels(upstream_coil_compression_thres=1e-4))
    (images,) = run([gadget()], before, Context(header=scan.header))
    assert images.data.shape == (1, 1, 1, 1, Z, N, N)
    scale = snr_scale(scan, before) if not lines.all() else 1
    assert magnitude_error(scan, images.data[0, 0, 0, 0], scale) < 0.2
    (aliased,) = run([CartesianFFT()], before, Context(header=scan.header))
    assert lines.all() or magnitude_error(scan, aliased.data[0, 0, 0, 0], lines.mean()) > 0.25


@pytest.mark.parametrize("flagged", [True, False])
def test_slices_with_a_dense_centre(flagged):
    lines = np.isin(np.arange(65), [*range(2, 65, 3), *range(20, 45)])[None]
    scan = Scan(n=65, acceleration=(1, 3), coils=12, lines=lines, calibrated=None if flagged else set())
    before = scan.run(ReferencePrep(), EigenChannels())
    (images,) = run([CartesianGrappa(grappa_reg_lamda=1e-4)], before, Context(header=scan.header))
    assert magnitude_error(scan, images.data[0, 0, 0, 0], snr_scale(scan, before)) < 0.06


def error(image: np.ndarray, truth: np.ndarray) -> float:
    """Relative error of the magnitude after one scale."""
    found, true = np.abs(image).astype(float), np.abs(truth)
    return nrmse(true, (found * true).sum() / (found**2).sum() * found)


@pytest.fixture(scope="module")
def full() -> np.ndarray:
    """What the chain makes of all lines, noise and filters included."""
    scan = volume(np.ones((Z, N), bool), noise=0.2)
    (image,) = reconstruct(scan.readouts(), "cartesian_grappa", header=scan.header.xml)
    assert error(image.data[0], scan.truth) < 0.3  # the filters of the chain blur
    return image.data[0]


@pytest.mark.parametrize(
    ("lines", "options"),
    [(CAIPI, {}), (DENSE, {"calibrated": set()}), (CAIPI, {"first": 10})],
    ids=["caipi", "no flags", "partial Fourier"],
)
def test_a_stream_through_the_shipped_chain(lines, options, full):
    scan = volume(lines, noise=0.2, **options)
    (image,) = reconstruct(scan.readouts(), "cartesian_grappa", header=scan.header.xml)
    assert image.data.dtype == np.uint16
    assert image.data.shape == (1, Z, N, N)
    assert error(image.data[0], full) < (0.2 if options.get("first") else 0.12)
    assert error(image.data[0], scan.truth) < 0.4
    flips = [np.flip(full, axis) for axis in (1, 2)] + [np.roll(full, 1, axis) for axis in (1, 2)]
    assert min(error(image.data[0], flip) for flip in flips) > 0.2
    (aliased,) = reconstruct(scan.readouts(), "cartesian", header=scan.header.xml)
    assert error(aliased.data[0], full) > 3 * error(image.data[0], full)


def test_odd_sizes_and_factors_of_the_header_that_hide_the_lattice():
    """Four-fold along E1 with a shift, so that every partition is sampled; the calibration is a scan of its own."""
    lines = regular_mask((19, 41), (1, 4), caipi_shift=2)

    def images(sampled: np.ndarray) -> np.ndarray:
        options = {"n": 41, "partitions": 19, "acceleration": (1, 4), "calibration": (11, 22), "noise": 0.2}
        scan, imaging = (Scan(**options, lines=sampled, calibrated=calibrated) for calibrated in (None, set()))
        calibration = [readout for readout in scan.readouts() if readout.is_flag_set(20) or readout.is_flag_set(21)]
        for readout in calibration:
            readout.header["flags"] = 0
            readout.set_flag(20)
        header = scan.header.xml.replace(b"embedded", b"separate")
        (image,) = reconstruct([*calibration, *imaging.readouts()], "cartesian_grappa", header=header)
        return image.data[0]

    assert error(images(lines), images(np.ones_like(lines))) < 0.1


def by_repetition(scan: Scan) -> list:
    return [AcquisitionAccumulateTrigger(trigger_dimension="repetition"), *scan.buffers(N_dimension="none")[1:]]


def test_kernels_are_kept_for_frames_of_the_same_pattern(monkeypatch):
    fits = []
    original = gadgets.irregular.PatternKernels
    monkeypatch.setattr(gadgets.irregular, "PatternKernels", lambda *a, **o: fits.append(1) or original(*a, **o))
    scan = volume(CAIPI, repetitions=3, calibrated={0})
    images = scan.run(ReferencePrep(), gadget(), front=by_repetition(scan))
    assert len(images) == 3
    assert len(fits) == 1
    for image in images:
        np.testing.assert_array_equal(image.data, images[0].data)


def test_regular_and_irregular_frames_share_a_calibration():
    scan, regular = volume(CAIPI), Scan(n=N, partitions=Z, acceleration=(2, 2), calibration=(12, 20), coils=6, calibrated=set())
    (first,), (second,) = (one.run(ReferencePrep(), EigenChannels()) for one in (scan, scan))
    (plain,) = regular.run()
    second.bits[0].ref = None
    second.bits[0].data = plain.bits[0].data
    (uncompressed,) = scan.run(ReferencePrep())
    images = list(run([gadget()], [uncompressed, second], Context(header=scan.header)))
    assert error(images[0].data[0, 0, 0, 0], scan.truth) < 0.2
    assert error(images[1].data[0, 0, 0, 0], scan.truth) < 0.2
    assert first.bits[0].ref is not None


def test_one_coil_gives_an_image():
    lines = regular_mask((1, 64), (1, 2), (1, 24))
    scan = Scan(coils=1, acceleration=(1, 2), lines=lines, calibrated=set())
    (images,) = scan.run(ReferencePrep(), CartesianGrappa(grappa_reg_lamda=0))
    assert np.isfinite(images.data).all()
    assert np.abs(images.data).max() > 10


def test_values_that_are_not_finite_are_an_error():
    scan = volume(CAIPI)
    items = scan.run(ReferencePrep())
    items[0].bits[0].data.data[0, 0, 0, 2, 10, 20, 4] = np.nan
    with pytest.raises(GadgetError, match=r"\[CartesianGrappa\].*kspace holds values that are not finite"):
        list(run([gadget()], items, Context(header=scan.header)))


def test_too_small_a_centre_is_an_error_that_names_flags_and_remedy():
    scan = volume(regular_mask((Z, N), (2, 2), (4, 3), caipi_shift=1), calibrated=set())
    with pytest.raises(ReconstructionError, match=r"too few for kernel_size .*acquire more calibration lines"):
        reconstruct(scan.readouts(), "cartesian_grappa", header=scan.header.xml)
    scan = volume(np.roll(CAIPI, 1, 1), calibrated=set())  # the centre itself is missing
    with pytest.raises(ReconstructionError, match=r"CartesianGrappa.*IS_PARALLEL_CALIBRATION \(20\)"):
        reconstruct(scan.readouts(), "cartesian_grappa", header=scan.header.xml)


def test_no_gfactor_but_images_and_snr_maps():
    scan = volume(CAIPI)
    items = scan.run(ReferencePrep(), gadget(send_out_gfactor=True, send_out_snr_map=True))
    assert [item.meta[0]["GADGETRON_DataRole"] for item in items] == ["SNR_MAP", "Image"]


def test_what_a_lattice_is():
    lines = regular_mask((12, 18), (2, 3))[None, None, None]
    assert is_lattice(lines, (2, 3))
    assert is_lattice(np.roll(lines, (1, 2), (-2, -1)), (2, 3))
    assert is_lattice(np.concatenate([lines, np.roll(lines, 1, -1)], axis=2), (2, 3))  # frames that complete one another
    assert not is_lattice(lines | np.roll(lines, 1, -1), (2, 3))
    assert not is_lattice(regular_mask((12, 18), (2, 2), caipi_shift=1)[None, None, None], (2, 2))
    assert is_lattice(np.zeros_like(lines), (2, 3))


def test_the_sampled_centre_is_symmetric_about_the_middle():
    scan = volume(regular_mask((Z, N), (2, 2), (8, 11), caipi_shift=1), calibrated=set())
    (item,) = scan.run()
    centre: ReconBuffer = sampled_centre(item.bits[0].data)
    assert centre.data.shape[-3:] == (7, 11, N)
    np.testing.assert_array_equal(centre.data, item.bits[0].data.data[..., 7:14, 15:26, :])
    assert [int(limits["center"]) for limits in centre.sampling["sampling_limits"][1:]] == [5, 3]
    missing = volume(np.roll(CAIPI, 1, 1), calibrated=set())
    assert sampled_centre(missing.run()[0].bits[0].data) is None
