"""Reconstruct from a pipe into a pipe: an ISMRMRD stream in, an ISMRMRD stream out (Gadgetron's ``--from_stream``, Tyger).

The input begins with HEADER (as ``ismrmrd_hdf5_to_stream`` writes it) or with CONFIG; then come readouts, waveforms or images, then
CLOSE. The output repeats HEADER first, then come images and texts, then CLOSE. After a failure CLOSE is missing and the last TEXT says
why, so that nobody downstream takes half a result for a whole one.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import select
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, cast

from gadgets.items import Image, Text
from service.client import opening
from service.files import ImageWriter, read_measurement
from service.inside import run_inside
from service.local import read_config
from service.logs import one_line
from service.outputs import check_outputs, spare_source
from service.transport import Connection
from service.wire import Close, Config, Filename, HeaderXml, Message

logger = logging.getLogger(__name__)
HDF5 = (".h5", ".hdf5")


class StreamError(RuntimeError):
    """The input is not a stream that can be reconstructed, or the chain failed."""


def stream(
    config: str | Path | bytes | None,
    source: str | Path = "-",
    target: str | Path = "-",
    *,
    parameters: Mapping[str, str] | None = None,
) -> int:
    """Reconstruct `source` into `target` and return the number of images.

    Args:
        config: path, name or XML of the config; None: the input brings it (CONFIG or FILENAME first). A given one is preferred.
        source: file or named pipe with an ISMRMRD stream, ISMRMRD HDF5 (``*.h5``), or ``-`` for stdin.
        target: file or named pipe, ``*.h5`` for HDF5 as `gadgetron_ismrmrd_client` writes it, or ``-`` for stdout (what else the
            process prints then goes to stderr).
        parameters: property values that override the config's.

    Raises:
        StreamError: no config, or the chain failed.
        service.wire.WireError: the input is no stream, or ends without CLOSE.
        service.chain.ConfigError: the config is not found.
        OSError: a file cannot be opened or written.
    """
    given = None if config is None else Config(read_config(config)[1])
    chosen = dict(parameters or {})
    _require_standard_streams(source, target)
    if str(target) != "-":
        spare_source(Path(source), Path(target))
    if str(target).endswith(HDF5):
        check_outputs(None, Path(target))
    with contextlib.ExitStack() as stack:
        if str(source).endswith(HDF5):
            if given is None:
                raise StreamError("an HDF5 file brings no config; name one with -c")
            interrupt = None
            messages = _from_file(Path(source), given, chosen)
        else:
            interrupt = stack.enter_context(_Interruptible(_open_input(source)))
            messages = _from_stream(Connection.from_files(cast("BinaryIO", interrupt), None, peer="input"), given, chosen)
        sink = _FileSink(Path(target)) if str(target).endswith(HDF5) else _stream_sink(target)
        stack.enter_context(sink)
        outcome = run_inside(
            _echoed(messages, sink),
            sink.take,
            allow_external=given is not None,
            hear_out=interrupt is not None,
            interrupt=interrupt.end if interrupt else lambda: None,
        )
        if outcome.error:
            raise StreamError(outcome.error)
        sink.complete()
        return outcome.images


def _from_file(path: Path, config: Config, parameters: dict[str, str]) -> Iterator[Message]:
    measurement = read_measurement(path)
    yield from opening(measurement.header_xml, config.xml, parameters)
    yield from measurement.items()
    yield Close()


def _from_stream(connection: Connection, config: Config | None, parameters: dict[str, str]) -> Iterator[Message]:
    message = connection.read()
    if isinstance(message, (Config, Filename)):
        if config is None:
            yield message
        else:
            logger.info("the input's own config is not used: another one was given")
        message = connection.read()
    elif config is None:
        raise StreamError("the input brings no config; name one with -c")
    if config is not None:
        yield config
    yield message
    if parameters and isinstance(message, HeaderXml):
        yield Text(json.dumps({"parameters": parameters}))
    while not isinstance(message, Close):
        message = connection.read()
        yield message


def _echoed(messages: Iterator[Message], sink: _Sink) -> Iterator[Message]:
    """The messages; the header is put out first, before the session can answer anything."""
    for message in messages:
        if isinstance(message, HeaderXml):
            sink.take(message)
        yield message


class _Sink(contextlib.AbstractContextManager["_Sink"]):
    """Where results go."""

    def take(self, message: Message) -> None:
        """Write a message."""
        raise NotImplementedError

    def complete(self) -> None:
        """All is well and nothing more comes."""


class _StreamSink(_Sink):
    """Writes messages as they come; CLOSE only when all is well."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._connection = Connection.from_files(None, file, peer="output")
        self._name = name

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError):  # the bytes it could not write are tried again
            self._connection.close()

    def take(self, message: Message) -> None:
        if not isinstance(message, Close):
            self._write(message)

    def complete(self) -> None:
        self._write(Close())

    def _write(self, message: Message) -> None:
        try:
            self._connection.write(message)
        except OSError as error:
            raise OSError(error.errno, f"the output cannot be written: {error.strerror or error}", self._name) from error


class _FileSink(_Sink):
    """Writes images into an HDF5 file, texts into the log."""

    def __init__(self, path: Path) -> None:
        self._writer = ImageWriter(path)

    def __exit__(self, *error: object) -> None:
        self._writer.close()

    def take(self, message: Message) -> None:
        if isinstance(message, Image):
            self._writer.append(message)
        elif isinstance(message, Text):
            logger.info("%s", one_line(message.text))


class _Interruptible(io.RawIOBase):
    """A file or pipe whose waiting reader another thread can send away: after `end`, the input has ended."""

    def __init__(self, file: io.FileIO) -> None:
        super().__init__()
        self._file = file
        self._woken, self._wake = os.pipe()
        self._poll = select.poll()
        self._poll.register(file.fileno(), select.POLLIN)
        self._poll.register(self._woken, select.POLLIN)

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if any(number == self._woken for number, _ in self._poll.poll()):
            return 0
        return os.readv(self._file.fileno(), [buffer])

    def end(self) -> None:
        if not self.closed:
            os.write(self._wake, b"\0")

    def close(self) -> None:
        if not self.closed:
            os.close(self._woken)
            os.close(self._wake)
            self._file.close()
        super().close()


def _require_standard_streams(source: str | Path, target: str | Path) -> None:
    """Python has None for a stream that was closed at the start; the next file opened would get its number. Raises `StreamError`."""
    if str(source) == "-" and sys.stdin is None:
        raise StreamError("stdin is closed; give it something to read, or name an input (-i)")
    if str(target) == "-" and sys.stdout is None:
        raise StreamError("stdout is closed; give it a reader, or name an output (-o)")


def _open_input(source: str | Path) -> io.FileIO:
    return io.FileIO(os.dup(0) if str(source) == "-" else source, "rb")


def _stream_sink(target: str | Path) -> _StreamSink:
    if str(target) != "-":
        return _StreamSink(open(target, "wb"), str(target))
    # Data alone go to stdout: what gadgets, libraries or external programs print goes to stderr from now on.
    sys.stdout.flush()
    data = os.dup(1)
    os.dup2(2, 1)
    return _StreamSink(os.fdopen(data, "wb"), "stdout")
