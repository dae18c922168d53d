"""Finding a gadget by name: our own names, and Gadgetron's dll/classname for the gadgets we stand in for.

A configuration written for Gadgetron runs here because `find` answers its ``<dll>`` and ``<classname>`` with our gadget of the same
behaviour (each class lists what it stands in for in ``stock``). Ours are ``<dll>reconstream</dll>`` plus the class name.
"""

from __future__ import annotations

import difflib
import importlib
from functools import cache

from gadgets.base import Gadget

MODULES = (
    "noise",
    "oversampling",
    "epi",
    "epi_phase",
    "fourier",
    "coils",
    "averaging",
    "accumulate",
    "buffer",
    "cartesian",
    "grappa",
    "compressed_sensing",
    "spirit",
    "sms",
    "partial_fourier",
    "filtering",
    "reference",
    "field_of_view",
    "scaling",
    "images",
    "parallel",
    "handlers",
    "noncartesian",
    "off_resonance",
    "realtime",
    "networks",
    "unet",
    "varnet",
    "dynamic",
    "quantitative",
)
"""Modules of this package that define gadgets."""

OURS = "reconstream"
"""The dll name of our own gadgets."""


@cache
def gadgets() -> dict[str, type[Gadget]]:
    """Every gadget by our name."""
    found: dict[str, type[Gadget]] = {}
    for module in MODULES:
        contents = vars(importlib.import_module(f"gadgets.{module}"))
        for name, value in contents.items():
            if isinstance(value, type) and issubclass(value, Gadget) and value.__module__ == f"gadgets.{module}" and name[0] != "_":
                found[name] = value
    return found


@cache
def stock() -> dict[tuple[str, str], type[Gadget]]:
    """Every gadget by the (dll, classname) of the Gadgetron gadget it stands in for."""
    return {pair: gadget for gadget in gadgets().values() for pair in gadget.stock}


def find(dll: str, classname: str) -> type[Gadget]:
    """The gadget for a ``<dll>`` and ``<classname>``.

    Our own names may come with dll ``reconstream`` or none; a stock name is found in whatever dll it is written with, because
    Gadgetron moved gadgets between libraries. Raises LookupError naming the nearest known name.
    """
    dll, classname = dll.strip(), classname.strip()
    if dll in ("", OURS) and classname in gadgets():
        return gadgets()[classname]
    if (dll, classname) in stock():
        return stock()[dll, classname]
    by_class = {name: gadget for (_, name), gadget in stock().items()}
    if dll != OURS and classname in by_class:
        return by_class[classname]
    near = difflib.get_close_matches(classname, [*gadgets(), *by_class], 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise LookupError(f"no gadget {classname!r} in {dll or OURS!r}{hint} (`reconstream list` shows all)")
