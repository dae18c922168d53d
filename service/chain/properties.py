"""Properties of gadgets: both forms, overrides, and ``property@Gadget`` references."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from service.chain.document import LEGACY, Element
from service.chain.errors import Problem, nearest


@dataclass(frozen=True)
class Property:
    """One property as written; `line` is 0 for an override from outside the file."""

    name: str
    value: str
    line: int


def read_properties(element: Element, legacy: bool, problems: list[Problem]) -> dict[str, Property]:
    """The ``<property>`` children of `element`: name -> property. Of two with the same name the last wins, as in Gadgetron."""
    found: dict[str, Property] = {}
    for child in element.findall("property"):
        assert isinstance(child, Element)
        try:
            one = read_property(child, legacy)
        except ValueError as error:
            problems.append(Problem(child.line, element.place(), str(error)))
            continue
        found[one.name] = one
    return found


def read_property(element: Element, legacy: bool = False) -> Property:
    """One ``<property>``: either attributes or children ``name`` and ``value``. Raises ValueError for both forms at once or neither."""
    attributes = "name" in element.attrib and "value" in element.attrib
    children = element.child("name") is not None and element.child("value") is not None
    name = (element.get("name") or element.child_words("name")).strip()
    label = f"property {name!r}" if name else "a property without a name"
    if attributes and children:
        raise ValueError(f"{label} is ambiguous: it has name and value both as attributes and as children; keep one form")
    if legacy and not children:
        raise ValueError(f"{label}: a <{LEGACY}> file needs <property><name>...</name><value>...</value></property>")
    if not name or not (attributes or children):
        raise ValueError(f'{label} is incomplete: write <property name="..." value="..."/>')
    return Property(name, (element.get("value") if attributes else element.child_words("value")) or "", element.line)


class ReferenceProblem(ValueError):
    """A ``property@Gadget`` reference leads nowhere or round in a circle."""


_LIKE_A_REFERENCE = re.compile(r"[A-Za-z_]\w*@[A-Za-z_][\w\-]*")


class References:
    """Values by ``property@Gadget``.

    A value ``a@b`` is a reference when some gadget is called ``b``, or when it could be nothing else (an identifier on both sides).
    So an e-mail address with a domain, or a sentence, stays what it is; a reference to a misspelt gadget is an error.
    """

    def __init__(self, gadgets: Iterable[tuple[str, Mapping[str, Property]]]) -> None:
        self._values: dict[str, dict[str, str]] = {}
        for name, properties in gadgets:
            if name:
                self._values.setdefault(name, {}).update({p.name: p.value for p in properties.values()})

    def resolve(self, value: str) -> str:
        """The value that `value` stands for. Raises `ReferenceProblem`."""
        path: list[str] = []
        while True:
            target = self._target(value)
            if target is None:
                return value
            if value in path:
                raise ReferenceProblem(f"references run in a circle: {' -> '.join([*path[path.index(value) :], value])}")
            path.append(value)
            prop, gadget = target
            if gadget not in self._values:
                raise ReferenceProblem(
                    f"{value!r} refers to a gadget {gadget!r} that does not exist or has no properties{nearest(gadget, self._values)}"
                )
            if prop not in self._values[gadget]:
                raise ReferenceProblem(f"{value!r}: gadget {gadget!r} sets no property {prop!r}{nearest(prop, self._values[gadget])}")
            value = self._values[gadget][prop]

    def _target(self, value: str) -> tuple[str, str] | None:
        for match in re.finditer("@", value):
            prop, gadget = value[: match.start()].strip(), value[match.end() :].strip()
            if prop and gadget in self._values:
                return prop, gadget
        if _LIKE_A_REFERENCE.fullmatch(value.strip()):
            prop, gadget = value.strip().split("@")
            return prop, gadget
        return None
