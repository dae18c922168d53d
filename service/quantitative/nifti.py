"""NIfTI image series as data to fit, and maps as NIfTI."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recon.quantitative.measured import Measured
from service.quantitative.source import Source, SourceError

ENDINGS = (".nii", ".nii.gz")
_BIDS = {
    "EchoTime": ("TE", 1000.0), "InversionTime": ("TI", 1000.0), "RepetitionTime": ("TR", 1000.0),
    "RepetitionTimeExcitation": ("TR", 1000.0), "FlipAngle": ("flip_angle", 1.0), "SpinLockTime": ("TSL", 1000.0),
}  # fmt: skip
"""BIDS: key -> our name and factor. BIDS has times in seconds and angles in degrees."""
_SAME_PLACE = 0.5
"""Part of a voxel's edge that maps may lie apart from the data."""
_LONGEST = {"EchoTime": 5.0, "InversionTime": 60.0, "RepetitionTime": 60.0, "RepetitionTimeExcitation": 60.0, "SpinLockTime": 5.0}
"""Seconds; what is longer was not written in seconds."""


def is_nifti(path: Path) -> bool:
    """Whether the name is that of a NIfTI file."""
    return path.name.endswith(ENDINGS)


def stem(path: Path) -> str:
    """The name without its ending."""
    return path.name.removesuffix(".gz").removesuffix(".nii")


def read_nifti(paths: Sequence[Path], sidecar: Path | None = None) -> Source:
    """Images of one file ``[i, j, k, contrast]``, or of one file a contrast ``[i, j, k]``, in the order given.

    Sequence parameters come from BIDS sidecars (``name.json`` beside each file, or one given), ``.bval`` and ``.bvec``. Voxels that
    are NaN in any contrast are set to zero.

    Raises:
        SourceError: files that cannot be read or differ in their voxels, or sidecars that say seconds and are not.
    """
    import nibabel
    from nibabel.filebasedimages import ImageFileError

    images, affines = [], []
    for path in paths:
        try:
            image: Any = nibabel.load(path)
            values = np.asarray(image.dataobj)
        except (OSError, ValueError, EOFError, ImageFileError) as error:
            raise SourceError(f"{path}: cannot be read as NIfTI ({error})") from error
        _check_numbers(path, values)
        if not 2 <= values.ndim <= 4:
            raise SourceError(f"{path}: an array of shape {values.shape}, expected [i, j, k] or [i, j, k, contrast]")
        values = values.reshape(values.shape + (1,) * (3 - values.ndim))
        images += [values] if values.ndim == 3 else list(np.moveaxis(values, 3, 0))
        affines.append(np.asarray(image.affine, float))
        if images[-1].shape != images[0].shape or not np.allclose(affines[-1], affines[0], atol=1e-3):
            raise SourceError(f"{path}: voxels {images[-1].shape} or orientation differ from those of {paths[0]}; align them first")
    series = np.stack(images)
    notes: list[str] = []
    magnitudes = series.dtype.kind != "c"
    series = series.astype(np.float32 if magnitudes else np.complex64)
    lost = ~np.isfinite(series).all(0)
    if lost.all():
        raise SourceError(f"{paths[0]}: no voxel is finite in all contrasts")
    if lost.any():
        notes.append(f"{int(lost.sum())} voxels that are not finite in every contrast are left out")
        series[:, lost] = 0
    if magnitudes and (series < 0).any():
        notes.append("there are negative values: the images are taken as signed, not as magnitudes")
        magnitudes = False
    parameters = _sidecars(paths, sidecar, notes) | _gradients(paths)
    spacing = np.linalg.norm(affines[0][:3, :3], axis=0)
    # [contrast, k, i, j]: rows are i, columns j, so that maps go back where they came from.
    volume = np.ascontiguousarray(series.transpose(0, 3, 1, 2))
    slices = [Measured(volume[:, n]) for n in range(volume.shape[1])]
    return Source(slices, parameters, affines[0], {}, magnitudes, float(spacing[1] / spacing[2]) if spacing[2] > 0 else 1.0, notes)


