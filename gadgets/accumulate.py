"""Triggers: readouts gathered into buckets."""

from __future__ import annotations

import difflib
import re
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from gadgets.base import Context, Gadget, ParameterError, Stream, parameter
from gadgets.header import Header
from gadgets.items import Acquisition, AcquisitionBucket, Item, Stats, Waveform
from gadgets.layout import Flag


def _lower(value: Any) -> Any:
    return (value.strip().lower() or "none") if isinstance(value, str) else value


Dimension = Annotated[
    Literal[
        "none",
        "kspace_encode_step_1",
        "kspace_encode_step_2",
        "average",
        "slice",
        "contrast",
        "phase",
        "repetition",
        "set",
        "segment",
        "user_0",
        "user_1",
        "user_2",
        "user_3",
        "user_4",
        "user_5",
        "user_6",
        "user_7",
        "n_acquisitions",
    ],
    BeforeValidator(_lower),
]
"""An encoding counter, or the count of readouts."""

_LAST_FLAG = {
    "average": Flag.LAST_IN_AVERAGE,
    "slice": Flag.LAST_IN_SLICE,
    "contrast": Flag.LAST_IN_CONTRAST,
    "phase": Flag.LAST_IN_PHASE,
    "repetition": Flag.LAST_IN_REPETITION,
    "set": Flag.LAST_IN_SET,
    "segment": Flag.LAST_IN_SEGMENT,
}

FLAG_NAMES = {flag.name.lower(): flag for flag in Flag}
"""Acquisition flags by their lower-case ISMRMRD name."""

NOT_IMAGING = (
    "is_navigation_data is_hpfeedback_data is_dummyscan_data is_rtfeedback_data "
    "is_surfacecoilcorrectionscan_data is_phase_stabilization_reference is_phase_stabilization"
)


def flag_named(name: str) -> Flag:
    """The flag of this name (``last_in_slice``). Raises `ParameterError` naming the nearest one."""
    if name.lower() in FLAG_NAMES:
        return FLAG_NAMES[name.lower()]
    near = difflib.get_close_matches(name.lower(), FLAG_NAMES, 1)
    raise ParameterError(
        f"no acquisition flag {name!r}" + (f"; did you mean {near[0]!r}?" if near else f" (there are: {', '.join(FLAG_NAMES)})")
    )


def gather(bucket: AcquisitionBucket, acquisition: Acquisition) -> bool:
    """Put a readout into a bucket: calibration into ``ref``, imaging into ``data``, both into both; phase correction into neither.

    Returns False for a readout that goes nowhere.
    """
    calibration = acquisition.is_flag_set(Flag.IS_PARALLEL_CALIBRATION)
    both = acquisition.is_flag_set(Flag.IS_PARALLEL_CALIBRATION_AND_IMAGING)
    imaging = not calibration and not acquisition.is_flag_set(Flag.IS_PHASECORR_DATA)
    if calibration or both:
        bucket.ref.append(acquisition)
        _count(bucket.refstats, acquisition)
    if imaging:
        bucket.data.append(acquisition)
        _count(bucket.datastats, acquisition)
    return calibration or both or imaging


def _count(stats: list[Stats], acquisition: Acquisition) -> None:
    space = int(acquisition.header["encoding_space_ref"])
    stats.extend(Stats() for _ in range(space + 1 - len(stats)))
    stats[space].add(acquisition)


def _released(bucket: AcquisitionBucket) -> AcquisitionBucket:
    """The bucket, stamped: its newest readout is its own last one, not the one whose counter ended it."""
    bucket.received = max((part[-1].received for part in (bucket.data, bucket.ref) if part), default=0.0)
    bucket.triggered = time.perf_counter()
    return bucket


def _keep(bucket: AcquisitionBucket, acquisition: Acquisition, context: Context) -> None:
    if not gather(bucket, acquisition):
        context.count("phase correction readouts left out of buckets")


