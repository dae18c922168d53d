"""Our bytes against the two other Python implementations, both ways, for every message that both know.

What they get wrong is left out: ismrmrd reads an empty attribute as None and takes image type 4 for 64-bit integers;
gadgetron-python 1.4.1 writes an id before each waveform of an image array, cannot read a bucket with waveforms and has no bucket writer.
"""

from __future__ import annotations

import io
import socket
import threading
from typing import Any

import ismrmrd
import numpy as np
import pytest
from gadgetron.external import Connection as GadgetronConnection
from gadgetron.external import writers
from gadgetron.types.acquisition_bucket import read_acquisition_bucket
from gadgetron.types.image_array import ImageArray as TheirImageArray
from gadgetron.types.image_array import read_image_array, write_image_array
from gadgetron.types.recon_data import ReconBit as TheirBit
from gadgetron.types.recon_data import ReconBuffer as TheirBuffer
from gadgetron.types.recon_data import ReconData as TheirReconData
from gadgetron.types.recon_data import SamplingDescription, read_recon_data, write_recon_data
from hypothesis import HealthCheck, given, settings

from gadgets.items import Acquisition, AcquisitionBucket, Image, ImageArray, Item, ReconData, Stats, Waveform
from gadgets.layout import ACQUISITION_HEADER, ELEMENT_TYPES, IMAGE_HEADER
from service.wire import Close, Config, HeaderXml
from tests.service.wire_messages import acquisitions, buckets, content, image_arrays, images, received, recon_data, sent, waveforms

MANY = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
)


class Source(io.BytesIO):
    """Bytes as gadgetron's readers take them: exactly as many as asked for."""

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(-1 if size is None else int(size))
        assert size is None or len(data) == size, "their reader wants more bytes than we sent"
        return data


def body(item: Item) -> Source:
    """What we send, without the id."""
    return Source(sent(item)[2:])


def written(write: Any, item: Any) -> Item:
    """What they write, as we read it."""
    sink = io.BytesIO()
    write(sink, item)
    (message,) = received(sink.getvalue())
    assert isinstance(message, Item)
    return message


def fill(meta: dict[str, str | list[str]]) -> None:
    """Replace empty attribute values, which ismrmrd reads as None and writes as "None"."""
    for name, value in meta.items():
        meta[name] = [one or "-" for one in value] if isinstance(value, list) else value or "-"


def same_header(theirs: Any, ours: np.void | np.ndarray, ignore: tuple[str, ...] = ()) -> None:
    mine = np.frombuffer(bytes(theirs), np.asarray(ours).dtype)[0]
    for name in mine.dtype.names or ():
        if name not in ignore:
            assert mine[name].tobytes() == ours[name].tobytes(), name


# -- ismrmrd ---------------------------------------------------------------------------------------------------------------------------


@MANY
@given(acquisitions())
def test_acquisition_bytes_equal_ismrmrd(item: Acquisition) -> None:
    theirs = ismrmrd.Acquisition.from_bytes(sent(item)[2:])
    assert theirs.data.tobytes() == item.data.tobytes()
    assert theirs.traj.tobytes() == item.traj.tobytes()
    same_header(theirs.getHead(), item.header)
    assert b"\xf0\x03" + theirs.to_bytes() == sent(item)


@MANY
@given(waveforms())
def test_waveform_bytes_equal_ismrmrd(item: Waveform) -> None:
    theirs = ismrmrd.Waveform.deserialize_from(body(item).read)
    assert theirs.data.tobytes() == item.data.tobytes()
    same_header(theirs.getHead(), item.header)
    sink = io.BytesIO(b"")
    theirs.serialize_into(sink.write)
    assert b"\x02\x04" + sink.getvalue() == sent(item)


@MANY
@given(images().filter(lambda image: image.data.dtype != np.int32 and image.data.size))
def test_image_reads_and_writes_like_ismrmrd(item: Image) -> None:
    fill(item.meta)
    theirs = ismrmrd.Image.from_bytes(sent(item)[2:])
    assert theirs.data.tobytes() == item.data.tobytes()
    same_header(theirs.getHead(), item.header, ignore=("attribute_string_len",))
    (again,) = received(b"\xfe\x03" + theirs.to_bytes())
    assert isinstance(again, Image)
    assert content(again) == content(item)


def test_every_image_type_both_know_was_tried() -> None:
    for dtype in ELEMENT_TYPES.values():
        item = Image(None, np.arange(24).reshape(1, 2, 3, 4).astype(dtype), {"k": "v"})
        if dtype != np.int32:
            assert np.array_equal(ismrmrd.Image.from_bytes(sent(item)[2:]).data, item.data)


# -- gadgetron -------------------------------------------------------------------------------------------------------------------------


