"""The table in docs/tensorflow-mri.md: complete, and every name in it exists."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "tensorflow-mri.md"
ROW = re.compile(r"^\| `tfmri\.([\w.]+)` \| (.*?) \| (.*?) \|$", re.MULTILINE)
OURS = re.compile(r"`(recon\.[\w.]+)`")


@pytest.fixture(scope="module")
def rows() -> list[tuple[str, str, str]]:
    """Their name without `tfmri.`, our names, the note."""
    return ROW.findall(PAGE.read_text(encoding="utf-8"))


def resolve(name: str) -> Any:
    """The module or the attribute of a module (or of its class) that a dotted name means."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            value: Any = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            value = getattr(value, part)
        return value
    raise AttributeError(name)


def test_the_table_has_every_name_once(rows: list[tuple[str, str, str]]) -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert len(rows) == len({name for name, _, _ in rows}) == 185
    assert len(re.findall(r"^\| `tfmri\.", text, re.MULTILINE)) == 185  # the pattern leaves no row out
    ours = sum(bool(OURS.search(there)) for _, there, _ in rows)
    assert f"{ours} have a counterpart in `recon`, {185 - ours} do not" in " ".join(text.split())


def test_the_names_are_those_of_the_inventory(rows: list[tuple[str, str, str]], shared: Path) -> None:
    inventory = (shared / "reference" / "seed-inventory.md").read_text(encoding="utf-8")
    listed = inventory[inventory.index("## 1.4") : inventory.index("# 2. PyQMRI")]
    assert {name for name, _, _ in rows} == set(re.findall(r"`tfmri\.([\w.]+)`", listed))


def test_all_our_names_exist() -> None:
    names = set(OURS.findall(PAGE.read_text(encoding="utf-8")))
    assert len(names) > 60
    missing = []
    for name in sorted(names):
        try:
            resolve(name)
        except AttributeError:
            missing.append(name)
    assert not missing


def test_all_names_of_tensorflow_exist(tf: Any) -> None:
    missing = []
    for name in sorted(set(re.findall(r"`tf\.([\w.]+)`", PAGE.read_text(encoding="utf-8")))):
        value = tf
        for part in name.split("."):
            value = getattr(value, part, None)
        if value is None:
            missing.append(name)
    assert not missing


def test_who_has_no_counterpart_says_why(rows: list[tuple[str, str, str]]) -> None:
    for name, there, note in rows:
        if there == "—":
            assert len(note) > 10, name
        else:
            assert OURS.search(there), name
