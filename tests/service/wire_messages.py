"""Messages of every kind, drawn by hypothesis, and what it means for two of them to be equal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from hypothesis import strategies as st

from gadgets.items import (
    Acquisition,
    AcquisitionBucket,
    DependencyQuery,
    Dicom,
    Image,
    ImageArray,
    ReconBit,
    ReconBuffer,
    ReconData,
    Stats,
    Text,
    Waveform,
)
from gadgets.layout import ACQUISITION_HEADER, ELEMENT_TYPES, IMAGE_HEADER, SAMPLING_DESCRIPTION, WAVEFORM_HEADER, Flag
from service.wire import Close, Config, Decoder, ErrorReport, Filename, HeaderXml, Message, Query, Response, encode

COMPRESSED = Flag.COMPRESSION1.mask | Flag.COMPRESSION2.mask
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
# What XML 1.0 can carry and a parser gives back unchanged.
XML_TEXTS = st.text(st.characters(min_codepoint=33, max_codepoint=0xD7FF, exclude_categories=["Cs", "Cc", "Zs"]), max_size=12)


def sent(message: Message) -> bytes:
    """The message as the bytes of its buffers."""
    return b"".join(map(bytes, encode(message)))


def received(data: bytes) -> list[Message]:
    """The messages in `data`, which must hold nothing else."""
    decoder = Decoder()
    messages = list(decoder.feed(data))
    assert decoder.next_message() is None
    return messages


def random_headers(rng: np.random.Generator, dtype: np.dtype, shape: tuple[int, ...] = ()) -> np.ndarray:
    """Headers of random bits, without the flags that mean compression and without padding."""
    headers = np.zeros(shape, dtype)
    random = np.frombuffer(rng.bytes(headers.size * dtype.itemsize), dtype).reshape(shape)
    for name in dtype.names or ():
        headers[name] = random[name]
    if "flags" in (dtype.names or ()):
        headers["flags"] &= np.uint64(~COMPRESSED & (1 << 64) - 1)
    return headers


def numbers(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Any bit patterns: NaN, infinities and denormals too."""
    dtype = np.dtype(dtype)
    return np.frombuffer(rng.bytes(int(np.prod(shape)) * dtype.itemsize), dtype).reshape(shape).copy()


@st.composite
def acquisitions(draw: st.DrawFn, largest: int = 60) -> Acquisition:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    channels, samples, dims = draw(st.integers(0, 6)), draw(st.integers(0, largest)), draw(st.integers(0, 3))
    item = Acquisition(
        random_headers(rng, ACQUISITION_HEADER)[()],
        numbers(rng, (channels, samples), "<c8"),
        numbers(rng, (samples, dims), "<f4") if dims else None,
    )
    item.agree()
    return item


@st.composite
def waveforms(draw: st.DrawFn) -> Waveform:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    data = numbers(rng, (draw(st.integers(0, 4)), draw(st.integers(0, 30))), "<u4")
    item = Waveform(random_headers(rng, WAVEFORM_HEADER)[()], data)
    item.header["channels"], item.header["number_of_samples"] = data.shape
    return item


def metas() -> st.SearchStrategy[dict[str, str | list[str]]]:
    names = XML_TEXTS.filter(bool)
    return st.dictionaries(names, XML_TEXTS | st.lists(XML_TEXTS, min_size=2, max_size=3), max_size=3)


@st.composite
def images(draw: st.DrawFn) -> Image:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    dtype = ELEMENT_TYPES[draw(st.integers(1, 8))]
    shape = tuple(draw(st.lists(st.integers(0, 5), min_size=4, max_size=4)))
    return Image(random_headers(rng, IMAGE_HEADER)[()], numbers(rng, shape, dtype), draw(metas()))


def stats() -> st.SearchStrategy[Stats]:
    return st.builds(Stats, st.fixed_dictionaries({name: st.sets(st.integers(0, 65535), max_size=4) for name in Stats.FIELDS}))


