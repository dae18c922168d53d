"""Signal models written as formulas in YAML files."""

from __future__ import annotations

import keyword
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from recon.quantitative.model import Map, ModelError, SignalModel, Unknown
from recon.quantitative.sequence import PHASE, FieldInput, SequenceModel, SequenceParameter
from recon.quantitative.start import match, within
from recon.quantitative.tensors import column


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class UnknownDescription(_Part):
    """An unknown of a symbolic model; bounds and start as in `Unknown`."""

    unit: str = ""
    lower: float
    upper: float
    start: float | None = None
    start_image: int | None = Field(None, ge=0, description="start with this image of the series")
    grid: list[float] = Field([], description="values to search among for the start")
    real: bool = True
    amplitude: bool = False
    weight: float = 1.0


class ParameterDescription(_Part):
    """A sequence parameter: one number for the scan, one for each contrast, or either (any)."""

    unit: str = ""
    per: Literal["scan", "contrast", "any"] = "contrast"
    text: str = ""
    where: str = "sequenceParameters or userParameters of the ISMRMRD header, attribute of the PyQMRI file"
    aliases: list[str] = []
    default: float | None = None
    lower: float = 0.0
    upper: float = np.inf
    negative: bool = False


class FieldDescription(_Part):
    """A per-voxel input; without a default it must be given."""

    unit: str = ""
    text: str = ""
    aliases: list[str] = []
    default: float | None = None


class MapDescription(_Part):
    """A map that users see: a formula of the unknowns and the parameters of the scan."""

    value: str
    unit: str = ""


class Description(_Part):
    """A symbolic model.

    Attributes:
        name: of the model.
        text: what it is, with its source.
        signal: formula of unknowns, parameters, fields, definitions.
        definitions: formulas used in it, each of those before it.
        maps: what users see; the unknowns if empty.
        individual_phase: multiply each image by its measured phase relative to the first.
    """

    name: str
    text: str = ""
    signal: str
    unknowns: dict[str, UnknownDescription] = Field(min_length=1)
    parameters: dict[str, ParameterDescription] = {}
    fields: dict[str, FieldDescription] = {}
    definitions: dict[str, str] = {}
    maps: dict[str, MapDescription] = {}
    individual_phase: bool = False

    @model_validator(mode="after")
    def _names(self) -> Description:
        groups = (self.unknowns, self.parameters, self.fields, self.definitions)
        names = [name for group in groups for name in group]
        for name in names:
            if not name.isidentifier() or keyword.iskeyword(name):
                raise ValueError(f"{name!r} is no name: take letters, digits and _ and no word of Python")
            if names.count(name) > 1:
                raise ValueError(f"{name} is declared twice")
        return self

    def declared(self) -> tuple[tuple[SequenceParameter, ...], tuple[FieldInput, ...]]:
        """Sequence parameters and per-voxel inputs, as built-in models declare theirs."""
        parameters = tuple(
            SequenceParameter(
                name, part.unit, part.text or name, part.where, tuple(part.aliases), part.per, part.default is None, part.lower, part.upper,
                negative=part.negative,
            )
            for name, part in self.parameters.items()
        )  # fmt: skip
        inputs = tuple(
            FieldInput(name, part.unit, part.text or name, tuple(part.aliases), part.default is None) for name, part in self.fields.items()
        )
        return parameters, (*inputs, PHASE) if self.individual_phase else inputs


