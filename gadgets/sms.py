"""Images of slices that were excited together (simultaneous multi-slice, multiband)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from gadgets.base import Context, Gadget, Stream, parameter
from gadgets.cartesian import centered
from gadgets.coil_maps import zero_filled
from gadgets.generic import IGNORED, describe_images, image_array
from gadgets.header import Encoding, Header, HeaderError, Limit
from gadgets.items import ImageArray, Item, ReconBit, ReconBuffer, ReconData
from gadgets.layout import clone
from recon.espirit import espirit
from recon.operators.sms import caipi_phases
from recon.slice_grappa import SliceGrappa
from recon.slice_sense import SliceSense

Unfolding = Callable[[np.ndarray], np.ndarray]
"""K-space ``[coil, ky, kx]`` to images ``[slice, y, x]``."""

FEWEST_LINES = 12
"""Calibration lines below which maps would not tell slices apart."""
_KERNEL = 6
_MULTIBAND = ("encoding", "parallelImaging", "multiband")
GEOMETRY = ("position", "read_dir", "phase_dir", "slice_dir", "patient_table_position")


class SMSRecon(Gadget):
    """Slices that were excited together, taken apart by the coils. ReconData -> ImageArray with an image for each slice, along LOC.

    The slice counter of imaging readouts numbers the groups; of G groups, group g holds the slices g, g + G, g + 2 G, ... Calibration
    readouts (flag 20) of each slice alone, numbered by slice, give the sensitivities and the positions of the slices; they must come
    before the images they serve and may come again. From acquired line to acquired line, slice m of a group gains the phase of m
    times `caipi_shift` turns (blipped CAIPI, zero at the centre of k-space), calibration readouts none. In-plane acceleration is
    undone in the same step. SENSE and split slice-GRAPPA differ little in error; SENSE takes partial Fourier scans as they are,
    but iterates, at a hundred times the cost, for those and where the shift is no whole number of pixels.
    """

    ignored = IGNORED

    method: Literal["sense", "slice_grappa"] = parameter("sense", help="SENSE with ESPIRiT maps, or split slice-GRAPPA")
    multiband: int | None = parameter(None, ge=1, help="slices excited together; none: multiband_factor of the header")
    caipi_shift: float | None = parameter(
        None,
        ge=-1,
        le=1,
        unit="fields of view",
        help="shift of a slice against its neighbour in the group, of the field of view by the in-plane acceleration, towards rising y; "
        "none: deltaKz (1/mm) times dZ (mm) of the header, or 1 / multiband without them",
    )
    regularization: float = parameter(
        0.001, ge=0, help="Tikhonov weight: of SENSE in units of the mean diagonal of the Fourier part, of kernels in units of theirs"
    )
    kernel_size: int = parameter(5, ge=1, le=15, unit="samples", help="edge of the kernels of slice-GRAPPA, odd")
    iterations: int = parameter(50, ge=1, help="most iterations where the sampling is not periodic (partial Fourier)")
    calibration: int = parameter(
        24, ge=FEWEST_LINES, unit="samples", help="most of the centre of k-space that maps are made from, each way"
    )
    map_crop: float = parameter(0.9, ge=0, lt=1, help="eigenvalue below which ESPIRiT takes a pixel for background")
    image_series: int = parameter(0, ge=0, le=65534, help="number of the image series before the first")

    def __call__(self, items: Stream) -> Iterator[Item]:
        items.header.require_cartesian()
        spaces: dict[int, _Space] = {}
        for item in items.of(ReconData):
            for number, bit in enumerate(item.bits):
                space = spaces.setdefault(number, _Space())
                if bit.ref is not None and bit.ref.data.size:
                    space.learn(bit.ref, items.header.encoding(number))
            for number, bit in enumerate(item.bits):
                if bit.data.data.size:
                    images = self._images(bit, _calibrated(spaces, number, items.header), items.context, number)
                    images.waveforms = item.waveforms or None
                    yield images

    def _images(self, bit: ReconBit, space: _Space, context: Context, number: int) -> ImageArray:
        header, data = context.header, bit.data
        if data.data.shape[4] > 1:
            raise ValueError("simultaneous slices of 3D encoding are not supported; the encoded matrix must have z = 1")
        locations = _slices_at(data, space, multiband_factor(header, self.multiband))
        out = np.zeros((len(locations), *data.data.shape[1:3], 1, *data.data.shape[4:]), np.complex64)
        for where in np.ndindex(data.data.shape[:3]):
            kspace, lines = self._finite(data.data[where][:, 0], data.headers[where]["number_of_samples"][0] > 0, context)
            if lines.any():
                slices = [place for place, (location, _) in enumerate(locations) if location == where[0]]
                unfold = self._unfolding(space, [locations[place][1] for place in slices], lines, data.data.shape, header)
                out[slices, where[1], where[2], 0, 0] = unfold(kspace)
        expanded = replace(bit, data=_expanded(data, locations, space))
        headers, metas = describe_images(expanded, out.shape, header, number)
        series = self.image_series + number + 1
        return image_array(
            out, headers, metas, header.encoding(number), role="Image", series=series, acquisition_headers=expanded.data.headers
        )

    def _finite(self, kspace: np.ndarray, lines: np.ndarray, context: Context) -> tuple[np.ndarray, np.ndarray]:
        """K-space and its sampled lines without those that hold NaN or infinite samples."""
        finite = np.isfinite(kspace).all(axis=(0, 2))
        if finite.all():
            return kspace, lines
        what = "lines with NaN or infinite samples, left out"
        if what not in context.counts:
            context.log.warning("%s: %s", self.name, what)
        context.count(what, int(np.count_nonzero(lines & ~finite)))
        return np.where(finite[:, None], kspace, 0), lines & finite

    def _unfolding(self, space: _Space, slices: list[int], lines: np.ndarray, shape: tuple[int, ...], header: Header) -> Unfolding:
        key = (*slices, lines.tobytes())
        if key not in space.unfoldings:
            sampled = np.flatnonzero(lines)
            step = int(np.diff(sampled).min()) if len(sampled) > 1 else 1
            shift = caipi_shift(header, len(slices), self.caipi_shift) / step
            maps = np.stack([self._maps(space, one, shape) for one in slices])
            shifts = [shift * m for m in range(len(slices))]
            if self.method == "sense":
                space.unfoldings[key] = self._sense(maps, shifts, lines)
            else:
                block = min(_central_block(space.reference[one][1]) for one in slices)
                calibration = np.stack([centered(space.reference[one][0], 1, block) for one in slices])
                kernel = (self.kernel_size, self.kernel_size)
                space.unfoldings[key] = SliceGrappa(calibration, maps, shifts, step, kernel, self.regularization)
        return space.unfoldings[key]

    def _sense(self, maps: np.ndarray, shifts: list[float], lines: np.ndarray) -> Unfolding:
        phases = caipi_phases(len(maps), len(lines), shifts)[..., 0]
        solve = SliceSense(maps, phases, lines, self.regularization, self.iterations)
        # Where maps fade out at the edge of the object, it is maps times image that the coils saw.
        seen = np.sqrt((maps.real**2 + maps.imag**2).sum(axis=1))
        return lambda kspace: solve(kspace) * seen

    def _maps(self, space: _Space, number: int, shape: tuple[int, ...]) -> np.ndarray:
        """ESPIRiT maps ``[coil, y, x]`` of a slice."""
        if number not in space.maps:
            kspace, lines, _ = space.reference[number]
            block = _central_block(lines)
            if block < FEWEST_LINES:
                raise ValueError(
                    f"slice {number}: {block} adjacent single-band calibration lines around the centre of k-space, at least {FEWEST_LINES} "
                    "are needed; acquire more readouts flagged IS_PARALLEL_CALIBRATION"
                )
            if not np.isfinite(kspace).all():
                raise ValueError(f"slice {number}: the single-band calibration data hold NaN or infinite samples")
            full = zero_filled(kspace[:, None], (1, *shape[-2:]))[:, 0]
            size = (min(block, self.calibration), min(kspace.shape[-1], self.calibration))
            space.maps[number] = espirit(full, calibration=size, kernel_size=_KERNEL, crop=self.map_crop, soft=True)
        return space.maps[number]


def multiband_factor(header: Header, chosen: int | None) -> int:
    """Slices excited together: as chosen, else as the header says.

    Raises:
        HeaderError: neither does, or they differ.
    """
    given = header.number(*_MULTIBAND, "multiband_factor")
    if chosen is not None:
        if given is not None and given != chosen:
            raise HeaderError(f"header: multiband_factor is {given:g}, the property multiband {chosen}; correct the one that is wrong")
        return chosen
    if given is None or given < 1 or given != int(given):
        found = "missing" if given is None else f"{given:g}"
        raise HeaderError(f"header: encoding/parallelImaging/multiband/multiband_factor is {found}; set the property multiband")
    return int(given)


def caipi_shift(header: Header, factor: int, chosen: float | None) -> float:
    """Turns that neighbouring slices gain against each other from acquired line to acquired line; see `SMSRecon.caipi_shift`."""
    if chosen is not None:
        return chosen
    step, distance = header.number(*_MULTIBAND, "deltaKz"), header.number(*_MULTIBAND, "spacing", "dZ")
    return 1 / factor if step is None or distance is None else step * distance


@dataclass(eq=False)
class _Space:
    """What is known of an encoding space.

    reference: by slice, the single-band k-space ``[coil, y, x]`` centred, which lines it has, and the header of its first readout.
    """

    reference: dict[int, tuple[np.ndarray, np.ndarray, np.void]] = field(default_factory=dict)
    maps: dict[int, np.ndarray] = field(default_factory=dict)
    unfoldings: dict[tuple[object, ...], Unfolding] = field(default_factory=dict)

    def learn(self, ref: ReconBuffer, encoding: Encoding) -> None:
        """Take the single-band slices of a buffer; their maps are made anew if they have changed."""
        size = encoding.encoded.matrix[1]
        center = (encoding.limit("kspace_encoding_step_1") or Limit(0, size - 1, size // 2)).center
        for location in range(len(ref.headers)):
            number = _slice_of(ref.headers[location])
            if number is None:
                continue
            learned = _single_band(ref.data[location], ref.headers[location], size, center)
            known = self.reference.get(number)
            if known is None or not np.array_equal(known[0], learned[0]):
                self.reference[number] = learned
                self.maps.pop(number, None)
                self.unfoldings.clear()


def _calibrated(spaces: dict[int, _Space], number: int, header: Header) -> _Space:
    """The space whose calibration readouts serve space `number`: itself, or where it has none the header's calibration_encoding."""
    other = header.number("encoding", "parallelImaging", "multiband", "calibration_encoding")
    if spaces[number].reference or other is None:
        return spaces[number]
    return spaces.get(int(other), spaces[number])


