"""Small tensor helpers with which signal models are written."""

from __future__ import annotations

from typing import Any

import numpy as np


def real_dtype(like: Any) -> Any:
    """The real TensorFlow dtype of the same precision as the tensor `like`."""
    return like.dtype.real_dtype


def real_like(values: Any, like: Any) -> Any:
    """Real `values` as a tensor in the precision of `like`."""
    import tensorflow as tf

    return tf.cast(values, real_dtype(like)) if tf.is_tensor(values) else tf.constant(np.asarray(values), real_dtype(like))


def column(values: Any, like: Any) -> Any:
    """Numbers ``[contrast]`` as a real tensor ``[contrast, 1, ...]`` that broadcasts against the voxels of `like`."""
    values = np.asarray(values)
    return real_like(values.reshape(-1, *[1] * like.shape.rank), like)


def as_complex(values: Any, dtype: Any) -> Any:
    """Real or complex `values` in a complex dtype. (TensorFlow warns of the derivative of a cast from real to complex.)"""
    import tensorflow as tf

    values = tf.convert_to_tensor(values)
    if values.dtype.is_complex:
        return tf.cast(values, dtype)
    values = tf.cast(values, tf.as_dtype(dtype).real_dtype)
    return tf.complex(values, tf.zeros_like(values))


def times(amplitude: Any, factor: Any) -> Any:
    """A real or complex `amplitude` times a real `factor`."""
    factor = real_like(factor, amplitude)
    return amplitude * (as_complex(factor, amplitude.dtype) if amplitude.dtype.is_complex else factor)


def turned(values: Any, phase: Any) -> Any:
    """Real or complex `values` times exp(i phase), complex."""
    import tensorflow as tf

    factor = tf.complex(tf.cos(phase), tf.sin(phase))
    return as_complex(values, factor.dtype) * factor


def decay(exponent: Any) -> Any:
    """1 - exp(-exponent) without cancellation: in single precision TR / T1 = 1e-3 would lose three digits."""
    import tensorflow as tf

    return -tf.math.expm1(-exponent)


def geometric_mean_power(rate: Any, first: Any, count: int) -> Any:
    """Mean of exp(-n rate) over n = first, ..., first + count - 1; rate above 0."""
    import tensorflow as tf

    return tf.exp(-first * rate) * decay(count * rate) / (count * decay(rate))
