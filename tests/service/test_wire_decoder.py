"""The decoder under any chunking, any damage and any lie about lengths."""

from __future__ import annotations

import resource
import struct
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gadgets.items import Acquisition, AcquisitionBucket, Image, ImageArray, Item, ReconBit, ReconBuffer, ReconData, Text, Waveform
from gadgets.layout import ACQUISITION_HEADER, IMAGE_HEADER, SAMPLING_DESCRIPTION, WAVEFORM_HEADER, Flag, blank
from service.wire import (
    Close,
    Config,
    Decoder,
    EndOfStream,
    ErrorReport,
    HeaderXml,
    Limits,
    Message,
    MessageId,
    Query,
    Response,
    WireError,
    encode,
)
from service.wire.decoder import BUFFER, LARGE
from tests.service.wire_messages import content, messages, received, sent

SLOW = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


def readout(channels: int, samples: int, dims: int = 0, seed: int = 0) -> Acquisition:
    rng = np.random.default_rng(seed)
    data = rng.standard_normal((channels, 2 * samples), dtype=np.float32).view(np.complex64)
    return Acquisition(None, data, rng.standard_normal((samples, dims), dtype=np.float32) if dims else None)


def in_chunks(data: bytes, sizes: Iterator[int]) -> list[Message]:
    decoder = Decoder()
    out: list[Message] = []
    at = 0
    while at < len(data):
        size = next(sizes)
        out += decoder.feed(data[at : at + size])
        at += size
    return out


# -- chunking --------------------------------------------------------------------------------------------------------------------------


@SLOW
@given(st.lists(messages(), max_size=5), st.data())
def test_any_split_gives_the_same_messages(sequence: list[Message], data: st.DataObject) -> None:
    raw = b"".join(map(sent, sequence))
    sizes = data.draw(st.lists(st.integers(1, 400), min_size=1, max_size=8))
    pieces = (sizes[i % len(sizes)] for i in range(len(raw) + 1))
    assert [content(m) for m in in_chunks(raw, pieces)] == [content(m) for m in sequence]


@pytest.mark.parametrize("step", [1, 341, 342, 343, 1023, 1024, 1025, 65_536, BUFFER - 1, BUFFER, BUFFER + 1, 10**9])
def test_small_and_large_messages_in_any_step(step: int) -> None:
    """Around the switch from buffered to in place, with messages of all sizes behind one another."""
    rng = np.random.default_rng(7)
    sequence: list[Message] = []
    for i, samples in enumerate([1, LARGE // 8 - 1, LARGE // 8, LARGE // 8 + 1, 3, 16_384, 0, 5000, *rng.integers(1, 9000, 12)]):
        sequence += [readout(1 + i % 3, int(samples), i % 4, i), Waveform(None, np.full((2, i), i, np.uint32))]
    sequence += [Image(None, rng.standard_normal((1, 1, 200, 300))), Text("x" * 70_000), Close()]
    raw = b"".join(map(sent, sequence))
    if step == 1:
        raw, sequence = b"".join(map(sent, sequence[:9])), sequence[:9]
    again = in_chunks(raw, iter(lambda: step, 0))
    assert [content(m) for m in again] == [content(m) for m in sequence]


def test_items_own_their_memory() -> None:
    """What was decoded does not change when later messages pass through the decoder."""
    first = [readout(8, 128, 2, seed) for seed in range(40)] + [readout(32, 512, 2, 99)]
    raw = b"".join(map(sent, first))
    decoder = Decoder()
    kept = list(decoder.feed(raw))
    before = [content(m) for m in kept]
    for seed in range(5):
        for _ in decoder.feed(b"".join(sent(readout(32, 512, 0, seed)) + sent(readout(8, 128, 0, seed)) for _ in range(20))):
            pass
    assert [content(m) for m in kept] == before == [content(m) for m in first]
    for item in kept:
        assert isinstance(item, Acquisition)
        assert item.data.flags.aligned
        assert item.data.flags.writeable
        item.header["scan_counter"] = 5  # gadgets write into headers


def test_large_payload_is_received_in_place() -> None:
    raw = sent(readout(32, 512))
    decoder = Decoder()
    buffer = decoder.get_buffer()
    buffer[:400] = raw[:400]
    decoder.received(400)
    assert decoder.next_message() is None
    target = decoder.get_buffer()
    size = len(raw) - 400
    target[:size] = raw[400:]
    address = np.frombuffer(target, np.uint8).ctypes.data
    decoder.received(size)
    (item,) = [decoder.next_message()]
    assert isinstance(item, Acquisition)
    assert item.data.ctypes.data <= address < item.data.ctypes.data + item.data.nbytes


def test_arrival_is_stamped() -> None:
    items = [m for m in received(sent(readout(1, 4)) + sent(readout(64, 512)) + sent(Text("a"))) if isinstance(m, Item)]
    stamps = [item.received for item in items]
    assert len(stamps) == 3
    assert stamps == sorted(stamps)
    assert stamps[0] > 0


def test_messages_must_be_taken_before_the_buffer_is_full() -> None:
    decoder = Decoder()
    decoder.received(len(decoder.get_buffer()))
    with pytest.raises(RuntimeError, match="next_message"):
        decoder.get_buffer()


# -- ends and lies ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "without CLOSE after 0 bytes"),
        (b"\x04", "in the middle of a message"),
        (sent(Text("hello")), "without CLOSE"),
        (sent(Text("hello"))[:-1], r"in the middle of TEXT \(5\)"),
        (sent(readout(1, 4))[:-1], r"in the middle of ACQUISITION \(1008\)"),
        (sent(readout(32, 512))[:-1], r"in the middle of ACQUISITION \(1008\) .* 1 bytes before the end of an array"),
        (sent(Image(None, np.zeros((1, 1, 8, 8))))[:300], r"in the middle of IMAGE \(1022\)"),
        (sent(Close()) + b"\x05\0\0\0", r"in the middle of TEXT"),
    ],
)
def test_end_without_close_says_where(data: bytes, reason: str) -> None:
    decoder = Decoder()
    for _ in decoder.feed(data):
        pass
    with pytest.raises(EndOfStream, match=reason):
        decoder.end_of_stream()


