"""The replaying client against small servers made here, so that what arrives and what comes back are both known."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from gadgets.items import Acquisition, Dicom, Image, Item, Text, Waveform
from gadgets.layout import Flag
from scripts import simulate
from service import client
from service.client import ClientError, ask, paced, replay
from service.files import read_images, read_measurement
from service.report import Departures, Report, is_error
from service.transport import Connection
from service.wire import Close, Config, ErrorReport, Filename, HeaderXml, Message, Query, Response, encode

DEADLINE = 30.0


class FakeServer:
    """Accepts one client on a free port and gives it to `handler`; keeps what arrived."""

    def __init__(self, handler: Callable[[Connection, list[Message]], None]) -> None:
        self.arrived: list[Message] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._handler = handler
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        sock, _ = self._listener.accept()
        try:
            with Connection.from_socket(sock) as connection:
                self._handler(connection, self.arrived)
        except BaseException as error:
            self._error = error

    def __enter__(self) -> FakeServer:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._listener.close()
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive(), "the fake server still runs"
        if self._error is not None and error[0] is None:
            raise self._error


def gather(connection: Connection, arrived: list[Message]) -> None:
    """Everything up to CLOSE."""
    arrived.extend(connection)


def image_of(acquisition: Acquisition, series: int = 1, dtype: type = np.float32) -> Image:
    """An image with the counters of a readout, its pixels the repetition."""
    repetition = int(acquisition.idx["repetition"])
    image = Image(None, np.full((1, 1, 4, 6), repetition + 1, dtype), {"name": f"repetition {repetition}"})
    image.header["repetition"] = repetition
    image.header["image_series_index"] = series
    return image


def one_image_a_repetition(connection: Connection, arrived: list[Message]) -> None:
    for message in connection:
        arrived.append(message)
        if isinstance(message, Acquisition) and message.is_flag_set(Flag.LAST_IN_REPETITION):
            connection.write(image_of(message))
    connection.write(Text("INFO     done"))
    connection.write(Close())


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("client") / "scan.h5"
    simulate.cartesian((16, 12), 2, acceleration=2, calibration_lines=4, repetitions=3, waveforms=True).save(path)
    return path


def items_of(messages: list[Message]) -> list[Item]:
    return [message for message in messages if isinstance(message, (Acquisition, Waveform))]


# -- what is sent ------------------------------------------------------------------------------------------------------


def test_the_whole_scan_arrives_in_order_and_the_images_are_kept(scan: Path, tmp_path: Path) -> None:
    output, pictures = tmp_path / "out.h5", tmp_path / "png"
    with FakeServer(one_image_a_repetition) as server:
        report = replay(
            scan, "default.xml", "127.0.0.1", server.port, output=output, out_group="run", pictures=pictures, animate=True, expect=3
        )
    assert report.ok
    assert report.problems == []
    measurement = read_measurement(scan)
    sent = list(measurement.items())
    assert server.arrived[:2] == [Filename("default.xml"), HeaderXml(measurement.header_xml)]
    received = items_of(server.arrived)
    assert len(received) == len(sent) == len(server.arrived) - 2
    for theirs, ours in zip(received, sent, strict=True):
        assert type(theirs) is type(ours)
        assert theirs.header.tobytes() == ours.header.tobytes()  # type: ignore[attr-defined]
        np.testing.assert_array_equal(theirs.data, ours.data)  # type: ignore[attr-defined]
    stamps = [int(i.time_stamp if isinstance(i, Waveform) else i.acquisition_time_stamp) for i in received]  # type: ignore[attr-defined]
    assert stamps == sorted(stamps)
    assert (report.readouts, report.waveforms) == (
        sum(isinstance(i, Acquisition) for i in sent),
        sum(isinstance(i, Waveform) for i in sent),
    )
    assert report.waveforms > 0
    assert report.texts == ["INFO     done"]
    assert report.series == {"1": {"images": 3, "type": "float32", "shapes": [[1, 1, 4, 6]]}}
    headers, attributes, data = read_images(output, "run")["image_1"]
    np.testing.assert_array_equal(data, np.arange(1, 4, dtype=np.float32)[:, None, None, None, None] * np.ones((1, 1, 1, 4, 6)))
    assert list(headers["repetition"]) == [0, 1, 2]
    assert b"repetition 2" in bytes(attributes[2])
    assert sorted(path.name for path in pictures.iterdir()) == [
        "series_001.gif",
        "series_001_image_0001.png",
        "series_001_image_0002.png",
        "series_001_image_0003.png",
        "series_001_mosaic.png",
    ]
    assert len(report.latency_ms) == 3
    assert all(value is not None and value >= 0 for value in report.latency_ms)


def test_a_local_config_is_sent_whole_and_parameters_follow_the_header(scan: Path, tmp_path: Path) -> None:
    config = tmp_path / "mine.xml"
    config.write_bytes(b"<configuration><version>2</version></configuration>")
    with FakeServer(one_image_a_repetition) as server:
        replay(scan, str(config), "127.0.0.1", server.port, parameters={"iterations": "7", "method@Recon": "gridding"})
    assert server.arrived[0] == Config(config.read_bytes())
    assert isinstance(server.arrived[1], HeaderXml)
    assert isinstance(server.arrived[2], Text)
    assert json.loads(server.arrived[2].text) == {"parameters": {"iterations": "7", "method@Recon": "gridding"}}
    assert isinstance(server.arrived[3], Acquisition)


@pytest.mark.parametrize("asked", [Filename("mine.xml"), Config(b"<configuration/>")])
def test_a_recorded_stream_is_replayed_as_it_came(asked: Message, tmp_path: Path) -> None:
    """With the config and the parameters of the client that had sent it."""
    scan = simulate.cartesian((16, 12), 2, acceleration=1)
    parameters = Text('{"parameters": {"iterations": 3}}')
    path = tmp_path / "scan.mrd"
    messages: list[Message] = [asked, HeaderXml(scan.header), parameters, *scan.items, Close()]
    path.write_bytes(b"".join(bytes(buffer) for message in messages for buffer in encode(message)))
    with FakeServer(one_image_a_repetition) as server:
        report = replay(path, None, "127.0.0.1", server.port)
    assert report.ok
    assert server.arrived[:2] == messages[:2]
    assert isinstance(server.arrived[2], Text)
    assert server.arrived[2].text == parameters.text
    assert (len(server.arrived), report.readouts, report.input_images) == (len(messages) - 1, len(scan.items), 0)


def test_without_a_config_an_hdf5_file_is_refused_before_anything_is_sent(scan: Path) -> None:
    with pytest.raises(ValueError, match="name one with -c"):
        replay(scan, None, "127.0.0.1", 1)


# -- what makes it fail ------------------------------------------------------------------------------------------------


def _error_text(connection: Connection, arrived: list[Message]) -> None:
    gather(connection, arrived)
    connection.write(Text("[Recon] ERROR: no calibration lines"))
    connection.write(Close())


def _error_after_images(connection: Connection, arrived: list[Message]) -> None:
    gather(connection, arrived)
    connection.write(image_of(arrived[-1]))  # type: ignore[arg-type]
    connection.write(Text("[Recon] ERROR: out of memory"))
    connection.write(Close())


def _error_message(connection: Connection, arrived: list[Message]) -> None:
    gather(connection, arrived)
    connection.write(ErrorReport("ValueError: bad"))
    connection.write(Close())


def _no_close(connection: Connection, arrived: list[Message]) -> None:
    gather(connection, arrived)
    connection.write(image_of(arrived[-1]))  # type: ignore[arg-type]


def _no_images(connection: Connection, arrived: list[Message]) -> None:
    gather(connection, arrived)
    connection.write(Close())


def _gone_at_once(connection: Connection, arrived: list[Message]) -> None:
    arrived.append(connection.read())


def _closed_early(connection: Connection, arrived: list[Message]) -> None:
    arrived.extend(connection.read() for _ in range(5))
    connection.write(image_of(arrived[-1]))  # type: ignore[arg-type]
    connection.write(Close())
    connection.drain(DEADLINE)


def _garbage(connection: Connection, arrived: list[Message]) -> None:
    connection.write_raw([b"HTTP/1.1 400 Bad Request\r\n\r\n"])
    connection.drain(DEADLINE)


def _two_types_in_one_series(connection: Connection, arrived: list[Message]) -> None:
    gather(connection, arrived)
    connection.write(image_of(arrived[-1]))  # type: ignore[arg-type]
    connection.write(image_of(arrived[-1], dtype=np.uint16))  # type: ignore[arg-type]
    connection.write(Close())


@pytest.mark.parametrize(
    ("handler", "reason"),
    [
        (_error_text, r"\[Recon\] ERROR: no calibration lines"),
        (_error_after_images, "out of memory"),
        (_error_message, "ValueError: bad"),
        (_no_close, "without CLOSE"),
        (_no_images, "no image came"),
        (_gone_at_once, "without CLOSE|closed the connection|broke"),
        (_closed_early, "ended the measurement after"),
        (_garbage, "cannot be read"),
        (_two_types_in_one_series, "cannot be kept.*image_series_index"),
    ],
)
def test_the_report_says_why_it_failed(
    handler: Callable[[Connection, list[Message]], None], reason: str, tmp_path: Path, long_scan: Path
) -> None:
    with FakeServer(handler) as server:
        report = replay(long_scan, "default.xml", "127.0.0.1", server.port, output=tmp_path / "out.h5")
    assert not report.ok
    assert any(re.search(reason, problem) for problem in report.problems), report.problems
    assert report.as_dict()["ok"] is False


@pytest.fixture(scope="module")
def long_scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More than fits into the socket buffers, so that a server that stops reading is noticed."""
    path = tmp_path_factory.mktemp("client") / "long.h5"
    simulate.cartesian((256, 64), 16, acceleration=1, repetitions=6).save(path)
    return path


