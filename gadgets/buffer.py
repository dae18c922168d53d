"""Buckets of readouts sorted into k-space arrays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

import numpy as np
from pydantic import BeforeValidator

from gadgets.accumulate import _lower
from gadgets.base import Context, Gadget, Stream, parameter
from gadgets.header import Encoding, Limit
from gadgets.items import Acquisition, AcquisitionBucket, Item, ReconBit, ReconBuffer, ReconData, Stats
from gadgets.layout import ACQUISITION_HEADER, SAMPLING_DESCRIPTION, blank

Dimension = Annotated[
    Literal["none", "average", "contrast", "phase", "repetition", "set", "segment", "slice"],
    BeforeValidator(_lower),
]
_KEY = ("average", "slice", "contrast", "phase", "repetition", "set", "segment")


class BucketToBuffer(Gadget):
    """Sort the readouts of a bucket into k-space arrays.

    AcquisitionBucket -> ReconData, one for each combination of average, slice, contrast, phase, repetition, set and segment that
    occurs, except those laid along N, S or LOC. Cartesian lines are placed so that the centre given in the encoding limits lies in
    the middle of the encoded matrix; non-Cartesian readouts by their counters. Calibration readouts (flags 20, 21) fill ``ref``.

    Where Gadgetron writes several readouts to one place or outside the array (N, S or slice counters that do not start at 0,
    segment as N or S, partial Fourier without a parallelImaging element), they get their own places here.
    """

    stock = (("gadgetron_mricore", "BucketToBufferGadget"),)
    ignored = ("verbose",)

    N_dimension: Dimension = parameter("none", help="counter laid along N")
    S_dimension: Dimension = parameter("none", help="counter laid along S")
    split_slices: bool = parameter(False, help="true: each slice in its own ReconData; false: slices along LOC")
    ignore_segment: bool = parameter(False, help="do not separate readouts by their segment counter")

    def __call__(self, items: Stream) -> Iterator[Item]:
        for bucket in items.of(AcquisitionBucket):
            yield from sort_bucket(
                bucket,
                items.context,
                n_dimension=self.N_dimension,
                s_dimension=self.S_dimension,
                split_slices=self.split_slices,
                ignore_segment=self.ignore_segment,
            )


def sort_bucket(
    bucket: AcquisitionBucket,
    context: Context,
    *,
    n_dimension: str = "none",
    s_dimension: str = "none",
    split_slices: bool = False,
    ignore_segment: bool = False,
) -> list[ReconData]:
    """The k-spaces of a bucket, in ascending order of the counters that separate them. See `BucketToBuffer`.

    Each ReconData has as many bits as encoding spaces up to the highest that occurs; a space without imaging data has an empty
    buffer (`empty_buffer`). All share the bucket's waveforms.

    Raises:
        ValueError: a readout does not fit: its counters lie outside the limits, its length or channel count differs.
    """
    joined = {n_dimension, s_dimension} | ({"segment"} if ignore_segment else set())
    if not split_slices:
        joined.add("slice")
    separating = [name for name in _KEY if name not in joined]
    parts = [("ref", bucket.ref, bucket.refstats), ("data", bucket.data, bucket.datastats)]
    found: dict[tuple[int, ...], dict[tuple[int, str], _Sorter]] = {}
    for part, acquisitions, stats in parts:
        for acquisition in acquisitions:
            counters = acquisition.header["idx"]
            sorters = found.setdefault(tuple(int(counters[name]) for name in separating), {})
            space = int(acquisition.header["encoding_space_ref"])
            if (space, part) not in sorters:
                locations = "none" if split_slices or "slice" in (n_dimension, s_dimension) else "slice"
                dimensions = (locations, s_dimension, n_dimension)
                sorters[space, part] = _Sorter(acquisition, context, stats[space], dimensions, reference=part == "ref")
            sorters[space, part].place(acquisition)
    results = []
    for key in sorted(found):
        sorters = found[key]
        bits = []
        for space in range(max(space for space, _ in sorters) + 1):
            data, ref = sorters.get((space, "data")), sorters.get((space, "ref"))
            bits.append(ReconBit(data.buffer if data else empty_buffer(), ref.buffer if ref else None))
        results.append(ReconData(bits, bucket.waveforms))
    return results


def empty_buffer() -> ReconBuffer:
    """A buffer without data (all dimensions 0)."""
    return ReconBuffer(np.zeros((0,) * 7, np.complex64), np.zeros((0,) * 5, ACQUISITION_HEADER), blank(SAMPLING_DESCRIPTION))


class _Axis:
    """A dimension of the array: its size, and how a counter becomes an index."""

    def __init__(self, size: int, offset: int) -> None:
        self.size = size
        self.offset = offset

    def limits(self, limit: Limit, center: int | None = None) -> tuple[int, int, int]:
        """Sampling limits (min, center, max) of the header's `limit` on this axis."""
        last = max(self.size - 1, 0)
        low, high = (min(max(counter + self.offset, 0), last) for counter in (limit.minimum, limit.maximum))
        return low, limit.center if center is None else center, high


