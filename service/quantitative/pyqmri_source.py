"""PyQMRI's HDF5 files as data to fit. They are opened for reading only; PyQMRI itself writes into them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from gadgets.contrasts import CoilMaps, cartesian_maps
from recon.coarse_maps import coarse_maps
from recon.fourier import fftc
from recon.quantitative.measured import Measured
from service.quantitative.source import Source, SourceError

SPOKES = 13
"""Spokes in a frame of data without an axis of contrasts, as in PyQMRI."""
_KNOWN = {
    "real_dat", "imag_dat", "real_traj", "imag_traj", "traj", "dcf", "Coils", "Coils_real", "Coils_imag", "images", "startvalues",
}  # fmt: skip


def is_pyqmri(path: Path) -> bool:
    """Whether this is an HDF5 file with PyQMRI's data sets. Raises `SourceError` for a damaged one."""
    if not h5py.is_hdf5(path):
        return False
    try:
        with h5py.File(path, "r") as file:
            return "real_dat" in file or ("images" in file and "dataset" not in file)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error}); is it damaged or cut short?") from error


def read_pyqmri(
    path: Path, trajectory: bool | None = None, imagespace: bool = False, volume: bool = False, coil_maps: CoilMaps = "espirit"
) -> Source:
    """Data of a file.

    Args:
        path: of the file.
        trajectory: whether the data follow a trajectory (--trafo); None: when the file has one.
        imagespace: take the data set `images` instead of k-space.
        volume: k-space is encoded along z too (--is3Ddata).
        coil_maps: how sensitivities are found when the file has none.

    Raises:
        SourceError: data sets or attributes are missing, do not fit one another, or are not finite.
    """
    try:
        with h5py.File(path, "r") as file:
            return _File(file, path).source(trajectory, imagespace, volume, coil_maps)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error}); is it damaged or cut short?") from error


