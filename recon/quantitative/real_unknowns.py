"""Unknowns as real numbers: a complex one is two, and least squares of complex signals are then real ones.

Solvers keep unknowns `[component, *voxels]` (real) and small matrices `[component, component, *voxels]`, the voxels last, so that
every operation runs over all voxels at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from recon.quantitative.model import SignalModel

_RIDGE = 1e-6
"""Added to diagonals of 1 before the inverse of a covariance, so that it exists."""


class Components:
    """Which real components the unknowns of a model have: the real part of each, and the imaginary part of complex ones.

    Args:
        model: whose unknowns.
        imaginary: False leaves out imaginary parts, which magnitudes do not determine.
    """

    def __init__(self, model: SignalModel, imaginary: bool = True) -> None:
        self.table = [
            (index, part)
            for index, unknown in enumerate(model.unknowns)
            for part in (0, 1)
            if part == 0 or (imaginary and not unknown.real)
        ]
        self.unknowns = len(model.unknowns)

    def __len__(self) -> int:
        return len(self.table)

    def split(self, parameters: Any) -> Any:
        """Complex `[unknown, ...]` to real `[component, ...]`."""
        import tensorflow as tf

        return tf.stack([tf.math.imag(parameters[n]) if part else tf.math.real(parameters[n]) for n, part in self.table])

    def join(self, components: Any) -> Any:
        """Real `[component, ...]` to complex `[unknown, ...]`."""
        import tensorflow as tf

        parts: list[list[Any]] = [[] for _ in range(self.unknowns)]
        for row, (index, _) in enumerate(self.table):
            parts[index].append(components[row])
        zero = tf.zeros_like(components[0])
        return tf.stack([tf.complex(both[0], both[1] if len(both) > 1 else zero) for both in parts])

    def columns(self, jacobian: Any) -> list[Any]:
        """Derivatives `[contrast, unknown, ...]` to a complex column `[contrast, ...]` a component."""
        import tensorflow as tf

        # d/d Im u of an analytic signal is i times d/d Re u.
        return [
            tf.complex(-tf.math.imag(jacobian[:, n]), tf.math.real(jacobian[:, n])) if part else jacobian[:, n] for n, part in self.table
        ]


def normal_matrix(columns: list[Any], weights: Any = None) -> Any:
    """Re(J^H W J), real `[component, component, *voxels]`.

    Args:
        columns: of J, complex or real `[contrast, *voxels]`.
        weights: W, real, broadcast against them; None for ones.
    """
    import tensorflow as tf

    weighted = columns if weights is None else [column * tf.cast(weights, column.dtype) for column in columns]
    rows = [[dot(column, other) for other in weighted[: n + 1]] for n, column in enumerate(columns)]
    size = range(len(columns))
    return tf.stack([tf.stack([rows[max(i, j)][min(i, j)] for j in size]) for i in size])


def gradient(columns: list[Any], residual: Any) -> Any:
    """Re(J^H r), real `[component, *voxels]`."""
    import tensorflow as tf

    return tf.stack([dot(column, residual) for column in columns])


def dot(a: Any, b: Any) -> Any:
    """Re(a^H b) over the first axis."""
    import tensorflow as tf

    if not a.dtype.is_complex:
        return tf.reduce_sum(a * b, 0)
    return tf.reduce_sum(tf.math.real(a) * tf.math.real(b) + tf.math.imag(a) * tf.math.imag(b), 0)


def apply_matrix(matrix: Any, x: Any) -> Any:
    """`[component, component, *voxels]` times `[component, *voxels]`, voxel by voxel."""
    import tensorflow as tf

    return tf.reduce_sum(matrix * x[None], 1)


def inverse(matrix: Any) -> Any:
    """Inverses of positive definite matrices `[component, component, *voxels]`, by sweeping one row after another.

    Beaton, The use of special matrix operators in statistical calculus (1964).
    """

    size = matrix.shape[0]
    units = _identity(matrix)
    for k in range(size):
        # Row and column k, less the unit vector, change all of the matrix rightly at once but for the corner, by 2.
        edge = matrix[k] - units[k]
        matrix = matrix - edge[:, None] * (edge / matrix[k, k])[None] - 2 * units[k][:, None] * units[k][None]
    return -matrix


def unit_diagonal(matrix: Any, resting: Any, damping: Any) -> tuple[Any, Any]:
    """The matrices scaled to a diagonal of 1 plus the damping, resting rows and those of zeros cut out, and the scale.

    Args:
        matrix: `[component, component, *voxels]`.
        resting: bool `[component, *voxels]`.
        damping: `[*voxels]` or a number.
    """
    import tensorflow as tf

    size = matrix.shape[0]
    diagonal = tf.stack([matrix[n, n] for n in range(size)])
    usable = (diagonal > 0) & ~resting
    scale = tf.where(usable, tf.math.rsqrt(tf.where(usable, diagonal, tf.ones_like(diagonal))), tf.zeros_like(diagonal))
    unit = _identity(matrix)
    return matrix * scale[:, None] * scale[None] * (1 - unit) + unit * (1 + damping), scale


def covariance(components: Components, x: Any, matrix: Any, variance: Any) -> Any:
    """Covariance of unknowns, of complex ones that of the magnitude, `[unknown, unknown, *voxels]`.

    Args:
        components: of the unknowns.
        x: their values `[component, *voxels]`.
        matrix: normal matrices `[component, component, *voxels]`; where a component does not show, its variance is infinite.
        variance: of a real number of the data, `[*voxels]` or a number.
    """
    import tensorflow as tf

    blind = tf.stack([matrix[n, n] <= 0 for n in range(len(components))])
    unit, scale = unit_diagonal(matrix, blind, tf.constant(_RIDGE, matrix.dtype))
    infinite = tf.where(blind, tf.constant(np.inf, matrix.dtype), tf.constant(0, matrix.dtype))
    diagonal = _identity(matrix)
    spread = (inverse(unit) * scale[:, None] * scale[None] + tf.where(diagonal > 0, infinite[None], tf.zeros_like(matrix))) * variance
    directions = [_direction(components, x, index) for index in range(components.unknowns)]
    size = range(len(directions))
    images = [tf.reduce_sum(_times(spread, direction), 1) for direction in directions]
    return tf.stack([tf.stack([tf.reduce_sum(_times(images[j], directions[i]), 0) for j in size]) for i in size])


def _direction(components: Components, x: Any, index: int) -> Any:
    """What a magnitude changes by with each component, `[component, *voxels]`."""
    import tensorflow as tf

    rows = [row for row, (n, _) in enumerate(components.table) if n == index]
    direction = [tf.zeros_like(x[0])] * len(components)
    length = tf.sqrt(sum(x[row] ** 2 for row in rows))
    for row in rows:
        direction[row] = tf.where(
            length > 0, tf.math.divide_no_nan(x[row], length), tf.fill(tf.shape(length), tf.constant(float(row == rows[0]), x.dtype))
        )
    return tf.stack(direction)


def _times(values: Any, direction: Any) -> Any:
    """Product in which a direction that does not matter cancels even what is infinite."""
    import tensorflow as tf

    return tf.where(direction == 0, tf.zeros_like(values), values * direction)


def _identity(matrix: Any) -> Any:
    """The unit matrix `[component, component, 1, ...]`."""
    import tensorflow as tf

    size = matrix.shape[0]
    return tf.reshape(tf.eye(size, dtype=matrix.dtype), [size, size, *[1] * (matrix.shape.rank - 2)])
