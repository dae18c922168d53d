"""Maps as files: NIfTI, HDF5, PyQMRI's HDF5 layout, pictures."""

from __future__ import annotations

import dataclasses
import datetime
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from recon.quantitative.model import Map
from recon.quantitative.settings import Settings
from service.folders import OutputError, prove_writable
from service.outputs import spare_source
from service.quantitative.fitting import Result
from service.quantitative.nifti import write_volume
from service.quantitative.pictures import save_map

_UNITS = {"1/s": "per_s", "1e-3 mm2/s": "1e-3mm2_per_s", "%": "percent"}


def file_stem(name: str, unit: str) -> str:
    """File name of a map: ``T1_ms``, ``T1_ms_sd``, ``M0``."""
    base, deviation = (name.removesuffix("_sd"), "_sd") if name.endswith("_sd") else (name, "")
    unit = re.sub(r"[^\w.+-]+", "_", _UNITS.get(unit, unit).replace("/", "_per_")).strip("_")
    return f"{base}_{unit}{deviation}" if unit else f"{base}{deviation}"


def prepare_folder(folder: Path, sources: Sequence[Path], option: str = "-o") -> None:
    """Make the folder for the maps and prove that it can be written. Raises `OutputError`, also when data are in its ``maps.h5``."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: no folder can be made there: {error.strerror}; choose another ({option})") from error
    prove_writable(folder, folder, option)
    for source in sources:
        spare_source(source, folder / "maps.h5")


def write_maps(
    folder: Path,
    result: Result,
    affine: np.ndarray,
    settings: Settings,
    parameters: Mapping[str, Any],
    sources: Sequence[Path],
    pictures: bool,
) -> list[Path]:
    """One NIfTI a map (of complex ones the magnitude), all of them in ``maps.h5``, and with `pictures` one PNG a map.

    Returns the files written. Raises `OutputError` where one of them is among `sources`, the data that were fitted.
    """
    for name, one in result.maps.items():
        for source in sources:
            spare_source(source, folder / f"{file_stem(name, one.unit)}.nii.gz")
    written = []
    for name, one in result.maps.items():
        path = folder / f"{file_stem(name, one.unit)}.nii.gz"
        write_volume(path, _real(one), affine, name, one.unit)
        written.append(path)
    written.append(_write_hdf5(folder / "maps.h5", result, affine, settings, parameters, str(sources[0])))
    if pictures:
        for name, one in result.maps.items():
            path = folder / f"{file_stem(name, one.unit)}.png"
            save_map(path, _real(one), name.replace("_sd", " sd"), one.unit, result.mask)
            written.append(path)
    return written


def _real(one: Map) -> np.ndarray:
    return np.abs(one.values) if np.iscomplexobj(one.values) else one.values


def _write_hdf5(path: Path, result: Result, affine: np.ndarray, settings: Settings, parameters: Mapping[str, Any], source: str) -> Path:
    """``maps/<name>`` ``[z, y, x]`` with unit, ``mask``, ``affine``, ``costs`` (a row for each Gauss-Newton step), settings as JSON."""
    with h5py.File(path, "w") as file:
        file.attrs["model"], file.attrs["source"] = result.model.name, source
        file.attrs["settings"] = json.dumps(dataclasses.asdict(settings))
        file.attrs["sequence_parameters"] = json.dumps(parameters, default=_json)
        file.attrs["axes"] = "z y x"
        group = file.create_group("maps")
        for name, one in result.maps.items():
            values = one.values.astype(np.complex64 if np.iscomplexobj(one.values) else np.float32)
            group.create_dataset(name, data=values, compression="gzip").attrs["unit"] = one.unit
        file.create_dataset("mask", data=result.mask.astype(np.uint8), compression="gzip")
        file.create_dataset("affine", data=affine).attrs["text"] = "(row y, column x, slice z) to mm: right, anterior, superior"
        rows = [
            (n, step.number, step.data_cost, step.regularisation_cost, step.gap, step.iterations, step.seconds)
            for n, steps in enumerate(result.steps)
            for step in steps
        ]
        names = ("slice", "step", "data_cost", "regularisation_cost", "gap", "iterations", "seconds")
        kinds = ("i4", "i4", "f8", "f8", "f8", "i4", "f8")
        file.create_dataset("costs", data=np.array(rows, list(zip(names, kinds, strict=True))))
    return path


def _json(value: Any) -> Any:
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else str(value)


def write_pyqmri(folder: Path, result: Result, settings: Settings, stem: str, norm: float) -> Path:
    """The unknowns after each step as PyQMRI writes them, below ``PyQMRI_out/<model>/<stem>/<time>``.

    ``images_ifft`` (contrast, slice, y, x), ``<reg>_result_...`` (unknown, slice, y, x) and the signals of these unknowns
    ``model_res_...`` (contrast, slice, y, x), complex, the last ones being the result; as attributes costs and PyQMRI's scale of the
    data, ``data_norm``, which the data of this `norm` are not multiplied by here: unknowns are in their own units.
    """
    now = datetime.datetime.now().strftime("%Y-%m-%d  %H-%M-%S")
    place = folder / "PyQMRI_out" / result.model.name / stem / now
    place.mkdir(parents=True, exist_ok=True)
    path = place / f"output_{stem}.h5"
    pattern = {"TGV": "tgv_result_iter_{:03d}", "TV": "tv_result_{:03d}", "ICTGV": "ictgv_result_iter_{}", "ICTV": "ictv_result_{}"}.get(
        settings.reg_type, settings.reg_type.lower() + "_result_{:03d}"
    )
    with h5py.File(path, "w") as file:
        file.create_dataset("images_ifft", data=result.images.astype(np.complex64))
        for n, unknowns in enumerate(result.unknowns):
            file.create_dataset(pattern.format(n), data=unknowns.astype(np.complex64))
            file.create_dataset(f"model_res_iter_{n:03d}", data=result.signals(n).astype(np.complex64))
        for n in range(max((len(steps) for steps in result.steps), default=0) - 1):
            done = [steps[min(n + 1, len(steps) - 1)] for steps in result.steps]
            file.attrs[f"datacost_iter_{n}"] = sum(step.data_cost for step in done)
            file.attrs[f"regcost_iter_{n}"] = sum(step.regularisation_cost for step in done)
        file.attrs["data_norm"] = result.mask.shape[0] * np.sqrt(2000) / norm
        file.attrs["unknowns"] = [unknown.name for unknown in result.model.unknowns]
    lines = [f"[{settings.reg_type}]", *(f"{name} = {value}" for name, value in dataclasses.asdict(settings).items())]
    (place / "config.ini").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
