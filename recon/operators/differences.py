"""Finite differences: along one axis, the gradient of an image, and the symmetrised gradient of a vector field."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any, Literal

import numpy as np

from recon.arrays import Array, concatenate, is_tensor, stack
from recon.namespace import namespace
from recon.operators.linear import LinearOperator

Boundary = Literal["none", "neumann", "periodic"]


class FiniteDifference(LinearOperator):
    """Differences of neighbours along one axis, x[i + 1] - x[i].

    | boundary | size of the axis afterwards | at the end |
    |---|---|---|
    | none | n - 1 | nothing, as in TensorFlow MRI |
    | neumann | n | 0: the image goes on as it ends |
    | periodic | n | x[0] - x[n - 1] |

    Args:
        axis: negative values count from the end and so do not depend on batch axes.
        boundary: see above.
        backward: x[i] - x[i - 1] instead; with neumann the zero then comes first.

    Raises:
        ValueError: unknown boundary, or an axis of one sample without boundary.
    """

    def __init__(self, axis: int = -1, boundary: Boundary = "none", backward: bool = False) -> None:
        if boundary not in ("none", "neumann", "periodic"):
            raise ValueError(f"boundary must be 'none', 'neumann' or 'periodic', not {boundary!r}")
        self.axis, self.boundary, self.backward = axis, boundary, backward

    def forward(self, x: Array) -> Array:
        if self.boundary == "periodic":
            return x - _roll(x, 1, self.axis) if self.backward else _roll(x, -1, self.axis) - x
        if self.boundary == "none" and x.shape[self.axis] == 1:
            raise ValueError(f"axis {self.axis} of {tuple(x.shape)} has one sample and so no difference; choose another boundary")
        if self.boundary == "neumann" and not is_tensor(x):
            space, (first, second) = namespace(x), neighbours(x, self.axis)
            result = space.zeros(x.shape, x.dtype)
            space.subtract(second, first, out=neighbours(result, self.axis)[self.backward])
            return result
        difference = _part(x, self.axis, slice(1, None)) - _part(x, self.axis, slice(-1))
        if self.boundary == "none":
            return difference
        zero = _zeros_at_edge(x, self.axis)
        return concatenate([zero, difference] if self.backward else [difference, zero], self.axis)

    def adjoint(self, y: Array) -> Array:
        if self.boundary == "periodic":
            return y - _roll(y, -1, self.axis) if self.backward else _roll(y, 1, self.axis) - y
        if self.boundary == "neumann":
            y = _part(y, self.axis, slice(1, None) if self.backward else slice(-1))
        if not is_tensor(y):
            shape = list(y.shape)
            shape[self.axis] += 1
            result = namespace(y).zeros(shape, y.dtype)
            first, second = neighbours(result, self.axis)
            first -= y
            second += y
            return result
        zero = _zeros_at_edge(y, self.axis)
        return concatenate([zero, y], self.axis) - concatenate([y, zero], self.axis)


class Gradient(LinearOperator):
    """Forward differences along all axes: images `[..., *image]` to fields `[..., rank, *image]`.

    The directions are in the order of the axes.

    Args:
        rank: number of image axes.
        boundary: neumann or periodic, see `FiniteDifference`.
        spacing: distance of neighbours per axis, which divides the differences; None for 1. (PyQMRI's `dz` multiplies: it
            is 1 / spacing.)

    Raises:
        ValueError: a boundary that changes the size, or a spacing that is not positive or not one number per axis.
    """

    def __init__(self, rank: int = 2, boundary: Boundary = "neumann", spacing: Sequence[float] | None = None) -> None:
        self.axes, self.scales = _check(rank, boundary, spacing)
        self.differences = [FiniteDifference(axis, boundary) for axis in self.axes]

    def forward(self, x: Array) -> Array:
        pairs = zip(self.differences, self.scales, strict=True)
        return stack([scale * difference.forward(x) for difference, scale in pairs], self.axes[0] - 1)

    def adjoint(self, y: Array) -> Array:
        parts = _unstack(y, self.axes[0] - 1, len(self.axes))
        adjoints = [s * d.adjoint(part) for d, s, part in zip(self.differences, self.scales, parts, strict=True)]
        return sum(adjoints[1:], adjoints[0])


class SymmetrisedGradient(LinearOperator):
    """E w = (J w + (J w)^T) / 2 of a field, J by backward differences: the second-order part of total generalised variation.

    Bredies, Kunisch, Pock, SIAM J. Imaging Sci. 3 (2010); Knoll et al., Magn. Reson. Med. 65 (2011).

    Fields `[..., rank, *image]` become `[..., rank (rank + 1) / 2, *image]`: first the diagonal of the symmetric matrix,
    then (0, 1), (0, 2), (1, 2) times the root of 2, so that the plain l2 norm over this axis is the Frobenius norm.

    Args and errors: see `Gradient`.
    """

    def __init__(self, rank: int = 2, boundary: Boundary = "neumann", spacing: Sequence[float] | None = None) -> None:
        self.axes, self.scales = _check(rank, boundary, spacing)
        self.differences = [FiniteDifference(axis, boundary, backward=True) for axis in self.axes]
        self.pairs = list(combinations(range(rank), 2))

    def forward(self, x: Array) -> Array:
        fields = _unstack(x, self.axes[0] - 1, len(self.axes))
        diagonal = [self._along(i, field) for i, field in enumerate(fields)]
        mixed = [math.sqrt(0.5) * (self._along(j, fields[i]) + self._along(i, fields[j])) for i, j in self.pairs]
        return stack([*diagonal, *mixed], self.axes[0] - 1)

    def adjoint(self, y: Array) -> Array:
        rank = len(self.axes)
        parts = _unstack(y, self.axes[0] - 1, rank + len(self.pairs))
        fields = [self._back(i, parts[i]) for i in range(rank)]
        for (i, j), part in zip(self.pairs, parts[rank:], strict=True):
            fields[i] = fields[i] + math.sqrt(0.5) * self._back(j, part)
            fields[j] = fields[j] + math.sqrt(0.5) * self._back(i, part)
        return stack(fields, self.axes[0] - 1)

    def _along(self, i: int, field: Array) -> Array:
        return self.scales[i] * self.differences[i].forward(field)

    def _back(self, i: int, part: Array) -> Array:
        return self.scales[i] * self.differences[i].adjoint(part)


def _check(rank: int, boundary: str, spacing: Sequence[float] | None) -> tuple[list[int], list[float]]:
    """Axes, and the factor of the difference along each."""
    if boundary not in ("neumann", "periodic"):
        raise ValueError(f"boundary must be 'neumann' or 'periodic', which keep the size of the image, not {boundary!r}")
    spacing = [1.0] * rank if spacing is None else [float(distance) for distance in spacing]
    if len(spacing) != rank or not all(0 < distance < math.inf for distance in spacing):
        raise ValueError(f"spacing must be {rank} positive numbers, one for each image axis, not {spacing}")
    return list(range(-rank, 0)), [1 / distance for distance in spacing]


def neighbours(x: Array, axis: int) -> tuple[Array, Array]:
    """Views of all elements but the last, and of all but the first, along an axis."""
    before: tuple[slice, ...] = (slice(None),) * (axis % x.ndim)
    return x[before + (slice(-1),)], x[before + (slice(1, None),)]  # noqa: RUF005


def _part(x: Array, axis: int, part: slice | int) -> Array:
    index: list[Any] = [slice(None)] * len(x.shape)
    index[axis] = part
    return x[tuple(index)]


def _unstack(x: Array, axis: int, count: int) -> list[Array]:
    if len(x.shape) < -axis or x.shape[axis] != count:
        raise ValueError(f"expected {count} components at axis {axis} of a field of shape {tuple(x.shape)}")
    return [_part(x, axis, i) for i in range(count)]


def _roll(x: Array, shift: int, axis: int) -> Array:
    if is_tensor(x):
        import tensorflow as tf

        return tf.roll(x, shift, axis)
    return np.roll(x, shift, axis)


def _zeros_at_edge(x: Array, axis: int) -> Array:
    """Zeros of the shape of one slice of `x`, kept as an axis of size 1."""
    shape = list(x.shape)
    shape[axis] = 1
    if is_tensor(x):
        import tensorflow as tf

        known = [tf.shape(x)[i] if n is None else n for i, n in enumerate(shape)]
        return tf.zeros(tf.stack(known), x.dtype)
    return np.zeros_like(x, shape=shape)
