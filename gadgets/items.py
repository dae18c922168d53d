"""What flows through a chain: acquisitions, waveforms, buckets, buffers, image arrays, images, text.

Every item is a light view: a NumPy structured header as it lies on the wire (`gadgets.layout`) and NumPy arrays. Header fields
are attributes with ISMRMRD's names (``acquisition.center_sample``, ``acquisition.idx["slice"]``). Arrays are C-ordered with
Gadgetron's dimensions reversed: what Gadgetron indexes ``[E0, E1, E2, CHA, N, S, LOC]`` is ``[LOC, S, N, CHA, E2, E1, E0]`` here,
the same bytes in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar
from xml.sax.saxutils import escape

import numpy as np
from defusedxml.ElementTree import fromstring

from gadgets.layout import (
    ACQUISITION_HEADER,
    DATA_TYPES,
    IMAGE_HEADER,
    WAVEFORM_HEADER,
    Flag,
    ImageType,
    blank,
    clone,
)

if TYPE_CHECKING:
    import ismrmrd

Meta = dict[str, str | list[str]]
"""Image attributes: name -> value, or list of values when the attribute occurs with several."""


class Item:
    """Base of everything that flows. ``received`` and ``triggered`` are `time.perf_counter` seconds (0.0 = not known).

    ``received`` is when the newest readout that went into the item had arrived; ``triggered`` when its bucket or frame was
    complete. The chain runner copies them from input to output; a gadget sets them only where it knows better.
    """

    __slots__ = ("received", "triggered")
    received: float
    triggered: float

    def __init__(self) -> None:
        self.received = 0.0
        self.triggered = 0.0


def _header_fields(cls: type[_Headed], dtype: np.dtype) -> None:
    """Give `cls` one property a field of `dtype`; setting writes into the header."""

    def make(name: str) -> property:
        def get(self: _Headed) -> Any:
            return self.header[name]

        def put(self: _Headed, value: Any) -> None:
            self.header[name] = value

        return property(get, put)

    for name in dtype.names or ():
        if name not in cls.__dict__:
            setattr(cls, name, make(name))


class _Headed(Item):
    """An item with a structured header whose fields read as attributes."""

    __slots__ = ("header",)
    header: np.void
    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...


class Acquisition(_Headed):
    """One readout.

    header: `ACQUISITION_HEADER`; data: complex64 ``[channel, sample]``; trajectory: float32 ``[sample, dimension]`` in the
    sender's units, or None. The counts in the header are made to agree with the arrays.
    """

    __slots__ = ("data", "trajectory")

    def __init__(self, header: np.void | None, data: np.ndarray, trajectory: np.ndarray | None = None) -> None:
        super().__init__()
        self.header = blank(ACQUISITION_HEADER) if header is None else header
        self.data = data
        self.trajectory = trajectory
        if header is None:
            self.header["version"] = 1
            self.header["available_channels"] = data.shape[0]
            self.header["center_sample"] = data.shape[1] // 2
            self.agree()

    def agree(self) -> None:
        """Write the arrays' sizes into the header (after a gadget changed them)."""
        self.header["active_channels"], self.header["number_of_samples"] = self.data.shape
        self.header["trajectory_dimensions"] = 0 if self.trajectory is None else self.trajectory.shape[1]

    def with_data(self, data: np.ndarray, trajectory: np.ndarray | None = None) -> Acquisition:
        """The same readout with other arrays and a header of its own (the received one is left as it was)."""
        header = clone(self.header)
        other = Acquisition(header, data, trajectory)
        other.received, other.triggered = self.received, self.triggered
        other.agree()
        return other

    def is_flag_set(self, flag: Flag | int) -> bool:
        """Whether the flag (numbered from 1) is set."""
        return bool(int(self.header["flags"]) >> (int(flag) - 1) & 1)

    def set_flag(self, flag: Flag | int) -> None:
        """Set the flag (numbered from 1)."""
        self.header["flags"] = int(self.header["flags"]) | (1 << (int(flag) - 1))

    @property
    def traj(self) -> np.ndarray:
        """The trajectory under ismrmrd's name; ``[sample, 0]`` when there is none."""
        return np.zeros((self.data.shape[1], 0), np.float32) if self.trajectory is None else self.trajectory

    def to_ismrmrd(self) -> ismrmrd.Acquisition:
        """A real `ismrmrd.Acquisition` (a copy)."""
        import ismrmrd

        head = ismrmrd.AcquisitionHeader.from_buffer_copy(self.header.tobytes())
        out = ismrmrd.Acquisition(head)
        out.data[:] = self.data
        if self.trajectory is not None:
            out.traj[:] = self.trajectory
        return out

    @classmethod
    def from_ismrmrd(cls, acquisition: ismrmrd.Acquisition) -> Acquisition:
        """From `ismrmrd.Acquisition` (a copy; complex128 data become complex64)."""
        header = np.frombuffer(bytearray(acquisition.getHead()), ACQUISITION_HEADER)[0]
        trajectory = np.array(acquisition.traj, np.float32) if acquisition.trajectory_dimensions else None
        out = cls(header, np.array(acquisition.data, np.complex64), trajectory)
        out.agree()
        return out


