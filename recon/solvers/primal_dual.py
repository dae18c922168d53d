"""Primal-dual splitting with line search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from recon.arrays import Array, is_tensor
from recon.functionals.base import Functional
from recon.namespace import choose, inner, iterate, number, root, times
from recon.operators.linear import LinearOperator

SHRINK, SAFETY = 0.7, 0.99
"""The line search's factor for a step that was too long, and how close to the limit a step may come (mu, delta of the paper)."""
TRIALS = 60
"""So many steps may be tried; 0.7^60 = 5e-10 of the first one."""


def primal_dual(
    terms: Sequence[tuple[LinearOperator, Functional]],
    initial: Array,
    prox: Callable[[Array, Any], Array] | None = None,
    iterations: int = 100,
    step: float = 1.0,
    ratio: float = 1.0,
    tolerance: float = 0.0,
) -> Array:
    """Minimise g(x) + sum over the terms of f_i(K_i x), neither of them smooth.

    Chambolle and Pock, J. Math. Imaging Vis. 40 (2011), with the line search of Malitsky and Pock, SIAM J. Optim. 28 (2018),
    algorithm 1: no norm of K is needed. One application of every K, and about one of every K^H, per iteration.

    Args:
        terms: pairs of K_i and f_i, of which `conjugate_prox` is used.
        initial: x to start with; array or tensor (also inside `tf.function`).
        prox: (x, step) to the u that minimises step g(u) + |u - x|^2 / 2; None for g = 0.
        iterations: at most so many.
        step: first primal step; grows and shrinks by itself.
        ratio: dual step over primal step; balances the scales of image and duals.
        tolerance: stop when |x_new - x| <= tolerance |x_new|, and the same for the dual variables.

    Raises:
        ValueError: no terms, or a step or ratio that is not positive.
    """
    if not terms:
        raise ValueError("primal_dual needs at least one term (operator, functional)")
    if not (step > 0 and ratio > 0):
        raise ValueError(f"step and ratio must be above 0, not {step} and {ratio}")
    operators = [operator for operator, _ in terms]
    functionals = [functional for _, functional in terms]
    tensors = is_tensor(initial)

    def backward(duals: tuple[Array, ...]) -> Array:
        parts = [operator.adjoint(dual) for operator, dual in zip(operators, duals, strict=True)]
        return sum(parts[1:], parts[0])

    def norm(arrays: Sequence[Array]) -> Any:
        squares = [inner(array, array) for array in arrays]
        return root(sum(squares[1:], squares[0]))

    def advance(x: Array, images: tuple, duals: tuple, back: Array, step: Any, growth: Any, _: Any) -> tuple:
        updated = x - times(step, back)
        if prox is not None:
            updated = prox(updated, step)
        forward = tuple(operator(updated) for operator in operators)

        def attempt(_: tuple, __: Array, trial: Any, ___: Any) -> tuple:
            theta = trial / step
            moved = tuple(
                functional.conjugate_prox(dual + times(ratio * trial, new + times(theta, new - old)), ratio * trial)
                for functional, dual, new, old in zip(functionals, duals, forward, images, strict=True)
            )
            back_moved = backward(moved)
            change = norm([new - old for new, old in zip(moved, duals, strict=True)])
            too_long = ratio**0.5 * trial * norm([back_moved - back]) > SAFETY * change
            return moved, back_moved, choose(too_long, SHRINK * trial, trial), too_long

        first = (duals, back, step * root(1 + growth), number(1.0, x) > 0)
        moved, back_moved, taken, _ = iterate(lambda *state: state[-1], attempt, first, TRIALS, tensors)
        moving = number(1.0, x) > 0
        if tolerance:
            steps = [new - old for new, old in zip(moved, duals, strict=True)]
            moving = (norm([updated - x]) > tolerance * norm([updated])) | (norm(steps) > tolerance * norm(moved))
        return updated, forward, moved, back_moved, taken, taken / step, moving

    images = tuple(operator(initial) for operator in operators)
    duals = tuple(times(0.0, image) for image in images)
    always = number(1.0, initial) > 0
    state = (initial, images, duals, times(0.0, initial), number(step, initial), number(1.0, initial), always)
    result: Array = iterate(lambda *state: state[-1], advance, state, iterations, tensors)[0]
    return result
