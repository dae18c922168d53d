"""Random receive coils."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from recon.networks.training.draws import Draws


def random_coils(draws: Draws, batch: int, coils: int, shape: tuple[int, int]) -> Any:
    """Sensitivities ``[batch, coil, y, x]`` (complex64): Gaussian lobes on a ring about the body, each with a phase of its own.

    The root of the sum of squares has a mean of 1 over the pixels and varies by some ten percent, as after whitening.
    """
    import tensorflow as tf

    y, x = (tf.constant(axis, tf.float32) for axis in np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    start = draws.uniform([batch, 1], 0, 2 * math.pi)
    angles = start + 2 * math.pi * (tf.range(coils, dtype=tf.float32) + draws.uniform([batch, coils], -0.3, 0.3)) / coils
    distance = draws.uniform([batch, coils], 0.7, 1.2)
    width = draws.uniform([batch, coils], 0.5, 0.9)

    def each(values: Any) -> Any:
        return values[:, :, None, None]

    dy, dx = y - each(distance * tf.sin(angles)), x - each(distance * tf.cos(angles))
    size = tf.exp(-(dy**2 + dx**2) / (2 * each(width) ** 2))
    phase = each(draws.uniform([batch, coils], 0, 2 * math.pi))
    phase += each(draws.uniform([batch, coils], -1.5, 1.5)) * y + each(draws.uniform([batch, coils], -1.5, 1.5)) * x
    scale = tf.reduce_mean(tf.sqrt(tf.reduce_sum(size**2, 1)), [1, 2])[:, None, None, None]
    size /= scale
    return tf.complex(size * tf.cos(phase), size * tf.sin(phase))
