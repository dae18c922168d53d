"""PyQMRI's model files: sections of an .ini with a formula."""

from __future__ import annotations

import configparser
import re
from pathlib import Path
from typing import Any

from recon.quantitative.model import ModelError
from recon.quantitative.symbolic import Description, described

_NEEDED = ("parameter", "unknowns", "signal", "box_constraints_lower", "box_constraints_upper", "real_value_constraints", "guess")
_PER_VOXEL = {"fa_corr": 1.0}
"""Parameters that PyQMRI reads from datasets, with the value to take without them."""
_TRUE = ("yes", "true", "t", "y", "1")
_FALSE = ("no", "false", "f", "n", "0")


def read_ini(path: Path, section: str | None = None) -> Description:
    """The model of a section, in the terms of symbolic models.

    Unknown names are symbols of their own, so that an unknown T is no part of TE, as it is in PyQMRI's textual replacement; a single
    unknown is fine. The first complex unknown in which the signal is linear is its amplitude. `rescale` gives the maps.

    Args:
        path: the .ini file.
        section: its name; may be left out when the file has only one.

    Raises:
        ModelError: the file cannot be read, or the section is missing or incomplete.
    """
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError, configparser.Error) as error:
        raise ModelError(f"model file {path} cannot be read: {error}") from error
    sections = parser.sections()
    if section is None and len(sections) == 1:
        section = sections[0]
    if section not in sections:
        raise ModelError(f"model file {path} has no section {section or '(name one)'}; it has {', '.join(sections) or 'none'}")
    return described(_content(f"{path}:{section}", section, dict(parser[section])), f"{path}:{section}")


def _content(where: str, name: str, keys: dict[str, str]) -> dict[str, Any]:
    if missing := [key for key in _NEEDED if key not in keys]:
        raise ModelError(f"model {where} lacks {', '.join(missing)}")
    unknowns = re.split(r"[\s,]+", keys["unknowns"].strip())
    parameters = re.split(r"[\s,]+", keys["parameter"].strip())
    lower, upper = (_split(where, keys, key, unknowns) for key in ("box_constraints_lower", "box_constraints_upper"))
    real, guess = (_split(where, keys, key, unknowns) for key in ("real_value_constraints", "guess"))
    described_unknowns = {
        unknown: {
            "lower": _number(where, "box_constraints_lower", lower[n]),
            "upper": _number(where, "box_constraints_upper", upper[n]),
            "real": _flag(where, "real_value_constraints", real[n]),
            **_start(where, guess[n]),
        }
        for n, unknown in enumerate(unknowns)
    }
    if (amplitude := _amplitude(where, keys["signal"], described_unknowns, parameters)) is not None:
        described_unknowns[amplitude]["amplitude"] = True
    rescale = _split(where, keys, "rescale", unknowns) if keys.get("rescale") else []
    return {
        "name": name,
        "signal": keys["signal"],
        "unknowns": described_unknowns,
        "parameters": {key: {"per": "any", "negative": True} for key in parameters if key not in _PER_VOXEL},
        "fields": {key: {"default": _PER_VOXEL[key]} for key in parameters if key in _PER_VOXEL},
        "maps": {unknown: {"value": value} for unknown, value in zip(unknowns, rescale, strict=False)},
        "individual_phase": _flag(where, "estimate_individual_phase", keys.get("estimate_individual_phase", "False")),
    }


def _split(where: str, keys: dict[str, str], key: str, unknowns: list[str]) -> list[str]:
    """Values between commas that are not within brackets."""
    values = [value.strip() for value in re.split(r",(?![^(]*\))", keys[key])]
    if len(values) != len(unknowns):
        raise ModelError(f"model {where}: {key} has {len(values)} values for the {len(unknowns)} unknowns {', '.join(unknowns)}")
    return values


def _number(where: str, key: str, text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ModelError(f"model {where}: {key} holds {text!r}, which is no number") from error


def _flag(where: str, key: str, text: str) -> bool:
    if text.strip().lower() in _TRUE:
        return True
    if text.strip().lower() in _FALSE:
        return False
    raise ModelError(f"model {where}: {key} holds {text!r}; write True or False")


def _start(where: str, text: str) -> dict[str, Any]:
    if found := re.fullmatch(r"image_?(\d+)", text):
        return {"start_image": int(found[1])}
    return {"start": _number(where, "guess", text)}


def _amplitude(where: str, signal: str, unknowns: dict[str, dict[str, Any]], parameters: list[str]) -> str | None:
    """The first complex unknown to which the signal is proportional."""
    import sympy

    from recon.quantitative.expressions import parse, symbol

    formula = parse(signal, {*unknowns, *parameters}, f"signal of {where}")
    for name, part in unknowns.items():
        if not part["real"] and sympy.simplify(formula - symbol(name) * sympy.diff(formula, symbol(name))) == 0:
            return name
    return None
