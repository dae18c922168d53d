"""The largest eigenvalue of an operator, for step sizes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from recon.arrays import Array, complex_dtype, is_tensor
from recon.arrays import like as beside
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
    return dominant(operator, random_like(like, seed), iterations)[0]


def dominant(operator: Callable[[Array], Array], vector: Array, iterations: int) -> tuple[float, Array]:
    """Largest eigenvalue as `power_iteration` finds it from `vector`, and the vector that it ended with, to go on from."""
    norm = 0.0
    for _ in range(iterations):
        size = float(root(inner(vector, vector)))
        if size == 0:
            return 0.0, vector
        vector = operator(times(1 / size, vector))
        norm = float(root(inner(vector, vector)))
        if not np.isfinite(norm):
            raise ValueError("power_iteration: the operator's result is not finite; look for NaN in maps, masks or weights")
    return norm, vector


def random_like(like: Array, seed: int = 0) -> Array:
    """Normally distributed numbers of the shape, dtype and device of an array or tensor."""
    random = np.random.default_rng(seed)
    shape = tuple(like.shape)
    dtype = like.dtype.as_numpy_dtype if is_tensor(like) else like.dtype
    values = random.standard_normal(shape)
    if np.dtype(dtype).kind == "c":
        values = (values + 1j * random.standard_normal(shape)).astype(complex_dtype(like))
    # Added to zeros of the same kind, so that they lie on the device of `like`.
    return times(0.0, like) + beside(values.astype(dtype), like)
