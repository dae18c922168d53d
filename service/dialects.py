"""The two dialects of a session: what a client says and may be told, and what a Gadgetron does to its external module."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar

from gadgets import stock
from gadgets.base import Context, Gadget, run
from gadgets.composite import Parallel, ParallelProcess
from gadgets.items import Acquisition, AcquisitionBucket, DependencyQuery, Dicom, Image, ImageArray, Item, ReconData, Text, Waveform
from service.chain import ConfigError, Policy, config_folders, find_config, load, overrides_from_json
from service.configuration import chain_for
from service.identity import new_session
from service.logs import one_line
from service.session import Outcome, Session, SessionError, State, message_id
from service.settings import Settings
from service.traffic import Link, Traffic
from service.wire import Close, Config, ErrorReport, Filename, HeaderXml, Message, MessageId


class ClientSession(Session):
    """Gadgetron's client protocol: scanners, gadgetron_ismrmrd_client, FIRE's client, `reconstream replay`."""

    READABLE: ClassVar = (Image, Text, Dicom, DependencyQuery)
    """What clients can read; any other id makes them fail."""

    def __init__(self, traffic: Traffic, settings: Settings, session: str) -> None:
        super().__init__(traffic, settings, session)
        self._choice: tuple[bytes, str, Policy] | None = None

    def report(self, text: str) -> Message:
        return Text(text)

    def tell(self, text: str) -> None:
        self.traffic.outbox.put((Text(text), 0.0))

    def take_name(self, message: Filename) -> State:
        """FILENAME: a config of the server's folders (which the operator filled, so it may start programs)."""
        self.outcome.started = True
        self._choose_file(message.name)
        return State.HEADER

    def take_script(self, message: Config) -> State:
        """CONFIG: the config itself, from outside."""
        self.outcome.started = True
        self._choose(message.xml, "config", Policy(allow_external=self.settings.allow_external))
        return State.HEADER

    def run_without_header(self, message: Close) -> State:
        """CLOSE instead of a header: the chain runs over nothing (dependency queries, gt_alive)."""
        if self.fault is not None:
            raise self.fault
        self._stream(message)
        return State.FINISHED

    def _choose_file(self, name: str) -> None:
        try:
            path, xml = find_config(name, config_folders())
        except ConfigError as error:
            self.fault = error
            return
        self._choose(xml, path.name, Policy(allow_external=True))

    def _choose(self, xml: bytes, source: str, policy: Policy, overrides: dict[str, str] | None = None) -> None:
        self._choice = (xml, source, policy)
        try:
            self.use(load(xml, source=source, overrides=overrides, policy=policy))
        except ConfigError as error:
            self.fault = error

    def parameters(self, first: Message) -> bool:
        """FIRE and OpenRecon: a JSON TEXT right after the header names a config and sets properties."""
        if not isinstance(first, Text) or not first.text.lstrip().startswith("{"):
            return False
        self.context.log.info("parameters: %s", one_line(first.text))
        try:
            name, values = overrides_from_json(first.text)
        except ValueError as error:
            raise SessionError("parameters", str(error)) from error
        if name is not None and name != "None":
            self._choose_file(name)
        if self._choice is not None and self.chain is not None and self.fault is None:
            self._choose(*self._choice, overrides=self._overrides(values))
        return True

    def _overrides(self, values: dict[str, str]) -> dict[str, str]:
        """Values by property name. OpenRecon's ids have no underscores, so these and upper case do not count."""
        assert self.chain is not None
        known = {_bare(name): name for name in _property_names(self.chain.gadgets)}
        found = {}
        for key, value in values.items():
            if "@" in key:
                found[key] = value
            elif _bare(key) in known:
                found[known[_bare(key)]] = value
            else:
                offer = ", ".join(sorted(known.values()))
                self.warn(f"unknown parameter {key}", f"parameter {key!r} is unknown to this chain and has no effect (it has: {offer})")
        return found

    def accepts(self, item: Item) -> bool:
        assert self.chain is not None
        readers = self.chain.readers
        if isinstance(item, Text) and (readers is None or MessageId.TEXT not in readers):
            self.log_text(item, State.STREAM)
            return False
        if readers is None or message_id(item) in readers:
            return True
        name = type(item).__name__
        if isinstance(item, Waveform):
            self.warn("waveforms dropped", "this config has no reader for waveforms (1026); they are dropped")
            return False
        raise SessionError(
            "connection", f"this config has no reader for {name} ({message_id(item):d}); add one to <readers>, or use another config"
        )

    def leaving(self, item: Item) -> Iterator[Item]:
        assert self.chain is not None
        writers = self.chain.writers
        if isinstance(item, Text) or (writers is not None and message_id(item) in writers):
            yield item
        elif isinstance(item, ImageArray):
            yield from _split(item, self.context)
        elif writers is None and isinstance(item, self.READABLE):
            yield item
        elif isinstance(item, Waveform):
            self.context.count("waveforms at the end of the chain")
        elif isinstance(item, (ReconData, AcquisitionBucket)):
            raise SessionError(
                "end of the chain",
                f"{type(item).__name__} ({message_id(item):d}) reached it, which no client can read; "
                "add a gadget that makes images, or a writer that accepts it",
            )
        else:
            name = type(item).__name__
            self.warn(
                f"{name} dropped at the end of the chain",
                f"{name} ({message_id(item):d}) reached the end of the chain, and no writer accepts it; it and all later ones are dropped",
            )

    table: ClassVar = {
        State.CONFIG: {
            Filename: take_name,
            Config: take_script,
            Text: lambda self, message: self.log_text(message, State.CONFIG),
            Close: lambda self, message: State.FINISHED,
        },
        State.HEADER: {
            HeaderXml: Session.take_header,
            Text: lambda self, message: self.log_text(message, State.HEADER),
            Close: run_without_header,
        },
    }


