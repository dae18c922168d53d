"""Arrays may be NumPy arrays or TensorFlow tensors; these helpers tell them apart without importing TensorFlow."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec, TypeAlias

import numpy as np

Array: TypeAlias = Any
"""A `numpy.ndarray` or a `tensorflow.Tensor`; a function returns the kind it was given."""
Options = ParamSpec("Options")


def is_tensor(*arrays: Any) -> bool:
    """Tell whether any of `arrays` is a TensorFlow tensor or variable."""
    tensorflow = sys.modules.get("tensorflow")
    # While TensorFlow is still being imported by another thread nobody can hold a tensor yet.
    known = getattr(tensorflow, "is_tensor", None)
    return known is not None and any(known(array) for array in arrays)


def complex_dtype(array: Array) -> np.dtype:
    """Complex NumPy dtype of the same precision as `array` (complex128 only for 64-bit floats)."""
    dtype = np.dtype(array.dtype.as_numpy_dtype if is_tensor(array) else array.dtype)
    return np.dtype(np.complex128 if dtype in (np.float64, np.complex128) else np.complex64)


def real_dtype(dtype: np.dtype) -> np.dtype:
    """Real dtype of the same precision as the complex `dtype`."""
    return np.dtype(np.float64 if dtype == np.complex128 else np.float32)


def like(array: np.ndarray, other: Array) -> Any:
    """Put a NumPy `array` on the GPU if `other` is a CuPy array; otherwise leave it."""
    cupy = sys.modules.get("cupy")
    return cupy.asarray(array) if cupy is not None and isinstance(other, cupy.ndarray) else array


def matched(values: Array, other: Array) -> Any:
    """Put `values` into the precision, kind and device of `other`, to be multiplied with it.

    Real values stay real for arrays; for a complex tensor they become complex, because TensorFlow does not mix the two.
    """
    if is_tensor(values, other):
        import tensorflow as tf

        return tf.cast(values, other.dtype)
    dtype = complex_dtype(other)
    return like(values.astype(dtype if values.dtype.kind == "c" else real_dtype(dtype), copy=False), other)


def concatenate(parts: Sequence[Array], axis: int) -> Array:
    """Join arrays or tensors of one kind along an axis."""
    if is_tensor(*parts):
        import tensorflow as tf

        return tf.concat(parts, axis)
    return np.concatenate(parts, axis)


def stack(parts: Sequence[Array], axis: int) -> Array:
    """Join arrays or tensors of one kind along a new axis."""
    if is_tensor(*parts):
        import tensorflow as tf

        return tf.stack(parts, axis)
    return np.stack(parts, axis)


def reshape(x: Array, shape: Sequence[int | None]) -> Array:
    """Reshape an array or a tensor; a None, one axis of unknown size in a graph, is found from the others."""
    if is_tensor(x):
        import tensorflow as tf

        return tf.reshape(x, [-1 if n is None else n for n in shape])
    return x.reshape(shape)


def through_arrays(function: Callable[Options, Array]) -> Callable[Options, Array]:
    """Let a function of NumPy or CuPy arrays take a tensor as its first argument, eagerly or in a graph (without a gradient).

    The result must have the dtype of the first argument.
    """

    @wraps(function)
    def wrapper(*args: Options.args, **kwargs: Options.kwargs) -> Array:
        if not args or not is_tensor(args[0]):
            return function(*args, **kwargs)
        import tensorflow as tf

        tensor: Any = args[0]
        return tf.numpy_function(lambda values: function(values, *args[1:], **kwargs), [tensor], tensor.dtype)  # type: ignore[arg-type]

    return wrapper


def through_numpy(function: Callable[..., np.ndarray]) -> Callable[..., Array]:
    """Let a NumPy function take a tensor (see `through_arrays`) or a CuPy array as its first argument."""

    @through_arrays
    @wraps(function)
    def wrapper(array: Array, *args: Any, **kwargs: Any) -> Array:
        cupy = sys.modules.get("cupy")
        if cupy is not None and isinstance(array, cupy.ndarray):
            return cupy.asarray(function(array.get(), *args, **kwargs))
        return function(np.asarray(array), *args, **kwargs)

    return wrapper


def phaseless(images: np.ndarray) -> bool:
    """Whether images are magnitudes or other real numbers, also as complex ones: half as many data, with noise in the real part alone."""
    return not np.iscomplexobj(images) or (not images.imag.any() and bool(images.any()))
