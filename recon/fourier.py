"""Centred, orthonormal Fourier transforms over any axes.

The forward transform takes an image to k-space with exp(-i k r); the origin of both lies at index n // 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import scipy.fft

from recon.arrays import Array, complex_dtype, is_tensor

Axes = int | Sequence[int]


def fftc(x: Array, axes: Axes) -> Array:
    """Centred orthonormal Fourier transform, image to k-space.

    Args:
        x: array or tensor of any shape; complex64 stays complex64.
        axes: axis or axes to transform, of any length.

    Returns:
        Array of the shape and kind of `x`.
    """
    return _transform(x, axes, inverse=False)


def ifftc(x: Array, axes: Axes) -> Array:
    """Centred orthonormal inverse Fourier transform, k-space to image. See `fftc`."""
    return _transform(x, axes, inverse=True)


def _transform(x: Array, axes: Axes, inverse: bool) -> Array:
    axes = (axes,) if isinstance(axes, int) else tuple(axes)
    if is_tensor(x):
        return _transform_tensor(x, axes, inverse)
    x = x if hasattr(x, "astype") else np.asarray(x)
    fft, options = fft_module(x)
    x = x.astype(complex_dtype(x), copy=False)
    function = fft.ifftn if inverse else fft.fftn
    shifted = fft.ifftshift(x, axes)
    result: Array = fft.fftshift(function(shifted, axes=axes, norm="ortho", **options), axes)
    return result


def fft_module(x: Any) -> tuple[Any, dict[str, Any]]:
    """FFT functions for the device of a NumPy or CuPy array, and options to save memory."""
    if isinstance(x, np.ndarray):
        return scipy.fft, {"overwrite_x": True}
    import cupy

    return cupy.fft, {}


def _transform_tensor(x: Any, axes: tuple[int, ...], inverse: bool) -> Any:
    import tensorflow as tf

    x = tf.cast(x, tf.as_dtype(complex_dtype(x)))
    rank = x.shape.rank
    axes = tuple(axis % rank for axis in axes)
    last = tuple(range(rank - len(axes), rank))
    functions: dict[int, Callable[[Any], Any]] = (
        {1: tf.signal.ifft, 2: tf.signal.ifft2d, 3: tf.signal.ifft3d}
        if inverse
        else {1: tf.signal.fft, 2: tf.signal.fft2d, 3: tf.signal.fft3d}
    )
    others = [axis for axis in range(rank) if axis not in axes]
    order = [*others, *sorted(axes)]
    moved = tuple(sorted(axes)) != last
    if moved:
        x = tf.transpose(x, order)
    x = functions[len(axes)](tf.signal.ifftshift(x, last))
    size = tf.cast(tf.reduce_prod(tf.shape(x)[rank - len(axes) :]), x.dtype.real_dtype)
    scale = tf.sqrt(size) if inverse else tf.math.rsqrt(size)
    x = tf.signal.fftshift(x, last) * tf.cast(scale, x.dtype)
    return tf.transpose(x, np.argsort(order)) if moved else x
