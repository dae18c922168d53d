"""Clips of a series: every frame leaves once, in order, with its neighbours around it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gadgets.clips import Clip, Clips


def cut(count: int, length: int, overlap: int) -> list[Clip[int]]:
    """The clips of a series of numbered frames."""
    clips: Clips[int] = Clips(length, overlap)
    found = [clips.add(n) for n in range(count)] + [clips.finish()]
    return [clip for clip in found if clip is not None]


@given(st.integers(0, 80), st.integers(1, 24), st.integers(0, 23))
def test_every_frame_leaves_once_in_order(count: int, length: int, overlap: int) -> None:
    overlap = min(overlap, length - 1)
    clips = cut(count, length, overlap)
    assert [frame for clip in clips for frame in clip.frames[clip.first : clip.last]] == list(range(count))
    assert all(len(clip.frames) == length for clip in clips)
    if count >= length:
        for clip in clips:
            assert clip.frames == list(range(clip.frames[0], clip.frames[0] + length))
        for clip in clips[1:-1]:  # the frames that leave keep their distance from the ends
            assert clip.first == overlap // 2
            assert length - clip.last == overlap - overlap // 2


def test_thirty_frames_are_two_clips_of_24() -> None:
    first, second = cut(30, 24, 4)
    assert (first.frames, first.first, first.last) == (list(range(24)), 0, 22)
    assert (second.frames, second.first, second.last) == (list(range(6, 30)), 16, 24)


def test_a_series_that_ends_with_a_clip_has_it_twice() -> None:
    first, second = cut(8, 8, 3)
    assert (first.frames, first.first, first.last, first.again) == (list(range(8)), 0, 6, False)
    assert (second.frames, second.first, second.last, second.again) == (list(range(8)), 6, 8, True)
    assert not any(clip.again for clip in cut(9, 8, 3))


def test_a_short_series_is_filled_up_there_and_back() -> None:
    assert cut(3, 8, 2) == [Clip([0, 1, 2, 1, 0, 1, 2, 1], 0, 3)]
    assert cut(1, 4, 0) == [Clip([0, 0, 0, 0], 0, 1)]
    assert cut(0, 4, 0) == []


def test_an_overlap_must_leave_something() -> None:
    with pytest.raises(ValueError, match="clips of 4 frames cannot overlap by 4; choose 0 to 3"):
        Clips(4, 4)