def same_buffer(theirs: Any, ours: Any) -> None:
    """Their arrays are in Fortran order: the transposes of ours."""
    assert np.ascontiguousarray(theirs.data.T).tobytes() == ours.data.tobytes()
    for name in ("trajectory", "density"):
        mine, yours = getattr(ours, name), getattr(theirs, name)
        assert (mine is None) == (yours is None)
        if mine is not None:
            assert yours.shape == mine.shape[::-1]
            assert np.ascontiguousarray(yours.T).tobytes() == mine.tobytes()
    assert theirs.headers.shape == ours.headers.shape[::-1]
    for yours, mine in zip(theirs.headers.T.ravel(), ours.headers.ravel(), strict=True):
        same_header(yours, mine)
    for name in ("encoded_FOV", "recon_FOV", "encoded_matrix", "recon_matrix"):
        assert np.array(getattr(theirs.sampling, name)).tobytes() == ours.sampling[name].tobytes()
    limits = [tuple(limit) for limit in theirs.sampling.sampling_limits]
    assert limits == [tuple(limit) for limit in ours.sampling["sampling_limits"].tolist()]


@MANY
@given(recon_data().filter(lambda item: all(b.data.data.size and (b.ref is None or b.ref.data.size) for b in item.bits)))
def test_recon_data_both_ways(item: ReconData) -> None:
    theirs = read_recon_data(body(item))
    for yours, mine in zip(theirs.bits, item.bits, strict=True):
        same_buffer(yours.data, mine.data)
        assert (yours.ref is None) == (mine.ref is None)
        if mine.ref is not None:
            same_buffer(yours.ref, mine.ref)
    again = written(write_recon_data, theirs)
    assert content(again) == content(item)


def test_recon_data_made_by_gadgetron() -> None:
    """Not an echo: arrays that a gadgetron-python user indexes [E0, E1, E2, CHA, N, S, LOC]."""
    shape = (5, 4, 1, 3, 2, 1, 1)
    data = (np.arange(120).reshape(shape) * (1 + 1j)).astype(np.complex64)
    headers = np.empty((4, 1, 2, 1, 1), object)
    for i in range(headers.size):
        headers.flat[i] = ismrmrd.AcquisitionHeader(scan_counter=i)
    sampling = SamplingDescription()
    sampling.recon_FOV[1] = 250.0
    sampling.sampling_limits[1].max = 3
    ours = written(write_recon_data, TheirReconData([TheirBit(TheirBuffer(data, None, None, headers, sampling))]))
    assert isinstance(ours, ReconData)
    buffer = ours.bits[0].data
    for e0, e1, cha, n in ((0, 0, 0, 0), (4, 3, 2, 1), (1, 2, 0, 1)):
        assert buffer.data[0, 0, n, cha, 0, e1, e0] == data[e0, e1, 0, cha, n, 0, 0]
        assert buffer.headers[0, 0, n, 0, e1]["scan_counter"] == headers[e1, 0, n, 0, 0].scan_counter
    assert buffer.sampling["recon_FOV"][1] == 250
    assert buffer.sampling["sampling_limits"]["max"].tolist() == [0, 3, 0]


@MANY
@given(image_arrays())
def test_image_array_both_ways(item: ImageArray) -> None:
    for meta in item.meta:
        fill(meta)
    theirs = read_image_array(body(item))
    assert np.ascontiguousarray(theirs.data.T).tobytes() == item.data.tobytes()
    for yours, mine in zip(theirs.headers.T.ravel(), item.headers.ravel(), strict=True):
        same_header(yours, mine)
    assert [dict(ismrmrd.Meta.deserialize(xml)) for xml in theirs.meta] == item.meta
    assert (theirs.waveform is None) == (item.waveforms is None)
    for yours, mine in zip(theirs.waveform or [], item.waveforms or [], strict=True):
        assert yours.data.tobytes() == mine.data.tobytes()
        same_header(yours.getHead(), mine.header)
    assert (theirs.acq_headers is None) == (item.acquisition_headers is None)
    theirs.waveform = None  # their writer puts an id before each, which shifts every reader's stream
    again = written(write_image_array, theirs)
    assert isinstance(again, ImageArray)
    item.waveforms = None
    assert content(again) == content(item)


