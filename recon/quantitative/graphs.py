"""TensorFlow functions as graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def graph(function: Callable[..., Any], compiled: bool = False) -> Any:
    """`tf.function` without AutoGraph: loops are written as TensorFlow's, and to read the sources anew took most of the time of tracing.

    Args:
        function: of tensors, whose Python conditions do not depend on their values.
        compiled: by XLA.
    """
    import tensorflow as tf

    made: Any = tf.function(function, jit_compile=compiled, autograph=False)
    # One for each size and model, on purpose: TensorFlow takes them for one that is traced again and again, and warns.
    made._omit_frequent_tracing_warning = True
    return made
