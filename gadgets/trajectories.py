"""Where the readouts of a measurement lie in k-space, and the image grid they are reconstructed on.

Acquired trajectories have the columns kx, ky[, kz]. Radial ones can be computed: a readout at angle a, counted from kx towards ky,
passes kx = r cos(a), ky = r sin(a) with rising r. The spirals of HyperSLICE and of sodium images are designed from their protocols.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from gadgets.header import Encoding, HeaderError
from gadgets.items import Acquisition
from gadgets.layout import Flag
from recon.realtime_spiral import RealtimeSpiral
from recon.sodium_spiral import sodium_spiral
from recon.trajectory import GOLDEN, from_acquisition_units

Source = Literal["auto", "acquired", "radial", "hyperslice", "sodium"]
Unit = Literal["auto", "cycles_per_pixel", "cycles_per_fov", "rad_per_pixel"]
Ordering = Literal["auto", "linear", "golden", "tiny_golden"]
Counter = Literal["auto", "line", "line_and_repetition", "running"]
_QUARTER = 2**14
"""A quarter of the range of the header's counters."""


@dataclass(frozen=True)
class Grid:
    """The reconstruction grid of an encoding space: the encoded field of view at the pixel size of the reconstructed image.

    shape, crop: pixels of the grid and of the image cut from its centre, in image axis order ([z,] y, x); radians: rad per grid
    pixel of one cycle per encoded pixel, by axis; amplitude: grid pixels per encoded pixel, which keeps the brightness of an object
    the same whatever the pixel size.
    """

    shape: tuple[int, ...]
    crop: tuple[int, ...]
    radians: tuple[float, ...]
    amplitude: float

    @classmethod
    def of(cls, encoding: Encoding, factor: float | None = None, samples: int | None = None) -> Grid:
        """The grid of an encoding space.

        factor: field of view of the grid by that of the image; None takes the encoded one. samples: samples in a radial readout; where
        they are no more than the image's pixels although the encoded matrix is larger, readout oversampling has been removed and with
        it the field of view outside the image. Raises `HeaderError` for a field of view that is not positive.
        """
        axes = (2, 1, 0) if encoding.encoded.matrix[2] > 1 else (1, 0)
        shape, crop, radians, amplitude = [], [], [], 1.0
        trimmed = samples is not None and samples <= encoding.recon.matrix[0] < encoding.encoded.matrix[0]
        for axis in axes:
            pixels, encoded_pixels = encoding.recon.matrix[axis], encoding.encoded.matrix[axis]
            field, encoded_field = encoding.recon.field_of_view[axis], encoding.encoded.field_of_view[axis]
            if not (field > 0 and encoded_field > 0):
                raise HeaderError(
                    f"header: fieldOfView_mm along {'xyz'[axis]} is {encoded_field:g} (encoded) and {field:g} (reconstructed); "
                    "both must be positive"
                )
            width = field if trimmed else encoded_field if factor is None else field * factor
            ratio = (field / pixels) / (encoded_field / encoded_pixels)
            shape.append(max(round(width / field * pixels), pixels))
            crop.append(pixels)
            radians.append(2 * math.pi * ratio)
            amplitude /= ratio
        return cls(tuple(shape), tuple(crop), tuple(radians), amplitude)

    def cut(self, images: np.ndarray) -> np.ndarray:
        """The centre of `images` ``[..., *shape]`` as ``[..., *crop]``; index n // 2 stays the origin."""
        window = [slice(n // 2 - m // 2, n // 2 - m // 2 + m) for n, m in zip(self.shape, self.crop, strict=True)]
        index: tuple[Any, ...] = (..., *window)
        cut: np.ndarray = images[index]
        return cut


class Repetitions:
    """Repetitions that go on counting where the header's 16 bits begin anew, after 65,536: an hour of frames of 55 ms.

    Separately for each slice, contrast, phase, set and average, whose repetitions may each begin with 0.
    """

    def __init__(self) -> None:
        self._last: dict[tuple[int, ...], tuple[int, int]] = {}

    def of(self, idx: np.void) -> int:
        """Number of the repetition of the next readout, whose counters are `idx`."""
        place = tuple(int(idx[name]) for name in ("slice", "contrast", "phase", "set", "average"))
        counter = int(idx["repetition"])
        before, rounds = self._last.get(place, (counter, 0))
        # Only a step from the last quarter to the first is taken as a new round, not a restart or a gap in the middle; and back for
        # readouts that come late.
        if before >= 3 * _QUARTER and counter < _QUARTER:
            rounds += 1
        elif before < _QUARTER and counter >= 3 * _QUARTER and rounds:
            rounds -= 1
        self._last[place] = counter, rounds
        return counter + 4 * _QUARTER * rounds


class Trajectories:
    """The trajectory of every readout of one encoding space.

    source: `acquired` with the readouts, computed `radial`, or whichever is there (`auto`); or `hyperslice` and `sodium`, the
    protocols of `recon.realtime_spiral` and `recon.sodium_spiral` at the encoded matrix and field of view, arm by the line counter, phase
    by the repetition.
    ordering, increment, angle_range, offset, views, counter: of computed radial ones, see `_number` and `_step`; angles in degrees.
    """

    def __init__(
        self,
        encoding: Encoding,
        source: Source = "auto",
        ordering: Ordering = "auto",
        increment: float | None = None,
        tiny_number: int = 7,
        angle_range: float = 180.0,
        offset: float = 0.0,
        views: int | None = None,
        counter: Counter = "auto",
    ) -> None:
        self.encoding = encoding
        self.source = source
        self.ordering = ordering
        self.increment = increment
        self.tiny_number = tiny_number
        self.angle_range = angle_range
        self.offset = offset
        self.views = views
        self.counter = counter
        self._count = 0
        self._repetitions = Repetitions()
        self._angular_step: float | None = None

    def of(self, acquisition: Acquisition) -> np.ndarray:
        """Trajectory of the next readout, columns kx, ky[, kz], without the samples that the header discards.

        Acquired ones come in the sender's units, computed ones in cycles per encoded pixel. Call it once a readout, in order: the
        running counter counts the calls. Raises ValueError when there is no trajectory and none can be computed.
        """
        number = self._count
        self._count += 1
        header = acquisition.header
        kept = slice(int(header["discard_pre"]), acquisition.data.shape[1] - int(header["discard_post"]))
        if self.source in ("hyperslice", "sodium"):
            return self._designed(acquisition, kept)
        if self.source != "radial" and acquisition.trajectory is not None and acquisition.trajectory.shape[1] > 0:
            return self._columns(acquisition.trajectory[kept], header)
        if self.source == "acquired":
            raise ValueError(
                f"readout {int(header['scan_counter'])} carries no trajectory; let it be computed (trajectory=radial), "
                "or make the converter store it"
            )
        return self._radial(acquisition, number, kept)

    def _columns(self, trajectory: np.ndarray, header: np.void) -> np.ndarray:
        """The spatial columns: a further one holds density weights, which are not used; a stack's partition gives a missing kz."""
        axes = 3 if self.encoding.encoded.matrix[2] > 1 else 2
        if trajectory.shape[1] in (axes, axes + 1):
            return trajectory[:, :axes]
        if axes == 3 and trajectory.shape[1] == 2:
            partitions = self.encoding.encoded.matrix[2]
            limit = self.encoding.limit("kspace_encoding_step_2")
            center = limit.center if limit else partitions // 2
            plane = (int(header["idx"]["kspace_encode_step_2"]) - center) / partitions
            # In cycles per field of view where the in-plane columns are: the unit is found for all columns together.
            unit = partitions if np.abs(trajectory).max(initial=0) > 1 else 1
            return np.column_stack([trajectory, np.full(len(trajectory), plane * unit, trajectory.dtype)])
        raise ValueError(
            f"readout {int(header['scan_counter'])} has a trajectory of {trajectory.shape[1]} columns; an encoded matrix with "
            f"z = {self.encoding.encoded.matrix[2]} needs {axes}"
        )

    def _radial(self, acquisition: Acquisition, number: int, kept: slice) -> np.ndarray:
        if self.encoding.encoded.matrix[2] > 1:
            raise ValueError(
                "three-dimensional radial trajectories are not computed; let the acquisitions carry theirs (kx, ky, kz), "
                "or set the encoded matrix to z = 1"
            )
        angle = math.radians(self._view(acquisition, number) * self._step() + self.offset)
        samples = kept.stop - kept.start
        center = int(acquisition.header["center_sample"]) - kept.start
        # An asymmetric echo lacks samples on one side; the longer side still reaches the edge of k-space.
        radius = (np.arange(samples) - center) / (2 * max(center, samples - center))
        if acquisition.is_flag_set(Flag.IS_REVERSE):
            radius = -radius
        return np.stack([radius * math.cos(angle), radius * math.sin(angle)], axis=1).astype(np.float32)

    def _designed(self, acquisition: Acquisition, kept: slice) -> np.ndarray:
        encoded = self.encoding.encoded
        idx, samples = acquisition.header["idx"], kept.stop - kept.start
        arm, arms = int(idx["kspace_encode_step_1"]), self._protocol_arms(self._repetitions.of(idx))
        designed = arms.shape[1]
        if samples not in (designed, designed + 1) or arm >= len(arms):
            raise ValueError(
                f"readout {int(acquisition.header['scan_counter'])} is arm {arm} of {samples} samples, but the protocol {self.source!r} "
                f"has {len(arms)} arms of {designed} samples (or one more, at the centre) for {encoded.matrix[0]} pixels and "
                f"{encoded.field_of_view[0]:g} mm; let the acquisitions carry their trajectory, or correct the header"
            )
        points = arms[arm] / np.float32(2 * np.pi)
        return np.concatenate([np.zeros((samples - designed, 2), np.float32), points])

    def _protocol_arms(self, repetition: int) -> np.ndarray:
        """The designed arms of a repetition, ``[arm, sample, 2]``, rad/pixel."""
        pixels, field_of_view = self.encoding.encoded.matrix[0], self.encoding.encoded.field_of_view[0]
        if self.source == "sodium":
            return sodium_spiral(pixels, field_of_view)
        protocol = _protocol(pixels, field_of_view)
        arms: np.ndarray = protocol.trajectory[repetition % protocol.phases]
        return arms

    def _view(self, acquisition: Acquisition, number: int) -> int:
        """Number of the view: the line counter; that plus the views of all earlier repetitions; or a running number.

        `auto` is the line for linear orderings and line_and_repetition for golden ones (where the header or `views` gives the number
        of lines).
        """
        idx = acquisition.header["idx"]
        line = int(idx["kspace_encode_step_1"])
        counter = self.counter
        if counter == "auto":
            golden = self._ordering() != "linear" or self.increment is not None
            counter = "line_and_repetition" if golden and self._views() else "line"
        if counter == "running":
            return number
        if counter == "line":
            return line
        return line + self._repetitions.of(idx) * self._views(needed=True)

    def _views(self, needed: bool = False) -> int:
        if self.views:
            return self.views
        limit = self.encoding.limit("kspace_encoding_step_1")
        if limit is not None and limit.maximum > 0:
            return limit.maximum - limit.minimum + 1
        if needed:
            raise ValueError("the number of radial views is not known: the header gives no limit of kspace_encoding_step_1; set `views`")
        return 0

    def _ordering(self) -> Ordering:
        if self.ordering != "auto":
            return self.ordering
        if self.encoding.trajectory == "goldenangle":
            return "golden"
        if self.encoding.trajectory == "radial" or self.source == "radial":
            return "linear"
        raise ValueError(
            f"the readouts carry no trajectory, and for the header's trajectory {self.encoding.trajectory!r} none can be computed; make "
            "the converter store kx, ky with every readout, or, if the scan is radial, set trajectory=radial and an ordering, or, if it "
            "runs one of these protocols, trajectory=hyperslice or sodium"
        )

    def _step(self) -> float:
        """Angle between successive views in degrees.

        The property, else the header's trajectoryDescription (angle_increment_deg), else by the ordering: range / views (linear),
        range / golden ratio (Winkelmann 2007), range / (golden ratio + tiny_number - 1) (Wundrak 2015).
        """
        if self._angular_step is None:
            ordering = self._ordering()
            described = self.encoding.trajectory_description.get("angle_increment_deg")
            if self.increment is not None:
                self._angular_step = self.increment
            elif self.ordering == "auto" and isinstance(described, (int, float)):
                self._angular_step = float(described)
            elif ordering == "linear":
                self._angular_step = self.angle_range / self._views(needed=True)
            else:
                self._angular_step = self.angle_range / (GOLDEN + (self.tiny_number - 1 if ordering == "tiny_golden" else 0))
        return self._angular_step


@lru_cache(maxsize=4)
def _protocol(pixels: int, field_of_view: float) -> RealtimeSpiral:
    return RealtimeSpiral(base_resolution=pixels, field_of_view=field_of_view)


def to_grid(trajectory: np.ndarray, unit: Unit, encoding: Encoding, grid: Grid) -> np.ndarray:
    """Trajectory ``[sample, axis]`` with columns kx, ky[, kz] in `unit` -> float32 rad per grid pixel, columns ([kz,] ky, kx).

    `auto`: cycles per encoded pixel (ISMRMRD, +-0.5) where no coordinate exceeds 1, else cycles per encoded field of view. Raises
    ValueError for coordinates that are not finite or lie beyond the edge of encoded k-space.
    """
    matrix = encoding.encoded.matrix[: trajectory.shape[1]]
    if unit == "cycles_per_fov":
        trajectory = trajectory / np.asarray(matrix, np.float32)
    elif unit == "rad_per_pixel":
        trajectory = trajectory / np.float32(2 * np.pi)
    if unit != "auto" and np.abs(trajectory).max(initial=0) > 0.55:
        raise ValueError(
            f"the trajectory reaches {np.abs(trajectory).max():.3g} cycles per pixel when read as {unit}, beyond the edge of k-space "
            "(0.5): check trajectory_unit and the encoded matrix"
        )
    radians = from_acquisition_units(trajectory, matrix[::-1])
    return (radians * (np.asarray(grid.radians) / (2 * np.pi))).astype(np.float32)


def is_radial(trajectory: np.ndarray) -> bool:
    """Whether ``[view, sample, 2]`` are straight, evenly sampled spokes through the centre."""
    samples = trajectory.shape[1]
    if trajectory.shape[2] != 2 or samples < 3:
        return False
    first, last = trajectory[:, :1], trajectory[:, -1:]
    line = first + (last - first) * np.linspace(0, 1, samples, dtype=trajectory.dtype)[None, :, None]
    length = np.linalg.norm(last - first, axis=-1)
    spacing = length / (samples - 1)
    straight = np.abs(trajectory - line).max(axis=(1, 2)) < 0.25 * spacing[:, 0]
    nearest = np.linalg.norm(trajectory, axis=-1).min(axis=1)
    return bool((straight & (nearest < spacing[:, 0]) & (length[:, 0] > 0)).all())


def stack_equal(arrays: Sequence[np.ndarray]) -> np.ndarray | None:
    """The arrays stacked along a new first axis; None when their shapes differ."""
    return np.stack(arrays) if len({array.shape for array in arrays}) == 1 else None
