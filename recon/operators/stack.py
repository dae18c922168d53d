"""Several operators on top of each other."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from recon.arrays import Array, concatenate, reshape
from recon.operators.linear import LinearOperator


class Stack(LinearOperator):
    """[A; B; ...]: images `[..., *domain]` to all results, flattened and side by side, `[..., sum of sizes]`.

    `split` takes the results apart again. The results must share one dtype.

    Args:
        operators: with the same domain.
        domain: shape of the domain without batch axes; each operator is once applied to zeros of this shape, to learn
            the shape of its result.

    Raises:
        ValueError: no operator is given, or a result or an argument does not have the shape that follows from these.
    """

    def __init__(self, operators: Sequence[LinearOperator], domain: Sequence[int]) -> None:
        if not operators:
            raise ValueError("a stack of operators needs at least one operator")
        self.operators = tuple(operators)
        self.domain = tuple(domain)
        zeros = np.zeros(self.domain, np.complex64)
        self.ranges = [tuple(operator.forward(zeros).shape) for operator in self.operators]
        self.ends = np.cumsum([math.prod(shape) for shape in self.ranges]).tolist()

    def forward(self, x: Array) -> Array:
        batch = _batch(x, self.domain, "domain")
        parts = [operator.forward(x) for operator in self.operators]
        sizes = [math.prod(shape) for shape in self.ranges]
        return concatenate([reshape(part, [*batch, size]) for part, size in zip(parts, sizes, strict=True)], -1)

    def adjoint(self, y: Array) -> Array:
        parts = [operator.adjoint(part) for operator, part in zip(self.operators, self.split(y), strict=True)]
        return sum(parts[1:], parts[0])

    def split(self, y: Array) -> list[Array]:
        """The result of each operator, `[..., *range]`, from those of `forward`."""
        batch = _batch(y, (self.ends[-1],), "range")
        pieces = zip([0, *self.ends[:-1]], self.ends, self.ranges, strict=True)
        return [reshape(y[..., start:end], [*batch, *shape]) for start, end, shape in pieces]


def _batch(x: Array, inner: tuple[int, ...], name: str) -> list[int | None]:
    """Leading axes of `x`; None where the size is not known in a graph."""
    shape = list(x.shape)
    split = len(shape) - len(inner)
    if split < 0 or tuple(shape[split:]) != inner:
        raise ValueError(f"stacked operators have a {name} of shape [..., {', '.join(map(str, inner))}], not {tuple(shape)}")
    return shape[:split]
