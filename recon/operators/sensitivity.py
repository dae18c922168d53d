"""Coil sensitivities as an operator."""

from __future__ import annotations

import numpy as np

from recon.arrays import Array, is_tensor
from recon.operators.linear import LinearOperator


class Sensitivity(LinearOperator):
    """Multiply an image `[..., y, x]` with maps `[..., coil, y, x]`; the adjoint combines the coils.

    Args:
        maps: complex `[..., coil, y, x]` or `[..., coil, z, y, x]`.
        rank: number of image axes.
    """

    def __init__(self, maps: Array, rank: int = 2) -> None:
        self.maps = maps
        self.coil_axis = -1 - rank

    def forward(self, x: Array) -> Array:
        if is_tensor(x):
            import tensorflow as tf

            return tf.expand_dims(x, self.coil_axis) * tf.cast(self.maps, x.dtype)
        return np.expand_dims(x, self.coil_axis) * self.maps

    def adjoint(self, y: Array) -> Array:
        if is_tensor(y):
            import tensorflow as tf

            return tf.reduce_sum(tf.math.conj(tf.cast(self.maps, y.dtype)) * y, self.coil_axis)
        return (self.maps.conj() * y).sum(self.coil_axis)
