"""XML -> validated chain. Every fault of a file is found before any data flow, and all of them are reported at once."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn
from xml.etree.ElementTree import Element as PlainElement
from xml.etree.ElementTree import tostring

from gadgets import stock
from gadgets.base import Gadget
from gadgets.composite import Branch, Merge, Parallel, ParallelProcess
from gadgets.handlers import PythonHandler
from service.chain.chain import Chain
from service.chain.document import LEGACY, Element, check_shape, parse
from service.chain.errors import ConfigError, Problem, nearest
from service.chain.external import COMMANDS, Connect, Execute, External
from service.chain.properties import Property, ReferenceProblem, References, read_properties
from service.chain.slots import ALL_READERS, ALL_WRITERS, slot_of
from service.wire.messages import MessageId


@dataclass(frozen=True)
class Policy:
    """What a configuration may do.

    allow_external: start or connect to other programs (``<external>``), run Python functions it names, load gadgets from any importable
    module. Right for configurations of the operator; for those that a client sends only with ``--allow-external``.
    """

    allow_external: bool = False


def load(
    xml: bytes, *, source: str = "config", overrides: Mapping[str, str] | None = None, policy: Policy | None = None, strict: bool = True
) -> Chain:
    """Read and check a configuration (both schemas).

    source: what errors call the file; overrides: ``property`` (of every gadget that has it) or ``property@Gadget`` -> value; strict:
    an override that fits nowhere is an error, otherwise a note in the log.

    Raises `ConfigError` listing everything that is wrong.
    """
    root = parse(xml, source)
    problems = check_shape(root)
    if problems and root.tag not in (LEGACY, "configuration"):
        raise ConfigError(source, problems)
    return _Loader(root, source, problems, policy or Policy()).load(dict(overrides or {}), strict)


@dataclass
class _Declaration:
    """An element that names a gadget, with its properties as written and overridden."""

    element: Element
    name: str
    kind: type[Gadget] | None
    properties: dict[str, Property]
    names: set[str] = field(default_factory=set)


class _Fault(Exception):
    """Something is wrong with an element; turned into a `Problem` by whoever knows the element."""


class _Loader:
    def __init__(self, root: Element, source: str, problems: list[Problem], policy: Policy) -> None:
        self.root, self.source, self.problems, self.policy = root, source, problems, policy
        self.legacy = root.tag == LEGACY
        self.notes: list[str] = []
        self.declared: dict[Element, _Declaration] = {}
        self.references = References([])

    def load(self, overrides: dict[str, str], strict: bool) -> Chain:
        self._declare(self.root)
        self._override(overrides, strict)
        self.references = References((d.name, d.properties) for d in self.declared.values())
        if self.legacy:
            readers, writers = self._slots(self.root, "reader"), self._slots(self.root, "writer")
            gadgets = self._stream(self.root)
        else:
            readers, writers = self._slots(self.root.child("readers"), "reader"), self._slots(self.root.child("writers"), "writer")
            stream = self.root.child("stream")
            if stream is None:
                self._problem(self.root, "there is no <stream>")
            gadgets = [] if stream is None else self._stream(stream)
        if self.problems:
            raise ConfigError(self.source, self.problems)
        return Chain(self.source, gadgets, readers, writers, self.notes)

    def _problem(self, element: Element, text: str, line: int | None = None, name: str = "") -> None:
        self.problems.append(Problem(element.line if line is None else line, element.place(name), text))

    # -- first pass: who is there ------------------------------------------------------------------------------------

    def _declare(self, parent: Element) -> None:
        for element in parent:
            assert isinstance(element, Element)
            if element.tag in ("gadget", "branch", "merge", "external"):
                self.declared[element] = self._declaration(element)
            if element.tag != "external":
                self._declare(element)

    def _declaration(self, element: Element) -> _Declaration:
        properties = read_properties(element, self.legacy, self.problems)
        if element.tag == "external":
            execute = element.child("execute")
            names = set() if execute is None else {execute.get("name", ""), f"{execute.get('name', '')}.{execute.get('target', '')}"}
            return _Declaration(element, "", External, properties, names - {""})
        classname = element.child_words("classname")
        name = element.child_words("name")
        names = {name, classname} - {""}
        if is_legacy_python(element):
            return _Declaration(element, name, External, properties, names)
        kind: type[Gadget] | None = None
        try:
            kind = self._class(element.child_words("dll"), classname)
            self._check_role(element, kind)
        except _Fault as fault:
            self._problem(element, str(fault))
        return _Declaration(element, name, kind, properties, names)

    def _class(self, dll: str, classname: str) -> type[Gadget]:
        if not classname:
            raise _Fault("needs a <classname>")
        if dll in ("", stock.OURS) or dll.startswith("gadgetron"):
            try:
                kind = stock.find(dll, classname)
            except LookupError as error:
                raise _Fault(str(error.args[0])) from None
            if kind.runs_foreign_code:
                self._need_permission(f"{classname} runs code that the configuration names")
            return kind
        self._need_permission(f"<dll> {dll!r} is a Python module of its own (known: {stock.OURS!r} and Gadgetron's)")
        return foreign(dll, classname)

    def _check_role(self, element: Element, kind: type[Gadget]) -> None:
        for role, tag in ((Branch, "branch"), (Merge, "merge")):
            if issubclass(kind, role) != (element.tag == tag):
                raise _Fault(f"{kind.__name__} {'belongs' if issubclass(kind, role) else 'does not belong'} in a <{tag}> of <parallel>")

    def _need_permission(self, what: str) -> None:
        if not self.policy.allow_external:
            raise _Fault(f"{what}: refused in a configuration from a client; the operator can start the server with --allow-external")

    # -- second pass: overrides --------------------------------------------------------------------------------------

    def _override(self, overrides: dict[str, str], strict: bool) -> None:
        for key, value in overrides.items():
            name, _, gadget = key.partition("@")
            try:
                self._override_one(name, gadget, value)
            except _Fault as fault:
                if strict:
                    self.problems.append(Problem(0, f"override {key!r}", str(fault)))
                else:
                    self.notes.append(f"override {key!r} is not used: {fault}")

    def _override_one(self, name: str, gadget: str, value: str) -> None:
        declared = list(self.declared.values())
        if gadget:
            known = {n for d in declared for n in d.names}
            declared = [d for d in declared if gadget in d.names]
            if not declared:
                raise _Fault(f"no gadget {gadget!r}{nearest(gadget, known)}")
        if not any([_apply(d, name, value, bool(gadget)) for d in declared]):
            known = {n for d in declared if d.kind is not None for n in d.kind.model().model_fields}
            raise _Fault(f"no gadget of this chain has a property {name!r}{nearest(name, known)}")

    # -- third pass: build -------------------------------------------------------------------------------------------

    def _stream(self, parent: Element) -> list[Gadget]:
        gadgets: list[Gadget] = []
        for element in parent:
            assert isinstance(element, Element)
            build = _BUILDERS.get(element.tag)
            if build is None:
                continue
            try:
                gadgets += build(self, element)
            except _Fault as fault:
                self._problem(element, str(fault))
        return gadgets

    def _gadget(self, element: Element) -> list[Gadget]:
        declaration = self.declared[element]
        if is_legacy_python(element):
            return [self._legacy_python(declaration)]
        gadget = self._instance(declaration)
        return [] if gadget is None else [gadget]

    def _instance(self, declaration: _Declaration) -> Gadget | None:
        if declaration.kind is None:
            return None
        values = self._values(declaration)
        wrong = declaration.kind.problems(values)
        for name, text in wrong.items():
            line = declaration.properties[name].line if name in declaration.properties else declaration.element.line
            self._problem(declaration.element, f"{declaration.kind.__name__}: {text}", line)
        if wrong:
            return None
        return declaration.kind(declaration.name or declaration.element.child_words("classname"), **values)

    def _values(self, declaration: _Declaration) -> dict[str, str]:
        values: dict[str, str] = {}
        for one in declaration.properties.values():
            try:
                values[one.name] = self.references.resolve(one.value)
            except ReferenceProblem as error:
                self._problem(declaration.element, f"property {one.name!r}: {error}", one.line)
        return values

    def _parallel(self, element: Element) -> list[Gadget]:
        parts: dict[str, Gadget] = {}
        for tag in ("branch", "merge"):
            found = element.findall(tag)
            if len(found) != 1:
                self._problem(element, f"needs exactly one <{tag}>, has {len(found)}")
            for child in found:
                assert isinstance(child, Element)
                part = self._instance(self.declared[child])
                if part is not None:
                    parts[tag] = part
        streams: dict[str, list[Gadget]] = {}
        for child in element.findall("stream"):
            assert isinstance(child, Element)
            key = child.get("key", "")
            if key in streams:
                self._problem(child, f"two streams with the key {key!r}; give each its own")
            streams[key] = self._stream(child)
        if not streams:
            raise _Fault("needs at least one <stream>")
        branch, merge = parts.get("branch"), parts.get("merge")
        if isinstance(branch, Branch) and isinstance(merge, Merge):
            return [Parallel("parallel", branch, streams, merge)]
        return []

    def _parallelprocess(self, element: Element) -> list[Gadget]:
        text = (element.get("workers") or "").strip()
        if not text.isdecimal():
            self._problem(element, f"workers is {text!r}, expected a number (0 = one a core)" if text else 'needs workers="..."')
        gadgets = self._purestream(element)
        for gadget in gadgets:
            if not gadget.pure:
                self._problem(element, f"{gadget.name} keeps state between items and cannot run in parallel; move it out of the block")
        return [ParallelProcess("parallelprocess", gadgets, int(text))] if text.isdecimal() else []

    def _purestream(self, element: Element) -> list[Gadget]:
        stream = element.child("purestream")
        if stream is None:
            raise _Fault("needs a <purestream>")
        return self._stream(stream)

    def _distributed(self, element: Element) -> list[Gadget]:
        self._local(element)
        if element.child("distributor") is None:
            self._problem(element, "needs a <distributor>")
        stream = element.child("stream")
        if stream is None:
            raise _Fault("needs a <stream>")
        return self._stream(stream)

    def _puredistributed(self, element: Element) -> list[Gadget]:
        self._local(element)
        return self._purestream(element)

    def _local(self, element: Element) -> None:
        for tag in ("reader", "writer"):
            self._slots(element.child(f"{tag}s"), tag)
        note = "distributed streams run locally, in this process"
        if note not in self.notes:
            self.notes.append(note)

    # -- external modules --------------------------------------------------------------------------------------------

    def _external(self, element: Element) -> list[Gadget]:
        self._need_permission("<external> runs another program")
        actions = [*element.findall("execute"), *element.findall("connect")]
        if len(actions) != 1:
            raise _Fault(f"needs exactly one <execute> or <connect>, has {len(actions)}")
        declaration = self.declared[element]
        values = self._values(declaration)
        in_process = _switch(values.pop("in_process", "false"))
        action = actions[0]
        assert isinstance(action, Element)
        raw = element.child("configuration")
        configuration = b"" if raw is None else _serialized(raw)
        if action.tag == "connect":
            if in_process:
                raise _Fault("in_process needs <execute>, not <connect>")
            port = (action.get("port") or "").strip()
            if not port.isdecimal() or not 0 < int(port) < 65536:
                raise _Fault(f"<connect> port is {port!r}, expected 1 to 65535")
            return [self._module(declaration, Connect(action.get("address") or "localhost", int(port)), configuration, values)]
        name, target, kind = ((action.get(key) or "").strip() for key in ("name", "target", "type"))
        if not name:
            raise _Fault('<execute> needs name="..."')
        return [self._executed(declaration, Execute(name, target, kind.lower()), configuration, values, in_process)]

    def _legacy_python(self, declaration: _Declaration) -> Gadget:
        self._need_permission("PythonGadget runs another program")
        given = self._values(declaration)
        for key in ("python_module", "python_class"):
            if not given.get(key):
                raise _Fault(f"PythonGadget needs the property {key!r}{nearest(key, given)}")
        own = {name: value for name, value in given.items() if External.canonical(name) is not None}
        configuration = Element("configuration")
        for name, value in given.items():
            configuration.append(Element("property", {"name": name, "value": value}))
        action = Execute(given["python_module"], given["python_class"], "python")
        in_process = _switch(given.get("in_process", "false"))
        return self._executed(declaration, action, _serialized(configuration), own, in_process)

    def _executed(self, declaration: _Declaration, action: Execute, configuration: bytes, own: dict[str, str], in_process: bool) -> Gadget:
        if action.type not in COMMANDS:
            raise _Fault(f"<execute> type is {action.type!r}{nearest(action.type, COMMANDS)}")
        if in_process:
            if action.type != "python":
                raise _Fault(f"in_process is for python modules, not {action.type}")
            named = {"module": action.name, "target": action.target, "style": "gadgetron", "config": configuration.decode(), **own}
            wrong = PythonHandler.problems(named)
            if wrong:
                raise _Fault("; ".join(wrong.values()))
            return PythonHandler(declaration.name or action.label(), **named)
        command = COMMANDS[action.type]
        if command is not None and shutil.which(command) is None:
            raise _Fault(f"<execute> type is {action.type!r}, but there is no command {command!r} on this machine's PATH")
        if action.type == "julia" and not action.target:
            raise _Fault("<execute> of a julia module needs a target")
        return self._module(declaration, action, configuration, own)

    def _module(self, declaration: _Declaration, action: Execute | Connect, configuration: bytes, own: dict[str, str]) -> External:
        wrong = External.problems(own)
        if wrong:
            raise _Fault("; ".join(wrong.values()))
        readers = self._slots(declaration.element.child("readers"), "reader")
        writers = self._slots(declaration.element.child("writers"), "writer")
        name = declaration.name or action.label()
        return External(
            name,
            action,
            configuration=configuration,
            readers=frozenset(readers) if readers else ALL_READERS,
            writers=frozenset(writers) if writers else ALL_WRITERS,
            **own,
        )

    def _slots(self, parent: Element | None, tag: str) -> set[MessageId] | None:
        if parent is None:
            return None
        slots: set[MessageId] = set()
        for child in parent.findall(tag):
            assert isinstance(child, Element)
            try:
                slots.add(slot_of(child))
            except ValueError as error:
                self._problem(child, str(error))
        return slots or None


_BUILDERS = {
    "gadget": _Loader._gadget,
    "parallel": _Loader._parallel,
    "external": _Loader._external,
    "parallelprocess": _Loader._parallelprocess,
    "distributed": _Loader._distributed,
    "puredistributed": _Loader._puredistributed,
}


def is_legacy_python(element: Element) -> bool:
    """Whether the gadget is Gadgetron's PythonGadget, which stands for an external module."""
    return element.child_words("dll") == "gadgetron_python" and element.child_words("classname") == "PythonGadget"


