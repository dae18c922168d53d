"""Settings of a fit from PyQMRI's configuration files and from the command line."""

from __future__ import annotations

import configparser
import difflib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from recon.quantitative.settings import NAMES, Regularisation, Settings
from service.quantitative.source import SourceError

_SLICE = 256**2
"""Voxels of the slices for which PyQMRI's weights are ours; see `Settings`."""
_SCALED = ("gamma", "gamma_min")
_WITHOUT_EFFECT = (
    "display_iterations", "adaptive_stepsize", "omega", "omega_min", "omega_dec", "precond_startiter", "adaptive_gamma", "dt_custom", "tol",
    "beta", "precond", "cutoffpre",
)  # fmt: skip
"""PyQMRI's keys for plots, for models that do not use them, and for the solver's step sizes and metric, which are found here."""
_TYPES: dict[str, Any] = {item.name: type(item.default) for item in fields(Settings)}
_PROPER = {name.lower(): name for name in _TYPES}


def regularisation(name: str) -> Regularisation:
    """The regularisation of a name in any case of letters; NoReg is none. Raises `SourceError`."""
    known: dict[str, Regularisation] = {one.lower(): one for one in NAMES} | {"noreg": "none"}
    if name.lower() not in known:
        raise SourceError(f"--reg {name}: there are {', '.join(NAMES)}")
    return known[name.lower()]


def build_settings(
    reg: str, config: str = "", changes: Mapping[str, str] | None = None, voxels: int = _SLICE, spacing: float = 1.0
) -> tuple[Settings, list[str]]:
    """Settings, and what the user should know of keys without effect.

    Args:
        reg: name of the regularisation.
        config: PyQMRI's configuration file, with or without ``.ini``; its section of that name counts. Its weights of the
            regularisation belong to slices of `voxels`; they are brought to ours.
        changes: settings by name, in our units; they win.
        voxels: in a slice.
        spacing: `dz`.

    Raises:
        SourceError: the file, a name or a value is wrong.
    """
    kind = regularisation(reg)
    values: dict[str, Any] = {"dz": spacing}
    notes: list[str] = []
    if config:
        read, ignored = _from_file(config, kind)
        values |= {name: value * _SLICE / voxels if name in _SCALED else value for name, value in read.items()}
        if ignored:
            notes.append(f"{config}: without effect here: {', '.join(ignored)}")
    for name, text in (changes or {}).items():
        values[_proper(name, "--set")] = _value(_proper(name, "--set"), text, "--set")
    try:
        return Settings.of(kind, **values), notes
    except (TypeError, ValueError) as error:
        raise SourceError(f"settings of the fit: {error}") from error


def weights_of(reg: str, config: str) -> list[float] | None:
    """Weights of the unknowns' regularisation in a configuration file (key ``weights``, numbers with commas); None without.

    Raises:
        SourceError: see `build_settings`.
    """
    _, section = _section(config, regularisation(reg))
    text = section.get("weights", "").strip(" []()")
    try:
        return [float(value) for value in text.replace(",", " ").split()] or None
    except ValueError:
        raise SourceError(f"--config {config}: weights = {text!r}: write numbers with commas between them") from None


def _section(config: str, kind: str) -> tuple[Path, Mapping[str, str]]:
    path = Path(config) if config.endswith(".ini") else Path(config + ".ini")
    if not path.is_file():
        if config == "default":
            return path, {}
        raise SourceError(f"{path}: no such configuration file (--config)")
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError, configparser.Error) as error:
        raise SourceError(f"{path}: cannot be read: {error}") from error
    sections = {name.lower(): name for name in parser.sections()}
    if kind.lower() not in sections:
        if kind == "none":
            return path, {}
        raise SourceError(f"{path}: no section [{kind}]; it has {', '.join(parser.sections()) or 'none'}")
    return path, parser[sections[kind.lower()]]


def _from_file(config: str, kind: str) -> tuple[dict[str, Any], list[str]]:
    path, section = _section(config, kind)
    values, ignored = {}, []
    for key, text in section.items():
        if key.lower() in _WITHOUT_EFFECT:
            ignored.append(key)
        elif key != "weights":
            values[_proper(key, str(path))] = _value(_proper(key, str(path)), text, str(path))
    return values, ignored


def _proper(name: str, where: str) -> str:
    if name.lower() in _PROPER and name.lower() != "reg_type":
        return _PROPER[name.lower()]
    near = difflib.get_close_matches(name.lower(), _PROPER, 1)
    hint = f"did you mean {_PROPER[near[0]]}?" if near else f"there are {', '.join(_TYPES)}"
    raise SourceError(f"{where}: no setting is called {name}: {hint}")


def _value(name: str, text: str, where: str) -> Any:
    kind = _TYPES[name]
    try:
        if kind in (bool, str):
            return truth(text) if kind is bool else text
        number = float(text)
        whole = int(number) if kind is int else 0
    except (ValueError, OverflowError):
        raise SourceError(f"{where}: {name} = {text!r} is no {'number' if kind is not bool else 'True or False'}") from None
    if kind is int and whole != number:
        raise SourceError(f"{where}: {name} = {text!r} must be a whole number")
    return whole if kind is int else number


def truth(text: str) -> bool:
    """True or false as people write it. Raises ValueError."""
    lowered = text.strip().lower()
    if lowered in ("1", "true", "t", "yes", "y", "on"):
        return True
    if lowered in ("0", "false", "f", "no", "n", "off"):
        return False
    raise ValueError(f"{text!r} is neither True nor False")
