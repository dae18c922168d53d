"""What the generic Cartesian gadgets share: calibration mode, image headers and attributes, image numbers, series.

"Generic" is Gadgetron's name for its Cartesian chain (buffers in, image arrays out); these gadgets answer to its configurations.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from gadgets.geometry import central_header, image_header
from gadgets.header import Encoding, Header
from gadgets.items import ImageArray, Meta, ReconBit, Waveform
from gadgets.layout import ACQUISITION_HEADER, IMAGE_HEADER, ImageType, blank
from gadgets.meta import describe, number, put

IGNORED = ("debug_folder", "perform_timing", "verbose", "time_tick")
"""Debug and timing properties of all generic gadgets."""

CalibrationMode = Literal["none", "embedded", "interleaved", "separate", "external", "other"]

Role = Literal["Image", "Gfactor", "SNR_MAP"]

_LABELS: dict[str, tuple[str, str]] = {"Image": ("GT", "_GT"), "Gfactor": ("Gfactor", "Gfactor"), "SNR_MAP": ("SNR_MAP", "SNR_MAP")}
"""Role -> (image comment, series description)."""

_SKIP = "Skip_processing_after_recon"


def calibration_mode(encoding: Encoding) -> CalibrationMode:
    """Where the calibration lines come from; ``none`` for a scan that is not accelerated."""
    if max(encoding.acceleration) <= 1:
        return "none"
    known: dict[str, CalibrationMode] = {
        "embedded": "embedded",
        "interleaved": "interleaved",
        "separate": "separate",
        "external": "external",
    }
    return known.get(encoding.calibration_mode, "other")


def describe_images(bit: ReconBit, shape: tuple[int, ...], header: Header, space: int) -> tuple[np.ndarray, list[Meta]]:
    """Image headers ``[LOC, S, N]`` and one `Meta` an image for images ``[LOC, S, N, CHA, Z, Y, X]`` of `shape`.

    Geometry, counters and time stamps are those of the readout nearest the k-space centre of the image.
    """
    headers = np.zeros(shape[:3], IMAGE_HEADER)
    metas = []
    for where in np.ndindex(*shape[:3]):
        acquired = bit.data.headers[where]
        central = central_header(acquired, shape[-2] // 2, shape[-3] // 2)
        if central is None:
            central = blank(ACQUISITION_HEADER)
        headers[where] = image_header(central, shape[:3:-1], bit.data.sampling["recon_FOV"], image_type=ImageType.MAGNITUDE)
        headers[where]["channels"] = shape[3]
        headers[where]["user_int"], headers[where]["user_float"] = central["user_int"], central["user_float"]
        meta = describe(header, history="GT", sampling=bit.data.sampling, acquisition_header=central, encoding=space)
        _put_ranges(meta, acquired)
        _put_user_values(meta, central)
        _put_study(meta, header)
        metas.append(meta)
    return headers, metas


def _put_ranges(meta: Meta, acquired: np.ndarray) -> None:
    """First and last time stamp of the readouts of an image."""
    stamped = acquired[acquired["acquisition_time_stamp"] > 0]
    if stamped.size:
        times, physiology = stamped["acquisition_time_stamp"], stamped["physiology_time_stamp"]
        put(meta, "acquisition_time_range", [times.min(), times.max()])
        put(meta, "physiology_time_range", np.stack([physiology.min(axis=0), physiology.max(axis=0)], axis=1).ravel())


def _put_user_values(meta: Meta, acquisition: np.void) -> None:
    for name in ("user_int", "user_float"):
        for index, value in enumerate(acquisition[name]):
            put(meta, f"{name}_{index}", value)


def _put_study(meta: Meta, header: Header) -> None:
    """Siemens measurement ids read device_patient_study_measurement."""
    parts = header.measurement_id.split("_", 3)
    if len(parts) == 4:
        for name, value in zip(("deviceID", "patientID", "studyID", "measurementNumber"), parts, strict=True):
            put(meta, name, value)


def image_array(
    data: np.ndarray,
    headers: np.ndarray,
    metas: list[Meta],
    encoding: Encoding,
    *,
    role: Role,
    series: int,
    acquisition_headers: np.ndarray | None = None,
    waveforms: list[Waveform] | None = None,
) -> ImageArray:
    """Image array of one series.

    Args:
        data: ``[LOC, S, N, CHA, Z, Y, X]``; may hold fewer S and N than `headers`, the first ones are meant then.
        headers: ``[LOC, S, N]`` of `describe_images`.
        metas: one an entry of `headers`.
        encoding: gives the ranges of the counters for the image numbers.
        role: what the pixels are.
        series: ``image_series_index``.
        acquisition_headers: of the buffer.
        waveforms: that came with the buffer.
    """
    slices, sets, frames = data.shape[:3]
    index = np.arange(headers.size).reshape(headers.shape)[:slices, :sets, :frames]
    out = headers[:slices, :sets, :frames].copy()
    out["image_series_index"] = series
    comment, description = _LABELS[role]
    chosen: list[Meta] = []
    for where in np.ndindex(*out.shape):
        out[where]["image_index"] = _image_number(out[where], encoding, data.shape[3], data.shape[4]) % 65536
        meta = dict(metas[int(index[where])])
        for name, value in (("role", role), ("comment", comment), ("series_description", description)):
            put(meta, name, value)
        put(meta, "image_number", int(out[where]["image_index"]))
        if role == "Gfactor":
            put(meta, _SKIP, 1)
        chosen.append(meta)
    return ImageArray(data.astype(np.complex64, copy=False), out, chosen, waveforms, acquisition_headers)


def _image_number(header: np.void, encoding: Encoding, channels: int, partitions: int) -> int:
    """Gadgetron's running image number, from 1: average, repetition, set, phase, contrast, slice, slowest first."""
    number = 0
    for name in ("average", "repetition", "set", "phase", "contrast", "slice"):
        limit = encoding.limit(name)
        number = number * (1 if limit is None else limit.maximum + 1) + int(header[name])
    return number * max(partitions, 1) * channels + 1


