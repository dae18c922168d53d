"""What a gadget is: typed parameters and one generator; how gadgets are chained.

A gadget is a class with parameters declared once and a ``__call__`` that turns a `Stream` of items into an iterator of items::

    class RemoveOversampling(Gadget):
        \"\"\"Crop the readout to the recon matrix.\"\"\"

        pad_to: int | None = parameter(None, unit="samples", help="round the kept length up to this multiple")

        def __call__(self, items: Stream) -> Iterator[Item]:
            for acquisition in items.of(Acquisition):
                yield crop(acquisition, items.header)

From the declaration come parsing of XML property strings, the error for a wrong value or an unknown name, ``reconstream list`` and
the reference page.
"""

from __future__ import annotations

import difflib
import logging
import re
import time
import typing
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model
from pydantic_core import PydanticUndefined

from gadgets.header import Header
from gadgets.items import Acquisition, Item, Waveform

T = TypeVar("T", bound=Item)


class ParameterError(ValueError):
    """A property has an unknown name or a value that does not fit; the text names the nearest right name."""


class GadgetError(RuntimeError):
    """A gadget raised. `gadget` is its name in the chain; the original exception is ``__cause__``."""

    def __init__(self, gadget: str, error: BaseException) -> None:
        super().__init__(f"[{gadget}] {type(error).__name__}: {error}")
        self.gadget = gadget


def parameter(
    default: Any = ...,
    *,
    help: str,
    unit: str = "",
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    pattern: str | None = None,
    aliases: tuple[str, ...] = (),
) -> Any:
    """Declare a parameter: default (``...`` = must be given), help, unit, bounds, pattern, further names it is known by.

    The type is the annotation; bool, int, float, str, `Literal`, `Optional` and lists of them parse from XML strings (lists are
    separated by commas or blanks).
    """
    return Field(
        PydanticUndefined if default is ... else default,
        description=help,
        ge=ge,
        gt=gt,
        le=le,
        lt=lt,
        pattern=pattern,
        json_schema_extra={"unit": unit, "aliases": list(aliases)},
    )


def _split(value: Any) -> Any:
    return [part for part in re.split(r"[,\s]+", value) if part] if isinstance(value, str) else value


def _empty_is_none(value: Any) -> Any:
    return None if isinstance(value, str) and value.strip().lower() in ("", "none") else value


def _from_string(annotation: Any) -> Any:
    """The annotation, made to accept an XML property string."""
    if typing.get_origin(annotation) in (list, tuple):
        return typing.Annotated[annotation, BeforeValidator(_split)]
    if type(None) in typing.get_args(annotation):
        inner = [arg for arg in typing.get_args(annotation) if arg is not type(None)]
        if any(typing.get_origin(arg) in (list, tuple) for arg in inner):
            return typing.Annotated[annotation, BeforeValidator(_split), BeforeValidator(_empty_is_none)]
        return typing.Annotated[annotation, BeforeValidator(_empty_is_none)]
    return annotation


