"""Maps of tissue parameters while the scan runs."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from gadgets.base import Context, Gadget, ParameterError, Stream, parameter, stop
from gadgets.channel import Closed, in_background
from gadgets.contrast_gathering import ContrastCounter, Due, Gathering
from gadgets.contrasts import CoilMaps
from gadgets.items import Item
from gadgets.parameter_maps import SUFFIX, MapImages, Pixels
from gadgets.quantitative_fit import Data, FitError, Fits, assignments, model_path
from recon.quantitative.catalogue import requirements
from recon.quantitative.irgn import Step
from recon.quantitative.model import Map, ModelError
from recon.quantitative.settings import Regularisation, Settings

_AHEAD = 256
"""Items that wait for the next gadget."""
_PIXELWISE = 50
"""Series of pixel-wise maps are numbered so much higher than those of regularised maps."""


class QuantitativeFit(Gadget):
    """Maps of T1, T2, T2* or other parameters of a signal model, with standard deviations, beside the ordinary images.

    Acquisition or Image -> the same, at once, and Image for the maps. Before the reconstruction (behind NoiseAdjust and, for Cartesian
    scans, RemoveROOversampling) it gathers the readouts of each slice and repetition and fits to k-space; behind it, it gathers the
    images of the contrasts, complex ones as such, magnitudes as magnitudes.

    As soon as `minimum_contrasts` are complete, a pixel-wise fit of their images gives first maps; with all of them come new ones, and
    then maps regularised jointly and fitted to all samples (iteratively regularised Gauss-Newton). All that runs in threads of its own.
    Each kind of map is a series of its own, in the order of the scan; when maps leave between the ordinary images depends on time, what
    they show does not. At the end of the scan all maps are waited for. Where maps cannot be made, the images leave all the same, and
    the error follows them.

    A train of readouts after an inversion (Look-Locker) is cut into frames of `readouts_per_frame`.
    """

    runs_ahead = True

    signal_model: str = parameter(
        help="built in (VFA, LookLocker, ExpDecay, R2Star, ...), or a file of configs/models (ir.yaml)", aliases=("model",)
    )
    regularization: Regularisation = parameter("TGV", help="of all maps jointly; none: pixel-wise maps only", aliases=("regularisation",))
    strength: float = parameter(1.0, gt=0, help="factor of the regularisation's weight")
    weights: list[float] | None = parameter(None, help="of each unknown's regularisation relative to the others'; none: those of the model")
    steps: int = parameter(3, ge=1, le=20, help="Gauss-Newton steps")
    inner_iterations: int = parameter(
        100, ge=10, le=2000, help="inner iterations of the first step; each further one has 1.5 times as many"
    )
    minimum_contrasts: int | None = parameter(
        None, ge=0, help="complete contrasts for first maps; none: one for each unknown; 0: no first maps"
    )
    contrast_counter: ContrastCounter = parameter("contrast", help="the counter that tells contrasts apart")
    readouts_per_frame: int = parameter(0, ge=0, unit="readouts", help="cut a train of readouts into frames; 0: contrasts by their counter")
    sequence: str = parameter(
        "", help="sequence parameters instead of the header's, times in ms, angles in degrees: TR=12; flip_angle=2,6,14"
    )
    bounds: str = parameter("", help="bounds of unknowns instead of the model's: T1=50:3000; the first below the second")
    magnitude: bool = parameter(False, help="fit magnitudes, for scans whose phase is of no use")
    coil_maps: CoilMaps = parameter("espirit", help="sensitivities for fits to k-space: ESPIRiT, from a low-resolution image, or nlinv")
    mask_threshold: float = parameter(
        0.05, ge=0, lt=1, help="maps are 0 where the root mean square over the contrasts is below this fraction of the bright voxels'"
    )
    maps: list[str] | None = parameter(None, help="names of the maps to send (T1, M0, ...); none: all")
    deviations: bool = parameter(True, help="send a map of the standard deviation beside each")
    pixels: Pixels = parameter(
        "float", help="float, in the unit of the map; or uint16, with RescaleSlope and RescaleIntercept to get there"
    )
    color_map: str = parameter("MicroDeltaHotMetal.pal", help="colour table of maps with a unit, as the scanner calls it; empty: grey")
    waiting: int = parameter(64, ge=1, help="fits that may wait for their turn before the scan has to wait")
    map_series: int = parameter(
        100, ge=0, le=65000, help="series index of the first regularised map; the next ones count up, pixel-wise ones from 50 above"
    )

    def __init__(self, name: str = "", /, **properties: Any) -> None:
        super().__init__(name, **properties)
        try:
            requirements(model_path(self.signal_model))
            assignments(self.sequence, "sequence")
            assignments(self.bounds, "bounds", separator=":")
        except (ModelError, FitError) as error:
            raise ParameterError(f"{self.name}: {error}") from error

    def __call__(self, items: Stream) -> Iterator[Item]:
        context = items.context
        try:
            fits = Fits(self, context.header)
            self._check_names(fits)
        except ValueError as error:
            context.fail_later(self.name, error)
            yield from items
            return
        items.in_thread = True
        work = _Work(self, fits, context)
        entries: Iterator[Item] = in_background(partial(work.run, items), _AHEAD, f"{self.name}-reader")
        try:
            while True:
                with items.waiting():
                    entry = next(entries, None)
                if entry is None:
                    return
                yield entry
        finally:
            work.stop()
            stop(entries)
            items.close()

    @property
    def settings(self) -> Settings:
        """Of the regularised fit."""
        default = Settings()
        return Settings.of(
            self.regularization,
            max_gn_it=self.steps,
            start_iters=self.inner_iterations,
            max_iters=max(3 * self.inner_iterations, default.max_iters),
            gamma=default.gamma * self.strength,
            gamma_min=default.gamma_min * self.strength,
        )

    def _check_names(self, fits: Fits) -> None:
        unknown = [name for name in self.maps or () if name not in fits.names]
        if unknown:
            raise FitError(f"{self.signal_model} has no map {', '.join(unknown)}; it has {', '.join(fits.names)}")


class _Times(NamedTuple):
    """When the newest readout of maps had arrived, and when they were due (perf_counter)."""

    received: float
    triggered: float


class _Cancelled(Exception):
    """Nobody waits for the maps any more."""


class _Work:
    """The threads of one measurement: one makes pixel-wise maps, one regularised ones, each in the order in which they were due."""

    def __init__(self, gadget: QuantitativeFit, fits: Fits, context: Context) -> None:
        self.gadget, self.fits, self.context = gadget, fits, context
        least = fits.least if gadget.minimum_contrasts is None else gadget.minimum_contrasts
        self.gathering = Gathering(context.header, gadget.contrast_counter, fits.contrasts, 0 if fits.train else least)
        self._stopped = threading.Event()
        self._quick = ThreadPoolExecutor(1, f"{gadget.name}-pixelwise")
        self._thorough = ThreadPoolExecutor(1, f"{gadget.name}-regularised")
        self._counts: Counter[str] = Counter()
        self._jobs: deque[Future[Any]] = deque()
        series = gadget.map_series
        self._pixelwise = MapImages(context.header, series + _PIXELWISE, gadget.pixels, gadget.color_map)
        self._regularised = MapImages(context.header, series, gadget.pixels, gadget.color_map)

    def run(self, items: Stream, put: Callable[[Item], None]) -> None:
        """Pass on all items, and put the maps when they are ready. Runs in a thread that reads the items."""
        try:
            for item in items:
                put(item)
                for due in self.gathering.add(item):
                    self._begin(due, put)
            for due in self.gathering.finish():
                self._begin(due, put)
            while self._jobs:
                self._jobs.popleft().result()
        finally:
            self.stop()
        if self.gathering.late:
            self.context.count("readouts and images after their maps were due", self.gathering.late)
        for what, count in self._counts.items():
            self.context.count(what, count)

    def stop(self) -> None:
        """Begin nothing any more; a regularised fit ends after its present step."""
        self._stopped.set()
        for pool in (self._quick, self._thorough):
            pool.shutdown(wait=False, cancel_futures=True)

    def _begin(self, due: Due, put: Callable[[Item], None]) -> None:
        times = _Times(due.group.newest.received, time.perf_counter())
        account = replace(self.context, seconds={}, counts={})
        while len(self._jobs) >= 2 * self.gadget.waiting:
            self._jobs.popleft().result()
        prepared = self._quick.submit(self._make_pixelwise, due, account, times, put)
        self._jobs.append(prepared)
        if due.complete and self.gadget.regularization != "none":
            self._jobs.append(self._thorough.submit(self._make_regularised, due, prepared, times, put))

    def _make_pixelwise(self, due: Due, account: Context, times: _Times, put: Callable[[Item], None]) -> Data | None:
        begun = time.perf_counter()
        with self._failing(due):
            data = self.fits.prepare(due, account)
            self._counts.update(account.counts)
            made = "" if due.complete else f", {len(due.contrasts)} of {self.fits.contrasts} contrasts"
            self._send(self._pixelwise, data, data.maps, f"pixel-wise{made}", times, put)
            self._tell(due, "pixel-wise", begun)
            return data
        return None

    def _make_regularised(self, due: Due, prepared: Future[Data | None], times: _Times, put: Callable[[Item], None]) -> None:
        data = prepared.result()
        if data is None:
            return
        begun = time.perf_counter()
        with self._failing(due):
            maps = self.fits.regularised(data, self.gadget.settings, self._go_on)
            self._send(self._regularised, data, maps, self.gadget.regularization, times, put)
            self._tell(due, self.gadget.regularization, begun)

    @contextmanager
    def _failing(self, due: Due) -> Iterator[None]:
        """Errors of maps are told at the end of the scan; those of first maps only in the log, for the whole ones will tell."""
        try:
            yield
        except (Closed, _Cancelled):
            pass
        except Exception as error:
            told = FitError(f"{due.group.key}: {error}" if isinstance(error, ValueError) else f"{due.group.key}: {error!r}")
            told.__cause__ = error
            if due.complete:
                self.context.fail_later(self.gadget.name, told)
            else:
                self.context.log.warning("%s: no first maps: %s", self.gadget.name, told)

    def _send(self, series: MapImages, data: Data, maps: dict[str, Map], method: str, times: _Times, put: Callable[[Item], None]) -> None:
        for image in series.images(maps, data.mask, data.place, self._wanted(maps), method):
            image.received, image.triggered = times
            put(image)

    def _wanted(self, maps: dict[str, Map]) -> list[str]:
        bases = self.gadget.maps or [name for name in maps if not name.endswith(SUFFIX)]
        return [name for name in maps if name.removesuffix(SUFFIX) in bases and (self.gadget.deviations or not name.endswith(SUFFIX))]

    def _tell(self, due: Due, what: str, begun: float) -> None:
        self.context.log.info("%s: %s maps of %s in %.2f s", self.gadget.name, what, due.group.key, time.perf_counter() - begun)

    def _go_on(self, step: Step) -> None:
        if self._stopped.is_set():
            raise _Cancelled
