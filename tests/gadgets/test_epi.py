"""Echo-planar gadgets on simulated trains: lines against the object's transform, phases against the truth, odd input."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from gadgets.base import Context, Gadget, GadgetError, ParameterError
from gadgets.epi import EPIReadout, OneEncoding
from gadgets.epi_phase import EPIPhaseCorrection
from gadgets.fourier import FFT, Combine, ReadoutFFT
from gadgets.header import Header
from gadgets.items import Acquisition, Image, Item, ReconBit, ReconBuffer, ReconData
from gadgets.layout import ACQUISITION_HEADER, SAMPLING_DESCRIPTION, Flag, blank
from gadgets.stock import find
from recon.epi import EpiReadout
from recon.epi_correction import estimate_line_phase
from recon.fourier import fftc, ifftc
from scripts import simulate
from tests.gadgets.readouts import make_header, noise_like, readout, through
from tests.recon.conftest import relative_error

CLEAN: dict[str, Any] = {"delay_us": 0.0, "phase": 0.0, "off_resonance_hz": 0.0}
SILENT: dict[str, Any] = {"noise": 0.0, "noise_readouts": 0}
RNG = np.random.default_rng(5)


def small(**properties: Any) -> simulate.Scan:
    return simulate.epi((32, 24), 3, **{**SILENT, "repetitions": 2, "slices": 2, "calibration_lines": 8, **properties})


def truth(scan: simulate.Scan, line: Acquisition) -> np.ndarray:
    """The object's transform along y at that line, ``[coil, x]``."""
    hybrid = fftc(scan.truth["images"][int(line.idx["slice"])] * scan.truth["coil_maps"], -2)
    return np.asarray(hybrid[:, int(line.idx["kspace_encode_step_1"])])


def process(
    scan: simulate.Scan, *gadgets: Gadget, header: bytes | None = None, items: Sequence[Item] | None = None
) -> tuple[list[Any], Context]:
    context = Context(header=Header(header or scan.header))
    return through(gadgets, scan.items if items is None else items, context), context


def imaging(items: Sequence[Item]) -> list[Acquisition]:
    return [i for i in items if isinstance(i, Acquisition) and not i.is_flag_set(Flag.IS_PHASECORR_DATA)]


# -- EPIReadout -----------------------------------------------------------------------------------------------------------


def test_lines_of_both_directions_become_the_image_along_x() -> None:
    scan = small(**CLEAN)
    lines, _ = process(scan, EPIReadout())
    assert len(lines) == len(scan.items)
    assert {line.is_flag_set(Flag.IS_REVERSE) for line in imaging(lines)} == {True, False}
    for line in lines:
        assert relative_error(truth(scan, line), line.data) < 1e-5
        assert (int(line.center_sample), int(line.number_of_samples)) == (16, 32)


def test_the_delay_of_the_gradient_is_found_and_taken_out_on_the_ramps_too() -> None:
    scan = small(delay_us=2.0, phase=0.0, off_resonance_hz=0.0)
    navigators = [i for i in scan.items if i.is_flag_set(Flag.IS_PHASECORR_DATA)][:3]  # type: ignore[attr-defined]
    raw, _ = process(scan, EPIReadout(delay=0.0), items=navigators)
    found = estimate_line_phase(np.stack([line.data for line in raw]), [False, True, False]).delay
    assert found == pytest.approx(float(scan.truth["delay_samples"]), abs=0.01)
    for gadget, bound in ((EPIReadout(), 2e-3), (EPIReadout(delay=2.0), 1e-5)):
        lines, _ = process(scan, gadget)
        assert max(relative_error(truth(scan, line), line.data) for line in imaging(lines)) < bound
    linear, _ = process(scan, EPIReadout(delay=0.0), EPIPhaseCorrection(odd_even="linear"))
    assert max(relative_error(truth(scan, line), line.data) for line in imaging(linear)) > 0.02  # what a linear phase cannot do


def test_a_shift_too_large_for_a_delay_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    scan = small(delay_us=25.0, readout=EpiReadout(64, 4.0, 300, 40, 40))
    with caplog.at_level(logging.WARNING, "reconstream"):
        process(scan, EPIReadout())
    assert "too much for a delay" in caplog.text


