"""Indicators of convex sets: 0 inside, infinite outside; the proximal map is the projection, whatever the step."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import numpy as np

from recon.arrays import Array
from recon.functionals.base import Functional
from recon.functionals.norms import L1, GroupL2, shrink
from recon.namespace import cast, choose, descending, is_complex, namespace, number, real_like, total


class Indicator(Functional):
    """0 where x is in the set (to rounding), else infinite."""

    @abstractmethod
    def prox(self, x: Array, step: Any = 1.0) -> Array:
        """The point of the set that is nearest to x."""

    def __call__(self, x: Array) -> Any:
        space = namespace(x)
        difference = total(space.abs(x - self.prox(x)) ** 2)
        scale = total(space.abs(x) ** 2) + number(1e-30, x)
        return choose(difference <= 1e-10 * scale, number(0.0, x), number(float("inf"), x))


class Box(Indicator):
    """low <= x <= high, for real arrays; of complex ones the real part is taken (the nearest point has no imaginary part).

    Args:
        low, high: bounds, `low` <= `high`; infinite ones are no bounds.
    """

    def __init__(self, low: float = 0.0, high: float = float("inf")) -> None:
        if not low <= high:
            raise ValueError(f"low = {low} must not exceed high = {high}")
        self.low, self.high = low, high

    def prox(self, x: Array, step: Any = 1.0) -> Array:
        space = namespace(x)
        values = space.real(x)
        clipped = space.minimum(space.maximum(values, real_like(self.low, values)), real_like(self.high, values))
        return cast(clipped, x)


class LinfBall(Indicator):
    """|x_i| <= radius for every element.

    Args:
        radius: above 0.
    """

    def __init__(self, radius: float = 1.0) -> None:
        self._norm = L1(_radius(radius))

    def prox(self, x: Array, step: Any = 1.0) -> Array:
        return self._norm.conjugate_prox(x)


class L2Ball(Indicator):
    """|x - centre| <= radius in the l2 norm over all axes, as for data with a known noise level.

    Args:
        radius: above 0.
        centre: broadcasts against x; None for zero.
    """

    def __init__(self, radius: float = 1.0, centre: Array | None = None) -> None:
        self.radius, self.centre = _radius(radius), centre

    def prox(self, x: Array, step: Any = 1.0) -> Array:
        norm = GroupL2(self.radius, tuple(range(len(x.shape))))
        return norm.conjugate_prox(x) if self.centre is None else self.centre + norm.conjugate_prox(x - self.centre)


class L1Ball(Indicator):
    """sum |x| <= radius over all axes. Duchi et al., ICML (2008).

    Args:
        radius: above 0.
    """

    def __init__(self, radius: float = 1.0) -> None:
        self.radius = _radius(radius)

    def prox(self, x: Array, step: Any = 1.0) -> Array:
        space = namespace(x)
        size = space.abs(x)
        # Inside the ball the level of the simplex comes out negative or zero: nothing to shrink.
        level = space.maximum(_simplex_level(size, self.radius), real_like(0, size))
        return shrink(x, size, level)


class Simplex(Indicator):
    """x >= 0 and sum x = total, over all axes of a real array. Duchi et al., ICML (2008).

    Args:
        sum_: the sum, above 0.
    """

    def __init__(self, sum_: float = 1.0) -> None:
        self.sum = _radius(sum_, "sum_")

    def prox(self, x: Array, step: Any = 1.0) -> Array:
        if is_complex(x):
            raise ValueError("Simplex takes real arrays; for magnitudes of complex ones use L1Ball")
        return namespace(x).maximum(x - _simplex_level(x, self.sum), real_like(0, x))


def _simplex_level(values: Array, total_: float) -> Array:
    """The t for which sum max(values - t, 0) = total."""
    space = namespace(values)
    largest = descending(space.reshape(values, (-1,)))
    excess = space.cumsum(largest) - real_like(total_, values)
    # The largest of these averages is the level: they grow while elements above it are added, and fall afterwards.
    return space.max(excess / real_like(np.arange(1, 1 + math.prod(values.shape)), values))


def _radius(value: float, name: str = "radius") -> float:
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be a finite number above 0, not {value}")
    return float(value)