class Waveform(_Headed):
    """A physiological waveform. header: `WAVEFORM_HEADER`; data: uint32 ``[channel, sample]``."""

    __slots__ = ("data",)

    def __init__(self, header: np.void | None, data: np.ndarray) -> None:
        super().__init__()
        self.header = blank(WAVEFORM_HEADER) if header is None else header
        self.data = data
        if header is None:
            self.header["version"] = 1
            self.header["channels"], self.header["number_of_samples"] = data.shape

    def to_ismrmrd(self) -> ismrmrd.Waveform:
        """A real `ismrmrd.Waveform` (a copy)."""
        import ismrmrd

        head = ismrmrd.WaveformHeader.from_buffer_copy(self.header.tobytes())
        out = ismrmrd.Waveform(head)
        out.data[:] = self.data
        return out

    @classmethod
    def from_ismrmrd(cls, waveform: ismrmrd.Waveform) -> Waveform:
        """From `ismrmrd.Waveform` (a copy)."""
        return cls(np.frombuffer(bytearray(waveform.getHead()), WAVEFORM_HEADER)[0], np.array(waveform.data, np.uint32))


@dataclass(eq=False)
class Resident:
    """Magnitudes of an image that are on a GPU, perhaps still being computed, for gadgets that go on with them there.

    array: CuPy, float32 ``[channel, z, y, x]``; finish: what happens to them once they are fetched.
    """

    array: Any
    finish: Callable[[np.ndarray], np.ndarray]

    def fetch(self) -> np.ndarray:
        """The pixels as a NumPy array of its own, waited for."""
        return self.finish(self.array.get())

    def __deepcopy__(self, _: dict[int, Any]) -> Resident:
        """Itself: nobody writes to it, and what fetches it gets an array of its own."""
        return self