def read_volume(path: Path, like: Source) -> np.ndarray:
    """A map `[z, y, x]` (or `[contrast, z, y, x]`) in the voxels of a source.

    Raises:
        SourceError: it cannot be read, has other voxels, or lies elsewhere. Where file or source have no orientation, which is the
            identity, voxels are taken to agree.
    """
    import nibabel
    from nibabel.filebasedimages import ImageFileError

    try:
        image: Any = nibabel.load(path)
        values = np.asarray(image.dataobj)
    except (OSError, ValueError, EOFError, ImageFileError) as error:
        raise SourceError(f"{path}: cannot be read as NIfTI ({error})") from error
    _check_numbers(path, values)
    if not 2 <= values.ndim <= 4:
        raise SourceError(f"{path}: an array of shape {values.shape}, expected [i, j, k] or [i, j, k, contrast]")
    values = values.reshape(values.shape + (1,) * (3 - values.ndim))
    values = np.moveaxis(values, 2, 0) if values.ndim == 3 else values.transpose(3, 2, 0, 1)
    if values.shape[-3:] != like.shape:
        depth, rows, columns = like.shape
        raise SourceError(f"{path}: voxels {values.shape[-2:] + values.shape[-3:-2]}, the data have {(rows, columns, depth)}")
    if not np.isfinite(values).all():
        raise SourceError(f"{path}: holds NaN or infinite values; replace them outside the object")
    apart = _distance(np.asarray(image.affine, float), like.affine, like.shape)
    if apart > _SAME_PLACE * min(np.linalg.norm(like.affine[:3, :3], axis=0)):
        raise SourceError(f"{path}: its voxels lie up to {apart:.3g} mm from those of the data, or run the other way; resample it to them")
    return values


def _check_numbers(path: Path, values: np.ndarray) -> None:
    if values.dtype.kind not in "biufc":
        raise SourceError(f"{path}: voxels of type {values.dtype} are no numbers; expected one number for each")


def _distance(one: np.ndarray, other: np.ndarray, shape: tuple[int, int, int]) -> float:
    """Farthest that a corner of the voxels (z, y, x) lies from itself by two affines of (row, column, slice), mm."""
    if any(np.array_equal(affine, np.eye(4)) for affine in (one, other)):
        return 0.0
    depth, rows, columns = shape
    corners = np.array([[i, j, k, 1] for i in (0, rows - 1) for j in (0, columns - 1) for k in (0, depth - 1)])
    return float(np.linalg.norm((corners @ (one - other).T)[:, :3], axis=1).max())


def write_volume(path: Path, values: np.ndarray, affine: np.ndarray, name: str = "", unit: str = "") -> None:
    """Write `[z, y, x]` as NIfTI ``[row, column, slice]``, float32, with name and unit (ASCII) in the header's description."""
    import nibabel

    image = nibabel.Nifti1Image(np.ascontiguousarray(np.moveaxis(values, 0, 2), dtype=np.float32), affine)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = (f"{name} [{unit}]" if unit else name).encode("ascii", "replace")[:79]
    nibabel.save(image, path)


def _sidecars(paths: Sequence[Path], sidecar: Path | None, notes: list[str]) -> dict[str, Any]:
    beside = [path.with_name(stem(path) + ".json") for path in paths]
    files = [sidecar] if sidecar is not None else [path for path in beside if path.exists()]
    if sidecar is None and files and len(files) < len(paths):
        missing = next(path for path in beside if not path.exists())
        raise SourceError(f"{missing}: there is no such sidecar, but the other images have theirs")
    contents = []
    for file in files:
        try:
            contents.append(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise SourceError(f"{file}: cannot be read as JSON ({error})") from error
        if not isinstance(contents[-1], dict):
            raise SourceError(f"{file}: must hold an object of names and values")
    found: dict[str, Any] = {}
    for key, (name, factor) in _BIDS.items():
        values = [value for content in contents if key in content for value in np.ravel(content[key]).tolist()]
        if not values or name in found:
            continue
        if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
            raise SourceError(f"{files[0]}: {key} must be numbers, not {values}")
        if max(values) > _LONGEST.get(key, np.inf):
            raise SourceError(f"{files[0]}: {key} = {max(values):g} cannot be seconds, as BIDS asks for: divide it by 1000 if it is in ms")
        found[name] = [value * factor for value in values] if len(values) > 1 else values[0] * factor
        if factor != 1:
            notes.append(f"{key} of {files[0].name} is in seconds (BIDS): {name} = {_listed(found[name])} ms")
    return found


def _listed(values: Any) -> str:
    return ", ".join(f"{value:g}" for value in np.ravel(values))


def _gradients(paths: Sequence[Path]) -> dict[str, Any]:
    """b-values (s/mm2) and directions of FSL's files beside the first image."""
    found: dict[str, Any] = {}
    values, directions = (paths[0].with_name(stem(paths[0]) + ending) for ending in (".bval", ".bvec"))
    try:
        if values.exists():
            found["b_value"] = np.loadtxt(values).ravel().tolist()
        if directions.exists():
            found["DWI_dir"] = np.atleast_2d(np.loadtxt(directions)).T.tolist()
    except ValueError as error:
        raise SourceError(f"{values.with_suffix('')}: .bval or .bvec cannot be read ({error})") from error
    return found