class Gadget:
    """Base class of gadgets. Subclasses declare parameters and implement ``__call__``.

    ``Gadget(name="...", **properties)``: properties may be values or XML strings. Raises `ParameterError` for an unknown name or a
    value that does not fit.
    """

    stock: ClassVar[tuple[tuple[str, str], ...]] = ()
    """(dll, classname) of the Gadgetron gadgets this class stands in for."""

    ignored: ClassVar[tuple[str, ...]] = ()
    """Stock properties that are accepted without effect (debug output, timing switches)."""

    pure: ClassVar[bool] = False
    """Keeps nothing between items: may run in several threads at once (``<parallelprocess>``)."""

    runs_ahead: bool = False
    """Takes its input in a thread of its own, ahead of its output."""

    runs_foreign_code: ClassVar[bool] = False
    """Runs code that its parameters name: refused in configurations sent by clients unless the operator allows it."""

    name: str

    def __init__(self, name: str = "", /, **properties: Any) -> None:
        self.name = name or type(self).__name__
        for key, value in vars(self.validate(properties)).items():
            setattr(self, key, value)

    def __call__(self, items: Stream) -> Iterator[Item]:
        """Consume `items`, yield items."""
        raise NotImplementedError(f"{type(self).__name__} has no __call__")

    @classmethod
    def model(cls) -> type[BaseModel]:
        """The pydantic model of the parameters."""
        cached = cls.__dict__.get("_model")
        if cached is not None:
            return typing.cast("type[BaseModel]", cached)
        hints = typing.get_type_hints(cls, include_extras=True)
        fields: dict[str, Any] = {}
        for base in reversed(cls.__mro__):
            for key, value in vars(base).items():
                if type(value).__name__ == "FieldInfo":
                    fields[key] = (_from_string(hints[key]), value)
        config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())
        model: type[BaseModel] = create_model(cls.__name__, __config__=config, **fields)
        cls._model = model  # type: ignore[attr-defined]
        return model

    @classmethod
    def _aliases(cls) -> dict[str, str]:
        names: dict[str, str] = {}
        for key, info in cls.model().model_fields.items():
            extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
            for alias in typing.cast("list[str]", extra.get("aliases", [])):
                names[alias] = key
        return names

    @classmethod
    def canonical(cls, name: str) -> str | None:
        """The parameter that a property name stands for (itself or an alias); None for a name that is none."""
        right = cls._aliases().get(name, name)
        return right if right in cls.model().model_fields else None

    @classmethod
    def problems(cls, properties: Mapping[str, Any]) -> dict[str, str]:
        """What is wrong with `properties`: name -> text, for unknown names, values that do not fit and missing ones."""
        return cls._check(properties)[1]

    @classmethod
    def validate(cls, properties: Mapping[str, Any]) -> BaseModel:
        """Check property names and values. Raises `ParameterError`."""
        model, problems = cls._check(properties)
        if model is None:
            raise ParameterError(f"{cls.__name__}: {'; '.join(problems.values())}")
        return model

    @classmethod
    def _check(cls, properties: Mapping[str, Any]) -> tuple[BaseModel | None, dict[str, str]]:
        aliases = cls._aliases()
        known = list(cls.model().model_fields)
        values: dict[str, Any] = {}
        given: dict[str, str] = {}
        problems: dict[str, str] = {}
        for key, value in properties.items():
            right = aliases.get(key, key)
            if right in known:
                values[right], given[right] = value, key
            elif key not in cls.ignored:
                near = difflib.get_close_matches(key, [*known, *aliases, *cls.ignored], 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                offer = ", ".join(known) if known else "none"
                problems[key] = f"no property {key!r}{hint} (it has: {offer})"
        try:
            model = cls.model()(**values)
        except ValidationError as error:
            for entry in error.errors():
                name = str(entry["loc"][0]) if entry["loc"] else ""
                if entry["type"] == "missing":
                    problems[name] = f"property {name!r} must be given"
                else:
                    problems[given.get(name, name)] = f"property {given.get(name, name)!r}: {entry['msg']}, got {entry.get('input')!r}"
            return None, problems
        return (None if problems else model), problems

    @classmethod
    def parameters(cls) -> list[dict[str, Any]]:
        """One dictionary a parameter for lists and pages: name, type, default, unit, help, bounds."""
        rows = []
        hints = typing.get_type_hints(cls)
        for key, info in cls.model().model_fields.items():
            extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
            annotation = hints[key]
            rows.append(
                {
                    "name": key,
                    "type": annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", ""),
                    "default": None if info.is_required() else info.default,
                    "required": info.is_required(),
                    "unit": extra.get("unit", ""),
                    "help": info.description or "",
                    "bounds": _bounds(info.metadata),
                }
            )
        return rows


def _bounds(metadata: Iterable[Any]) -> str:
    """Bounds of a parameter in words, such as ``>= 1, < 10``."""
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "pattern": "matches"}
    return ", ".join(f"{sign} {getattr(m, key)}" for m in metadata for key, sign in signs.items() if getattr(m, key, None) is not None)


@dataclass
class Context:
    """What the gadgets of one measurement share.

    measurement: id for every log line; header: the measurement header; seconds: exclusive processing time by gadget name;
    storage: folder for what one measurement leaves for later ones (noise covariances), None where nothing is kept;
    counts: things worth reporting (dropped frames, replaced NaN, ...); failures: see `fail_later`.
    """

    header: Header = field(default_factory=Header)
    measurement: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    storage: Path | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    failures: list[GadgetError] = field(default_factory=list)

    @property
    def log(self) -> logging.LoggerAdapter:
        """Logger that puts the measurement id before every line."""
        return _MeasurementLog(logging.getLogger("reconstream"), {"measurement": self.measurement})

    def count(self, what: str, by: int = 1) -> None:
        """Add to a counter."""
        self.counts[what] = self.counts.get(what, 0) + by

    def fail_later(self, gadget: str, error: Exception) -> None:
        """Log what failed beside the stream and let everything else go on; `run` raises it once all items have left the chain."""
        failure = GadgetError(gadget, error)
        failure.__cause__ = error
        self.log.error("%s", failure)
        self.failures.append(failure)


