"""The few array functions that solvers and functionals need, under NumPy's names, for NumPy arrays, CuPy arrays and tensors."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from recon.arrays import Array, complex_dtype, is_tensor, real_dtype


def namespace(*arrays: Array) -> Any:
    """The module whose functions (`abs`, `sum`, `where`, ...) fit these arrays: NumPy, CuPy, or an adapter of TensorFlow."""
    if is_tensor(*arrays):
        return _tensorflow()
    cupy = sys.modules.get("cupy")
    return cupy if cupy is not None and any(isinstance(array, cupy.ndarray) for array in arrays) else np


def times(factor: Any, x: Array) -> Array:
    """A real factor (number or array) times `x`, in the precision of `x`."""
    if is_tensor(x, factor):
        return _tensor(factor, x.dtype) * x
    dtype = real_dtype(complex_dtype(x))
    return (factor.astype(dtype, copy=False) if hasattr(factor, "astype") and np.ndim(factor) else dtype.type(factor)) * x


def real_like(value: Any, like: Array) -> Any:
    """A real number or array in the dtype (and of the kind) of the real array `like`."""
    if is_tensor(like):
        return _tensor(value, like.dtype)
    return namespace(like).asarray(value, like.dtype)


def cast(values: Array, like: Array) -> Array:
    """`values` in the dtype of `like`, real to complex too."""
    if is_tensor(values):
        import tensorflow as tf

        return tf.cast(values, like.dtype)
    return values.astype(like.dtype, copy=False)


def is_complex(x: Array) -> bool:
    """Tell whether the elements of an array or tensor are complex numbers."""
    return bool(x.dtype.is_complex if is_tensor(x) else x.dtype.kind == "c")


def descending(x: Array) -> Array:
    """A real vector with the largest element first."""
    if is_tensor(x):
        import tensorflow as tf

        return tf.sort(x, direction="DESCENDING")
    return namespace(x).sort(x)[::-1]


def inner(a: Array, b: Array) -> Any:
    """Real part of the inner product over all axes, in double precision: a float, or a scalar tensor of float64."""
    if is_tensor(a, b):
        import tensorflow as tf

        return tf.reduce_sum(tf.cast(tf.math.real(tf.math.conj(a) * b), tf.float64))
    # Without BLAS, whose sums depend on its number of threads.
    a, b = (one.ravel().view(one.real.dtype) for one in (a, b))
    return float((a * b).sum(dtype=np.float64))


def total(x: Array) -> Any:
    """Sum of a real array over all axes, in double precision: a float, or a scalar tensor of float64."""
    if is_tensor(x):
        import tensorflow as tf

        return tf.reduce_sum(tf.cast(x, tf.float64))
    return float(x.sum(dtype=np.float64))


def choose(condition: Any, yes: Any, no: Any) -> Any:
    """`yes` where the scalar `condition` holds, else `no`; all of them numbers or scalar tensors."""
    if is_tensor(condition):
        import tensorflow as tf

        return tf.where(condition, yes, no)
    return yes if condition else no


def root(value: Any) -> Any:
    """Square root of a number or a scalar tensor."""
    if is_tensor(value):
        import tensorflow as tf

        return tf.sqrt(value)
    return float(np.sqrt(value))


def number(value: float, like: Array) -> Any:
    """`value` as a float, or beside tensors as a scalar tensor of float64."""
    if is_tensor(like):
        import tensorflow as tf

        return tf.constant(value, tf.float64)
    return float(value)


def iterate(go_on: Callable[..., Any], step: Callable[..., tuple], state: tuple, iterations: int, tensors: bool) -> tuple:
    """Apply `step` to the state while `go_on` holds, at most `iterations` times: a plain loop, or `tf.while_loop` for tensors."""
    if tensors:
        import tensorflow as tf

        result: tuple = tf.while_loop(go_on, step, state, maximum_iterations=iterations)
        return result
    for _ in range(iterations):
        if not go_on(*state):
            break
        state = step(*state)
    return state


def _tensor(value: Any, dtype: Any) -> Any:
    """A tensor of this dtype. `tf.cast` alone would round a Python number to single precision first."""
    import tensorflow as tf

    return tf.cast(value, dtype) if is_tensor(value) else tf.convert_to_tensor(np.asarray(value).astype(dtype.as_numpy_dtype))


_adapter: Any = None


def _tensorflow() -> Any:
    global _adapter
    if _adapter is None:
        _adapter = _make_adapter()
    return _adapter


def _make_adapter() -> Any:
    import tensorflow as tf

    def reduce(function: Callable[..., Any]) -> Any:
        return staticmethod(lambda x, axis=None, keepdims=False: function(x, axis, keepdims))

    class TensorFlow:
        """TensorFlow under NumPy's names."""

        abs, sqrt, maximum, minimum = (staticmethod(f) for f in (tf.abs, tf.sqrt, tf.maximum, tf.minimum))
        where, stack, reshape, zeros_like, conj = (staticmethod(f) for f in (tf.where, tf.stack, tf.reshape, tf.zeros_like, tf.math.conj))
        real, imag, pad, roll, transpose = (staticmethod(f) for f in (tf.math.real, tf.math.imag, tf.pad, tf.roll, tf.transpose))
        concatenate = staticmethod(tf.concat)
        sum, mean, max, min = (reduce(f) for f in (tf.reduce_sum, tf.reduce_mean, tf.reduce_max, tf.reduce_min))
        cumsum = staticmethod(tf.cumsum)
        log, ones_like = staticmethod(tf.math.log), staticmethod(tf.ones_like)

    return TensorFlow
