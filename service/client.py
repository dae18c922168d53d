"""Replay a raw-data file to a server as a scanner would: readouts out, images in, over Gadgetron's client protocol.

Sent are CONFIG (or the name of one of the server's configs), HEADER, parameters as JSON TEXT, readouts and waveforms in the order of
time, CLOSE. A second thread takes what comes back.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from gadgets.header import Header
from gadgets.items import Acquisition, Image, Item, Text, Waveform
from service.chain import config_file
from service.collect import Collector
from service.files import Measurement, read_measurement
from service.outputs import check_outputs
from service.report import Report
from service.transport import Connection
from service.wire import Close, Config, EndOfStream, ErrorReport, Filename, HeaderXml, Message, Query, Response, WireError

TICK_MS = 2.5
LONGEST_PAUSE_S = 2.0
RETRY_S = 0.1
LEAVE_S = 10.0  # what the other thread gets to end by itself when one has ended

Progress = Callable[[int, int], None]
"""Called with the number of items sent and of images received."""


class ClientError(RuntimeError):
    """The server cannot be reached, or does not answer."""


def replay(
    file: str | Path,
    config: str | bytes | None,
    host: str = "localhost",
    port: int = 9002,
    *,
    output: Path | None = None,
    out_group: str | None = None,
    in_group: str = "dataset",
    pictures: Path | None = None,
    animate: bool = False,
    realtime: bool = False,
    parameters: Mapping[str, str] | None = None,
    expect: int | None = None,
    wait_s: float = 10.0,
    timeout_s: float = 900.0,
    progress: Progress | None = None,
) -> Report:
    """Send one file through a server and collect what comes back.

    Args:
        file: ISMRMRD HDF5, or a raw stream that ``serve --spool`` kept.
        config: path of a local config (sent as it is), its XML as bytes, or the name of a config of the server's; None: the one that
            a recorded stream asked for.
        output, out_group, pictures, animate: see `Collector`.
        realtime: send at the pace of the scan (see `paced`).
        parameters: property values that override the config's, sent as JSON: ``{"property": ...}`` or ``{"property@gadget": ...}``.
        expect: number of images that must come; None: at least one.
        wait_s: how long to try again while nothing listens on the port.
        timeout_s: silence in both directions after which the server is given up.

    Returns:
        Report; its ``ok`` is False when anything is missing. A server's failure is reported there, not raised.

    Raises:
        ClientError: nothing listens there.
        OSError, ValueError: the file cannot be read, no config is known, or the outputs cannot be written.
    """
    measurement = read_measurement(file, in_group)
    config = chosen_config(measurement, config)
    check_outputs(measurement.path, output, pictures)
    messages = list(opening(measurement.header_xml, config, parameters or {}))
    report = Report(
        file=str(file), config=config if isinstance(config, str) else "(XML)", door=f"{host}:{port}", expected_images=expect, paced=realtime
    )
    sock = connect(host, port, wait_s)
    collector = Collector(report, output=output, group=out_group, pictures=pictures, animate=animate)
    exchange = _Exchange(sock, collector, timeout_s, progress)
    items = measurement.items()
    if realtime:
        items = paced(items, tick_ms(measurement.header_xml), exchange.over.wait)
    exchange.run(messages, items, measurement.count)
    collector.finish()
    return report


def connect(host: str, port: int, wait_s: float) -> socket.socket:
    """Connect, trying again while the connection is refused (a server that starts). Raises `ClientError`."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return socket.create_connection((host, port), timeout=max(wait_s, 5.0))
        except ConnectionRefusedError as error:
            if time.monotonic() >= deadline:
                raise ClientError(
                    f"nothing listens on {host}:{port} (tried for {wait_s:g} s); start a server with `reconstream serve --port {port}`"
                ) from error
            time.sleep(RETRY_S)
        except OSError as error:
            raise ClientError(f"cannot connect to {host}:{port}: {error.strerror or error}") from error


def ask(host: str, port: int, key: str = "gadgetron::info", *, wait_s: float = 0.0, timeout_s: float = 5.0) -> str:
    """Put a QUERY to a server and return its answer. Raises `ClientError`."""
    connection = Connection.from_socket(connect(host, port, wait_s), read_timeout=timeout_s, write_timeout=timeout_s)
    try:
        connection.write(Query(key, 1))
        message = connection.read()
        connection.write(Close())
    except (OSError, WireError) as error:
        raise ClientError(f"{host}:{port} does not answer a query ({error})") from error
    finally:
        connection.close()
    if not isinstance(message, Response):
        raise ClientError(f"{host}:{port} answers a query with {type(message).__name__}; is it a Gadgetron server?")
    return message.text


def chosen_config(measurement: Measurement, config: str | bytes | None) -> str | bytes:
    """The given config, or the one that a recorded stream asked for. Raises ValueError when there is neither."""
    if config is not None:
        return config
    if isinstance(measurement.config, Config):
        return measurement.config.xml
    if isinstance(measurement.config, Filename):
        return measurement.config.name
    raise ValueError(f"{measurement.path} does not say which config to use; name one with -c (`reconstream list` shows them)")


def opening(header: bytes, config: str | bytes, parameters: Mapping[str, str]) -> Iterator[Message]:
    """The messages before the data: config, header, parameters."""
    path = None if isinstance(config, bytes) else config_file(config)
    if isinstance(config, bytes):
        yield Config(config)
    elif path is not None:
        yield Config(path.read_bytes())
    else:
        yield Filename(config)
    yield HeaderXml(header)
    if parameters:
        yield Text(json.dumps({"parameters": dict(parameters)}))


