"""Folders that will be written to, tried before anything depends on them."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path


class OutputError(OSError):
    """A place cannot be written to; the text says which, why, and what to do."""


@contextlib.contextmanager
def writing(place: Path) -> Iterator[None]:
    """Give an OSError that names no file (a disk that fills up) the name of what was being written."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"cannot be written: {error.strerror}", str(place)) from error


def own_folder(folder: Path, setting: str) -> None:
    """Make a folder that only we may read, and prove that it can be written. Raises `OutputError` that names the setting."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: no folder can be made there: {error.strerror}; choose another ({setting})") from error
    prove_writable(folder, folder, setting)


def prove_writable(folder: Path, place: Path, setting: str) -> None:
    """Write into an existing folder and leave nothing there. Raises `OutputError` that says `place` cannot be written."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(f"{place}: cannot be written: {error.strerror}; choose another place ({setting})") from error