def test_a_server_that_neither_reads_nor_writes_is_given_up(long_scan: Path) -> None:
    release = threading.Event()
    with FakeServer(lambda connection, arrived: release.wait(DEADLINE) and None) as server:
        report = replay(long_scan, "default.xml", "127.0.0.1", server.port, timeout_s=0.3)
        release.set()
    assert any("given up" in problem for problem in report.problems)


@pytest.mark.parametrize(("expect", "problem"), [(3, None), (2, "3 images came, 2 were expected"), (4, "3 images came, 4 were expected")])
def test_expected_images_are_counted(scan: Path, expect: int, problem: str | None) -> None:
    with FakeServer(one_image_a_repetition) as server:
        report = replay(scan, "default.xml", "127.0.0.1", server.port, expect=expect)
    assert report.problems == ([problem] if problem else [])


def test_a_chain_without_images_is_fine_when_none_is_expected(scan: Path, tmp_path: Path) -> None:
    with FakeServer(_no_images) as server:
        report = replay(scan, "default.xml", "127.0.0.1", server.port, expect=0, output=tmp_path / "out.h5")
    assert report.ok
    assert not (tmp_path / "out.h5").exists()


def test_a_damaged_file_is_not_taken_for_a_whole_scan(tmp_path: Path) -> None:
    """Sending stops without CLOSE, so that the server does not reconstruct half a scan as a whole one."""
    scan = simulate.cartesian((16, 12), 2, acceleration=1)
    whole = b"".join(bytes(b) for m in (HeaderXml(scan.header), *scan.items) for b in encode(m))
    path = tmp_path / "cut.mrd"
    path.write_bytes(whole[:-100])
    with FakeServer(lambda connection, arrived: arrived.append(connection.drain(DEADLINE))) as server:  # type: ignore[arg-type]
        report = replay(path, "default.xml", "127.0.0.1", server.port)
    assert any(problem.startswith("sending failed after") for problem in report.problems), report.problems


