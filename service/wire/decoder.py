"""Received bytes -> messages, without input or output.

Small messages are parsed out of one buffer that many of them reach with a single ``recv_into``; the samples are copied out (8 kB
cost 0.2 us, and the copy is aligned and owned, where a view at the wire's odd offset would be neither). Large payloads are received
straight into the array that leaves with the message. So no item ever shares memory with the decoder.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Iterator

import numpy as np

from gadgets.items import Acquisition, Item
from gadgets.layout import ACQUISITION_HEADER
from service.wire.errors import EndOfStream, WireError
from service.wire.limits import Limits
from service.wire.messages import Close, Message, MessageId
from service.wire.parsers import COMPLEX64, COMPRESSED, FLOAT32, PARSERS, SMALL, Parser

BUFFER = 256 << 10
"""Bytes asked for at once while messages are small; fits a core's cache together with what is copied out."""
LARGE = 32 << 10
"""A readout with more payload than this is received in place. Below, one more system call costs more than the copy."""
PROBE = SMALL
"""Bytes asked for after a large payload: the next header, and little of the next payload that would have to be copied."""

_ACQUISITION = int(MessageId.ACQUISITION)
_HEADER = ACQUISITION_HEADER.itemsize
_HEADER_END = 2 + _HEADER
_NEW = Acquisition.__new__
_ARRAY = np.ndarray
_PEEK = struct.Struct("<H2xQ24xH2xH136xH").unpack_from  # id, flags, number_of_samples, active_channels, trajectory_dimensions

_FOREIGN = {
    1013: "a cloud job of Gadgetron 3",
    1014: "a cloud job of Gadgetron 3",
    1030: "an NDARRAY of ismrmrd's stream tools, which no Gadgetron reads",
    1051: "a bundle that only distributed Gadgetron nodes exchange",
    **dict.fromkeys(
        [*range(1001, 1008), *range(1009, 1013), 1015, 1016, 1017, 1020, 1021], "a typed message of Gadgetron 3 or older, replaced by 1022"
    ),
}
_OTHER_PROTOCOLS = {
    b"GE": "HTTP",
    b"PO": "HTTP",
    b"HT": "HTTP",
    b"SS": "SSH",
    b"\x16\x03": "TLS",
    b"\x89H": "HDF5 (a file for replay)",
}


def _lost() -> Parser:
    """Stands where the parser of a failed stream was, so that no message is looked for any more."""
    yield 0
    return Close()


