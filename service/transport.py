"""Messages over sockets, pipes and files: the only place where the service's bytes are received and sent.

One thread may read while others write. Blocking calls, because each measurement has its reader and writer thread; timeouts are the
kernel's own (``SO_RCVTIMEO``, ``SO_SNDTIMEO``), so they cost no extra system call and reading may wait longer than writing.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, BinaryIO, Protocol

from service.wire import Close, Decoder, EndOfStream, Limits, Message, WireError, encode

Buffer = bytes | memoryview
Tee = Callable[[memoryview], None]

MOST_BUFFERS = min(os.sysconf("SC_IOV_MAX"), 1024)
"""Buffers one ``sendmsg`` takes."""


class _Channel(Protocol):
    """Where bytes come from and go to."""

    peer: str

    def receive(self, buffer: memoryview) -> int: ...
    def send(self, buffers: Sequence[Buffer]) -> None: ...
    def readable(self, seconds: float) -> bool: ...
    def shutdown(self, how: int) -> None: ...
    def close(self) -> None: ...


class Connection:
    """A stream of messages to and from one peer.

    Made by `from_socket` or `from_files`. Counts ``bytes_received`` and ``bytes_sent``. A context manager that closes.
    """

    def __init__(self, channel: _Channel, *, limits: Limits | None = None, tee: Tee | None = None) -> None:
        self._channel = channel
        self._decoder = Decoder(limits)
        self._receive = channel.receive if tee is None else _teed(channel.receive, tee)
        self._lock = threading.Lock()
        self._cut = False
        self.peer = channel.peer
        self.bytes_sent = 0

    @classmethod
    def from_socket(
        cls,
        sock: socket.socket,
        *,
        limits: Limits | None = None,
        tee: Tee | None = None,
        read_timeout: float | None = None,
        write_timeout: float | None = None,
    ) -> Connection:
        """Over a connected stream socket, which the connection then owns.

        tee: sees every received byte before it is decoded (a view that is valid during the call only); an exception in it ends the read.
        read_timeout, write_timeout: seconds without any progress after which `read` and `write` raise TimeoutError; None waits for ever.
        """
        return cls(_SocketChannel(sock, read_timeout, write_timeout), limits=limits, tee=tee)

    @classmethod
    def from_files(
        cls,
        reader: BinaryIO | None,
        writer: BinaryIO | None,
        *,
        limits: Limits | None = None,
        tee: Tee | None = None,
        peer: str = "",
    ) -> Connection:
        """Over binary files, named pipes, stdin and stdout; either side may be None. Nothing may have been read from `reader` yet."""
        return cls(_FileChannel(reader, writer, peer), limits=limits, tee=tee)

    @property
    def bytes_received(self) -> int:
        """Bytes that came from the peer."""
        return self._decoder.bytes_received

    # -- reading -----------------------------------------------------------------------------------------------------------------------

    def read(self) -> Message:
        """The next message.

        Raises
        ------
        EndOfStream
            The peer ended or reset the stream without CLOSE, or there is nothing after CLOSE.
        WireError
            The bytes are no message; the stream is lost.
        TimeoutError
            Nothing came for `read_timeout` seconds.
        """
        message = self._decoder.next_message()
        return self._receive_message() if message is None else message

    def __iter__(self) -> Iterator[Message]:
        """The messages up to CLOSE, which ends the iteration and is not among them. Raises as `read` does."""
        next_message = self._decoder.next_message
        while True:
            message = next_message()
            if message is None:
                message = self._receive_message()
            if isinstance(message, Close):
                return
            yield message

    def _receive_message(self) -> Message:
        try:
            message = self._decoder.receive_message(self._receive)
        except ConnectionError as error:
            raise EndOfStream(f"{self.peer}: the connection broke after {self.bytes_received:,} bytes ({error})") from error
        if message is None:
            self._decoder.end_of_stream()
            raise EndOfStream(f"{self.peer}: nothing comes after CLOSE")
        return message

    def drain(self, seconds: float, limit_bytes: int = 1 << 40, silence: float = math.inf) -> bool:
        """Read and discard until CLOSE or the end of the stream; whether that was reached within the bounds.

        At most for `seconds`, `limit_bytes`, and until nothing has come for `silence` seconds.

        After an error this keeps the peer from being reset while it still sends. Never raises for what the peer does.
        """
        deadline = time.monotonic() + seconds
        stop = self.bytes_received + limit_bytes
        scratch: memoryview | None = None
        discarded = 0
        try:
            while True:
                if scratch is None:
                    try:
                        while (message := self._decoder.next_message()) is not None:
                            if isinstance(message, Close):
                                return True
                    except WireError:
                        # The stream is lost: no CLOSE can be recognised any more, so only its end counts.
                        scratch = memoryview(bytearray(1 << 16))
                left = deadline - time.monotonic()
                if left <= 0 or self.bytes_received + discarded >= stop or not self._channel.readable(min(left, silence)):
                    return False
                if scratch is None:
                    size = self._receive(self._decoder.get_buffer())
                    if not size:
                        return True
                    self._decoder.received(size)
                elif size := self._receive(scratch):
                    discarded += size
                else:
                    return True
        except OSError:
            return True

    # -- writing -----------------------------------------------------------------------------------------------------------------------

    def write(self, message: Message) -> None:
        """Send a message with one ``sendmsg`` (more only if the kernel takes it in parts).

        Raises
        ------
        WireError
            The message cannot be expressed; nothing was sent.
        ConnectionError
            The peer has gone.
        TimeoutError
            The peer took nothing for `write_timeout` seconds.
        """
        self.write_raw(encode(message))

    def write_raw(self, buffers: Iterable[Buffer]) -> None:
        """Send encoded bytes. Raises as `write` does."""
        queue = [buffer for buffer in buffers if len(buffer)]
        with self._lock:
            if self._cut:
                raise ConnectionError(f"{self.peer}: an earlier message was cut off, nothing can be sent behind it")
            self._cut = True
            self._channel.send(queue)
            self._cut = False
            self.bytes_sent += sum(map(len, queue))

    # -- ending ------------------------------------------------------------------------------------------------------------------------

    def shutdown(self, *, writing_only: bool = False) -> None:
        """Tell the peer that nothing more comes; unless `writing_only`, also wake a thread that waits in `read`."""
        with contextlib.suppress(OSError):
            self._channel.shutdown(socket.SHUT_WR if writing_only else socket.SHUT_RDWR)

    def close(self) -> None:
        """Close; may be called again."""
        self._channel.close()

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class _SocketChannel:
    def __init__(self, sock: socket.socket, read_timeout: float | None, write_timeout: float | None) -> None:
        sock.settimeout(None)
        _set_timeout(sock, socket.SO_RCVTIMEO, read_timeout)
        _set_timeout(sock, socket.SO_SNDTIMEO, write_timeout)
        with contextlib.suppress(OSError):  # not a TCP socket
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # A machine that vanished without a word is noticed, though after hours; `read_timeout` is for less.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._socket = sock
        self._timeouts = read_timeout, write_timeout
        self.peer = _peer_name(sock)
        self.receive = sock.recv_into
        if read_timeout is not None:
            self.receive = self._receive_in_time  # type: ignore[method-assign,assignment]

    def _receive_in_time(self, buffer: memoryview) -> int:
        try:
            return self._socket.recv_into(buffer)
        except BlockingIOError:
            raise TimeoutError(f"{self.peer} sent nothing for {self._timeouts[0]} s") from None

    def send(self, buffers: Sequence[Buffer]) -> None:
        rest = list(buffers)
        at = 0
        try:
            while at < len(rest):
                sent = self._socket.sendmsg(rest[at : at + MOST_BUFFERS])
                while sent and sent >= len(rest[at]):
                    sent -= len(rest[at])
                    at += 1
                if sent:
                    rest[at] = memoryview(rest[at])[sent:]
        except BlockingIOError:
            raise TimeoutError(f"{self.peer} took no data for {self._timeouts[1]} s: it reads too slowly or has stopped") from None
        except ConnectionError as error:
            raise type(error)(error.errno, f"{self.peer} has closed the connection: {error.strerror}") from error

    def readable(self, seconds: float) -> bool:
        return _readable(self._socket.fileno(), seconds)

    def shutdown(self, how: int) -> None:
        self._socket.shutdown(how)

    def close(self) -> None:
        self._socket.close()


class _FileChannel:
    def __init__(self, reader: BinaryIO | None, writer: BinaryIO | None, peer: str) -> None:
        # Reading the raw file returns what is there; a buffered reader would wait until the buffer is full.
        self._owner = reader
        self._reader: Any = getattr(reader, "raw", reader)
        self._writer = writer
        self.peer = peer or str(getattr(reader or writer, "name", "memory"))

    def receive(self, buffer: memoryview) -> int:
        if self._reader is None:
            return 0
        return int(self._reader.readinto(buffer) or 0)

    def send(self, buffers: Sequence[Buffer]) -> None:
        if self._writer is None:
            raise io.UnsupportedOperation(f"{self.peer} is open for reading only")
        for buffer in buffers:
            rest = memoryview(buffer)
            while rest:
                rest = rest[self._writer.write(rest) or 0 :]
        self._writer.flush()

    def readable(self, seconds: float) -> bool:
        try:
            number = self._reader.fileno()
        except (AttributeError, OSError):  # memory is always readable
            return True
        return _readable(number, seconds)

    def shutdown(self, how: int) -> None:
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        for file in (self._owner, self._writer):
            if file is not None:
                file.close()


def _teed(receive: Callable[[memoryview], int], tee: Tee) -> Callable[[memoryview], int]:
    def receive_and_show(buffer: memoryview) -> int:
        size = receive(buffer)
        if size:
            tee(buffer[:size])
        return size

    return receive_and_show


def _set_timeout(sock: socket.socket, option: int, seconds: float | None) -> None:
    whole, part = divmod(seconds or 0.0, 1.0)
    sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", int(whole), int(part * 1e6)))


def _readable(number: int, seconds: float) -> bool:
    if number < 0:  # closed
        return False
    poll = select.poll()
    poll.register(number, select.POLLIN)
    return bool(poll.poll(max(0.0, seconds) * 1000))


def _peer_name(sock: socket.socket) -> str:
    try:
        name: Any = sock.getpeername()
    except OSError:
        name = ""
    if isinstance(name, tuple):
        return f"[{name[0]}]:{name[1]}" if ":" in str(name[0]) else f"{name[0]}:{name[1]}"
    return str(name) or f"{sock.family.name} socket {sock.fileno()}"
