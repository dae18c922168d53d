"""The base of all functionals."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from recon.arrays import Array
from recon.namespace import times


class Functional(ABC):
    """A convex function f of an array, with its proximal map; the sum runs over all axes, batch axes too.

    Values may be real or complex: complex numbers count as vectors of two components, so that phases are kept. NumPy arrays
    and tensors alike (eagerly and in `tf.function`). See Parikh and Boyd, Proximal Algorithms (2014).
    """

    @abstractmethod
    def __call__(self, x: Array) -> Any:
        """f(x), a float or a scalar tensor of float64."""

    @abstractmethod
    def prox(self, x: Array, step: Any = 1.0) -> Array:
        """The u that minimises step f(u) + |u - x|^2 / 2; `step` > 0, a number or a scalar tensor."""

    def conjugate_prox(self, y: Array, step: Any = 1.0) -> Array:
        """The proximal map of the convex conjugate f*, by Moreau's identity y = prox(step f*)(y) + step prox(f / step)(y / step)."""
        return y - times(step, self.prox(times(1 / step, y), 1 / step))


def positive(name: str, value: float) -> float:
    """Return a weight that is at least 0.

    Raises:
        ValueError: it is negative or not finite.
    """
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be a finite number of at least 0, not {value}")
    return float(value)