def buckets() -> st.SearchStrategy[AcquisitionBucket]:
    readouts = st.lists(acquisitions(12), max_size=4)
    return st.builds(
        AcquisitionBucket,
        readouts,
        readouts,
        st.lists(waveforms(), max_size=3),
        st.lists(stats(), max_size=2),
        st.lists(stats(), max_size=2),
    )


@st.composite
def buffers(draw: st.DrawFn) -> ReconBuffer:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    loc, s, n, cha, e2, e1, e0 = (draw(st.integers(0, 3)) for _ in range(7))
    trajectory = numbers(rng, (loc, s, n, e2, e1, e0, 2), "<f4") if draw(st.booleans()) else None
    density = numbers(rng, (loc, s, n, e2, e1, e0), "<f4") if draw(st.booleans()) else None
    sampling = random_headers(rng, SAMPLING_DESCRIPTION)[()]
    data = numbers(rng, (loc, s, n, cha, e2, e1, e0), "<c8")
    return ReconBuffer(data, random_headers(rng, ACQUISITION_HEADER, (loc, s, n, e2, e1)), sampling, trajectory, density)


def recon_data() -> st.SearchStrategy[ReconData]:
    return st.builds(ReconData, st.lists(st.builds(ReconBit, buffers(), st.none() | buffers()), max_size=2))


@st.composite
def image_arrays(draw: st.DrawFn) -> ImageArray:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    loc, s, n, cha, z, y, x = (draw(st.integers(1, 3)) for _ in range(7))
    count = loc * s * n
    return ImageArray(
        numbers(rng, (loc, s, n, cha, z, y, x), "<c8"),
        random_headers(rng, IMAGE_HEADER, (loc, s, n)),
        draw(st.lists(metas(), min_size=count, max_size=count)),
        draw(st.none() | st.lists(waveforms(), max_size=2)),
        random_headers(rng, ACQUISITION_HEADER, (loc, s, n, z, y)) if draw(st.booleans()) else None,
    )


def xml() -> st.SearchStrategy[bytes]:
    return st.binary(max_size=60).map(lambda raw: raw.rstrip(b"\0"))


KINDS: dict[str, Callable[[], st.SearchStrategy[Any]]] = {
    "filename": lambda: st.builds(Filename, TEXTS),
    "config": lambda: st.builds(Config, xml()),
    "header": lambda: st.builds(HeaderXml, xml()),
    "close": lambda: st.just(Close()),
    "text": lambda: st.builds(Text, TEXTS),
    "query": lambda: st.builds(Query, TEXTS, st.integers(0, 2**64 - 1)),
    "response": lambda: st.builds(Response, TEXTS, st.integers(0, 2**64 - 1)),
    "error": lambda: st.builds(ErrorReport, TEXTS),
    "acquisition": acquisitions,
    "dicom": lambda: st.builds(Dicom, st.binary(max_size=40), TEXTS, xml()),
    "dependency_query": lambda: st.builds(DependencyQuery, metas()),
    "image": images,
    "recon_data": recon_data,
    "image_array": image_arrays,
    "waveform": waveforms,
    "bucket": buckets,
}


def messages() -> st.SearchStrategy[Message]:
    """Any message."""
    return st.one_of(*(make() for make in KINDS.values()))


def content(value: Any) -> Any:
    """What a message holds, bit by bit, as something that compares with ==. Time stamps of arrival are not part of it."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, np.void):
        return {name: np.asarray(value[name]).tobytes() for name in value.dtype.names or ()}
    if isinstance(value, list | tuple):
        return [content(one) for one in value]
    if isinstance(value, Image):
        header = {k: v for k, v in content(value.header).items() if k != "attribute_string_len"}
        return "Image", header, content(value.data), value.meta
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ()) if name not in ("received", "triggered")]
    names = slots or list(getattr(value, "__dict__", {}))
    return (type(value).__name__, {name: content(getattr(value, name)) for name in names}) if names else value
