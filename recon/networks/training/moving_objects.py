"""Moving, beating, breathing objects: ellipses, real anatomy where there is some, smooth phase.

Coordinates run from -1 to 1 over the field of view; time is counted in frames.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from recon.networks.training.draws import Draws

BEATS = 3
"""Regions that contract."""


def moving_objects(
    draws: Draws,
    batch: int,
    frames: int,
    shape: tuple[int, int],
    anatomy: np.ndarray | None = None,
    cuts: float = 0.05,
    ellipses: int = 24,
) -> Any:
    """Series of complex images ``[batch, frame, y, x]`` (complex64), magnitudes between 0 and about 1.

    Every series has a body of its own with ellipses inside (some thin, some moving on their own), or a slice of `anatomy`, or both;
    all of it deformed by breathing and by up to three beating regions; smooth phase. As when an operator changes the slice, some series
    jump to another object.

    Args:
        draws: source of randomness.
        batch, frames, shape: of the result.
        anatomy: magnitude images ``[slice, y, x]``, 0 to 1, or None.
        cuts: fraction of series with such a jump.
        ellipses: painted into each body.
    """
    import tensorflow as tf

    y, x = (tf.constant(axis, tf.float32) for axis in np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    y, x, deformation = _deformed(draws, batch, frames, y, x)
    body = _body(draws, batch, y, x)
    image = body * _ellipses(draws, batch, frames, shape, y, x, ellipses)
    if anatomy is not None:
        share = tf.where(draws.chance([batch], 0.5), draws.uniform([batch], 0.5, 1.0), tf.zeros([batch]))[:, None, None, None]
        image = (1 - share) * image + share * _anatomy(draws, batch, anatomy, y, x)
    image = _cut(draws, batch, frames, image, cuts)
    image = image / tf.maximum(tf.reduce_max(image, [1, 2, 3], keepdims=True), 1e-3)
    phase = _smooth(draws, batch, y, x, 4) + deformation
    return tf.complex(image * tf.cos(phase), image * tf.sin(phase))


def _per_series(values: Any) -> Any:
    """``[batch, ...]`` against ``[batch, frame, y, x]``."""
    return values[:, None, None, None]


def _deformed(draws: Draws, batch: int, frames: int, y: Any, x: Any) -> tuple[Any, Any, Any]:
    """Where the object at rest is seen at every pixel and frame, and a phase that goes with it, all ``[batch, frame, y, x]``."""
    import tensorflow as tf

    time = tf.range(frames, dtype=tf.float32)[None, :, None, None]

    def swing(low: float, high: float) -> Any:
        period, start = draws.uniform([batch], low, high), draws.uniform([batch], 0, 2 * math.pi)
        return tf.sin(2 * math.pi * time / _per_series(period) + _per_series(start))

    breath = _per_series(draws.uniform([batch], 0, 0.06)) * swing(40, 120)
    lean = _per_series(draws.uniform([batch], -0.4, 0.4))
    y_there, x_there = y - breath, x - lean * breath
    for _ in range(BEATS):
        centre_y, centre_x = (_per_series(draws.uniform([batch], -0.5, 0.5)) for _ in range(2))
        width = _per_series(draws.uniform([batch], 0.15, 0.45))
        strength = _per_series(draws.uniform([batch], 0, 0.35) * tf.cast(draws.chance([batch], 0.7), tf.float32))
        dy, dx = y_there - centre_y, x_there - centre_x
        pull = strength * swing(8, 30) * tf.exp(-(dy**2 + dx**2) / (2 * width**2))
        y_there, x_there = y_there + pull * dy, x_there + pull * dx
    return y_there, x_there, 4 * breath


def _inside(y: Any, x: Any, radius_y: Any, radius_x: Any, angle: Any, edge: Any) -> Any:
    """1 inside an ellipse about 0, 0 outside, with an edge of this width."""
    import tensorflow as tf

    along, across = y * tf.cos(angle) + x * tf.sin(angle), x * tf.cos(angle) - y * tf.sin(angle)
    distance = tf.sqrt((along / radius_y) ** 2 + (across / radius_x) ** 2 + 1e-12)
    return tf.sigmoid((1 - distance) * tf.minimum(radius_y, radius_x) / edge)


def _body(draws: Draws, batch: int, y: Any, x: Any) -> Any:
    import tensorflow as tf

    size = _per_series(draws.uniform([batch], 0.6, 0.95))
    ratio = _per_series(draws.uniform([batch], 0.6, 1.0))
    return _inside(y, x, size * ratio, size, tf.constant(0.0), tf.constant(0.01))


def _ellipses(draws: Draws, batch: int, frames: int, shape: tuple[int, int], y: Any, x: Any, count: int) -> Any:
    """Ellipses painted over one another on a background, the small ones last."""
    import tensorflow as tf

    time = tf.range(frames, dtype=tf.float32)[None, :, None, None] - (frames - 1) / 2
    pixel = 2 / max(shape)
    image = _per_series(draws.uniform([batch], 0.05, 0.5)) * (1 + 0.15 * _smooth(draws, batch, y, x, 8))
    for n in range(count):
        largest = 0.5 * (0.06 / 0.5) ** (n / max(count - 1, 1))
        radius_y, radius_x = (_per_series(draws.log_uniform([batch], 0.4 * largest, largest)) for _ in range(2))
        centre_y, centre_x = (_per_series(draws.uniform([batch], -0.7, 0.7)) for _ in range(2))
        wandering = tf.cast(draws.chance([batch], 0.25), tf.float32)
        speed_y, speed_x = (_per_series(draws.uniform([batch], -0.02, 0.02) * wandering) for _ in range(2))
        angle, value = _per_series(draws.uniform([batch], 0, math.pi)), _per_series(draws.uniform([batch], 0, 1))
        edge = _per_series(draws.log_uniform([batch], 0.3 * pixel, 1.5 * pixel))
        inside = _inside(y - centre_y - speed_y * time, x - centre_x - speed_x * time, radius_y, radius_x, angle, edge)
        image = image + inside * (value - image)
    return tf.maximum(image, 0.0)


def _anatomy(draws: Draws, batch: int, anatomy: np.ndarray, y: Any, x: Any) -> Any:
    """Slices, turned, scaled and deformed."""
    import tensorflow as tf

    slices, rows, columns = anatomy.shape
    bank = tf.reshape(tf.constant(anatomy, tf.float32), [-1])
    chosen = _per_series(draws.integers([batch], slices))
    angle, scale = _per_series(draws.uniform([batch], 0, 2 * math.pi)), _per_series(draws.uniform([batch], 0.9, 1.6))
    flip = _per_series(tf.where(draws.chance([batch], 0.5), 1.0, -1.0))
    row = (scale * (y * tf.cos(angle) + x * tf.sin(angle)) + 1) * (rows - 1) / 2
    column = (flip * scale * (x * tf.cos(angle) - y * tf.sin(angle)) + 1) * (columns - 1) / 2
    top, left = tf.floor(row), tf.floor(column)
    total = tf.zeros_like(row)
    for down in (0, 1):
        for right in (0, 1):
            there_row, there_column = top + down, left + right
            weight = (1 - tf.abs(row - there_row)) * (1 - tf.abs(column - there_column))
            known = (there_row >= 0) & (there_row <= rows - 1) & (there_column >= 0) & (there_column <= columns - 1)
            index = tf.cast(tf.clip_by_value(there_row, 0, rows - 1), tf.int32) * columns
            index = (chosen * rows * columns) + index + tf.cast(tf.clip_by_value(there_column, 0, columns - 1), tf.int32)
            total += tf.where(known, weight * tf.gather(bank, index), 0.0)
    return total


def _cut(draws: Draws, batch: int, frames: int, image: Any, fraction: float) -> Any:
    """From some frame on, another series of the batch."""
    import tensorflow as tf

    at = tf.where(draws.chance([batch], fraction), draws.integers([batch], frames), frames)
    later = tf.range(frames)[None, :] >= at[:, None]
    return tf.where(later[:, :, None, None], tf.roll(image, 1, 0), image)


def _smooth(draws: Draws, batch: int, y: Any, x: Any, waves: int) -> Any:
    """A sum of a few long waves, of the size of 1."""
    import tensorflow as tf

    total = tf.zeros_like(y)
    for _ in range(waves):
        strength = _per_series(draws.normal([batch]))
        along_y, along_x = (_per_series(draws.uniform([batch], -3, 3)) for _ in range(2))
        total += strength * tf.sin(along_y * y + along_x * x + _per_series(draws.uniform([batch], 0, 2 * math.pi)))
    return total / math.sqrt(waves)
