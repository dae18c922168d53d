"""ISMRMRD files: measurements in, images out.

Raw data come from HDF5 (``/dataset/{xml, data, waveforms}``) or from a stream as it went over the wire (what ``serve --spool`` keeps and
``ismrmrd_hdf5_to_stream`` writes). HDF5 is read in blocks, since reading one readout at a time is about 20 times slower. Images are
written in exactly the layout of ``gadgetron_ismrmrd_client``.
"""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from gadgets.items import Acquisition, Image, Item, Waveform
from gadgets.layout import ACQUISITION_HEADER, ELEMENT_TYPES, IMAGE_HEADER, WAVEFORM_HEADER, clone
from service.transport import Connection
from service.wire import Close, Config, EndOfStream, Filename, HeaderXml, Message

BLOCK = 64
"""Readouts read at once: 8 MiB of 32 x 512. Larger blocks were slower (they leave the cache)."""

log = logging.getLogger("reconstream")


class FileError(ValueError):
    """A file does not hold what was asked for; the text says what it holds instead."""


@dataclass(frozen=True)
class Measurement:
    """A measurement in a file.

    header_xml: the measurement header without trailing NULs; count: number of items, None when only reading tells (streams);
    config: what a recorded stream asked for. `items` may be called again and starts over.
    """

    path: Path
    header_xml: bytes
    count: int | None
    group: str = "dataset"
    config: Filename | Config | None = None
    images: bool = field(default=False, repr=False)

    def items(self) -> Iterator[Item]:
        """Readouts in the file's order, each after the waveforms that are older than it; images last.

        Raises `FileError` where the file contradicts itself, `WireError` for a damaged stream, `EndOfStream` for one that ends
        without CLOSE (after all whole messages; a ``.part`` file may end so and is logged instead).
        """
        return _hdf5_items(self) if h5py.is_hdf5(self.path) else _stream_items(self.path)


def read_measurement(path: str | Path, group: str = "dataset", *, images: bool | None = None) -> Measurement:
    """Open an ISMRMRD file (HDF5) or a recorded stream.

    group: HDF5 group of the measurement. images: whether `items` yields stored images too; None: only when there are no readouts,
    because reconstructions are often kept beside the raw data that they came from.

    Raises
    ------
    FileNotFoundError
        No such file.
    FileError
        Neither HDF5 nor a stream with a header; damaged; no such group; no header; nothing to read.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if not h5py.is_hdf5(path):
        return _stream_measurement(path)
    with _opened(path) as file:
        node = _measurement_group(file, path, group)
        readouts, waveforms = (_rows(node, name, dtype) for name, dtype in (("data", ACQUISITION_HEADER), ("waveforms", WAVEFORM_HEADER)))
        stored = sum(len(node[name]["header"]) for name in _image_groups(node))
        use_images = not readouts if images is None else images
        if not use_images and stored:
            log.info("%s: %d stored images beside the readouts are left out", path, stored)
        count = readouts + waveforms + (stored if use_images else 0)
        if not count:
            raise FileError(f"{path}: group {group!r} has no readouts (data), waveforms or images; it has: {', '.join(node) or 'nothing'}")
        if "xml" not in node and readouts:
            raise FileError(f"{path}: group {group!r} has no header (xml); it has: {', '.join(node)}")
        return Measurement(path, _header(node, path) if "xml" in node else b"", count, group, None, use_images)


# -- HDF5 ------------------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """The file for reading. What HDF5 finds wrong with it, now or while it is read, becomes a `FileError`."""
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError, KeyError) as error:
        raise FileError(f"{path}: cannot be read ({_reason(error)}); is it damaged or cut short? copy it again from its source") from error


def _reason(error: Exception) -> str:
    """What HDF5 says, in one line; the system's own words where it quotes them."""
    number = getattr(error, "errno", None)
    return os.strerror(number) if number else " ".join(str(error).strip("'\"").split())


def _header(node: h5py.Group, path: Path) -> bytes:
    stored = np.ravel(node["xml"][()]) if isinstance(node["xml"], h5py.Dataset) else np.zeros(0)
    if not stored.size:
        raise FileError(f"{path}: {node.name}/xml holds no header")
    return _string(stored[0]).rstrip(b"\0")


