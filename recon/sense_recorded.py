"""CG-SENSE with a convolution on a GPU, recorded once as a CUDA graph: one launch instead of a hundred.

Queueing a kernel from Python takes 5 to 10 µs, as long as many of them run; a graph leaves that to the GPU.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from recon.cache import Cache
from recon.cuda_graph import record
from recon.operators.gpu_convolution import GpuConvolution, as_memory_error
from recon.solvers.gpu_conjugate_gradient import GpuConjugateGradient

LARGEST = 2**28
"""Bytes of the largest maps of which a graph keeps a copy."""

_graphs: Cache[RecordedSense] = Cache(4)


class RecordedSense:
    """(S^H T S + damping) x = S^H z by conjugate gradients, for one size of problem and any maps S, convolution T, data and damping.

    A graph reads and writes fixed places, so what is given is copied there. All work goes to the null stream, in order.

    Args:
        maps: CuPy, complex `[coil, *image_shape]`; only shape and dtype count, as of
        kernel: CuPy, real `[*doubled]`, the Fourier transform of the convolution kernel.
        iterations, tolerance: see `GpuConjugateGradient`.

    Raises:
        MemoryError: it does not fit into the GPU's memory.
    """

    def __init__(self, maps: Any, kernel: Any, iterations: int, tolerance: float) -> None:
        import cupy

        self.maps, self.coil_images, self.kernel = cupy.zeros_like(maps), cupy.zeros_like(maps), cupy.zeros_like(kernel)
        self.damping = cupy.zeros(1)
        self.rhs = cupy.zeros(maps.shape[1:], maps.dtype)
        self.convolution = GpuConvolution(self.maps, self.kernel, self.damping)
        self.solver = GpuConjugateGradient(self.rhs, iterations, tolerance)
        self._turn = threading.Lock()
        self.graph = record(self._solve)

    def __call__(self, grid: Callable[[Any], None], maps: Any, kernel: Any, damping: float) -> Any:
        """Solve it for the coil images z that `grid` writes into the CuPy array it is given, on the null stream.

        Returns:
            x, CuPy `[*image_shape]`, in the order of the null stream.
        """
        import cupy

        with self._turn, cupy.cuda.Stream.null:
            grid(self.coil_images)
            cupy.copyto(self.maps, maps)
            cupy.copyto(self.kernel, kernel)
            self.damping.fill(damping)
            self.graph.launch()
            return self.solver.solution.copy()

    def _solve(self) -> None:
        self.convolution.combine(self.coil_images, self.rhs)
        self.solver.solve(self.convolution, self.rhs)


def recorded_sense(maps: Any, kernel: Any, iterations: int, tolerance: float) -> RecordedSense:
    """The recorded solver for problems of this size, kept for the next frames."""
    key = (maps.shape, kernel.shape, np.dtype(maps.dtype).name, iterations, tolerance)

    def make() -> RecordedSense:
        with as_memory_error():
            return RecordedSense(maps, kernel, iterations, tolerance)

    try:
        return _graphs.get(key, make)
    except MemoryError:
        import cupy

        clear_graphs()
        cupy.get_default_memory_pool().free_all_blocks()
        return _graphs.get(key, make)


def clear_graphs() -> None:
    """Free the GPU memory of all graphs."""
    _graphs.clear()
