"""Answers to QUERY messages: versions, memory, devices. Cheap enough for a health check: nothing is imported, no device is touched."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

UNKNOWN = "Unknown query"
"""What Gadgetron answers to a key it does not know; clients compare with it."""


def answer(key: str) -> str:
    """The answer to a QUERY; `UNKNOWN` for an unknown key."""
    return _ANSWERS.get(key, lambda: UNKNOWN)()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def _memory() -> str:
    return str(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _gpus() -> list[Path]:
    return sorted(path for path in Path("/dev").glob("nvidia*") if re.fullmatch(r"nvidia\d+", path.name))


def _driver() -> str:
    try:
        found = re.search(r"\b\d+\.\d+(\.\d+)?\b", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        return "N/A"
    return found.group() if found else "N/A"


def _info() -> str:
    return "\n".join(
        (
            "reconstream Version Info",
            f"  -- Version      : {_version('reconstream')}",
            f"  -- ISMRMRD      : {_version('ismrmrd')}",
            f"  -- Python       : {platform.python_version()}",
            f"  -- Memory size  : {int(_memory()) >> 20} MB",
            f"  -- CUDA devices : {len(_gpus())}",
            "",
        )
    )


_ANSWERS: dict[str, Callable[[], str]] = {
    "ismrmrd::version": lambda: _version("ismrmrd"),
    "gadgetron::version": lambda: f"reconstream {_version('reconstream')}",
    "gadgetron::build": lambda: f"reconstream {_version('reconstream')}, Python {platform.python_version()}",
    "gadgetron::info": _info,
    "gadgetron::info::memory": _memory,
    "gadgetron::info::python": lambda: "1",
    "gadgetron::info::matlab": lambda: "0",
    "gadgetron::info::cuda": lambda: "1" if _gpus() else "0",
    "gadgetron::cuda::devices": lambda: str(len(_gpus())),
    "gadgetron::cuda::driver": _driver,
    # Only CUDA itself knows these, and asking it would make a context in a process that does not compute.
    "gadgetron::cuda::runtime": lambda: "N/A",
    "gadgetron::cuda::memory": lambda: ";".join("N/A" for _ in _gpus()),
    "gadgetron::cuda::capabilities": lambda: ";".join("N/A" for _ in _gpus()),
}
