"""Simultaneous slices of a simulated scan come out one by one, where they belong, with little of one another."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gadgets.accumulate import AcquisitionAccumulateTrigger
from gadgets.base import Context, GadgetError
from gadgets.buffer import BucketToBuffer
from gadgets.header import Header
from gadgets.items import Acquisition, ImageArray
from gadgets.sms import SMSRecon
from tests.gadgets.readouts import through
from tests.gadgets.sms_scan import SMSScan


def reconstructed(
    scan: SMSScan, items: list[Acquisition] | None = None, header: Header | None = None, **properties: Any
) -> list[ImageArray]:
    trigger = AcquisitionAccumulateTrigger(trigger_dimension="repetition")
    arrays: list[ImageArray] = through(
        [trigger, BucketToBuffer(), SMSRecon(**properties)], scan.items() if items is None else items, header or scan.header
    )
    return arrays


def errors(array: ImageArray, truth: np.ndarray) -> list[float]:
    """Relative l2 error of the magnitude of each slice, without any scaling."""
    found = np.abs(array.data[:, 0, 0, 0, 0])
    return [float(np.linalg.norm(one - true) / np.linalg.norm(true)) for one, true in zip(found, truth, strict=True)]


@pytest.mark.parametrize("method", ["sense", "slice_grappa"])
@pytest.mark.parametrize(
    ("scan", "bound"),
    [
        (SMSScan(factor=1, shift=0.0), 0.025),
        (SMSScan(), 0.03),
        (SMSScan(mode="embedded"), 0.03),
        (SMSScan(factor=3, shift=1 / 3), 0.045),
        (SMSScan(factor=3, shift=-1 / 3), 0.045),
        (SMSScan(acceleration=2), 0.06),
        (SMSScan(factor=3, acceleration=2, shift=1 / 3), 0.12),
        (SMSScan(factor=2, shift=0.0, groups=1), 0.03),
    ],
)
def test_each_slice_is_the_true_one(scan: SMSScan, bound: float, method: str) -> None:
    (array,) = reconstructed(scan, method=method)
    assert array.data.shape == (scan.slices, 1, 1, 1, 1, scan.n, scan.n)
    assert max(errors(array, scan.truth)) < bound
    assert array.headers["slice"].ravel().tolist() == list(range(scan.slices))
    assert np.allclose(array.headers["position"][:, 0, 0, 2], 4.0 * np.arange(scan.slices))
    assert set(array.headers["acquisition_time_stamp"].ravel().tolist()) == {500}


@pytest.mark.parametrize("method", ["sense", "slice_grappa"])
def test_calibration_may_have_an_encoding_of_its_own(method: str) -> None:
    scan = SMSScan()
    calibration, images = scan.calibration(), scan.images()
    for one in calibration:
        one.header["encoding_space_ref"] = 1
    xml = scan.header.xml.decode()
    encoding = xml[xml.index("<encoding>") : xml.index("</encoding>") + len("</encoding>")]
    smaller = encoding.replace("<y>48</y>", "<y>32</y>")  # fewer lines, steps as wide
    both = encoding.replace("<calibration_encoding>0", "<calibration_encoding>1") + smaller
    (array,) = reconstructed(scan, [*calibration, *images], Header(xml.replace(encoding, both)), method=method)
    assert max(errors(array, scan.truth)) < 0.03


def test_partial_fourier() -> None:
    scan = SMSScan(first=8)
    (array,) = reconstructed(scan)
    assert max(errors(array, scan.truth)) < 0.11


@pytest.mark.parametrize("method", ["sense", "slice_grappa"])
@pytest.mark.parametrize(("factor", "shift", "acceleration", "bound"), [(2, 1 / 2, 1, 0.012), (3, 1 / 3, 1, 0.016), (3, 1 / 3, 2, 0.05)])
def test_little_of_a_slice_leaks_into_its_neighbours(factor: int, shift: float, acceleration: int, bound: float, method: str) -> None:
    scan = SMSScan(factor=factor, shift=shift, acceleration=acceleration)
    calibration = scan.calibration()
    scan.noise = 0.0
    for only in range(scan.factor):
        (array,) = reconstructed(scan, [*calibration, *scan.images(only=only)], method=method)
        energy = np.sqrt((np.abs(array.data) ** 2).sum((1, 2, 3, 4, 5, 6))).reshape(scan.factor, scan.groups)
        leaked = np.delete(energy / energy[only], only, 0)
        assert leaked.max() < bound


def test_repetitions_use_the_calibration_of_the_first() -> None:
    scan = SMSScan(repetitions=3)
    arrays = reconstructed(scan)
    assert [int(array.headers["repetition"][0, 0, 0]) for array in arrays] == [0, 1, 2]
    assert all(max(errors(array, scan.truth)) < 0.03 for array in arrays)
    again = reconstructed(scan)
    assert [array.data.tobytes() for array in again] == [array.data.tobytes() for array in arrays]


def test_a_scan_that_ends_early_gives_what_it_has() -> None:
    scan = SMSScan(repetitions=2)
    whole = scan.items()
    arrays = reconstructed(scan, whole[: -scan.n // 4])
    assert max(errors(arrays[0], scan.truth)) < 0.03
    assert arrays[1].headers["slice"].ravel().tolist() == [0, 1, 2, 3]
    assert [error < 0.03 for error in errors(arrays[1], scan.truth)] == [True, False, True, False]
    one_line = reconstructed(scan, whole[: -2 * scan.n + 1])
    assert [int(array.headers["repetition"][0, 0, 0]) for array in one_line] == [0, 1]
    assert np.isfinite(one_line[1].data).all()


def test_calibration_slice_by_slice_and_renewed() -> None:
    scan = SMSScan()
    before = [one for s in range(scan.slices) for one in scan.calibration(range(s, s + 1))]
    (array,) = reconstructed(scan, [*before, *scan.images()])
    (once,) = reconstructed(scan)
    # Noise differs, as it is drawn in another order.
    assert max(errors(array, np.abs(once.data[:, 0, 0, 0, 0]))) < 0.1
    dim = scan.calibration()
    for one in dim:
        one.data *= 0.5
    later = SMSScan(repetitions=2)
    arrays = reconstructed(later, [*scan.calibration(), *later.images(0), *_in_repetition(dim, 1), *later.images(1)])
    assert [max(errors(one, scan.truth)) < 0.03 for one in arrays] == [True, True]


def _in_repetition(readouts: list[Acquisition], repetition: int) -> list[Acquisition]:
    for one in readouts:
        one.header["idx"]["repetition"] = repetition
    return readouts


def test_properties_stand_for_what_the_header_lacks() -> None:
    scan = SMSScan(factor=3, shift=1 / 3, in_header=False)
    (array,) = reconstructed(scan, multiband=3)
    assert max(errors(array, scan.truth)) < 0.045
    (wrong,) = reconstructed(scan, multiband=3, caipi_shift=0.0)
    assert max(errors(wrong, scan.truth)) > 0.5


def test_what_the_parameters_change() -> None:
    scan = SMSScan(acceleration=2, groups=1)
    (plain,), (damped,) = reconstructed(scan), reconstructed(scan, regularization=1.0)
    assert np.linalg.norm(damped.data) < 0.7 * np.linalg.norm(plain.data)
    (small,), (large,) = (reconstructed(scan, method="slice_grappa", kernel_size=size) for size in (1, 5))
    assert max(errors(small, scan.truth)) > 1.15 * max(errors(large, scan.truth))
    assert int(plain.headers["image_series_index"][0, 0, 0]) == 1
    assert int(reconstructed(scan, image_series=4)[0].headers["image_series_index"][0, 0, 0]) == 5


SMALL = SMSScan(groups=1)


@pytest.mark.parametrize(
    ("items", "scan", "properties", "message"),
    [
        (SMALL.images(), SMALL, {}, "no single-band reference: .*IS_PARALLEL_CALIBRATION"),
        (SMSScan().calibration(range(1, 4)) + SMSScan().images(), SMSScan(), {}, "no single-band reference for slice 0"),
        (SMALL.items(), SMSScan(factor=3, groups=1), {}, "2 slices with a single-band reference cannot be in bands of 3"),
        (SMSScan().items(), SMSScan(factor=4, groups=1), {}, "slice counter 1, but 4 slices in bands of 4 make 1 groups"),
        (SMALL.items(), SMALL, {"multiband": 3}, "multiband_factor is 2, the property multiband 3"),
        (SMALL.items(), SMSScan(in_header=False), {}, "multiband_factor is missing; set the property multiband"),
        (SMSScan(coils=1).items(), SMSScan(coils=1), {}, "only 1 coils"),
        (SMSScan(calibration_lines=8).items(), SMSScan(), {}, "slice 0: 8 adjacent single-band calibration lines.*at least 12"),
    ],
)
def test_what_does_not_fit_is_named(items: list[Acquisition], scan: SMSScan, properties: dict[str, Any], message: str) -> None:
    with pytest.raises(GadgetError, match=rf"\[SMSRecon\].*{message}"):
        reconstructed(scan, items, **properties)


def test_a_line_with_nan_costs_only_that_line() -> None:
    items = SMALL.items()
    items[-10].data[2, 7] = np.nan
    context = Context(header=SMALL.header)
    trigger = AcquisitionAccumulateTrigger(trigger_dimension="repetition")
    (array,) = through([trigger, BucketToBuffer(), SMSRecon()], items, context)
    assert max(errors(array, SMALL.truth)) < 0.04
    assert context.counts["lines with NaN or infinite samples, left out"] == 1


def test_calibration_with_nan_is_refused() -> None:
    items = SMALL.items()
    items[10].data[0, 3] = np.nan
    with pytest.raises(GadgetError, match="slice 0: the single-band calibration data hold NaN"):
        reconstructed(SMALL, items)
