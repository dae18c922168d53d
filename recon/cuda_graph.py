"""Recording what CuPy queues as a CUDA graph, which a GPU then works through without Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def record(run: Callable[[], None], stream: Any = None) -> Any:
    """The graph of what `run` queues on CuPy's current stream, reading and writing places in memory that must stay there.

    Args:
        run: is called twice, and must not wait for the GPU.
        stream: to record on, for libraries that were given one; None for a new one.
    """
    import cupy

    cupy.cuda.Stream.null.synchronize()  # what used this memory before is done
    stream = stream or cupy.cuda.Stream(non_blocking=True)
    with stream:
        run()  # loads the kernels, which cannot be done while recording
        stream.synchronize()
        stream.begin_capture()
        run()
        return stream.end_capture()
