"""One operator for each frame of a series."""

from __future__ import annotations

from collections.abc import Sequence

from recon.arrays import Array, stack
from recon.operators.linear import LinearOperator


class Frames(LinearOperator):
    """Images `[frame, ...]` to data `[frame, ...]`, each frame by an operator of its own, for example its own trajectory.

    Args:
        operators: one for each frame; the results must have one shape.

    Raises:
        ValueError: no operators, or as many frames as there are not operators.
    """

    def __init__(self, operators: Sequence[LinearOperator]) -> None:
        if not operators:
            raise ValueError("a series of frames needs at least one operator")
        self.operators = tuple(operators)

    def forward(self, x: Array) -> Array:
        self._check(x)
        return stack([operator.forward(x[n]) for n, operator in enumerate(self.operators)], 0)

    def adjoint(self, y: Array) -> Array:
        self._check(y)
        return stack([operator.adjoint(y[n]) for n, operator in enumerate(self.operators)], 0)

    @property
    def gram(self) -> LinearOperator:
        return Frames([operator.gram for operator in self.operators])

    def _check(self, x: Array) -> None:
        if x.shape[0] != len(self.operators):
            raise ValueError(f"{len(self.operators)} operators cannot act on {x.shape[0]} frames (the first axis of {tuple(x.shape)})")
