"""How each message is read, as a coroutine that asks for bytes.

A parser yields what it needs next: a number (that many bytes, at most `SMALL`, come back as a view that is valid until the next
yield) or an array (it is filled in place, straight from the socket when it is large). It returns the message. So every layout reads
top to bottom as in the protocol, and no parser knows how the bytes arrive.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Generator
from typing import Any

import numpy as np

from gadgets.items import (
    Acquisition,
    AcquisitionBucket,
    DependencyQuery,
    Dicom,
    Image,
    ImageArray,
    Meta,
    ReconBit,
    ReconBuffer,
    ReconData,
    Stats,
    Text,
    Waveform,
    meta_from_xml,
)
from gadgets.layout import ACQUISITION_HEADER, ELEMENT_TYPES, IMAGE_HEADER, SAMPLING_DESCRIPTION, WAVEFORM_HEADER, Flag
from service.wire.errors import WireError
from service.wire.limits import Limits
from service.wire.messages import Close, Config, ErrorReport, Filename, HeaderXml, Message, MessageId, Query, Response

Parser = Generator[int | np.ndarray, memoryview, Message]
Part = Generator[int | np.ndarray, memoryview, Any]

SMALL = 1024
"""The most bytes a parser may ask for by number: the fixed-size FILENAME."""

COMPLEX64 = np.dtype("<c8")
FLOAT32 = np.dtype("<f4")
UINT32 = np.dtype("<u4")
UINT16 = np.dtype("<u2")

ACQUISITION_COUNTS = struct.Struct("<2xQ24xH2xH136xH")
"""flags, number_of_samples, active_channels, trajectory_dimensions of an acquisition header."""
COMPRESSED = Flag.COMPRESSION1.mask | Flag.COMPRESSION2.mask

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_BUCKET_META = struct.Struct("<13Q")
_MAX_DIMENSIONS = 16
_MAX_SPACES = 1 << 16  # encoding_space_ref has 16 bits


class _Budget:
    """Bytes that one message may still declare."""

    def __init__(self, what: str, field: str, limit: int) -> None:
        self.what, self.field, self.limit, self.left = what, field, limit, limit

    def take(self, part: str, size: int) -> None:
        """Account for `size` more bytes. Raises `WireError` when they exceed the limit."""
        if size > self.left:
            before = f" after {self.limit - self.left:,} bytes of other parts" if self.left < self.limit else ""
            raise WireError(
                f"{self.what}: {part} declares {size:,} bytes{before}, the limit is {self.limit:,}. Such a length usually means that the "
                f"stream has shifted (the message before it was shorter or longer than its header says); if the data are genuine, "
                f"raise Limits.{self.field}"
            )
        self.left -= size

    def count(self, part: str, number: int, size: int, most: int) -> int:
        """`number` of elements of at least `size` bytes, checked against `most` and the bytes left."""
        if number > most:
            raise WireError(f"{self.what}: {number:,} {part} declared, at most {most:,} are possible; the stream has probably shifted")
        if number * size > self.left:
            self.take(f"{number:,} {part}", number * size)
        return number


# -- parts -----------------------------------------------------------------------------------------------------------------------------


def _header(dtype: np.dtype, raw: memoryview) -> np.void:
    header: np.void = np.ndarray((), dtype, bytearray(raw))[()]
    return header


def _blob(budget: _Budget, part: str, length: struct.Struct) -> Part:
    """A length and that many bytes."""
    (size,) = length.unpack((yield length.size))
    budget.take(part, size)
    raw = np.empty(size, np.uint8)
    yield raw
    return raw.tobytes()


def _text(raw: bytes) -> str:
    """UTF-8, whatever does not decode replaced, trailing NULs removed."""
    return raw.rstrip(b"\0").decode("utf-8", "replace")


def _meta(budget: _Budget, part: str, raw: bytes) -> Meta:
    try:
        return meta_from_xml(raw)
    except ValueError as error:
        raise WireError(f"{budget.what}: {part}: {error}") from error


def _array(budget: _Budget, part: str, dtype: np.dtype, ndim: int) -> Part:
    """An hoNDArray as ``[..., second, first]`` dimension with exactly `ndim` axes."""
    (rank,) = _U64.unpack((yield 8))
    if rank > _MAX_DIMENSIONS:
        raise WireError(
            f"{budget.what}: {part} declares {rank:,} dimensions, at most {_MAX_DIMENSIONS} are known; the stream has probably shifted"
        )
    dims = struct.unpack(f"<{rank}Q", (yield 8 * rank)) or (0,)
    # Zero dimensions must not hide a huge one from the check.
    budget.take(part, math.prod(dims) * dtype.itemsize)
    budget.take(part, 0 if all(dims) else math.prod(max(d, 1) for d in dims) * dtype.itemsize)
    if any(d != 1 for d in dims[ndim:]):
        raise WireError(f"{budget.what}: {part} has dimensions {list(dims)}, expected at most {ndim}")
    shape = (1,) * (ndim - len(dims)) + dims[:ndim][::-1]
    array = np.empty(shape, dtype)
    yield array
    return array


def _present(budget: _Budget, part: str) -> Part:
    """The flag byte before an optional part."""
    (flag,) = yield 1
    if flag > 1:
        raise WireError(f"{budget.what}: the flag byte before {part} is {flag}, expected 0 or 1; the stream has probably shifted")
    return bool(flag)


# -- control messages ------------------------------------------------------------------------------------------------------------------


def _filename(limits: Limits) -> Parser:
    raw = bytes((yield 1024))
    return Filename(raw.partition(b"\0")[0].decode("utf-8", "replace"))


def _config(limits: Limits) -> Parser:
    raw = yield from _blob(_Budget("CONFIG (2)", "config", limits.config), "the XML", _U32)
    return Config(raw.rstrip(b"\0"))


def _header_xml(limits: Limits) -> Parser:
    raw = yield from _blob(_Budget("HEADER (3)", "header", limits.header), "the XML", _U32)
    return HeaderXml(raw.rstrip(b"\0"))


def _close(limits: Limits) -> Parser:
    yield 0
    return Close()


def _text_item(limits: Limits) -> Parser:
    return Text(_text((yield from _blob(_Budget("TEXT (5)", "text", limits.text), "the text", _U32))))


def _query(limits: Limits) -> Parser:
    reserved, correlation = struct.unpack("<QQ", (yield 16))
    if reserved:
        raise WireError(f"QUERY (6): unsupported value {reserved:#x} in the reserved bytes, they must be 0")
    return Query(_text((yield from _blob(_Budget("QUERY (6)", "text", limits.text), "the key", _U64))), correlation)


def _response(limits: Limits) -> Parser:
    (correlation,) = _U64.unpack((yield 8))
    return Response(_text((yield from _blob(_Budget("RESPONSE (7)", "text", limits.text), "the text", _U64))), correlation)


def _error(limits: Limits) -> Parser:
    return ErrorReport(_text((yield from _blob(_Budget("ERROR (8)", "text", limits.text), "the text", _U64))))


# -- readouts and waveforms ------------------------------------------------------------------------------------------------------------


def refuse_compressed(flags: int) -> None:
    """Raises `WireError` for compressed samples."""
    if flags & COMPRESSED:
        kind = "ZFP, flag 53" if flags & Flag.COMPRESSION1.mask else "NHLBI, flag 54"
        raise WireError(
            f"ACQUISITION (1008): the samples are compressed ({kind}), which this server does not decode; "
            "send them uncompressed (gadgetron_ismrmrd_client without -P, -T and -Z)"
        )


def _acquisition(limits: Limits) -> Parser:
    raw = yield ACQUISITION_HEADER.itemsize
    flags, samples, channels, dimensions = ACQUISITION_COUNTS.unpack_from(raw)
    header = _header(ACQUISITION_HEADER, raw)
    refuse_compressed(flags)
    budget = _Budget("ACQUISITION (1008)", "acquisition", limits.acquisition)
    budget.take(f"a readout of {samples} samples, {channels} channels, {dimensions} trajectory dimensions", 0)
    trajectory = None
    if dimensions:
        budget.take(f"the trajectory ({samples} samples x {dimensions})", 4 * samples * dimensions)
        trajectory = np.empty((samples, dimensions), FLOAT32)
    budget.take(f"the data ({channels} channels x {samples} samples)", 8 * samples * channels)
    if trajectory is not None:
        yield trajectory
    data = np.empty((channels, samples), COMPLEX64)
    yield data
    return Acquisition(header, data, trajectory)


def _waveform_header(budget: _Budget) -> Part:
    header = _header(WAVEFORM_HEADER, (yield WAVEFORM_HEADER.itemsize))
    shape = int(header["channels"]), int(header["number_of_samples"])
    budget.take(f"the waveform of {shape[0]} channels x {shape[1]} samples", 4 * shape[0] * shape[1])
    return header, shape


def _waveform_part(budget: _Budget) -> Part:
    header, shape = yield from _waveform_header(budget)
    data = np.empty(shape, UINT32)
    yield data
    return Waveform(header, data)


def _waveform(limits: Limits) -> Parser:
    waveform: Waveform = yield from _waveform_part(_Budget("WAVEFORM (1026)", "waveform", limits.waveform))
    return waveform


# -- images ----------------------------------------------------------------------------------------------------------------------------


def _image(limits: Limits) -> Parser:
    header = _header(IMAGE_HEADER, (yield IMAGE_HEADER.itemsize))
    code = int(header["data_type"])
    if code not in ELEMENT_TYPES:
        raise WireError(
            f"IMAGE (1022): data_type {code} is none of ISMRMRD's 1 to 8; the stream has probably shifted, or the sender left it unset"
        )
    attributes = yield from _blob(_Budget("IMAGE (1022)", "meta", limits.meta), "the attributes", _U64)
    x, y, z = (int(n) for n in header["matrix_size"])
    channels, dtype = int(header["channels"]), ELEMENT_TYPES[code]
    budget = _Budget("IMAGE (1022)", "image", limits.image)
    budget.take(f"an image of {x} x {y} x {z}, {channels} channels, {dtype}", x * y * z * channels * dtype.itemsize)
    data = np.empty((channels, z, y, x), dtype)
    yield data
    return Image(header, data, attributes.rstrip(b"\0"))


def _image_array(limits: Limits) -> Parser:
    budget = _Budget("IMAGE_ARRAY (1024)", "collection", limits.collection)
    data = yield from _array(budget, "data", COMPLEX64, 7)
    headers = yield from _array(budget, "headers", IMAGE_HEADER, 3)
    if headers.shape != data.shape[:3]:
        raise WireError(f"IMAGE_ARRAY (1024): data [LOC, S, N, CHA, Z, Y, X] = {data.shape} but headers [LOC, S, N] = {headers.shape}")
    (count,) = _U64.unpack((yield 8))
    budget.count("attribute lists", count, 8, headers.size)
    meta = []
    for i in range(count):
        part = f"attributes of image {i}"
        raw = yield from _blob(_Budget("IMAGE_ARRAY (1024)", "meta", limits.meta), part, _U64)
        budget.take(part, 8 + len(raw))
        meta.append(_meta(budget, part, raw))
    waveforms = None
    if (yield from _present(budget, "waveforms")):
        (count,) = _U64.unpack((yield 8))
        budget.count("waveforms", count, WAVEFORM_HEADER.itemsize, budget.limit)
        waveforms = []
        for _ in range(count):
            budget.take("a waveform header", WAVEFORM_HEADER.itemsize)
            waveforms.append((yield from _waveform_part(budget)))
    acquisition_headers = None
    if (yield from _present(budget, "acquisition headers")):
        acquisition_headers = yield from _array(budget, "acquisition headers", ACQUISITION_HEADER, 5)
    return ImageArray(data, headers, meta, waveforms, acquisition_headers)


# -- sorted and gathered k-space -------------------------------------------------------------------------------------------------------


def _recon_buffer(budget: _Budget, part: str) -> Part:
    data = yield from _array(budget, f"{part}.data", COMPLEX64, 7)
    trajectory = density = None
    if (yield from _present(budget, f"{part}.trajectory")):
        trajectory = yield from _array(budget, f"{part}.trajectory", FLOAT32, 7)
    if (yield from _present(budget, f"{part}.density")):
        density = yield from _array(budget, f"{part}.density", FLOAT32, 6)
    headers = yield from _array(budget, f"{part}.headers", ACQUISITION_HEADER, 5)
    sampling = _header(SAMPLING_DESCRIPTION, (yield SAMPLING_DESCRIPTION.itemsize))
    return ReconBuffer(data, headers, sampling, trajectory, density)


def _recon_data(limits: Limits) -> Parser:
    budget = _Budget("RECON_DATA (1023)", "collection", limits.collection)
    (count,) = _U64.unpack((yield 8))
    budget.count("encoding spaces", count, SAMPLING_DESCRIPTION.itemsize, _MAX_SPACES)
    bits = []
    for i in range(count):
        data = yield from _recon_buffer(budget, f"bit {i}: data")
        ref = None
        if (yield from _present(budget, f"bit {i}: ref")):
            ref = yield from _recon_buffer(budget, f"bit {i}: ref")
        bits.append(ReconBit(data, ref))
    return ReconData(bits)


def _headers(budget: _Budget, part: str, dtype: np.dtype, count: int, declared: int) -> Part:
    if declared != count * dtype.itemsize:
        raise WireError(f"{budget.what}: {count:,} {part} need {count * dtype.itemsize:,} bytes of headers, {declared:,} declared")
    budget.take(f"{part}: headers", declared)
    headers = np.empty(count, dtype)
    yield headers
    return headers


def _elements(budget: _Budget, part: str, dtype: np.dtype, count: int, declared: int) -> Part:
    if declared != count * dtype.itemsize:
        raise WireError(f"{budget.what}: the headers of {part} stand for {count * dtype.itemsize:,} bytes, {declared:,} declared")
    budget.take(part, declared)
    elements = np.empty(count, dtype)
    yield elements
    return elements


def _bundle(budget: _Budget, part: str, sizes: tuple[int, ...]) -> Part:
    """Headers of all readouts, then all trajectories, then all samples."""
    count, header_bytes, data_bytes, trajectory_bytes = sizes
    headers = yield from _headers(budget, part, ACQUISITION_HEADER, count, header_bytes)
    refuse_compressed(int(np.bitwise_or.reduce(headers["flags"])) if count else 0)
    samples, channels, dims = (headers[name].astype(np.int64) for name in ("number_of_samples", "active_channels", "trajectory_dimensions"))
    points = yield from _elements(budget, f"{part}: trajectories", FLOAT32, int((samples * dims).sum()), trajectory_bytes)
    values = yield from _elements(budget, f"{part}: samples", COMPLEX64, int((samples * channels).sum()), data_bytes)
    acquisitions = []
    p = v = 0
    for i in range(count):
        n, c, d = int(samples[i]), int(channels[i]), int(dims[i])
        trajectory = points[p : p + n * d].reshape(n, d) if d else None
        acquisitions.append(Acquisition(headers[i], values[v : v + n * c].reshape(c, n), trajectory))
        p, v = p + n * d, v + n * c
    return acquisitions


def _stats(budget: _Budget, part: str) -> Part:
    (count,) = _U64.unpack((yield 8))
    budget.count(part, count, 8 * len(Stats.FIELDS), _MAX_SPACES)
    stats = []
    for _ in range(count):
        values = {}
        for name in Stats.FIELDS:
            (size,) = _U64.unpack((yield 8))
            budget.count(f"values of {name}", size, 2, 1 << 16)
            budget.take(f"{part}: {name}", 8 + 2 * size)
            numbers = np.empty(size, UINT16)
            yield numbers
            values[name] = {int(n) for n in numbers}
        stats.append(Stats(values))
    return stats


def _bucket_waveforms(budget: _Budget, sizes: tuple[int, ...]) -> Part:
    count, header_bytes, data_bytes = sizes
    headers = yield from _headers(budget, "waveforms", WAVEFORM_HEADER, count, header_bytes)
    samples, channels = (headers[name].astype(np.int64) for name in ("number_of_samples", "channels"))
    values = yield from _elements(budget, "waveform samples", UINT32, int((samples * channels).sum()), data_bytes)
    waveforms = []
    v = 0
    for i in range(count):
        n, c = int(samples[i]), int(channels[i])
        waveforms.append(Waveform(headers[i], values[v : v + n * c].reshape(c, n)))
        v += n * c
    return waveforms


def _bucket(limits: Limits) -> Parser:
    budget = _Budget("BUCKET (1050)", "collection", limits.collection)
    sizes = _BUCKET_META.unpack((yield _BUCKET_META.size))
    data = yield from _bundle(budget, "data readouts", sizes[0:4])
    # Sets of Python integers take thirty times their bytes on the wire, so they have a limit of their own.
    counters = _Budget("BUCKET (1050)", "meta", limits.meta)
    datastats = yield from _stats(counters, "data stats")
    ref = yield from _bundle(budget, "reference readouts", sizes[4:8])
    refstats = yield from _stats(counters, "reference stats")
    waveforms = yield from _bucket_waveforms(budget, sizes[10:13])
    return AcquisitionBucket(data, ref, waveforms, datastats, refstats)


# -- others ----------------------------------------------------------------------------------------------------------------------------


def _dicom(limits: Limits) -> Parser:
    content = yield from _blob(_Budget("DICOM (1018)", "dicom", limits.dicom), "the file", _U32)
    name = yield from _blob(_Budget("DICOM (1018)", "text", limits.text), "the name", _U64)
    attributes = yield from _blob(_Budget("DICOM (1018)", "meta", limits.meta), "the attributes", _U64)
    return Dicom(content, _text(name), attributes.rstrip(b"\0"))


def _dependency_query(limits: Limits) -> Parser:
    budget = _Budget("DEPENDENCY_QUERY (1019)", "meta", limits.meta)
    raw = yield from _blob(budget, "the attributes", _U64)
    return DependencyQuery(_meta(budget, "the attributes", raw))


PARSERS: dict[int, Callable[[Limits], Parser]] = {
    MessageId.FILENAME: _filename,
    MessageId.CONFIG: _config,
    MessageId.HEADER: _header_xml,
    MessageId.CLOSE: _close,
    MessageId.TEXT: _text_item,
    MessageId.QUERY: _query,
    MessageId.RESPONSE: _response,
    MessageId.ERROR: _error,
    MessageId.ACQUISITION: _acquisition,
    MessageId.DICOM: _dicom,
    MessageId.DEPENDENCY_QUERY: _dependency_query,
    MessageId.IMAGE: _image,
    MessageId.RECON_DATA: _recon_data,
    MessageId.IMAGE_ARRAY: _image_array,
    MessageId.WAVEFORM: _waveform,
    MessageId.BUCKET: _bucket,
}