def test_image_array_made_by_gadgetron() -> None:
    data = np.arange(2 * 3 * 4).reshape(4, 3, 1, 1, 2, 1, 1).astype(np.complex64)
    headers = np.empty((2, 1, 1), object)
    headers[0, 0, 0], headers[1, 0, 0] = ismrmrd.ImageHeader(image_index=1), ismrmrd.ImageHeader(image_index=2)
    meta = ismrmrd.Meta({"a": "1", "b": ["2", "3"]})
    ours = written(write_image_array, TheirImageArray(data, headers, [meta.serialize(), ismrmrd.Meta().serialize()], None, None))
    assert isinstance(ours, ImageArray)
    assert ours.data.shape == (1, 1, 2, 1, 1, 3, 4)
    assert ours.data[0, 0, 1, 0, 0, 2, 3] == data[3, 2, 0, 0, 1, 0, 0]
    assert ours.headers.dtype == IMAGE_HEADER
    assert ours.headers[0, 0, :]["image_index"].tolist() == [1, 2]
    assert ours.meta == [{"a": "1", "b": ["2", "3"]}, {}]


@MANY
@given(buckets())
def test_bucket_is_read_by_gadgetron(item: AcquisitionBucket) -> None:
    item.waveforms = []  # their reader raises AttributeError for any
    source = body(item)
    theirs = read_acquisition_bucket(source)
    assert not source.read(None)
    for yours, mine in ((theirs.data, item.data), (theirs.ref, item.ref)):
        for one, other in zip(yours, mine, strict=True):
            same_header(one.getHead(), other.header)
            assert one.data.tobytes() == other.data.tobytes()
            assert one.traj.tobytes() == other.traj.tobytes()
    for yours, mine in ((theirs.datastats, item.datastats), (theirs.refstats, item.refstats)):
        # their reader names the vectors by position: e1, e2, slice, phase, contrast, ... as they lie on the wire
        names = Stats.FIELDS
        assert [[getattr(s, name) for name in names] for s in yours] == [[s.values[name] for name in names] for s in mine]


def test_conversation_with_a_gadgetron_connection() -> None:
    """Acquisition, waveform and image through gadgetron's Connection over a socket and back."""
    header = (
        b'<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><experimentalConditions>'
        b"<H1resonanceFrequency_Hz>1</H1resonanceFrequency_Hz></experimentalConditions></ismrmrdHeader>"
    )
    rng = np.random.default_rng(1)
    acquisition = Acquisition(None, rng.standard_normal((3, 8)).astype(np.complex64), rng.standard_normal((8, 2)).astype(np.float32))
    items: list[Item] = [
        acquisition,
        Waveform(None, np.arange(6, dtype=np.uint32).reshape(2, 3)),
        Image(None, rng.standard_normal((1, 1, 4, 5)).astype(np.float32), {"k": "v"}),
    ]
    ours, theirs = socket.socketpair()
    seen = []

    def echo() -> None:
        with GadgetronConnection(theirs) as connection:
            for mid, item in connection.iter_with_mids():
                seen.append((mid, item))
                connection.send(item)

    thread = threading.Thread(target=echo)
    thread.start()
    with ours:
        ours.sendall(b"".join(map(sent, [Config(b"<configuration/>"), HeaderXml(header), *items, Close()])))
        data = b""
        while chunk := ours.recv(1 << 16):
            data += chunk
    thread.join(10)
    assert [mid for mid, _ in seen] == [1008, 1026, 1022]
    *back, end = received(data)
    assert end == Close()
    assert [content(m) for m in back] == [content(m) for m in items]


def test_acquisition_writer_of_gadgetron() -> None:
    theirs = ismrmrd.Acquisition.from_array(np.ones((2, 6), np.complex64), np.ones((6, 3), np.float32), scan_counter=9)
    ours = written(writers.write_acquisition, theirs)
    assert isinstance(ours, Acquisition)
    assert ours.header.dtype == ACQUISITION_HEADER
    assert ours.header["scan_counter"] == 9
    assert ours.trajectory is not None
    assert ours.trajectory.shape == (6, 3)


@pytest.mark.parametrize("name", ["config", "filename"])
def test_stream_of_ismrmrd_serializer(name: str) -> None:
    """ismrmrd's own protocol writer (1.15): config, header, text, readout, image, waveform, CLOSE."""
    serialization = pytest.importorskip("ismrmrd.serialization", reason="ismrmrd before 1.14.1 has no protocol writer")
    sink = io.BytesIO()
    writer = serialization.ProtocolSerializer(sink)
    writer.serialize(serialization.ConfigText("<a/>") if name == "config" else serialization.ConfigFile("a.xml"))
    writer.serialize("hello")
    writer.serialize(ismrmrd.Acquisition.from_array(np.ones((2, 6), np.complex64)))
    writer.serialize(ismrmrd.Image.from_array(np.ones((1, 1, 2, 3), np.float32), transpose=False))
    writer.close()
    kinds = [type(message).__name__ for message in received(sink.getvalue())]
    assert kinds == ["Config" if name == "config" else "Filename", "Text", "Acquisition", "Image", "Close"]
