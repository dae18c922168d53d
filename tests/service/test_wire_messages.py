"""Every message survives the wire unchanged, has the documented bytes, and cannot be sent when it contradicts itself."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gadgets.items import (
    Acquisition,
    AcquisitionBucket,
    DependencyQuery,
    Image,
    ImageArray,
    Item,
    ReconBit,
    ReconBuffer,
    ReconData,
    Text,
    Waveform,
)
from gadgets.layout import ACQUISITION_HEADER, ELEMENT_TYPES, IMAGE_HEADER, SAMPLING_DESCRIPTION, blank
from service.wire import Close, Config, ErrorReport, Filename, HeaderXml, MessageId, Query, Response, WireError, encode
from tests.service.wire_messages import KINDS, content, messages, received, sent

SLOW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(kind: str) -> None:
    @SLOW
    @given(KINDS[kind]())
    def check(message: Any) -> None:
        (again,) = received(sent(message))
        assert type(again) is type(message)
        assert content(again) == content(message)
        assert not isinstance(again, Item) or again.received > 0

    check()


@SLOW
@given(messages())
def test_id_comes_first_and_no_empty_buffer_is_handed_out(message: Any) -> None:
    buffers = encode(message)
    assert struct.unpack_from("<H", buffers[0])[0] in set(MessageId)
    # Headers may be empty in a bucket without readouts; arrays are not.
    assert all(len(buffer) for buffer in buffers if isinstance(buffer, memoryview))


@pytest.mark.parametrize(
    ("message", "data"),
    [
        (Close(), "04 00"),
        (Filename("default.xml"), "01 00 64 65 66 61 75 6c 74 2e 78 6d 6c" + " 00" * 1013),
        (Config(b"<a/>"), "02 00 04 00 00 00 3c 61 2f 3e"),
        (HeaderXml(b"<a/>"), "03 00 04 00 00 00 3c 61 2f 3e"),
        (Text("hi"), "05 00 02 00 00 00 68 69"),
        (ErrorReport("bad"), "08 00 03 00 00 00 00 00 00 00 62 61 64"),
        (Query("gadgetron::version", 7), "06 00" + " 00" * 8 + " 07" + " 00" * 7 + " 12" + " 00" * 7 + b"gadgetron::version".hex()),
        (Response("4.x", 7), "07 00 07" + " 00" * 7 + " 03" + " 00" * 7 + " 34 2e 78"),
        (DependencyQuery({}), "fb 03 0e" + " 00" * 7 + b"<ismrmrdMeta/>".hex()),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_documented_bytes(message: Any, data: str) -> None:
    assert sent(message) == bytes.fromhex(data)
    assert content(received(bytes.fromhex(data))[0]) == content(message)


def test_acquisition_bytes() -> None:
    item = Acquisition(None, np.arange(4, dtype=np.complex64)[None])
    raw = sent(item)
    assert len(raw) == 2 + 340 + 32
    assert raw[:2] == b"\xf0\x03"
    assert struct.unpack_from("<HHH", raw, 2 + 34) == (4, 1, 1)
    assert struct.unpack_from("<8f", raw, 342) == (0, 0, 1, 0, 2, 0, 3, 0)


def test_image_bytes() -> None:
    raw = sent(Image(None, np.array([[[[1, 2], [3, 4]]]], np.uint16)))
    assert len(raw) == 2 + 198 + 8 + 8
    assert raw[:2] == b"\xfe\x03"
    assert raw[200:] == bytes(8) + bytes.fromhex("0100020003000400")


def test_waveform_header_has_40_bytes() -> None:
    raw = sent(Waveform(None, np.array([[7, 8, 9]], np.uint32)))
    assert len(raw) == 2 + 40 + 12
    assert struct.unpack_from("<HH", raw, 2 + 28) == (3, 1)


@pytest.mark.parametrize("tail", [b"", b"\0", b"\0\0\0"])
def test_trailing_nuls_are_not_part_of_texts(tail: bytes) -> None:
    body = b"<a/>" + tail
    assert received(b"\x02\0" + struct.pack("<I", len(body)) + body) == [Config(b"<a/>")]
    assert received(b"\x03\0" + struct.pack("<I", len(body)) + body) == [HeaderXml(b"<a/>")]
    (text,) = received(b"\x05\0" + struct.pack("<I", len(body)) + body)
    assert isinstance(text, Text)
    assert text.text == "<a/>"


def test_text_that_is_not_utf8_is_shown_as_far_as_possible() -> None:
    (text,) = received(b"\x05\0\x04\0\0\0ab\xff\xfe")
    assert isinstance(text, Text)
    assert text.text == "ab\ufffd\ufffd"
    assert sent(Text("\ud800")) == b"\x05\0\x01\0\0\0?"


@pytest.mark.parametrize("tail", [b"", b"\0"])
@pytest.mark.parametrize("code", ELEMENT_TYPES)
def test_image_of_every_type_with_and_without_nul(code: int, tail: bytes) -> None:
    header = blank(IMAGE_HEADER)
    header["data_type"], header["matrix_size"], header["channels"] = code, (3, 2, 1), 2
    data = np.arange(12).astype(ELEMENT_TYPES[code])
    meta = b"<ismrmrdMeta><meta><name>k</name><value>1</value><value>2</value></meta></ismrmrdMeta>" + tail
    (image,) = received(b"\xfe\x03" + header.tobytes() + struct.pack("<Q", len(meta)) + meta + data.tobytes())
    assert isinstance(image, Image)
    assert image.data.dtype == ELEMENT_TYPES[code]
    assert np.array_equal(image.data, data.reshape(2, 1, 2, 3))
    assert image.meta == {"k": ["1", "2"]}


def test_untouched_attributes_keep_their_bytes() -> None:
    meta = b"<?xml version='1.0'?>\n<ismrmrdMeta>\n <meta><name>k</name><value>v</value></meta></ismrmrdMeta>"
    image = Image(None, np.zeros((1, 1, 1, 1), np.float32), meta)
    (again,) = received(sent(image))
    assert isinstance(again, Image)
    assert sent(again) == sent(image)
    assert meta in sent(again)


def test_counts_in_headers_follow_the_arrays() -> None:
    item = Acquisition(None, np.zeros((4, 16), np.complex64))
    item.data = item.data[:2, ::2]
    image = Image(None, np.zeros((1, 1, 4, 4), np.float32))
    image.data = np.ones((2, 1, 3, 5), np.int32)
    acquisition, picture = received(sent(item) + sent(image))
    assert isinstance(acquisition, Acquisition)
    assert acquisition.data.shape == (2, 8)
    assert isinstance(picture, Image)
    assert picture.data.dtype == np.int32
    assert picture.data.shape == (2, 1, 3, 5)
    assert item.header["number_of_samples"] == 16  # the sender's own header is left alone


def test_other_precisions_and_layouts_become_what_the_wire_carries() -> None:
    data = np.arange(12.0).reshape(3, 4).T + 1j
    (item,) = received(sent(Acquisition(None, data.astype(np.complex128), np.zeros((3, 2)))))
    assert isinstance(item, Acquisition)
    assert np.array_equal(item.data, data)
    assert item.data.dtype == np.complex64
    (image,) = received(sent(Image(None, np.arange(4, dtype=">i2").reshape(1, 1, 2, 2))))
    assert isinstance(image, Image)
    assert np.array_equal(image.data.ravel(), [0, 1, 2, 3])


def test_hondarray_is_the_reversed_shape_without_a_copy() -> None:
    data = np.arange(2 * 3 * 4, dtype=np.complex64).reshape(1, 1, 1, 2, 1, 3, 4)
    headers = np.zeros((1, 1, 1, 1, 3), ACQUISITION_HEADER)
    raw = sent(ReconData([ReconBit(ReconBuffer(data, headers, blank(SAMPLING_DESCRIPTION)))]))
    assert struct.unpack_from("<Q8Q", raw, 2) == (1, 7, 4, 3, 1, 2, 1, 1, 1)
    view = [
        buffer
        for buffer in encode(ReconData([ReconBit(ReconBuffer(data, headers, blank(SAMPLING_DESCRIPTION)))]))
        if len(buffer) == data.nbytes
    ]
    assert np.shares_memory(np.frombuffer(view[0], np.uint8), data)


def test_missing_dimensions_of_a_buffer_are_ones() -> None:
    raw = struct.pack("<HQ", MessageId.RECON_DATA, 1)
    raw += struct.pack("<3Q", 2, 4, 3) + np.arange(12, dtype=np.complex64).tobytes() + b"\0\0"
    raw += struct.pack("<Q", 0) + bytes(56) + b"\0"
    (item,) = received(raw)
    assert isinstance(item, ReconData)
    assert item.bits[0].data.data.shape == (1, 1, 1, 1, 1, 3, 4)
    assert item.bits[0].data.headers.size == 0


def test_bucket_without_anything() -> None:
    (bucket,) = received(sent(AcquisitionBucket()))
    assert isinstance(bucket, AcquisitionBucket)
    assert len(sent(AcquisitionBucket())) == 2 + 104 + 8 + 8
    assert not bucket.data
    assert not bucket.waveforms


@given(st.binary(min_size=1, max_size=8))
def test_query_with_reserved_bits_is_refused(reserved: bytes) -> None:
    if any(reserved):
        with pytest.raises(WireError, match="reserved"):
            received(b"\x06\0" + reserved.ljust(8, b"\0") + bytes(16))


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (Acquisition(blank(ACQUISITION_HEADER), np.zeros((2, 8), np.complex64), np.zeros((16, 2), np.float32)), "crop or resample both"),
        (Acquisition(blank(ACQUISITION_HEADER), np.zeros(8, np.complex64)), "channel, sample"),
        (Acquisition(blank(ACQUISITION_HEADER), np.zeros((1, 70_000), np.complex64)), "16-bit"),
        (Waveform(None, np.zeros((1, 3), np.uint32)), ""),
        (Filename("x" * 1024), "at most 1023"),
        (Item(), "no message"),
    ],
    ids=["trajectory", "shape", "size", "waveform", "name", "kind"],
)
def test_what_cannot_be_sent_is_refused_with_the_reason(message: Any, reason: str) -> None:
    if isinstance(message, Waveform):
        message.data = np.zeros(3, np.uint32)
        reason = "channel, sample"
    with pytest.raises(WireError, match=reason):
        encode(message)


def test_image_arrays_must_agree() -> None:
    item = ImageArray(np.zeros((1, 1, 2, 1, 1, 2, 2), np.complex64), np.zeros((1, 1, 2), IMAGE_HEADER))
    raw = bytearray(sent(item))
    at = raw.index(struct.pack("<4Q", 3, 2, 1, 1)) + 8
    raw[at : at + 8] = struct.pack("<Q", 1)
    with pytest.raises(WireError, match="headers"):
        received(bytes(raw))
