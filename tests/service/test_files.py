"""Files against `ismrmrd`'s own reader and writer, and against what a real Gadgetron client wrote."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import h5py
import ismrmrd
import numpy as np
import pytest

from gadgets.items import Acquisition, AcquisitionBucket, Image, Item, Text, Waveform
from gadgets.layout import ACQUISITION_HEADER, ELEMENT_TYPES, IMAGE_HEADER
from service.files import BLOCK, FileError, ImageWriter, read_images, read_measurement, write_measurement
from service.wire import Close, Config, EndOfStream, Filename, HeaderXml, Message, Query
from tests.service.wire_messages import content, sent

XML = b"<ismrmrdHeader><a/></ismrmrdHeader>"


def readout(i: int, time: int = 0, channels: int = 2, samples: int = 8, dims: int = 0) -> Acquisition:
    rng = np.random.default_rng(i)
    data = rng.standard_normal((channels, 2 * samples), dtype=np.float32).view(np.complex64)
    item = Acquisition(None, data, rng.standard_normal((samples, dims), dtype=np.float32) if dims else None)
    item.header["scan_counter"], item.header["acquisition_time_stamp"] = i, time
    item.header["user_float"][:] = i + 0.5
    item.header["idx"]["user"][3] = i
    return item


def waveform(i: int, time: int, channels: int = 1) -> Waveform:
    item = Waveform(None, np.arange(channels * 3, dtype=np.uint32).reshape(channels, 3) + i)
    item.header["scan_counter"], item.header["time_stamp"], item.header["waveform_id"] = i, time, 1024 + i
    return item


def image(series: int, index: int = 1, dtype: Any = np.float32, shape: tuple[int, ...] = (1, 1, 4, 6), **meta: str) -> Image:
    data = (np.arange(np.prod(shape)).reshape(shape) + index).astype(dtype)
    item = Image(None, data, dict(meta))
    item.header["image_series_index"], item.header["image_index"] = series, index
    return item


def scan(count: int = 2 * BLOCK + 3) -> list[Item]:
    """Readouts of varied size, with and without trajectory; as `write_measurement` keeps them."""
    return [readout(i, i * 10, 1 + i % 3, 4 + i % 5, i % 4) for i in range(count)]


def contents(items: Any) -> list[Any]:
    return [content(item) for item in items]


# -- HDF5 in ---------------------------------------------------------------------------------------------------------------------------


def test_reads_what_ismrmrd_wrote(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    items = [item for item in scan(20) if isinstance(item, Acquisition)]
    with closing(ismrmrd.Dataset(str(path), "dataset")) as dataset:
        dataset.write_xml_header(XML)
        for item in items:
            dataset.append_acquisition(item.to_ismrmrd())
        dataset.append_waveform(waveform(7, 35, 2).to_ismrmrd())
    measurement = read_measurement(path)
    assert measurement.header_xml == XML
    assert measurement.count == 21
    assert contents(measurement.items()) == contents([*items[:4], waveform(7, 35, 2), *items[4:]])
    assert contents(measurement.items()) == contents(measurement.items())  # from the start again


def test_ismrmrd_reads_what_we_wrote(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    items = scan()
    write_measurement(path, XML + b"\0", [*items, waveform(1, 5), waveform(2, 5, 3)])
    with closing(ismrmrd.Dataset(str(path), "dataset", False)) as dataset:
        assert dataset.read_xml_header() == XML
        assert dataset.number_of_acquisitions() == len(items)
        for i in (0, 1, BLOCK - 1, BLOCK, len(items) - 1):
            assert contents([Acquisition.from_ismrmrd(dataset.read_acquisition(i))]) == contents([items[i]])
        assert contents([Waveform.from_ismrmrd(dataset.read_waveform(1))]) == contents([waveform(2, 5, 3)])
    with ismrmrd.File(path, "r") as file:
        assert len(file["dataset"].acquisitions[:]) == len(items)
    assert contents(item for item in read_measurement(path).items() if isinstance(item, Acquisition)) == contents(items)


def test_types_in_the_file_are_those_of_ismrmrd(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.h5", tmp_path / "theirs.h5"
    write_measurement(ours, XML, [readout(0), waveform(0, 0)])
    with closing(ismrmrd.Dataset(str(theirs))) as dataset:
        dataset.write_xml_header(XML)
        dataset.append_acquisition(readout(0).to_ismrmrd())
        dataset.append_waveform(waveform(0, 0).to_ismrmrd())
    with h5py.File(ours) as mine, h5py.File(theirs) as other:
        for name in ("xml", "data", "waveforms"):
            assert mine["dataset"][name].id.get_type().equal(other["dataset"][name].id.get_type()), name
            assert mine["dataset"][name].shape == other["dataset"][name].shape


def test_waveforms_come_before_the_first_younger_readout(tmp_path: Path) -> None:
    """As the C++ client sends them: strictly older first, what is left behind the last readout."""
    path = tmp_path / "scan.h5"
    write_measurement(
        path, XML, [readout(i, t) for i, t in enumerate([10, 10, 20, 30])] + [waveform(i, t) for i, t in enumerate([5, 10, 15, 30, 31])]
    )
    order = [(type(item).__name__[0], int(item.header["scan_counter"])) for item in read_measurement(path).items()]  # type: ignore[attr-defined]
    assert order == [("W", 0), ("A", 0), ("A", 1), ("W", 1), ("W", 2), ("A", 2), ("A", 3), ("W", 3), ("W", 4)]


def test_headers_may_be_kept_and_changed(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    write_measurement(path, XML, scan())
    items = list(read_measurement(path).items())
    for item in items:
        assert isinstance(item, Acquisition)
        item.set_flag(3)
        item.data[:] = 0
    assert contents(read_measurement(path).items()) == contents(scan())


def test_stored_images_flow_only_without_readouts_unless_asked(tmp_path: Path) -> None:
    path = tmp_path / "images.h5"
    with ImageWriter(path, "dataset") as writer:
        for i in range(3):
            writer.append(image(2, i, a=str(i)))
    measurement = read_measurement(path)
    assert (measurement.count, measurement.header_xml) == (3, b"")
    assert contents(measurement.items()) == contents(image(2, i, a=str(i)) for i in range(3))

    both = tmp_path / "both.h5"
    write_measurement(both, XML, [readout(0)])
    with ImageWriter(both, "dataset") as writer:
        writer.append(image(1))
    assert [type(item) for item in read_measurement(both).items()] == [Acquisition]
    assert [type(item) for item in read_measurement(both, images=True).items()] == [Acquisition, Image]
    assert read_measurement(both, images=True).count == 2


def damaged(change: Callable[[h5py.Group], None]) -> Callable[[Path], None]:
    def make(path: Path) -> None:
        write_measurement(path, XML, [readout(0), readout(1), waveform(0, 0)])
        with h5py.File(path, "a") as file:
            change(file["dataset"])

    return make


def shorten(node: h5py.Group) -> None:
    row = node["data"][1]
    row["data"] = row["data"][:-2]
    node["data"][1] = row


def shorten_waveform(node: h5py.Group) -> None:
    row = node["waveforms"][0]
    row["data"] = row["data"][:-1]
    node["waveforms"][0] = row


def plain(node: h5py.Group) -> None:
    del node["data"]
    node["data"] = np.zeros((4, 4))


def rewrite_heads(node: h5py.Group, head: np.dtype) -> None:
    """The same readouts with headers of another type."""
    rows = node["data"][()]
    kinds = rows.dtype
    other = np.empty(len(rows), np.dtype([("head", head), *((name, kinds[name]) for name in ("traj", "data"))]))
    for name in set(head.names or ()) & set(rows["head"].dtype.names or ()):
        other["head"][name] = rows["head"][name]
    other["traj"], other["data"] = rows["traj"], rows["data"]
    del node["data"]
    node["data"] = other


def test_headers_of_another_order_and_alignment(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    write_measurement(path, XML, scan(5))
    fields = [(name, ACQUISITION_HEADER[name]) for name in reversed(ACQUISITION_HEADER.names or ())]
    with h5py.File(path, "a") as file:
        rewrite_heads(file["dataset"], np.dtype([*fields, ("extra", "<u2")], align=True))
    assert contents(read_measurement(path).items()) == contents(scan(5))


def headers_without_idx(node: h5py.Group) -> None:
    rewrite_heads(node, np.dtype([(name, ACQUISITION_HEADER[name]) for name in ACQUISITION_HEADER.names or () if name != "idx"]))


def empty(node: h5py.Group) -> None:
    for name in ("data", "waveforms", "xml"):
        del node[name]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (damaged(lambda node: node.__delitem__("xml")), r"no header \(xml\)"),
        (damaged(empty), "no readouts"),
        (damaged(shorten), "readout 1: the header says 2 channels x 8 samples .* 15 samples"),
        (damaged(shorten_waveform), "waveform 0"),
        (damaged(headers_without_idx), "the headers lack idx"),
        (damaged(plain), "needs the fields head and data"),
        (lambda path: h5py.File(path, "w").create_group("other").file.close(), "no group 'dataset'; the file has: other"),
        (lambda path: path.write_bytes(b"hello, world"), "neither an HDF5 file nor a recorded ISMRMRD stream"),
        (lambda path: path.write_bytes(b""), "neither an HDF5 file nor"),
        (lambda path: path.write_bytes(sent(readout(0)) + sent(Close())), "begins with Acquisition"),
        (lambda path: path.write_bytes(sent(Close())), "begins with Close"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, make: Callable[[Path], None], reason: str) -> None:
    path = tmp_path / "file"
    make(path)
    with pytest.raises(FileError, match=reason) as caught:
        list(read_measurement(path).items())
    assert str(path) in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing"):
        read_measurement(tmp_path / "nothing.h5")


# -- recorded streams ------------------------------------------------------------------------------------------------------------------

STREAM: list[Message] = [
    Filename("default.xml"),
    Query("gadgetron::info", 1),
    HeaderXml(XML),
    Text("{}"),
    *scan(5),
    waveform(0, 3),
    image(1),
]


def test_recorded_stream(tmp_path: Path) -> None:
    path = tmp_path / "scan.mrd"
    path.write_bytes(b"".join(map(sent, [*STREAM, Close()])))
    measurement = read_measurement(path)
    assert (measurement.header_xml, measurement.config, measurement.count) == (XML, Filename("default.xml"), None)
    for _ in range(2):
        assert contents(measurement.items()) == contents(STREAM[3:])


def test_stream_that_was_cut_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """All whole messages, then an error; a file that was being recorded may end so, and says it in the log."""
    raw = b"".join(map(sent, [Config(b"<a/>"), *STREAM[2:], readout(9)]))[:-3]
    for name in ("scan.bin", "scan.part"):
        (tmp_path / name).write_bytes(raw)
    items = read_measurement(tmp_path / "scan.bin").items()
    assert contents(next(items) for _ in STREAM[3:]) == contents(STREAM[3:])
    with pytest.raises(EndOfStream, match="in the middle of ACQUISITION"):
        next(items)
    assert contents(read_measurement(tmp_path / "scan.part").items()) == contents(STREAM[3:])
    assert "in the middle of ACQUISITION" in caplog.text


# -- images out ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ELEMENT_TYPES.values(), ids=str)
def test_ismrmrd_reads_our_images(tmp_path: Path, dtype: np.dtype) -> None:
    path = tmp_path / "out.h5"
    items = [image(3, i, dtype, (2, 1, 4, 6), name=f"é{i}") for i in range(3)]
    with ImageWriter(path, "recon") as writer:
        for item in items:
            writer.append(item)
        assert writer.count == 3
    headers, attributes, data = read_images(path)["image_3"]
    assert data.dtype == dtype
    assert np.array_equal(data, np.stack([item.data for item in items]))
    assert headers["image_index"].tolist() == [0, 1, 2]
    assert all(one.isascii() for one in attributes)
    assert contents(read_measurement(path, "recon").items()) == contents(items)
    if dtype == np.int32:
        return  # ismrmrd takes it for 64-bit integers
    with closing(ismrmrd.Dataset(str(path), "recon", False)) as dataset:
        assert dataset.number_of_images("image_3") == 3
        theirs = dataset.read_image("image_3", 1)
    assert np.array_equal(theirs.data, items[1].data)
    assert theirs.meta["name"] == "é1"
    if dtype.kind != "c":  # ismrmrd.File cannot read complex images, those of the C++ library neither
        with ismrmrd.File(path, "r") as file:
            assert len(file["recon/image_3"].images[:]) == 3


def test_series_are_kept_apart_and_files_added_to(tmp_path: Path) -> None:
    path = tmp_path / "out.h5"
    with ImageWriter(path) as writer:
        writer.append(image(1))
        writer.append(image(2, dtype=np.uint16, shape=(1, 2, 3, 4)))
        group = writer.group
        assert len(group) == len("2026-01-31 12:00:00")
    with ImageWriter(path, group) as writer:
        writer.append(image(1, 2))
    assert {name: data.shape for name, (_, _, data) in read_images(path).items()} == {
        "image_1": (2, 1, 1, 4, 6),
        "image_2": (1, 1, 2, 3, 4),
    }


@pytest.mark.parametrize("other", [image(1, shape=(1, 1, 4, 5)), image(1, dtype=np.uint16)], ids=["size", "type"])
def test_image_that_does_not_fit_its_series(tmp_path: Path, other: Image) -> None:
    with ImageWriter(tmp_path / "out.h5", "g") as writer:
        writer.append(image(1))
        with pytest.raises(FileError, match="their own image_series_index"):
            writer.append(other)
        writer.append(image(1, 2))
    assert len(read_images(tmp_path / "out.h5")["image_1"][0]) == 2


def test_nuls_and_other_alphabets_in_attributes(tmp_path: Path) -> None:
    meta = "<ismrmrdMeta><meta><name>k</name><value>Größe</value></meta></ismrmrdMeta>\0".encode()
    with ImageWriter(tmp_path / "out.h5", "g") as writer:
        writer.append(Image(None, np.zeros((1, 1, 2, 2), np.float32), meta))
    (item,) = read_measurement(tmp_path / "out.h5", "g").items()
    assert isinstance(item, Image)
    assert item.meta == {"k": "Größe"}


def test_group_must_be_named_when_there_are_several(tmp_path: Path) -> None:
    path = tmp_path / "out.h5"
    for group in ("first", "a/second"):
        with ImageWriter(path, group) as writer:
            writer.append(image(1))
    for group in (None, "third"):
        with pytest.raises(FileError, match="a/second, first"):
            read_images(path, group)
    assert list(read_images(path, "a/second")) == ["image_1"]


def test_buckets_are_no_measurement(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="AcquisitionBucket cannot be kept"):
        write_measurement(tmp_path / "x.h5", XML, [AcquisitionBucket()])


# -- reference material ----------------------------------------------------------------------------------------------------------------


def test_layout_of_a_real_client(shared: Path, tmp_path: Path) -> None:
    """What a real client stored, written again by us, has the same names, types and values."""
    path, group = shared / "reference/gadgetron/outputs.h5", "shepp_r2/Generic_Cartesian_Grappa"
    ours = tmp_path / "ours.h5"
    with ImageWriter(ours, group) as writer:
        for item in read_measurement(path, group).items():
            assert isinstance(item, Image)
            writer.append(item)
    with h5py.File(path) as theirs, h5py.File(ours) as mine:
        assert list(theirs[group]) == list(mine[group]) == ["image_1"]
        for name in ("header", "attributes", "data"):
            one, other = theirs[group]["image_1"][name], mine[group]["image_1"][name]
            assert one.shape == other.shape
            assert one.id.get_type().equal(other.id.get_type()), name
            if name == "data":
                assert np.array_equal(one[()], other[()])
            if name == "header":
                same = [field for field in IMAGE_HEADER.names or () if field != "attribute_string_len"]
                assert all(np.array_equal(one[()][field], other[()][field]) for field in same)


@pytest.mark.parametrize("name", ["cartesian_grappa_r3", "radial_phantom_4ch", "realtime_spiral"])
def test_real_files_read_as_ismrmrd_does(shared: Path, tmp_path: Path, name: str) -> None:
    # A copy, because ismrmrd 1.14 opens files for writing.
    path = tmp_path / f"{name}.h5"
    path.write_bytes((shared / "data" / path.name).read_bytes())
    measurement = read_measurement(path)
    items = list(measurement.items())
    assert len(items) == measurement.count
    with closing(ismrmrd.Dataset(str(path), "dataset", False)) as dataset:
        assert measurement.header_xml == bytes(dataset.read_xml_header()).rstrip(b"\0")
        assert dataset.number_of_acquisitions() == len(items)
        for i in (0, 1, len(items) // 2, len(items) - 1):
            assert contents([Acquisition.from_ismrmrd(dataset.read_acquisition(i))]) == contents([items[i]])
