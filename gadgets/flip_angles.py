"""Maps of the actual over the nominal flip angle (B1): from a file, or from a double-angle pair in the same scan."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from scipy.ndimage import map_coordinates

from gadgets.header import Header
from gadgets.parameter_maps import Place
from recon.double_angle import nearest, relative_flip_angle

LEAST, MOST = 0.2, 2.0
"""Of relative flip angles; what lies outside is in another unit, or wrong."""
_AXES = ("slice_dir", "phase_dir", "read_dir")
_ENDINGS = (".npy", ".nii", ".nii.gz", ".h5", ".hdf5")
_DATASETS = ("b1_map", "B1", "fa_corr", "maps/B1", "maps/fa_corr")
"""Datasets of HDF5 files that are looked for first."""
PAIR_ANGLE, PAIR_SET = "double_angle_deg", "double_angle_set"
"""userParameters that announce a double-angle pair: nominal flip angle of its first image, and its set counter."""


class FlipAngleError(ValueError):
    """A flip-angle map cannot be used; the text says why, and what it must be."""


class FlipAngles(Protocol):
    """Relative flip angles of a scan."""

    def relative(self, place: Place, shape: tuple[int, ...]) -> np.ndarray:
        """Of the voxels `[*shape]` of images at a place. Raises FlipAngleError."""


@dataclass(frozen=True, eq=False)
class FileAngles:
    """From a file. values: `[slice or z, y, x]`; path: for errors; slices: of the scan."""

    values: np.ndarray
    path: Path
    slices: int

    def relative(self, place: Place, shape: tuple[int, ...]) -> np.ndarray:
        found = self.values
        if len(shape) == 2:
            if len(found) not in (self.slices, max(self.slices, place.slice + 1)):
                raise FlipAngleError(
                    f"b1_map {self.path} has {len(found)} slices, the scan {self.slices}: store [slice, y, x] of all of them"
                )
            found = found[place.slice]
        if found.shape != shape:
            axes = "[z, y, x]" if len(shape) == 3 else "[y, x]"
            raise FlipAngleError(
                f"b1_map {self.path} has the matrix {found.shape}, the images {shape} ({axes}): resample it to the reconstructed matrix"
            )
        return found


@dataclass(frozen=True, eq=False)
class MeasuredAngles:
    """From a double-angle pair. values: `[(z,) y, x]`; place: where they lie; other matrices and fields of view are interpolated."""

    values: np.ndarray
    place: Place

    def relative(self, place: Place, shape: tuple[int, ...]) -> np.ndarray:
        if self.values.ndim != len(shape):
            raise FlipAngleError(
                f"the double-angle pair has the matrix {self.values.shape}, the images {shape}: both must be slices, or volumes"
            )
        offset = place.head["position"].astype(float) - self.place.head["position"].astype(float)
        grids = []
        pixels = zip(_pixels(place, shape), _pixels(self.place, self.values.shape), strict=True)
        for name, fine, size, (step, own) in zip(_AXES[-len(shape) :], shape, self.values.shape, pixels, strict=True):
            mine, other = self.place.head[name].astype(float), place.head[name].astype(float)
            if mine.any() and other.any() and float(mine @ other) < 0.999 * math.sqrt(float(mine @ mine) * float(other @ other)):
                raise FlipAngleError(f"the double-angle pair has another orientation than the images ({name} {mine} and {other})")
            # The position is that of the voxel at n // 2.
            grids.append(((np.arange(fine) - fine // 2) * step + float(offset @ mine)) / own + size // 2)
        found: np.ndarray = map_coordinates(self.values, np.meshgrid(*grids, indexing="ij"), order=1, mode="nearest")
        return found


def _pixels(place: Place, shape: tuple[int, ...]) -> list[float]:
    """Pixel size in mm along [z,] y, x."""
    return [field / n for field, n in zip(place.field_of_view[len(shape) - 1 :: -1], shape, strict=True)]


def measured_angles(images: np.ndarray, place: Place, nominal_deg: float, smoothing_mm: float) -> MeasuredAngles:
    """From the images `[2, (z,) y, x]` of a double-angle pair.

    Raises:
        FlipAngleError: no signal, or angles far from the nominal one.
    """
    try:
        values = relative_flip_angle(images[0], images[1], nominal_deg, [smoothing_mm / one for one in _pixels(place, images.shape[1:])])
    except ValueError as error:
        raise FlipAngleError(str(error)) from error
    middle = float(np.median(values))
    if not LEAST <= middle <= MOST:
        raise FlipAngleError(
            f"the double-angle pair says {middle:.2g} times the nominal flip angle of {nominal_deg:g} degrees: contrast 0 of its set must "
            "have that angle and contrast 1 twice it"
        )
    return MeasuredAngles(np.clip(values, LEAST, MOST), place)


def double_angle(header: Header, angle: float, number: int | None) -> tuple[float, int] | None:
    """Nominal angle in degrees and set counter of a double-angle pair, as chosen or as the header says; None where there is none.

    Raises:
        FlipAngleError: an angle with which the method does not work.
    """
    given = header.user_parameters.get(PAIR_ANGLE, 0)
    chosen = angle or (float(given) if isinstance(given, (int, float)) else math.nan)
    if not chosen:
        return None
    if not 10 <= chosen <= 90:
        raise FlipAngleError(f"double_angle is {angle or given}; it must be between 10 and 90 degrees")
    stored = header.user_parameters.get(PAIR_SET, 1)
    return chosen, number if number is not None else int(stored)


def read_angles(name: str, folder: Path | None, header: Header) -> FileAngles:
    """A flip-angle map from a file; 0 stands for voxels where it is not known, and takes the nearest value.

    Args:
        name: path of a ``.npy``, ``.nii``, ``.nii.gz`` or ``.h5`` file; relative ones start from `folder`. Arrays are `[y, x]`,
            `[slice, y, x]` or `[z, y, x]`; NIfTI has (row, column, slice), as `reconstream fit` writes them. HDF5: a dataset b1_map, B1 or
            fa_corr, the only dataset, or a series of ISMRMRD images, sorted by slice.
        header: of the measurement.

    Raises:
        FlipAngleError: no such file, not readable, values that are not finite or are no relative flip angles.
    """
    path = (folder or Path()) / name
    if not path.is_file():
        where = "" if Path(name).is_absolute() else f" (looked for in {folder.resolve() if folder else Path().resolve()})"
        raise FlipAngleError(f"b1_map: there is no file {name}{where}; give the path on the machine that reconstructs")
    if not path.name.endswith(_ENDINGS):
        raise FlipAngleError(f"b1_map {path}: expected a file {', '.join(_ENDINGS)}")
    try:
        values = _loaded(path)
    except FlipAngleError:
        raise
    except Exception as error:  # three libraries, each with errors of its own
        raise FlipAngleError(f"b1_map {path} cannot be read: {error}") from error
    if values.ndim not in (2, 3) or values.dtype.kind not in "fiu":
        raise FlipAngleError(f"b1_map {path} holds {values.dtype} of shape {values.shape}; expected real numbers [y, x] or [slice, y, x]")
    values = values.reshape((1,) * (3 - values.ndim) + values.shape).astype(np.float32)
    if not np.isfinite(values).all():
        raise FlipAngleError(
            f"b1_map {path} holds {int((~np.isfinite(values)).sum())} values that are NaN or infinite; write 0 where B1 is unknown"
        )
    known = values != 0
    if not known.any():
        raise FlipAngleError(f"b1_map {path} is 0 everywhere")
    low, high = float(values[known].min()), float(values[known].max())
    if low < LEAST or high > MOST:
        hint = (
            "percent? divide by 100"
            if 20 <= np.median(values[known]) <= 200
            else "1 is the nominal flip angle; write 0 where B1 is unknown"
        )
        raise FlipAngleError(
            f"b1_map {path} has values from {low:.3g} to {high:.3g}; relative flip angles lie between {LEAST} and {MOST} ({hint})"
        )
    encoding = header.encodings[0] if header.encodings else None
    limit = encoding.limit("slice") if encoding is not None else None
    filled = np.stack([nearest(one, have) if have.any() else np.ones_like(one) for one, have in zip(values, known, strict=True)])
    return FileAngles(filled, path, limit.maximum + 1 if limit is not None else len(values))


def _loaded(path: Path) -> np.ndarray:
    if path.name.endswith(".npy"):
        values: np.ndarray = np.load(path, allow_pickle=False)
        return values
    if path.name.endswith((".nii", ".nii.gz")):
        import nibabel

        image = np.asarray(nibabel.load(path).dataobj)  # type: ignore[attr-defined]
        return np.moveaxis(image, 2, 0) if image.ndim == 3 else image
    return _from_hdf5(path)


def _from_hdf5(path: Path) -> np.ndarray:
    import h5py

    with h5py.File(path) as file:
        found: dict[str, h5py.Dataset] = {}
        file.visititems(lambda name, one: found.update({name: one}) if isinstance(one, h5py.Dataset) else None)
        name = next((one for one in _DATASETS if one in found), None)
        if name is None:
            numbers = [one for one, data in found.items() if data.dtype.kind in "fiu" and data.ndim >= 2]
            if len(numbers) != 1:
                raise FlipAngleError(f"b1_map {path} has the datasets {', '.join(found) or 'none'}; name the one of the map b1_map")
            name = numbers[0]
        values = np.asarray(found[name])
        heads = found.get(name.rpartition("/")[0] + "/header")
        if values.ndim == 5 and heads is not None:  # ISMRMRD images: number, channel, z, y, x
            values = values[np.argsort(np.asarray(heads)["slice"], kind="stable"), 0]
            values = values[:, 0] if values.shape[1] == 1 else values.reshape(values.shape[-3:])
    return values
