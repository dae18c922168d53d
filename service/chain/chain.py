"""A validated chain, ready to run any number of times."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from gadgets.base import Context, Gadget, run
from gadgets.composite import Parallel, ParallelProcess
from gadgets.items import Item
from service.chain.external import External
from service.wire.messages import MessageId


@dataclass
class Chain:
    """What a configuration says: gadgets in order, and the messages it reads and writes.

    readers, writers: message ids, None where the file names none (then any item is welcome); notes: what the operator should know
    before data flow; they are logged as warnings at every run.
    """

    source: str
    gadgets: list[Gadget]
    readers: set[MessageId] | None = None
    writers: set[MessageId] | None = None
    notes: list[str] = field(default_factory=list)

    def run(self, items: Iterable[Item], context: Context) -> Iterator[Item]:
        """The chain's output for `items`. Raises `gadgets.base.GadgetError` naming the gadget that failed."""
        for note in self.notes:
            context.log.warning("%s", note)
        return run(self.gadgets, items, context)

    def describe(self) -> str:
        """The chain in words: one line a gadget, then the parameters that differ from their defaults."""
        lines = [self.source, f"reads:  {_names(self.readers)}", f"writes: {_names(self.writers)}"]
        lines += [f"note:   {note}" for note in self.notes]
        return "\n".join([*lines, *_describe(self.gadgets, "")])


def _names(slots: set[MessageId] | None) -> str:
    return "anything" if slots is None else ", ".join(f"{slot.name.lower()} ({slot.value})" for slot in sorted(slots)) or "nothing"


def _describe(gadgets: Sequence[Gadget], indent: str) -> Iterator[str]:
    if not gadgets:
        yield f"{indent}  (empty: items pass)"
    for number, gadget in enumerate(gadgets, 1):
        head = f"{indent}{number:3d}. {gadget.name}"
        if isinstance(gadget, Parallel):
            yield f"{head}: parallel, {type(gadget.branch).__name__} -> {type(gadget.merge).__name__}"
            for key, inner in gadget.streams.items():
                yield f"{indent}     stream {key!r}"
                yield from _describe(inner, indent + "       ")
        elif isinstance(gadget, ParallelProcess):
            yield f"{head}: {gadget.workers} workers"
            yield from _describe(gadget.gadgets, indent + "       ")
        else:
            kind = f"external process, {gadget.action.words()}" if isinstance(gadget, External) else type(gadget).__name__
            yield head if kind == gadget.name else f"{head}: {kind}"
            for name, value in _changed(gadget):
                yield f"{indent}       {name} = {value!r}"


def _changed(gadget: Gadget) -> Iterator[tuple[str, object]]:
    for row in gadget.parameters():
        value = getattr(gadget, row["name"])
        if row["required"] or value != row["default"]:
            yield row["name"], value
