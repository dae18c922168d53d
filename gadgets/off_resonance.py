"""Images from long non-Cartesian readouts, corrected for the inhomogeneity of the static field."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from gadgets.base import Context, Stream, parameter
from gadgets.frames import Frame, Place, Readout, RepetitionFrames
from gadgets.header import HeaderError
from gadgets.items import Image, Item
from gadgets.noncartesian import frames_of
from gadgets.reconstruction import NonCartesianGadget, Reconstruction

DATASET = "b0_hz"
"""The dataset of a field map file."""


class OffResonanceRecon(NonCartesianGadget):
    """Images from spiral or other long readouts without the blur of off-resonance: SENSE that knows the field and the sample times.

    Acquisition or AcquisitionBucket -> Image, as `NonCartesianRecon`. The field map of a slice is made once, from images at the echo
    times (header: TE) of the first contrasts: of calibration readouts where they come with as many contrasts, else of the scan's own
    first images, which are held until all echoes are there. Or it is read from a file. Frequencies are in Hz, and a spin at f has
    the phase -2 pi f t. Time counts from the first sample of a readout, in steps of sample_time_us.
    """

    method: Literal["cg_sense"] = parameter("cg_sense", help="iterative SENSE")
    field_map: Literal["echoes", "file"] = parameter("echoes", help="where the field map comes from")
    field_map_file: str = parameter(
        "", help=f"HDF5 file on this machine with a dataset {DATASET} in Hz, [slice, (z,) y, x] in the matrix of the images"
    )
    echoes: int = parameter(2, ge=2, help="number of contrasts, from 0, that the field map is made from")
    map_threshold: float = parameter(
        0.1, ge=0, lt=1, help="fraction of the largest magnitude below which a pixel tells nothing of the field"
    )
    map_smoothing: float = parameter(1.5, ge=0, unit="pixels", help="length over which the field map is smoothed")
    refinements: int = parameter(1, ge=0, le=5, help="how often the field map is made anew from images that the former one corrects")
    accuracy: float = parameter(0.01, gt=0, lt=1, help="error of the phase that decides on the number of time segments")

    def __call__(self, items: Stream) -> Iterator[Item]:
        reconstruction = _Corrected(self, items.context)
        held: dict[Place, list[Frame]] = {}
        for frame in frames_of(items, reconstruction, RepetitionFrames(items.header)):
            waiting = held.setdefault(frame.series.place, [])
            if any(one.series == frame.series for one in waiting):
                raise self._missing(waiting)
            waiting.append(frame)
            if reconstruction.prepare(waiting):
                yield from self._images(waiting, reconstruction)
                waiting.clear()
        for waiting in held.values():
            if waiting:
                raise self._missing(waiting)

    @staticmethod
    def _images(frames: list[Frame], reconstruction: Reconstruction) -> Iterator[Image]:
        for frame in frames:
            yield reconstruction.item(frame, reconstruction.image(frame))

    def _missing(self, waiting: Sequence[Frame]) -> ValueError:
        found = sorted({frame.series.contrast for frame in waiting})
        return ValueError(
            f"slice {waiting[0].series.slice}: a field map needs the contrasts 0 to {self.echoes - 1}, each with an echo time of its own, "
            f"and only {', '.join(map(str, found))} came; acquire them, take the map from a file (field_map=file), or reconstruct "
            "without correction (spiral_cgsense.xml)"
        )


class _Corrected(Reconstruction):
    """A reconstruction that knows the field map of each place."""

    gadget: OffResonanceRecon

    def __init__(self, gadget: OffResonanceRecon, context: Context) -> None:
        super().__init__(gadget, context)
        self.settings = gadget
        self.fields: dict[Place, np.ndarray] = {}
        self._echo_times = _echo_times(gadget, context) if gadget.field_map == "echoes" else []
        self._file = _read(gadget) if gadget.field_map == "file" else None

    def prepare(self, frames: Sequence[Frame]) -> bool:
        """Make sensitivity and field map of the place of `frames` where they are missing; False if further echoes are needed for it."""
        place = frames[0].series.place
        if place in self.fields:
            return True
        if self._file is not None:
            self.calibrate(frames[0].readouts)
            self.fields[place] = self._from_file(self._file, place)
            return True
        calibration = self._calibration.get(place, [])
        echoes = self._by_contrast([readout for readout in calibration if readout.series.contrast < self.settings.echoes])
        if echoes is None:
            first = frames[0].series
            same = [frame for frame in frames if (frame.series.phase, frame.series.set) == (first.phase, first.set)]
            echoes = self._by_contrast([readout for frame in same for readout in frame.readouts])
        if echoes is None:
            return False
        if calibration:
            # Echoes put together would cancel where their phases differ.
            lowest = min(readout.series.contrast for readout in calibration)
            self._calibration[place] = [readout for readout in calibration if readout.series.contrast == lowest]
        self.calibrate(echoes[0])
        self.fields[place] = self._from_echoes(echoes, place)
        return True

    def _by_contrast(self, readouts: Sequence[Readout]) -> list[list[Readout]] | None:
        """The readouts of each echo; None unless all echoes are there."""
        echoes = [[one for one in readouts if one.series.contrast == contrast] for contrast in range(self.settings.echoes)]
        return echoes if all(echoes) else None

    def _from_echoes(self, echoes: Sequence[Sequence[Readout]], place: Place) -> np.ndarray:
        from recon.b0_map import b0_map

        settings, grid = self.settings, self._grids[place[0]]
        field = np.zeros(grid.shape, np.float32)
        for _ in range(settings.refinements + 1):
            images = np.stack([self._corrected(echo, place, field) for echo in echoes])
            found = b0_map(images, self._echo_times, len(grid.shape), settings.map_threshold, settings.map_smoothing)
            field = found.hz
        inside = field[found.measured]
        self.context.log.info("%s: field map of slice %d: %.1f to %.1f Hz", settings.name, place[1], inside.min(), inside.max())
        return field

    def _from_file(self, stack: np.ndarray, place: Place) -> np.ndarray:
        grid = self._grids[place[0]]
        if stack.shape[1:] != grid.crop or place[1] >= len(stack):
            raise ValueError(
                f"{self.settings.field_map_file}: {DATASET} {stack.shape} does not hold slice {place[1]} of images {grid.crop}; "
                "expected [slice, (z,) y, x] in the matrix of the header's reconSpace"
            )
        before = [n // 2 - m // 2 for n, m in zip(grid.shape, grid.crop, strict=True)]
        padding = [(b, n - m - b) for b, n, m in zip(before, grid.shape, grid.crop, strict=True)]
        return np.pad(stack[place[1]], padding, mode="edge")

    def image(self, frame: Frame) -> np.ndarray:
        """Complex image ``[z, y, x]`` of a frame; its place must have been prepared."""
        place = frame.series.place
        return self._volume(self._corrected(frame.readouts, place, self.fields[place]), self._grids[place[0]])

    def _corrected(self, readouts: Sequence[Readout], place: Place, field: np.ndarray) -> np.ndarray:
        from recon.b0_sense import b0_sense

        settings = self.settings
        samples = self.samples(readouts, weighted=settings.density_weighted)
        times = np.concatenate([_times(readout) for readout in readouts])[samples.usable]
        image: np.ndarray = b0_sense(
            samples.data,
            samples.trajectory,
            self.maps[place],
            field,
            times,
            settings.iterations,
            settings.tolerance,
            settings.regularization,
            samples.weights,
            settings.accuracy,
        )
        return image


def _times(readout: Readout) -> np.ndarray:
    """Time of each sample since the readout's first, in s; discarded samples count."""
    step = float(readout.header["sample_time_us"])
    if not 0 < step < 1e6:
        raise ValueError(
            f"readout {int(readout.header['scan_counter'])} has a sample_time_us of {step:g}; the correction needs the time between "
            "samples in microseconds: make the converter store it"
        )
    return (int(readout.header["discard_pre"]) + np.arange(len(readout.trajectory))) * (step * 1e-6)


def _echo_times(gadget: OffResonanceRecon, context: Context) -> list[float]:
    times = context.header.sequence("TE")[: gadget.echoes]
    if len(set(times)) < gadget.echoes:
        raise HeaderError(
            f"header: sequenceParameters gives the echo times {times or 'none'} (TE, in ms); a field map from {gadget.echoes} contrasts "
            "needs one for each, all different: make the converter store them, or take the map from a file (field_map=file)"
        )
    return times


def _read(gadget: OffResonanceRecon) -> np.ndarray:
    import h5py

    path = Path(gadget.field_map_file)
    if not gadget.field_map_file or not path.is_file():
        raise ValueError(f"field_map=file, but field_map_file {gadget.field_map_file!r} is no file; give the path of an HDF5 file")
    try:
        with h5py.File(path) as file:
            stack: np.ndarray = np.asarray(file[DATASET], np.float32)
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{path} has no readable dataset {DATASET}: {error}") from error
    if not np.isfinite(stack).all():
        raise ValueError(f"{path}: {DATASET} holds values that are not finite; fill them in")
    return stack
