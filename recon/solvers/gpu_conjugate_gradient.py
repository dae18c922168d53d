"""Conjugate gradients on CuPy arrays without waiting for the GPU: step sizes and stopping are decided there."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

_THREADS = 256
_BLOCKS = 256  # at most _THREADS: every block adds up the partial sums of all

# Sums are in double precision and always in the same order. `partial` holds a sum per block; `state` holds the squared residual
# to be reached and then that before each iteration, 0 once there is no more to be gained.
_CODE = r"""
#define EACH(i, n) for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < (n); i += (long long)gridDim.x * blockDim.x)

__device__ double block_sum(double value) {
  __shared__ double sums[256];
  __syncthreads();
  sums[threadIdx.x] = value;
  __syncthreads();
  for (int width = 128; width; width >>= 1) {
    if (threadIdx.x < width) sums[threadIdx.x] += sums[threadIdx.x + width];
    __syncthreads();
  }
  return sums[0];
}

__device__ double total(const double* partial) { return block_sum(threadIdx.x < gridDim.x ? partial[threadIdx.x] : 0.0); }

__device__ double step(const double* partial, const double* state, int iteration) {
  double curvature = total(partial), energy = state[1 + iteration];
  return energy > state[0] && curvature > 0 ? energy / curvature : 0.0;
}

extern "C" __global__ void dot(const Real* a, const Real* b, long long n, double* partial) {
  double sum = 0;
  EACH(i, n) sum += (double)a[i] * (double)b[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

extern "C" __global__ void begin(const double* partial, double goal, double* state) {
  double energy = total(partial);
  if (threadIdx.x == 0 && blockIdx.x == 0) { state[0] = goal * energy; state[1] = energy; }
}

extern "C" __global__ void update(Real* x, Real* r, const Real* d, const Real* image, long long n, const double* curvature,
                                  const double* state, int iteration, double* partial) {
  double alpha = step(curvature, state, iteration), sum = 0;
  if (alpha != 0) {
    EACH(i, n) {
      x[i] += (Real)alpha * d[i];
      r[i] -= (Real)alpha * image[i];
      sum += (double)r[i] * (double)r[i];
    }
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

extern "C" __global__ void turn(Real* d, const Real* r, long long n, const double* partial, double* state, int iteration) {
  double updated = total(partial), energy = state[1 + iteration];
  Real beta = energy > 0 ? (Real)(updated / energy) : (Real)0;
  EACH(i, n) d[i] = r[i] + beta * d[i];
  if (threadIdx.x == 0 && blockIdx.x == 0) state[2 + iteration] = updated;
}
"""


def gpu_conjugate_gradient(operator: Callable[[Any], Any], rhs: Any, iterations: int = 10, tolerance: float = 0.0) -> Any:
    """Solve A x = b as `recon.solvers.conjugate_gradient` does, from zero, with everything queued on the GPU at once.

    Iterations after the tolerance has been reached are computed and change nothing: to know would mean to wait.

    Args:
        operator: applies A to CuPy arrays, on the current stream.
        rhs: b, CuPy, real or complex, any shape.
        iterations: number of applications of A.
        tolerance: steps end once |b - A x| <= tolerance |b|.

    Returns:
        x, CuPy, in the order of the current stream.
    """
    import cupy

    kernels = _kernels(rhs.real.dtype.name)
    residual = cupy.array(rhs, order="C")  # a copy
    solution, direction = residual * 0, residual.copy()
    size = np.int64(residual.view(residual.real.dtype).size)
    grid = ((max(1, min(_BLOCKS, -(-int(size) // _THREADS))),), (_THREADS,))
    curvature, energy = cupy.empty(_BLOCKS), cupy.empty(_BLOCKS)
    state = cupy.empty(iterations + 2)
    kernels["dot"](*grid, (residual, residual, size, energy))
    kernels["begin"](*grid, (energy, np.float64(tolerance**2), state))
    dot, update, turn = kernels["dot"], kernels["update"], kernels["turn"]
    for iteration in np.arange(iterations, dtype=np.int32):
        image = operator(direction)
        if image.dtype != residual.dtype or not image.flags.c_contiguous:
            image = cupy.ascontiguousarray(image, dtype=residual.dtype)
        dot(*grid, (direction, image, size, curvature))
        update(*grid, (solution, residual, direction, image, size, curvature, state, iteration, energy))
        turn(*grid, (direction, residual, size, energy, state, iteration))
    return solution


@cache
def _kernels(real: str) -> dict[str, Any]:
    import cupy

    module = cupy.RawModule(code=_CODE, options=(f"-DReal={'double' if real == 'float64' else 'float'}",))
    return {name: module.get_function(name) for name in ("dot", "begin", "update", "turn")}
