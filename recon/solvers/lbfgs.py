"""Limited-memory quasi-Newton minimisation of smooth functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.optimize

from recon.arrays import Array, is_tensor


def lbfgs(
    value_and_gradient: Callable[[Array], tuple[Any, Array]],
    initial: Array,
    iterations: int = 50,
    tolerance: float = 1e-8,
    memory: int = 10,
) -> Array:
    """Minimise a smooth function of a real or complex array, by SciPy's L-BFGS-B in double precision.

    Liu and Nocedal, Math. Program. 45 (1989).

    Args:
        value_and_gradient: x to the value and the gradient, df/d(Re x) + i df/d(Im x); 2 A^H (A x - y) for |A x - y|^2.
        initial: start; array or tensor. In a `tf.function` the minimisation runs eagerly and has no gradient.
        iterations: at most so many.
        tolerance: stop when no component of the gradient is larger, or when the relative gain falls below 1e-15.
        memory: pairs of steps and gradients to keep.
    """
    if is_tensor(initial):
        import tensorflow as tf

        def eagerly(start: Any) -> Any:
            def evaluate(x: np.ndarray) -> tuple[Any, np.ndarray]:
                value, gradient = value_and_gradient(tf.constant(x, start.dtype))
                return float(value), np.asarray(gradient)

            return tf.constant(_minimise(evaluate, start.numpy(), iterations, tolerance, memory))

        if tf.executing_eagerly():
            return eagerly(initial)
        return tf.ensure_shape(tf.py_function(eagerly, [initial], initial.dtype), initial.shape)
    return _minimise(value_and_gradient, np.asarray(initial), iterations, tolerance, memory)


def _minimise(
    value_and_gradient: Callable[[np.ndarray], tuple[Any, Any]], initial: np.ndarray, iterations: int, tolerance: float, memory: int
) -> np.ndarray:
    double = np.complex128 if initial.dtype.kind == "c" else np.float64

    def evaluate(flat: np.ndarray) -> tuple[float, np.ndarray]:
        x = flat.view(double).reshape(initial.shape).astype(initial.dtype)
        value, gradient = value_and_gradient(x)
        return float(value), np.ascontiguousarray(gradient, double).ravel().view(np.float64)

    options = {"maxiter": iterations, "gtol": tolerance, "ftol": 1e-15, "maxcor": memory}
    start = np.ascontiguousarray(initial, double).ravel().view(np.float64)
    flat = scipy.optimize.minimize(evaluate, start, jac=True, method="L-BFGS-B", options=options).x
    result: np.ndarray = flat.view(double).reshape(initial.shape).astype(initial.dtype)
    return result
