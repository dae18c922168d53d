"""The normal operator of parallel imaging on a GPU: sensitivities, convolution and combination in few passes over memory.

In two dimensions cuFFT transforms the rows and `recon.operators.gpu_columns` does the rest; otherwise cuFFT transforms all of the
doubled grid.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np

from recon.cache import Cache
from recon.operators.gpu_columns import column_convolution

logger = logging.getLogger(__name__)

WORKSPACE = 2**28
"""Bytes for the doubled coil images; more coils than fit are done one group after another."""
_THREADS = 128

# Image axes are [z, y, x], those of the doubled grid [mz, my, mx]; in fewer dimensions the first ones are 1.
_CODE = r"""
#define INDEX(n) int i = blockIdx.x * blockDim.x + threadIdx.x; if (i >= (n)) return

extern "C" __global__ void expand(const Complex* image, const Complex* maps, Complex* grid, int nz, int ny, int nx,
                                  int mz, int my, int mx) {
  INDEX(mz * my * mx);
  int x = i % mx, y = i / mx % my, z = i / mx / my, coil = blockIdx.y;
  Complex value = {0, 0};
  if (x < nx && y < ny && z < nz) {
    int pixel = (z * ny + y) * nx + x;
    Complex s = maps[(size_t)coil * nz * ny * nx + pixel], v = image[pixel];
    value.x = s.x * v.x - s.y * v.y;
    value.y = s.x * v.y + s.y * v.x;
  }
  grid[(size_t)coil * mz * my * mx + i] = value;
}

extern "C" __global__ void multiply(Complex* grid, const Real* kernel, int size, int coils) {
  INDEX(size);
  Real factor = kernel[i];
  for (int coil = 0; coil < coils; coil++) {
    Complex value = grid[(size_t)coil * size + i];
    value.x *= factor;
    value.y *= factor;
    grid[(size_t)coil * size + i] = value;
  }
}

