"""Messages -> the buffers of one ``sendmsg``.

Arrays are handed out as views, never joined or copied unless they are not contiguous. Counts in headers are written from the
arrays, so a header that was not brought to agree with its data cannot shift the peer's stream.

Image attributes go out without a terminating NUL, as `ismrmrd` writes them: C++ clients read them into a ``std::string`` and every
Python client takes the counted bytes, whereas parsers that do not strip a NUL refuse the document.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from gadgets.items import (
    Acquisition,
    AcquisitionBucket,
    DependencyQuery,
    Dicom,
    Image,
    ImageArray,
    ReconBuffer,
    ReconData,
    Stats,
    Text,
    Waveform,
    meta_to_xml,
)
from gadgets.layout import ACQUISITION_HEADER, DATA_TYPES, IMAGE_HEADER, SAMPLING_DESCRIPTION, clone
from service.wire.errors import WireError
from service.wire.messages import Close, Config, ErrorReport, Filename, HeaderXml, Message, MessageId, Query, Response
from service.wire.parsers import COMPLEX64, FLOAT32, UINT32

Buffer = bytes | memoryview
Buffers = list[Buffer]

_ID = struct.Struct("<H")
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_COUNTS = struct.Struct("<H2xH")
_ACQUISITION_ID = _ID.pack(MessageId.ACQUISITION)
_WAVEFORM_ID = _ID.pack(MessageId.WAVEFORM)


def encode(message: Message) -> Buffers:
    """The bytes of `message`, as buffers to be sent one after the other. The views stay valid while the message's arrays do.

    Raises `WireError` when the message cannot be expressed: arrays that contradict each other, a name or length that does not fit.
    """
    for kind, encoder in _ENCODERS.items():
        if isinstance(message, kind):
            return encoder(message)
    raise WireError(f"{type(message).__name__} cannot be sent: the protocol has no message for it")


def _bytes(array: np.ndarray, dtype: np.dtype) -> Buffers:
    """The array's elements as bytes; no buffer for an empty array."""
    flat = np.ascontiguousarray(array, dtype).reshape(-1)
    return [flat.view(np.uint8).data] if flat.size else []


def _sized(prefix: bytes, length: struct.Struct, content: bytes) -> bytes:
    if len(content) >= 1 << (8 * length.size):
        raise WireError(f"{len(content):,} bytes do not fit the {8 * length.size}-bit length of message {_ID.unpack_from(prefix)[0]}")
    return prefix + length.pack(len(content)) + content


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "replace")


# -- control messages ------------------------------------------------------------------------------------------------------------------


def _filename(message: Filename) -> Buffers:
    name = _utf8(message.name)
    if len(name) > 1023:
        raise WireError(f"FILENAME (1): the name has {len(name)} bytes, at most 1023 fit: {message.name[:60]!r}...")
    return [_ID.pack(MessageId.FILENAME) + name.ljust(1024, b"\0")]


def _config(message: Config) -> Buffers:
    return [_sized(_ID.pack(MessageId.CONFIG), _U32, message.xml)]


def _header_xml(message: HeaderXml) -> Buffers:
    return [_sized(_ID.pack(MessageId.HEADER), _U32, message.xml)]


def _close(message: Close) -> Buffers:
    return [_ID.pack(MessageId.CLOSE)]


def _text(message: Text) -> Buffers:
    return [_sized(_ID.pack(MessageId.TEXT), _U32, _utf8(message.text))]


def _query(message: Query) -> Buffers:
    return [_sized(struct.pack("<HQQ", MessageId.QUERY, 0, message.correlation), _U64, _utf8(message.key))]


def _response(message: Response) -> Buffers:
    return [_sized(struct.pack("<HQ", MessageId.RESPONSE, message.correlation), _U64, _utf8(message.text))]


def _error(message: ErrorReport) -> Buffers:
    return [_sized(_ID.pack(MessageId.ERROR), _U64, _utf8(message.text))]


# -- readouts and waveforms ------------------------------------------------------------------------------------------------------------


