"""Echo-planar lines freed of the phases that make ghosts, by navigators (flag IS_PHASECORR_DATA) or by the image itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from gadgets.base import Context, Gadget, Stream, parameter
from gadgets.epi import is_epi
from gadgets.items import Acquisition, Item
from gadgets.layout import Flag, clone
from recon.epi_correction import LinePhase, estimate_line_phase, smooth_line_phase
from recon.epi_entropy import least_entropy_phase

_DRIFT_ORDER = {"none": -1, "mean": 0, "linear": 1}
_ODD_EVEN_ORDER = {"none": -1, "mean": 0, "linear": 1, "polynomial": 4, "pointwise": 4}


class EPIPhaseCorrection(Gadget):
    """Take off the phases that differ between the lines of an echo train, as its navigators show them.

    Acquisition -> Acquisition, in image space along the readout (`EPIReadout`). Navigators are consumed. Each train is corrected by
    the navigators that came before it in its slice: the odd-even phase between forward and backward lines, and the drift off
    resonance from echo to echo, counted from the first line of the train. A train without navigators takes the phases of the
    train before it in its slice; where there was none, lines pass uncorrected, with a warning, or (`without_navigators`) wait for the
    end of their image, whose entropy then gives constant and linear phase. Readouts of encoding spaces that are not echo-planar pass.

    With two navigators there is no drift correction; with one, or with navigators of one direction only, no odd-even correction.
    """

    stock = (("gadgetron_epi", "EPICorrGadget"),)
    ignored = ("verboseMode", "referenceNavigatorNumber")

    odd_even: Literal["none", "mean", "linear", "polynomial", "pointwise"] = parameter(
        "polynomial",
        help="phase between forward and backward lines along x: constant, linear, of 4th order, or beyond it from pixel to pixel",
        aliases=("OEPhaseCorrectionMode",),
    )
    drift: Literal["none", "mean", "linear"] = parameter(
        "mean", help="phase from echo to echo along x: constant or linear", aliases=("B0CorrectionMode",)
    )
    without_navigators: Literal["pass", "estimate"] = parameter(
        "pass", help="lines of a slice without navigators: pass uncorrected, or with phases estimated from its first image"
    )
    filter_length: int = parameter(
        0, unit="trains", help="smooth the phases over so many trains of a slice; below 3: off", aliases=("navigatorParameterFilterLength",)
    )
    filter_skip: int = parameter(
        0, ge=0, unit="trains", help="first trains of a slice left out of smoothing", aliases=("navigatorParameterFilterExcludeVols",)
    )

    def __call__(self, items: Stream) -> Iterator[Item]:
        trains: dict[tuple[int, int, int], _Train] = {}
        for acquisition in items.of(Acquisition):
            header = acquisition.header
            space = int(header["encoding_space_ref"])
            if acquisition.is_flag_set(Flag.IS_NOISE_MEASUREMENT) or not is_epi(items.header, space):
                yield acquisition
                continue
            place = (space, int(header["idx"]["slice"]), int(header["idx"]["set"]))
            train = trains.setdefault(place, _Train())
            navigator = acquisition.is_flag_set(Flag.IS_PHASECORR_DATA)
            if train.held and (navigator or train.begins(acquisition)):
                yield from self._released(train, items.context)
            if navigator:
                train.collect(acquisition, items.context)
            elif self.without_navigators == "estimate" and train.phase is None and not train.navigators:
                train.held.append(acquisition)
                if acquisition.is_flag_set(Flag.LAST_IN_SLICE):
                    yield from self._released(train, items.context)
            else:
                yield self._corrected(acquisition, train, items.context)
        for place in sorted(trains):
            yield from self._released(trains[place], items.context)

    def _released(self, train: _Train, context: Context) -> Iterator[Item]:
        """The lines of an image that waited for its end, corrected by the phases estimated from it."""
        held, train.held = train.held, []
        if held:
            train.phase = _estimated(held, context)
        for acquisition in held:
            yield self._corrected(acquisition, train, context)

    def _corrected(self, acquisition: Acquisition, train: _Train, context: Context) -> Acquisition:
        if train.navigators:
            self._begin(train, context)
        train.step(acquisition)
        reverse = acquisition.is_flag_set(Flag.IS_REVERSE)
        if train.phase is None:
            if not context.counts.get(_UNCORRECTED):
                context.log.warning(
                    "%s: readout %d has no navigators (flag IS_PHASECORR_DATA) before it in its slice; it and others like it pass "
                    "uncorrected and will show ghosts; without_navigators=estimate finds phases from the image",
                    *(self.name, acquisition.header["scan_counter"]),
                )
            context.count(_UNCORRECTED)
            line = Acquisition(clone(acquisition.header), acquisition.data, acquisition.trajectory)
        else:
            factors = train.phase.correction(train.echo, reverse)
            if len(factors) != acquisition.data.shape[1]:
                raise ValueError(
                    f"readout {acquisition.header['scan_counter']} has {acquisition.data.shape[1]} samples, its navigators had "
                    f"{len(factors)}; put EPIReadout in front"
                )
            line = acquisition.with_data(acquisition.data * factors, acquisition.trajectory)
        line.header["flags"] = int(line.header["flags"]) & ~Flag.IS_REVERSE.mask
        return line

    def _begin(self, train: _Train, context: Context) -> None:
        """Phases of a train from the navigators collected for it."""
        directions = [navigator.is_flag_set(Flag.IS_REVERSE) for navigator in train.navigators]
        lines = [navigator.data for navigator in train.navigators]
        number = int(train.navigators[0].header["scan_counter"])
        train.navigators = []
        train.echo, train.counters = -1, None
        if len({line.shape for line in lines}) > 1:
            raise ValueError(f"navigators from readout {number} on differ in channels or samples: {[line.shape for line in lines]}")
        if len(set(directions)) < 2 and self.odd_even != "none":
            context.count("echo trains with navigators of one direction only")
        measured = estimate_line_phase(
            np.stack(lines), directions, _DRIFT_ORDER[self.drift], _ODD_EVEN_ORDER[self.odd_even], pointwise=self.odd_even == "pointwise"
        )
        if not train.history:
            context.log.info(
                "%s: first train from readout %d on: echo shift %.4f samples, odd-even phase %.3f rad, drift %.4f rad an echo",
                *(self.name, number, measured.delay, measured.odd_even[0], measured.drift[0]),
            )
        train.phase = measured
        train.count += 1
        train.history.append((measured, float(np.abs(np.stack(lines)).mean())))
        if self.filter_length >= 3 and train.count > self.filter_skip:
            train.history = train.history[-min(self.filter_length, train.count - self.filter_skip) :]
            train.phase = smooth_line_phase(*zip(*train.history, strict=True))
        else:
            train.history = train.history[-1:]


def _estimated(held: list[Acquisition], context: Context) -> LinePhase | None:
    """Phases from the lines of an image, None where they do not serve: one direction only, no finite samples."""
    encoding = context.header.encoding(int(held[0].header["encoding_space_ref"]))
    count = encoding.encoded.matrix[1]
    limit = encoding.limit("kspace_encoding_step_1")
    first = 0 if limit is None else count // 2 - limit.center
    imaging = [line for line in held if not line.is_flag_set(Flag.IS_PARALLEL_CALIBRATION)] or held
    lines, directions, rows = [], [], []
    for line in imaging:
        counters, row = line.header["idx"], first + int(line.header["idx"]["kspace_encode_step_1"])
        alike = all(counters[name] == imaging[0].header["idx"][name] for name in ("contrast", "kspace_encode_step_2"))
        if alike and 0 <= row < count and line.data.shape == imaging[0].data.shape and np.isfinite(line.data).all():
            lines.append(line.data)
            directions.append(line.is_flag_set(Flag.IS_REVERSE))
            rows.append(row)
    if len(set(directions)) < 2:
        return None
    context.count("echo trains whose phases were estimated from the image")
    return least_entropy_phase(np.stack(lines), directions, rows, count)


_UNCORRECTED = "echo-planar lines without navigators left uncorrected"


@dataclass
class _Train:
    """Where the echo train of a slice stands.

    navigators: collected for the next train; phase: of the present one, None where never a navigator came; echo: number of the
    newest line; counters: that a train has in common; history: phases and weights of the last trains; count: trains so far; held:
    lines that wait for an estimate from their image.
    """

    navigators: list[Acquisition] = field(default_factory=list)
    phase: LinePhase | None = None
    echo: int = -1
    counters: tuple[int, ...] | None = None
    history: list[tuple[LinePhase, float]] = field(default_factory=list)
    count: int = 0
    held: list[Acquisition] = field(default_factory=list)

    def begins(self, line: Acquisition) -> bool:
        """Whether a line belongs to another image than those held."""
        return _common(line) != _common(self.held[-1])

    def collect(self, navigator: Acquisition, context: Context) -> None:
        """Keep a navigator, unless it holds samples that are not finite."""
        if np.isfinite(navigator.data).all():
            self.navigators.append(navigator)
        else:
            context.count("navigators with samples that are not finite left out")

    def step(self, line: Acquisition) -> None:
        """Count an echo on; a line of another repetition begins a train."""
        counters = _common(line)
        self.echo = self.echo + 1 if self.counters in (None, counters) else 0
        self.counters = counters


def _common(line: Acquisition) -> tuple[int, ...]:
    """Counters that the lines of an image have in common."""
    return tuple(int(line.header["idx"][name]) for name in ("average", "phase", "repetition"))