class GadgetronSession(Session):
    """The external side of a Gadgetron's ``<execute>`` and ``<connect>``. TEXT is illegal here."""

    SENDABLE: ClassVar = (Acquisition, Waveform, Image, ImageArray, ReconData, AcquisitionBucket)
    """What Gadgetron reads from an external module by default."""

    def __init__(self, traffic: Traffic, settings: Settings, session: str, target: str, close: bool) -> None:
        super().__init__(traffic, settings, session)
        self.target = target
        self.close = close

    def end(self) -> None:
        if self.close:
            super().end()

    def report(self, text: str) -> Message:
        return ErrorReport(text)

    def take_configuration(self, message: Config) -> State:
        """CONFIG: the ``<configuration>`` element of the external node."""
        self.outcome.started = True
        self.use(chain_for(message.xml, self.target, allow_external=self.settings.allow_external))
        return State.HEADER

    def accepts(self, item: Item) -> bool:
        if isinstance(item, Text):
            self.log_text(item, State.STREAM)
            return False
        return True

    def leaving(self, item: Item) -> Iterator[Item]:
        assert self.chain is not None
        if isinstance(item, Text):
            self.context.log.info("%s", one_line(item.text))
        elif isinstance(item, self.SENDABLE) and (self.chain.writers is None or message_id(item) in self.chain.writers):
            yield item
        else:
            name = type(item).__name__
            self.warn(
                f"{name} dropped at the end of the chain",
                f"{name} ({message_id(item):d}) reached the end of the chain, and no writer accepts it; it and all later ones are dropped",
            )

    table: ClassVar = {
        State.CONFIG: {Config: take_configuration, Close: lambda self, message: State.FINISHED},
        State.HEADER: {HeaderXml: Session.take_header, Close: lambda self, message: State.FINISHED},
    }


def serve_client(connection: Link, *, settings: Settings, session: str = "", on_gone: Callable[[], None] = lambda: None) -> Outcome:
    """Serve one client: CONFIG or FILENAME, HEADER, JSON parameters if any, data, CLOSE. Closes the connection.

    Args:
        connection: to the client.
        settings: limits and times.
        session: id for the log.
        on_gone: called (from another thread) when the client has gone before the end; the chain may still be computing.
    """
    traffic = Traffic(connection, settings, on_gone)
    try:
        return ClientSession(traffic, settings, session or new_session()).run()
    finally:
        traffic.stop()


def serve_gadgetron(
    connection: Link,
    *,
    settings: Settings,
    session: str = "",
    on_gone: Callable[[], None] = lambda: None,
    target: str = "",
    ahead: Iterable[Message] = (),
    close: bool = True,
) -> Outcome:
    """Serve one external node of a Gadgetron: CONFIG, HEADER, data, CLOSE.

    Args:
        connection: to the Gadgetron.
        settings: limits and times.
        session: id for the log.
        on_gone: as of `serve_client`.
        target: chain or gadget to run where the ``<configuration>`` names none.
        ahead: messages that have been read from the connection already.
        close: False leaves the last CLOSE, and closing the connection, to the caller.
    """
    traffic = Traffic(connection, settings, on_gone)
    try:
        served = GadgetronSession(traffic, settings, session or new_session(), target, close)
        served.ahead.extend(ahead)
        return served.run()
    finally:
        if close:
            traffic.stop()


def _split(images: ImageArray, context: Context) -> Iterator[Item]:
    """The images of an array, which clients cannot read as a whole."""
    return run([stock.find("", "ImageArraySplit")()], [images], context)


def _property_names(gadgets: Iterable[Gadget]) -> Iterator[str]:
    for gadget in gadgets:
        yield from type(gadget).model().model_fields
        if isinstance(gadget, Parallel):
            yield from _property_names((gadget.branch, gadget.merge, *(inner for stream in gadget.streams.values() for inner in stream)))
        elif isinstance(gadget, ParallelProcess):
            yield from _property_names(gadget.gadgets)


def _bare(name: str) -> str:
    return name.replace("_", "").lower()
