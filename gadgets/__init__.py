"""Gadgets: what a chain is made of."""

from __future__ import annotations

import sys
from typing import Any

_serving = False


def __getattr__(target: str) -> Any:
    # A Gadgetron starts an external module as `python -m gadgetron PORT MODULE TARGET`; attribute TARGET of MODULE is the handler. The
    # module's name is all that a Gadgetron can be given, so this package looks up at `service` then, and at no other time.
    main = getattr(sys.modules.get("__main__"), "__spec__", None)
    if _serving or main is None or main.name != "gadgetron.__main__" or sys.argv[3:4] != [target]:
        raise AttributeError(f"module 'gadgets' has no attribute {target!r}")

    def handler(connection: Any) -> None:
        global _serving
        _serving = True  # from here on `from gadgets import cartesian` means the module again
        from service.worker import handle

        handle(connection, target)

    return handler
