"""One measurement: the states it goes through, the chain it runs, and what happens when something goes wrong.

What clients and Gadgetrons have in common; `service.dialects` says where they differ. After an error the peer is told at once (clients by
TEXT and CLOSE, a Gadgetron by ERROR and CLOSE). Then its input is read on until it has ended, because closing a socket with unread data
resets the connection, and the reason could be lost on its way.
"""

from __future__ import annotations

import enum
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from gadgets.base import Context, GadgetError
from gadgets.header import Header, HeaderError
from gadgets.items import Acquisition, AcquisitionBucket, DependencyQuery, Dicom, Image, ImageArray, Item, ReconData, Text, Waveform
from recon.blas import one_blas_thread
from service.chain import Chain, ConfigError
from service.configuration import ConfigurationError
from service.finite import replace_nonfinite
from service.logs import one_line
from service.settings import Settings
from service.traffic import PeerGone, Traffic, size_of
from service.wire import Close, Config, Filename, HeaderXml, Message, MessageId, WireError

PATIENCE = 1.0
"""Seconds that an unusable config waits for JSON parameters that may name another one (OpenRecon's do) before it is reported."""


class SessionError(Exception):
    """The peer did something that the protocol does not allow here. `place` is where, the text says why and what to do."""

    def __init__(self, place: str, cause: str) -> None:
        super().__init__(cause)
        self.place = place


class State(enum.Enum):
    """What the session is waiting for."""

    CONFIG = "a config"
    HEADER = "the measurement header"
    STREAM = "data"
    FINISHED = "nothing"


