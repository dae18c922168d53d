"""Frames of non-Cartesian readouts to images, by gridding, CG-SENSE or compressed sensing.

`Reconstruction` does so for one measurement and keeps what is reused within it: sensitivities, coil compression, the image grid.
`NonCartesianGadget` holds the parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from gadgets.base import Context, Gadget, parameter
from gadgets.frames import Frame, Place, Readout, skipped
from gadgets.gathered import Gathered
from gadgets.geometry import image_header
from gadgets.items import Acquisition, Image, Resident
from gadgets.layout import Flag, ImageType
from gadgets.meta import describe
from gadgets.trajectories import Counter, Grid, Ordering, Source, Trajectories, Unit, is_radial, stack_equal, to_grid
from recon import device
from recon.cache import Cache
from recon.density import RotatedWeights, radial_weights

REHEARSAL = 8
"""Iterations of CG-SENSE, or griddings, before the first frame: some 10 ms for the sizes of real-time imaging."""

GEOMETRIES = 32
"""Frames' trajectories that are kept with their density weights: more than the rotations of real-time spirals."""
KEPT_SAMPLES = 2**17
"""Samples of a frame up to which its trajectory is kept: 4 MB each. Whole volumes would fill the memory."""

MINIMAL_BANDWIDTH = 0.06
"""Fraction of k-space below which maps would be too coarse to tell coils apart."""


class NonCartesianGadget(Gadget):
    """The parameters that gadgets for non-Cartesian data share."""

    method: Literal["gridding", "root_sum_of_squares", "cg_sense", "l1_wavelet", "total_variation"] = parameter(
        "cg_sense",
        help="density-compensated gridding, combined by sensitivity maps or (without any) as root_sum_of_squares; iterative SENSE; "
        "compressed sensing",
    )
    iterations: int = parameter(10, ge=1, help="most iterations; 10 to 15 of CG-SENSE, 30 to 50 of compressed sensing")
    weight: float = parameter(0.002, ge=0, help="of compressed sensing, as a fraction of the brightest pixel of E^H y")
    tolerance: float = parameter(0.0, ge=0, help="CG-SENSE stops when the residual falls below this fraction; 0: only after `iterations`")
    regularization: float = parameter(
        0.01, ge=0, help="Tikhonov weight of CG-SENSE, in units of the mean diagonal of its normal equation", aliases=("regularisation",)
    )
    density_weighted: bool = parameter(False, help="weigh samples by density in iterations: sharper after few of them, but noisier")
    density: Literal["auto", "radial", "pipe"] = parameter(
        "auto", help="density compensation: exact for spokes, iterative (Pipe) for any trajectory; auto: radial for spokes"
    )
    coils: int | None = parameter(
        None, ge=1, help="compress to at most this many virtual coils (root_sum_of_squares: each frame for itself); none: keep all"
    )
    map_bandwidth: float = parameter(
        0.2, gt=0, le=1, help="radius of the centre of k-space that sensitivity maps are made from, as a fraction of the whole"
    )
    coil_maps: Literal["image", "espirit"] = parameter(
        "image", help="sensitivity maps from a low-resolution image, or by ESPIRiT from the centre of k-space"
    )
    trajectory: Source = parameter(
        "auto",
        help="acquired with the readouts, computed radial, designed by the protocol of HyperSLICE or of sodium images, or auto: acquired "
        "where there is one",
    )
    trajectory_unit: Unit = parameter(
        "auto", help="of acquired trajectories, per pixel or field of view of the encoded space; auto: cycles_per_pixel if none exceeds 1"
    )
    ordering: Ordering = parameter("auto", help="of computed radial views; auto: as the header says")
    angle_increment: float | None = parameter(None, unit="degrees", help="angle between computed radial views; none: by the ordering")
    angle_range: Literal["half", "full"] = parameter("half", help="range of computed radial views: 180 or 360 degrees")
    angle_offset: float = parameter(0.0, unit="degrees", help="angle of computed radial view 0, from kx towards ky")
    angle_counter: Counter = parameter(
        "auto",
        help="what numbers computed radial views: the line counter, it plus the lines of earlier repetitions, or the order of arrival; "
        "auto: line for linear, line_and_repetition for golden orderings",
    )
    tiny_number: int = parameter(7, ge=2, help="order of the tiny golden angle")
    views: int | None = parameter(None, ge=1, help="computed radial views in a full set; none: from the header's encoding limits")
    grid_factor: float | None = parameter(
        None, ge=1, help="field of view of the reconstruction grid by that of the image; none: the encoded field of view"
    )
    output: Literal["complex", "magnitude"] = parameter("complex", help="what the pixels are")
    image_series: int = parameter(1, ge=0, le=65535, help="image_series_index of the images")

    resident_readouts: ClassVar[bool] = False
    """Whether images are made of frames alone, so that on a GPU readouts may be copied there as they come."""

    @property
    def needs_maps(self) -> bool:
        """Whether the method combines coils by sensitivity maps."""
        return self.method != "root_sum_of_squares"

    def trajectories(self, context: Context, space: int) -> Trajectories:
        """The trajectories of an encoding space."""
        return Trajectories(
            context.header.encoding(space),
            self.trajectory,
            self.ordering,
            self.angle_increment,
            self.tiny_number,
            180.0 if self.angle_range == "half" else 360.0,
            self.angle_offset,
            self.views,
            self.angle_counter,
        )