def tick_ms(header: bytes) -> float:
    """Length of a tick of the time stamps: the header's user parameter ``time_stamp_tick_ms``, else Siemens' 2.5 ms."""
    try:
        return float(Header(header).user_parameters.get("time_stamp_tick_ms", TICK_MS))
    except ValueError:  # whether a header is good is for the server to say
        return TICK_MS


def paced(items: Iterable[Item], tick: float, pause: Callable[[float], object]) -> Iterator[Item]:
    """The items at the pace of the scan: each waits until its time stamp's distance from the first item's has passed.

    `tick` is the length of a tick in ms. Items of the same tick leave together. Gaps longer than 2 s (a noise scan made minutes
    before) are shortened to 2 s. ``pause(seconds)`` waits.
    """
    begin = time.perf_counter()
    offset_s, previous = 0.0, None
    for item in items:
        stamp = _time_stamp(item)
        if previous is not None:
            offset_s += min(max(stamp - previous, 0) * tick / 1e3, LONGEST_PAUSE_S)
        previous = stamp
        ahead = begin + offset_s - time.perf_counter()
        if ahead > 0:
            pause(ahead)
        yield item


def _time_stamp(item: Item) -> int:
    if isinstance(item, Waveform):
        return int(item.time_stamp)
    return int(item.acquisition_time_stamp) if isinstance(item, (Acquisition, Image)) else 0


class _PeerGoneError(Exception):
    """The server no longer takes what is sent."""


class _NotKeptError(Exception):
    """What came back cannot be written."""


class _Exchange:
    """One conversation with a server: a thread that sends, a thread that takes the answers, and a watch over both."""

    def __init__(self, sock: socket.socket, collector: Collector, timeout_s: float, progress: Progress | None) -> None:
        self._connection = Connection.from_socket(sock)
        self._collector = collector
        self._report = collector.report
        self._timeout_s = timeout_s
        self._progress = progress
        self._sent_all = False
        self._gave_up = False
        self._lost = ""
        self.over = threading.Event()
        """Set when no more answers come."""

    def run(self, opening: Iterable[Message], items: Iterable[Item], count: int | None) -> None:
        """Send everything, take all answers; what goes wrong is in the report."""
        sender = threading.Thread(target=self._send, args=(opening, items), name="send", daemon=True)
        reader = threading.Thread(target=self._read, name="read", daemon=True)
        reader.start()
        sender.start()
        try:
            self._watch(sender, reader)
        finally:
            self._connection.shutdown()
            sender.join(LEAVE_S)
            reader.join(LEAVE_S)
            self._connection.close()
        self._report.bytes_sent, self._report.bytes_received = self._connection.bytes_sent, self._connection.bytes_received
        if not self._sent_all and not self._report.errors:
            sent = f"{self._report.items} of {count} items" if count else f"{self._report.items} items"
            how = (
                f"closed the connection after {sent} ({self._lost})" if self._lost else f"ended the measurement after {sent} had been sent"
            )
            self._report.errors.append(f"the server {how}")

    def _watch(self, sender: threading.Thread, reader: threading.Thread) -> None:
        seen, changed = (-1, -1), time.monotonic()
        while sender.is_alive() or reader.is_alive():
            (reader if reader.is_alive() else sender).join(0.05)
            state = (self._connection.bytes_sent, self._connection.bytes_received)
            if state != seen:
                seen, changed = state, time.monotonic()
                if self._progress is not None:
                    self._progress(self._report.items, self._report.images)
            limit = self._timeout_s if reader.is_alive() else LEAVE_S
            if time.monotonic() - changed > limit:
                if reader.is_alive():
                    self._report.errors.append(f"the server neither took nor sent anything for {limit:g} s; given up (--timeout)")
                return

    def _write(self, message: Message) -> None:
        try:
            self._connection.write(message)
        except OSError as error:
            raise _PeerGoneError(error.strerror or str(error)) from error

    def _send(self, opening: Iterable[Message], items: Iterable[Item]) -> None:
        try:
            for message in opening:
                self._write(message)
            start = time.perf_counter()
            for item in items:
                if self.over.is_set():
                    break
                handed_over = time.perf_counter()
                self._write(item)
                self._collector.sent(item, handed_over)
            else:
                self._sent_all = True
            self._report.send_ms = (time.perf_counter() - start) * 1e3
            self._write(Close())
        except _PeerGoneError as error:
            self._lost = str(error)  # the reader may still find the reason among the answers
        except Exception as error:
            # The file cannot be read to its end: without CLOSE the server knows that the scan is not whole.
            self._gave_up = True
            self._report.errors.append(f"sending failed after {self._report.items} items: {type(error).__name__}: {error}")
            self._connection.shutdown()

    def _read(self) -> None:
        report = self._report
        try:
            while True:
                message = self._connection.read()
                if isinstance(message, Close):
                    return
                if isinstance(message, ErrorReport):
                    report.errors.append(message.text.strip())
                elif isinstance(message, Response):
                    report.responses.append(message.text)
                elif isinstance(message, Item):
                    self._keep(message)
        except EndOfStream:
            if not self._gave_up:
                report.errors.append(f"the connection ended without CLOSE after {report.images} images; the server's log may say why")
        except WireError as error:
            report.errors.append(f"the server's answer cannot be read: {error}")
        except OSError as error:
            report.errors.append(f"the connection broke after {report.images} images: {error.strerror or error}")
        except _NotKeptError as error:
            report.errors.append(f"an answer cannot be kept: {error}")
        finally:
            self.over.set()

    def _keep(self, item: Item) -> None:
        try:
            self._collector.take(item)
        except Exception as error:
            raise _NotKeptError(f"{type(error).__name__}: {error}") from error
