"""Random shifts of the grid of a block-wise or wavelet functional, so that its edges do not show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from recon.arrays import Array, is_tensor
from recon.namespace import namespace


class RandomShift:
    """Roll the last axes of an image by random distances, do something, roll back.

    Args:
        reach: for each axis, distances are below this many pixels.
        seed: the same seed gives the same sequence of shifts; None never shifts.
    """

    def __init__(self, reach: Sequence[int], seed: int | None) -> None:
        self.reach, self.seed = tuple(reach), seed
        self._random = np.random.default_rng(seed)

    def around(self, function: Callable[[Array], Array], x: Array) -> Array:
        """Apply `function` to the shifted `x`."""
        if self.seed is None:
            return function(x)
        space, axes = namespace(x), list(range(-len(self.reach), 0))
        shift = self._draw(x)
        return space.roll(function(space.roll(x, shift, axes)), [-distance for distance in shift], axes)

    def _draw(self, x: Array) -> list[Any]:
        if is_tensor(x) and self.seed is not None:
            import tensorflow as tf

            # A random number of the graph, not one that tracing would freeze.
            return [tf.random.uniform([], 0, reach, tf.int32, seed=self.seed + axis) for axis, reach in enumerate(self.reach)]
        return [int(self._random.integers(reach)) for reach in self.reach]
