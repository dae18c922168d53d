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
from gadgets.contrast_gathering import ContrastCounter, Due, Gathering, Key
from gadgets.contrasts import CoilMaps
from gadgets.flip_angles import FlipAngles, double_angle, read_angles
from gadgets.items import Item
from gadgets.parameter_maps import SUFFIX, MapImages, Pixels
from gadgets.quantitative_fit import Data, FitError, Fits, assignments, model_path, together
from recon.quantitative.catalogue import requirements
from recon.quantitative.irgn import Step
from recon.quantitative.model import Map, ModelError
from recon.quantitative.sequence import FA_CORR
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
    the error follows them. Of a scan that ends early, maps are made from the complete contrasts if these are enough, and the error says
    so.

    Cartesian scans, also with two phase encodings; spokes, spirals and stacks of them with their trajectories. Volumes are regularised
    in three dimensions, slices each by itself or, with `slices_together`, as a volume. Slices that were excited together (multiband) are
    fitted from their common k-space, as `SMSRecon` numbers and shifts them. A train of readouts after an inversion (Look-Locker) is cut
    into frames of `readouts_per_frame`.

    Models that depend on the flip angle take a map of it (B1): from a file, `b1_map`, or from a double-angle pair in the same scan, whose
    two images have a set counter of their own (`double_angle`).
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
    slices_together: bool = parameter(
        False, help="regularise all slices of a repetition as one volume, when the last of them is there; not those of multiband groups"
    )
    multiband: int | None = parameter(None, ge=1, help="slices excited together; none: multiband_factor of the header, or 1")
    caipi_shift: float | None = parameter(
        None, ge=-1, le=1, unit="fields of view", help="of slices excited together, as of SMSRecon; none: by the header"
    )
    b1_map: str = parameter(
        "",
        help="file (.npy, .nii, .nii.gz, .h5) of the actual by the nominal flip angle in the matrix of the images: [y, x], [slice, y, x] "
        "or [z, y, x], 0 where unknown; relative paths start from the folder of the setting storage",
    )
    double_angle: float = parameter(
        0.0,
        ge=0,
        le=90,
        unit="degrees",
        help="nominal flip angle of contrast 0 of a double-angle pair, contrast 1 having twice that; 0: userParameter double_angle_deg of "
        "the header, or no pair",
    )
    double_angle_set: int | None = parameter(
        None, ge=0, help="set counter of the double-angle pair; none: userParameter double_angle_set of the header, or 1"
    )
    b1_smoothing: float = parameter(5.0, ge=0, unit="mm", help="standard deviation of the Gaussian in a map from a double-angle pair")
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
            _, inputs = requirements(model_path(self.signal_model))
            self.takes_angles = FA_CORR.name in {one.name for one in inputs}
            if self.b1_map and not self.takes_angles:
                raise FitError(f"{self.signal_model} takes no flip-angle map: leave b1_map out (VFA, LookLocker, EPG, ... take one)")
            assignments(self.sequence, "sequence")
            assignments(self.bounds, "bounds", separator=":")
        except (ModelError, FitError) as error:
            raise ParameterError(f"{self.name}: {error}") from error

    def __call__(self, items: Stream) -> Iterator[Item]:
        context = items.context
        try:
            fits = Fits(self, context.header)
            self._check_names(fits)
            work = _Work(self, fits, context)
        except ValueError as error:
            context.fail_later(self.name, error)
            yield from items
            return
        items.in_thread = True
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
            replicas=default.replicas if self.deviations else 0,
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
    """The threads of one measurement: one makes pixel-wise maps, one regularised ones, each in the order in which they were due.

    Raises:
        FlipAngleError: the flip-angle map cannot be used.
    """

    def __init__(self, gadget: QuantitativeFit, fits: Fits, context: Context) -> None:
        self.gadget, self.fits, self.context = gadget, fits, context
        header = context.header
        least = fits.least if gadget.minimum_contrasts is None else gadget.minimum_contrasts
        self._pair = double_angle(header, gadget.double_angle, gadget.double_angle_set)
        self._angles: FlipAngles | None = read_angles(gadget.b1_map, context.storage, header) if gadget.b1_map else None
        # A flip-angle map of a file wins; the readouts of the pair are no contrasts in any case.
        self._paired = self._pair is not None and self._angles is None and gadget.takes_angles
        self._pairs: dict[int, Future[FlipAngles | None]] = {}
        self._unpaired: list[tuple[Due, _Times]] = []
        self._volumes: dict[Key, list[tuple[Due, Future[Data | None], _Times]]] = {}
        pair_set = None if self._pair is None else self._pair[1]
        minimum = 0 if fits.train else least
        self.gathering = Gathering(header, gadget.contrast_counter, fits.contrasts, minimum, pair_set, fits.bands > 1)
        self._stopped = threading.Event()
        self._quick = ThreadPoolExecutor(1, f"{gadget.name}-pixelwise")
        self._thorough = ThreadPoolExecutor(1, f"{gadget.name}-regularised")
        self._counts: Counter[str] = Counter()
        self._jobs: deque[Future[Any]] = deque()
        series = gadget.map_series
        self._pixelwise = MapImages(header, series + _PIXELWISE, gadget.pixels, gadget.color_map)
        self._regularised = MapImages(header, series, gadget.pixels, gadget.color_map)

    def run(self, items: Stream, put: Callable[[Item], None]) -> None:
        """Pass on all items, and put the maps when they are ready. Runs in a thread that reads the items."""
        try:
            for item in items:
                put(item)
                for due in self.gathering.add(item):
                    self._begin(due, put)
            for due in self.gathering.finish():
                if due.complete and not due.group.settled:
                    self.context.count("slices that no LAST_IN_... flag told to be complete")
                self._begin(due, put)
            for due, times in self._unpaired:
                self._fit(due, times, put)
            for key in list(self._volumes):
                self._fit_volume(key, put)
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
        times, slice_ = _Times(due.group.newest.received, time.perf_counter()), due.group.key.slice
        if due.group.key.pair:
            if self._paired:
                self._pairs[slice_] = self._submitted(self._quick, self._measure_angles, due)
                waiting, self._unpaired = self._unpaired, []
                for other, told in waiting:
                    self._begin_paired(other, told, put)
        elif self._paired:
            self._begin_paired(due, times, put)
        else:
            self._fit(due, times, put)

    def _begin_paired(self, due: Due, times: _Times, put: Callable[[Item], None]) -> None:
        """Fit when the flip angles are there: whole maps wait for them, first ones do not come."""
        if due.group.key.slice in self._pairs:
            self._fit(due, times, put)
        elif due.complete:
            self._unpaired.append((due, times))

    def _fit(self, due: Due, times: _Times, put: Callable[[Item], None]) -> None:
        account = replace(self.context, seconds={}, counts={})
        prepared = self._submitted(self._quick, self._make_pixelwise, due, account, times, put)
        if not due.complete or self.gadget.regularization == "none":
            return
        if not self.gadget.slices_together or self.fits.bands > 1:
            self._submitted(self._thorough, self._make_regularised, [(due, prepared, times)], put)
            return
        key = due.group.key._replace(slice=0)
        for other in [one for one in self._volumes if one[:2] == key[:2] and one.repetition != key.repetition]:
            self._fit_volume(other, put)
        self._volumes.setdefault(key, []).append((due, prepared, times))
        if len(self._volumes[key]) == self._slices(key):
            self._fit_volume(key, put)

    def _fit_volume(self, key: Key, put: Callable[[Item], None]) -> None:
        self._submitted(self._thorough, self._make_regularised, self._volumes.pop(key), put)

    def _slices(self, key: Key) -> int:
        """How many the header tells; 0 where it does not."""
        encodings = self.context.header.encodings
        limit = encodings[key.space].limit("slice") if key.space < len(encodings) else None
        return 0 if limit is None else limit.maximum - limit.minimum + 1

    def _submitted(self, pool: ThreadPoolExecutor, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        while len(self._jobs) >= 2 * self.gadget.waiting:
            self._jobs.popleft().result()
        job = pool.submit(work, *arguments)
        self._jobs.append(job)
        return job

    def _measure_angles(self, due: Due) -> FlipAngles | None:
        account = replace(self.context, seconds={}, counts={})
        assert self._pair is not None
        with self._failing(due):
            return self.fits.pair(due, account, self._pair[0], self.gadget.b1_smoothing)
        return None

    def _angles_of(self, due: Due) -> FlipAngles | None:
        """Of a slice; None for nominal ones. Raises FitError where they should have been measured."""
        if not self._paired:
            return self._angles
        measured = self._pairs.get(due.group.key.slice)
        angles = None if measured is None else measured.result()
        if angles is None:
            why = "never came" if measured is None else "could not be used"
            raise FitError(
                f"its double-angle pair (set {self._pair[1] if self._pair else 0}) {why}; b1_map or the header without it do without"
            )
        return angles

    def _make_pixelwise(self, due: Due, account: Context, times: _Times, put: Callable[[Item], None]) -> Data | None:
        begun = time.perf_counter()
        with self._failing(due):
            data = self.fits.prepare(due, account, self._angles_of(due))
            self._counts.update(account.counts)
            self._send(self._pixelwise, data, data.maps, f"pixel-wise{self._made(due)}", times, put)
            self._tell(due, "pixel-wise", begun)
            lacking = self.fits.lacking(due) if due.complete else ""
            if lacking:
                others = ", ".join(map(str, due.contrasts))
                self.context.fail_later(
                    self.gadget.name, FitError(f"{due.group.key}: {lacking} Its maps are made from contrast {others} only")
                )
            return data
        return None

    def _make_regularised(self, parts: list[tuple[Due, Future[Data | None], _Times]], put: Callable[[Item], None]) -> None:
        ready = [(due, data, times) for due, prepared, times in parts if (data := prepared.result()) is not None]
        if not ready:
            return
        begun, (due, data, times) = time.perf_counter(), ready[-1]
        with self._failing(due):
            data = data if len(ready) == 1 else together([one for _, one, _ in ready])
            maps = self.fits.regularised(data, self.gadget.settings, self._go_on)
            self._send(self._regularised, data, maps, f"{self.gadget.regularization}{self._made(due)}", times, put)
            self._tell(due, self.gadget.regularization, begun)

    def _made(self, due: Due) -> str:
        """From how many contrasts, where these are not all."""
        return "" if len(due.contrasts) == self.fits.contrasts else f", {len(due.contrasts)} of {self.fits.contrasts} contrasts"

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
        for place, part, mask in data.parts(maps):
            for image in series.images(part, mask, place, self._wanted(maps), method):
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
