"""TensorFlow's GPU tensors lent to CuPy, without a copy.

The two queue their work on different streams of the GPU, which wait for each other only where they are told to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any


def on_tensors(function: Callable[..., None], tensors: Sequence[Any], shape: Sequence[int], like: Any) -> Any:
    """Call `function(*arrays, out)` with CuPy views of eager tensors; returns the tensor behind `out`, complete.

    TensorFlow owns all buffers: memory that CuPy's pool took back could be overwritten while TensorFlow's stream still reads it.

    Args:
        function: queues its work on the null stream.
        tensors: complex, on any device.
        shape: of the result.
        like: a tensor of the result's dtype.
    """
    import cupy
    import tensorflow as tf

    with tf.device("/GPU:0"):
        given = [tensor if "GPU" in tensor.device else tf.identity(tensor) for tensor in tensors]
        result = tf.raw_ops.Fill(dims=_shape_tensor(tuple(shape)), value=_zero(like.dtype))
    views = [cupy.from_dlpack(Capsule(tensor)) for tensor in (*given, result)]
    wait_for_tensorflow()
    function(*views)
    wait_for_cupy()
    return result


class Buffer:
    """Memory of TensorFlow's on the GPU that CuPy writes and TensorFlow's functions read, time after time, without a copy.

    shape, dtype: of the contents.
    """

    def __init__(self, shape: Sequence[int], dtype: Any) -> None:
        import cupy
        import tensorflow as tf

        with tf.device("/GPU:0"):
            self.tensor = tf.raw_ops.Fill(dims=_shape_tensor(tuple(shape)), value=_zero(tf.as_dtype(dtype)))
        wait_for_tensorflow()
        self.array = cupy.from_dlpack(Capsule(self.tensor))

    def call(self, function: Callable[[Any], Any]) -> Any:
        """`function(tensor)` of what CuPy has written; its result as a NumPy array. Nothing is left to wait for."""
        import cupy

        wait_for_cupy()
        result = function(self.tensor)
        wait_for_tensorflow()
        return cupy.from_dlpack(Capsule(result)).get()


@lru_cache(64)
def _shape_tensor(shape: tuple[int, ...]) -> Any:
    """The shape, made once: a list of numbers costs more than the operation that takes it."""
    import tensorflow as tf

    with tf.init_scope(), tf.device("/CPU:0"):
        return tf.constant(shape, tf.int32)


@lru_cache(4)
def _zero(dtype: Any) -> Any:
    import tensorflow as tf

    with tf.init_scope(), tf.device("/GPU:0"):
        return tf.constant(0, dtype)


def gradients_wanted() -> bool:
    """Tell whether a gradient tape is open in this thread; True where TensorFlow does not say.

    `tf.custom_gradient` costs a call of an eager function 0.3 ms.
    """
    try:
        from tensorflow.python.eager import record

        return bool(record.could_possibly_record())
    except (ImportError, AttributeError):
        return True


def wait_for_tensorflow() -> None:
    """Wait until the GPU has done all that TensorFlow has asked of it: it may still write what is lent, or use the result's memory.

    (TensorFlow 2.21 waits too when it lends a tensor, but does not promise to.)
    """
    import cupy

    cupy.cuda.Device().synchronize()


def wait_for_cupy() -> None:
    """Wait until what was computed is there, before TensorFlow's stream reads it."""
    import cupy

    cupy.cuda.Stream.null.synchronize()


class Capsule:
    """A tensor with the DLPack methods that CuPy asks for.

    number: of its GPU.
    """

    def __init__(self, tensor: Any, number: int = 0) -> None:
        self.tensor, self.number = tensor, number

    def __dlpack__(self, **_: Any) -> Any:
        import tensorflow as tf

        return tf.experimental.dlpack.to_dlpack(self.tensor)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, self.number)  # kDLCUDA
