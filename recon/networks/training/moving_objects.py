"""Moving, beating, breathing objects: ellipses, rims, texture, real anatomy where there is some, smooth phase.

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
    ellipses: int = 32,
    bright: float = 0.2,
) -> Any:
    """Series of complex images ``[batch, frame, y, x]`` (complex64), magnitudes between 0 and about 1.

    Every series has a body of its own with ellipses inside (some thin, some hollow, some moving on their own), or a slice of `anatomy`,
    or both; all of it deformed by breathing and by up to three beating regions; smooth phase. Some have what outshines all the rest: a
    thin rim, as fat under the skin, or discs outside the body, as reference tubes. As when an operator changes the slice, some series
    jump to another object.

    Args:
        draws: source of randomness.
        batch, frames, shape: of the result.
        anatomy: magnitude images ``[slice, y, x]``, 0 to 1, or None.
        cuts: fraction of series with such a jump.
        ellipses: painted into each body.
        bright: fraction of series with a bright rim, and fraction with bright discs.
    """
    import tensorflow as tf

    y, x = (tf.constant(axis, tf.float32) for axis in np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    y, x, deformation = _deformed(draws, batch, frames, y, x)
    pixel = 2 / max(shape)
    body, rim = _body(draws, batch, y, x, pixel)
    image = _ellipses(draws, batch, frames, pixel, y, x, ellipses)
    image *= 1 + _per_series(draws.uniform([batch], 0, 0.1)) * _smooth(draws, batch, y, x, 5, 40.0)
    image = body * tf.maximum(image, 0.0)
    if anatomy is not None:
        share = tf.where(draws.chance([batch], 0.5), draws.uniform([batch], 0.5, 1.0), tf.zeros([batch]))[:, None, None, None]
        image = (1 - share) * image + share * _anatomy(draws, batch, anatomy, y, x)
    image = _outshone(draws, batch, image, rim, bright)
    image = _outshone(draws, batch, image, _discs(draws, batch, y, x, pixel), bright / 2)
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


def _body(draws: Draws, batch: int, y: Any, x: Any, pixel: float) -> tuple[Any, Any]:
    """1 inside the body, and 1 on its rim of one to five pixels."""
    size = draws.uniform([batch], 0.5, 0.95)
    radii = _per_series(size * draws.uniform([batch], 0.6, 1.0)), _per_series(size)
    angle = _per_series(draws.uniform([batch], -0.4, 0.4))
    y, x = (axis - _per_series(draws.uniform([batch], -0.08, 0.08)) for axis in (y, x))
    wall = _per_series(draws.log_uniform([batch], pixel, 5 * pixel))
    edge = _per_series(draws.log_uniform([batch], 0.3 * pixel, pixel))
    body = _inside(y, x, radii[0], radii[1], angle, edge)
    return body, body * (1 - _inside(y, x, radii[0] - wall, radii[1] - wall, angle, edge))


def _discs(draws: Draws, batch: int, y: Any, x: Any, pixel: float, count: int = 2) -> Any:
    """1 on discs anywhere."""
    import tensorflow as tf

    discs = tf.zeros_like(y)
    for _ in range(count):
        centre_y, centre_x = (_per_series(draws.uniform([batch], -0.9, 0.9)) for _ in range(2))
        radius = _per_series(draws.uniform([batch], 0.03, 0.12))
        discs = tf.maximum(discs, _inside(y - centre_y, x - centre_x, radius, radius, tf.constant(0.0), tf.constant(0.7 * pixel)))
    return discs


def _outshone(draws: Draws, batch: int, image: Any, where: Any, fraction: float) -> Any:
    """In some series, 1 there and everything else as little as a tenth of what it was."""
    import tensorflow as tf

    chosen = _per_series(tf.cast(draws.chance([batch], fraction), tf.float32))
    dimmed = 1 - chosen * (1 - _per_series(draws.log_uniform([batch], 0.1, 1.0)))
    return dimmed * image + chosen * where * (1 - dimmed * image)


def _ellipses(draws: Draws, batch: int, frames: int, pixel: float, y: Any, x: Any, count: int) -> Any:
    """Ellipses painted over one another on a background, the small ones last; a quarter of them hollow."""
    import tensorflow as tf

    time = tf.range(frames, dtype=tf.float32)[None, :, None, None] - (frames - 1) / 2
    largest = tf.constant(0.5 * (0.04 / 0.5) ** (np.arange(count) / max(count - 1, 1)), tf.float32)[:, None]
    many = [count, batch]
    wandering = tf.cast(draws.chance(many, 0.25), tf.float32)
    radius_y, radius_x = (largest * draws.log_uniform(many, 0.4, 1.0) for _ in range(2))
    wall = tf.where(draws.chance(many, 0.25), draws.log_uniform(many, pixel, 4 * pixel), 2.0 * tf.ones(many))
    drawn = [
        *(draws.uniform(many, -0.7, 0.7) for _ in range(2)),
        *(draws.uniform(many, -0.02, 0.02) * wandering for _ in range(2)),
        *(radius_y, radius_x, radius_y - wall, radius_x - wall),
        draws.uniform(many, 0, math.pi),
        draws.log_uniform(many, 0.3 * pixel, 1.5 * pixel),
        draws.uniform(many, 0, 1),
    ]

    def paint(n: Any, image: Any) -> Any:
        centre_y, centre_x, speed_y, speed_x, outer_y, outer_x, inner_y, inner_x, angle, edge, value = (
            _per_series(tf.gather(values, n)) for values in drawn
        )
        there = y - centre_y - speed_y * time, x - centre_x - speed_x * time
        hole = _inside(*there, tf.maximum(inner_y, 1e-3), tf.maximum(inner_x, 1e-3), angle, edge)
        open_ = tf.cast(tf.minimum(inner_y, inner_x) > 0, tf.float32)
        inside = _inside(*there, outer_y, outer_x, angle, edge) * (1 - open_ * hole)
        return n + 1, image + inside * (value - image)

    image = _per_series(draws.uniform([batch], 0.05, 0.5)) * (1 + 0.15 * _smooth(draws, batch, y, x, 8))
    # A loop in the graph: unrolled, tracing and compiling took longer than some trainings.
    return tf.while_loop(lambda n, _: n < count, paint, (tf.constant(0), image))[1]


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


def _smooth(draws: Draws, batch: int, y: Any, x: Any, waves: int, steepest: float = 3.0) -> Any:
    """A sum of a few waves, of the size of 1; `steepest` in radians per unit of length."""
    import tensorflow as tf

    total = tf.zeros_like(y)
    for _ in range(waves):
        strength = _per_series(draws.normal([batch]))
        along_y, along_x = (_per_series(draws.uniform([batch], -steepest, steepest)) for _ in range(2))
        total += strength * tf.sin(along_y * y + along_x * x + _per_series(draws.uniform([batch], 0, 2 * math.pi)))
    return total / math.sqrt(waves)