def test_end_after_close_is_right() -> None:
    decoder = Decoder()
    assert list(decoder.feed(sent(Close()))) == [Close()]
    decoder.end_of_stream()


def failure(data: bytes, limits: Limits | None = None) -> str:
    """The error that `data` leads to; also checks that it stays, whatever comes behind."""
    decoder = Decoder(limits)
    with pytest.raises(WireError) as caught:
        list(decoder.feed(data))
    with pytest.raises(WireError) as again:
        decoder.next_message()
    assert again.value is caught.value
    for more in (sent(readout(1, 4)), sent(readout(32, 512))):
        with pytest.raises(WireError) as again:
            list(decoder.feed(more))
        assert again.value is caught.value
    with pytest.raises(WireError):
        decoder.end_of_stream()
    return str(caught.value)


@pytest.mark.parametrize(
    ("data", "reasons"),
    [
        (b"\x39\x30", ["unknown message id 12345", "byte 0", "does not speak"]),
        (b"GET / HTTP/1.1\r\n", ["HTTP"]),
        (b"\x16\x03\x01\x02\x00", ["TLS"]),
        (b"\x89HDF\r\n\x1a\n", ["HDF5"]),
        (sent(Text("a")) + b"\x06\x04", ["unknown message id 1030", "byte 7", "NDARRAY", "after Text"]),
        (sent(Text("a")) + b"\x1b\x04", ["1051", "distributed"]),
        (sent(readout(2, 8)) + b"\x99\x99" + bytes(400), ["byte 470", "2 channels x 8 samples", "disagree with its header"]),
    ],
)
def test_unknown_id_names_id_place_and_likely_cause(data: bytes, reasons: list[str]) -> None:
    text = failure(data)
    for reason in reasons:
        assert reason in text


def test_trajectory_that_was_not_cropped_with_the_data() -> None:
    """What a Gadgetron with RemoveROOversampling sends to an external module: half the samples, the whole trajectory."""
    item = readout(4, 64, 2, seed=3)
    cropped = bytearray(sent(item))
    struct.pack_into("<H", cropped, 2 + 34, 32)
    data = bytes(cropped[: 342 + 64 * 8]) + np.ascontiguousarray(item.data[:, 16:48]).tobytes()
    text = failure(data + data)
    assert "unknown message id" in text
    assert "without cropping the trajectory" in text


@pytest.mark.parametrize(("flag", "kind"), [(Flag.COMPRESSION1, "ZFP"), (Flag.COMPRESSION2, "NHLBI")])
@pytest.mark.parametrize("channels", [1, 64])
def test_compressed_readouts_are_refused_with_the_remedy(flag: Flag, kind: str, channels: int) -> None:
    item = readout(channels, 256)
    item.set_flag(flag)
    text = failure(sent(item))
    assert kind in text
    assert "uncompressed" in text
    assert kind in failure(sent(AcquisitionBucket([item])))


def header_with(dtype: np.dtype, **fields: object) -> bytes:
    header = blank(dtype)
    for name, value in fields.items():
        header[name] = value
    return header.tobytes()