def _single_band(data: np.ndarray, headers: np.ndarray, size: int, center: int) -> tuple[np.ndarray, np.ndarray, np.void]:
    """Mean over S and N of the lines of ``[S, N, CHA, E2, E1, E0]``, each where its counter puts it in a matrix of `size` lines."""
    kspace = np.zeros((data.shape[2], size, data.shape[-1]), np.complex64)
    count = np.zeros(size, int)
    for s, n, e2, e1 in zip(*np.nonzero(headers["number_of_samples"]), strict=True):
        line = int(headers[s, n, e2, e1]["idx"]["kspace_encode_step_1"]) - center + size // 2
        if 0 <= line < size:
            kspace[:, line] += data[s, n, :, e2, e1]
            count[line] += 1
    kspace /= np.maximum(count, 1)[:, None]
    return kspace, count > 0, clone(headers[headers["number_of_samples"] > 0][0])


def _central_block(lines: np.ndarray) -> int:
    """How many adjacent lines around the centre are there, as many on either side."""
    center = len(lines) // 2
    half = 0
    while half < center and lines[center - half - 1] and lines[min(center + half, len(lines) - 1)]:
        half += 1
    return 2 * half


def _slice_of(headers: np.ndarray) -> int | None:
    """The slice counter of the readouts; None without any."""
    slices = headers["idx"]["slice"][headers["number_of_samples"] > 0]
    return int(slices[0]) if slices.size else None


