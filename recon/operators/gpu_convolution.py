"""The normal operator of parallel imaging on a GPU: sensitivities, convolution and combination in five passes over memory."""

from __future__ import annotations

import threading
from functools import cache
from typing import Any

import numpy as np

from recon.cache import Cache

WORKSPACE = 2**28
"""Bytes for the doubled coil images; more coils than fit are done one group after another."""

# Image axes are [y, x], those of the doubled grid [my, mx]; in one dimension y and my are 1.
_CODE = r"""
extern "C" __global__ void expand(const Complex* image, const Complex* maps, Complex* grid, int y_size, int x_size, int mx) {
  int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y, my = gridDim.y, coil = blockIdx.z;
  if (x >= mx) return;
  Complex value = {0, 0};
  if (x < x_size && y < y_size) {
    Complex s = maps[((size_t)coil * y_size + y) * x_size + x], v = image[y * x_size + x];
    value.x = s.x * v.x - s.y * v.y;
    value.y = s.x * v.y + s.y * v.x;
  }
  grid[((size_t)coil * my + y) * mx + x] = value;
}

extern "C" __global__ void multiply(Complex* grid, const Real* kernel, int size, int coils) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= size) return;
  Real factor = kernel[i];
  for (int coil = 0; coil < coils; coil++) {
    Complex value = grid[(size_t)coil * size + i];
    value.x *= factor;
    value.y *= factor;
    grid[(size_t)coil * size + i] = value;
  }
}

// result = factor sum_c conj(s_c) g_c + damping image (first group of coils), or added to it (later ones)
extern "C" __global__ void combine(const Complex* grid, const Complex* maps, const Complex* image, Complex* result, int x_size, int my,
                                   int mx, int coils, Real factor, Real damping, int first) {
  int x = blockIdx.x * blockDim.x + threadIdx.x, y = blockIdx.y, y_size = gridDim.y;
  if (x >= x_size) return;
  Complex sum = {0, 0};
  for (int coil = 0; coil < coils; coil++) {
    Complex s = maps[((size_t)coil * y_size + y) * x_size + x], g = grid[((size_t)coil * my + y) * mx + x];
    sum.x += s.x * g.x + s.y * g.y;
    sum.y += s.x * g.y - s.y * g.x;
  }
  int i = y * x_size + x;
  Complex before = first ? image[i] : result[i];
  Real share = first ? damping : (Real)1;
  result[i] = {factor * sum.x + share * before.x, factor * sum.y + share * before.y};
}
"""

_plans: Cache[Any] = Cache(4)
_lock = threading.Lock()


class GpuConvolution:
    """x -> sum_c conj(s_c) T (s_c x) + damping x on CuPy images, T a convolution given by its kernel on a grid of twice the size.

    Everything is queued on the current stream; nothing waits for the GPU.

    Args:
        maps: CuPy, complex `[coil, y, x]` or `[coil, x]`.
        kernel: CuPy, real, of the precision of the maps, `[2 y, 2 x]` or `[2 x]`: the Fourier transform of the convolution kernel.
        damping: weight of the identity.
    """

    def __init__(self, maps: Any, kernel: Any, damping: float = 0.0) -> None:
        import cupy

        self.maps = cupy.ascontiguousarray(maps)
        self.kernel = cupy.ascontiguousarray(kernel)
        real = self.kernel.dtype.type
        self.shape = (1,) * (3 - maps.ndim) + maps.shape[1:]
        self.doubled = (1,) * (2 - kernel.ndim) + kernel.shape
        self.factor, self.damping = real(1 / kernel.size), real(damping)
        self.kernels = _kernels(self.kernel.dtype.name)
        group = max(1, min(len(maps), WORKSPACE // (kernel.size * self.maps.itemsize)))
        grid = cupy.empty((group, *self.doubled), self.maps.dtype)
        # What does not change from image to image: queueing must keep ahead of the GPU.
        self.groups = [
            (chosen, grid[: len(chosen)], _transform(grid[: len(chosen)], kernel.ndim))
            for chosen in (self.maps[start : start + group] for start in range(0, len(maps), group))
        ]
        self.sizes = [np.int32(size) for size in (*self.shape, *self.doubled, kernel.size)]

    def __call__(self, image: Any) -> Any:
        import cupy
        from cupy.cuda import cufft

        result = cupy.empty_like(image)
        (y, x), (my, mx) = self.shape, self.doubled
        y_size, x_size, my_size, mx_size, size = self.sizes
        first = np.int32(1)
        for maps, grid, transform in self.groups:
            coils = np.int32(len(maps))
            self.kernels["expand"]((-(-mx // 128), my, len(maps)), (128,), (image, maps, grid, y_size, x_size, mx_size))
            with _lock:  # a plan of cuFFT is for one thread at a time
                transform.fft(grid, grid, cufft.CUFFT_FORWARD)
                self.kernels["multiply"]((-(-my * mx // 128),), (128,), (grid, self.kernel, size, coils))
                transform.fft(grid, grid, cufft.CUFFT_INVERSE)
            arguments = (grid, maps, image, result, x_size, my_size, mx_size, coils, self.factor, self.damping, first)
            self.kernels["combine"]((-(-x // 128), y), (128,), arguments)
            first = np.int32(0)
        return result


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