@dataclass
class Outcome:
    """How a measurement went."""

    measurement: str
    error: str | None = None
    started: bool = False
    """A config had come: there is a measurement, not only a query or a port scan."""
    complete: bool = False
    """The sender closed its input as the protocol wants it."""
    readouts: int = 0
    received_bytes: int = 0
    images: int = 0
    seconds: float = 0.0
    latency_ms: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Stage -> (median, 99th percentile)."""
    counts: dict[str, int] = field(default_factory=dict)


class Session:
    """What both dialects have in common. Subclasses say what differs."""

    table: ClassVar[dict[State, dict[type, Callable[[Any, Any], State]]]]

    def __init__(self, traffic: Traffic, settings: Settings, session: str) -> None:
        self.traffic = traffic
        self.settings = settings
        self.session = session
        self.context = Context(measurement=session, storage=settings.storage)
        self.outcome = Outcome(session)
        self.ahead: deque[Message] = deque()
        """Messages that someone else has read already."""
        self.chain: Chain | None = None
        self.fault: Exception | None = None
        """Why the config cannot be used; reported unless another one is named in time."""

    # -- what a dialect decides ----------------------------------------------------------------------------------------

    def report(self, text: str) -> Message:
        """The message that tells the peer of an error."""
        raise NotImplementedError

    def tell(self, text: str) -> None:
        """Tell the peer something that does not end the measurement."""

    def accepts(self, item: Item) -> bool:
        """Whether received data may enter the chain; counts what may not. Raises `SessionError` where dropping it would be a loss."""
        raise NotImplementedError

    def leaving(self, item: Item) -> Iterator[Item]:
        """What is sent for an item that reached the end of the chain."""
        raise NotImplementedError

    def end(self) -> None:
        """Say that nothing more will be sent."""
        self._write(Close())
        self.traffic.connection.shutdown(writing_only=True)

    def parameters(self, first: Message) -> bool:
        """Take `first`, the first message after the header, as parameters of the chain; False when it is none."""
        return False

    # -- running -------------------------------------------------------------------------------------------------------

    @one_blas_thread()
    def run(self, state: State = State.CONFIG) -> Outcome:
        """The whole measurement, up to its last message. Never raises for what a peer or a gadget does wrong."""
        start = time.perf_counter()
        try:
            while state not in (State.STREAM, State.FINISHED):
                state = self._step(state, self._next())
            if state is State.STREAM:
                self._stream(self._first())
            self.traffic.flush()
            self.end()
        except Exception as error:
            self._fail(error)
        self.outcome.complete = self.traffic.closed
        self.outcome.received_bytes = self.traffic.connection.bytes_received
        self.outcome.seconds = time.perf_counter() - start
        self.outcome.images = self.traffic.latencies.images
        self.outcome.latency_ms = self.traffic.latencies.summary()
        self.outcome.counts = self.context.counts
        self._log_summary()
        return self.outcome

    def _next(self) -> Message:
        """The next message. Raises `SessionError` when none comes in time, and the config's fault when nothing mends it."""
        if self.ahead:
            return self.ahead.popleft()
        try:
            return self.traffic.inbox.get(self.settings.silence_seconds if self.fault is None else PATIENCE)
        except TimeoutError:
            raise self.fault or SessionError(
                "connection", f"nothing was received for {self.settings.silence_seconds:g} s; send CLOSE when the scan is over"
            ) from None

    def _step(self, state: State, message: Message) -> State:
        action = self.table[state].get(type(message))
        if action is not None:
            return action(self, message)
        raise self.fault or SessionError("connection", _refusal(state, message))

    def _first(self) -> Message:
        """The first message of the stream, after the parameters, if any came."""
        message = self._next()
        if self.parameters(message):
            message = self._next()
        if self.fault is not None:
            raise self.fault
        return message

    def _stream(self, first: Message) -> None:
        """Run the chain over what comes and queue what leaves it."""
        assert self.chain is not None
        self.context.log.info("Connection state: [STREAM]")
        results = self.chain.run(self._items(first), self.context)
        try:
            for item in results:
                reconstructed = time.perf_counter()
                for result in self.leaving(item):
                    self.traffic.outbox.put((result, reconstructed), size_of(result))
        finally:
            close = getattr(results, "close", None)
            if close is not None:
                close()

    def _items(self, first: Message) -> Iterator[Item]:
        message = first
        while not isinstance(message, Close):
            if not isinstance(message, Item):
                raise SessionError("connection", _refusal(State.STREAM, message))
            if self.accepts(message):
                yield self._finite(message)
            message = self._next()

    def _finite(self, item: Item) -> Item:
        if not isinstance(item, Acquisition):
            return item
        self.outcome.readouts += 1
        clean, replaced = replace_nonfinite(item)
        if replaced:
            clean.received, clean.triggered = item.received, item.triggered
            self.warn(
                "NaN or Inf samples replaced by zero",
                f"readout {self.outcome.readouts} has {replaced} NaN or Inf samples; they are replaced by zero (as in all later readouts)",
                replaced,
            )
        return clean

    def warn(self, what: str, text: str, by: int = 1) -> None:
        """Count something; log it and tell the peer the first time."""
        if what not in self.context.counts:
            self.context.log.warning("%s", one_line(text))
            self.tell(f"WARNING: {text}")
        self.context.count(what, by)

    def use(self, chain: Chain) -> None:
        """Run this chain."""
        self.chain = chain
        self.fault = None

    # -- steps of the tables -------------------------------------------------------------------------------------------

    def log_text(self, message: Text, state: State) -> State:
        """TEXT is for the log."""
        self.context.log.info("text from the peer: %s", one_line(message.text))
        return state

    def take_header(self, message: HeaderXml) -> State:
        """Read the header; from now on the log lines carry the measurement id."""
        header = Header(message.xml)
        if header.measurement_id:
            self.context.measurement = f"{one_line(header.measurement_id, 60).replace(' ', '_')}/{self.session}"
        self.context.header = header
        self.outcome.measurement = self.context.measurement
        self.context.log.info("protocol %r, session %s", one_line(header.protocol_name, 100), self.session)
        return State.STREAM

    # -- when something goes wrong -------------------------------------------------------------------------------------

    def _fail(self, error: Exception) -> None:
        """Say why, to the peer and in the log; then hear the peer out."""
        text = _explain(error)
        self.outcome.error = text
        expected = isinstance(error, (SessionError, PeerGone, ConfigError, ConfigurationError, HeaderError, WireError))
        self.context.log.error("%s", text, exc_info=None if expected else error.__cause__ or error)
        try:
            self.traffic.flush()
        except Exception as problem:
            self.context.log.debug("not all results could be sent: %s", problem)
        if isinstance(self.traffic.write_error, PeerGone):
            return
        self._write(self.report(text))
        self.end()
        if not isinstance(error, PeerGone):
            self.traffic.hear_out(self.settings)

    def _write(self, message: Message) -> None:
        try:
            self.traffic.connection.write(message)
        except OSError as error:
            self.context.log.debug("%s could not be sent: %s", type(message).__name__, error)

    def _log_summary(self) -> None:
        outcome = self.outcome
        if not outcome.started:
            return
        parts = [
            f"{outcome.readouts} readouts, {outcome.received_bytes / 1e6:.1f} MB, {outcome.images} images in {outcome.seconds:.2f} s",
            *(f"{stage} {median:.1f}/{late:.1f} ms" for stage, (median, late) in outcome.latency_ms.items()),
            *(f"{gadget} {seconds:.2f} s" for gadget, seconds in self.context.seconds.items()),
            *(f"{what}: {count}" for what, count in outcome.counts.items()),
        ]
        self.context.log.info("%s", "; ".join(parts))
        self.context.log.info("Connection state: [FINISHED]%s", " with an error" if outcome.error else "")


