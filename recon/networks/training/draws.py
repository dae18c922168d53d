"""Random numbers for a training step: a pure function of the seed, inside compiled graphs too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class Draws:
    """A sequence of independent draws.

    The same seed gives the same numbers in the same order of calls, on every device.

    Args:
        seed: two integers, tensor or sequence; for instance the training's seed and the step.
    """

    def __init__(self, seed: Any) -> None:
        self._seed, self._count = seed, 0

    def _next(self) -> Any:
        import tensorflow as tf

        self._count += 1
        return tf.random.experimental.stateless_fold_in(tf.convert_to_tensor(self._seed), self._count)

    def uniform(self, shape: Sequence[int], low: float = 0.0, high: float = 1.0) -> Any:
        """Uniform between `low` and `high`."""
        import tensorflow as tf

        return tf.random.stateless_uniform(shape, self._next(), low, high)

    def log_uniform(self, shape: Sequence[int], low: float, high: float) -> Any:
        """Uniform in the logarithm."""
        import tensorflow as tf

        return low * (high / low) ** tf.random.stateless_uniform(shape, self._next())

    def normal(self, shape: Sequence[int]) -> Any:
        """Standard normal."""
        import tensorflow as tf

        return tf.random.stateless_normal(shape, self._next())

    def integers(self, shape: Sequence[int], count: int) -> Any:
        """0 to count - 1."""
        import tensorflow as tf

        return tf.random.stateless_uniform(shape, self._next(), 0, count, tf.int32)

    def chance(self, shape: Sequence[int], probability: float) -> Any:
        """True with this probability."""
        return self.uniform(shape) < probability
