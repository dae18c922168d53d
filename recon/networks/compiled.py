"""Functions around a network, compiled once for each size of the input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from recon import device

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
        self._compiled: dict[tuple[tuple[int, ...], ...], Callable[..., Any]] = {}

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
        if device.use_gpu():
            arrays: list[np.ndarray] = [np.zeros(shape, dtype) for shape, dtype in shapes_and_types]
            if tuple(array.shape for array in arrays) not in self._compiled:
                self(*arrays)

    def _for(self, *arrays: Any) -> Callable[..., Any]:
        shapes = tuple(tuple(array.shape) for array in arrays)
        if shapes not in self._compiled:
            if len(self._compiled) >= KEPT:
                self._compiled.clear()
            self._compiled[shapes] = self._compile(arrays) if self._can_compile else self._function
        return self._compiled[shapes]

    def _compile(self, arrays: tuple[Any, ...]) -> Callable[..., Any]:
        import tensorflow as tf

        signature = [tf.TensorSpec(array.shape, tf.as_dtype(array.dtype)) for array in arrays]
        # For a GPU only: on a CPU XLA was seen to compile for 20 s what starts within 4 s without it (a step of training).
        function: Callable[..., Any] = tf.function(self._function, input_signature=signature, jit_compile=device.use_gpu())
        if not device.use_gpu():
            return function
        concrete = function.get_concrete_function()  # type: ignore[attr-defined]  # half the time of a call, which counts on a GPU
        return lambda *given: concrete(*map(tf.convert_to_tensor, given))