class _Sorter:
    """One buffer and where readouts go in it, laid out for the first readout that comes."""

    def __init__(self, first: Acquisition, context: Context, stats: Stats, dimensions: tuple[str, str, str], *, reference: bool) -> None:
        self._context = context
        self._encoding = encoding = context.header.encoding(int(first.header["encoding_space_ref"]))
        self._cartesian = encoding.trajectory in ("cartesian", "epi")
        self._step1, self._step2, limit1, limit2 = _steps(encoding, stats, reference, self._cartesian)
        self._outer = [(name, *_range(name, stats)) for name in dimensions]
        centered = self._cartesian and not (reference and _apart(encoding))

        channels, samples = first.data.shape
        pre, post = int(first.header["discard_pre"]), int(first.header["discard_post"])
        length = samples if self._cartesian and _whole(encoding, samples) else samples - pre - post
        outer = tuple(size for _, _, size in self._outer)
        steps = (self._step2.size, self._step1.size)
        trajectory = None
        if first.trajectory is not None:
            trajectory = np.zeros((*outer, *steps, length, first.trajectory.shape[1]), np.float32)
        self._whole = length == samples
        limits = (
            _readout_limits(encoding, first, length, self._cartesian),
            self._step1.limits(limit1, encoding.encoded.matrix[1] // 2) if centered else _raw(limit1),
            self._step2.limits(limit2, encoding.encoded.matrix[2] // 2) if centered else _raw(limit2),
        )
        self.buffer = ReconBuffer(
            data=np.zeros((*outer, channels, *steps, length), np.complex64),
            headers=np.zeros((*outer, *steps), ACQUISITION_HEADER),
            sampling=_sampling(encoding, limits),
            trajectory=trajectory,
        )

    def place(self, acquisition: Acquisition) -> None:
        """Copy a readout to its place."""
        counters = acquisition.header["idx"]
        e1 = int(counters["kspace_encode_step_1"]) + self._step1.offset
        e2 = int(counters["kspace_encode_step_2"]) + self._step2.offset
        if not (0 <= e1 < self._step1.size and 0 <= e2 < self._step2.size):
            self._outside(acquisition)
            return
        self._check(acquisition)
        outer = tuple(0 if name == "none" else int(counters[name]) - low for name, low, _ in self._outer)
        headers = self.buffer.headers[outer]
        if headers["number_of_samples"][e2, e1]:
            self._context.count("readouts overwritten by a later one with the same counters")
        headers[e2, e1] = acquisition.header
        source, target = self._span(acquisition)
        self.buffer.data[outer][:, e2, e1, target] = acquisition.data[:, source]
        if self.buffer.trajectory is not None and acquisition.trajectory is not None:
            self.buffer.trajectory[outer][e2, e1, target] = acquisition.trajectory[source]

    def _span(self, acquisition: Acquisition) -> tuple[slice, slice]:
        """Which samples are taken, and where along E0 they go."""
        header, samples, length = acquisition.header, acquisition.data.shape[1], self.buffer.data.shape[-1]
        pre, post, center = (int(header[name]) for name in ("discard_pre", "discard_post", "center_sample"))
        kept = samples - pre - post
        start = 0
        if self._cartesian and self._whole:
            middle = int(self.buffer.sampling["sampling_limits"][0]["center"])
            in_place = samples == length and (center == samples // 2 or center >= samples)
            start = pre if in_place else middle - center + pre
            if samples == length and not 0 <= start <= length - kept:
                # A full-length readout cannot be moved; its off-centre echo leaves a phase ramp in the image.
                self._context.count("full-length readouts with an off-centre echo")
                start = pre
        if kept < 0 or not 0 <= start <= length - kept:
            raise ValueError(
                f"readout {header['scan_counter']} (samples {samples}, center_sample {center}, discard {pre} and {post}) does not fit the "
                f"{length} samples of its k-space; put AsymmetricEchoAdjustRO in front, or check the header's encoded matrix"
            )
        return slice(pre, pre + kept), slice(start, start + kept)

    def _check(self, acquisition: Acquisition) -> None:
        expected, found = self.buffer.data.shape[3], acquisition.data.shape[0]
        if found != expected:
            raise ValueError(f"readout {acquisition.header['scan_counter']} has {found} channels, the first of its k-space had {expected}")
        if (acquisition.trajectory is None) != (self.buffer.trajectory is None):
            raise ValueError(
                f"readout {acquisition.header['scan_counter']}: some readouts of its k-space have a trajectory, some have none"
            )

    def _outside(self, acquisition: Acquisition) -> None:
        """A line within the encoding limits but outside the encoded matrix is left out, any other is an error."""
        counters, limits = acquisition.header["idx"], self._encoding.limits
        for name, limit in (
            ("kspace_encode_step_1", limits.get("kspace_encoding_step_1")),
            ("kspace_encode_step_2", limits.get("kspace_encoding_step_2")),
        ):
            if limit is not None and not limit.minimum <= counters[name] <= limit.maximum:
                raise ValueError(
                    f"readout {acquisition.header['scan_counter']}: {name} is {counters[name]}, the header's encoding limits are "
                    f"{limit.minimum} to {limit.maximum}; correct the header"
                )
        if not self._context.counts.get(_OUTSIDE):
            self._context.log.warning(
                "readout %d (lines %d, %d) lies outside the encoded matrix %s and is left out, as are all others that do",
                *(acquisition.header["scan_counter"], counters["kspace_encode_step_1"], counters["kspace_encode_step_2"]),
                self._encoding.encoded.matrix,
            )
        self._context.count(_OUTSIDE)


_OUTSIDE = "readouts outside the encoded matrix left out"


def _apart(encoding: Encoding) -> bool:
    """Whether calibration lines are a scan of their own, with their own array."""
    return encoding.calibration_mode in ("separate", "external")


def _steps(encoding: Encoding, stats: Stats, reference: bool, cartesian: bool) -> tuple[_Axis, _Axis, Limit, Limit]:
    """Axes E1 and E2 and the encoding limits along them."""
    _, size1, size2 = encoding.encoded.matrix
    limit1 = encoding.limit("kspace_encoding_step_1") or Limit(0, size1 - 1, size1 // 2)
    limit2 = encoding.limit("kspace_encoding_step_2") or Limit(0, size2 - 1, size2 // 2)
    seen1, seen2 = stats.values["kspace_encode_step_1"], stats.values["kspace_encode_step_2"]
    if not cartesian:
        return (
            _counted(seen1, encoding.limit("kspace_encoding_step_1")),
            _counted(seen2, encoding.limit("kspace_encoding_step_2")),
            limit1,
            limit2,
        )
    if reference and _apart(encoding):
        size2 = max(limit2.maximum - limit2.minimum, max(seen2) - min(seen2)) + 1
        return _Axis(max(seen1) - min(seen1) + 1, -min(seen1)), _Axis(size2, -min(seen2)), limit1, limit2
    return _Axis(size1, size1 // 2 - limit1.center), _Axis(size2, size2 // 2 - limit2.center if size2 > 1 else 0), limit1, limit2


def _counted(seen: set[int], limit: Limit | None) -> _Axis:
    """Axis of a plain counter: the header's range where the readouts keep to it, else theirs."""
    low, high = min(seen), max(seen)
    if limit is not None and limit.minimum <= low and high <= limit.maximum:
        low, high = limit.minimum, limit.maximum
    return _Axis(high - low + 1, -low)


def _range(dimension: str, stats: Stats) -> tuple[int, int]:
    """Lowest counter along an outer dimension, and how many there are."""
    if dimension == "none":
        return 0, 1
    seen = stats.values[dimension]
    return min(seen), max(seen) - min(seen) + 1


def _whole(encoding: Encoding, samples: int) -> bool:
    """Whether a Cartesian readout fills the matrix as it is, discarded samples counting as zeros, rather than after their removal."""
    encoded, recon = encoding.encoded, encoding.recon
    cropped = encoded.matrix[0] * recon.field_of_view[0] / encoded.field_of_view[0] if encoded.field_of_view[0] > 0 else 0
    return bool(encoding.calibration_mode) or samples in (encoded.matrix[0], recon.matrix[0], round(cropped))


def _readout_limits(encoding: Encoding, first: Acquisition, length: int, cartesian: bool) -> tuple[int, int, int]:
    samples, pre, post = first.data.shape[1], int(first.header["discard_pre"]), int(first.header["discard_post"])
    if not cartesian:
        return 0, encoding.encoded.matrix[0] // 2, encoding.encoded.matrix[0] - 1
    if length == samples:
        return pre, samples // 2, samples - post - 1
    return 0, max(int(first.header["center_sample"]) - pre, 0), length - 1


def _raw(limit: Limit) -> tuple[int, int, int]:
    return limit.minimum, limit.center, limit.maximum


def _sampling(encoding: Encoding, limits: tuple[tuple[int, int, int], ...]) -> np.void:
    """Sampling description. For Cartesian readouts oversampling counts as removed, as in Gadgetron."""
    sampling = blank(SAMPLING_DESCRIPTION)
    sampling["encoded_FOV"], sampling["encoded_matrix"] = encoding.encoded.field_of_view, encoding.encoded.matrix
    sampling["recon_FOV"], sampling["recon_matrix"] = encoding.recon.field_of_view, encoding.recon.matrix
    if encoding.trajectory == "cartesian":
        sampling["encoded_FOV"][0], sampling["encoded_matrix"][0] = encoding.recon.field_of_view[0], encoding.recon.matrix[0]
    for entry, (low, center, high) in zip(sampling["sampling_limits"], limits, strict=True):
        entry["min"], entry["center"], entry["max"] = low, center, high
    return sampling
