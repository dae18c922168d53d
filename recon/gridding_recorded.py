"""Gridding of a frame on a GPU with its coils combined, recorded once as a CUDA graph: one launch instead of thirty.

For trajectories that come back, such as the rotations of real-time spirals: a graph belongs to the points of a trajectory.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Hashable, Sequence
from functools import cache
from typing import Any

import numpy as np

from recon.cache import Cache, array_key
from recon.cuda_graph import record
from recon.gpu_plans import spreading_method
from recon.operators.gpu_convolution import as_memory_error

logger = logging.getLogger(__name__)

RECORDED = 24
"""Graphs kept, with a plan each: more than the rotations of real-time spirals."""
LARGEST = 2**26
"""Bytes of coil images up to which it is worthwhile: what takes the GPU long need not be launched quickly."""
_THREADS = 256

_CODE = r"""
// result = factor (sum_c |x_c|^2)^1/2
extern "C" __global__ void magnitude(const float2* images, int coils, int pixels, float factor, float* result) {
  int at = blockIdx.x * blockDim.x + threadIdx.x;
  if (at >= pixels) return;
  float sum = 0;
  for (int coil = 0; coil < coils; coil++) {
    float2 x = images[(size_t)coil * pixels + at];
    sum += x.x * x.x + x.y * x.y;
  }
  result[at] = factor * sqrtf(sum);
}
"""

_lock = threading.Lock()
_seen: Cache[bool] = Cache(RECORDED)
"""Trajectories that came lately: of more that take turns, each graph would be gone before it is used."""
_graphs: Cache[RecordedGridding | None] = Cache(RECORDED)


class RecordedGridding:
    """(sum_c |A^H y_c|^2)^1/2 for one trajectory and number of coils, complex64.

    A graph reads and writes fixed places. All work goes to the null stream, in order.

    Args:
        trajectory: `[sample, axis]` in rad/pixel.
        coils: of the k-space.
        image_shape, tolerance: see `recon.sense.gridding`.

    Raises:
        MemoryError: it does not fit into the GPU's memory.
    """

    def __init__(self, trajectory: np.ndarray, coils: int, image_shape: Sequence[int], tolerance: float) -> None:
        import cufinufft
        import cupy

        shape = tuple(image_shape)
        pixels = math.prod(shape)
        with as_memory_error():
            self._points = [cupy.asarray(np.ascontiguousarray(axis, np.float32)) for axis in trajectory.T]
            self._kspace = cupy.zeros((coils, len(trajectory)), np.complex64)
            self._images = cupy.zeros((coils, *shape), np.complex64)
            self._result = cupy.zeros(shape, np.float32)
            self._given = (self._images, np.int32(coils), np.int32(pixels), np.float32(1 / math.sqrt(pixels)), self._result)
            cupy.cuda.Stream.null.synchronize()  # the points are there
            self._stream = cupy.cuda.Stream(non_blocking=True)
            self._plan = cufinufft.Plan(
                1,
                shape,
                n_trans=coils,
                eps=tolerance,
                isign=1,
                dtype="complex64",
                gpu_maxbatchsize=coils,
                gpu_method=spreading_method(True, len(shape), np.dtype(np.complex64)),
                gpu_stream=self._stream.ptr,
            )
            self._plan.stream = self._stream  # which it needs to free its memory, whatever goes first
            with self._stream:
                self._plan.setpts(*self._points)
            self._graph = record(self._run, self._stream)

    def __call__(self, kspace: Any, weights: Any) -> Any:
        """The image of CuPy `[coil, sample]` times `[sample]`: CuPy `[*image_shape]`, in the order of the null stream."""
        import cupy

        with _lock, cupy.cuda.Stream.null:
            cupy.multiply(kspace, weights, out=self._kspace)
            self._graph.launch()
            return self._result.copy()

    def _run(self) -> None:
        self._plan.execute(self._kspace, out=self._images)
        _kernel()((-(-self._result.size // _THREADS),), (_THREADS,), self._given)


def recorded_gridding(kspace: Any, trajectory: np.ndarray, image_shape: Sequence[int], tolerance: float) -> RecordedGridding | None:
    """The graph for CuPy k-space `[coil, sample]`; None for what comes for the first time, is large, in double precision or has none."""
    if kspace.ndim != 2 or kspace.dtype != np.complex64 or trajectory.shape != (kspace.shape[1], len(image_shape)) or len(image_shape) == 1:
        return None
    coils = kspace.shape[0]
    if coils * math.prod(image_shape) * kspace.itemsize > LARGEST:
        return None
    key = (array_key(trajectory), coils, tuple(image_shape), tolerance)
    return _graphs.get(key, lambda: _record(trajectory, coils, image_shape, tolerance)) if _came_before(key) else None


def clear_graphs() -> None:
    """Free the GPU memory of all graphs."""
    _graphs.clear()
    _seen.clear()


def _came_before(key: Hashable) -> bool:
    first: list[bool] = []

    def make() -> bool:
        first.append(True)
        return True

    _seen.get(key, make)
    return not first


def _record(trajectory: np.ndarray, coils: int, image_shape: Sequence[int], tolerance: float) -> RecordedGridding | None:
    try:
        return RecordedGridding(trajectory, coils, image_shape, tolerance)
    except Exception as error:
        # Whatever a driver or a library raises: without a graph it takes a millisecond longer.
        logger.warning("no CUDA graph of a gridding (%s: %s); queueing it from Python", type(error).__name__, error)
        return None


@cache
def _kernel() -> Any:
    import cupy

    return cupy.RawKernel(_CODE, "magnitude")