def group_count(slices: Iterable[int], factor: int) -> int:
    """How many groups the slices with a single-band reference make. Raises ValueError where they do not fit."""
    known = sorted(slices)
    if not known:
        raise ValueError(
            "there is no single-band reference: simultaneous slices are told apart by calibration readouts of each slice alone, flagged "
            "IS_PARALLEL_CALIBRATION (20) and sent before the images"
        )
    if known != list(range(len(known))):
        missing = sorted(set(range(known[-1] + 1)) - set(known))
        raise ValueError(f"there is no single-band reference for slice {', '.join(map(str, missing))}; every slice needs its own")
    if len(known) % factor:
        raise ValueError(
            f"{len(known)} slices with a single-band reference cannot be in bands of {factor}; the multiband factor does not match the scan"
        )
    return len(known) // factor


def _slices_at(data: ReconBuffer, space: _Space, factor: int) -> list[tuple[int, int]]:
    """Where along LOC each slice was acquired: location and slice number, in the order of the slices."""
    groups = group_count(space.reference, factor)
    found = []
    for location in range(len(data.headers)):
        group = _slice_of(data.headers[location])
        if group is None:
            continue
        if group >= groups:
            raise ValueError(
                f"imaging readouts have the slice counter {group}, but {len(space.reference)} slices in bands of {factor} make "
                f"{groups} groups; the multiband factor does not match the scan: set multiband"
            )
        found += [(location, group + m * groups) for m in range(factor)]
    return sorted(found, key=lambda one: one[1])


def _expanded(data: ReconBuffer, locations: list[tuple[int, int]], space: _Space) -> ReconBuffer:
    """The buffer's headers for each slice: counters and times of its group, its own number and geometry."""
    headers = np.stack([data.headers[location] for location, _ in locations])
    for place, (_, number) in enumerate(locations):
        acquired = headers[place]["number_of_samples"] > 0
        headers[place]["idx"]["slice"][acquired] = number
        for name in GEOMETRY:
            headers[place][name][acquired] = space.reference[number][2][name]
    return replace(data, headers=headers)