@dataclass(eq=False)
class Samples:
    """The k-space of a frame.

    data: ``[coil, sample]``; trajectory: ``[sample, axis]`` in rad per grid pixel; weights: of density, ``[sample]`` or None;
    usable: which samples of the readouts, one after another, these are.
    """

    data: np.ndarray
    trajectory: np.ndarray
    weights: np.ndarray | None
    usable: np.ndarray


@dataclass(eq=False)
class _Geometry:
    """Where the samples of a frame lie: ``[sample, axis]`` in rad per grid pixel, density weights, and which the grid reaches."""

    trajectory: np.ndarray
    weights: np.ndarray | None
    inside: np.ndarray

    def __post_init__(self) -> None:
        for array in (self.trajectory, self.weights, self.inside):
            if array is not None:
                array.setflags(write=False)  # one for many frames
        self.all_inside = bool(self.inside.all())
        self._resident_weights: Any = None

    def resident_weights(self, factor: float) -> Any:
        """The weights times a factor (always the same) on the GPU, copied there once."""
        if self._resident_weights is None:
            assert self.weights is not None
            self._resident_weights = device.put(self.weights * np.float32(factor))
        return self._resident_weights


class Reconstruction:
    """One measurement's way from readouts to images.

    gadget: the parameters; context: of the measurement. Image amplitude: a sample is the plain sum over the encoded pixels of
    image times sensitivity times exp(-ikr), with sum |s|^2 = 1 over the coils.
    """

    def __init__(self, gadget: NonCartesianGadget, context: Context) -> None:
        self.gadget = gadget
        self.context = context
        self.maps: dict[Place, np.ndarray] = {}
        self._calibration: dict[Place, list[Readout]] = {}
        self._trajectories: dict[int, Trajectories] = {}
        self._grids: dict[int, Grid] = {}
        self._compressors: dict[Place, np.ndarray] = {}
        self._geometries: Cache[_Geometry] = Cache(GEOMETRIES)
        self._density = RotatedWeights()
        self._told: set[str] = set()
        # Copied as they come, so that little is left to do after the last one.
        self._gathered = Gathered()
        self._gathers = not gadget.runs_ahead  # one that reads in another thread would overwrite what is being gridded
        self._resident = gadget.resident_readouts and gadget.method == "root_sum_of_squares" and device.use_gpu()

    # -- readouts ----------------------------------------------------------------------------------------------------

    def readout(self, acquisition: Acquisition) -> Readout | None:
        """The readout as it goes into frames; None for one that belongs to no image.

        Call it once for every acquisition, in order. Calibration readouts are kept for the sensitivity maps of their slice.
        """
        kind = skipped(acquisition)
        if kind is not None:
            self.context.count(f"readouts skipped: {kind}")
            return None
        header = acquisition.header
        space = int(header["encoding_space_ref"])
        calibration = acquisition.is_flag_set(Flag.IS_PARALLEL_CALIBRATION)
        if calibration and acquisition.trajectory is None and self.gadget.trajectory != "radial":
            self._tell("calibration readouts without a trajectory are not used", "readouts skipped: calibration without trajectory")
            return None
        if space not in self._trajectories:
            self._trajectories[space] = self.gadget.trajectories(self.context, space)
        trajectory = self._trajectories[space].of(acquisition)
        first = int(header["discard_pre"])
        data = acquisition.data[:, first : first + len(trajectory)]
        readout = Readout(header, data, trajectory, acquisition.received)
        if self._resident and _sum_is_finite(data):
            readout.resident = self._put(data)
        if self._resident and self._gathers and not calibration:
            self._gathered.add(readout)
            _ = readout.key  # made now, while the frame is still being measured
        if space not in self._grids:
            self._grids[space] = self._grid(readout, space)
        calibrating = calibration or acquisition.is_flag_set(Flag.IS_PARALLEL_CALIBRATION_AND_IMAGING)
        if calibrating and readout.series.place not in self.maps:
            self._calibration.setdefault(readout.series.place, []).append(readout)
        return None if calibration else readout

    def _reduces(self, channels: int) -> bool:
        """Whether a root of the sum of squares is of fewer virtual coils than there are channels."""
        return self.gadget.method == "root_sum_of_squares" and self.gadget.coils is not None and self.gadget.coils < channels

    def _put(self, data: np.ndarray) -> Any:
        try:
            return device.put(data)
        except MemoryError as error:
            self._tell(f"{error}; images are computed from the host's memory", "readouts that do not fit into GPU memory")
            return None

    def _grid(self, readout: Readout, space: int) -> Grid:
        encoding = self.context.header.encoding(space)
        samples = len(readout.trajectory) if is_radial(readout.trajectory[None]) else None
        return Grid.of(encoding, self.gadget.grid_factor, samples)

    def grid(self, space: int) -> Grid:
        """The image grid of an encoding space of which a readout has come."""
        return self._grids[space]

    def samples(self, readouts: Sequence[Readout], weighted: bool = True, compress: bool = True) -> Samples:
        """The readouts of one place as one k-space, with density weights and coil compression where asked for.

        Samples that are not finite are left out and counted. Raises ValueError when readouts differ in channels or nothing is left.
        """
        space, place = readouts[0].series.space, readouts[0].series.place
        _check_channels(readouts)
        geometry = self._geometry(readouts, space, weighted)
        trajectory, weights = geometry.trajectory, geometry.weights
        data, usable = self._finite(np.concatenate([readout.data for readout in readouts], axis=1), geometry.inside)
        if not usable.all():
            data, trajectory = data[:, usable], trajectory[usable]
            weights = None if weights is None else weights[usable]
        if compress and place in self._compressors:
            data = _mixed(self._compressors[place], data)
        return Samples(np.ascontiguousarray(data), trajectory, weights, usable)

    def _geometry(self, readouts: Sequence[Readout], space: int, weighted: bool) -> _Geometry:
        """Where the samples lie; most scans come back to the same places after some frames."""
        trajectories = [readout.trajectory for readout in readouts]
        if sum(map(len, trajectories)) > KEPT_SAMPLES:
            return self._located(trajectories, space, weighted)
        key = (space, weighted, *(readout.key for readout in readouts))
        return self._geometries.get(key, lambda: self._located(trajectories, space, weighted))

    def _located(self, trajectories: list[np.ndarray], space: int, weighted: bool) -> _Geometry:
        grid = self._grids[space]
        trajectory = to_grid(np.concatenate(trajectories), self.gadget.trajectory_unit, self.context.header.encoding(space), grid)
        spokes = stack_equal(trajectories)
        weights = self._weights(trajectory, None if spokes is None else spokes.shape, grid) if weighted else None
        # An image of larger pixels than the encoded ones does not reach the outer frequencies.
        return _Geometry(trajectory, weights, (np.abs(trajectory) <= np.float32(np.pi * 1.001)).all(axis=1))

    def _finite(self, data: np.ndarray, usable: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The data with channels that are NaN or infinite throughout set to 0, and which of the `usable` samples are finite then."""
        if _sum_is_finite(data):
            return data, usable
        finite = np.isfinite(data)
        if finite.all():
            return data, usable
        dead = ~finite.any(axis=1)
        if dead.all():
            raise ValueError("every sample of a frame is NaN or infinite; check the receiver, the noise scan and the converter")
        self._tell("samples that are NaN or infinite are left out", "samples not finite", finite.size - int(np.count_nonzero(finite)))
        return np.where(dead[:, None], 0, data), usable & finite[~dead].all(axis=0)

    def _weights(self, trajectory: np.ndarray, spokes: tuple[int, ...] | None, grid: Grid) -> np.ndarray:
        views = None if spokes is None else trajectory.reshape(spokes)
        radial = self.gadget.density != "pipe" and views is not None and is_radial(views)
        if self.gadget.density == "radial" and not radial:
            raise ValueError("density=radial asked for, but the readouts are no straight spokes through the centre; use density=auto")
        if radial and views is not None:
            return radial_weights(views, grid.shape).reshape(-1)
        return self._density.of(trajectory, grid.shape)

    def _tell(self, message: str, count: str, by: int = 1) -> None:
        """Count, and warn the first time."""
        self.context.count(count, by)
        if message not in self._told:
            self._told.add(message)
            self.context.log.warning("%s: %s", self.gadget.name, message)

    # -- sensitivities -----------------------------------------------------------------------------------------------

    def calibrate(self, readouts: Sequence[Readout]) -> None:
        """Find the sensitivity maps of a place (and the first time its coil compression).

        They come from the calibration readouts that arrived since the last time, else from `readouts`.
        """
        from recon.coarse_maps import coarse_maps
        from recon.coils import CoilCompressor

        place = readouts[0].series.place
        readouts = self._calibration.pop(place, readouts)
        samples = self.samples(readouts, compress=False)
        coils = self.gadget.coils
        if coils is not None and coils < len(samples.data) and place not in self._compressors:
            self._compressors[place] = CoilCompressor.fit(samples.data, coils).matrix.astype(np.complex64)
        if place in self._compressors:
            samples.data = _mixed(self._compressors[place], samples.data)
        shape = self._grids[place[0]].shape
        if self.gadget.coil_maps == "espirit":
            spokes = len(readouts) if is_radial(readouts[0].trajectory[None]) else None
            maps = _espirit_maps(samples, shape, spokes)
        else:
            maps = coarse_maps(samples.data, samples.trajectory, shape, samples.weights, self._bandwidth(readouts, shape))
        maps.setflags(write=False)  # what cannot change is copied to a GPU only once
        self.maps[place] = maps

    def _bandwidth(self, readouts: Sequence[Readout], shape: tuple[int, ...]) -> float:
        """The part of k-space that maps are made from; of few spokes little more than they sample densely, against streaks."""
        if not is_radial(readouts[0].trajectory[None]):
            return self.gadget.map_bandwidth
        dense = len(readouts) / (math.pi * min(shape) / 2)
        return min(self.gadget.map_bandwidth, max(1.5 * dense, MINIMAL_BANDWIDTH))

    # -- images ------------------------------------------------------------------------------------------------------

    def image(self, frame: Frame) -> Any:
        """Image ``[z, y, x]`` of a frame, complex or (root of the sum of squares) real; its place must have been calibrated where the
        method needs maps. A NumPy array, or where the samples are on a GPU already one of CuPy."""
        gadget, series = self.gadget, frame.series
        if all(readout.resident is not None for readout in frame.readouts):
            image = self._gridded_there(frame)
            if image is not None:
                return image
        self._gathered.restart()
        weighted = gadget.method in ("gridding", "root_sum_of_squares") or gadget.density_weighted
        samples = self.samples(frame.readouts, weighted=weighted)
        return self._volume(self._solve(samples, series.place), self._grids[series.space])

    def _solve(self, samples: Samples, place: Place) -> np.ndarray:
        """Image ``[*grid.shape]`` of a k-space, as an orthonormal transform gives it."""
        from recon.coils import CoilCompressor
        from recon.compressed_sensing import l1_wavelet, total_variation
        from recon.gridded_magnitude import gridded_magnitude
        from recon.sense import cg_sense, gridding

        gadget = self.gadget
        data, trajectory, weights = samples.data, samples.trajectory, samples.weights
        image: np.ndarray
        if gadget.method == "root_sum_of_squares":
            if self._reduces(len(data)):
                # By itself: there are no maps that have to agree, and so the image depends on no other frame.
                data = _mixed(CoilCompressor.fit(data, gadget.coils).matrix.astype(np.complex64), data)
            image = gridded_magnitude(data, trajectory, weights, self._grids[place[0]].shape)
            return image
        maps = self.maps[place]
        if gadget.method == "gridding":
            image = gridding(data, trajectory, weights, self._grids[place[0]].shape, maps)
        elif gadget.method == "l1_wavelet":
            image = l1_wavelet(data, maps, trajectory, None, weights, gadget.weight, level=None, iterations=gadget.iterations)
        elif gadget.method == "total_variation":
            axes = range(1 - maps.ndim, 0)
            image = total_variation(data, maps, trajectory, None, weights, gadget.weight, axes, iterations=gadget.iterations)
        else:
            image = cg_sense(data, trajectory, maps, gadget.iterations, gadget.tolerance, gadget.regularization, weights)
        return image

    def _gridded_there(self, frame: Frame) -> Any:
        """The image of samples that are on the GPU, not waited for; None where some of them cannot be used, or it does not fit."""
        from recon.coils import compress_svd
        from recon.gridded_magnitude import gridded_magnitude

        gadget, space = self.gadget, frame.series.space
        _check_channels(frame.readouts)
        geometry, grid = self._geometry(frame.readouts, space, True), self._grids[space]
        if not geometry.all_inside:
            return None
        try:
            data = self._gathered.take(frame)
            if self._reduces(len(data)):
                data = compress_svd(data, gadget.coils)
            weights = geometry.resident_weights(grid.amplitude / math.sqrt(math.prod(grid.shape)))
            image = grid.cut(gridded_magnitude(data, geometry.trajectory, weights, grid.shape))
        except MemoryError as error:
            self._tell(f"{error}; images are computed on the CPU", "images that do not fit into GPU memory")
            return None
        return image.reshape((1,) * (3 - image.ndim) + image.shape)

    def _volume(self, image: np.ndarray, grid: Grid) -> np.ndarray:
        """The reconstructed field of view ``[z, y, x]`` in the units of the object, without NaN."""
        image = self._without_nan(grid.cut(image) * np.float32(grid.amplitude / np.sqrt(np.prod(grid.shape))))
        dtype = np.complex64 if np.iscomplexobj(image) else np.float32
        volume: np.ndarray = image.astype(dtype, copy=False).reshape((1,) * (3 - image.ndim) + image.shape)
        return volume

    def _without_nan(self, pixels: np.ndarray) -> np.ndarray:
        if np.isfinite(pixels).all():
            return pixels
        self._tell("pixels that are NaN or infinite are replaced by 0", "pixels not finite, replaced by 0")
        finite: np.ndarray = np.nan_to_num(pixels, nan=0.0, posinf=0.0, neginf=0.0)
        return finite

    def rehearse(self, readout: Readout) -> None:
        """Reconstruct nothing, of the size of an image, while the first frame is still being measured.

        Cores that idled compute slowly at first (measured: the first image took 38 ms instead of 25), and first calls find caches
        cold. No image depends on it.
        """
        from recon.gridded_magnitude import gridded_magnitude
        from recon.sense import cg_sense

        space = readout.series.space
        grid = self._grids[space]
        trajectory = to_grid(readout.trajectory, self.gadget.trajectory_unit, self.context.header.encoding(space), grid)
        trajectory = trajectory[(np.abs(trajectory) <= np.float32(np.pi)).all(axis=1)]
        coils = min(len(readout.data), self.gadget.coils or len(readout.data))
        if len(trajectory) and len(grid.shape) == 2:  # of a volume it would take longer than the frame
            nothing = np.zeros((coils, len(trajectory)), np.complex64)
            nothing[:, 0] = 1  # of nothing at all, CG would have nothing to do
            if not self.gadget.needs_maps:
                for _ in range(REHEARSAL):
                    gridded_magnitude(nothing, trajectory, np.ones(len(trajectory), np.float32), grid.shape)
                return
            cg_sense(nothing, trajectory, np.ones((coils, *grid.shape), np.complex64), REHEARSAL)

    def item(self, frame: Frame, image: Any) -> Image:
        """The image as an item, with the geometry, counters and times of the frame; pixels on a GPU stay there until they are needed.

        image_index and repetition have 16 bits and start again after 65535.
        """
        gadget, encoding = self.gadget, self.context.header.encoding(frame.series.space)
        complex_pixels = gadget.output == "complex"
        if complex_pixels and not isinstance(image, np.ndarray):
            image = self._without_nan(device.get(image))
        if isinstance(image, np.ndarray):
            pixels: Any = (image.astype(np.complex64, copy=False) if complex_pixels else np.abs(image))[None]
        else:
            pixels = Resident(image[None], self._without_nan)
        header = image_header(
            frame.header,
            image.shape[::-1],
            encoding.recon.field_of_view,
            series=gadget.image_series,
            index=frame.number & 0xFFFF,
            image_type=ImageType.COMPLEX if complex_pixels else ImageType.MAGNITUDE,
        )
        if frame.repetition is not None:
            header["repetition"] = frame.repetition & 0xFFFF
        meta = describe(
            self.context.header,
            comment=gadget.method,
            acquisition_header=frame.header,
            image_number=frame.number,
        )
        item = Image(header, pixels, meta)
        item.received, item.triggered = frame.received, frame.triggered
        return item


def _espirit_maps(samples: Samples, shape: tuple[int, ...], spokes: int | None) -> np.ndarray:
    from recon.cartesian_centre import cartesian_centre, dense_edge
    from recon.espirit import espirit

    block = cartesian_centre(samples.data, samples.trajectory, shape, dense_edge(spokes))
    # Of a thin slab, a kernel of all partitions would fit anything.
    kernel = [min(6 if len(shape) == 2 else 4, (n + 1) // 2) for n in block.shape[1:]]
    maps: np.ndarray = espirit(block, shape, block.shape[1:], kernel, rank=len(shape))
    return maps


def _check_channels(readouts: Sequence[Readout]) -> None:
    channels = {len(readout.data) for readout in readouts}
    if len(channels) > 1:
        raise ValueError(f"readouts of one image have different numbers of channels: {', '.join(map(str, sorted(channels)))}")


def _sum_is_finite(data: np.ndarray) -> bool:
    """Whether all complex samples are finite, in a quarter of the time of looking at each; False may be an overflow of the sum."""
    return bool(np.isfinite(data.view(np.float32).sum()))


def _mixed(matrix: np.ndarray, data: np.ndarray) -> np.ndarray:
    """`matrix` ``[out, coil]`` times `data` ``[coil, sample]``, without BLAS: its threads, waiting for one another on busy cores, were
    measured to take 10 ms for what takes 0.3 ms."""
    mixed: np.ndarray = np.einsum("vc,cs->vs", matrix, data)
    return mixed
