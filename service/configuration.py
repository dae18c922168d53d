"""What the ``<configuration>`` of an ``<external>`` node asks of us: which of our chains to run, with which properties.

Three forms, as a Gadgetron sends them:

* ``<property name="config" value="radial_cgsense.xml"/>``, further properties override the chain's;
* a chain inside: ``<stream>``, with or without ``<version>``, ``<readers>``, ``<writers>``;
* the gadgets alone: ``<gadget>…</gadget><gadget>…</gadget>``.

Without any of these, the target of ``<execute name="gadgets" target="radial_cgsense" type="python"/>`` names a config or a gadget.
"""

from __future__ import annotations

from xml.etree.ElementTree import Element, SubElement, tostring

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring

from gadgets import stock
from service.chain import Chain, ConfigError, Policy, config_folders, find_config, load

PLACE = "<external> configuration"


class ConfigurationError(ValueError):
    """A ``<configuration>`` names no chain, or cannot be read."""


def chain_for(configuration: bytes, target: str = "", *, allow_external: bool = False) -> Chain:
    """The chain that `configuration` (XML) or, where it names none, `target` asks for.

    Raises `ConfigurationError` or `service.chain.ConfigError`.
    """
    root = _parse(configuration)
    properties = _properties(root)
    name = properties.pop("config", "")
    if root.find("stream") is not None or root.find("gadget") is not None or root.tag == "gadgetronStreamConfiguration":
        return load(_complete(root), source=PLACE, overrides=properties, policy=Policy(allow_external=allow_external))
    if not name and not target:
        raise ConfigurationError(
            'it names no chain; write <property name="config" value="radial_cgsense.xml"/>, or <gadget> elements, into <configuration>'
        )
    if not name and _is_gadget(target):
        return load(_single(target, properties), source=f"gadget {target}")
    try:
        path, xml = find_config(name or target, config_folders())
    except ConfigError as error:
        hint = "" if name else "; nor is it a gadget (`reconstream list` shows both)"
        raise ConfigurationError(f"{error}{hint}") from error
    # A config from the server's own folder is the operator's, so it may start programs.
    return load(xml, source=str(path), overrides=properties, policy=Policy(allow_external=True))


def _parse(configuration: bytes) -> Element:
    """The root; an empty one for the empty document that Gadgetron sends where there is no ``<configuration>``."""
    text = configuration.strip(b"\0 \r\n\t")
    if not text or (text.startswith(b"<?xml") and text.endswith(b"?>")):
        return Element("configuration")
    try:
        root: Element = fromstring(text)
    except (ParseError, DefusedXmlException, ValueError) as error:
        raise ConfigurationError(f"not well-formed XML ({error}); it begins {text[:60]!r}") from error
    for element in root.iter():
        element.tag = element.tag.rsplit("}", 1)[-1]
    return root


def _properties(root: Element) -> dict[str, str]:
    """Properties directly below the root, in either form."""
    found = {}
    for element in root.findall("property"):
        name, value = element.get("name") or element.findtext("name"), element.get("value")
        if not name:
            raise ConfigurationError('a <property> has no name; write <property name="…" value="…"/>')
        found[name.strip()] = value if value is not None else (element.findtext("value") or "")
    return found


def _complete(root: Element) -> bytes:
    """The configuration as a config file of version 2."""
    if root.tag == "gadgetronStreamConfiguration":
        return tostring(root)
    whole = Element("configuration")
    SubElement(whole, "version").text = "2"
    whole.extend(child for child in root if child.tag in ("readers", "writers", "stream"))
    if root.find("stream") is None:
        SubElement(whole, "stream").extend(child for child in root if child.tag not in ("readers", "writers", "version", "property"))
    return tostring(whole)


def _single(gadget: str, properties: dict[str, str]) -> bytes:
    """A chain of one gadget."""
    whole = Element("configuration")
    SubElement(whole, "version").text = "2"
    element = SubElement(SubElement(whole, "stream"), "gadget")
    SubElement(element, "dll").text = stock.OURS
    SubElement(element, "classname").text = gadget
    for name, value in properties.items():
        SubElement(element, "property", name=name, value=value)
    return tostring(whole)


def _is_gadget(name: str) -> bool:
    return name in stock.gadgets()
