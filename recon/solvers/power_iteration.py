"""The largest eigenvalue of an operator, for step sizes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from recon.arrays import Array, complex_dtype, is_tensor
from recon.namespace import inner, root, times


def power_iteration(operator: Callable[[Array], Array], like: Array, iterations: int = 20, seed: int = 0) -> float:
    """Largest eigenvalue of a self-adjoint, positive semidefinite operator, such as `A.gram`.

    The estimate grows towards the eigenvalue from below: raise it by some per cent for a step size.

    Args:
        operator: applies the operator.
        like: an array or tensor of the shape and dtype the operator takes. Not inside `tf.function`, where a number
            cannot be returned: compute the step size beforehand.
        iterations: applications of the operator.
        seed: of the random start, which makes the result repeatable.

    Raises:
        ValueError: the operator returned something that is not finite.
    """
    random = np.random.default_rng(seed)
    shape = tuple(like.shape)
    dtype = like.dtype.as_numpy_dtype if is_tensor(like) else like.dtype
    values = random.standard_normal(shape)
    if np.dtype(dtype).kind == "c":
        values = (values + 1j * random.standard_normal(shape)).astype(complex_dtype(like))
    # Added to zeros of the same kind, so that the start lies on the device of `like`.
    vector = times(0.0, like) + values.astype(dtype)
    norm = 0.0
    for _ in range(iterations):
        vector = times(1 / float(root(inner(vector, vector))), vector)
        vector = operator(vector)
        norm = float(root(inner(vector, vector)))
        if not np.isfinite(norm):
            raise ValueError("power_iteration: the operator's result is not finite; look for NaN in maps, masks or weights")
        if norm == 0:
            break
    return norm