_IDS: dict[type, MessageId] = {
    Text: MessageId.TEXT,
    Acquisition: MessageId.ACQUISITION,
    Dicom: MessageId.DICOM,
    DependencyQuery: MessageId.DEPENDENCY_QUERY,
    Image: MessageId.IMAGE,
    ReconData: MessageId.RECON_DATA,
    ImageArray: MessageId.IMAGE_ARRAY,
    Waveform: MessageId.WAVEFORM,
    AcquisitionBucket: MessageId.BUCKET,
}


def message_id(item: Item) -> MessageId:
    """The id under which an item travels."""
    return _IDS[type(item)]


def _refusal(state: State, message: Message) -> str:
    """Why `message` is not legal in `state`, and what would be."""
    name = f"{type(message).__name__} ({message_id(message):d})" if isinstance(message, Item) else type(message).__name__
    if isinstance(message, (Filename, Config)) and state is not State.CONFIG:
        return "a second config was received; only one is allowed for each connection"
    if isinstance(message, HeaderXml):
        if state is State.CONFIG:
            return "the measurement header was received before a config; send FILENAME or CONFIG first"
        return "a second measurement header was received; only one is allowed for each connection"
    if isinstance(message, Item) and state is not State.STREAM:
        return f"data, {name}, were received before {state.value}; the order is config, header, data, CLOSE"
    return f"{name} is not a message that a peer may send here; {state.value} was expected"


def _explain(error: Exception) -> str:
    """``[place] ERROR: cause``, as Gadgetron writes it."""
    cause = error.__cause__ if isinstance(error, GadgetError) and error.__cause__ else error
    places = {
        SessionError: getattr(error, "place", ""),
        GadgetError: getattr(error, "gadget", ""),
        ConfigError: "config",
        ConfigurationError: "config",
        HeaderError: "header",
        WireError: "connection",
        PeerGone: "connection",
    }
    place = next((place for kind, place in places.items() if isinstance(error, kind)), "server")
    # Errors made for readers speak for themselves; of others the type is half of the message.
    plain = isinstance(cause, (*list(places)[:1], *list(places)[2:])) or type(cause) in (ValueError, RuntimeError)
    return f"[{place}] ERROR: {cause}" if plain and str(cause) else f"[{place}] ERROR: {type(cause).__name__}: {cause}"
