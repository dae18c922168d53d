"""Parameters from the scanner's user interface (FIRE's JSON text after the header) as property overrides."""

from __future__ import annotations

import json
from typing import Any


def overrides_from_json(text: str) -> tuple[str | None, dict[str, str]]:
    """``{"parameters": {"config": ..., "customconfig": ..., "name": value}}`` -> (config name or None, overrides).

    A non-empty ``customconfig`` wins over ``config``, as in FIRE. Raises ValueError for text that is not such a JSON object.
    """
    try:
        content = json.loads(text.rstrip("\0"))
    except ValueError as error:
        raise ValueError(f"the parameters after the header are not JSON ({error}): {text[:80]!r}") from None
    parameters = content.get("parameters", {}) if isinstance(content, dict) else None
    if not isinstance(parameters, dict):
        raise ValueError(f'the parameters after the header must be {{"parameters": {{"name": value, ...}}}}, got {text[:80]!r}')
    config = str(parameters.get("customconfig") or parameters.get("config") or "") or None
    values = {name: _text(name, value) for name, value in parameters.items() if name not in ("config", "customconfig")}
    return config, values


def _text(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return ""
    if isinstance(value, list):
        return ",".join(_text(name, one) for one in value)
    if isinstance(value, dict):
        raise ValueError(f"parameter {name!r} after the header is an object, expected a text, number, switch or list")
    return str(value)
