"""Functions around a network, compiled once for each size of the input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from recon import device
from recon.cache import Cache

KEPT = 8
"""Sizes for which compiled functions are kept."""


class Compiled:
    """A function of arrays that calls a network.

    Args:
        function: of tensors, one result.
        network: that it calls; one of another runtime cannot become part of a graph, and is called as it is.
    """

    def __init__(self, function: Callable[..., Any], network: Any) -> None:
        self._function, self._can_compile = function, hasattr(network, "weights")
        self._compiled: Cache[Callable[..., Any]] = Cache(KEPT)
        self._warmed: set[tuple[tuple[int, ...], ...]] = set()

    @property
    def on_gpu(self) -> bool:
        """Whether it is compiled for a GPU, and takes its tensors."""
        return self._can_compile and device.use_gpu()

    def __call__(self, *arrays: np.ndarray) -> np.ndarray:
        """The result for these arrays."""
        result: np.ndarray = np.asarray(self.tensor(*arrays))
        return result

    def tensor(self, *arrays: Any) -> Any:
        """The result for these arrays or tensors, as a tensor."""
        return self._for(*arrays)(*arrays)

    def warm(self, *shapes_and_types: tuple[tuple[int, ...], type]) -> None:
        """On a GPU compile for arrays of these shapes and element types and run once; XLA takes a minute. On a CPU do nothing."""
        key = tuple(tuple(shape) for shape, _ in shapes_and_types)
        if device.use_gpu() and key not in self._warmed:
            self(*(np.zeros(shape, dtype) for shape, dtype in shapes_and_types))
            self._warmed.add(key)

    def _for(self, *arrays: Any) -> Callable[..., Any]:
        shapes = tuple(tuple(array.shape) for array in arrays)
        return self._compiled.get(shapes, lambda: self._compile(arrays) if self._can_compile else self._function)

    def _compile(self, arrays: tuple[Any, ...]) -> Callable[..., Any]:
        import tensorflow as tf

        signature = [tf.TensorSpec(array.shape, tf.as_dtype(array.dtype)) for array in arrays]
        # For a GPU only: on a CPU XLA was seen to compile for 20 s what starts within 4 s without it (a step of training).
        function: Any = tf.function(self._function, input_signature=signature, jit_compile=device.use_gpu())
        function._omit_frequent_tracing_warning = True  # one for each size, on purpose
        if not device.use_gpu():
            made: Callable[..., Any] = function
            return made
        concrete = function.get_concrete_function()  # half the time of a call, which counts on a GPU
        return lambda *given: concrete(*map(tf.convert_to_tensor, given))
