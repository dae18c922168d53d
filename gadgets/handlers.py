"""Functions written for gadgetron-python (``handler(connection)``) and FIRE (``process(connection, config, metadata)``) in a chain.

The function runs in a thread of its own, but function and chain take turns: the chain fetches the next item only when the function
asks for one, and the function goes on only when the chain has taken what it sent. So such a function behaves exactly like a gadget:
same order every time, nothing piles up, and the gadgets before it stay in the chain's thread.
"""

from __future__ import annotations

import importlib
import inspect
import json
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any, Literal
from xml.etree.ElementTree import Element, SubElement, tostring

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring

from gadgets import foreign
from gadgets.base import Gadget, Stream, parameter
from gadgets.channel import Closed
from gadgets.header import HeaderError
from gadgets.items import Acquisition, Image, Item, Text, Waveform


class PythonHandler(Gadget):
    """Run an unchanged gadgetron-python handler or FIRE module inside the chain.

    It gets real `ismrmrd` (and `gadgetron.types`) objects. Its exception is the chain's error; returning early is fine, what it has
    not read goes on down the chain.
    """

    runs_foreign_code = True

    module: str = parameter(help="module to import, found as Python finds modules")
    target: str = parameter("", help="function, or class with a handle method; FIRE's `process` when not given")
    style: Literal["auto", "gadgetron", "fire"] = parameter("auto", help="how it is called; auto: by the number of its arguments")
    config: str = parameter("", help="connection.config (XML), or FIRE's config: a name, or JSON text that becomes a dictionary")
    extra: str = parameter("", help="further parameters for the function, as a JSON object (scanner parameters arrive here)")
    path: str = parameter("", help="folder to search for the module before all others")

    def __call__(self, items: Stream) -> Iterator[Item]:
        turns = _Turns()
        function = self._function()
        extra = json.loads(self.extra) if self.extra else {}
        if self._is_fire(function):
            fire = FireConnection(turns, items, self.config or self.module)
            config = _fire_config(self.config, extra, self.module)

            def process() -> None:
                function(fire, config, fire.header)
                fire.put_back()

            return turns.run(process, items)
        connection = GadgetronConnection(turns, items, _with_properties(self.config, extra))
        return turns.run(lambda: function(connection), items)

    def _function(self) -> Callable[..., Any]:
        if self.path and self.path not in sys.path:
            sys.path.insert(0, self.path)
        try:
            module = importlib.import_module(self.module)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"{error}; {self.name} needs module {self.module!r}: give its folder as the property 'path' or in PYTHONPATH"
            ) from error
        target: Any = getattr(module, self.target or "process", None)
        if inspect.isclass(target):
            kind: Any = target
            return lambda connection: kind().handle(connection)
        if not callable(target):
            raise AttributeError(f"module {self.module!r} has no function or class {self.target or 'process'!r}; set the property 'target'")
        function: Callable[..., Any] = target
        return function

    def _is_fire(self, function: Callable[..., Any]) -> bool:
        if self.style != "auto":
            return self.style == "fire"
        needed = [
            p
            for p in inspect.signature(function).parameters.values()
            if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty
        ]
        return len(needed) >= 3


class _Turns:
    """Lets a function in a thread and a generator take turns: exactly one of them runs."""

    def __init__(self) -> None:
        self._to_chain: SimpleQueue[tuple[str, Any]] = SimpleQueue()
        self._to_function: SimpleQueue[tuple[str, Any]] = SimpleQueue()
        self._one_at_a_time = threading.Lock()
        self._over = False

    def ask(self) -> Item:
        """For the function: the next item. Raises StopIteration at the end and `Closed` when the chain has given up."""
        answer, value = self._exchange("ask", None)
        if answer == "end":
            raise StopIteration
        assert isinstance(value, Item)
        return value

    def give(self, item: Item) -> None:
        """For the function: send an item down the chain. Raises `Closed` when the chain has given up."""
        self._exchange("give", item)

    def _exchange(self, what: str, value: Any) -> tuple[str, Any]:
        with self._one_at_a_time:
            if self._over:
                raise Closed("the measurement has ended")
            self._to_chain.put((what, value))
            answer, reply = self._to_function.get()
            if answer == "closed":
                raise Closed("the measurement has ended")
            return answer, reply

    def run(self, function: Callable[[], Any], items: Iterator[Item]) -> Iterator[Item]:
        """Run `function` to its end, yielding what it gives. Raises its exception."""

        def body() -> None:
            error: BaseException | None = None
            try:
                function()
            except BaseException as caught:
                error = caught
            self._over = True
            self._to_chain.put(("done", error))

        threading.Thread(target=body, name="handler", daemon=True).start()
        try:
            while True:
                what, value = self._to_chain.get()
                if what == "done":
                    if isinstance(value, SystemExit) and not value.code:
                        return
                    if value is not None:
                        raise value if isinstance(value, Exception) else RuntimeError(f"{type(value).__name__}: {value}")
                    return
                if what == "give":
                    yield value
                    self._to_function.put(("taken", None))
                else:
                    self._to_function.put(("end", None) if (item := next(items, None)) is None else ("item", item))
        finally:
            self._over = True
            self._to_function.put(("closed", None))


