"""Unknowns as real numbers: a complex one is two, and least squares of complex signals are then real ones.

Solvers keep unknowns `[component, *voxels]` (real) and small matrices `[component, component, *voxels]`, the voxels last, so that
every operation runs over all voxels at once.
"""

from __future__ import annotations

from typing import Any

from recon.quantitative.model import SignalModel


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
    import tensorflow as tf

    size = matrix.shape[0]
    units = tf.reshape(tf.eye(size, dtype=matrix.dtype), [size, size, *[1] * (matrix.shape.rank - 2)])
    for k in range(size):
        # Row and column k, less the unit vector, change all of the matrix rightly at once but for the corner, by 2.
        edge = matrix[k] - units[k]
        matrix = matrix - edge[:, None] * (edge / matrix[k, k])[None] - 2 * units[k][:, None] * units[k][None]
    return -matrix
