"""Alternating direction method of multipliers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from recon.arrays import Array, is_tensor
from recon.namespace import inner, iterate, number, root, times
from recon.operators.linear import LinearOperator
from recon.solvers.conjugate_gradient import conjugate_gradient


class AdmmResult(NamedTuple):
    """Where ADMM stopped."""

    x: Array
    """The first variable, of f."""
    z: Array
    """The second variable, of g: A x at convergence, exactly sparse where x is only nearly so."""
    iterations: Any
    """Iterations done, an int or a scalar tensor."""
    converged: Any
    """Whether both residuals fell below their tolerances."""


def admm(
    update: Callable[[Array, Array, Any], Array],
    prox: Callable[[Array, Any], Array],
    initial: Array,
    operator: LinearOperator | None = None,
    penalty: float = 1.0,
    iterations: int = 50,
    absolute_tolerance: float = 0.0,
    relative_tolerance: float = 0.0,
) -> AdmmResult:
    """Minimise f(x) + g(A x), splitting z = A x.

    Boyd et al., Found. Trends Mach. Learn. 3 (2011), section 3, with its stopping rule (3.3.1).

    Args:
        update: (v, x, penalty) to the minimiser of f(x) + penalty |A x - v|^2 / 2, x being the last one as a start;
            for least squares see `least_squares_update`.
        prox: (v, step) to the z that minimises step g(z) + |z - v|^2 / 2.
        initial: x to start with (the splitting variables start at zero); array or tensor (also inside `tf.function`).
        operator: A; None for the identity.
        penalty: rho; changes the speed, not the result.
        iterations: at most so many.
        absolute_tolerance, relative_tolerance: of Boyd's rule, both 0 for a fixed number of iterations.

    Raises:
        ValueError: the penalty is not positive.
    """
    if not penalty > 0:
        raise ValueError(f"penalty must be above 0, not {penalty}")

    def forward(x: Array) -> Array:
        return x if operator is None else operator(x)

    def backward(z: Array) -> Array:
        return z if operator is None else operator.adjoint(z)

    def size(x: Array) -> Any:
        return root(inner(x, x))

    stops = absolute_tolerance > 0 or relative_tolerance > 0

    def go_on(_: Array, __: Array, ___: Array, ____: Any, converged: Any) -> Any:
        return ~converged if is_tensor(converged) else not converged

    def advance(x: Array, z: Array, dual: Array, count: Any, _: Any) -> tuple[Array, Array, Array, Any, Any]:
        x = update(z - dual, x, penalty)
        image = forward(x)
        updated = prox(image + dual, 1 / penalty)
        residual = image - updated
        converged = number(0.0, x) > 0
        if stops:
            above = relative_tolerance * _largest(size(image), size(updated)) + absolute_tolerance * math.sqrt(_count(image))
            below = relative_tolerance * penalty * size(backward(dual)) + absolute_tolerance * math.sqrt(_count(x))
            converged = (size(residual) <= above) & (penalty * size(backward(updated - z)) <= below)
        return x, updated, dual + residual, count + 1, converged

    zeros = times(0.0, forward(initial))
    state = (initial, zeros, zeros, _zero(initial), number(0.0, initial) > 0)
    x, z, _, count, converged = iterate(go_on, advance, state, iterations, is_tensor(initial))
    return AdmmResult(x, z, count, converged)


def least_squares_update(
    gram: Callable[[Array], Array],
    rhs: Array,
    operator: LinearOperator | None = None,
    iterations: int = 10,
    tolerance: float = 1e-5,
) -> Callable[[Array, Array, Any], Array]:
    """The `update` of ADMM for f(x) = |E x - y|^2 / 2, by conjugate gradients from the last x.

    Args:
        gram: applies E^H E.
        rhs: E^H y.
        operator: A of `admm`; None for the identity.
        iterations, tolerance: of each call's conjugate gradients.
    """

    def update(v: Array, x: Array, penalty: Any) -> Array:
        def normal(image: Array) -> Array:
            smooth = image if operator is None else operator.gram(image)
            return gram(image) + times(penalty, smooth)

        pulled = v if operator is None else operator.adjoint(v)
        return conjugate_gradient(normal, rhs + times(penalty, pulled), iterations, tolerance, initial=x)

    return update


def _largest(a: Any, b: Any) -> Any:
    if is_tensor(a):
        import tensorflow as tf

        return tf.maximum(a, b)
    return max(a, b)


def _zero(like: Array) -> Any:
    if is_tensor(like):
        import tensorflow as tf

        return tf.constant(0)
    return 0


def _count(x: Array) -> int:
    return math.prod(int(n) for n in x.shape)
