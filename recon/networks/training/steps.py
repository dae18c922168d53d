"""Steps of training that start at once and become fast: Adam on one vector, and functions that XLA compiles while others train."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from threading import Thread
from typing import Any

import numpy as np

TRIALS = 5
"""Calls that are timed to see which of two functions is the faster one."""


class FlatAdam:
    """Adam of all variables as one vector, the gradient clipped to a norm of 1; a step with a gradient that is not finite is left out.

    Kingma, Ba, ICLR (2015). One vector takes a dozen operations, where one variable after another takes a thousand.

    Args:
        variables: to train, float32.
        loss_scale: by which losses are to be multiplied before they are differentiated, so that half precision does not lose
            the gradient; halved whenever that is not finite.
    """

    def __init__(self, variables: Sequence[Any], loss_scale: float = 1.0, beta: tuple[float, float] = (0.9, 0.999)) -> None:
        import tensorflow as tf

        self.variables, self.beta = list(variables), beta
        self.sizes = [int(np.prod(variable.shape)) for variable in self.variables]
        self.scale = tf.Variable(loss_scale, trainable=False)
        self._mean, self._square = (tf.Variable(tf.zeros(sum(self.sizes)), trainable=False) for _ in range(2))
        self._steps = tf.Variable(0.0, trainable=False)
        self.apply = tf.function(self._apply)

    def flat(self, gradients: Sequence[Any]) -> Any:
        """Gradients as one vector, float32."""
        import tensorflow as tf

        return tf.concat([tf.reshape(tf.cast(gradient, tf.float32), [-1]) for gradient in gradients], 0)

    @property
    def state(self) -> list[Any]:
        """The variables that another run needs to go on: moments, number of steps, scale of the loss."""
        return [self._mean, self._square, self._steps, self.scale]

    def _apply(self, gradient: Any, rate: Any) -> None:
        """One step against the gradient (as of `flat`, of the scaled loss) with this learning rate."""
        import tensorflow as tf

        gradient = gradient / self.scale
        norm = tf.norm(gradient)
        fine = tf.math.is_finite(norm)
        self.scale.assign(tf.where(fine, self.scale, self.scale / 2))
        gradient = tf.where(fine, gradient, 0.0) / tf.maximum(tf.where(fine, norm, 1.0), 1.0)
        first, second = self.beta
        steps = self._steps.assign_add(1.0)
        mean = self._mean.assign(first * self._mean + (1 - first) * gradient) / (1 - first**steps)
        square = self._square.assign(second * self._square + (1 - second) * gradient**2) / (1 - second**steps)
        change = tf.where(fine, rate, 0.0) * mean / (tf.sqrt(square) + 1e-7)
        for variable, part in zip(self.variables, tf.split(change, self.sizes), strict=True):
            variable.assign_sub(tf.reshape(part, variable.shape))


class Quickest:
    """A function of tensors that runs from a graph at first, and by XLA once that is compiled and found to be faster.

    Args:
        name: for the log.
        function: of tensors.
    """

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        import tensorflow as tf

        self.name = name
        self._plain, self._compiled = tf.function(function), tf.function(function, jit_compile=True)
        self._chosen: Any = self._plain
        self._ready = False

    def __call__(self, *arguments: Any) -> Any:
        """Result of the function."""
        return self._chosen(*arguments)

    def compile(self, *arguments: Any) -> None:
        """Compile by XLA, for arguments like these; what fails is printed and left. For another thread."""
        begun = time.perf_counter()
        try:
            _finish(self._compiled(*arguments))
        except Exception as error:
            print(f"{self.name}: XLA does not compile it: {str(error).splitlines()[0][:300]}", flush=True)
            return
        print(f"{self.name}: compiled in {time.perf_counter() - begun:.1f} s", flush=True)
        self._ready = True

    def choose(self, *arguments: Any) -> None:
        """If it has just been compiled, time both."""
        if not self._ready:
            return
        self._ready = False
        seconds = []
        for function in (self._plain, self._compiled):
            _finish(function(*arguments))
            begun = time.perf_counter()
            for _ in range(TRIALS):
                _finish(function(*arguments))
            seconds.append((time.perf_counter() - begun) / TRIALS)
        self._chosen = self._plain if seconds[0] <= seconds[1] else self._compiled
        print(f"{self.name}: {seconds[0] * 1e3:.1f} ms as a graph, {seconds[1] * 1e3:.1f} ms by XLA", flush=True)


def compile_meanwhile(*functions: tuple[Quickest, Sequence[Any]]) -> Thread:
    """Compile these for these arguments, one after another, in a thread that ends with the process."""

    def run() -> None:
        for function, arguments in functions:
            function.compile(*arguments)

    thread = Thread(target=run, daemon=True)
    thread.start()
    return thread


def _finish(result: Any) -> None:
    """Wait for a device: copying the smallest tensor of the result comes after its computation."""
    import tensorflow as tf

    min(tf.nest.flatten(result), key=lambda tensor: int(np.prod(tensor.shape))).numpy()
