"""What a signal model is: the signal of a voxel in every contrast as a function of a few unknowns.

A model says its equation once, in TensorFlow operations (`signal`); the exact Jacobian follows by forward-mode automatic
differentiation. The pixel-wise fit, the model-based reconstruction from k-space and the block streaming all work on this interface.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from pydantic import BaseModel

from recon.arrays import Array
from recon.cache import ArrayKey
from recon.quantitative.tensors import as_complex


class ModelError(ValueError):
    """A model cannot be built or evaluated with what it was given; the message says what is missing and where it belongs."""


@dataclass(frozen=True)
class Unknown:
    """One unknown of a model.

    Attributes:
        name: as in the model's equation: M0, T1, R2, ...
        unit: of bounds and start value: ms, 1/s, Hz, 1e-3 mm2/s; "" for none.
        lower, upper: bounds; of a complex unknown, on its magnitude.
        start: start value where the data give no better one.
        real: False for complex unknowns (amplitudes).
        amplitude: True when the signal is proportional to it; bounds and start are then fractions of the largest
            magnitude of the data (images), and solvers may scale data and amplitudes together.
        weight: of the unknown's regularisation, relative to the others'.
    """

    name: str
    unit: str
    lower: float
    upper: float
    start: float
    real: bool = True
    amplitude: bool = False
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.lower <= self.upper:
            raise ModelError(f"{self.name}: the lower bound {self.lower} is above the upper bound {self.upper}")
        if not self.lower <= self.start <= self.upper:
            raise ModelError(f"{self.name}: the start value {self.start} is outside its bounds {self.lower} to {self.upper}")


@dataclass(frozen=True, eq=False)
class Map:
    """A map of a tissue parameter: values ``[*voxels]`` (real, or complex for amplitudes) in `unit` ("" for none)."""

    values: np.ndarray
    unit: str


class SignalModel(ABC):
    """A signal equation with its unknowns.

    Subclasses set `unknowns` and `contrasts` in their constructor, which takes the sequence's parameters (times in ms, angles in
    degrees), and implement `signal`. Per-voxel inputs (flip-angle map, field map, phases) are stored in `fields`, each
    ``[..., *voxels]`` with the voxels last, so that `part` can cut a model to a block of slices.
    """

    name: ClassVar[str]
    """As users write it: VFA, IRLL, R2Star, ..."""
    unknowns: tuple[Unknown, ...]
    contrasts: int
    fields: dict[str, np.ndarray]

    def __init__(self, unknowns: Sequence[Unknown], contrasts: int, fields: Mapping[str, np.ndarray] | None = None) -> None:
        self.unknowns, self.contrasts, self.fields = tuple(unknowns), contrasts, dict(fields or {})

    # -- the equation ------------------------------------------------------------------------------------------------

    @abstractmethod
    def signal(self, unknowns: Sequence[Any]) -> Any:
        """The signal ``[contrast, *voxels]``, real or complex.

        Args:
            unknowns: one tensor ``[*voxels]`` for each of `self.unknowns`, in that order: real dtype for real unknowns,
                complex dtype for complex ones.
        """

    def guess(self, images: np.ndarray) -> np.ndarray:
        """Start values ``[unknown, *voxels]`` (complex) from images ``[contrast, *voxels]`` whose largest magnitude is about 1.

        This one takes the constants of `unknowns`; models that can do better override it.
        """
        start = np.array([unknown.start for unknown in self.unknowns])
        voxels = images.shape[1:]
        return np.broadcast_to(start.reshape(-1, *[1] * len(voxels)), (len(start), *voxels)).astype(images.dtype)

    def adapted(self, images: np.ndarray) -> SignalModel:
        """The model with what it takes from the images ``[contrast, *voxels]`` beside start values, such as their phases.

        Solvers ask for it once, before `guess`. Most models need nothing and return themselves.
        """
        return self

    def scaled(self, factor: float) -> SignalModel:
        """The model of data multiplied by `factor`: itself, unless fields carry the data's scale (the M0 image of ASL)."""
        return self

    def maps(self, parameters: np.ndarray) -> dict[str, Map]:
        """What users want to see, by name, from fitted unknowns ``[unknown, *voxels]``: the unknowns themselves unless overridden."""
        return {
            unknown.name: Map(np.real(values) if unknown.real else values, unknown.unit)
            for unknown, values in zip(self.unknowns, parameters, strict=True)
        }

    # -- what solvers call -------------------------------------------------------------------------------------------

    def __call__(self, parameters: Array) -> Any:
        """Complex signal ``[contrast, *voxels]`` of unknowns ``[unknown, *voxels]`` (complex; tensors or arrays)."""
        import tensorflow as tf

        parameters = tf.convert_to_tensor(parameters)
        return as_complex(self.signal(self.split(parameters)), parameters.dtype)

    def jacobian(self, parameters: Array) -> tuple[Any, Any]:
        """Signal ``[contrast, *voxels]`` and its derivatives ``[contrast, unknown, *voxels]``, both complex.

        The derivative with respect to a complex unknown is the holomorphic one, that along its real part: signals are analytic in them.
        """
        import tensorflow as tf

        parameters = tf.convert_to_tensor(parameters)
        parts = self.split(parameters)
        columns, signal = [], None
        for n, part in enumerate(parts):
            real = tf.math.real(part)
            with tf.autodiff.ForwardAccumulator(real, tf.ones_like(real)) as accumulator:
                moved = tf.complex(real, tf.math.imag(part)) if part.dtype.is_complex else real
                signal = as_complex(self.signal([*parts[:n], moved, *parts[n + 1 :]]), parameters.dtype)
            columns.append(accumulator.jvp(signal, unconnected_gradients=tf.UnconnectedGradients.ZERO))
        return signal, tf.stack(columns, 1)

    def split(self, parameters: Any) -> list[Any]:
        """Unknowns ``[unknown, *voxels]`` one by one, real ones as real tensors."""
        import tensorflow as tf

        return [tf.math.real(parameters[n]) if unknown.real else parameters[n] for n, unknown in enumerate(self.unknowns)]

    def constrain(self, parameters: Any) -> Any:
        """The unknowns ``[unknown, *voxels]`` moved to the nearest point within their bounds; real ones lose their imaginary part."""
        import tensorflow as tf

        parameters = tf.convert_to_tensor(parameters)
        kept = []
        for unknown, part in zip(self.unknowns, self.split(parameters), strict=True):
            if unknown.real:
                kept.append(tf.cast(tf.clip_by_value(part, unknown.lower, unknown.upper), parameters.dtype))
                continue
            size = tf.abs(part)
            wanted = tf.clip_by_value(size, unknown.lower, unknown.upper)
            tiny = size.dtype.as_numpy_dtype(np.finfo(size.dtype.as_numpy_dtype).tiny)
            direction = tf.where(size > tiny, part / tf.cast(tf.maximum(size, tiny), part.dtype), tf.ones_like(part))
            kept.append(direction * tf.cast(wanted, part.dtype))
        return tf.stack(kept)

    def structure(self) -> Hashable:
        """Equal for models whose signals are the same function of unknowns and fields: graphs made for one serve the other."""
        own = tuple((name, _comparable(value)) for name, value in sorted(vars(self).items()) if name != "fields")
        return type(self), own

    def part(self, rank: int, *index: slice) -> SignalModel:
        """The model of a block of voxels: `fields` are cut by `index`.

        Args:
            rank: number of voxel axes of the fields, the last ones; axes before them are kept whole.
            index: slices of the leading voxel axes; those after them are kept whole.
        """
        block = copy.copy(self)
        block.fields = {name: field[(slice(None),) * (field.ndim - rank) + index] for name, field in self.fields.items()}
        return block


def _comparable(value: Any) -> Hashable:
    """Something that is equal for equal values; objects that cannot be compared equal none but themselves."""
    if isinstance(value, np.ndarray):
        return ArrayKey(value)
    if isinstance(value, SignalModel):
        return value.structure()
    if isinstance(value, Mapping):
        return tuple((key, _comparable(one)) for key, one in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(_comparable(one) for one in value)
    if isinstance(value, BaseModel):
        return value.model_dump_json()
    try:
        hash(value)
    except TypeError:
        return object()
    return value  # type: ignore[no-any-return]
