"""Gadgets: what a chain is made of."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import Any


def __getattr__(target: str) -> Any:
    # A Gadgetron starts its external modules as `python -m gadgetron PORT MODULE TARGET`, and takes attribute TARGET of the importable
    # MODULE for the handler. Only then, and only when it runs, this package looks up at `service`: the module's name is all that a
    # Gadgetron can be given.
    main = getattr(sys.modules.get("__main__"), "__spec__", None)
    if main is None or main.name != "gadgetron.__main__" or target.startswith("__") or _is_submodule(target):
        raise AttributeError(f"module 'gadgets' has no attribute {target!r}")

    def handler(connection: Any) -> None:
        from service.worker import handle

        handle(connection, target)

    return handler


def _is_submodule(name: str) -> bool:
    return "." not in name and find_spec(f"gadgets.{name}") is not None