class AcquisitionAccumulateTrigger(Gadget):
    """Gather readouts and waveforms; release a bucket for each value of the sorting counter when the trigger counter changes.

    Acquisition, Waveform -> AcquisitionBucket, in ascending order of the sorting counter, the waveforms with the first. Noise
    readouts are dropped.

    A change of counter shows only when the next readout arrives. With `trigger_on_flags`, a readout that is flagged as the last of
    its trigger dimension, or of the measurement, releases at once, so that the last image does not wait for the end of the stream.
    A flag counts only where it must end the bucket: the header says that the dimension steps, or that all counters are at their
    maximum. If a flag is belied by a further readout with the same counter, flags are not trusted any more and a warning says so.
    """

    stock = (("gadgetron_mricore", "AcquisitionAccumulateTriggerGadget"),)

    trigger_dimension: Dimension = parameter("none", help="counter whose change releases the buckets; n_acquisitions: after so many")
    sorting_dimension: Dimension = parameter("none", help="counter that sorts readouts into separate buckets")
    n_acquisitions_before_trigger: int = parameter(40, ge=1, unit="readouts", help="before the first trigger, with n_acquisitions")
    n_acquisitions_before_ongoing_trigger: int = parameter(40, ge=1, unit="readouts", help="before each further trigger")
    trigger_on_flags: bool = parameter(True, help="release at LAST_IN_... flags too, not only when the counter has changed")
    ignore_flags: list[str] = parameter(NOT_IMAGING.split(), help="readouts with one of these flags are left out (and counted)")

    def __init__(self, name: str = "", /, **properties: Any) -> None:
        super().__init__(name, **properties)
        self._ignored = sum({flag_named(flag).mask for flag in self.ignore_flags})

    def __call__(self, items: Stream) -> Iterator[Item]:
        buckets: dict[int, AcquisitionBucket] = {}
        waveforms: list[Waveform] = []
        flags = _FlagTrigger(self.trigger_dimension, items.header) if self.trigger_on_flags else None
        previous: int | None = None
        gathered, wanted = 0, self.n_acquisitions_before_trigger

        wanted_items: Iterator[Acquisition | Waveform] = items.of(Acquisition, Waveform)
        for item in wanted_items:
            if isinstance(item, Waveform):
                waveforms.append(item)
                continue
            if self._left_out(item, items.context):
                continue
            index = counter(item, self.trigger_dimension)
            if previous is not None and index != previous:
                yield from _release(buckets, waveforms)
            elif flags is not None and flags.released:
                flags = None
                self._warn(items.context, index)
            previous = index

            _keep(buckets.setdefault(counter(item, self.sorting_dimension), AcquisitionBucket()), item, items.context)
            gathered += 1
            full = self.trigger_dimension == "n_acquisitions" and gathered >= wanted
            if full:
                gathered, wanted = 0, self.n_acquisitions_before_ongoing_trigger
            if (flags is not None and flags.ends(item)) or full:
                yield from _release(buckets, waveforms)
        yield from _release(buckets, waveforms)
        if waveforms:
            items.context.count("waveforms after the last trigger", len(waveforms))

    def _left_out(self, acquisition: Acquisition, context: Context) -> bool:
        if acquisition.is_flag_set(Flag.IS_NOISE_MEASUREMENT):
            context.count("noise readouts left out of buckets")
            return True
        if int(acquisition.header["flags"]) & self._ignored:
            context.count("readouts left out of buckets by ignore_flags")
            return True
        return False

    def _warn(self, context: Context, index: int) -> None:
        context.count("last-of flags belied by a further readout")
        context.log.warning(
            "%s: a readout was flagged as the last, but another one with %s %d follows; buckets may have been split there. Flags are not "
            "used any more in this measurement; set trigger_on_flags=false for such data",
            self.name,
            self.trigger_dimension,
            index,
        )


def counter(acquisition: Acquisition, dimension: str) -> int:
    """The readout's counter along `dimension`; 0 for ``none`` and ``n_acquisitions``."""
    if dimension in ("none", "n_acquisitions"):
        return 0
    counters = acquisition.header["idx"]
    return int(counters["user"][int(dimension[-1])] if dimension.startswith("user_") else counters[dimension])


def _release(buckets: dict[int, AcquisitionBucket], waveforms: list[Waveform]) -> Iterator[AcquisitionBucket]:
    if buckets:
        first = buckets[min(buckets)]
        first.waveforms = waveforms.copy()
        waveforms.clear()
    for index in sorted(buckets):
        yield _released(buckets.pop(index))


