"""Which readouts or images become one set of maps, and when there are enough of them."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from gadgets.frames import skipped
from gadgets.header import Header
from gadgets.items import Acquisition, Image, Item
from gadgets.layout import Flag, ImageType
from gadgets.meta import is_quantitative

ContrastCounter = Literal["contrast", "set", "phase", "repetition"]
_COUNTERS = ("phase", "set", "contrast", "repetition")


class Key(NamedTuple):
    """What is fitted on its own: from readouts or images, encoding space, slice, and the counters that do not tell contrasts apart."""

    source: Literal["readouts", "images"]
    space: int
    slice: int
    rest: tuple[int, ...]
    repetition: int

    def __str__(self) -> str:
        return f"slice {self.slice}" + (f", repetition {self.repetition}" if self.repetition else "")


@dataclass(eq=False)
class Group:
    """What has come of it so far.

    contrasts: items by contrast, counted from 0, in the order of time; calibration: readouts for sensitivities only; settled: contrasts
    that are complete; early: whether enough of them for first maps were told already.
    """

    key: Key
    contrasts: dict[int, list[Acquisition | Image]] = field(default_factory=dict)
    calibration: list[Acquisition] = field(default_factory=list)
    settled: set[int] = field(default_factory=set)
    early: bool = False

    @property
    def newest(self) -> Acquisition | Image:
        """The item that came last."""
        return max((items[-1] for items in self.contrasts.values()), key=lambda item: item.received)


@dataclass(frozen=True, eq=False)
class Due:
    """Maps are due.

    contrasts: that they are made from, in ascending order; complete: whether these are all; missing: contrasts that never came.
    """

    group: Group
    contrasts: tuple[int, ...]
    complete: bool
    missing: tuple[int, ...] = ()


class Gathering:
    """Sorts what comes by `Key` and contrast.

    A contrast of readouts is complete with its LAST_IN_ENCODE_STEP1 (3D: LAST_IN_SLICE) readout of the last average and segment. A group
    is complete when all its contrasts are, or with a LAST_IN_SLICE or LAST_IN_REPETITION readout after all have come, evenly; without
    flags, when its slice begins another repetition, or at the end. An image is a complete contrast. First maps are due when enough
    contrasts are complete while no other has begun: echoes of a train, which come line by line, are all complete at the same time.

    Args:
        header: of the measurement.
        counter: what tells contrasts apart.
        contrasts: how many there are; 1 for a train of readouts that is cut into frames later.
        minimum: so many are enough for first maps; 0: no first maps.
    """

    def __init__(self, header: Header, counter: ContrastCounter, contrasts: int, minimum: int) -> None:
        self.header, self.counter, self.contrasts, self.minimum = header, counter, contrasts, minimum
        self._groups: dict[Key, Group] = {}
        self._last: dict[tuple[str, int, int], Key] = {}
        self._series: int | None = None
        self.late = 0
        """Readouts and images that came after their maps had been due."""

    def add(self, item: Item) -> Iterator[Due]:
        """Take an item; what is due now."""
        if isinstance(item, Acquisition):
            if skipped(item) is None:
                yield from self._add_readout(item)
        elif isinstance(item, Image) and self._is_ordinary(item):
            yield from self._add_image(item)

    def finish(self) -> Iterator[Due]:
        """What the end makes due."""
        for group in list(self._groups.values()):
            if group.contrasts:
                yield self._close(group)

    def _is_ordinary(self, image: Image) -> bool:
        """Images of the first series, without maps, phases and the like."""
        if image.header["image_type"] not in (ImageType.MAGNITUDE, ImageType.COMPLEX) or is_quantitative(image.meta):
            return False
        if image.meta.get("GADGETRON_DataRole", "Image") != "Image":
            return False
        series = int(image.header["image_series_index"])
        self._series = series if self._series is None else self._series
        return series == self._series

    def _add_image(self, image: Image) -> Iterator[Due]:
        header = image.header
        counters = {name: int(header[name]) for name in _COUNTERS}
        group = yield from self._group("images", 0, int(header["slice"]), counters)
        if group is None:
            return
        number = counters[self.counter] - self._first(0)
        group.contrasts[number] = [image]
        group.settled.add(number)
        yield from self._due(group, whole=False)

    def _add_readout(self, readout: Acquisition) -> Iterator[Due]:
        header = readout.header
        idx, space = header["idx"], int(header["encoding_space_ref"])
        counters = {name: int(idx[name]) for name in _COUNTERS}
        group = yield from self._group("readouts", space, int(idx["slice"]), counters)
        if group is None:
            return
        if readout.is_flag_set(Flag.IS_PARALLEL_CALIBRATION):
            group.calibration.append(readout)
            return
        number = 0 if self.contrasts == 1 else counters[self.counter] - self._first(space)
        group.contrasts.setdefault(number, []).append(readout)
        if self._settles(readout, space):
            group.settled.add(number)
        if readout.is_flag_set(Flag.LAST_IN_REPETITION) and self.counter != "repetition":
            for other in [one for one in self._groups.values() if one.key.repetition == group.key.repetition and one.contrasts]:
                yield from self._due(other, whole=True)
        else:
            yield from self._due(group, whole=readout.is_flag_set(Flag.LAST_IN_SLICE) and _even(group))

    def _group(
        self, source: Literal["readouts", "images"], space: int, slice_: int, counters: dict[str, int]
    ) -> Generator[Due, None, Group | None]:
        """The group of an item, after what its coming makes due; None when its maps have been due already."""
        repetition = 0 if self.counter == "repetition" else counters["repetition"]
        rest = tuple(counters[name] for name in ("phase", "set", "contrast") if name != self.counter)
        key = Key(source, space, slice_, rest, repetition)
        place = (source, space, slice_)
        if self._last.get(place) == key:
            self.late += 1
            return None
        for other in [one for one in self._groups.values() if one.key[:3] == place and one.key.repetition != repetition and one.contrasts]:
            yield self._close(other)
        return self._groups.setdefault(key, Group(key))

    def _first(self, space: int) -> int:
        limit = self.header.encodings[space].limit(self.counter) if space < len(self.header.encodings) else None
        return limit.minimum if limit else 0

    def _settles(self, readout: Acquisition, space: int) -> bool:
        encoding = self.header.encoding(space)
        for name in ("average", "segment"):
            limit = encoding.limit(name)
            if limit is not None and readout.header["idx"][name] < limit.maximum:
                return False
        volume = encoding.encoded.matrix[2] > 1
        return readout.is_flag_set(Flag.LAST_IN_SLICE if volume else Flag.LAST_IN_ENCODE_STEP1)

    def _due(self, group: Group, whole: bool) -> Iterator[Due]:
        wanted = range(self.contrasts)
        if group.settled.issuperset(wanted) or (whole and set(wanted) <= set(group.contrasts)):
            yield self._close(group)
        elif self.minimum and not group.early and len(group.settled) >= self.minimum and group.settled.issuperset(group.contrasts):
            group.early = True
            yield Due(group, tuple(sorted(group.settled)), complete=False)

    def _close(self, group: Group) -> Due:
        key = group.key
        del self._groups[key]
        self._last[key[:3]] = key
        missing = tuple(n for n in range(self.contrasts) if n not in group.contrasts)
        return Due(group, tuple(sorted(group.contrasts)), complete=True, missing=missing)


def _even(group: Group) -> bool:
    """Whether all contrasts have as many items."""
    return len({len(items) for items in group.contrasts.values()}) == 1
