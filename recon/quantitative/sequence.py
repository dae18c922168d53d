"""What signal models need to know of a sequence: declared once, with unit, range and where it comes from, and checked."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from recon.quantitative.model import ModelError, SignalModel, Unknown
from recon.quantitative.start import match
from recon.quantitative.tensors import real_like, turned


@dataclass(frozen=True)
class SequenceParameter:
    """One number, or one for each contrast, that a model's equation needs.

    Attributes:
        name: of the constructor's argument.
        unit: ms, deg, s/mm2, ...
        text: what it is.
        where: where data carry it: ISMRMRD header, PyQMRI file.
        aliases: other names that files and users give it.
        per: "scan" for one number, "contrast" for one a contrast, "any" for either, "direction" for three a contrast.
        required: False when the constructor has a default.
        low, high: what the largest magnitude of its values can be in this unit; outside, the unit is wrong.
        suspect: what the values look like when they are below `low`.
        negative: whether values below 0 are right.
    """

    name: str
    unit: str
    text: str
    where: str = "sequenceParameters or userParameters of the ISMRMRD header, attribute of the PyQMRI file"
    aliases: tuple[str, ...] = ()
    per: str = "contrast"
    required: bool = True
    low: float = 0.0
    high: float = np.inf
    suspect: str = "a smaller unit"
    negative: bool = False

    def optional(self) -> SequenceParameter:
        return replace(self, required=False)

    def one(self, where: str = "", **changes: Any) -> SequenceParameter:
        """The same quantity as one number for the whole scan."""
        return replace(self, per="scan", where=where or self.where, **changes)

    def read(self, model: str, values: Any) -> Any:
        """`values` as a float, an array ``[contrast]`` or ``[contrast, 3]``.

        Raises:
            ModelError: not numbers, of the wrong shape, not finite, or not in this unit.
        """
        try:
            array = np.asarray(values, np.float64)
        except (TypeError, ValueError) as error:
            raise ModelError(f"{model}: {self.name} must be numbers in {self.unit or 'no unit'}, not {values!r}") from error
        if not np.isfinite(array).all():
            raise ModelError(f"{model}: {self.name} has values that are not finite: {array.tolist()}")
        array = self._shaped(model, array)
        size = float(np.abs(array).max())
        if not self.negative and (array < 0).any():
            raise ModelError(f"{model}: {self.name} must not be negative, but holds {array.min():g} {self.unit}")
        if size < self.low:
            raise ModelError(f"{model}: {self.name} = {size:g} looks like {self.suspect}; it must be in {self.unit} ({self.text})")
        if size > self.high:
            raise ModelError(
                f"{model}: {self.name} = {size:g} {self.unit} is above {self.high:g} {self.unit}: check its unit ({self.text})"
            )
        return float(array) if not array.ndim else array

    def _shaped(self, model: str, array: np.ndarray) -> np.ndarray:
        if self.per == "scan":
            if array.size != 1:
                raise ModelError(f"{model}: {self.name} must be one number, not {array.size} ({self.text})")
            return array.reshape(())
        if self.per == "any" and array.size == 1:
            return array.reshape(())
        if self.per == "direction":
            if array.ndim != 2 or array.shape[-1] != 3:
                raise ModelError(f"{model}: {self.name} must be three numbers for each contrast, not an array of shape {array.shape}")
            return array
        array = np.atleast_1d(array.squeeze())
        if array.ndim != 1 or not array.size:
            raise ModelError(f"{model}: {self.name} must be one number for each contrast, not an array of shape {np.shape(array)}")
        return array


@dataclass(frozen=True)
class FieldInput:
    """An input with a value for each voxel: ``[*voxels]``, or ``[contrast, *voxels]``; of values above `high` the unit is wrong."""

    name: str
    unit: str
    text: str
    aliases: tuple[str, ...] = ()
    required: bool = False
    complex: bool = False
    high: float = np.inf


TR = SequenceParameter("TR", "ms", "repetition time", "sequenceParameters/TR", per="scan", low=0.5, high=60000, suspect="seconds")
TE = SequenceParameter("TE", "ms", "echo times", "sequenceParameters/TE", ("TEs", "T2PREP"), low=1.0, high=5000, suspect="seconds")
TI = SequenceParameter("TI", "ms", "inversion times", "sequenceParameters/TI", ("TIs",), low=20, high=60000, suspect="seconds")
FLIP_ANGLE = SequenceParameter(
    "flip_angle", "deg", "flip angles", "sequenceParameters/flipAngle_deg", ("flip_angle(s)", "flipAngle_deg", "FA"), low=1.6, high=180,
    suspect="radians",
)  # fmt: skip
B_VALUE = SequenceParameter(
    "b_value", "s/mm2", "b-values", "sequenceParameters/diffusion/bvalue", ("bvalue", "b_values", "bvals"), low=5, high=20000,
    suspect="ms/um2",
)  # fmt: skip
DIRECTIONS = SequenceParameter(
    "DWI_dir", "", "diffusion directions", "sequenceParameters/diffusion/gradientDirection", ("bvecs", "directions"), "direction",
    negative=True,
)  # fmt: skip
FA_CORR = FieldInput("fa_corr", "", "actual over nominal flip angle (B1 map)", ("B1", "b1", "interpol_fa"), high=5)
PHASE = FieldInput("phase", "rad", "phase of each image, or one for all")


class SequenceModel(SignalModel):
    """A signal model with declared sequence parameters; what its subclasses share.

    Raises:
        ModelError: a field is unknown, missing or not finite, or there are fewer contrasts than unknowns need.
    """

    aliases: ClassVar[tuple[str, ...]] = ()
    parameters: ClassVar[tuple[SequenceParameter, ...]] = ()
    inputs: ClassVar[tuple[FieldInput, ...]] = ()
    grids: Mapping[str, np.ndarray] = {}
    """Values of unknowns among which `guess` searches for each voxel; the others start with their constants."""
    least: int | None = None
    """Different contrasts needed; None for as many as there are unknowns."""

    def __init__(self, unknowns: Sequence[Unknown], contrasts: int, fields: Mapping[str, np.ndarray] | None = None) -> None:
        super().__init__(unknowns, contrasts, self._checked_fields(fields or {}))
        least = len(self.unknowns) if self.least is None else self.least
        if contrasts < least:
            names = ", ".join(unknown.name for unknown in self.unknowns)
            raise ModelError(f"{self.name}: {contrasts} contrasts are too few for the unknowns {names}; at least {least} are needed")

    @classmethod
    def read(cls, **values: Any) -> dict[str, Any]:
        """The constructor's arguments by name, checked against `parameters`; None stays None.

        Raises:
            ModelError: a value is wrong, or two parameters differ in their number of contrasts.
        """
        declared = {parameter.name: parameter for parameter in cls.parameters}
        read = {name: None if value is None else declared[name].read(cls.name, value) for name, value in values.items()}
        lengths = {name: len(value) for name, value in read.items() if isinstance(value, np.ndarray)}
        if len(set(lengths.values())) > 1:
            raise ModelError(f"{cls.name}: numbers of contrasts differ: " + ", ".join(f"{name} has {n}" for name, n in lengths.items()))
        return read

    @classmethod
    def distinct(cls, name: str, values: np.ndarray, least: int) -> None:
        """Raise unless `values` holds at least `least` different ones."""
        found = len(np.unique(values))
        if found < least:
            raise ModelError(f"{cls.name}: {name} has {found} different values; at least {least} are needed")

    def guess(self, images: np.ndarray) -> np.ndarray:
        model, images = self.unphased(images)
        return match(model, images, self.grids) if self.grids else super().guess(images)

    def unphased(self, images: np.ndarray) -> tuple[SequenceModel, np.ndarray]:
        """Model and images ``[contrast, *voxels]`` without the phases of the field `phase`."""
        if "phase" not in self.fields:
            return self, images
        model = copy.copy(self)
        model.fields = {name: values for name, values in self.fields.items() if name != "phase"}
        return model, (images * np.exp(-1j * self.fields["phase"])).astype(images.dtype)

    def phased(self, signal: Any) -> Any:
        """A signal with the phases of the field `phase`, where it was given."""
        return turned(signal, self.field("phase", signal)) if "phase" in self.fields else signal

    def with_phases(self, images: np.ndarray, relative: bool = True) -> SequenceModel:
        """The model with the phases of the images as its field, relative to the first image's or in full, unless they were given."""
        if "phase" in self.fields:
            return self
        model = copy.copy(self)
        reference = images[:1] if relative else np.ones_like(images[:1])
        model.fields = {**self.fields, "phase": np.angle(images * reference.conj())}
        return model

    def field(self, name: str, like: Any, otherwise: float = 1.0) -> Any:
        """A field as a real tensor in the precision of `like`, or the number to take when it was not given."""
        return real_like(self.fields[name], like) if name in self.fields else real_like(otherwise, like)

    def _checked_fields(self, fields: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        known = {item.name: item for item in self.inputs}
        for name in fields:
            if name not in known:
                raise ModelError(f"{self.name} has no input {name}; it takes {', '.join(known) or 'none'}")
        for item in self.inputs:
            if item.required and item.name not in fields:
                raise ModelError(f"{self.name} needs the map {item.name} ({item.text}, {item.unit or 'no unit'}): give it among the fields")
        kept = {name: np.asarray(values) for name, values in fields.items()}
        for name, values in kept.items():
            if not np.isfinite(values).all():
                raise ModelError(f"{self.name}: the map {name} has values that are not finite: replace them outside the object")
            if np.iscomplexobj(values) and not known[name].complex:
                raise ModelError(f"{self.name}: the map {name} must be real")
            if (largest := float(np.abs(values).max(initial=0))) > known[name].high:
                raise ModelError(
                    f"{self.name}: the map {name} reaches {largest:g}: it must be {known[name].text}, about 1, not percent or degrees"
                )
        return kept