def _rows(node: h5py.Group, name: str, dtype: np.dtype) -> int:
    """Number of rows of a data set that may be missing. Raises `FileError` when it is of another kind."""
    if name not in node:
        return 0
    _check_rows(node[name], dtype)
    return len(node[name])


def _check_rows(dataset: h5py.Dataset, dtype: np.dtype) -> None:
    where = f"{dataset.file.filename}: {dataset.name}"
    kind = getattr(dataset, "dtype", np.dtype([]))  # a group has none
    if kind.names is None or not {"head", "data"} <= set(kind.names):
        raise FileError(f"{where} is no ISMRMRD data set: it needs the fields head and data, it has {kind}")
    missing = set(dtype.names or ()) - set(kind["head"].names or ())
    if missing:
        raise FileError(f"{where}: the headers lack {', '.join(sorted(missing))}; was the file written by ISMRMRD before 1.0?")


def _measurement_group(file: h5py.File, path: Path, group: str) -> h5py.Group:
    if isinstance(file.get(group), h5py.Group):
        return file[group]
    raise FileError(f"{path}: no group {group!r}; the file has: {', '.join(file) or 'nothing'}")


def _image_groups(node: h5py.Group) -> list[str]:
    return [name for name, child in node.items() if isinstance(child, h5py.Group) and {"header", "data"} <= set(child)]


def _string(value: bytes | str | np.ndarray) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)


def _hdf5_items(measurement: Measurement) -> Iterator[Item]:
    with _opened(measurement.path) as file:
        node = _measurement_group(file, measurement.path, measurement.group)
        waveforms = _waveforms(node["waveforms"]) if "waveforms" in node else iter(())
        waiting = next(waveforms, None)
        if "data" in node:
            for acquisition in _acquisitions(node["data"]):
                while waiting is not None and waiting.header["time_stamp"] < acquisition.header["acquisition_time_stamp"]:
                    yield waiting
                    waiting = next(waveforms, None)
                yield acquisition
        if waiting is not None:
            yield waiting
        yield from waveforms
        if measurement.images:
            for name in _image_groups(node):
                yield from _images(node[name])


def _blocks(dataset: h5py.Dataset, dtype: np.dtype) -> Iterator[tuple[int, Any, np.ndarray]]:
    """(index, raw header, fields) of every row of a compound dataset, whose ``head`` is brought to `dtype`."""
    _check_rows(dataset, dtype)
    head = dataset.dtype["head"]
    for start in range(0, len(dataset), BLOCK):
        rows = dataset[start : start + BLOCK]
        # NumPy converts field by position, so other orders are brought into ours by name first.
        headers = rows["head"] if head == dtype else rows["head"][list(dtype.names or ())].astype(dtype)
        for i, header in enumerate(headers):
            yield start + i, clone(header), rows[i]


def _acquisitions(dataset: h5py.Dataset) -> Iterator[Acquisition]:
    for i, header, row in _blocks(dataset, ACQUISITION_HEADER):
        channels, samples, dims = (int(header[n]) for n in ("active_channels", "number_of_samples", "trajectory_dimensions"))
        values, points = row["data"], row["traj"] if dims else None
        if values.size != 2 * channels * samples or (points is not None and points.size != samples * dims):
            have = f"{values.size // 2} samples and {0 if points is None else points.size} trajectory values"
            raise FileError(
                f"{dataset.file.filename}: readout {i}: the header says {channels} channels x {samples} samples and {dims} "
                f"trajectory dimensions, but {have} are stored"
            )
        data = values.view(np.complex64).reshape(channels, samples)
        yield Acquisition(header, data, None if points is None else points.reshape(samples, dims))


def _waveforms(dataset: h5py.Dataset) -> Iterator[Waveform]:
    for i, header, row in _blocks(dataset, WAVEFORM_HEADER):
        shape = int(header["channels"]), int(header["number_of_samples"])
        if row["data"].size != shape[0] * shape[1]:
            raise FileError(f"{dataset.file.filename}: waveform {i}: the header says {shape}, but {row['data'].size} values are stored")
        yield Waveform(header, row["data"].astype(np.uint32, copy=False).reshape(shape))


