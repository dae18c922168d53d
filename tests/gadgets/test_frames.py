"""Which readouts make a frame, and when it is complete."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gadgets.frames import Frame, Readout, RepetitionFrames, WindowFrames, skipped
from gadgets.header import Header
from gadgets.layout import Flag
from tests.gadgets import scans

TRAJECTORY = np.zeros((4, 2), np.float32)


def readout(number: int, *flags: Flag, **idx: int) -> Readout:
    acquisition = scans.readout(np.zeros((1, 4)), TRAJECTORY, number, flags, **idx)
    return Readout(acquisition.header, acquisition.data, TRAJECTORY, float(number))


def numbers(frame: Frame) -> list[int]:
    return [int(one.header["scan_counter"]) for one in frame.readouts]


@given(st.integers(1, 8), st.data())
def test_windows_hold_the_newest_readouts_and_lose_none(window: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, window))
    count = data.draw(st.integers(0, 60))
    gathering = WindowFrames(window, stride)
    at = {}
    for number in range(count):
        for frame in gathering.add(readout(number)):
            at[number] = frame
    assert list(at) == list(range(window - 1, count, stride))
    for repetition, (number, frame) in enumerate(at.items()):
        assert numbers(frame) == list(range(number - window + 1, number + 1))
        assert (frame.number, frame.repetition, frame.received) == (repetition + 1, repetition, number)
    assert sum(frame.fresh for frame in at.values()) + gathering.left_over == count
    assert gathering.finish() == []


def test_series_have_windows_of_their_own() -> None:
    gathering = WindowFrames(2, 2)
    frames = [frame for number in range(8) for frame in gathering.add(readout(number, slice=number % 2))]
    assert [numbers(frame) for frame in frames] == [[0, 2], [1, 3], [4, 6], [5, 7]]
    assert [(frame.number, frame.repetition) for frame in frames] == [(1, 0), (2, 0), (3, 1), (4, 1)]


def test_flags_end_a_repetition_at_once() -> None:
    gathering = RepetitionFrames(Header(scans.header_xml((8, 8))))
    assert gathering.add(readout(0, repetition=0)) == []
    assert [numbers(one) for one in gathering.add(readout(1, Flag.LAST_IN_REPETITION, repetition=0))] == [[0, 1]]
    assert gathering.add(readout(2, repetition=1)) == []
    assert [numbers(one) for one in gathering.add(readout(3, Flag.LAST_IN_SLICE, repetition=1))] == [[2, 3]]
    assert [numbers(one) for one in gathering.add(readout(4, Flag.LAST_IN_MEASUREMENT, repetition=2))] == [[4]]
    assert gathering.finish() == []
    assert gathering.late == 0


def test_last_in_slice_ends_all_contrasts_of_that_slice_only() -> None:
    gathering = RepetitionFrames(Header(scans.header_xml((8, 8))))
    for number in range(6):
        assert gathering.add(readout(number, slice=number // 3, contrast=number % 3)) == []
    frames = gathering.add(readout(6, Flag.LAST_IN_SLICE, slice=0, contrast=2))
    assert [numbers(one) for one in frames] == [[0], [1], [2, 6]]
    assert [numbers(one) for one in gathering.finish()] == [[3], [4], [5]]
    assert gathering.late == 3


def test_without_flags_the_repetition_counter_ends_a_frame() -> None:
    gathering = RepetitionFrames(Header(scans.header_xml((8, 8))))
    frames = [numbers(one) for number in range(6) for one in gathering.add(readout(number, repetition=number // 2))]
    assert frames == [[0, 1], [2, 3]]
    assert [numbers(one) for one in gathering.finish()] == [[4, 5]]
    assert gathering.late == 3


def test_averages_share_an_image() -> None:
    limits = b"<encodingLimits><average><minimum>0</minimum><maximum>1</maximum><center>0</center></average>"
    header = Header(scans.header_xml((8, 8)).replace(b"<encodingLimits>", limits))
    gathering = RepetitionFrames(header)
    assert gathering.add(readout(0, Flag.LAST_IN_SLICE, average=0)) == []
    assert [numbers(one) for one in gathering.add(readout(1, Flag.LAST_IN_SLICE, average=1))] == [[0, 1]]


def test_the_middle_readout_stands_for_the_frame() -> None:
    frame = Frame([readout(number) for number in range(5)], 5, 1)
    assert frame.header["scan_counter"] == 2
    assert frame.received == 4.0


def test_readouts_without_image_content_are_told_apart() -> None:
    kinds = {flag: skipped(scans.readout(np.zeros((1, 4)), None, 0, (flag,))) for flag in Flag}
    assert kinds[Flag.IS_NOISE_MEASUREMENT] == "noise"
    assert kinds[Flag.IS_NAVIGATION_DATA] == "navigator"
    assert kinds[Flag.IS_DUMMYSCAN_DATA] == "dummy"
    images = (Flag.LAST_IN_SLICE, Flag.IS_PARALLEL_CALIBRATION, Flag.IS_PARALLEL_CALIBRATION_AND_IMAGING, Flag.IS_REVERSE, Flag.USER1)
    assert all(kinds[flag] is None for flag in images)


def test_a_contrast_is_an_image_when_it_is_complete_if_asked_for() -> None:
    def due(each_contrast: bool) -> list[tuple[int, list[int]]]:
        gathering = RepetitionFrames(Header(scans.header_xml((8, 8))), each_contrast)
        flags = [(), (Flag.LAST_IN_ENCODE_STEP1,), (), (Flag.LAST_IN_CONTRAST,), (Flag.LAST_IN_REPETITION,)]
        scan = [readout(number, *each, contrast=number // 2) for number, each in enumerate(flags)]
        return [(number, numbers(frame)) for number, one in enumerate(scan) for frame in gathering.add(one)]

    assert due(True) == [(1, [0, 1]), (3, [2, 3]), (4, [4])]
    assert due(False) == [(4, [0, 1]), (4, [2, 3]), (4, [4])]