def read_yaml(path: Path) -> Description:
    """The model of a YAML file.

    Raises:
        ModelError: the file cannot be read or does not describe a model.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ModelError(f"signal model {path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ModelError(f"signal model {path} must hold name, signal and unknowns, not {type(content).__name__}")
    return described(content, str(path))


def described(content: Mapping[str, Any], where: str) -> Description:
    """A checked description from plain data; `where` names it in errors.

    Raises:
        ModelError: it does not describe a model.
    """
    try:
        return Description.model_validate(content)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc'])) or 'model'}: {fault['msg']}" for fault in error.errors())
        raise ModelError(f"signal model {where}: {faults}") from error


class SymbolicModel(SequenceModel):
    """A signal model from a `Description`: its formula as a TensorFlow function, with the exact Jacobian of any other model.

    Start: constants, images (`start_image`), or a search where unknowns have a `grid`.

    Args:
        description: from a file.
        parameters: sequence parameters by name, in their units.
        fields: per-voxel inputs.

    Raises:
        ModelError: a formula is wrong, a parameter or field is missing or wrong, or there are too few contrasts.
    """

    name: ClassVar[str] = "Symbolic"

    def __init__(self, description: Description, parameters: Mapping[str, Any], fields: Mapping[str, np.ndarray] | None = None) -> None:
        from recon.quantitative import expressions

        self.description = description
        declared, self.inputs = description.declared()  # type: ignore[misc]
        self.values = self._read(declared, parameters)
        names = {*description.unknowns, *description.parameters, *description.fields}
        definitions: dict[str, Any] = {}
        for name, text in description.definitions.items():
            parsed = expressions.parse(text, {*names, *definitions}, f"{name} of {description.name}")
            definitions[name] = parsed.subs({expressions.symbol(key): value for key, value in definitions.items()}, simultaneous=True)
        named = {expressions.symbol(name): value for name, value in definitions.items()}

        def formula(text: str, what: str) -> Any:
            return expressions.parse(text, {*names, *definitions}, f"{what} of {description.name}").subs(named, simultaneous=True)

        self.formula = formula(description.signal, "signal")
        self.shown = {name: (formula(part.value, f"map {name}"), part.unit) for name, part in description.maps.items()}
        self._check_analytic()
        unknowns = [
            Unknown(name, part.unit, part.lower, part.upper, self._start(part), part.real, part.amplitude, part.weight)
            for name, part in description.unknowns.items()
        ]
        if unused := {name for name in description.unknowns if expressions.symbol(name) not in self.formula.free_symbols}:
            raise ModelError(f"{description.name}: the signal does not depend on {', '.join(sorted(unused))}")
        lengths = [len(value) for value in self.values.values() if isinstance(value, np.ndarray)]
        if not lengths:
            raise ModelError(f"{description.name}: no parameter has one value for each contrast (per: contrast)")
        self.least = -(-sum(1 if unknown.real else 2 for unknown in unknowns) // 2)
        super().__init__(unknowns, lengths[0], fields)
        self.grids = {name: np.array(part.grid) for name, part in description.unknowns.items() if part.grid}

    def signal(self, unknowns: Sequence[Any]) -> Any:
        import tensorflow as tf

        from recon.quantitative.expressions import evaluate

        like = unknowns[0]
        values = {
            **{unknown.name: part for unknown, part in zip(self.unknowns, unknowns, strict=True)},
            **{name: column(value, like) for name, value in self.values.items()},
            **{name: self.field(name, like, part.default or 0.0) for name, part in self.description.fields.items()},
        }
        signal = evaluate(self.formula, values, like)
        return self.phased(tf.broadcast_to(signal, [self.contrasts, *tf.unstack(tf.shape(like))]))

    def adapted(self, images: np.ndarray) -> SignalModel:
        return self.with_phases(images) if self.description.individual_phase else self

    def guess(self, images: np.ndarray) -> np.ndarray:
        model, plain = self.unphased(images)
        if self.grids and any(unknown.amplitude for unknown in self.unknowns):
            start = match(model, plain, self.grids)
        else:
            start = SignalModel.guess(self, images).copy()
        for n, part in enumerate(self.description.unknowns.values()):
            if part.start_image is None:
                continue
            if part.start_image >= len(images):
                raise ModelError(f"{self.description.name}: start_image {part.start_image} of {len(images)} images (counted from 0)")
            start[n] = images[part.start_image]
        return within(self, start).astype(images.dtype)

    def maps(self, parameters: np.ndarray) -> dict[str, Map]:
        if not self.shown:
            return super().maps(parameters)
        import tensorflow as tf

        from recon.quantitative.expressions import evaluate

        parts = self.split(tf.constant(parameters, tf.complex128))
        values = {
            **{unknown.name: part for unknown, part in zip(self.unknowns, parts, strict=True)},
            **{name: tf.constant(value, tf.float64) for name, value in self.values.items() if not isinstance(value, np.ndarray)},
            **{name: self.field(name, parts[0], part.default or 0.0) for name, part in self.description.fields.items()},
        }
        found = {name: evaluate(formula, values, parts[0]).numpy() for name, (formula, _) in self.shown.items()}
        return {name: Map(np.broadcast_to(found[name], parameters.shape[1:]), unit) for name, (_, unit) in self.shown.items()}

    @staticmethod
    def _start(part: UnknownDescription) -> float:
        if part.start is not None:
            return part.start
        if part.grid:
            return part.grid[len(part.grid) // 2]
        return float(np.clip(1.0, part.lower, part.upper))

    def _read(self, declared: tuple[SequenceParameter, ...], given: Mapping[str, Any]) -> dict[str, Any]:
        title = self.description.name
        values: dict[str, Any] = {}
        for parameter in declared:
            value = given.get(parameter.name, self.description.parameters[parameter.name].default)
            if value is None:
                raise ModelError(
                    f"{title} needs {parameter.name} ({parameter.text}, {parameter.unit or 'no unit'}): put it into {parameter.where}"
                )
            values[parameter.name] = parameter.read(title, value)
        lengths = {name: len(value) for name, value in values.items() if isinstance(value, np.ndarray)}
        if len(set(lengths.values())) > 1:
            raise ModelError(f"{title}: numbers of contrasts differ: " + ", ".join(f"{name} has {n}" for name, n in lengths.items()))
        return values

    def _check_analytic(self) -> None:
        """The Jacobian is the holomorphic derivative: magnitudes and comparisons of complex unknowns have none."""
        import sympy

        turned = {name for name, part in self.description.unknowns.items() if not part.real}
        for node in sympy.preorder_traversal(self.formula):
            rough = isinstance(node, sympy.Abs | sympy.Max | sympy.Min | sympy.core.relational.Relational)
            if rough and (used := turned & {str(name) for name in node.free_symbols}):
                raise ModelError(
                    f"{self.description.name}: {node.func.__name__} of the complex unknown {', '.join(sorted(used))} "
                    "has no derivative; make it real"
                )
