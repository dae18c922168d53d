"""What there is to choose from: gadgets with their parameters, the Gadgetron names they answer to, configs."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding


def catalogue(contains: str = "") -> dict[str, Any]:
    """Gadgets and configs whose name (ours or Gadgetron's) contains `contains`, ready for JSON.

    ``{"gadgets": [{"name", "help", "stock", "parameters"}], "configs": [{"name", "path", "help"}]}``; the parameters are those of
    `gadgets.base.Gadget.parameters`.
    """
    from gadgets.stock import gadgets
    from service.chain import config_folders, list_configs

    wanted = contains.lower()
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "help": _first_paragraph(inspect.getdoc(gadget) or ""),
            "stock": [f"{dll}/{classname}" for dll, classname in gadget.stock],
            "parameters": gadget.parameters(),
        }
        for name, gadget in sorted(gadgets().items())
    ]
    configs = [
        {"name": name, "path": str(path), "help": first_comment(path)} for name, path in sorted(list_configs(config_folders()).items())
    ]
    return {
        "gadgets": [row for row in rows if wanted in " ".join([row["name"], *row["stock"]]).lower()],
        "configs": [config for config in configs if wanted in config["name"].lower()],
    }


def first_comment(path: Path) -> str:
    """First sentence of the first comment of an XML file; empty when it has none."""
    found = re.search(r"<!--(.*?)-->", path.read_text(errors="replace"), re.DOTALL)
    return re.split(r"(?<=[.:;])\s", " ".join(found.group(1).split()))[0].rstrip(".:;") if found else ""


def print_catalogue(found: dict[str, Any], console: Console) -> None:
    """Print what `catalogue` returned."""
    for gadget in found["gadgets"]:
        console.print(f"[bold]{escape(gadget['name'])}[/]  {escape(gadget['help'])}")
        if gadget["stock"]:
            console.print(f"[dim]stands in for {escape(', '.join(gadget['stock']))}[/]")
        for row in gadget["parameters"]:
            console.print(Padding(_parameter(row), (0, 0, 0, 2)))
        console.print()
    for config in found["configs"]:
        console.print(f"[bold]{escape(config['name'])}[/]  {escape(config['help'])}")


def _parameter(row: dict[str, Any]) -> str:
    value = "[red]must be given[/]" if row["required"] else f"= {escape(_shown(row['default']))}"
    unit = f" {escape(row['unit'])}" if row["unit"] else ""
    choices = re.fullmatch(r"Literal\[(.*)\]", row["type"])
    kind = "one of " + choices.group(1).replace("'", "") if choices else row["type"]
    bounds = f", {row['bounds']}" if row["bounds"] else ""
    return f"[cyan]{escape(row['name'])}[/] {value}{unit}  {escape(row['help'])} [dim]({escape(kind + bounds)})[/]"


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _first_paragraph(text: str) -> str:
    return " ".join(text.split("\n\n")[0].split())
