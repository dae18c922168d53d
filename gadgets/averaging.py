"""Repeated readouts, averaged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gadgets.base import Context, Gadget, Stream, parameter
from gadgets.header import Header
from gadgets.items import Acquisition, Item
from gadgets.layout import Flag, clone
from gadgets.trajectories import Repetitions

_KEY = ("kspace_encode_step_1", "kspace_encode_step_2", "slice", "contrast", "phase", "repetition", "set", "segment")
Key = tuple[int, ...]


class AverageReadouts(Gadget):
    """The mean of readouts that differ in nothing but the average. Acquisition -> Acquisition.

    A mean leaves with the last of its readouts, in its place and with its header, summed in double precision. Samples that are NaN,
    infinite (counted) or 0, which is what stands for a sample that was not taken, are left out of it. Averages may be told by another
    counter than `average`, as low-field and X-nuclei sequences do: with counter=repetition, every `averages` repetitions become one,
    and the repetition counter of the mean counts the groups; with counter=arrival, every `averages` readouts of a place do, whatever
    their counters say.

    Where readouts are missing, because the scan was stopped or lost some, the mean of those that came leaves when the next group
    begins or the stream ends, and a warning says how many there were. Noise readouts pass.
    """

    averages: int | None = parameter(None, ge=1, help="that a scan has; none: as the header's limit of the average counter says")
    counter: Literal["average", "repetition", "arrival"] = parameter("average", help="what tells averages apart")

    def __call__(self, items: Stream) -> Iterator[Item]:
        context = items.context
        gathered: dict[Key, _Mean] = {}
        groups: dict[Key, int] = {}
        repetitions: dict[Key, Repetitions] = {}
        for acquisition in items.of(Acquisition):
            averages = self.averages or _limit(context.header, acquisition)
            if averages == 1 or acquisition.is_flag_set(Flag.IS_NOISE_MEASUREMENT):
                self._check_single(acquisition, context)
                yield acquisition
                continue
            key = self._key(acquisition)
            if self.counter == "arrival":
                group, number = groups.get(key, 0), gathered[key].count if key in gathered else 0
            elif self.counter == "repetition":
                group, number = divmod(repetitions.setdefault(key, Repetitions()).of(acquisition.header["idx"]), averages)
            else:
                group, number = divmod(int(acquisition.header["idx"]["average"]), averages)
            if key in gathered and gathered[key].group != group:
                yield self._finished(gathered.pop(key), averages, context)
            mean = gathered.setdefault(key, _Mean(acquisition, group))
            mean.add(acquisition)
            if number == averages - 1:
                groups[key] = group + 1
                yield self._finished(gathered.pop(key), averages, context)
        for mean in gathered.values():
            yield self._finished(mean, self.averages or _limit(context.header, mean.last), context)

    def _check_single(self, acquisition: Acquisition, context: Context) -> None:
        """Say so where the readouts count averages that neither the header nor the parameter tells of."""
        if self.averages is None and acquisition.header["idx"]["average"]:
            if not context.counts.get(_UNTOLD):
                context.log.warning("%s: the readouts count averages, but the header gives no limit of them; set averages", self.name)
            context.count(_UNTOLD)

    def _key(self, acquisition: Acquisition) -> Key:
        idx = acquisition.header["idx"]
        names = [name for name in _KEY if name != "repetition" or self.counter != "repetition"]
        return (int(acquisition.header["encoding_space_ref"]), *(int(idx[name]) for name in names))

    def _finished(self, mean: _Mean, averages: int, context: Context) -> Acquisition:
        if mean.count < averages:
            if not context.counts.get(_FEWER):
                context.log.warning("%s: a readout came %d times instead of %d; the mean is of those", self.name, mean.count, averages)
            context.count(_FEWER)
        if mean.lost:
            context.count("samples not finite", mean.lost)
        result = mean.readout()
        if self.counter == "repetition":
            result.header["idx"]["repetition"] = mean.group & 0xFFFF
        return result


_UNTOLD = "readouts not averaged, for the header tells of no averages"
_FEWER = "readouts averaged fewer times than asked for"


@dataclass(eq=False)
class _Mean:
    """Sum and number of the samples of readouts of one place; a session hands on NaN as 0, which no receiver measures."""

    last: Acquisition
    group: int

    def __post_init__(self) -> None:
        self.count = 0
        self.lost = 0
        self._sum = np.zeros(self.last.data.shape, np.complex128)
        self._times = np.zeros(self.last.data.shape, np.int64)
        self._finite = np.zeros(self.last.data.shape, bool)

    def add(self, acquisition: Acquisition) -> None:
        """Take one more."""
        first, number = self.last, int(acquisition.header["scan_counter"])
        if acquisition.data.shape != first.data.shape:
            raise ValueError(
                f"readout {number} is {acquisition.data.shape} (channels, samples), an earlier average of it {first.data.shape}; all "
                "averages must be alike"
            )
        if not _same(acquisition.trajectory, first.trajectory):
            raise ValueError(
                f"readout {number} has another trajectory than an earlier average of it: these are no averages; leave AverageReadouts out"
            )
        finite = np.isfinite(acquisition.data)
        self._sum += np.where(finite, acquisition.data, 0)
        self._times += finite & (acquisition.data != 0)
        self._finite |= finite
        self.count += 1
        self.lost += finite.size - int(np.count_nonzero(finite))
        self.last = acquisition

    def readout(self) -> Acquisition:
        """The mean; NaN where no readout had a finite sample."""
        data = np.where(self._finite, self._sum / np.maximum(self._times, 1), np.nan).astype(np.complex64)
        result = Acquisition(clone(self.last.header), data, self.last.trajectory)
        result.received, result.triggered = self.last.received, self.last.triggered
        return result


def _same(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.shape == other.shape and np.allclose(one, other, rtol=1e-4, atol=1e-5)


def _limit(header: Header, acquisition: Acquisition) -> int:
    limit = header.encoding(int(acquisition.header["encoding_space_ref"])).limit("average")
    return 1 if limit is None else limit.maximum + 1