def _acquisition_header(item: Acquisition) -> bytes:
    """The header with its counts set to the arrays' sizes."""
    if item.data.ndim != 2:
        raise WireError(f"ACQUISITION (1008): data must be [channel, sample], got shape {item.data.shape}")
    channels, samples = item.data.shape
    dimensions = 0
    if item.trajectory is not None:
        if item.trajectory.ndim != 2 or item.trajectory.shape[0] != samples:
            raise WireError(
                f"ACQUISITION (1008): the trajectory has shape {item.trajectory.shape} but the data have {samples} samples; "
                "crop or resample both together"
            )
        dimensions = item.trajectory.shape[1]
    if max(channels, samples, dimensions) > 0xFFFF:
        raise WireError(f"ACQUISITION (1008): {channels} channels x {samples} samples do not fit the header's 16-bit counts")
    raw = bytearray(item.header.tobytes())
    struct.pack_into("<H", raw, 34, samples)
    struct.pack_into("<H", raw, 38, channels)
    struct.pack_into("<H", raw, 176, dimensions)
    return bytes(raw)


def _acquisition(item: Acquisition) -> Buffers:
    buffers: Buffers = [_ACQUISITION_ID + _acquisition_header(item)]
    if item.trajectory is not None:
        buffers += _bytes(item.trajectory, FLOAT32)
    return buffers + _bytes(item.data, COMPLEX64)


def _waveform_header(item: Waveform) -> bytes:
    if item.data.ndim != 2 or max(item.data.shape) > 0xFFFF:
        raise WireError(f"WAVEFORM (1026): data must be [channel, sample] of at most 65,535 each, got shape {item.data.shape}")
    raw = bytearray(item.header.tobytes())
    struct.pack_into("<HH", raw, 28, item.data.shape[1], item.data.shape[0])
    return bytes(raw)


def _waveform(item: Waveform) -> Buffers:
    return [_WAVEFORM_ID + _waveform_header(item), *_bytes(item.data, UINT32)]


# -- images ----------------------------------------------------------------------------------------------------------------------------


def _image(item: Image) -> Buffers:
    dtype = item.data.dtype.newbyteorder("<")
    if item.data.ndim != 4 or dtype not in DATA_TYPES or max(item.data.shape) > 0xFFFF:
        raise WireError(
            f"IMAGE (1022): data must be [channel, z, y, x] of at most 65,535 each and of ISMRMRD's element types, "
            f"got shape {item.data.shape}, {item.data.dtype}"
        )
    attributes = item.attribute_string
    header = clone(item.header)
    header["data_type"] = DATA_TYPES[dtype]
    header["matrix_size"] = item.data.shape[:0:-1]
    header["channels"] = item.data.shape[0]
    header["attribute_string_len"] = len(attributes)
    return [_sized(_ID.pack(MessageId.IMAGE) + header.tobytes(), _U64, attributes), *_bytes(item.data, dtype)]


def _array(array: np.ndarray, dtype: np.dtype) -> Buffers:
    """An hoNDArray; the dimensions in Fortran order are the reversed shape."""
    dims = array.shape[::-1]
    return [struct.pack(f"<{1 + len(dims)}Q", len(dims), *dims), *_bytes(array, dtype)]


def _optional(array: np.ndarray | None, dtype: np.dtype) -> Buffers:
    return [b"\0"] if array is None else [b"\1", *_array(array, dtype)]


def _image_array(item: ImageArray) -> Buffers:
    buffers: Buffers = [_ID.pack(MessageId.IMAGE_ARRAY), *_array(item.data, COMPLEX64), *_array(item.headers, IMAGE_HEADER)]
    attributes = [meta_to_xml(meta) or _NO_META for meta in item.meta]
    buffers.append(_U64.pack(len(attributes)) + b"".join(_U64.pack(len(one)) + one for one in attributes))
    if item.waveforms is None:
        buffers.append(b"\0")
    else:
        buffers.append(b"\1" + _U64.pack(len(item.waveforms)))
        for waveform in item.waveforms:
            buffers += [_waveform_header(waveform), *_bytes(waveform.data, UINT32)]
    return buffers + _optional(item.acquisition_headers, ACQUISITION_HEADER)


