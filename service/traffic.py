"""The two threads and the two queues between a connection and the session that serves it.

The reader decodes messages, answers queries at once and queues the rest; the writer sends what the session made. Both queues are bounded by
bytes. A slow chain fills the inbox, the reader stops, and TCP makes the sender wait; a client that reads slowly fills the outbox, and the
chain waits. The outbox is there because simple clients send a whole scan before they read the first image.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

import numpy as np

from gadgets.items import Acquisition, AcquisitionBucket, Dicom, Image, ImageArray, Item, ReconData, Waveform
from service.bounded import BoundedQueue, QueueEnded
from service.queries import answer
from service.settings import Settings
from service.wire import Close, EndOfStream, Message, Query, Response, WireError


class Link(Protocol):
    """What a session needs of a connection. `service.transport.Connection` is one; `service.inside` has one without a socket."""

    @property
    def bytes_received(self) -> int: ...
    def read(self) -> Message: ...
    def write(self, message: Message) -> None: ...
    def drain(self, seconds: float, limit_bytes: int, silence: float) -> bool: ...
    def shutdown(self, *, writing_only: bool = False) -> None: ...
    def close(self) -> None: ...


class PeerGone(Exception):
    """The peer broke off, or takes no data any more."""


class Latencies:
    """Times of the last images between the stages received, triggered, reconstructed, sent."""

    STAGES = ("received→triggered", "triggered→reconstructed", "reconstructed→sent", "received→sent")

    def __init__(self) -> None:
        self._rows: deque[tuple[float, float, float, float]] = deque(maxlen=100_000)
        self.images = 0

    def add(self, item: Item, reconstructed: float, sent: float) -> None:
        if isinstance(item, (Image, ImageArray)):
            self.images += 1
            if item.received and item.triggered:
                self._rows.append((item.received, item.triggered, reconstructed, sent))

    def summary(self) -> dict[str, tuple[float, float]]:
        if not self._rows:
            return {}
        times = np.array(self._rows) * 1e3
        steps = np.column_stack([np.diff(times, axis=1), times[:, 3] - times[:, 0]])
        medians, late = np.percentile(steps, (50, 99), axis=0)
        return {stage: (float(m), float(p)) for stage, m, p in zip(self.STAGES, medians, late, strict=True)}


class Traffic:
    """The reader and the writer thread of a connection, and the queues to and from them."""

    def __init__(self, connection: Link, settings: Settings, on_gone: Callable[[], None]) -> None:
        self.connection = connection
        self.on_gone = on_gone
        self.inbox: BoundedQueue[Message] = BoundedQueue(settings.input_mib << 20)
        self.outbox: BoundedQueue[tuple[Message, float]] = BoundedQueue(settings.output_mib << 20)
        self.latencies = Latencies()
        self.closed = False
        self.write_error: Exception | None = None
        self.last_heard = time.monotonic()
        self.reader = threading.Thread(target=self._read, name="reader", daemon=True)
        self.writer = threading.Thread(target=self._write, name="writer", daemon=True)
        self.reader.start()
        self.writer.start()

    def _read(self) -> None:
        try:
            while not self.closed:
                message = self.connection.read()
                self.last_heard = time.monotonic()
                self._take(message)
        except EndOfStream as error:
            self._gone(error)
        except WireError as error:
            self.inbox.end(error)
        except OSError as error:
            self._gone(error)
        except Exception as error:
            self.inbox.end(error)

    def _gone(self, error: Exception) -> None:
        """Whoever breaks off gets nothing more reconstructed: what still waits is thrown away."""
        self.inbox.fail(PeerGone(str(error)))
        self.on_gone()

    def _take(self, message: Message) -> None:
        """Queue a message; once the session has given up, read and forget."""
        try:
            if isinstance(message, Query):
                self.outbox.put((Response(answer(message.key), message.correlation), 0.0))
            else:
                self.inbox.put(message, size_of(message))
        except (QueueEnded, PeerGone):
            pass
        self.closed = isinstance(message, Close)

    def _write(self) -> None:
        try:
            while True:
                message, reconstructed = self.outbox.get()
                self.connection.write(message)
                if reconstructed and isinstance(message, Item):
                    self.latencies.add(message, reconstructed, time.perf_counter())
        except QueueEnded:
            pass
        except OSError as error:
            self._lost(PeerGone(str(error)))
            self.on_gone()
        except Exception as error:
            self._lost(error)

    def _lost(self, error: Exception) -> None:
        """Nothing more can be written: whoever waits for either queue learns it now."""
        self.write_error = error
        self.outbox.fail(error)
        self.inbox.fail(error)

    def flush(self) -> None:
        """Wait until all that was put has been written. Raises the error that stopped the writer, if one did."""
        self.outbox.end()
        self.writer.join()
        if self.write_error is not None:
            raise self.write_error

    def hear_out(self, settings: Settings) -> None:
        """Read the rest of the input: to CLOSE or the end, at most as long and as much as the settings allow."""
        self.inbox.fail(QueueEnded())
        start = self.last_heard = time.monotonic()
        limit = self.connection.bytes_received + (settings.drain_mib << 20)
        while self.reader.is_alive():
            self.reader.join(0.05)
            now = time.monotonic()
            silent = now - self.last_heard > settings.drain_silence_seconds
            if silent or now - start > settings.drain_seconds or self.connection.bytes_received > limit:
                return
        if not self.closed:  # the reader lost its way in the bytes
            self.connection.drain(settings.drain_seconds, settings.drain_mib << 20, settings.drain_silence_seconds)

    def stop(self) -> None:
        """Close the connection and wait for both threads."""
        self.inbox.fail(QueueEnded())
        self.outbox.fail(QueueEnded())
        self.connection.shutdown()
        self.reader.join()
        self.writer.join()
        self.connection.close()


def size_of(message: Message) -> int:
    """Roughly the bytes that a message occupies."""
    if isinstance(message, (Acquisition, Waveform, Image, ImageArray)):
        return 400 + int(message.data.nbytes)
    if isinstance(message, ReconData):
        return sum(buffer.data.nbytes for bit in message.bits for buffer in (bit.data, bit.ref) if buffer is not None)
    if isinstance(message, AcquisitionBucket):
        return sum(400 + a.data.nbytes for a in (*message.data, *message.ref))
    return 100 + (len(message.content) if isinstance(message, Dicom) else 0)
