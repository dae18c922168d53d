"""Coil sensitivities as an operator."""

from __future__ import annotations

import numpy as np

from recon.arrays import Array, is_tensor
from recon.operators.linear import LinearOperator


class Sensitivity(LinearOperator):
    """Multiply an image `[..., y, x]` with maps `[..., coil, y, x]`; the adjoint combines the coils.

    With several sets of maps `[..., set, coil, y, x]` (soft-SENSE, Uecker 2014) there is an image for each, `[..., set, y, x]`,
    and the coils see the sum over the sets.

    Args:
        maps: complex `[..., coil, y, x]` or `[..., coil, z, y, x]`, or with an axis of sets before the coils.
        rank: number of image axes.
        sets: the maps (and images) have an axis of sets.
    """

    def __init__(self, maps: Array, rank: int = 2, sets: bool = False) -> None:
        self.maps = maps
        self.coil_axis = -1 - rank
        self.set_axis = -2 - rank if sets else None

    def forward(self, x: Array) -> Array:
        if is_tensor(x):
            import tensorflow as tf

            product = tf.expand_dims(x, self.coil_axis) * tf.cast(self.maps, x.dtype)
            return product if self.set_axis is None else tf.reduce_sum(product, self.set_axis)
        product = np.expand_dims(x, self.coil_axis) * self.maps
        return product if self.set_axis is None else product.sum(self.set_axis)

    def adjoint(self, y: Array) -> Array:
        if is_tensor(y):
            import tensorflow as tf

            coils = y if self.set_axis is None else tf.expand_dims(y, self.set_axis)
            return tf.reduce_sum(tf.math.conj(tf.cast(self.maps, y.dtype)) * coils, self.coil_axis)
        coils = y if self.set_axis is None else np.expand_dims(y, self.set_axis)
        return (self.maps.conj() * coils).sum(self.coil_axis)