class Image(_Headed):
    """An image or volume.

    header: `IMAGE_HEADER` (its ``data_type``, ``matrix_size``, ``channels`` are made to agree with the data by the
    constructor); data: ``[channel, z, y, x]`` of one of the eight ISMRMRD element types, or `Resident` pixels; attributes: ``meta``,
    parsed from the received XML when first touched, so that an image that only passes through keeps its bytes.
    """

    __slots__ = ("_attributes", "_data", "_meta", "resident")

    def __init__(self, header: np.void | None, data: np.ndarray | Resident, meta: Meta | bytes | None = None) -> None:
        super().__init__()
        self.resident = data if isinstance(data, Resident) else None
        self._data = None if isinstance(data, Resident) else data
        data = data.array if isinstance(data, Resident) else data
        self.header = blank(IMAGE_HEADER) if header is None else header
        if header is None:
            self.header["version"] = 1
            self.header["image_type"] = ImageType.COMPLEX if np.iscomplexobj(data) else ImageType.MAGNITUDE
        if data.ndim != 4:
            raise ValueError(f"Image: data must be [channel, z, y, x], got shape {data.shape}")
        dtype = data.dtype.newbyteorder("<")
        if dtype not in DATA_TYPES:
            raise ValueError(f"Image: element type {data.dtype} is none of ISMRMRD's: {', '.join(map(str, DATA_TYPES))}; convert it first")
        self.header["data_type"] = DATA_TYPES[dtype]
        self.header["matrix_size"] = data.shape[:0:-1]
        self.header["channels"] = data.shape[0]
        self._attributes: bytes | None = meta if isinstance(meta, bytes) else None
        self._meta: Meta | None = None if isinstance(meta, bytes) else dict(meta or {})

    @property
    def data(self) -> np.ndarray:
        """Pixels ``[channel, z, y, x]``; those that are still on a GPU are fetched when first touched."""
        if self._data is None:
            assert self.resident is not None
            self._data = self.resident.fetch()
        return self._data

    @data.setter
    def data(self, data: np.ndarray) -> None:
        self._data, self.resident = data, None

    @property
    def meta(self) -> Meta:
        """Attributes; changing the dictionary changes what is sent. Raises ValueError when the received XML is malformed."""
        if self._meta is None:
            self._meta = meta_from_xml(self._attributes or b"")
        self._attributes = None
        return self._meta

    @property
    def attribute_string(self) -> bytes:
        """ISMRMRD meta XML without NUL; empty when there are no attributes."""
        if self._attributes is not None:
            return self._attributes
        return meta_to_xml(self._meta or {})

    def with_data(self, data: np.ndarray) -> Image:
        """The same image with other pixels and its own header and attributes."""
        other = Image(clone(self.header), data, dict(self.meta))
        other.received, other.triggered = self.received, self.triggered
        return other

    def to_ismrmrd(self) -> ismrmrd.Image:
        """A real `ismrmrd.Image` (a copy), independent of what ismrmrd 1.14 and 1.15 do differently."""
        import ismrmrd

        header = ismrmrd.ImageHeader.from_buffer_copy(self.header.tobytes())
        out = ismrmrd.Image(header)
        out.data[:] = self.data
        out.attribute_string = self.attribute_string.decode() or ismrmrd.Meta().serialize()
        return out

    @classmethod
    def from_ismrmrd(cls, image: ismrmrd.Image) -> Image:
        """From `ismrmrd.Image` (a copy)."""
        header = np.frombuffer(bytearray(image.getHead()), IMAGE_HEADER)[0]
        data = np.array(image.data)
        if header["data_type"] == 4:  # ismrmrd takes type 4 for the platform's int
            data = data.astype(np.int32)
        attributes = image.attribute_string
        return cls(header, data, attributes if isinstance(attributes, bytes) else attributes.encode())


_header_fields(Acquisition, ACQUISITION_HEADER)
_header_fields(Waveform, WAVEFORM_HEADER)
_header_fields(Image, IMAGE_HEADER)


@dataclass(eq=False)
class Stats:
    """Which counter values occur in a bucket (Gadgetron's AcquisitionBucketStats)."""

    FIELDS: ClassVar[tuple[str, ...]] = (
        "kspace_encode_step_1",
        "kspace_encode_step_2",
        "slice",
        "phase",
        "contrast",
        "repetition",
        "set",
        "segment",
        "average",
    )
    values: dict[str, set[int]] = field(default_factory=lambda: {name: set() for name in Stats.FIELDS})

    def add(self, acquisition: Acquisition) -> None:
        """Count one readout in."""
        idx = acquisition.header["idx"]
        for name in self.FIELDS:
            self.values[name].add(int(idx[name]))


class AcquisitionBucket(Item):
    """Readouts gathered up to a trigger: imaging ``data``, calibration ``ref``, ``waveforms`` and, per encoding space, stats."""

    __slots__ = ("data", "datastats", "ref", "refstats", "waveforms")

    def __init__(
        self,
        data: list[Acquisition] | None = None,
        ref: list[Acquisition] | None = None,
        waveforms: list[Waveform] | None = None,
        datastats: list[Stats] | None = None,
        refstats: list[Stats] | None = None,
    ) -> None:
        super().__init__()
        self.data = data if data is not None else []
        self.ref = ref if ref is not None else []
        self.waveforms = waveforms if waveforms is not None else []
        self.datastats = datastats if datastats is not None else _stats(self.data)
        self.refstats = refstats if refstats is not None else _stats(self.ref)


def _stats(acquisitions: list[Acquisition]) -> list[Stats]:
    """One `Stats` for each encoding space up to the highest that occurs."""
    stats: list[Stats] = []
    for acquisition in acquisitions:
        space = int(acquisition.header["encoding_space_ref"])
        stats.extend(Stats() for _ in range(space + 1 - len(stats)))
        stats[space].add(acquisition)
    return stats