_NO_META = b"<ismrmrdMeta/>"
"""C++ parses every entry of an image array as a document."""


# -- sorted and gathered k-space -------------------------------------------------------------------------------------------------------


def _recon_buffer(buffer: ReconBuffer) -> Buffers:
    return [
        *_array(buffer.data, COMPLEX64),
        *_optional(buffer.trajectory, FLOAT32),
        *_optional(buffer.density, FLOAT32),
        *_array(buffer.headers, ACQUISITION_HEADER),
        np.asarray(buffer.sampling, SAMPLING_DESCRIPTION).tobytes()[:-2] + b"\0\0",  # its padding is not ours to send
    ]


def _recon_data(item: ReconData) -> Buffers:
    buffers: Buffers = [struct.pack("<HQ", MessageId.RECON_DATA, len(item.bits))]
    for bit in item.bits:
        buffers += _recon_buffer(bit.data)
        buffers += [b"\0"] if bit.ref is None else [b"\1", *_recon_buffer(bit.ref)]
    return buffers


def _size(buffers: Iterable[Buffer]) -> int:
    return sum(len(buffer) for buffer in buffers)


def _bundle(acquisitions: list[Acquisition]) -> tuple[list[int], Buffers]:
    """Sizes (count, header, data, trajectory bytes) and buffers of a bucket's readouts."""
    headers = b"".join(_acquisition_header(item) for item in acquisitions)
    points: Buffers = [buffer for item in acquisitions if item.trajectory is not None for buffer in _bytes(item.trajectory, FLOAT32)]
    values: Buffers = [buffer for item in acquisitions for buffer in _bytes(item.data, COMPLEX64)]
    return [len(acquisitions), len(headers), _size(values), _size(points)], [headers, *points, *values]


def _stats(stats: list[Stats]) -> bytes:
    parts = [_U64.pack(len(stats))]
    for one in stats:
        for name in Stats.FIELDS:
            values = sorted(one.values[name])
            parts.append(struct.pack(f"<Q{len(values)}H", len(values), *values))
    return b"".join(parts)


def _bucket(item: AcquisitionBucket) -> Buffers:
    data_sizes, data = _bundle(item.data)
    ref_sizes, ref = _bundle(item.ref)
    datastats, refstats = _stats(item.datastats), _stats(item.refstats)
    headers = b"".join(_waveform_header(waveform) for waveform in item.waveforms)
    samples: Buffers = [buffer for waveform in item.waveforms for buffer in _bytes(waveform.data, UINT32)]
    sizes = [*data_sizes, *ref_sizes, len(datastats), len(refstats), len(item.waveforms), len(headers), _size(samples)]
    return [struct.pack("<H13Q", MessageId.BUCKET, *sizes), *data, datastats, *ref, refstats, headers, *samples]


# -- others ----------------------------------------------------------------------------------------------------------------------------


def _dicom(item: Dicom) -> Buffers:
    content = _sized(_ID.pack(MessageId.DICOM), _U32, item.content)
    return [_sized(_sized(content, _U64, _utf8(item.name)), _U64, item.attributes)]


def _dependency_query(item: DependencyQuery) -> Buffers:
    return [_sized(_ID.pack(MessageId.DEPENDENCY_QUERY), _U64, meta_to_xml(item.meta) or _NO_META)]


_ENCODERS: dict[type, Callable[[Any], Buffers]] = {
    Acquisition: _acquisition,
    Image: _image,
    Waveform: _waveform,
    Text: _text,
    Close: _close,
    ReconData: _recon_data,
    ImageArray: _image_array,
    AcquisitionBucket: _bucket,
    Dicom: _dicom,
    DependencyQuery: _dependency_query,
    Config: _config,
    Filename: _filename,
    HeaderXml: _header_xml,
    Query: _query,
    Response: _response,
    ErrorReport: _error,
}
