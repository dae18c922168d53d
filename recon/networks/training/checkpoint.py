"""Where a training stands, in one file that is there whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or is of another training."""


def save(path: Path, variables: Sequence[Any], progress: dict[str, Any]) -> None:
    """Write variables and, as JSON, what else is needed to go on."""
    arrays = {f"variable_{n}": variable.numpy() for n, variable in enumerate(variables)}
    unfinished = path.with_name(f"{path.stem}.unfinished.npz")
    np.savez(unfinished, progress=np.array(json.dumps(progress)), **arrays)
    os.replace(unfinished, path)


def restore(path: Path, variables: Sequence[Any], same: dict[str, Any]) -> dict[str, Any]:
    """Give variables their values again.

    Args:
        path: what `save` wrote.
        variables: as many, of the same shapes.
        same: entries that the progress must have: what the training is of.

    Returns:
        The progress.

    Raises:
        CheckpointError: a file of another training, or that cannot be read.
    """
    try:
        with np.load(path) as file:
            progress: dict[str, Any] = json.loads(str(file["progress"]))
            arrays = [file[f"variable_{n}"] for n in range(len(file.files) - 1)]
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    different = [name for name, value in same.items() if progress.get(name) != json.loads(json.dumps(value))]
    if different or [array.shape for array in arrays] != [tuple(variable.shape) for variable in variables]:
        what = f"its {' and '.join(different)}" if different else "the network"
        raise CheckpointError(f"{path} is of another training: {what} differs; give another output folder, or leave --resume out")
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)
    return progress