class _FlagTrigger:
    """Which readouts end a bucket by their flags."""

    def __init__(self, dimension: str, header: Header) -> None:
        self._last = _LAST_FLAG.get(dimension)
        limits = [encoding.limits for encoding in header.encodings]
        self._steps = any(dimension in space and space[dimension].maximum > space[dimension].minimum for space in limits)
        self._maxima = [{name: space[name].maximum for name in _LAST_FLAG if name in space} for space in limits]
        self.released = False
        """Whether the newest readout ended a bucket; the next one must then have another counter."""

    def ends(self, acquisition: Acquisition) -> bool:
        self.released = acquisition.is_flag_set(Flag.LAST_IN_MEASUREMENT) or (
            self._last is not None and acquisition.is_flag_set(self._last) and (self._steps or self._at_maximum(acquisition))
        )
        return self.released

    def _at_maximum(self, acquisition: Acquisition) -> bool:
        space = int(acquisition.header["encoding_space_ref"])
        if space >= len(self._maxima):
            return False
        counters = acquisition.header["idx"]
        return all(counters[name] >= maximum for name, maximum in self._maxima[space].items())


class FlagTrigger(Gadget):
    """Gather readouts; release a bucket after each readout whose flags fulfil an expression.

    Acquisition -> AcquisitionBucket. The expression combines lower-case flag names with ``!``, ``&&``, ``||`` and parentheses, for
    example ``last_in_slice && !is_navigation_data``; ``!`` binds tightest, then ``&&``, as in C. (Gadgetron lets ``!`` and ``&&``
    reach to the end of the expression; write parentheses for expressions that shall mean the same there.) What is left when the
    stream ends is released as the last bucket. Noise readouts are looked at and left out.
    """

    stock = (("gadgetron_mricore", "FlagTriggerGadget"),)

    trigger_flags: str = parameter(help="boolean expression of flag names, such as 'user1 || last_in_measurement'")

    def __init__(self, name: str = "", /, **properties: Any) -> None:
        super().__init__(name, **properties)
        self._predicate = flag_expression(self.trigger_flags)

    def __call__(self, items: Stream) -> Iterator[Item]:
        bucket = AcquisitionBucket()
        for acquisition in items.of(Acquisition):
            if acquisition.is_flag_set(Flag.IS_NOISE_MEASUREMENT):
                items.context.count("noise readouts left out of buckets")
            else:
                _keep(bucket, acquisition, items.context)
            if self._predicate(int(acquisition.header["flags"])) and (bucket.data or bucket.ref):
                yield _released(bucket)
                bucket = AcquisitionBucket()
        if bucket.data or bucket.ref:
            yield _released(bucket)


Predicate = Callable[[int], bool]


def flag_expression(text: str) -> Predicate:
    """Parse a boolean expression of flag names.

    Args:
        text: flag names, ``!``, ``&&``, ``||``, parentheses.

    Returns:
        Function of a header's ``flags``.

    Raises:
        ParameterError: not such an expression; the text says where and what was expected.
    """
    return _ExpressionParser(text).parse()


class _ExpressionParser:
    """Recursive descent over: or = and {'||' and}; and = not {'&&' not}; not = '!' not | '(' or ')' | flag."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = [(match.group(), match.start()) for match in re.finditer(r"&&|\|\||[!()]|\w+|\S", text)]
        self._at = 0

    def parse(self) -> Predicate:
        predicate = self._either()
        if self._at < len(self._tokens):
            raise self._error("'&&', '||' or the end")
        return predicate

    def _either(self) -> Predicate:
        terms = [self._all()]
        while self._take("||"):
            terms.append(self._all())
        return terms[0] if len(terms) == 1 else lambda flags: any(term(flags) for term in terms)

    def _all(self) -> Predicate:
        terms = [self._not()]
        while self._take("&&"):
            terms.append(self._not())
        return terms[0] if len(terms) == 1 else lambda flags: all(term(flags) for term in terms)

    def _not(self) -> Predicate:
        if self._take("!"):
            inner = self._not()
            return lambda flags: not inner(flags)
        if self._take("("):
            inner = self._either()
            if not self._take(")"):
                raise self._error("')'")
            return inner
        if self._at == len(self._tokens) or not re.fullmatch(r"\w+", self._tokens[self._at][0]):
            raise self._error("a flag name, '!' or '('")
        mask = flag_named(self._tokens[self._at][0]).mask
        self._at += 1
        return lambda flags: bool(flags & mask)

    def _take(self, token: str) -> bool:
        taken = self._at < len(self._tokens) and self._tokens[self._at][0] == token
        self._at += taken
        return taken

    def _error(self, expected: str) -> ParameterError:
        found, place = self._tokens[self._at] if self._at < len(self._tokens) else ("nothing", len(self._text))
        return ParameterError(f"trigger_flags {self._text!r}: expected {expected} at character {place + 1}, found {found!r}")
