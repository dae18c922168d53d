"""Gathering non-Cartesian readouts into frames: what is reconstructed to one image.

An image is due the moment its last readout is there, so that nothing waits for the next frame or for the end of the scan.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from gadgets.header import Header
from gadgets.items import Acquisition
from gadgets.layout import Flag
from recon.cache import ArrayKey

SKIPPED: dict[Flag, str] = {
    Flag.IS_NOISE_MEASUREMENT: "noise",
    Flag.IS_NAVIGATION_DATA: "navigator",
    Flag.IS_PHASECORR_DATA: "phase correction",
    Flag.IS_HPFEEDBACK_DATA: "feedback",
    Flag.IS_DUMMYSCAN_DATA: "dummy",
    Flag.IS_RTFEEDBACK_DATA: "feedback",
    Flag.IS_SURFACECOILCORRECTIONSCAN_DATA: "coil correction",
    Flag.IS_PHASE_STABILIZATION_REFERENCE: "phase stabilisation",
    Flag.IS_PHASE_STABILIZATION: "phase stabilisation",
}
"""Readouts that belong to no image, and what they are called in the log."""

_SKIPPED_MASK = sum(flag.mask for flag in SKIPPED)


def skipped(acquisition: Acquisition) -> str | None:
    """What kind of readout without image content this is; None for imaging and calibration readouts."""
    flags = int(acquisition.header["flags"])
    if not flags & _SKIPPED_MASK:
        return None
    return next(name for flag, name in SKIPPED.items() if flags & flag.mask)


Place = tuple[int, int]
"""Encoding space and slice: what shares sensitivities and coil compression."""


class Series(NamedTuple):
    """The counters that tell one image series over time from another."""

    space: int
    slice: int
    contrast: int
    phase: int
    set: int

    @property
    def place(self) -> Place:
        """Encoding space and slice."""
        return self.space, self.slice


@dataclass(eq=False)
class Readout:
    """One readout without discarded samples. data: complex64 ``[coil, sample]``; trajectory: ``[sample, axis]``, see `Trajectories`.

    resident: a copy of the data on a GPU (CuPy), if there is one and they are finite.
    """

    header: np.void
    data: np.ndarray
    trajectory: np.ndarray
    received: float
    resident: Any = None

    @cached_property
    def key(self) -> ArrayKey:
        """Stands for the trajectory."""
        return ArrayKey(self.trajectory)

    @property
    def series(self) -> Series:
        """The series it belongs to."""
        idx = self.header["idx"]
        return Series(int(self.header["encoding_space_ref"]), int(idx["slice"]), int(idx["contrast"]), int(idx["phase"]), int(idx["set"]))

    def flag(self, flag: Flag) -> bool:
        """Whether a flag is set."""
        return bool(int(self.header["flags"]) & flag.mask)


@dataclass(eq=False)
class Frame:
    """The readouts of one image.

    fresh: the last so many were in no earlier frame; number: counts all frames from 1; repetition: counts the frames of a series from
    0, or None for the counter of the readouts; triggered: when it was complete (perf_counter).
    """

    readouts: list[Readout]
    fresh: int
    number: int
    repetition: int | None = None
    triggered: float = field(default_factory=time.perf_counter)

    @property
    def series(self) -> Series:
        """The series it belongs to."""
        return self.readouts[-1].series

    @property
    def received(self) -> float:
        """When its newest readout had arrived."""
        return self.readouts[-1].received

    @property
    def header(self) -> np.void:
        """The header of the readout in the middle: its geometry, counters and time stand for the image."""
        return self.readouts[len(self.readouts) // 2].header


class RepetitionFrames:
    """One frame a series and repetition, complete with its LAST_IN_SLICE, LAST_IN_REPETITION or LAST_IN_MEASUREMENT readout.

    Where these flags are missing, a frame is complete when the repetition counter of its series changes, or at the end; `late` counts
    these frames. No readout is left over. LAST_IN_SLICE counts only in the last average.

    Args:
        header: of the measurement.
        each_contrast: a frame is complete with its own LAST_IN_ENCODE_STEP1 or LAST_IN_CONTRAST readout of the last average (in the plane).
    """

    def __init__(self, header: Header, each_contrast: bool = False) -> None:
        self._each_contrast = [each_contrast and encoding.encoded.matrix[2] == 1 for encoding in header.encodings]
        limits = [encoding.limit("average") for encoding in header.encodings]
        self._averages = [limit.maximum if limit else 0 for limit in limits]
        self._pending: dict[Series, list[Readout]] = {}
        self._number = 0
        self.late = 0
        self.left_over = 0

    def add(self, readout: Readout) -> list[Frame]:
        """Take a readout; returns the frames that are complete now."""
        series = readout.series
        frames = []
        pending = self._pending.get(series)
        if pending and pending[-1].header["idx"]["repetition"] != readout.header["idx"]["repetition"]:
            self.late += 1
            frames += self._complete([series])
        self._pending.setdefault(series, []).append(readout)
        if readout.flag(Flag.LAST_IN_REPETITION) or readout.flag(Flag.LAST_IN_MEASUREMENT):
            frames += self._complete(list(self._pending))
        elif readout.header["idx"]["average"] >= self._averages[series.space]:
            if readout.flag(Flag.LAST_IN_SLICE):
                frames += self._complete([one for one in self._pending if (one.space, one.slice) == (series.space, series.slice)])
            elif self._each_contrast[series.space] and (readout.flag(Flag.LAST_IN_ENCODE_STEP1) or readout.flag(Flag.LAST_IN_CONTRAST)):
                frames += self._complete([series])
        return frames

    def finish(self) -> list[Frame]:
        """The frames that the end of the scan completes."""
        self.late += len(self._pending)
        return self._complete(list(self._pending))

    def _complete(self, series: Iterable[Series]) -> list[Frame]:
        frames = []
        for one in series:
            self._number += 1
            readouts = self._pending.pop(one)
            frames.append(Frame(readouts, len(readouts), self._number))
        return frames


class WindowFrames:
    """A frame of the last `window` readouts of a series whenever `stride` new ones have come (stride = window: no overlap).

    No frame is ever `late`. Readouts after the last frame are in none; `left_over` counts them.
    """

    def __init__(self, window: int, stride: int) -> None:
        self.window = window
        self.stride = stride
        self._recent: dict[Series, deque[Readout]] = {}
        self._fresh: dict[Series, int] = {}
        self._repetitions: dict[Series, int] = {}
        self._number = 0
        self.late = 0

    def add(self, readout: Readout) -> list[Frame]:
        """Take a readout; returns the frame that is complete now, if any."""
        series = readout.series
        recent = self._recent.setdefault(series, deque(maxlen=self.window))
        recent.append(readout)
        fresh = self._fresh[series] = self._fresh.get(series, 0) + 1
        if len(recent) < self.window or fresh < self.stride:
            return []
        self._fresh[series] = 0
        self._number += 1
        repetition = self._repetitions.get(series, 0)
        self._repetitions[series] = repetition + 1
        return [Frame(list(recent), fresh, self._number, repetition)]

    def finish(self) -> list[Frame]:
        """No frame: what is left would be an incomplete one."""
        return []

    @property
    def left_over(self) -> int:
        """Readouts that have been in no frame so far."""
        return sum(self._fresh.values())