class _MeasurementLog(logging.LoggerAdapter):
    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:
        return f"[{(self.extra or {})['measurement']}] {msg}", kwargs


class Stream:
    """The items that reach a gadget.

    Iterate `of(Type, ...)` to get the items of these types; all others pass the gadget by, in order. Iterating the stream itself
    yields every item.
    """

    def __init__(self, items: Iterable[Item], context: Context) -> None:
        self._items = iter(items)
        self._passing: deque[Item] = deque()
        self.context = context
        self.waited = 0.0
        self.in_thread = False
        """Set by a gadget that reads the stream in a thread of its own: reading is then no waiting of the gadget's; see `waiting`."""
        self.newest: Item | None = None
        self.broken: BaseException | None = None

    @property
    def header(self) -> Header:
        """The measurement header."""
        return self.context.header

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        start = time.perf_counter()
        try:
            item = next(self._items)
        except Exception as error:
            self.broken = error
            raise
        finally:
            if not self.in_thread:
                self.waited += time.perf_counter() - start
        self.newest = item
        return item

    def of(self, *types: type[T]) -> Iterator[T]:
        """The items of these types. Others are put aside and leave before the gadget's next output, in order."""
        for item in self:
            if isinstance(item, types):
                yield item
            else:
                self._passing.append(item)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Time spent inside counts as waiting for input, not as work (for a gadget that reads in a thread of its own)."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.waited += time.perf_counter() - start

    def close(self) -> None:
        """Stop what feeds this stream (for a gadget that reads it in a thread of its own and is told to stop)."""
        stop(self._items)

    def take_passing(self) -> Iterator[Item]:
        """The items that passed the gadget by since the last call (used by the chain runner)."""
        while self._passing:
            yield self._passing.popleft()


def connect(gadget: Gadget, items: Iterable[Item], context: Context) -> Iterator[Item]:
    """The gadget's output for `items`: order kept, time accounted, errors named.

    Input that the gadget leaves unread when it returns is read to the end and passed on, so nothing is lost. Raises `GadgetError`
    naming the gadget that failed.
    """
    stream = Stream(items, context)
    outputs: Iterator[Item] = iter(())
    try:
        outputs = iter(gadget(stream))
        while True:
            start, waited = time.perf_counter(), stream.waited
            try:
                item = next(outputs)
            except StopIteration:
                break
            finally:
                spent = time.perf_counter() - start - (stream.waited - waited)
                context.seconds[gadget.name] = context.seconds.get(gadget.name, 0.0) + spent
            _stamp(item, stream.newest)
            yield from stream.take_passing()
            yield item
        yield from stream.take_passing()
        yield from stream
    except GadgetError:
        raise
    except Exception as error:
        if error is stream.broken:  # the source failed (client gone, file damaged), not the gadget
            raise
        raise GadgetError(gadget.name, error) from error
    finally:
        # A consumer that gives up (client gone) must stop the whole chain now, threads of gadgets included.
        stop(outputs)
        stop(items)


def stop(source: Any) -> None:
    """Close an iterator if it can be closed; one that runs in a thread just now is left to that thread."""
    close = getattr(source, "close", None)
    if close is None:
        return
    try:
        close()
    except ValueError as error:
        if "already executing" not in str(error):
            raise


def _stamp(item: Item, source: Item | None) -> None:
    if source is None or item is source:
        return
    if not item.received:
        item.received = source.received
    if not item.triggered:
        item.triggered = source.triggered
        if not item.triggered and not isinstance(item, (Acquisition, Waveform)):
            item.triggered = time.perf_counter()


def run(gadgets: Iterable[Gadget], items: Iterable[Item], context: Context) -> Iterator[Item]:
    """Chain `gadgets` over `items`. The same call serves every door: server, worker, pipes, offline.

    Raises
    ------
    GadgetError
        When a gadget raises; what it had yielded before has been yielded. After the last item, for what failed beside the stream
        (`Context.fail_later`).
    """
    stream: Iterable[Item] = items
    for gadget in gadgets:
        stream = connect(gadget, stream, context)
    return _then_failures(stream, context)


def _then_failures(stream: Iterable[Item], context: Context) -> Iterator[Item]:
    try:
        yield from stream
    finally:
        stop(stream)
    if context.failures:
        raise context.failures.pop(0)
