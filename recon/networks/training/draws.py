"""Random numbers for a training step: a pure function of the seed, inside compiled graphs too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

POOL = 4096
"""Small draws are slices of one vector of so many numbers: a random generator of its own for each would be most of the graph."""


class Draws:
    """A sequence of independent draws.

    The same seed gives the same numbers in the same order of calls, on every device.

    Args:
        seed: two integers, tensor or sequence; for instance the training's seed and the step.
    """

    def __init__(self, seed: Any) -> None:
        self._seed, self._count = seed, 0
        self._pool: Any = None
        self._used = POOL

    def _next(self) -> Any:
        import tensorflow as tf

        self._count += 1
        return tf.random.experimental.stateless_fold_in(tf.convert_to_tensor(self._seed), self._count)

    def uniform(self, shape: Sequence[int], low: float = 0.0, high: float = 1.0) -> Any:
        """Uniform between `low` and `high`."""
        unit = self._unit(shape)
        return unit if (low, high) == (0, 1) else low + (high - low) * unit

    def _unit(self, shape: Sequence[int]) -> Any:
        """Uniform between 0 and 1."""
        import tensorflow as tf

        size = math.prod(shape)
        if size > POOL // 8:
            return tf.random.stateless_uniform(shape, self._next())
        if self._used + size > POOL:
            self._pool, self._used = tf.random.stateless_uniform([POOL], self._next()), 0
        self._used += size
        return tf.reshape(self._pool[self._used - size : self._used], shape)

    def log_uniform(self, shape: Sequence[int], low: float, high: float) -> Any:
        """Uniform in the logarithm."""
        import tensorflow as tf

        return low * tf.exp(math.log(high / low) * self._unit(shape))

    def normal(self, shape: Sequence[int]) -> Any:
        """Standard normal."""
        import tensorflow as tf

        return tf.random.stateless_normal(shape, self._next())

    def integers(self, shape: Sequence[int], count: int) -> Any:
        """0 to count - 1."""
        import tensorflow as tf

        return tf.minimum(tf.cast(count * self._unit(shape), tf.int32), count - 1)

    def chance(self, shape: Sequence[int], probability: float) -> Any:
        """True with this probability."""
        return self.uniform(shape) < probability
