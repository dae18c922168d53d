"""Which readouts or images become one set of maps, and when there are enough of them."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
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
    """What is fitted on its own: from readouts or images, encoding space, slice, and the counters that do not tell contrasts apart.

    pair: the double-angle pair for a flip-angle map, not a series of contrasts. Of simultaneous slices, `slice` numbers their group.
    """

    source: Literal["readouts", "images"]
    space: int
    slice: int
    rest: tuple[int, ...]
    repetition: int
    pair: bool = False

    def __str__(self) -> str:
        return f"slice {self.slice}" + (f", repetition {self.repetition}" if self.repetition else "")


@dataclass(eq=False)
class Group:
    """What has come of it so far.

    contrasts: items by contrast, counted from 0, in the order of time; calibration: readouts for sensitivities only, those of the slice
    that came last, of simultaneous slices all; settled: contrasts that are complete; early: whether enough of them for first maps
    were told already.
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

    contrasts: that they are made from, in ascending order; complete: whether no more will come; missing: contrasts that never came;
    short: those that ended early, with the number of their readouts and of how many these should have been.
    """

    group: Group
    contrasts: tuple[int, ...]
    complete: bool
    missing: tuple[int, ...] = ()
    short: Mapping[int, tuple[int, int]] = field(default_factory=dict)


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
        pair_set: the set counter of a double-angle pair, whose two images are told apart by the contrast counter; None: there is none.
        simultaneous: slices come in groups, calibration readouts slice by slice.
    """

    def __init__(
        self,
        header: Header,
        counter: ContrastCounter,
        contrasts: int,
        minimum: int,
        pair_set: int | None = None,
        simultaneous: bool = False,
    ) -> None:
        self.header, self.counter, self.contrasts, self.minimum = header, counter, contrasts, minimum
        self.pair_set, self.simultaneous = pair_set, simultaneous
        self._groups: dict[Key, Group] = {}
        self._last: dict[tuple[str, int, int, bool], Key] = {}
        self._calibration: dict[tuple[int, int], tuple[int, list[Acquisition]]] = {}
        self._usual: dict[int, int] = {}
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
        number = self._number(group.key, counters)
        group.contrasts[number] = [image]
        group.settled.add(number)
        yield from self._due(group, whole=False)

    def _add_readout(self, readout: Acquisition) -> Iterator[Due]:
        header = readout.header
        idx, space = header["idx"], int(header["encoding_space_ref"])
        counters = {name: int(idx[name]) for name in _COUNTERS}
        if readout.is_flag_set(Flag.IS_PARALLEL_CALIBRATION):
            self._calibrate(readout, space)
            return
        group = yield from self._group("readouts", space, int(idx["slice"]), counters)
        if group is None:
            return
        number = self._number(group.key, counters)
        group.contrasts.setdefault(number, []).append(readout)
        if self._settles(readout, space):
            group.settled.add(number)
        if readout.is_flag_set(Flag.LAST_IN_REPETITION) and self.counter != "repetition" and not group.key.pair:
            for other in [one for one in self._groups.values() if one.key.repetition == group.key.repetition and one.contrasts]:
                yield from self._due(other, whole=True)
        else:
            yield from self._due(group, whole=readout.is_flag_set(Flag.LAST_IN_SLICE) and _even(group))

    def _group(
        self, source: Literal["readouts", "images"], space: int, slice_: int, counters: dict[str, int]
    ) -> Generator[Due, None, Group | None]:
        """The group of an item, after what its coming makes due; None when its maps have been due already."""
        repetition = 0 if self.counter == "repetition" else counters["repetition"]
        pair = self.pair_set is not None and counters["set"] == self.pair_set
        own = "contrast" if pair else self.counter
        rest = tuple(counters[name] for name in ("phase", "set", "contrast") if name != own)
        key = Key(source, space, slice_, rest, repetition, pair)
        if self._last.get(_place(key)) == key:
            self.late += 1
            return None
        for other in [one for one in self._groups.values() if _place(one.key) == _place(key) and one.key.repetition != repetition]:
            yield self._close(other)
        return self._groups.setdefault(key, Group(key))

    def _calibrate(self, readout: Acquisition, space: int) -> None:
        """Keep it for its slice, instead of those of an earlier repetition."""
        idx = readout.header["idx"]
        place, repetition = (space, int(idx["slice"])), int(idx["repetition"])
        if place not in self._calibration or self._calibration[place][0] != repetition:
            self._calibration[place] = repetition, []
        self._calibration[place][1].append(readout)

    def _calibration_of(self, key: Key) -> list[Acquisition]:
        return [
            readout
            for (space, slice_), (_, readouts) in self._calibration.items()
            if key.source == "readouts" and space == key.space and (self.simultaneous or slice_ == key.slice)
            for readout in readouts
        ]

    def _wanted(self, key: Key) -> range:
        """The contrasts of a group."""
        return range(2 if key.pair else self.contrasts)

    def _number(self, key: Key, counters: Mapping[str, int]) -> int:
        """The contrast, counted from 0."""
        if key.pair:
            return counters["contrast"]
        return 0 if self.contrasts == 1 and key.source == "readouts" else counters[self.counter] - self._first(key.space)

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
        wanted, enough = self._wanted(group.key), self.minimum and not group.key.pair and len(group.settled) >= self.minimum
        if group.settled.issuperset(wanted) or (whole and set(wanted) <= set(group.contrasts)):
            group.settled.update(wanted)
            yield self._close(group)
        elif enough and not group.early and group.settled.issuperset(group.contrasts):
            group.early = True
            group.calibration = self._calibration_of(group.key)
            yield Due(group, tuple(sorted(group.settled)), complete=False)

    def _close(self, group: Group) -> Due:
        key = group.key
        del self._groups[key]
        self._last[_place(key)] = key
        group.calibration = self._calibration_of(key)
        missing = tuple(n for n in self._wanted(key) if n not in group.contrasts)
        short = self._short(group)
        return Due(group, tuple(n for n in sorted(group.contrasts) if n not in short), complete=True, missing=missing, short=short)

    def _short(self, group: Group) -> dict[int, tuple[int, int]]:
        """Contrasts that the end of the scan or another repetition cut short.

        They have fewer readouts than the complete ones of the group, or of the one before. Where there is nothing to compare with, those
        of a Cartesian scan that lack the centre of k-space.
        """
        if group.key.source == "images" or group.key.pair or self.contrasts == 1:
            return {}
        counts = {n: len(items) for n, items in group.contrasts.items()}
        complete = [counts[n] for n in group.settled]
        if complete:
            self._usual[group.key.space] = min(complete)
        open_ = [n for n in counts if n not in group.settled]
        if group.key.space in self._usual:
            usual = self._usual[group.key.space]
            return {n: (counts[n], usual) for n in open_ if counts[n] < usual}
        return {n: (counts[n], lines) for n in open_ if (lines := self._lines_without_centre(group, n))}

    def _lines_without_centre(self, group: Group, contrast: int) -> int:
        """How many lines a Cartesian contrast should have if its central one did not come; else 0."""
        space = group.key.space
        encoding = self.header.encodings[space] if space < len(self.header.encodings) else None
        limit = encoding.limit("kspace_encoding_step_1") if encoding is not None and encoding.trajectory == "cartesian" else None
        if limit is None or limit.maximum == limit.minimum:
            return 0
        lines = {int(item.header["idx"]["kspace_encode_step_1"]) for item in group.contrasts[contrast] if isinstance(item, Acquisition)}
        around = range(limit.center - 1, limit.center + 2)  # an accelerated scan may leave the very centre out
        return 0 if lines.intersection(around) else limit.maximum - limit.minimum + 1


def _place(key: Key) -> tuple[str, int, int, bool]:
    """What has one group after another."""
    return key.source, key.space, key.slice, key.pair


def _even(group: Group) -> bool:
    """Whether all contrasts have as many items."""
    return len({len(items) for items in group.contrasts.values()}) == 1
