"""Conjugate gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from recon.arrays import Array, is_tensor
from recon.namespace import inner


def conjugate_gradient(
    operator: Callable[[Array], Array],
    rhs: Array,
    iterations: int = 10,
    tolerance: float = 0.0,
    initial: Array | None = None,
    preconditioner: Callable[[Array], Array] | None = None,
    implicit_gradient: bool = False,
) -> Array:
    """Solve A x = b for a self-adjoint, positive semidefinite A: minimise x^H A x / 2 - Re(b^H x).

    Hestenes and Stiefel, J. Res. Natl. Bur. Stand. 49 (1952). Inner products run over all axes, in double precision.

    The result for tensors can be differentiated, for unrolled networks: step by step through the iterations (the exact
    gradient of what was computed, memory grows with their number), or implicitly (Rajeswaran et al., NeurIPS 2019; the
    gradient of the solution, by conjugate gradients again, in constant memory) with respect to b and to whatever A uses.

    Args:
        operator: applies A.
        rhs: b, complex or real, any shape; NumPy (or CuPy) array or tensor. Tensors also work inside `tf.function`.
        iterations: at most so many applications of A after the first.
        tolerance: stop when |b - A x| <= tolerance |b|.
        initial: start value, zero by default.
        preconditioner: applies a self-adjoint, positive definite approximation of the inverse of A.
        implicit_gradient: for tensors, differentiate the solution instead of the iterations: iterate to convergence then.

    Returns:
        x, of the kind of `rhs`.
    """
    if is_tensor(rhs):
        if implicit_gradient:
            return _solve_implicitly(operator, rhs, iterations, tolerance, initial, preconditioner)
        return _solve_tensor(operator, rhs, iterations, tolerance, initial, preconditioner)
    if initial is None:
        solution, residual = rhs * 0, rhs.copy()
    else:
        solution = initial.copy()
        residual = rhs - operator(solution)
    better = residual if preconditioner is None else preconditioner(residual)
    direction = better.copy()
    energy = inner(residual, better)
    goal = tolerance**2 * inner(rhs, rhs)
    for _ in range(iterations):
        if (energy if preconditioner is None else inner(residual, residual)) <= goal:
            break
        image = operator(direction)
        curvature = inner(direction, image)
        if not curvature > 0:
            break  # the direction lies in the null space: nothing can be gained along it
        step = energy / curvature
        solution += step * direction
        residual -= step * image
        better = residual if preconditioner is None else preconditioner(residual)
        previous, energy = energy, inner(residual, better)
        direction *= energy / previous
        direction += better
    return solution


def _solve_tensor(
    operator: Callable[[Any], Any],
    rhs: Any,
    iterations: int,
    tolerance: float,
    initial: Any | None,
    preconditioner: Callable[[Any], Any] | None,
) -> Any:
    import tensorflow as tf

    def better(residual: Any) -> Any:
        return residual if preconditioner is None else preconditioner(residual)

    def go_on(_: Any, residual: Any, __: Any, energy: Any) -> Any:
        return (energy if preconditioner is None else inner(residual, residual)) > goal

    def iterate(solution: Any, residual: Any, direction: Any, energy: Any) -> tuple[Any, Any, Any, Any]:
        image = operator(direction)
        step = tf.cast(tf.math.divide_no_nan(energy, inner(direction, image)), rhs.dtype)
        solution += step * direction
        residual -= step * image
        improved = better(residual)
        updated = inner(residual, improved)
        direction = improved + tf.cast(tf.math.divide_no_nan(updated, energy), rhs.dtype) * direction
        return solution, residual, direction, updated

    rhs = tf.convert_to_tensor(rhs)
    goal = tolerance**2 * inner(rhs, rhs)
    solution = tf.zeros_like(rhs) if initial is None else tf.convert_to_tensor(initial)
    residual = rhs if initial is None else rhs - operator(solution)
    improved = better(residual)
    state = (solution, residual, improved, inner(residual, improved))
    return tf.while_loop(go_on, iterate, state, maximum_iterations=iterations)[0]


def _solve_implicitly(
    operator: Callable[[Any], Any],
    rhs: Any,
    iterations: int,
    tolerance: float,
    initial: Any | None,
    preconditioner: Callable[[Any], Any] | None,
) -> Any:
    """The solution x with the gradients of x = A^-1 b.

    With x held fixed, x + A^-1 (b - A x) has them: those of the residual are plain differentiation, and A^-1, self-adjoint,
    takes the gradient of x to that of the residual.
    """
    import tensorflow as tf

    def solve(vector: Any, start: Any | None = None) -> Any:
        return _solve_tensor(operator, vector, iterations, tolerance, start, preconditioner)

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def attach(solution: Any, residual: Any) -> Any:
        return tf.identity(solution), lambda upstream: (None, solve(upstream))

    solution = tf.stop_gradient(solve(rhs, initial))
    return attach(solution, rhs - operator(solution))
