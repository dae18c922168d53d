"""Norms of an array: l1, l2, l2 of groups, squared l2, Huber."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from recon.arrays import Array
from recon.functionals.base import Functional, positive
from recon.namespace import inner, namespace, real_like, root, times, total


class L1(Functional):
    """weight sum |x|; the proximal map shrinks magnitudes and keeps phases.

    Args:
        weight: at least 0; a number, or a real array that broadcasts against x.
    """

    def __init__(self, weight: Any = 1.0) -> None:
        self.weight = positive("weight", weight) if isinstance(weight, (int, float)) else weight

    def __call__(self, x: Array) -> Any:
        return total(times(self.weight, namespace(x).abs(x)))

    def prox(self, x: Array, step: Any = 1.0) -> Array:
        size = namespace(x).abs(x)
        return shrink(x, size, times(step, real_like(self.weight, size)))

    def conjugate_prox(self, y: Array, step: Any = 1.0) -> Array:
        """Clip magnitudes to the weight, whatever the step."""
        size = namespace(y).abs(y)
        return clip(y, size, real_like(self.weight, size))


class GroupL2(Functional):
    """weight sum over groups of their l2 norms (block soft threshold); isotropic total variation is one of gradients.

    Args:
        weight: at least 0.
        axes: the axes that form a group.
    """

    def __init__(self, weight: float = 1.0, axes: int | Sequence[int] = -1) -> None:
        self.weight = positive("weight", weight)
        self.axes = (axes,) if isinstance(axes, int) else tuple(axes)

    def _sizes(self, x: Array) -> Array:
        space = namespace(x)
        return space.sqrt(space.sum(space.abs(x) ** 2, axis=self.axes, keepdims=True))

    def __call__(self, x: Array) -> Any:
        return self.weight * total(self._sizes(x))

    def prox(self, x: Array, step: Any = 1.0) -> Array:
        size = self._sizes(x)
        return shrink(x, size, times(step, real_like(self.weight, size)))

    def conjugate_prox(self, y: Array, step: Any = 1.0) -> Array:
        """Clip the norms of the groups to the weight, whatever the step."""
        size = self._sizes(y)
        return clip(y, size, real_like(self.weight, size))


class L2(Functional):
    """weight |x|, the l2 norm over all axes.

    Args:
        weight: at least 0.
    """

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = positive("weight", weight)

    def __call__(self, x: Array) -> Any:
        return self.weight * root(inner(x, x))

    def prox(self, x: Array, step: Any = 1.0) -> Array:
        space = namespace(x)
        size = space.sqrt(space.sum(space.abs(x) ** 2, keepdims=True))
        return shrink(x, size, times(step, real_like(self.weight, size)))


class SquaredL2(Functional):
    """weight |x - prior|^2 / 2.

    Args:
        weight: at least 0.
        prior: broadcasts against x; None for zero.
    """

    def __init__(self, weight: float = 1.0, prior: Array | None = None) -> None:
        self.weight = positive("weight", weight)
        self.prior = prior

    def __call__(self, x: Array) -> Any:
        difference = x if self.prior is None else x - self.prior
        return 0.5 * self.weight * inner(difference, difference)

    def prox(self, x: Array, step: Any = 1.0) -> Array:
        strength = step * self.weight
        pulled = x if self.prior is None else x + times(strength, self.prior)
        return times(1 / (1 + strength), pulled)

    def conjugate_prox(self, y: Array, step: Any = 1.0) -> Array:
        if self.weight == 0:
            return times(0.0, y)
        shifted = y if self.prior is None else y - times(step, self.prior)
        return times(1 / (1 + step / self.weight), shifted)


class Huber(Functional):
    """weight sum h(|x|) with h(r) = r^2 / (2 delta) up to delta and r - delta / 2 beyond: an l1 norm that is smooth at zero.

    Args:
        delta: above 0, in the units of x.
        weight: at least 0.
    """

    def __init__(self, delta: float, weight: float = 1.0) -> None:
        if not delta > 0:
            raise ValueError(f"delta must be above 0, not {delta}; for 0 use L1")
        self.delta, self.weight = float(delta), positive("weight", weight)

    def __call__(self, x: Array) -> Any:
        space = namespace(x)
        size = space.abs(x)
        inside = space.minimum(size, real_like(self.delta, size))
        return self.weight * total(inside**2 / (2 * self.delta) + size - inside)

    def prox(self, x: Array, step: Any = 1.0) -> Array:
        space = namespace(x)
        size = space.abs(x)
        strength, delta = times(step, real_like(self.weight, size)), real_like(self.delta, size)
        beyond = size > strength + delta
        outside = 1 - strength / space.where(beyond, size, real_like(1, size))
        return times(space.where(beyond, outside, delta / (delta + strength)), x)


def shrink(x: Array, size: Array, threshold: Any) -> Array:
    """x max(1 - threshold / size, 0), where `size` is the magnitude of x or of its group."""
    space = namespace(size)
    above = size > threshold
    return times(space.where(above, 1 - threshold / space.where(above, size, real_like(1, size)), real_like(0, size)), x)


def clip(x: Array, size: Array, bound: Any) -> Array:
    """x min(bound / size, 1), where `size` is the magnitude of x or of its group."""
    space = namespace(size)
    above = size > bound
    return times(space.where(above, bound / space.where(above, size, real_like(1, size)), real_like(1, size)), x)