class GadgetronConnection:
    """What gadgetron-python's `Connection` offers to a handler, inside a chain."""

    def __init__(self, turns: _Turns, items: Stream, configuration: bytes) -> None:
        self._turns, self._header = turns, items.header
        self.raw_bytes = SimpleNamespace(config=configuration, header=self._header.xml)
        self.config = _xml_or_none(configuration)
        self.filters: list[Callable[[Any], Any]] = []
        self.readers: dict[int, Any] = {}
        self.writers: list[Any] = []

    @property
    def header(self) -> Any:
        """The measurement header as `ismrmrd.xsd.ismrmrdHeader`."""
        return self._header.xsd

    def filter(self, predicate: Any) -> None:
        """Only items of this type, or for which this function is true, are handed out; others go on down the chain."""
        self.filters.append((lambda item: isinstance(item, predicate)) if isinstance(predicate, type) else predicate)

    def next(self) -> tuple[int, Any]:
        """Message id and next item."""
        while True:
            item = self._turns.ask()
            if foreign.knows(item):
                converted = foreign.convert(item)
                if all(accepts(converted) for accepts in self.filters):
                    return foreign.message_id(item), converted
            self._turns.give(item)

    def __next__(self) -> tuple[int, Any]:
        return self.next()

    def __iter__(self) -> Iterator[Any]:
        for _, item in self.iter_with_mids():
            yield item

    def iter_with_mids(self) -> Iterator[tuple[int, Any]]:
        """Message ids and items."""
        while True:
            try:
                pair = self.next()
            except StopIteration:
                return
            yield pair

    def send(self, item: Any) -> None:
        """Send an item down the chain. Raises TypeError for what is no item."""
        self._turns.give(foreign.restore(item))

    def add_reader(self, mid: int, reader: Any, *args: Any, **kwargs: Any) -> None:
        """Accepted, without effect: inside a chain items are not read from bytes."""
        self.readers[mid] = reader

    def add_writer(self, accepts: Any, writer: Any, *args: Any, **kwargs: Any) -> None:
        """Accepted, without effect: inside a chain items are not written to bytes."""
        self.writers.insert(0, (accepts, writer))

    def __enter__(self) -> GadgetronConnection:
        return self

    def __exit__(self, *_: object) -> None:
        return None


class FireConnection:
    """What python-ismrmrd-server's `Connection` offers to a module, inside a chain.

    Iterating yields acquisitions, images and waveforms and at the end one None, as there. Texts go to the client; those of level
    ERROR or CRITICAL are logged as errors too.
    """

    def __init__(self, turns: _Turns, items: Stream, config_name: str) -> None:
        self._turns, self._stream = turns, items
        self._peeked: list[Item] = []
        self.config_file = config_name
        self.is_exhausted = False
        self.savedata, self.savedataFile, self.savedataFolder, self.savedataGroup = False, "", "", "dataset"
        self.dset = self.mrdFilePath = None
        self.header: Any
        try:
            self.header = items.header.xsd
        except HeaderError:  # as the FIRE server: a header it cannot parse is handed on as text
            self.header = items.header.xml.decode(errors="replace")

    def _read(self) -> Item | None:
        while not self.is_exhausted:
            try:
                item = self._peeked.pop() if self._peeked else self._turns.ask()
            except StopIteration:
                self.is_exhausted = True
                return None
            if isinstance(item, (Acquisition, Image, Waveform)):
                return item
            self._turns.give(item)
        return None

    def peek_mrd_message_identifier(self) -> int | None:
        """Message id of the next item; None at the end."""
        item = self._read()
        if item is None:
            return None
        self._peeked.append(item)
        return foreign.message_id(item)

    def put_back(self) -> None:
        """Send on what was looked at but not read."""
        while self._peeked:
            self._turns.give(self._peeked.pop())

    def next(self) -> Any:
        """The next item; None at the end."""
        item = self._read()
        return None if item is None else foreign.convert(item)

    def __next__(self) -> Any:
        return self.next()

    def __iter__(self) -> Iterator[Any]:
        while not self.is_exhausted:
            yield self.next()

    def send(self, item: Any) -> None:
        """Send one item, or a list of them."""
        for one in item if isinstance(item, (list, tuple)) else [item]:
            self._turns.give(foreign.restore(one))

    send_image = send
    send_acquisition = send
    send_waveform = send

    def send_text(self, contents: str) -> None:
        """Send text to the client."""
        self._turns.give(Text(contents))

    def send_logging(self, level: str, contents: str) -> None:
        """Send text of a level (``INFO``, ``ERROR``, ...) to the client."""
        number = logging.getLevelName(str(level).strip())
        self._stream.context.log.log(number if isinstance(number, int) else logging.INFO, "%s", contents)
        self.send_text(f"{level} {contents}")

    def send_close(self) -> None:
        """Accepted: the chain ends the measurement when all of it has ended."""

    def save_additional_config(self, text: str) -> None:
        """Accepted, without effect: the service keeps the raw stream itself."""


def _fire_config(config: str, extra: dict[str, Any], module: str) -> Any:
    try:
        given = json.loads(config)
    except ValueError:
        given = None
    if isinstance(given, dict):
        return {**given, "parameters": {**given.get("parameters", {}), **extra}}
    if extra:
        return {"parameters": {"config": config or module, **extra}}
    return config or module


def _with_properties(configuration: str, extra: dict[str, Any]) -> bytes:
    """The configuration XML with further properties (replacing those of the same name)."""
    root = _xml_or_none(configuration.encode())
    if not extra or (configuration.strip() and root is None):
        return configuration.encode()
    if root is None:
        root = Element("configuration")
    for name, value in extra.items():
        for old in [child for child in root.findall("property") if (child.get("name") or child.findtext("name")) == name]:
            root.remove(old)
        SubElement(root, "property", {"name": name, "value": str(value)})
    text: bytes = tostring(root, "utf-8", xml_declaration=False)
    return text


def _xml_or_none(text: bytes) -> Element | None:
    try:
        return fromstring(text) if text.strip() else None
    except (ParseError, DefusedXmlException, ValueError):
        return None
