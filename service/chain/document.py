"""XML text -> elements that know their line, checked for shape against both of Gadgetron's schemas.

The shape is a table: which elements and attributes may stand where. Namespaces are ignored, as Gadgetron does.
"""

from __future__ import annotations

from typing import Any
from xml.etree.ElementTree import Element as PlainElement
from xml.etree.ElementTree import TreeBuilder
from xml.sax import SAXException, SAXParseException
from xml.sax.handler import ContentHandler

from defusedxml.common import DefusedXmlException
from defusedxml.sax import parseString

from service.chain.errors import ConfigError, Problem, nearest

DEEPEST = 64
"""Nesting limit: deeper than any real chain, shallow enough for the recursive builder."""

LEGACY = "gadgetronStreamConfiguration"
"""Root element of the old schema; its gadgets stand directly below it."""

_NAMED = {"name", "dll", "classname", "property"}
CHILDREN: dict[str, set[str]] = {
    LEGACY: {"reader", "writer", "gadget"},
    "configuration": {"version", "readers", "writers", "stream"},
    "readers": {"reader"},
    "writers": {"writer"},
    "reader": {"slot", "dll", "classname"},
    "writer": {"slot", "dll", "classname"},
    "stream": {"gadget", "parallel", "external", "parallelprocess", "distributed", "puredistributed"},
    "gadget": _NAMED,
    "branch": _NAMED,
    "merge": _NAMED,
    "distributor": _NAMED,
    "property": {"name", "value"},
    "parallel": {"branch", "merge", "stream"},
    "external": {"execute", "connect", "readers", "writers", "configuration", "property"},
    "parallelprocess": {"purestream"},
    "purestream": {"gadget"},
    "distributed": {"readers", "writers", "distributor", "stream"},
    "puredistributed": {"readers", "writers", "purestream"},
}
"""Element -> elements that may stand in it. ``<property>`` in ``<external>`` is ours (Gadgetron overlooks it)."""

ATTRIBUTES: dict[str, set[str]] = {
    "stream": {"key"},
    "property": {"name", "value"},
    "execute": {"name", "type", "target"},
    "connect": {"address", "port"},
    "parallelprocess": {"workers"},
}
"""Element -> its attributes; elements not named have none (the root may have any: name spaces, schema locations)."""


class Element(PlainElement):
    """An XML element that knows the line it began on."""

    line: int = 0

    @property
    def words(self) -> str:
        """The text without white space around it."""
        return (self.text or "").strip()

    def child(self, tag: str) -> Element | None:
        """First child of that tag."""
        found = self.find(tag)
        return found if isinstance(found, Element) else None

    def child_words(self, tag: str) -> str:
        """Text of the first child of that tag, stripped; empty when absent."""
        found = self.child(tag)
        return "" if found is None else found.words

    def place(self, name: str = "") -> str:
        """How errors call the element."""
        label = name or self.child_words("name") or self.child_words("classname")
        return f"<{self.tag}> {label!r}" if label else f"<{self.tag}>"


class _Handler(ContentHandler):
    def __init__(self) -> None:
        super().__init__()
        self.builder = TreeBuilder(element_factory=Element)
        self.depth = 0

    def startElement(self, name: str, attrs: Any) -> None:
        self.depth += 1
        if self.depth > DEEPEST:
            raise SAXException(f"elements are nested more than {DEEPEST} deep")
        element = self.builder.start(name, dict(attrs.items()))
        assert isinstance(element, Element)
        element.line = self._locator.getLineNumber()  # type: ignore[attr-defined]

    def endElement(self, name: str) -> None:
        self.depth -= 1
        self.builder.end(name)

    def characters(self, content: str) -> None:
        self.builder.data(content)


def parse(xml: bytes, source: str) -> Element:
    """The root element of a configuration; trailing NULs are tolerated. Raises `ConfigError` for XML that is not well-formed."""
    text = xml.rstrip(b"\0")
    if not text.strip():
        raise ConfigError(source, [Problem(0, "", "the configuration is empty")])
    handler = _Handler()
    try:
        parseString(text, handler)
    except SAXParseException as error:
        raise ConfigError(source, [Problem(error.getLineNumber() or 1, "", f"not well-formed XML: {error.getMessage()}")]) from None
    except DefusedXmlException as error:
        raise ConfigError(source, [Problem(0, "", f"refused: {error} (entities and external references are not allowed)")]) from None
    except (SAXException, UnicodeError, LookupError, ValueError) as error:
        raise ConfigError(source, [Problem(0, "", f"cannot be parsed: {error}")]) from None
    root = handler.builder.close()
    assert isinstance(root, Element)
    return root


def is_raw(element: Element, parent: Element | None) -> bool:
    """Whether the element is an external module's ``<configuration>``, whose content is the module's own."""
    return element.tag == "configuration" and parent is not None


def check_shape(root: Element) -> list[Problem]:
    """Problems of shape: wrong root or version, unknown elements and attributes."""
    if root.tag not in (LEGACY, "configuration"):
        text = f"root element <{root.tag}>, expected <configuration> (version 2) or <{LEGACY}>"
        return [Problem(root.line, f"<{root.tag}>", text)]
    if root.tag == "configuration" and root.child_words("version") != "2":
        version = root.child_words("version")
        text = f"<version> is {version!r}, expected '2'" if root.child("version") is not None else "<version>2</version> is missing"
        return [Problem(root.line, "<configuration>", text)]
    problems: list[Problem] = []
    _check(root, None, root.tag == LEGACY, problems)
    return problems


def _check(element: Element, parent: Element | None, legacy: bool, problems: list[Problem]) -> None:
    known = CHILDREN.get(element.tag, set())
    attributes = set() if legacy and element.tag == "property" else ATTRIBUTES.get(element.tag, set())
    if parent is not None:
        for name in element.attrib:
            if name not in attributes and not name.startswith("xml"):
                hint = "; in this old schema a property has the children <name> and <value>" if legacy else nearest(name, attributes)
                problems.append(Problem(element.line, element.place(), f"unknown attribute {name!r}{hint}"))
    if element.tag in CHILDREN and parent is not None and element.tag not in ("property",) and element.words:
        problems.append(Problem(element.line, element.place(), f"stray text {element.words[:40]!r}"))
    for child in element:
        assert isinstance(child, Element)
        if child.tag not in known:
            problems.append(Problem(child.line, element.place(), f"unknown element <{child.tag}>{nearest(child.tag, known)}"))
        elif not is_raw(child, element):
            _check(child, element, legacy, problems)
