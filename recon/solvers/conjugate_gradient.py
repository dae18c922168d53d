"""Conjugate gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from recon.arrays import Array, is_tensor


def conjugate_gradient(
    operator: Callable[[Array], Array],
    rhs: Array,
    iterations: int = 10,
    tolerance: float = 0.0,
    initial: Array | None = None,
) -> Array:
    """Solve A x = b for a self-adjoint, positive semidefinite A: minimise x^H A x / 2 - Re(b^H x).

    Hestenes and Stiefel, J. Res. Natl. Bur. Stand. 49 (1952). Inner products run over all axes, in double precision.

    Args:
        operator: applies A.
        rhs: b, complex or real, any shape; NumPy (or CuPy) array or tensor. Tensors also work inside `tf.function`.
        iterations: at most so many applications of A after the first.
        tolerance: stop when |b - A x| <= tolerance |b|.
        initial: start value, zero by default.

    Returns:
        x, of the kind of `rhs`.
    """
    if is_tensor(rhs):
        return _solve_tensor(operator, rhs, iterations, tolerance, initial)
    if initial is None:
        solution, residual = rhs * 0, rhs.copy()
    else:
        solution = initial.copy()
        residual = rhs - operator(solution)
    direction = residual.copy()
    energy = _inner(residual, residual)
    goal = tolerance**2 * _inner(rhs, rhs)
    for _ in range(iterations):
        if energy <= goal:
            break
        image = operator(direction)
        curvature = _inner(direction, image)
        if not curvature > 0:
            break  # the direction lies in the null space: nothing can be gained along it
        step = energy / curvature
        solution += step * direction
        residual -= step * image
        previous, energy = energy, _inner(residual, residual)
        direction *= energy / previous
        direction += residual
    return solution


def _inner(a: Any, b: Any) -> float:
    """Real part of the inner product, without BLAS, whose sums depend on its number of threads."""
    a, b = (one.ravel().view(one.real.dtype) for one in (a, b))
    return float((a * b).sum(dtype=np.float64))


def _solve_tensor(operator: Callable[[Any], Any], rhs: Any, iterations: int, tolerance: float, initial: Any | None) -> Any:
    import tensorflow as tf

    def inner(a: Any, b: Any) -> Any:
        return tf.reduce_sum(tf.cast(tf.math.real(tf.math.conj(a) * b), tf.float64))

    def go_on(_: Any, __: Any, ___: Any, energy: Any) -> Any:
        return energy > goal

    def iterate(solution: Any, residual: Any, direction: Any, energy: Any) -> tuple[Any, Any, Any, Any]:
        image = operator(direction)
        step = tf.cast(tf.math.divide_no_nan(energy, inner(direction, image)), rhs.dtype)
        solution += step * direction
        residual -= step * image
        updated = inner(residual, residual)
        direction = residual + tf.cast(tf.math.divide_no_nan(updated, energy), rhs.dtype) * direction
        return solution, residual, direction, updated

    goal = tolerance**2 * inner(rhs, rhs)
    solution = tf.zeros_like(rhs) if initial is None else tf.convert_to_tensor(initial)
    residual = rhs if initial is None else rhs - operator(solution)
    state = (solution, residual, residual, inner(residual, residual))
    return tf.while_loop(go_on, iterate, state, maximum_iterations=iterations)[0]