class Decoder:
    """Turns received bytes into messages (the shape of `asyncio.BufferedProtocol`).

    Write received bytes to `get_buffer()`, tell `received(n)`, then take messages with `next_message()` until it returns None. At the
    end of the stream call `end_of_stream()`. Items carry ``received``: `time.perf_counter` when their last byte had arrived.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._small = min(LARGE, self._limits.acquisition)
        self._buffer = bytearray(BUFFER)
        self._view = memoryview(self._buffer)
        self._start = 0
        self._end = 0
        self._window = BUFFER
        self._target: memoryview | None = None
        self._missing = 0
        self._item: Acquisition | None = None
        self._parser: Parser | None = None
        self._request: int | np.ndarray = 0
        self._id = 0
        self._position = 0
        self._last: object = None
        self._error: WireError | None = None
        self._arrived = 0.0
        self.bytes_received = 0

    # -- bytes in ----------------------------------------------------------------------------------------------------------------------

    def get_buffer(self) -> memoryview:
        """Where to write the next received bytes; never empty. Take all messages out before asking."""
        if self._target is not None:
            return self._target
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end + LARGE > BUFFER:
            rest = self._end - self._start
            self._view[:rest] = self._view[self._start : self._end]
            self._start, self._end = 0, rest
            if rest == BUFFER:
                raise RuntimeError("the decoder's buffer is full: take the messages out with next_message() first")
        return self._view[self._end : self._end + self._window]

    def received(self, size: int) -> None:
        """`size` bytes were written to the buffer that `get_buffer` returned last."""
        self._arrived = time.perf_counter()
        self.bytes_received += size
        target = self._target
        if target is None:
            self._end += size
            if size == self._window < BUFFER:
                self._window *= 4
            return
        missing = self._missing
        if size < missing:
            self._target = target[size:]
            self._missing = missing - size
            return
        # What came beyond the payload is the beginning of the next message.
        self._target = None
        self._start, self._end = 0, size - missing
        self._view[: size - missing] = target[missing:size]

    def receive_message(self, receive: Callable[[memoryview], int]) -> Message | None:
        """Fetch bytes with ``receive(buffer)`` (a socket's ``recv_into``) until a message is complete; None when no more come."""
        while size := receive(self._target or self.get_buffer()):
            self.received(size)
            message = self.next_message()
            if message is not None:
                return message
        return None

    def feed(self, data: bytes | bytearray | memoryview) -> Iterator[Message]:
        """The messages that become complete with `data`, for bytes that are in memory already. Exhaust it. Raises as `next_message`."""
        rest = memoryview(data).cast("B")
        while rest:
            buffer = self.get_buffer()
            size = min(len(buffer), len(rest))
            buffer[:size] = rest[:size]
            rest = rest[size:]
            self.received(size)
            while (message := self.next_message()) is not None:
                yield message

    def end_of_stream(self) -> None:
        """The peer has ended the stream. Raises `EndOfStream` unless its last message was CLOSE."""
        if self._error is not None:
            raise self._error
        missing = 0 if self._target is None else self._missing
        have = self.bytes_received - self._position
        if self._parser is not None or self._item is not None:
            detail = f", {missing:,} bytes before the end of an array" if missing else ""
            where = f"in the middle of {self._name(self._id)} (it began at byte {self._position:,}, {have:,} bytes came{detail})"
        elif self._start < self._end:
            rest = self._end - self._start
            name = self._name(int.from_bytes(self._view[self._start : self._start + 2], "little")) if rest > 1 else "a message"
            where = f"in the middle of {name} ({rest:,} bytes of it came)"
        elif isinstance(self._last, Close):
            return
        else:
            where = "without CLOSE"
        raise EndOfStream(f"the stream ended {where} after {self.bytes_received:,} bytes: the peer went away or was stopped")

    # -- messages out ------------------------------------------------------------------------------------------------------------------

    def next_message(self) -> Message | None:
        """The next complete message, None when more bytes are needed.

        Raises
        ------
        WireError
            For an unknown id, a length above `Limits`, or content that cannot be; again for every later call.
        """
        item = self._item
        if item is not None:
            if self._target is not None:
                return None
            self._item = None
            item.received = self._arrived
            return item
        if self._parser is None:
            start = self._start
            available = self._end - start
            if available >= _HEADER_END:
                kind, flags, samples, channels, dimensions = _PEEK(self._view, start)
                if kind == _ACQUISITION and not flags & COMPRESSED:
                    points = 4 * samples * dimensions
                    payload = 8 * samples * channels + points
                    if payload <= self._small:
                        after = start + _HEADER_END + payload
                        if after > self._end:
                            return None
                        # Slicing a bytearray is the fastest copy there is.
                        own = self._buffer[start + 2 : after]
                        item = _NEW(Acquisition)
                        item.header = self._last = _ARRAY((), ACQUISITION_HEADER, own)[()]
                        item.trajectory = _ARRAY((samples, dimensions), FLOAT32, own, _HEADER) if dimensions else None
                        item.data = _ARRAY((channels, samples), COMPLEX64, own, _HEADER + points)
                        item.received = self._arrived
                        item.triggered = 0.0
                        self._start = after
                        return item
                    if payload <= self._limits.acquisition:
                        self._begin_acquisition(samples, channels, dimensions, points, payload)
                        return self.next_message() if self._target is None else None
            elif available < 2:
                return None
        return self._other()

    def _begin_acquisition(self, samples: int, channels: int, dimensions: int, points: int, payload: int) -> None:
        """Begin the readout at the buffer's start; what has not come yet will be received in place."""
        start, end = self._start, self._end
        at = start + _HEADER_END
        self._position = self.bytes_received - end + start
        self._id = _ACQUISITION
        try:
            memory = np.empty(payload + PROBE, np.uint8)
        except MemoryError as error:
            raise self._failed(f"no memory for a readout of {payload:,} bytes") from error
        self._item = item = _NEW(Acquisition)
        item.header = self._last = _ARRAY((), ACQUISITION_HEADER, self._buffer[start + 2 : at])[()]
        item.trajectory = _ARRAY((samples, dimensions), FLOAT32, memory) if dimensions else None
        item.data = _ARRAY((channels, samples), COMPLEX64, memory, points)
        item.triggered = 0.0
        rest = memory.data
        have = end - at
        if have >= payload:
            rest[:payload] = self._view[at : at + payload]
            self._start = at + payload
            return
        rest[:have] = self._view[at:end]
        self._start = end
        self._target = rest[have:]
        self._missing = payload - have

    def _other(self) -> Message | None:
        if self._error is not None:
            raise self._error
        if self._target is not None:
            return None
        try:
            return self._advance()
        except WireError as error:
            raise self._failed(str(error)) from error
        except MemoryError as error:
            raise self._failed(f"no memory for {self._name(self._id)}: {error}") from error

    def _failed(self, reason: str) -> WireError:
        """The error that this and every later call raises."""
        self._error = WireError(f"{reason} (message at byte {self._position:,} of the stream{self._suspicion()})")
        self._parser = _lost()
        self._target = self._item = None
        self._start = self._end  # nothing behind it can be understood
        return self._error

    def _advance(self) -> Message | None:
        """Run the parser of the current message as far as the bytes go."""
        parser = self._parser or self._begin()
        while True:
            if isinstance(self._request, np.ndarray):
                self._fill(self._request)
                self._request = 0
                if self._target is not None:
                    return None
            start, size = self._start, self._request
            if self._end - start < size:
                return None
            self._start = start + size
            try:
                self._request = parser.send(self._view[start : start + size])
            except StopIteration as stop:
                return self._finish(stop.value)

    def _begin(self) -> Parser:
        """The parser of the message whose id comes next. Raises `WireError` for an unknown id."""
        start = self._start
        raw = bytes(self._view[start : start + 2])
        self._position = self.bytes_received - (self._end - start)
        self._id = int.from_bytes(raw, "little")
        if self._id not in PARSERS:
            raise WireError(f"unknown message id {self._id} ({self._origin(raw)})")
        self._start = start + 2
        self._parser = PARSERS[self._id](self._limits)
        self._request = next(self._parser)
        return self._parser

    def _fill(self, array: np.ndarray) -> None:
        """Move buffered bytes into `array`; what is missing becomes the target of the next receive."""
        flat = array.reshape(-1).view(np.uint8).data
        size = min(self._end - self._start, len(flat))
        flat[:size] = self._view[self._start : self._start + size]
        self._start += size
        if size < len(flat):
            self._target = flat[size:]
            self._missing = len(flat) - size
        if len(flat) > LARGE:
            self._window = PROBE

    def _finish(self, message: Message) -> Message:
        self._parser = None
        if isinstance(message, Item):
            message.received = self._arrived
        self._last = message.header if isinstance(message, Acquisition) else message
        return message

    # -- what to say -------------------------------------------------------------------------------------------------------------------

    @staticmethod
    def _name(number: int) -> str:
        return f"{MessageId(number).name} ({number})" if number in PARSERS else f"a message of unknown id {number}"

    def _origin(self, raw: bytes) -> str:
        if self._id in _FOREIGN:
            return _FOREIGN[self._id]
        if self._last is None and raw in _OTHER_PROTOCOLS:
            return f"the peer speaks {_OTHER_PROTOCOLS[raw]}, not the ISMRMRD protocol"
        return "the peer does not speak the ISMRMRD protocol" if self._last is None else "the stream has shifted"

    def _suspicion(self) -> str:
        """What the message before the failing one lets one suspect."""
        last = self._last
        if last is None:
            return ""
        if not isinstance(last, np.void):
            return f", after {type(last).__name__}"
        samples, channels, dimensions = (int(last[name]) for name in ("number_of_samples", "active_channels", "trajectory_dimensions"))
        text = f", after an acquisition whose header promises {channels} channels x {samples} samples"
        if dimensions:
            return (
                f"{text} and a trajectory of {samples} x {dimensions}; likely causes: the sender removed the readout oversampling without "
                "cropping the trajectory, or the other way round, or the samples are compressed"
            )
        return f"{text}; likely causes: the sender's arrays disagree with its header (complex128 data?), or the samples are compressed"