def test_navigators_stay_in_front_of_their_lines_and_none_is_lost() -> None:
    scan = small()
    order = [int(line.scan_counter) for line in process(scan, EPIReadout())[0]]
    assert order == sorted(order)
    only, _ = process(scan, EPIReadout(), items=scan.items[:2])
    assert [int(line.scan_counter) for line in only] == [1, 2]


@pytest.mark.parametrize(("pixels", "millimetres"), [(16, 48.0), (64, 96.0), (48, 72.0), (21, 63.0)])
def test_other_matrices_and_fields_of_view(pixels: int, millimetres: float) -> None:
    """Cropping and interpolation keep the brightness and the place of pixel n // 2."""
    scan = small(**CLEAN)
    xml = scan.header.decode()
    start = xml.index("<reconSpace>")
    recon = xml[start:].replace("<x>32</x>", f"<x>{pixels}</x>", 1).replace("<x>96.0</x>", f"<x>{millimetres}</x>", 1)
    lines, _ = process(scan, EPIReadout(), header=(xml[:start] + recon).encode())
    places = (np.arange(pixels) - pixels // 2) * (millimetres / pixels / 3.0)
    k = (np.arange(32) - 16) * 2 * np.pi / 32
    for line in lines[::7]:
        expected = fftc(truth(scan, line), -1) @ np.exp(1j * k[:, None] * places) / np.sqrt(32)
        assert relative_error(expected, line.data) < 1e-5


@pytest.mark.parametrize(
    ("line", "properties"),
    [
        (EpiReadout(32, 5.0, 160), {}),
        (EpiReadout(64, 3.0, 0, 100, 100, ramps="sinusoidal"), {"ramps": "sinusoidal"}),
        (EpiReadout(64, 3.0, 120, 40, 40, acquisition_delay=2), {"balanced": "false"}),
        (EpiReadout(64, 3.0, 120, 40, 40, sample_at=1), {"sample_at": "1"}),
    ],
)
def test_other_gradients(line: EpiReadout, properties: dict[str, str]) -> None:
    scan = small(**CLEAN, readout=line)
    lines, _ = process(scan, EPIReadout(delay=0.0, **properties))
    assert max(relative_error(truth(scan, item), item.data) for item in lines) < 1e-5


def test_a_header_without_description_counts_as_even_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    scan = small(**CLEAN, readout=EpiReadout(32, 5.0, 160))
    xml = scan.header.decode()
    start, end = xml.index("<trajectoryDescription>"), xml.index("</trajectoryDescription>") + len("</trajectoryDescription>")
    with caplog.at_level(logging.WARNING, "reconstream"):
        lines, _ = process(scan, EPIReadout(), header=(xml[:start] + xml[end:]).encode())
    assert caplog.text.count("no trajectoryDescription") == 1
    assert max(relative_error(truth(scan, item), item.data) for item in lines) < 1e-5
    scan = small(**CLEAN)  # with ramps: properties stand in for the description
    given = {"rampUpTime": 40, "flat_top_time": 120, "ramp_down_time": "40", "dwellTime": 3}
    lines, _ = process(scan, EPIReadout(**given), header=(xml[:start] + xml[end:]).encode())
    assert max(relative_error(truth(scan, item), item.data) for item in lines) < 1e-5


def test_a_gradient_that_cannot_be_is_an_error_with_its_numbers() -> None:
    scan = small()
    with pytest.raises(GadgetError, match=r"\[EPIReadout\].*flatTopTime.*do not fit"):
        process(scan, EPIReadout(dwell_time=30))
    with pytest.raises(GadgetError, match="has 40 samples, the header's trajectoryDescription says 64"):
        process(scan, EPIReadout(), items=[scan.items[0].with_data(scan.items[0].data[:, :40])])  # type: ignore[attr-defined]
    with pytest.raises(GadgetError, match="radial"):
        through(EPIReadout(), [readout(noise_like(RNG, 2, 8))], make_header(trajectory="radial"))
    short = [readout(noise_like(RNG, 2, 20), [Flag.IS_REVERSE])]
    with pytest.raises(GadgetError, match="20 samples do not determine 32 pixels"):
        through(EPIReadout(), short, make_header((32, 8, 1), trajectory="epi"))


@pytest.mark.parametrize("reverse", [False, True])
def test_fields_of_view_off_centre(reverse: bool) -> None:
    """A receiver of constant frequency, for a field of view moved by 9 mm (3 pixels) along the readout."""
    scan = small(**CLEAN, navigators=0)
    line = EpiReadout(64, 3.0, 120, 40, 40)
    chosen = [i for i in imaging(scan.items) if i.is_flag_set(Flag.IS_REVERSE) == reverse][:4]
    sign = -1 if reverse else 1
    flat_top = 2 * np.pi / (line.area(line.start + line.sampling_time) - line.area(line.start))
    times = line.start + (np.arange(64) + 0.5) * 3.0 - line.duration / 2
    moved = []
    for item in chosen:
        moved.append(item.with_data(item.data * np.exp(3j * sign * (line.positions() - flat_top * times)).astype(np.complex64)))
        moved[-1].header["position"], moved[-1].header["read_dir"] = (0, 9.0, 5.0), (0, 1, 0)
    undone, _ = process(scan, EPIReadout(), items=moved)
    kept, _ = process(scan, EPIReadout(off_center="none"), items=moved)
    assert max(relative_error(truth(scan, item), item.data) for item in undone) < 3e-3
    assert max(relative_error(truth(scan, item), item.data) for item in kept) > 0.1


def test_calibration_lines_of_a_second_encoding_space_are_transformed_and_cropped() -> None:
    scan = small(**CLEAN)
    cartesian = make_header((64, 24, 1), (32, 24, 1), encoded_mm=(192.0, 72.0, 4.0), recon_mm=(96.0, 72.0, 4.0)).xml.decode()
    encoding = cartesian[cartesian.index("<encoding>") : cartesian.index("</encoding>") + len("</encoding>")]
    xml = scan.header.decode().replace("</encoding>", "</encoding>" + encoding)
    wide = np.zeros((3, 64), np.complex64)
    wide[:, 16:48] = noise_like(RNG, 3, 32)
    plain = readout(fftc(wide, -1), fields={"encoding_space_ref": 1})
    turned = readout(np.roll(fftc(wide, -1)[:, ::-1], 1, -1), [Flag.IS_REVERSE], fields={"encoding_space_ref": 1})
    noise = readout(noise_like(RNG, 3, 256), [Flag.IS_NOISE_MEASUREMENT])
    context = Context(header=Header(xml))
    a, b, c = through([EPIReadout(), EPIPhaseCorrection(), OneEncoding()], [plain, noise, turned], context)
    np.testing.assert_allclose(a.data, wide[:, 16:48], atol=1e-5)
    assert b is noise
    np.testing.assert_allclose(c.data, wide[:, 16:48], atol=1e-5)
    assert int(a.encoding_space_ref) == int(c.encoding_space_ref) == 0
    assert int(plain.encoding_space_ref) == 1
    assert not context.counts


def test_discarded_samples_do_not_count() -> None:
    scan = small(**CLEAN, navigators=0)
    item = imaging(scan.items)[12]
    spoilt = item.with_data(item.data.copy())
    spoilt.data[:, :5] = 1e3
    spoilt.header["discard_pre"] = 5
    (line,), _ = process(scan, EPIReadout(), items=[spoilt])
    assert relative_error(truth(scan, line), line.data) < 0.5
    assert (int(line.discard_pre), int(line.discard_post)) == (0, 0)


# -- EPIPhaseCorrection ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shots", [1, 2])
@pytest.mark.parametrize("mode", ["linear", "polynomial", "pointwise"])
def test_phases_and_drift_are_taken_off_every_line(mode: str, shots: int) -> None:
    scan = small(shots=shots, off_resonance_hz=40.0)
    lines, context = process(scan, EPIReadout(), EPIPhaseCorrection(odd_even=mode))
    assert len(lines) == len(imaging(scan.items))
    assert not any(line.is_flag_set(Flag.IS_REVERSE) for line in lines)
    # Up to the phase of the first line, which the drift since the excitation gives.
    first = np.vdot(truth(scan, lines[12]), lines[12].data)
    for line in lines:
        expected = truth(scan, line) * first / abs(first)
        assert np.abs(line.data - expected).max() < 5e-3 * np.abs(truth(scan, lines[12])).max()
    assert not context.counts
    assert any(line.is_flag_set(Flag.IS_REVERSE) for line in imaging(scan.items))  # received items stay as they were


def test_none_corrects_nothing_and_consumes_navigators() -> None:
    scan = small(**CLEAN)
    straight, _ = process(scan, EPIReadout())
    lines, _ = process(scan, EPIReadout(), EPIPhaseCorrection(odd_even="none", drift="none"))
    for one, other in zip(imaging(straight), lines, strict=True):
        np.testing.assert_array_equal(one.data, other.data)


def test_lines_without_navigators_pass_with_one_warning_and_a_count(caplog: pytest.LogCaptureFixture) -> None:
    scan = small(navigators=0)
    with caplog.at_level(logging.WARNING, "reconstream"):
        lines, context = process(scan, EPIReadout(), EPIPhaseCorrection())
    assert len(lines) == len(scan.items)
    assert caplog.text.count("no navigators") == 1
    assert sum(context.counts.values()) == len(lines)


@pytest.mark.parametrize("shots", [1, 2])
def test_phases_from_the_image_where_there_are_no_navigators(shots: int) -> None:
    scan = small(navigators=0, shots=shots, off_resonance_hz=0.0, delay_us=-1.0, phase=0.7)
    scan.items[7].data[0, 3] = np.nan  # type: ignore[attr-defined]
    lines, context = process(scan, EPIReadout(), EPIPhaseCorrection(without_navigators="estimate"))
    assert [int(line.scan_counter) for line in lines] == [int(item.scan_counter) for item in scan.items]  # type: ignore[attr-defined]
    assert context.counts == {"echo trains whose phases were estimated from the image": 2}  # one a slice, and then kept
    for line in lines[10:]:
        assert relative_error(truth(scan, line), line.data) < (0.1 if 4 < int(line.idx["kspace_encode_step_1"]) < 20 else 0.25)
    cut, _ = process(scan, EPIReadout(), EPIPhaseCorrection(without_navigators="estimate"), items=scan.items[:20])
    assert len(cut) == 20
    backward = [i for i in imaging(scan.items) if i.is_flag_set(Flag.IS_REVERSE)][:6]
    alike, context = process(scan, EPIReadout(), EPIPhaseCorrection(without_navigators="estimate"), items=backward)
    assert len(alike) == 6
    assert context.counts == {"echo-planar lines without navigators left uncorrected": 6}


def test_a_train_without_navigators_takes_those_of_its_slice() -> None:
    scan = small(off_resonance_hz=40.0)
    later = [i for i in scan.items if not (i.is_flag_set(Flag.IS_PHASECORR_DATA) and int(i.idx["repetition"]) > 0)]  # type: ignore[attr-defined]
    expected, _ = process(scan, EPIReadout(), EPIPhaseCorrection())
    lines, context = process(scan, EPIReadout(), EPIPhaseCorrection(), items=later)
    assert not context.counts
    for one, other in zip(expected, lines, strict=True):
        np.testing.assert_allclose(one.data, other.data, atol=1e-4 * np.abs(one.data).max())


def test_navigators_that_cannot_serve_are_counted() -> None:
    scan = small(slices=1, repetitions=1)
    scan.items[1].data[0, 3] = np.nan  # type: ignore[attr-defined]
    lines, context = process(scan, EPIReadout(), EPIPhaseCorrection())
    assert context.counts == {
        "navigators with samples that are not finite left out": 1,
        "echo trains with navigators of one direction only": 1,
    }
    assert np.isfinite(np.stack([line.data for line in lines])).all()
    single, context = process(small(navigators=1), EPIReadout(), EPIPhaseCorrection())
    assert context.counts == {"echo trains with navigators of one direction only": 4}
    assert len(single) == 4 * 24


def test_lines_that_do_not_fit_their_navigators_are_errors() -> None:
    scan = small(slices=1, repetitions=1)
    with pytest.raises(GadgetError, match=r"\[EPIPhaseCorrection\].*EPIReadout in front"):
        process(scan, EPIPhaseCorrection(), items=[*scan.items[:3], scan.items[3].with_data(scan.items[3].data[:, :40])])  # type: ignore[attr-defined]
    with pytest.raises(GadgetError, match="differ in channels"):
        process(scan, EPIPhaseCorrection(), items=[scan.items[0], scan.items[1].with_data(scan.items[1].data[:2]), *scan.items[3:]])  # type: ignore[attr-defined]


def test_smoothing_over_repetitions_steadies_the_phases() -> None:
    scan = simulate.epi((32, 24), 2, repetitions=12, slices=1, noise=0.4, noise_readouts=0, **CLEAN)

    def spread(**properties: int) -> float:
        """How much the correction of the same line differs between late repetitions."""
        lines, _ = process(scan, EPIReadout(delay=0.0), EPIPhaseCorrection(odd_even="mean", drift="none", **properties))
        plain, _ = process(scan, EPIReadout(delay=0.0), EPIPhaseCorrection(odd_even="none", drift="none"))
        angles = [np.angle(np.vdot(one.data, other.data)) for one, other in zip(plain, lines, strict=True)]
        return float(np.std(angles[6 * 24 :: 24]))

    assert spread(navigatorParameterFilterLength=12) < 0.75 * spread()


def test_stock_names_and_properties() -> None:
    assert find("gadgetron_epi", "EPIReconXGadget") is EPIReadout
    gadget = find("gadgetron_epi", "EPICorrGadget")(
        verboseMode="true",
        referenceNavigatorNumber="1",
        B0CorrectionMode="linear",
        OEPhaseCorrectionMode="polynomial",
        navigatorParameterFilterLength="5",
        navigatorParameterFilterExcludeVols="2",
    )
    assert isinstance(gadget, EPIPhaseCorrection)
    assert (gadget.drift, gadget.odd_even, gadget.filter_length, gadget.filter_skip) == ("linear", "polynomial", 5, 2)
    assert find("gadgetron_epi", "FFTXGadget") is ReadoutFFT
    assert find("gadgetron_epi", "OneEncodingGadget") is OneEncoding
    assert find("gadgetron_mricore", "FFTGadget") is FFT
    assert find("gadgetron_mricore", "CombineGadget") is Combine
    with pytest.raises(ParameterError, match="B0CorrectionMode"):
        EPIPhaseCorrection(B0CorrectionMode="cubic")


# -- Fourier steps --------------------------------------------------------------------------------------------------------


def test_readout_fft_is_orthonormal_and_leaves_noise() -> None:
    line, noise = readout(noise_like(RNG, 2, 15)), readout(noise_like(RNG, 2, 15), [Flag.IS_NOISE_MEASUREMENT])
    a, b = through(ReadoutFFT(), [line, noise])
    np.testing.assert_allclose(a.data, fftc(line.data, 1), atol=1e-6)
    assert b is noise


def test_fft_and_combination() -> None:
    data = noise_like(RNG, 2, 1, 3, 4, 1, 6, 8)
    headers = np.zeros((2, 1, 3, 1, 6), ACQUISITION_HEADER)
    headers["number_of_samples"] = 8
    headers["idx"]["repetition"] = np.arange(3)[:, None, None]
    sampling = blank(SAMPLING_DESCRIPTION)
    sampling["recon_FOV"] = (8, 6, 1)
    images = through(FFT(), [ReconData([ReconBit(ReconBuffer(data, headers, sampling))])], make_header((8, 6, 1)))
    assert [int(image.repetition) for image in images] == [0, 1, 2, 0, 1, 2]
    assert [int(image.image_index) for image in images] == [1, 2, 3, 4, 5, 6]
    assert isinstance(images[4], Image)
    np.testing.assert_allclose(images[4].data, ifftc(data[1, 0, 1], (-2, -1)), atol=1e-6)
    (combined,) = through(Combine(), images[:1])
    np.testing.assert_allclose(np.abs(combined.data[0]), np.sqrt((np.abs(images[0].data) ** 2).sum(0)), rtol=1e-5)
    assert (int(combined.channels), combined.data.dtype) == (1, np.complex64)
    (again,) = through(Combine(), [combined])
    assert again is combined