class _File:
    def __init__(self, file: h5py.File, path: Path) -> None:
        self.file, self.path = file, path
        self.notes: list[str] = []

    def source(self, trajectory: bool | None, imagespace: bool, volume: bool, coil_maps: CoilMaps) -> Source:
        parameters: dict[str, Any] = {name: _plain(value) for name, value in self.file.attrs.items()}
        fields: dict[str, np.ndarray] = {}
        for name, dataset in self.file.items():
            if isinstance(dataset, h5py.Dataset) and name not in _KNOWN:
                (fields if dataset.ndim >= 3 else parameters)[name] = dataset[()]
        if "fa_corr" in fields:
            # PyQMRI's files hold it turned; its own reader does the same, and takes 0 for 1.
            turned = np.flip(fields["fa_corr"], 0).transpose(0, 2, 1)
            fields["fa_corr"] = np.where(turned == 0, 1, turned)
        slices = self._images() if imagespace and "images" in self.file else self._kspace(trajectory, volume, coil_maps, parameters)
        if imagespace and "images" not in self.file:
            self.notes.append("the file has no data set images: they are made from its k-space")
        if "startvalues" in self.file:
            self.notes.append("startvalues are not used: the fit starts from the data (or from --initial_guess)")
        dz = parameters.get("dz")
        return Source(slices, parameters, fields=fields, spacing=float(dz) if dz else 1.0, notes=self.notes)

    # -- what the file holds -----------------------------------------------------------------------------------------

    def _complex(self, real: str, imaginary: str) -> np.ndarray:
        if real not in self.file or imaginary not in self.file:
            missing = real if real not in self.file else imaginary
            raise SourceError(f"{self.path}: no data set {missing}; the file has {', '.join(self.file) or 'none'}")
        parts = self.file[real][()], self.file[imaginary][()]
        if parts[0].shape != parts[1].shape:
            raise SourceError(f"{self.path}: {real} {parts[0].shape} and {imaginary} {parts[1].shape} differ in shape")
        values: np.ndarray = (parts[0] + 1j * parts[1]).astype(np.complex64)
        return values

    def _images(self) -> list[Measured]:
        images = self.file["images"][()]
        if images.ndim != 4:
            raise SourceError(f"{self.path}: images {images.shape} must be (Scans, Slices, Y, X)")
        self._finite(images, "images")
        return [Measured(images[:, n].astype(np.complex64)) for n in range(images.shape[1])]

    def _kspace(self, trajectory: bool | None, volume: bool, coil_maps: CoilMaps, parameters: dict[str, Any]) -> list[Measured]:
        data = self._complex("real_dat", "imag_dat")
        radial = "real_traj" in self.file or "traj" in self.file if trajectory is None else trajectory
        if data.ndim == 4:
            data = self._framed(data) if radial else data[None]
        if data.ndim != 5:
            raise SourceError(f"{self.path}: real_dat {data.shape} must be (Scans, Coils, Slices, Projections, Samples) or (.., ky, kx)")
        self._finite(data, "real_dat, imag_dat")
        if radial:
            parameters.setdefault("frames", data.shape[0])
            parameters.setdefault("spokes", data.shape[3])
            if volume:
                raise SourceError(f"{self.path}: three-dimensional trajectories of PyQMRI files are not read; convert them to ISMRMRD")
            return self._radial(data, coil_maps)
        return self._cartesian(data, volume, coil_maps)

    def _framed(self, data: np.ndarray) -> np.ndarray:
        """(Coils, Slices, Projections, Samples) in frames of `SPOKES`."""
        frames = data.shape[2] // SPOKES
        if not frames:
            raise SourceError(f"{self.path}: {data.shape[2]} projections are fewer than a frame of {SPOKES}")
        self.notes.append(f"{frames} frames of {SPOKES} of the {data.shape[2]} projections")
        cut = data[:, :, : frames * SPOKES].reshape(*data.shape[:2], frames, SPOKES, data.shape[3])
        return np.moveaxis(cut, 2, 0)

    def _finite(self, data: np.ndarray, name: str) -> None:
        good = np.isfinite(data.reshape(len(data), -1)).all(1)
        if not good.all():
            raise SourceError(f"{self.path}: {name} holds NaN or infinite values in scan {int(np.argmin(good))} (counted from 0)")

    def _coils(self, shape: tuple[int, ...]) -> np.ndarray | None:
        """Sensitivities (Coils, Slices, Y, X)."""
        if "Coils" in self.file:
            coils = self.file["Coils"][()]
        elif "Coils_real" in self.file:
            coils = self._complex("Coils_real", "Coils_imag")
        else:
            return None
        if coils.shape != shape:
            raise SourceError(f"{self.path}: Coils {coils.shape} must be (Coils, Slices, Y, X) = {shape}")
        if not np.isfinite(coils).all():
            raise SourceError(f"{self.path}: Coils holds NaN or infinite values; replace them by 0 outside the object")
        return np.asarray(coils, np.complex64)

    # -- k-space -----------------------------------------------------------------------------------------------------

    def _cartesian(self, data: np.ndarray, volume: bool, coil_maps: CoilMaps) -> list[Measured]:
        sampled = np.abs(data).max(1) > 0
        axes = (-3, -2, -1) if volume else (-2, -1)
        # Their transforms have the origin of both spaces in the corner, ours in the middle.
        centred = fftc(np.fft.ifftn(data, axes=axes, norm="ortho").astype(np.complex64), axes)
        mask = np.fft.fftshift(sampled, axes)
        centred *= mask[:, None]
        maps = self._coils(data.shape[1:])
        if volume:
            found = cartesian_maps(centred, [], coil_maps, axes) if maps is None else maps
            return [Measured(centred, found, mask=mask)]
        slices = []
        for n in range(data.shape[2]):
            kspace = np.ascontiguousarray(centred[:, :, n])
            found = cartesian_maps(kspace, [], coil_maps, axes) if maps is None else np.ascontiguousarray(maps[:, n])
            slices.append(Measured(kspace, found, mask=mask[:, n]))
        return slices

    def _radial(self, data: np.ndarray, coil_maps: CoilMaps) -> list[Measured]:
        width, height, _ = self._dimensions()
        scans, coils, depth, projections, samples = data.shape
        points = self._trajectory((scans, projections, samples)).reshape(scans, -1, 2)
        weights = np.ones((projections, samples), np.float32)
        if "data_normalized_with_dcf" not in self.file.attrs:
            raise SourceError(
                f"{self.path}: the attribute data_normalized_with_dcf is missing; set it to True when the data are multiplied by the root "
                "of dcf already, else to False"
            )
        if bool(self.file.attrs["data_normalized_with_dcf"]):
            density = np.sqrt(self._density(projections, samples))
            weights = (density > 0).astype(np.float32)
            # Without the weights again: a least-squares fit lets less noise through.
            data = data / np.where(density > 0, density, 1).astype(np.float32)
        flat = data.reshape(scans, coils, depth, -1)
        kept = np.broadcast_to(weights.ravel(), (scans, projections * samples))
        maps = self._coils((coils, depth, height, width))
        slices = []
        for n in range(depth):
            kspace = np.ascontiguousarray(flat[:, :, n])
            found = (
                self._maps(kspace, points, kept, (height, width), coil_maps, scans * projections)
                if maps is None
                else np.ascontiguousarray(maps[:, n])
            )
            slices.append(Measured(kspace, found, points, None if weights.all() else kept))
        return slices

    def _maps(
        self, kspace: np.ndarray, points: np.ndarray, kept: np.ndarray, shape: tuple[int, int], method: CoilMaps, spokes: int
    ) -> np.ndarray:
        """Sensitivities of a slice from the samples of all scans."""
        from recon.cartesian_centre import cartesian_centre, dense_edge
        from recon.espirit import espirit

        used = kept.ravel() > 0
        together = np.moveaxis(kspace, 0, 1).reshape(kspace.shape[1], -1)[:, used]
        where = points.reshape(-1, 2)[used]
        if len(together) == 1:
            return np.ones((1, *shape), np.complex64)
        if method == "image":
            return coarse_maps(together, where, shape)
        block = cartesian_centre(together, where, shape, dense_edge(spokes))
        maps: np.ndarray = espirit(block, shape, block.shape[1:])
        return maps

    def _dimensions(self) -> tuple[int, int, int]:
        if "image_dimensions" not in self.file.attrs:
            raise SourceError(f"{self.path}: the attribute image_dimensions (X, Y, Slices) is missing")
        values = np.ravel(self.file.attrs["image_dimensions"])
        return int(values[0]), int(values[1]), int(values[2]) if len(values) > 2 else 1

    def _trajectory(self, shape: tuple[int, int, int]) -> np.ndarray:
        """rad/pixel `[scan, projection, sample, (y, x)]`."""
        if "traj" in self.file:
            points = np.asarray(self.file["traj"][()], np.float32)
        else:
            values = self._complex("real_traj", "imag_traj")
            points = np.stack([values.imag, values.real], -1)
        if points.shape[-1] != 2:
            raise SourceError(f"{self.path}: the trajectory has {points.shape[-1]} axes; only two-dimensional ones are read")
        if points.shape[-2] == shape[2] and points.size >= 2 * np.prod(shape):
            # All projections one after another, those that fill no frame at the end.
            points = points.reshape(-1, shape[2], 2)[: shape[0] * shape[1]].reshape(*shape, 2)
        if points.shape[:-1] != shape:
            if points.shape[:-1] == (1, *shape[1:]):
                points = np.broadcast_to(points, (*shape, 2))
            else:
                raise SourceError(
                    f"{self.path}: the trajectory {points.shape[:-1]} does not fit data of (Scans, Projections, Samples) {shape}"
                )
        edge = float(np.abs(points).max())
        if not 0.4 < edge < 1.1:
            raise SourceError(f"{self.path}: the trajectory reaches {edge:.3g}; it must reach 0.5 (cycles per pixel) or 1")
        return np.ascontiguousarray(points * np.float32(2 * np.pi if edge < 0.75 else np.pi))

    def _density(self, projections: int, samples: int) -> np.ndarray:
        if "dcf" in self.file:
            density = np.asarray(self.file["dcf"][()], np.float64)
            if density.shape[-2:] != (projections, samples):
                raise SourceError(f"{self.path}: dcf {density.shape} must be (Projections, Samples) = ({projections}, {samples})")
            if not (np.isfinite(density) & (density >= 0)).all():
                raise SourceError(f"{self.path}: dcf holds values that are negative, NaN or infinite")
            first: np.ndarray = density.reshape(-1, projections, samples)[0]
            return first
        ramp = np.abs(np.linspace(-samples / 2, samples / 2, samples)) * (np.pi / 4) / projections
        return np.broadcast_to(ramp, (projections, samples))


def _plain(value: Any) -> Any:
    """Attributes as numbers, lists or text."""
    array = np.asarray(value)
    return array.tolist() if array.dtype.kind in "biuf" else value
