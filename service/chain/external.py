"""External modules: another process takes part in the chain, over the wire, as Gadgetron's ``<external>`` does.

The module is sent CONFIG, HEADER, the items its writers accept, and CLOSE; what it sends back flows on. Other items pass it by; each
of the two flows keeps its order, but how they interleave depends on the module. ``<execute>`` starts the module and waits for it to
connect; ``<connect>`` reaches one that listens.

However the module fails - exits before connecting, exits half-way, reports an error, falls silent, never connects, does not end - the
chain gets an error in bounded time, with the exit status and the module's last lines; and no process is left behind.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from gadgets.base import Gadget, Stream, parameter
from gadgets.channel import Channel, Closed
from gadgets.items import Item
from service.chain.process import Child
from service.chain.slots import ALL_READERS, ALL_WRITERS, items_of
from service.transport import Connection
from service.wire import Close, Config, EndOfStream, ErrorReport, HeaderXml, Message, MessageId, WireError

COMMANDS: dict[str, str | None] = {"python": None, "matlab": "matlab", "julia": "julia"}
"""Types of module that ``<execute>`` can start -> the command that must be there (Python is the one we run in)."""


class ExternalError(RuntimeError):
    """An external module failed."""


@dataclass(frozen=True)
class Execute:
    """Start a module: name, target in it, type (``python``, ``matlab``, ``julia``)."""

    name: str
    target: str
    type: str

    def label(self) -> str:
        """Short name."""
        return f"{self.name}.{self.target}" if self.target else self.name

    def words(self) -> str:
        """For `Chain.describe`."""
        return f"started here: {self.type} {self.label()}"

    def command(self, port: int) -> tuple[list[str], dict[str, str]]:
        """Command line, and what is added to the environment."""
        if self.type == "matlab":
            environment = {"GADGETRON_EXTERNAL_PORT": str(port), "GADGETRON_EXTERNAL_MODULE": self.name}
            return ["matlab", "-batch", "gadgetron.external.main"], environment
        arguments = [str(port), self.name, *([self.target] if self.target else [])]
        if self.type == "julia":
            return ["julia", "-e", "import Gadgetron; Gadgetron.External.main()", *arguments], {}
        home = os.environ.get("GADGETRON_HOME")
        path = [os.environ.get("PYTHONPATH", ""), os.path.join(home, "share", "gadgetron", "python") if home else ""]
        return [sys.executable, "-m", "gadgetron", *arguments], {"PYTHONPATH": os.pathsep.join(part for part in path if part)}


@dataclass(frozen=True)
class Connect:
    """Reach a module that listens."""

    address: str
    port: int

    def label(self) -> str:
        """Short name."""
        return f"{self.address}:{self.port}"

    def words(self) -> str:
        """For `Chain.describe`."""
        return f"listening at {self.label()}"


class External(Gadget):
    """A module in another process takes part in the chain."""

    runs_ahead = True

    start_timeout: float = parameter(60.0, unit="s", gt=0, help="how long a started module may take to connect")
    silence_timeout: float = parameter(
        600.0, unit="s", gt=0, help="how long it may send nothing while it has all its input, or takes none that waits"
    )
    exit_timeout: float = parameter(10.0, unit="s", gt=0, help="how long it may take to end after its last message")
    attempts: int = parameter(10, ge=1, help="attempts to connect to a module that listens")
    interval: float = parameter(2.0, unit="s", gt=0, help="time between them")
    queue: int = parameter(64, ge=1, help="items that may wait behind the module", unit="items")

    def __init__(
        self,
        name: str,
        action: Execute | Connect,
        /,
        *,
        configuration: bytes = b"",
        readers: frozenset[MessageId] = ALL_READERS,
        writers: frozenset[MessageId] = ALL_WRITERS,
        **properties: object,
    ) -> None:
        super().__init__(name, **properties)
        self.action = action
        self.configuration = configuration
        self.sends, self.takes = items_of(readers), items_of(writers)

    def __call__(self, items: Stream) -> Iterator[Item]:
        conversation = _Conversation(self, items)
        try:
            conversation.start()
            yield from conversation.output
        finally:
            conversation.end()


class _Conversation:
    """One measurement with the module: a thread that writes, one that reads, one that watches the clock.

    The writer pulls the input, so that gadgets before and behind the module work at the same time, and several modules of a chain
    start at the same time.
    """

    def __init__(self, gadget: External, items: Stream) -> None:
        self.gadget, self.items, self.context = gadget, items, items.context
        self.output: Channel[Item] = Channel(gadget.queue)
        self._child: Child | None = None
        self._connection: Connection | None = None
        self._connected = threading.Event()
        self._answered = threading.Event()
        self._over = threading.Event()
        self._busy_since: float | None = None
        self._silent_since: float | None = None
        self._greeted = False
        self._hung = ""
        self._unread = 0

    # -- beginning and end (the chain's thread) ----------------------------------------------------------------------

    def start(self) -> None:
        """Start the module, meanwhile begin to pull the input, connect, begin to read."""
        listener = self._launch() if isinstance(self.gadget.action, Execute) else None
        self._thread(self._write, "to")
        try:
            peer = self._accept(listener) if listener is not None else self._reach()
        finally:
            if listener is not None:
                listener.close()
        self._connection = Connection.from_socket(peer)
        self._connected.set()
        self._thread(self._read, "from")
        self._thread(self._watch, "clock of")

    def end(self) -> None:
        """Leave nothing behind."""
        self._over.set()
        self._connected.set()
        self.output.close()
        if self._connection is not None:
            self._connection.shutdown()
        if self._child is not None:
            self._child.stop()
        self._answered.set()
        if self._connection is not None:
            self._connection.close()

    def _thread(self, work: Callable[[], None], what: str) -> None:
        threading.Thread(target=work, name=f"{what} {self.gadget.name}", daemon=True).start()

    def _launch(self) -> socket.socket:
        action = self.gadget.action
        assert isinstance(action, Execute)
        listener = socket.create_server(("127.0.0.1", 0), backlog=1)
        command, environment = action.command(listener.getsockname()[1])
        name, log = self.gadget.name, self.context.log
        self._child = Child(command, environment, lambda line: log.info("%s: %s", name, line))
        return listener

    def _accept(self, listener: socket.socket) -> socket.socket:
        assert self._child is not None
        limit = self.gadget.start_timeout
        deadline = time.monotonic() + limit
        listener.settimeout(0.05)  # short, to notice early that the module has ended
        while time.monotonic() < deadline:
            try:
                peer, _ = listener.accept()
            except TimeoutError:
                if self._child.returncode is not None:
                    raise self._failure("ended before it connected") from None
                continue
            peer.setblocking(True)
            return peer
        raise self._failure(f"did not connect within {limit:g} s of its start (property start_timeout)")

    def _reach(self) -> socket.socket:
        action = self.gadget.action
        assert isinstance(action, Connect)
        for attempt in range(1, self.gadget.attempts + 1):
            try:
                peer = socket.create_connection((action.address, action.port), timeout=self.gadget.interval + 5)
            except OSError as error:
                self.context.log.info("%s: attempt %d to connect: %s", self.gadget.name, attempt, error)
                if attempt == self.gadget.attempts:
                    raise ExternalError(
                        f"nothing answers at {action.label()} ({error}) after {attempt} attempts, {self.gadget.interval:g} s apart; "
                        "start the module there, or correct address and port"
                    ) from None
                self._over.wait(self.gadget.interval)
            else:
                peer.settimeout(None)
                return peer
        raise AssertionError("unreachable")

    def _failure(self, what: str) -> ExternalError:
        """An error that says what the module did, how it ended and what it printed last."""
        if self._child is None:
            return ExternalError(f"the module at {self.gadget.name} {what}")
        status = self._child.returncode
        how = "it was still running" if status is None else f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        if status is None:
            self._child.stop()
        return ExternalError(f"module {self.gadget.name} {what} ({how}); its last output:{self._child.last_words()}")

    # -- to the module (writer thread) -------------------------------------------------------------------------------

    def _write(self) -> None:
        try:
            for item in self.items:
                if isinstance(item, self.gadget.takes):
                    self._send(item)
                else:
                    self.output.put(item)
            self._send(Close())
            self._busy_since = time.monotonic()  # from now on all is up to the module
            self._answered.wait()
            if self._unread:
                self.context.log.warning("%s ended without taking %d items of its input", self.gadget.name, self._unread)
            self.output.finish()
        except Closed:
            self.items.close()
        except BaseException as error:
            self.output.finish(error)

    def _send(self, message: Item | Close) -> None:
        """Send once the module is connected; what a module that has ended does not take is counted."""
        self._connected.wait()
        if self._over.is_set():
            raise Closed
        connection = self._connection
        assert connection is not None
        if not self._greeted:
            self._greeted = True
            self._send_or_count(connection, Config(b'<?xml version="1.0"?>\n' + self.gadget.configuration))
            self._send_or_count(connection, HeaderXml(self.context.header.xml))
        self._send_or_count(connection, message)

    def _send_or_count(self, connection: Connection, message: Message) -> None:
        self._busy_since = time.monotonic()
        try:
            connection.write(message)
        except ConnectionError:  # it has ended; whether that was right is for the reader to find out
            self._unread += isinstance(message, Item)
        finally:
            self._busy_since = None

    # -- from the module (reader thread) -----------------------------------------------------------------------------

    def _read(self) -> None:
        try:
            self._receive()
            if self._connection is not None:
                self._connection.shutdown()  # a module that has ended must not keep the writer waiting
            self._check_end()
        except Closed:
            pass
        except BaseException as error:
            self.output.finish(error)
        finally:
            self._answered.set()

    def _receive(self) -> None:
        connection = self._connection
        assert connection is not None
        while True:
            self._silent_since = time.monotonic()
            try:
                message = connection.read()
            except EndOfStream:
                raise self._lost() from None
            except WireError as error:
                raise self._failure(f"sent something that is no message: {error}") from error
            self._silent_since = None
            if isinstance(message, Close):
                return
            if isinstance(message, ErrorReport):
                raise ExternalError(f"module {self.gadget.name} reports: {message.text}")
            if not isinstance(message, self.gadget.sends):
                raise self._failure(f"sent a {type(message).__name__}, which its <readers> do not accept")
            self.output.put(message)

    def _lost(self) -> ExternalError:
        if self._hung:
            return self._failure(self._hung)
        if self._child is not None:
            self._child.wait(self.gadget.exit_timeout)
        return self._failure("ended the connection without CLOSE")

    def _check_end(self) -> None:
        if self._child is None:
            return
        status = self._child.wait(self.gadget.exit_timeout)
        if status is None:
            raise self._failure(f"did not end within {self.gadget.exit_timeout:g} s of its CLOSE (property exit_timeout)")
        if status != 0:
            raise self._failure("failed")

    # -- the clock ---------------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Break the connection when the module neither takes nor sends anything although it could do both."""
        limit = self.gadget.silence_timeout
        while not self._over.wait(min(limit / 4, 1.0)):
            busy, silent = self._busy_since, self._silent_since
            if busy is not None and silent is not None and time.monotonic() - max(busy, silent) > limit:
                self._hung = f"neither took its input nor sent anything for {limit:g} s (property silence_timeout)"
                assert self._connection is not None
                self._connection.shutdown()
                return