def encoding_space(images: ImageArray) -> int:
    """Number of the encoding space the images come from."""
    return int(number(images.meta[0], "encoding", 0)) if images.meta else 0


def data_role(images: ImageArray) -> str:
    """``GADGETRON_DataRole`` of the first image."""
    role: Any = images.meta[0].get("GADGETRON_DataRole", "") if images.meta else ""
    return str(role[0] if isinstance(role, list) else role)


def has_meta(images: ImageArray, name: str) -> bool:
    """Whether the first image has the attribute."""
    return bool(name) and bool(images.meta) and name in images.meta[0]


def with_data(images: ImageArray, data: np.ndarray) -> ImageArray:
    """The same images with other pixels; matrix sizes follow the data."""
    headers = images.headers.copy()
    headers["matrix_size"] = data.shape[:3:-1]
    return ImageArray(data, headers, images.meta, images.waveforms, images.acquisition_headers)


def sampling_region(images: ImageArray) -> list[tuple[int, int]]:
    """Sampled (first, last) index along E2, E1, RO from the attributes; a whole axis where they are missing or do not fit."""
    region = []
    for name, n in zip(("sampling_limits_E2", "sampling_limits_E1", "sampling_limits_RO"), images.data.shape[-3:], strict=True):
        values = images.meta[0].get(name, []) if images.meta else []
        limits = [int(float(value)) for value in values] if isinstance(values, list) and len(values) == 3 else [0, 0, n - 1]
        first, last = limits[0], limits[2]
        region.append((first, last) if 0 <= first <= last < n else (0, n - 1))
    return region


def image_axes(data: np.ndarray) -> tuple[int, ...]:
    """Axes of the Fourier transform: y and x, and z where there are several partitions."""
    return (-3, -2, -1) if data.shape[-3] > 1 else (-2, -1)