# -- connecting --------------------------------------------------------------------------------------------------------


def _bound() -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    return sock


def test_nobody_listening_is_said_with_the_remedy(scan: Path) -> None:
    with _bound() as sock:
        port = sock.getsockname()[1]
        with pytest.raises(ClientError, match=rf"nothing listens on 127.0.0.1:{port} .*reconstream serve"):
            replay(scan, "default.xml", "127.0.0.1", port, wait_s=0)


def test_a_server_that_starts_late_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with _bound() as sock:
        monkeypatch.setattr(client.time, "sleep", lambda seconds: sock.listen())
        client.connect("127.0.0.1", sock.getsockname()[1], wait_s=DEADLINE).close()


def test_a_query_is_answered() -> None:
    def answer(connection: Connection, arrived: list[Message]) -> None:
        query = connection.read()
        arrived.append(query)
        assert isinstance(query, Query)
        connection.write(Response("4.7", query.correlation))
        gather(connection, arrived)

    with FakeServer(answer) as server:
        assert ask("127.0.0.1", server.port, "gadgetron::version") == "4.7"
    assert isinstance(server.arrived[0], Query)
    assert server.arrived[0].key == "gadgetron::version"


def test_a_query_to_something_else_fails() -> None:
    with FakeServer(_garbage) as server, pytest.raises(ClientError, match="does not answer a query"):
        ask("127.0.0.1", server.port)


