"""Compressed sensing and SPIRiT of Cartesian buffers: any sampling, where calibration comes from, odd input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gadgets.accumulate import AcquisitionAccumulateTrigger
from gadgets.any_mask import AnyMaskRecon
from gadgets.base import Context, GadgetError, ParameterError, run
from gadgets.buffer import BucketToBuffer
from gadgets.compressed_sensing import CompressedSensing
from gadgets.grappa import CartesianFFT
from gadgets.items import Acquisition, ImageArray
from gadgets.layout import Flag
from gadgets.partial_fourier import PartialFourierPOCS
from gadgets.reference import EigenChannels, ReferencePrep
from gadgets.spirit import CartesianSpirit
from recon.cartesian_sampling import density_grid, random_mask
from recon.espirit import espirit
from recon.fourier import fftc
from recon.least_squares import least_squares
from recon.metrics import nrmse
from tests.gadgets.cartesian_scan import Scan
from tests.recon.test_espirit import folded_object

METHODS: dict[str, Any] = {
    "l1": lambda: CompressedSensing(),
    "tv": lambda: CompressedSensing(method="total_variation", iterations="20"),
    "tgv": lambda: CompressedSensing(method="tgv"),
    "spirit": lambda: CartesianSpirit(),
    "spirit with ESPIRiT's maps": lambda: CartesianSpirit(coil_maps="espirit"),
    "l1 with the chain's maps": lambda: CompressedSensing(coil_maps="image"),
}


def lines(scan: Scan, block: int = 16, share: float = 0.5, seed: int = 0) -> np.ndarray:
    """Random lines ``[E2, E1]``, denser towards a fully sampled centre."""
    phases = (scan.partitions, scan.n) if scan.partitions > 1 else (scan.n,)
    mask = random_mask(phases, density_grid(phases, min(2 * share, 1), 0.3 * share), seed)
    mask[tuple(slice(n // 2 - block // 2, n // 2 + block // 2) for n in phases)] = True
    return mask.reshape(scan.partitions, scan.n)


def chosen(scan: Scan, mask: np.ndarray) -> list[Acquisition]:
    counters = [readout.header["idx"] for readout in scan.readouts()]
    pairs = zip(scan.readouts(), counters, strict=True)
    return [readout for readout, idx in pairs if mask[int(idx["kspace_encode_step_2"]), int(idx["kspace_encode_step_1"])]]


def images(scan: Scan, gadget: AnyMaskRecon, readouts: list[Acquisition], *before: Any, context: Context | None = None) -> list[ImageArray]:
    context = context or Context(header=scan.header)
    found = list(run([*scan.buffers(), *before, gadget], readouts, context))
    assert all(isinstance(item, ImageArray) for item in found)
    return found  # type: ignore[return-value]


def error(scan: Scan, image: np.ndarray) -> float:
    return nrmse(np.abs(scan.truth), np.abs(image))


@pytest.fixture(scope="module")
def slice_scan() -> Scan:
    return Scan(n=64, coils=6, noise=1.0)


@pytest.mark.parametrize("name", METHODS)
def test_fully_sampled_scans_come_out_as_by_the_fourier_transform(slice_scan: Scan, name: str) -> None:
    (plain,) = slice_scan.run(CartesianFFT())
    (found,) = slice_scan.run(METHODS[name]())
    inside = np.abs(slice_scan.truth) > 0
    assert nrmse(np.abs(plain.data[0, 0, 0, 0][inside]), np.abs(found.data[0, 0, 0, 0][inside])) < 0.03
    assert found.data.shape == plain.data.shape
    assert np.array_equal(found.headers, plain.headers)


@pytest.mark.parametrize(("name", "bound"), [("l1", 0.1), ("tv", 0.05), ("tgv", 0.05), ("l1 with the chain's maps", 0.11)])
def test_random_lines_are_better_than_by_least_squares(slice_scan: Scan, name: str, bound: float) -> None:
    mask = lines(slice_scan, share=0.3)
    (found,) = images(slice_scan, METHODS[name](), chosen(slice_scan, mask), EigenChannels())
    kspace = np.zeros((6, 64, 64), np.complex64)
    for readout in chosen(slice_scan, mask):
        kspace[:, int(readout.header["idx"]["kspace_encode_step_1"])] = readout.data
    maps = espirit(kspace, calibration=(16, 32))
    best = min(
        error(slice_scan, least_squares(kspace, maps, mask=np.broadcast_to(mask.T, (64, 64)), iterations=n, regularisation=0.01)[None])
        for n in (5, 10, 20)
    )
    assert error(slice_scan, found.data[0, 0, 0, 0]) < min(bound, 0.75 * best)


def test_spirit_fills_regular_and_scattered_gaps(slice_scan: Scan) -> None:
    for mask in (lines(slice_scan, share=0), lines(slice_scan, share=0.7)):
        mask[0, ::2] = True
        mask[0, 1::7] = False
        mask[0, 24:40] = True
        readouts = chosen(slice_scan, mask)
        (found,), (aliased,) = images(slice_scan, CartesianSpirit(), readouts), images(slice_scan, CartesianFFT(), readouts)  # type: ignore[arg-type]
        assert error(slice_scan, found.data[0, 0, 0, 0]) < 0.4 * error(slice_scan, aliased.data[0, 0, 0, 0])


@pytest.mark.parametrize(("name", "bound"), [("l1", 0.12), ("tv", 0.07), ("spirit", 0.3)])
def test_volumes_may_miss_samples_of_both_phase_encodings(name: str, bound: float) -> None:
    scan = Scan(n=32, partitions=16, coils=6, noise=1.0)
    readouts = chosen(scan, lines(scan, block=10))
    (found,), (aliased,) = images(scan, METHODS[name](), readouts), images(scan, CartesianFFT(), readouts)  # type: ignore[arg-type]
    assert found.data.shape == (1, 1, 1, 1, 16, 32, 32)
    assert error(scan, found.data[0, 0, 0, 0]) < min(bound, 0.8 * error(scan, aliased.data[0, 0, 0, 0]))


@pytest.mark.parametrize("method", ["l1_wavelet", "total_variation", "tgv"])
def test_an_object_larger_than_the_field_of_view_needs_two_sets_of_maps(method: str) -> None:
    folded = folded_object()
    scan = Scan(n=48, coils=len(folded))
    random = np.random.default_rng(0)
    noise = random.standard_normal((2, *folded.shape)) * 0.01 * np.abs(folded).max()
    kspace = (fftc(folded, (-2, -1)) + noise[0] + 1j * noise[1]).astype(np.complex64)
    mask = np.zeros((1, 48), bool)
    mask[0, ::2] = mask[0, 12:36] = True
    readouts = chosen(scan, mask)
    for readout in readouts:
        readout.data[...] = kspace[:, int(readout.header["idx"]["kspace_encode_step_1"])]
    truth = np.linalg.norm(folded, axis=0)

    def wrong(sets: int) -> float:
        (found,) = images(scan, CompressedSensing(method=method, map_sets=sets, espirit_crop=0.7), readouts)
        image = np.abs(found.data[0, 0, 0, 0, 0])
        return nrmse(truth, image * (truth * image).sum() / (image**2).sum())

    assert wrong(2) < min(0.07, 0.6 * wrong(1))


@pytest.mark.parametrize("gadget", [CompressedSensing, CartesianSpirit])
def test_embedded_calibration_lines_belong_to_the_image(gadget: type[AnyMaskRecon]) -> None:
    scan = Scan(n=64, coils=6, acceleration=(1, 2), calibration=(1, 20))
    flagged = scan.readouts()
    assert any(readout.is_flag_set(Flag.IS_PARALLEL_CALIBRATION) for readout in flagged)
    bare = scan.readouts()
    for readout in bare:
        readout.header["flags"] = 0
    (one,), (other,) = images(scan, gadget(), flagged), images(scan, gadget(), bare)
    assert np.array_equal(one.data, other.data)
    (behind,) = images(scan, gadget(), flagged, ReferencePrep())
    assert error(scan, behind.data[0, 0, 0, 0]) < 0.15


@pytest.mark.parametrize("gadget", [CompressedSensing, CartesianSpirit])
def test_separate_calibration_lines_calibrate_only(gadget: type[AnyMaskRecon]) -> None:
    scan = Scan(n=64, coils=6, acceleration=(1, 2), mode="separate")
    readouts = scan.readouts()
    for line in range(20, 44):
        extra = Acquisition(None, -scan_line(scan, line))
        extra.header["idx"]["kspace_encode_step_1"] = line
        extra.set_flag(Flag.IS_PARALLEL_CALIBRATION)
        readouts.append(extra)
    (found,) = images(scan, gadget(), readouts)
    assert error(scan, found.data[0, 0, 0, 0]) < 0.15


def scan_line(scan: Scan, line: int) -> np.ndarray:
    kspace: np.ndarray = fftc(scan.maps * scan.truth, (-2, -1)).astype(np.complex64)
    return kspace[:, 0, line]


@pytest.mark.parametrize("gadget", [CompressedSensing, CartesianSpirit])
def test_later_buffers_use_an_earlier_calibration(gadget: type[AnyMaskRecon]) -> None:
    scan = Scan(n=48, coils=6, repetitions=2)
    mask = lines(scan, block=16, share=0.6)
    later = mask.copy()
    later[0, 22:26] = False
    first, second = chosen(scan, mask), chosen(scan, later)
    readouts = [r for r in first if r.header["idx"]["repetition"] == 0] + [r for r in second if r.header["idx"]["repetition"] == 1]
    chain = [AcquisitionAccumulateTrigger(trigger_dimension="repetition"), BucketToBuffer(), gadget()]
    found = list(run(chain, readouts, Context(header=scan.header)))
    assert [error(scan, item.data[0, 0, 0, 0]) < 0.4 for item in found] == [True, True]  # type: ignore[attr-defined]
    with pytest.raises(GadgetError, match=r"centre of k-space is fully sampled over \(0, 0, 0\)"):
        images(scan, gadget(calibration_size=16), [r for r in second if r.header["idx"]["repetition"] == 1])


def test_each_frame_of_a_buffer_has_its_own_mask() -> None:
    scan = Scan(n=48, coils=6, repetitions=3, noise=0.5)
    masks = [lines(scan, share=0.5, seed=seed) for seed in range(3)]
    readouts = [
        readout
        for readout in scan.readouts()
        if masks[int(readout.header["idx"]["repetition"])][0, int(readout.header["idx"]["kspace_encode_step_1"])]
    ]
    (found,) = images(scan, CompressedSensing(), readouts)
    assert found.data.shape[:3] == (1, 1, 3)
    assert [int(header["repetition"]) for header in found.headers[0, 0]] == [0, 1, 2]
    errors = [error(scan, frame) for frame in found.data[0, 0, :, 0]]
    assert max(errors) < 0.1
    assert len(set(errors)) == 3


def test_one_channel_and_samples_that_are_no_numbers(caplog: pytest.LogCaptureFixture) -> None:
    scan = Scan(n=48, coils=1, noise=0.5)
    readouts = chosen(scan, lines(scan, share=0.8))
    (clean,) = images(scan, CompressedSensing(), readouts)
    assert error(scan, clean.data[0, 0, 0, 0]) < 0.25
    readouts[3].data[0, 40:44] = np.nan
    context = Context(header=scan.header)
    (found,) = images(scan, CompressedSensing(), readouts, context=context)
    assert context.counts["samples not finite"] == 4
    assert "count as not acquired" in caplog.text
    assert nrmse(clean.data, found.data) < 0.05
    (again,) = images(scan, CompressedSensing(), readouts)
    assert np.array_equal(again.data, found.data)
    (sets,) = images(scan, CompressedSensing(map_sets=2), readouts)  # of one channel there is one set
    assert np.array_equal(sets.data, found.data)


def test_an_asymmetric_echo_is_completed_and_not_taken_for_zeros() -> None:
    scan = Scan(n=64, coils=6)
    readouts = scan.readouts()
    for readout in readouts:
        readout.data[:, :16] = 1e3  # what a wrong zero-filling might leave
        readout.header["discard_pre"] = 16
    (found,) = images(scan, CompressedSensing(), readouts)
    zeroed = [replaced(readout) for readout in readouts]
    (zero_filled,) = images(scan, CartesianFFT(), zeroed)  # type: ignore[arg-type]
    assert error(scan, found.data[0, 0, 0, 0]) < 0.7 * error(scan, zero_filled.data[0, 0, 0, 0])


@pytest.mark.parametrize("name", ["l1", "tv", "spirit"])
def test_partial_fourier_lines_are_missing_like_others(name: str) -> None:
    scan = Scan(n=64, coils=6, first=12, noise=0.5)
    (found,), (zero_filled,) = scan.run(METHODS[name]()), scan.run(CartesianFFT())
    assert isinstance(found, ImageArray)
    assert isinstance(zero_filled, ImageArray)
    assert error(scan, found.data[0, 0, 0, 0]) < 0.7 * error(scan, zero_filled.data[0, 0, 0, 0])
    (completed,) = scan.run(METHODS[name](), PartialFourierPOCS())
    assert isinstance(completed, ImageArray)
    assert error(scan, completed.data[0, 0, 0, 0]) < 0.2 * error(scan, zero_filled.data[0, 0, 0, 0])


def replaced(readout: Acquisition) -> Acquisition:
    data = readout.data.copy()
    data[:, :16] = 0
    return readout.with_data(data)


def test_missing_centres_and_wrong_properties_are_explained() -> None:
    scan = Scan(n=32, coils=4, acceleration=(1, 2), mode="interleaved")
    with pytest.raises(GadgetError, match=r"CompressedSensing.*over \(1, 1, 32\) samples.*IS_PARALLEL_CALIBRATION"):
        images(scan, CompressedSensing(), scan.readouts())
    with pytest.raises(GadgetError, match=r"CartesianSpirit.*\(1, 5, 5\) are needed"):
        images(scan, CartesianSpirit(), scan.readouts())
    with pytest.raises(ParameterError, match="odd"):
        CartesianSpirit(kernel_size=4)
    with pytest.raises(ParameterError, match="wavelet"):
        CompressedSensing(wavelet="bior2.2")
    with pytest.raises(ParameterError, match="method"):
        CompressedSensing(method="magic")
    with pytest.raises(ParameterError, match="map_sets=2 needs coil_maps=espirit"):
        CompressedSensing(map_sets=2, coil_maps="image")