@dataclass(eq=False)
class ReconBuffer:
    """One sorted k-space (Gadgetron's IsmrmrdDataBuffered).

    data: complex64 ``[LOC, S, N, CHA, E2, E1, E0]``; headers: `ACQUISITION_HEADER` ``[LOC, S, N, E2, E1]`` (zero where no
    readout was); trajectory: float32 ``[LOC, S, N, E2, E1, E0, TRAJ]`` or None; density: float32 ``[LOC, S, N, E2, E1, E0]``
    or None; sampling: a `SAMPLING_DESCRIPTION` scalar.
    """

    data: np.ndarray
    headers: np.ndarray
    sampling: np.void
    trajectory: np.ndarray | None = None
    density: np.ndarray | None = None


@dataclass(eq=False)
class ReconBit:
    """The k-space of one encoding space, and its calibration data if there are any."""

    data: ReconBuffer
    ref: ReconBuffer | None = None


class ReconData(Item):
    """Sorted k-spaces, one `ReconBit` an encoding space (message 1023), and the waveforms of their bucket (not on the wire)."""

    __slots__ = ("bits", "waveforms")

    def __init__(self, bits: list[ReconBit], waveforms: list[Waveform] | None = None) -> None:
        super().__init__()
        self.bits = bits
        self.waveforms = waveforms if waveforms is not None else []


class ImageArray(Item):
    """Images of one reconstruction before they are split (message 1024).

    data: complex64 ``[LOC, S, N, CHA, Z, Y, X]``; headers: `IMAGE_HEADER` ``[LOC, S, N]``; meta: one dictionary an image in C order
    of ``[LOC, S, N]``; waveforms: list or None; acquisition_headers: `ACQUISITION_HEADER` ``[LOC, S, N, E2, E1]`` or None.
    """

    __slots__ = ("acquisition_headers", "data", "headers", "meta", "waveforms")

    def __init__(
        self,
        data: np.ndarray,
        headers: np.ndarray,
        meta: list[Meta] | None = None,
        waveforms: list[Waveform] | None = None,
        acquisition_headers: np.ndarray | None = None,
    ) -> None:
        super().__init__()
        if data.ndim != 7 or headers.shape != data.shape[:3]:
            raise ValueError(
                f"ImageArray: data must be [LOC, S, N, CHA, Z, Y, X] and headers [LOC, S, N], got {data.shape} and {headers.shape}"
            )
        self.data = data
        self.headers = headers
        self.meta: list[Meta] = meta if meta is not None else [{} for _ in range(headers.size)]
        self.waveforms = waveforms
        self.acquisition_headers = acquisition_headers


class Text(Item):
    """A line of text for the client's log (message 5)."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text


class Dicom(Item):
    """A DICOM file (message 1018): file bytes, name, ISMRMRD meta XML."""

    __slots__ = ("attributes", "content", "name")

    def __init__(self, content: bytes, name: str = "", attributes: bytes = b"") -> None:
        super().__init__()
        self.content = content
        self.name = name
        self.attributes = attributes


class DependencyQuery(Item):
    """Which stored measurements (noise covariances) a server has (message 1019): ISMRMRD meta."""

    __slots__ = ("meta",)

    def __init__(self, meta: Meta) -> None:
        super().__init__()
        self.meta = meta


def meta_from_xml(xml: bytes) -> Meta:
    """ISMRMRD meta XML (with or without trailing NUL) -> dictionary. Raises ValueError on malformed XML."""
    xml = xml.rstrip(b"\0 \n")
    if not xml:
        return {}
    try:
        root = fromstring(xml)
    except Exception as error:
        raise ValueError(f"image attributes are not ISMRMRD meta XML ({error}): {xml[:80]!r}") from error
    meta: Meta = {}
    for entry in root.iter("meta"):
        name = (entry.findtext("name") or "").strip()
        values = [value.text or "" for value in entry.findall("value")]
        meta[name] = values[0] if len(values) == 1 else values
    return meta


def meta_to_xml(meta: Meta) -> bytes:
    """Dictionary -> ISMRMRD meta XML in ASCII (gadgetron-python and ismrmrd.File decode it so); empty for an empty dictionary."""
    if not meta:
        return b""
    parts = ['<?xml version="1.0"?>\n<ismrmrdMeta>']
    for name, value in meta.items():
        values = value if isinstance(value, list) else [value]
        inner = "".join(f"<value>{escape(str(one))}</value>" for one in values)
        parts.append(f"<meta><name>{escape(name)}</name>{inner}</meta>")
    parts.append("</ismrmrdMeta>")
    return "".join(parts).encode("ascii", "xmlcharrefreplace")