HUGE = 2**64 - 1
ACQ = struct.pack("<H", MessageId.ACQUISITION)
HOSTILE = {
    "config": struct.pack("<HI", 2, 2**32 - 1),
    "header": struct.pack("<HI", 3, 2**32 - 1),
    "text": struct.pack("<HI", 5, 2**32 - 1),
    "query": struct.pack("<HQQQ", 6, 0, 1, HUGE),
    "response": struct.pack("<HQQ", 7, 1, HUGE),
    "error": struct.pack("<HQ", 8, HUGE),
    "dicom": struct.pack("<HI", 1018, 2**32 - 1),
    "dicom name": struct.pack("<HIQ", 1018, 0, HUGE),
    "dependency query": struct.pack("<HQ", 1019, HUGE),
    "acquisition": ACQ + header_with(ACQUISITION_HEADER, number_of_samples=65535, active_channels=65535),
    "trajectory": ACQ + header_with(ACQUISITION_HEADER, number_of_samples=65535, trajectory_dimensions=65535),
    "waveform": b"\x02\x04" + header_with(WAVEFORM_HEADER, number_of_samples=65535, channels=65535),
    "image meta": b"\xfe\x03" + header_with(IMAGE_HEADER, data_type=5) + struct.pack("<Q", HUGE),
    "image": b"\xfe\x03" + header_with(IMAGE_HEADER, data_type=8, matrix_size=(65535,) * 3, channels=65535) + bytes(8),
    "image type 0": b"\xfe\x03" + header_with(IMAGE_HEADER, data_type=0) + bytes(8),
    "image type 9": b"\xfe\x03" + header_with(IMAGE_HEADER, data_type=9) + bytes(8),
    "bits": struct.pack("<HQ", 1023, HUGE),
    "rank": struct.pack("<HQQ", 1023, 1, HUGE),
    "dims": struct.pack("<HQQ7Q", 1023, 1, 7, *[HUGE] * 7),
    "dims product that wraps to zero in 64 bits": struct.pack("<HQQ2Q", 1023, 1, 2, 2**32, 2**32),
    "dims product that wraps to a small number": struct.pack("<HQQ2Q", 1023, 1, 2, 2**63 + 1, 2),
    "a zero beside a huge dimension": struct.pack("<HQQ2Q", 1023, 1, 2, 0, HUGE),
    "too many dims": struct.pack("<HQQ8Q", 1023, 1, 8, *[1] * 7, 2),
    "flag byte": struct.pack("<HQQ", 1023, 1, 0) + b"\x07",
    "array metas": struct.pack("<HQQQ", 1024, 0, 0, HUGE),
    "array of 2^40 metas": struct.pack("<H8Q", 1024, 7, *[1] * 7)
    + bytes(8)
    + struct.pack("<4Q", 3, 1, 1, 1)
    + bytes(198)
    + struct.pack("<Q", 2**40),
    "bucket count": struct.pack("<H13Q", 1050, HUGE, *[0] * 12),
    "bucket of many headers": struct.pack("<H13Q", 1050, 2**40, 340 * 2**40, *[0] * 11),
    "bucket bytes": struct.pack("<H13Q", 1050, 0, 0, HUGE, *[0] * 10),
    "bucket stats": struct.pack("<H13QQ", 1050, *[0] * 13, HUGE),
    "bucket stats set": struct.pack("<H13QQQ", 1050, *[0] * 13, 1, HUGE),
    "bucket waveforms": struct.pack("<H13QQQ", 1050, *[0] * 10, HUGE, HUGE, HUGE, 0, 0),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_lengths_are_refused_before_memory_is_taken(case: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    text = failure(HOSTILE[case])
    number = int.from_bytes(HOSTILE[case][:2], "little")
    assert f"{MessageId(number).name} ({number})" in text
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB


def test_limits_name_the_field_to_raise() -> None:
    assert "Limits.acquisition" in failure(sent(readout(8, 128)), Limits(acquisition=8191))
    assert received(sent(readout(8, 128)))
    assert "Limits.acquisition" in failure(sent(readout(64, 512)), Limits(acquisition=64 * 512 * 8 - 1))
    assert "Limits.config" in failure(sent(Config(b"x" * 11)), Limits(config=10))
    assert "Limits.collection" in failure(sent(AcquisitionBucket([readout(8, 128)])), Limits(collection=4000))
    assert "Limits.meta" in failure(sent(AcquisitionBucket([readout(8, 128)])), Limits(meta=80))
    array = ImageArray(np.zeros((1, 1, 1, 1, 1, 1, 1), np.complex64), np.zeros((1, 1, 1), IMAGE_HEADER), [{"a": "b" * 100}])
    assert "Limits.meta" in failure(sent(array), Limits(meta=100))
    assert len(list(Decoder(Limits(config=11)).feed(sent(Config(b"x" * 11))))) == 1


def test_malformed_attributes_of_an_image_array_name_the_image() -> None:
    item = ImageArray(np.zeros((1, 1, 2, 1, 1, 1, 1), np.complex64), np.zeros((1, 1, 2), IMAGE_HEADER), [{"a": "1"}, {"b": "2"}])
    text = failure(sent(item).replace(b"<name>b</name>", b"<name>b</nam>>"))
    assert "image 1" in text


# -- fuzzing ---------------------------------------------------------------------------------------------------------------------------

TOTAL = 100_000


def seeds() -> list[bytes]:
    """One small message of every kind, and a short session."""
    rng = np.random.default_rng(0)
    buffer = ReconBuffer(
        np.ones((1, 1, 1, 2, 1, 3, 4), np.complex64),
        np.zeros((1, 1, 1, 1, 3), ACQUISITION_HEADER),
        blank(SAMPLING_DESCRIPTION),
        np.ones((1, 1, 1, 1, 3, 4, 2), np.float32),
        np.ones((1, 1, 1, 1, 3, 4), np.float32),
    )
    wave = Waveform(None, np.arange(6, dtype=np.uint32).reshape(2, 3))
    kinds: list[Message] = [
        Config(b"<a/>"),
        HeaderXml(b"<ismrmrdHeader/>"),
        Text("hello"),
        Query("gadgetron::info", 3),
        Response("4", 3),
        ErrorReport("bad"),
        readout(2, 8, 2),
        wave,
        Image(None, rng.standard_normal((1, 1, 2, 3)), {"k": "v", "l": ["1", "2"]}),
        ReconData([ReconBit(buffer, buffer)]),
        ImageArray(np.ones((1, 1, 2, 1, 1, 2, 3), np.complex64), np.zeros((1, 1, 2), IMAGE_HEADER), [{"a": "b"}, {}], [wave]),
        AcquisitionBucket([readout(2, 4, 2), readout(1, 3)], [readout(1, 2)], [wave]),
    ]
    single = [sent(message) for message in kinds]
    session = b"".join(map(sent, [Config(b"<a/>"), HeaderXml(b"<h/>"), readout(2, 8), wave, readout(1, 4, 3), Close()]))
    return [*single, session]


def mutate(rng: np.random.Generator, data: bytes) -> bytes:
    """Damage of one to three kinds, at random places; lengths are made extreme on purpose."""
    raw = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        kind, at = int(rng.integers(6)), int(rng.integers(len(raw) + 1))
        if kind == 0:
            raw[at : at + 1] = rng.bytes(1)
        elif kind == 1:
            extreme = (0, 1, 0xFF, 0xFFFF, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1)[int(rng.integers(9))]
            width = (1, 2, 4, 8)[int(rng.integers(4))]
            raw[at : at + width] = (extreme & (1 << 8 * width) - 1).to_bytes(width, "little")
        elif kind == 2:
            del raw[at:]
        elif kind == 3:
            del raw[at : at + int(rng.integers(1, 20))]
        elif kind == 4:
            raw[at:at] = rng.bytes(int(rng.integers(1, 20)))
        else:
            start = int(rng.integers(len(raw) + 1))
            raw[at:at] = raw[start : start + 64]
        if not raw:
            break
    return bytes(raw)


def test_fuzz() -> None:
    """100,000 damaged messages: each gives messages, a `WireError` or nothing; never another exception, never more memory."""
    rng = np.random.default_rng(20240607)
    corpus = seeds()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    outcomes = {"message": 0, "error": 0, "incomplete": 0}
    for i in range(TOTAL):
        decoder = Decoder()
        try:
            found = False
            for message in decoder.feed(mutate(rng, corpus[i % len(corpus)])):
                found = True
                if i % 16 == 0:
                    encode(message)  # what was accepted can be passed on
            decoder.end_of_stream()
        except EndOfStream:
            outcomes["message" if found else "incomplete"] += 1
        except WireError:
            outcomes["error"] += 1
    assert min(outcomes.values()) > TOTAL // 50, outcomes
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 256 << 10  # KiB


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=2000), st.sampled_from(list(MessageId)))
def test_random_bytes_behind_any_id(data: bytes, kind: MessageId) -> None:
    decoder = Decoder()
    try:
        for _ in decoder.feed(struct.pack("<H", kind) + data):
            pass
        decoder.end_of_stream()
    except WireError:
        pass
