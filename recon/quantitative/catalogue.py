"""Signal models by name, built from the parameters that a header, a file or a command line gives."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from recon.quantitative.magnitude import Magnitude
from recon.quantitative.model import ModelError, SignalModel
from recon.quantitative.models.asl import ASL
from recon.quantitative.models.b1_comp import B1_comp
from recon.quantitative.models.bi_exp_decay import BiExpDecay
from recon.quantitative.models.cest import CEST
from recon.quantitative.models.cest_3pool import CEST_3Pool
from recon.quantitative.models.dce import DCE
from recon.quantitative.models.despot2 import DESPOT2
from recon.quantitative.models.diff import Diff
from recon.quantitative.models.diffdir_ll import DiffdirLL
from recon.quantitative.models.epg import EPG
from recon.quantitative.models.exp_decay import ExpDecay
from recon.quantitative.models.ffc import FFC
from recon.quantitative.models.ffc_abs import FFC_abs
from recon.quantitative.models.ffc_phasefit import FFC_phasefit
from recon.quantitative.models.ffc_sat import FFCsat, FFCsat_abs
from recon.quantitative.models.image_reco import ImageReco
from recon.quantitative.models.ir import IR
from recon.quantitative.models.ir_bssfp import IRbSSFP
from recon.quantitative.models.irll import IRLL
from recon.quantitative.models.ivim import Ivim
from recon.quantitative.models.ivim_dti import IvimDTI
from recon.quantitative.models.look_locker import LookLocker
from recon.quantitative.models.molli import MOLLI
from recon.quantitative.models.pasl import PASL
from recon.quantitative.models.r2star import R2Star
from recon.quantitative.models.sasha import SASHA
from recon.quantitative.models.vfa import VFA
from recon.quantitative.pyqmri_models import read_ini
from recon.quantitative.sequence import FieldInput, SequenceModel, SequenceParameter
from recon.quantitative.symbolic import Description, SymbolicModel, read_yaml

MODELS: dict[str, type[SequenceModel]] = {
    model.name: model
    for model in (
        VFA, IR, IRLL, LookLocker, MOLLI, SASHA, ExpDecay, BiExpDecay, EPG, IRbSSFP, DESPOT2, R2Star, B1_comp, Diff, DiffdirLL, Ivim,
        IvimDTI, ASL, PASL, DCE, CEST, CEST_3Pool, FFC, FFC_abs, FFC_phasefit, FFCsat, FFCsat_abs, ImageReco,
    )
}  # fmt: skip
"""The models by their names; PyQMRI's where it has the model."""


def model_class(name: str) -> type[SequenceModel]:
    """The model of a name or alias, in any case of letters.

    Raises:
        ModelError: no model has this name; the message offers the nearest ones.
    """
    known = {alias.lower(): model for model in MODELS.values() for alias in (model.name, *model.aliases)}
    if name.lower() in known:
        return known[name.lower()]
    near = [known[match].name for match in difflib.get_close_matches(name.lower(), known, 3)]
    hint = f"did you mean {' or '.join(dict.fromkeys(near))}?" if near else f"there are {', '.join(MODELS)}"
    raise ModelError(f"no signal model is called {name}: {hint}")


def requirements(name: str) -> tuple[tuple[SequenceParameter, ...], tuple[FieldInput, ...]]:
    """Sequence parameters and per-voxel inputs of a model, built in or in a file, for those who look for them in data."""
    description = _described(name)
    return description.declared() if description else (model_class(name).parameters, model_class(name).inputs)


def model_from(
    name: str,
    parameters: Mapping[str, Any],
    fields: Mapping[str, np.ndarray] | None = None,
    magnitudes: bool = False,
    **options: Any,
) -> SignalModel:
    """Build a model.

    Args:
        name: of a built-in model, or a file: ``model.yaml``, or ``models.ini:SECTION`` in PyQMRI's format.
        parameters: sequence parameters by name or alias, in the units that `requirements` tells; others are left alone, so that a
            header's or file's whole set can be given.
        fields: per-voxel inputs by name or alias.
        magnitudes: model the magnitude of the signal.
        options: of the model's constructor, such as `fit_b1`.

    Raises:
        ModelError: a parameter or map is missing, wrong or has the wrong unit; the message names it and where it belongs.
    """
    description = _described(name)
    declared, inputs = requirements(name)
    title = description.name if description else model_class(name).name
    values = _picked(title, parameters, declared)
    maps = _renamed(title, fields or {}, inputs)
    if description:
        if options:
            raise ModelError(f"{title}: a symbolic model has no options, but {', '.join(options)} was given")
        model: SignalModel = SymbolicModel(description, values, maps)
    else:
        chosen = model_class(name)
        taken = set(inspect.signature(chosen).parameters) - {parameter.name for parameter in declared} - {"fields"}
        if unknown := set(options) - taken:
            raise ModelError(f"{title} has no option {', '.join(sorted(unknown))}; it has {', '.join(sorted(taken)) or 'none'}")
        model = chosen(**values, **options, fields=maps)
    return Magnitude(model) if magnitudes else model


def _described(name: str) -> Description | None:
    path, _, section = name.partition(".ini:")
    if section:
        return read_ini(Path(path + ".ini"), section)
    if name.endswith(".ini"):
        return read_ini(Path(name))
    return read_yaml(Path(name)) if name.endswith((".yaml", ".yml")) else None


def _picked(model: str, parameters: Mapping[str, Any], declared: tuple[SequenceParameter, ...]) -> dict[str, Any]:
    given = {key.lower(): value for key, value in parameters.items()}
    values = {}
    for parameter in declared:
        found = [given[key.lower()] for key in (parameter.name, *parameter.aliases) if given.get(key.lower()) is not None]
        if found:
            values[parameter.name] = _single(found[0]) if parameter.per == "scan" else found[0]
        elif parameter.required:
            what = f"{parameter.text}, {parameter.unit}" if parameter.unit else parameter.text
            raise ModelError(f"{model} needs {parameter.name} ({what}): put it into {parameter.where}, or give it as {parameter.name}")
    return values


def _single(values: Any) -> Any:
    """One number where a header repeats it for every contrast."""
    array = np.ravel(values)
    return array[0] if array.size and (array == array[0]).all() else values


def _renamed(model: str, fields: Mapping[str, np.ndarray], inputs: tuple[FieldInput, ...]) -> dict[str, np.ndarray]:
    names = {key.lower(): item.name for item in inputs for key in (item.name, *item.aliases)}
    for key in fields:
        if key.lower() not in names:
            raise ModelError(f"{model} has no input {key}; it takes {', '.join(item.name for item in inputs) or 'none'}")
    return {names[key.lower()]: values for key, values in fields.items()}
