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


class GpuConjugateGradient:
    """Conjugate gradients for arrays like one, with the memory they need: nothing is allocated while they run.

    Args:
        like: CuPy, real or complex, contiguous.
        iterations: number of applications of A.
        tolerance: steps end once |b - A x| <= tolerance |b|.
    """

    def __init__(self, like: Any, iterations: int, tolerance: float) -> None:
        import cupy

        self.kernels = _kernels(like.real.dtype.name)
        self.solution, self.residual, self.direction, self.image = (cupy.empty_like(like, order="C") for _ in range(4))
        self.curvature, self.energy = cupy.empty(_BLOCKS), cupy.empty(_BLOCKS)
        self.state = cupy.empty(iterations + 2)
        self.iterations, self.goal = np.arange(iterations, dtype=np.int32), np.float64(tolerance**2)
        self.size = np.int64(like.view(like.real.dtype).size)
        self.grid = ((max(1, min(_BLOCKS, -(-int(self.size) // _THREADS))),), (_THREADS,))

    def solve(self, operator: Callable[..., Any], rhs: Any) -> Any:
        """Solve A x = b from zero, `operator(x, out=y)` being y = A x; returns x, overwritten by the next call."""
        import cupy

        dot, update, turn = (self.kernels[name] for name in ("dot", "update", "turn"))
        solution, residual, direction, image, size = self.solution, self.residual, self.direction, self.image, self.size
        cupy.copyto(residual, rhs)
        cupy.copyto(direction, rhs)
        cupy.multiply(rhs, 0, out=solution)  # a NaN stays one
        dot(*self.grid, (residual, residual, size, self.energy))
        self.kernels["begin"](*self.grid, (self.energy, self.goal, self.state))
        for iteration in self.iterations:
            operator(direction, out=image)
            dot(*self.grid, (direction, image, size, self.curvature))
            update(*self.grid, (solution, residual, direction, image, size, self.curvature, self.state, iteration, self.energy))
            turn(*self.grid, (direction, residual, size, self.energy, self.state, iteration))
        return solution


def gpu_conjugate_gradient(operator: Callable[[Any], Any], rhs: Any, iterations: int = 10, tolerance: float = 0.0) -> Any:
    """Solve A x = b as `recon.solvers.conjugate_gradient` does, from zero, with everything queued on the GPU at once.

    Iterations after the tolerance has been reached are computed and change nothing: to know would mean to wait.

    Args:
        operator: applies A to CuPy arrays, on the current stream.
        rhs: b, CuPy, real or complex, any shape.
        iterations, tolerance: see `GpuConjugateGradient`.

    Returns:
        x, CuPy, in the order of the current stream.
    """
    import cupy

    def apply(x: Any, out: Any) -> None:
        out[...] = operator(x)

    rhs = cupy.ascontiguousarray(rhs)
    return GpuConjugateGradient(rhs, iterations, tolerance).solve(apply, rhs)


@cache
def _kernels(real: str) -> dict[str, Any]:
    import cupy

    module = cupy.RawModule(code=_CODE, options=(f"-DReal={'double' if real == 'float64' else 'float'}",))
    return {name: module.get_function(name) for name in ("dot", "begin", "update", "turn")}
