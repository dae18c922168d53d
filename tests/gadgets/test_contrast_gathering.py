"""Which readouts and images become one set of maps, and when."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest

from gadgets.contrast_gathering import Due, Gathering
from gadgets.header import Header
from gadgets.items import Acquisition, Image, Item
from gadgets.layout import Flag, ImageType
from gadgets.meta import QUANTITY

CONTRASTS, LINES = 3, 4


def header(z: int = 1, segments: int = 1) -> Header:
    space = f"<matrixSize><x>8</x><y>4</y><z>{z}</z></matrixSize><fieldOfView_mm><x>8</x><y>4</y><z>1</z></fieldOfView_mm>"
    return Header(
        f"<ismrmrdHeader><encoding><encodedSpace>{space}</encodedSpace><reconSpace>{space}</reconSpace><encodingLimits><segment>"
        f"<minimum>0</minimum><maximum>{segments - 1}</maximum><center>0</center></segment></encodingLimits></encoding></ismrmrdHeader>"
    )


def readout(contrast: int, line: int, *flags: Flag, **counters: int) -> Acquisition:
    one = Acquisition(None, np.zeros((1, 8), np.complex64))
    for name, value in {"contrast": contrast, "kspace_encode_step_1": line, **counters}.items():
        one.header["idx"][name] = value
    for flag in (*flags, *([Flag.LAST_IN_ENCODE_STEP1] if line == LINES - 1 else [])):
        one.set_flag(flag)
    return one


def sequential(**counters: int) -> list[Acquisition]:
    """One contrast after another."""
    return [readout(contrast, line, **counters) for contrast in range(CONTRASTS) for line in range(LINES)]


def interleaved(**counters: int) -> list[Acquisition]:
    """Trains of echoes."""
    return [readout(contrast, line, **counters) for line in range(LINES) for contrast in range(CONTRASTS)]


def gathering(minimum: int = 2, counter: str = "contrast", head: Header | None = None) -> Gathering:
    return Gathering(head or header(), counter, CONTRASTS, minimum)  # type: ignore[arg-type]


def told(gather: Gathering, items: Iterable[Item]) -> list[tuple[int, Due]]:
    """What was due, with the number of items that had come."""
    found = [(number, due) for number, item in enumerate(items, 1) for due in gather.add(item)]
    return found + [(-1, due) for due in gather.finish()]


def summary(found: list[tuple[int, Due]]) -> list[tuple[int, tuple[int, ...], bool]]:
    return [(number, due.contrasts, due.complete) for number, due in found]


def test_first_maps_with_enough_contrasts_and_whole_ones_with_the_last_readout() -> None:
    assert summary(told(gathering(), sequential())) == [(8, (0, 1), False), (12, (0, 1, 2), True)]
    assert summary(told(gathering(minimum=0), sequential())) == [(12, (0, 1, 2), True)]


def test_echoes_of_a_train_are_complete_together() -> None:
    assert summary(told(gathering(), interleaved())) == [(12, (0, 1, 2), True)]


@pytest.mark.parametrize("make", [sequential, interleaved])
def test_slices_and_repetitions_are_fitted_on_their_own(make: type) -> None:
    scan = [one for repetition in range(2) for slice_ in range(2) for one in make(slice=slice_, repetition=repetition)]
    found = [due for _, due in told(gathering(minimum=0), scan)]
    assert [(due.group.key.slice, due.group.key.repetition) for due in found] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert all(len(items) == LINES for due in found for items in due.group.contrasts.values())


def test_slices_line_by_line_in_turn() -> None:
    scan = [one for group in zip(*(sequential(slice=n) for n in (0, 2, 1)), strict=True) for one in group]
    found = [due for _, due in told(gathering(minimum=0), scan)]
    assert [due.group.key.slice for due in found] == [0, 2, 1]
    assert all(
        {int(one.header["idx"]["slice"]) for one in items} == {due.group.key.slice}
        for due in found
        for items in due.group.contrasts.values()
    )  # type: ignore[union-attr]


def test_noise_and_navigators_do_not_count() -> None:
    extra = [readout(0, 0, Flag.IS_NOISE_MEASUREMENT), readout(7, 0, Flag.IS_NAVIGATION_DATA)]
    assert summary(told(gathering(minimum=0), [*extra, *sequential()])) == [(14, (0, 1, 2), True)]


@pytest.mark.parametrize("ending", [Flag.LAST_IN_REPETITION, Flag.LAST_IN_SLICE])
def test_the_flag_of_the_last_readout_is_enough(ending: Flag) -> None:
    scan = interleaved()
    for one in scan:
        one.header["flags"] = 0
    scan[-1].set_flag(ending)
    assert summary(told(gathering(), scan)) == [(12, (0, 1, 2), True)]


def test_without_flags_the_next_repetition_or_the_end() -> None:
    scan = [*interleaved(), *interleaved(repetition=1)]
    for one in scan:
        one.header["flags"] = 0
    assert summary(told(gathering(), scan)) == [(13, (0, 1, 2), True), (-1, (0, 1, 2), True)]


def test_a_scan_that_ends_early_says_what_is_missing() -> None:
    found = told(gathering(), sequential()[: 2 * LINES])
    assert summary(found) == [(8, (0, 1), False), (-1, (0, 1), True)]
    assert found[-1][1].missing == (2,)


def test_a_contrast_in_segments_is_complete_with_the_last() -> None:
    scan = [readout(c, line, segment=segment) for c in range(CONTRASTS) for segment in range(2) for line in range(LINES)]
    assert summary(told(gathering(minimum=0, head=header(segments=2)), scan)) == [(24, (0, 1, 2), True)]


def test_a_volume_is_complete_with_its_last_partition() -> None:
    scan = [readout(c, line, kspace_encode_step_2=e2) for c in range(CONTRASTS) for e2 in range(2) for line in range(LINES)]
    for one in scan[2 * LINES - 1 :: 2 * LINES]:
        one.set_flag(Flag.LAST_IN_SLICE)
    found = told(gathering(minimum=1, head=header(z=2)), scan)
    assert summary(found) == [(8, (0,), False), (24, (0, 1, 2), True)]


@pytest.mark.parametrize("counter", ["set", "repetition", "phase"])
def test_contrasts_by_another_counter(counter: str) -> None:
    scan = [readout(0, line, **{counter: n}) for n in range(CONTRASTS) for line in range(LINES)]
    assert summary(told(gathering(counter=counter), scan)) == [(8, (0, 1), False), (12, (0, 1, 2), True)]


def test_what_comes_after_its_maps_is_counted() -> None:
    gather = gathering()
    assert len(told(gather, [*sequential(), readout(0, 0)])) == 2
    assert gather.late == 1


def picture(contrast: int, series: int = 1, kind: ImageType = ImageType.MAGNITUDE, **meta: str) -> Image:
    one = Image(None, np.ones((1, 1, 4, 4), np.float32), dict(meta))
    one.header["contrast"], one.header["image_series_index"], one.header["image_type"] = contrast, series, kind
    return one


def test_images_count_once_each_and_only_ordinary_ones() -> None:
    scan = [
        picture(0),
        picture(0, 2, ImageType.PHASE),
        picture(0, 3),
        picture(2),
        picture(2, **{QUANTITY: "T1"}),
        picture(1, GADGETRON_DataRole="Gfactor"),
        picture(1),
    ]
    found = told(gathering(), scan)
    assert summary(found) == [(4, (0, 2), False), (7, (0, 1, 2), True)]
    assert all(one.header["image_series_index"] == 1 for items in found[-1][1].group.contrasts.values() for one in items)


def test_calibration_readouts_go_with_the_maps_and_make_none_themselves() -> None:
    calibration = [readout(0, line, Flag.IS_PARALLEL_CALIBRATION) for line in range(LINES)]
    elsewhere = [readout(0, line, Flag.IS_PARALLEL_CALIBRATION, slice=5) for line in range(LINES)]
    found = told(gathering(minimum=0), [*calibration, *elsewhere, *sequential()])
    assert summary(found) == [(20, (0, 1, 2), True)]
    assert found[0][1].group.calibration == calibration


def test_calibration_of_the_first_repetition_serves_the_later_ones_until_it_comes_again() -> None:
    def calibration(**counters: int) -> list[Acquisition]:
        return [readout(0, line, Flag.IS_PARALLEL_CALIBRATION, **counters) for line in range(LINES)]

    first, again = calibration(), calibration(repetition=2)
    scan = [*first, *sequential(), *sequential(repetition=1), *again, *sequential(repetition=2)]
    assert [due.group.calibration for _, due in told(gathering(minimum=0), scan)] == [first, first, again]


def test_calibration_of_all_slices_goes_with_a_group_of_simultaneous_ones() -> None:
    calibration = [readout(0, line, Flag.IS_PARALLEL_CALIBRATION, slice=slice_) for slice_ in range(4) for line in range(LINES)]
    gather = Gathering(header(), "contrast", CONTRASTS, 0, simultaneous=True)
    found = told(gather, [*calibration, *sequential(slice=0), *sequential(slice=1)])
    assert [(due.group.key.slice, due.group.calibration) for _, due in found] == [(0, calibration), (1, calibration)]


def test_repetitions_that_count_beyond_16_bits_are_fitted_one_by_one() -> None:
    scan = [one for repetition in (65534, 65535, 0, 1) for one in sequential(repetition=repetition)]
    found = [due for _, due in told(gathering(minimum=0), scan)]
    assert [due.group.key.repetition for due in found] == [65534, 65535, 0, 1]
    assert all(len(items) == LINES for due in found for items in due.group.contrasts.values())


def test_a_double_angle_pair_is_a_group_of_its_own() -> None:
    pair = [readout(contrast, line, set=1) for contrast in range(2) for line in range(LINES)]
    gather = Gathering(header(), "contrast", CONTRASTS, 0, pair_set=1)
    found = told(gather, [*pair, *sequential(), *sequential(repetition=1)])
    assert [(due.group.key.pair, due.contrasts, due.missing) for _, due in found] == [
        (True, (0, 1), ()),
        (False, (0, 1, 2), ()),
        (False, (0, 1, 2), ()),
    ]
    late = told(Gathering(header(), "contrast", CONTRASTS, 0, pair_set=1), [*pair[:LINES], *sequential()])
    assert [(due.group.key.pair, due.contrasts, due.missing) for _, due in late] == [(False, (0, 1, 2), ()), (True, (0,), (1,))]


def test_contrasts_that_ended_early_are_not_among_those_that_are_fitted() -> None:
    found = told(gathering(minimum=0), sequential()[: 2 * LINES + 1])
    assert [(due.contrasts, due.missing, dict(due.short)) for _, due in found] == [((0, 1), (), {2: (1, LINES)})]
    # Echoes of a train end together; those of the slice before tell how long they are.
    scan = [*interleaved(), *interleaved(slice=1)[: 3 * CONTRASTS]]
    (_, whole), (_, cut) = told(gathering(minimum=0), scan)
    assert (whole.contrasts, dict(whole.short)) == ((0, 1, 2), {})
    assert (cut.contrasts, dict(cut.short)) == ((), dict.fromkeys(range(CONTRASTS), (3, LINES)))


def test_without_any_flag_a_cartesian_contrast_must_have_its_centre() -> None:
    limits = "<kspace_encoding_step_1><minimum>0</minimum><maximum>3</maximum><center>2</center></kspace_encoding_step_1>"
    xml = header().xml.decode().replace("<segment>", f"{limits}<segment>")

    def cut(lines: int) -> Due:
        scan = interleaved()[: lines * CONTRASTS]
        for one in scan:
            one.header["flags"] = 0
        ((_, due),) = told(gathering(minimum=0, head=Header(xml)), scan)
        return due

    assert dict(cut(1).short) == dict.fromkeys(range(CONTRASTS), (1, LINES))
    assert dict(cut(3).short) == {}