def test_dicom_files_cannot_leave_their_folder(scan: Path, tmp_path: Path) -> None:
    def dicom(connection: Connection, arrived: list[Message]) -> None:
        gather(connection, arrived)
        connection.write(Dicom(b"DICM", "../../etc/pass wd"))
        connection.write(Close())

    with FakeServer(dicom) as server:
        report = replay(scan, "default.xml", "127.0.0.1", server.port, output=tmp_path / "out" / "images.h5")
    assert report.ok
    assert report.dicoms == [str(tmp_path / "out" / "pass_wd.dcm")]
    assert Path(report.dicoms[0]).read_bytes() == b"DICM"


# -- pacing and latency ------------------------------------------------------------------------------------------------


def _readout(stamp: int, **counters: int) -> Acquisition:
    acquisition = Acquisition(None, np.zeros((1, 2), np.complex64))
    acquisition.header["acquisition_time_stamp"] = stamp
    for name, value in counters.items():
        acquisition.header["idx"][name] = value
    return acquisition


def test_the_pace_is_that_of_the_time_stamps(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(client.time, "perf_counter", lambda: now[0])

    def pause(seconds: float) -> None:
        now[0] += seconds

    stamps = [50, 54, 54, 60, 50_000, 50_002]
    left = []
    for _ in paced([_readout(stamp) for stamp in stamps], 2.5, pause):
        left.append(now[0] - 100)
        now[0] += 0.001  # sending takes a while, and the delay does not add up
    # 2.5 ms a tick; the long gap is cut to 2 s.
    np.testing.assert_allclose(left, [0, 0.010, 0.011, 0.025, 2.025, 2.030], atol=1e-9)


def test_latency_is_measured_from_the_last_readout_with_the_images_counters() -> None:
    departures = Departures()
    noise = _readout(0)
    noise.set_flag(Flag.IS_NOISE_MEASUREMENT)
    for seconds, item in [(1.0, _readout(1)), (2.0, _readout(2)), (3.0, _readout(3, repetition=1)), (4.0, noise)]:
        departures.add(item, seconds)
    first, second, unknown = (image_of(_readout(0, repetition=r)).header for r in (0, 1, 2))
    assert departures.latency_ms(first, 2.25) == pytest.approx(250)
    assert departures.latency_ms(second, 3.5) == pytest.approx(500)
    # Of a group that the chain cut into several images, or that does not exist, the needed readout is not known.
    assert departures.latency_ms(first, 1.5) is None
    assert departures.latency_ms(unknown, 9.0) is None


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("[Recon] ERROR: singular matrix", True),
        ("ERROR   Traceback (most recent call last)", True),
        ("CRITICAL out of memory", True),
        ("first line\n[Connection] ERROR: map::at", True),
        ("INFO     no ERROR found", False),
        ("WARNING  ERROR bars are wide", False),
        ("WARNING: ERRORS are counted", False),
        ("calibration error 0.1 %", False),
        ("", False),
    ],
)
def test_error_texts_are_told_from_log_lines(text: str, error: bool) -> None:
    assert is_error(text) is error


def test_the_report_summarises() -> None:
    report = Report("scan.h5", "x.xml", "here", readouts=500, images=4, send_ms=250.0, latency_ms=[10.0, None, 20.0, 30.0])
    summary = report.summary()
    assert summary["readouts_per_s"] == pytest.approx(2000)
    assert summary["latency_ms"] == {"median": 20.0, "p99": pytest.approx(29.8), "max": 30.0, "images": 3}


@pytest.fixture(autouse=True)
def _no_threads_left() -> Iterator[None]:
    before = threading.active_count()
    yield
    assert threading.active_count() <= before, [thread.name for thread in threading.enumerate()]