def _images(node: h5py.Group) -> Iterator[Image]:
    headers, attributes, data = _read_image_group(node)
    for i, header in enumerate(headers):
        yield Image(clone(header), data[i], attributes[i])


# -- recorded streams ------------------------------------------------------------------------------------------------------------------


def _stream(path: Path) -> Connection:
    return Connection.from_files(path.open("rb", buffering=0), None, peer=str(path))


def _stream_measurement(path: Path) -> Measurement:
    config: Filename | Config | None = None
    with _stream(path) as connection:
        message: Message | None = None
        while not isinstance(message, (HeaderXml, Item, Close)):
            try:
                message = connection.read()
            except ValueError as error:
                raise FileError(f"{path}: neither an HDF5 file nor a recorded ISMRMRD stream ({error})") from error
            if isinstance(message, (Filename, Config)):
                config = message
    if not isinstance(message, HeaderXml):
        raise FileError(f"{path}: the stream begins with {type(message).__name__}, without a header before it")
    return Measurement(path, message.xml, None, config=config)


def _stream_items(path: Path) -> Iterator[Item]:
    with _stream(path) as connection:
        try:
            for message in connection:
                if isinstance(message, Item):
                    yield message
        except EndOfStream as error:
            if not path.name.endswith((".part", ".incomplete.mrd")):
                raise
            log.warning("%s: %s; everything before it was read", path, error)


# -- writing ---------------------------------------------------------------------------------------------------------------------------

_ACQUISITION_ROW = np.dtype(
    [("head", ACQUISITION_HEADER), ("traj", h5py.vlen_dtype(np.dtype("<f4"))), ("data", h5py.vlen_dtype(np.dtype("<f4")))]
)
_WAVEFORM_ROW = np.dtype([("head", WAVEFORM_HEADER), ("data", h5py.vlen_dtype(np.dtype("<u4")))])
_TEXT = h5py.string_dtype("ascii")
_STORED_COMPLEX = {
    np.dtype("<c8"): np.dtype([("real", "<f4"), ("imag", "<f4")]),
    np.dtype("<c16"): np.dtype([("real", "<f8"), ("imag", "<f8")]),
}


def _append(node: h5py.Group, name: str, rows: np.ndarray, **create: Any) -> None:
    """Append `rows` to the data set, which is made with the first."""
    if name not in node:
        shape = rows.shape[1:]
        node.create_dataset(name, (0, *shape), maxshape=(None, *shape), dtype=create.pop("dtype", rows.dtype), **create)
    dataset = node[name]
    have = len(dataset)
    dataset.resize(have + len(rows), 0)
    dataset[have:] = rows


def _ascii(attributes: bytes) -> bytes:
    """The same XML in ASCII, as readers of ISMRMRD files decode it, and without NULs, which HDF5 strings cannot hold."""
    attributes = attributes.replace(b"\0", b"")
    if attributes.isascii():
        return attributes
    return attributes.decode("utf-8", "replace").encode("ascii", "xmlcharrefreplace")


