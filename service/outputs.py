"""Where results will go, tried before the work begins: a scan must not run for minutes and then find nowhere to put its images."""

from __future__ import annotations

from pathlib import Path

from service.files import FileError, ImageWriter
from service.folders import OutputError, prove_writable


def check_outputs(source: Path | None, output: Path | None = None, pictures: Path | None = None, report: Path | None = None) -> None:
    """Try the places where results of the raw data `source` will go; nothing is left there.

    output: HDF5 file (an existing one gets a further group); pictures: folder; report: file. Folders that are missing are made later.

    Raises `OutputError`; also when `output` is `source` itself, since a write that fails half-way would cost the raw data.
    """
    if output is not None:
        spare_source(source, output)
        _check_file(output, "-o")
        if output.exists():
            try:
                ImageWriter(output).close()
            except FileError as error:
                raise OutputError(str(error)) from error
    if pictures is not None:
        _check_folder(pictures, pictures, "--png")
    if report is not None:
        _check_file(report, "--report")


def spare_source(source: Path | None, output: Path) -> None:
    """Raise `OutputError` when `output` is the file that the raw data `source` are read from."""
    if source is not None and source.is_file() and output.exists() and output.samefile(source):
        raise OutputError(f"{output}: these are the raw data, which are never written to; choose another file for the images (-o)")


def _check_file(path: Path, option: str) -> None:
    if path.is_dir():
        raise OutputError(f"{path}: cannot be written: it is a folder; name a file in it ({option})")
    if not path.exists():
        _check_folder(path.parent, path, option)


def _check_folder(folder: Path, place: Path, option: str) -> None:
    """Whether `folder` can be written, or made."""
    there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    prove_writable(there, place, option)