def foreign(module: str, classname: str) -> type[Gadget]:
    """A gadget class of any importable module. Raises `_Fault` naming the nearest one it has."""
    try:
        contents = vars(importlib.import_module(module))
    except Exception as error:
        _refuse(f"cannot import <dll> {module!r}: {type(error).__name__}: {error}")
    kinds = {name: kind for name, kind in contents.items() if isinstance(kind, type) and issubclass(kind, Gadget) and kind is not Gadget}
    if classname not in kinds:
        raise _Fault(f"module {module!r} has no gadget {classname!r}{nearest(classname, kinds)}")
    return kinds[classname]


def _serialized(element: Element) -> bytes:
    element.tail = None
    text: bytes = tostring(element, "utf-8", xml_declaration=False)
    return text


def _refuse(text: str) -> NoReturn:
    raise _Fault(text)


def _switch(value: str) -> bool:
    if value.strip().lower() not in ("true", "false"):
        raise _Fault(f"in_process is {value!r}, expected true or false")
    return value.strip().lower() == "true"


def _apply(declaration: _Declaration, name: str, value: str, addressed: bool) -> bool:
    """Set a property from outside; whether it found its place."""
    kind, properties = declaration.kind, declaration.properties
    known = None if kind is None else kind.canonical(name)
    if kind is not None and known is not None:
        # the name as the file spells it stays, because references use it
        name = next((key for key in properties if kind.canonical(key) == known), name)
    elif is_legacy_python(declaration.element):
        if not addressed and name not in properties:
            return False
    elif kind is PythonHandler:  # unknown names are for the function it runs
        extra = json.loads(properties["extra"].value) if "extra" in properties else {}
        name, value = "extra", json.dumps({**extra, name: value})
    elif declaration.element.tag == "external":
        return _configure(declaration.element, name, value, addressed)
    else:
        return False
    properties[name] = Property(name, value, 0)
    return True


def _configure(external: Element, name: str, value: str, addressed: bool) -> bool:
    """Set a property in an external module's ``<configuration>``: one that it has, or a new one when the module was addressed."""
    configuration = external.child("configuration")
    found = [] if configuration is None else [child for child in configuration.iter("property") if _property_name(child) == name]
    for child in found:
        child.clear()
        child.attrib.update({"name": name, "value": value})
    if not found and addressed:
        if configuration is None:
            configuration = Element("configuration")
            external.append(configuration)
        configuration.append(Element("property", {"name": name, "value": value}))
    return bool(found) or addressed


def _property_name(element: PlainElement) -> str:
    return (element.get("name") or element.findtext("name") or "").strip()