class ImageWriter:
    """Writes images as ``gadgetron_ismrmrd_client`` does: ``/<group>/image_<series>/{header, attributes, data}``, data
    ``[image, channel, z, y, x]``.

    group: None takes the date and time, as the client does. An existing file is kept and added to; missing folders are made. A
    context manager that closes. Raises `FileError` when the file cannot be written.
    """

    def __init__(self, path: str | Path, group: str | None = None) -> None:
        self.path = Path(path)
        self.group = group or datetime.datetime.now().strftime("%Y-%m-%d %H:%M:%S")
        self.count = 0
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = h5py.File(self.path, "a")
        except OSError as error:
            raise FileError(f"{self.path}: images cannot be written there ({_reason(error)}); choose another HDF5 file") from error

    def append(self, image: Image) -> None:
        """Add an image. Raises `FileError` when its size or type differs from the others of its series."""
        name = f"{self.group}/image_{int(image.header['image_series_index'])}"
        node = self._file.require_group(name)
        dtype = image.data.dtype.newbyteorder("<")
        stored = _STORED_COMPLEX.get(dtype, dtype)
        data = np.ascontiguousarray(image.data, dtype).view(stored)[None]
        if "data" in node and (node["data"].shape[1:] != data.shape[1:] or node["data"].dtype != stored):
            raise FileError(
                f"{self.path}: series {name}: image {self.count} is {data.shape[1:]} {dtype}, the ones before are "
                f"{node['data'].shape[1:]} {node['data'].dtype}; give images of another size or type their own image_series_index"
            )
        attributes = _ascii(image.attribute_string)
        header = np.frombuffer(bytearray(image.header.tobytes()), IMAGE_HEADER)
        header["attribute_string_len"] = len(attributes)
        _append(node, "header", header, chunks=(1,))
        _append(node, "attributes", np.array([attributes], object), dtype=_TEXT, chunks=(1,))
        _append(node, "data", data, chunks=data.shape)
        self.count += 1

    def close(self) -> None:
        """Finish the file; may be called again."""
        self._file.close()

    def __enter__(self) -> ImageWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def write_measurement(path: str | Path, header_xml: bytes, items: Iterable[Item], group: str = "dataset") -> None:
    """Write a measurement as `ismrmrd.Dataset` would, in blocks. Items: acquisitions, waveforms, images; others raise `FileError`."""
    with h5py.File(path, "w") as file:
        node = file.create_group(group)
        node.create_dataset("xml", data=np.array([header_xml.rstrip(b"\0")], object), dtype=_TEXT)
        pending: dict[str, list[Any]] = {"data": [], "waveforms": []}
        dtypes = {"data": _ACQUISITION_ROW, "waveforms": _WAVEFORM_ROW}

        def flush(name: str) -> None:
            rows = np.empty(len(pending[name]), dtypes[name])
            for i, (header, *arrays) in enumerate(pending[name]):
                rows[i] = (header, *arrays)
            _append(node, name, rows, chunks=(BLOCK,))
            pending[name].clear()

        for item in items:
            if isinstance(item, Acquisition):
                trajectory = np.zeros(0, np.float32) if item.trajectory is None else np.ravel(item.trajectory).astype(np.float32)
                samples = np.ascontiguousarray(item.data, np.complex64).view(np.float32).ravel()
                pending["data"].append((item.header, trajectory, samples))
            elif isinstance(item, Waveform):
                pending["waveforms"].append((item.header, np.ravel(item.data).astype(np.uint32)))
            else:
                raise FileError(f"{path}: {type(item).__name__} cannot be kept in a measurement file")
            for name, rows in pending.items():
                if len(rows) == BLOCK:
                    flush(name)
        for name, rows in pending.items():
            if rows:
                flush(name)


# -- reading images --------------------------------------------------------------------------------------------------------------------

Series = tuple[np.ndarray, list[bytes], np.ndarray]


def read_images(path: str | Path, group: str | None = None) -> dict[str, Series]:
    """The images of a file by series: ``{"image_1": (headers [image], attributes [image], data [image, channel, z, y, x])}``.

    group: None takes the only group with images. Raises `FileError` when there is none, or when there are several to choose from.
    """
    with h5py.File(path, "r") as file:
        found: dict[str, list[str]] = {}

        def visit(name: str, node: Any) -> None:
            if isinstance(node, h5py.Group) and _image_groups(node):
                found[name] = _image_groups(node)

        file.visititems(visit)
        if group is None and len(found) == 1:
            group = next(iter(found))
        if group is None or group.strip("/") not in found:
            raise FileError(f"{path}: images in group {group!r}? The groups with images are: {', '.join(found) or 'none'}")
        node = file[group]
        return {name: _read_image_group(node[name]) for name in found[group.strip("/")]}


def _read_image_group(node: h5py.Group) -> Series:
    headers = node["header"][()]
    headers = headers if headers.dtype == IMAGE_HEADER else headers.astype(IMAGE_HEADER)
    data = node["data"][()]
    if data.dtype.names is not None:
        data = data.view(ELEMENT_TYPES[7 if data.dtype.itemsize == 8 else 8])
    attributes = [_string(one).rstrip(b"\0") for one in node["attributes"][()]] if "attributes" in node else [b""] * len(headers)
    return headers, attributes, data