// result = factor sum_c conj(s_c) g_c + share[0] image, where there is a share; or added to `result` itself
extern "C" __global__ void combine(const Complex* grid, const Complex* maps, const Complex* image, Complex* result, int nz, int ny, int nx,
                                   int my, int mx, int size, int coils, Real factor, const double* share) {
  INDEX(nz * ny * nx);
  int x = i % nx, y = i / nx % ny, z = i / nx / ny;
  grid += ((size_t)z * my + y) * mx + x;
  Complex sum = {0, 0};
  for (int coil = 0; coil < coils; coil++) {
    Complex s = maps[(size_t)coil * nz * ny * nx + i], g = grid[(size_t)coil * size];
    sum.x += s.x * g.x + s.y * g.y;
    sum.y += s.x * g.y - s.y * g.x;
  }
  Real part = share ? (Real)share[0] : (Real)1;
  Complex before = {0, 0};
  if (part != 0) before = image[i];
  result[i] = {factor * sum.x + part * before.x, factor * sum.y + part * before.y};
}
"""

_plans: Cache[Any] = Cache(4)
_lock = threading.RLock()


class GpuConvolution:
    """x -> sum_c conj(s_c) T (s_c x) + damping x on CuPy images, T a convolution given by its kernel on a grid of twice the size.

    Everything is queued on the current stream; nothing waits for the GPU. The arrays are read when it is applied.

    Args:
        maps: CuPy, complex `[coil, *image_shape]`, 1 to 3 image axes, contiguous.
        kernel: CuPy, real, of the precision of the maps, `[2 y, 2 x]` (or `[2 x]`, `[2 z, 2 y, 2 x]`), contiguous: the Fourier
            transform of the convolution kernel.
        damping: weight of the identity, CuPy, float64 `[1]`.

    Raises:
        MemoryError: not even one doubled coil image fits.
    """

    def __init__(self, maps: Any, kernel: Any, damping: Any) -> None:
        self.maps, self.kernel, self.damping = maps, kernel, damping
        rank, coils = kernel.ndim, len(maps)
        self.factor = kernel.dtype.type(1 / kernel.size)
        self.kernels = _kernels(kernel.dtype.name)
        self._none = damping * 0
        self.pixels = math.prod(maps.shape[1:])
        shape, doubled = ((1,) * (3 - rank) + tuple(part) for part in (maps.shape[1:], kernel.shape))
        self.columns = column_convolution(doubled[-2], doubled[-1], kernel.dtype.name) if rank == 2 else None
        if self.columns:
            doubled = (1, shape[-2], doubled[-1])
        self.size, rank = math.prod(doubled), 1 if self.columns else rank
        self.shape, self.doubled = ([np.int32(n) for n in part] for part in (shape, doubled))
        group = max(1, min(coils, WORKSPACE // (self.size * maps.itemsize)))
        grid, transform = _grid(group, doubled[3 - kernel.ndim :], rank, maps.dtype)
        # What does not change from image to image: queueing must keep ahead of the GPU.
        self.groups = [
            (chosen, grid[: len(chosen)], transform if len(chosen) == len(grid) else _transform(grid[: len(chosen)], rank))
            for chosen in (maps[start : start + len(grid)] for start in range(0, coils, len(grid)))
        ]

    def __call__(self, image: Any, out: Any = None) -> Any:
        """Apply it to `[*image_shape]`, contiguous, of the dtype of the maps; `out` is another such array, or None for a new one."""
        import cupy
        from cupy.cuda import cufft

        result = cupy.empty_like(image) if out is None else out
        before, share = image, self.damping
        for maps, grid, transform in self.groups:
            expand = (image, maps, grid, *self.shape, *self.doubled)
            self.kernels["expand"]((-(-self.size // _THREADS), len(maps)), (_THREADS,), expand)
            coils = np.int32(len(maps))
            with _lock:  # a plan of cuFFT is for one thread at a time
                transform.fft(grid, grid, cufft.CUFFT_FORWARD)
                self._multiply(grid, coils)
                transform.fft(grid, grid, cufft.CUFFT_INVERSE)
            combine = (grid, maps, before, result, *self.shape, *self.doubled[1:], np.int32(self.size), coils, self.factor, share)
            self.kernels["combine"]((-(-self.pixels // _THREADS),), (_THREADS,), combine)
            before, share = result, np.intp(0)
        return result

    def _multiply(self, grid: Any, coils: Any) -> None:
        if self.columns:
            self.columns(grid, self.kernel)
        else:
            self.kernels["multiply"]((-(-self.size // _THREADS),), (_THREADS,), (grid, self.kernel, np.int32(self.size), coils))

    def combine(self, coil_images: Any, out: Any) -> None:
        """Write sum_c conj(s_c) z_c of coil images `[coil, *image_shape]` into `out` `[*image_shape]`."""
        real = self.kernel.dtype.type
        size, coils = np.int32(self.pixels), np.int32(len(self.maps))
        arguments = (coil_images, self.maps, out, out, *self.shape, *self.shape[1:], size, coils, real(1), self._none)
        self.kernels["combine"]((-(-self.pixels // _THREADS),), (_THREADS,), arguments)


def _grid(group: int, doubled: Sequence[int], rank: int, dtype: Any) -> tuple[Any, Any]:
    """Room for at most `group` doubled coil images, and cuFFT's plan for `rank` axes of it; fewer where memory is short."""
    import cupy

    while True:
        try:
            with as_memory_error():
                grid = cupy.empty((group, *doubled), dtype)
                return grid, _transform(grid, rank)
        except MemoryError as error:
            _plans.clear()
            cupy.get_default_memory_pool().free_all_blocks()
            if group == 1:
                raise
            group = (group + 1) // 2
            logger.warning("GPU convolution failed (%s); trying %d coils at once", error, group)


@contextmanager
def as_memory_error() -> Iterator[None]:
    """Turn what CUDA and cuFFT raise where something does not fit into the GPU into a MemoryError, as CuPy's pool raises."""
    try:
        yield
    except RuntimeError as error:
        if not any(sign in str(error) for sign in ("ALLOC_FAILED", "MemoryAllocation", "OUT_OF_MEMORY")):
            raise
        raise MemoryError(str(error)) from error


def _transform(grid: Any, rank: int) -> Any:
    """cuFFT's plan over the last `rank` axes of arrays like this, in place."""
    from cupyx.scipy.fft import get_fft_plan

    axes = tuple(range(-rank, 0))
    return _plans.get((grid.shape, grid.dtype.name, rank), lambda: get_fft_plan(grid, axes=axes, value_type="C2C"))


@cache
def _kernels(real: str) -> dict[str, Any]:
    import cupy

    name = "double" if real == "float64" else "float"
    module = cupy.RawModule(code=_CODE, options=(f"-DReal={name}", f"-DComplex={name}2"))
    return {name: module.get_function(name) for name in ("expand", "multiply", "combine")}
