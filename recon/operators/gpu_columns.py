"""Convolution along the columns of images on a GPU in one pass over memory: FFT, multiplication and inverse FFT in shared memory.

Rows beyond the image are zeros before and not wanted after: they need no memory at all. With cuFFT, the same takes five passes over
twice as many rows.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

_WIDTH = 4
"""Columns of a block of threads: 32 bytes of a row in single precision, the least that memory moves."""
_SHARED = 48 * 1024
"""Bytes of shared memory that any GPU has for a block."""
_THREADS = 256
_RADICES = (8, 4, 2, 3, 5)

# Stockham's FFT: L is the product of the radices before, R the radix of a stage. Frequency k of size N has the root exp(-2 pi i k / N).
_CODE = r"""
__device__ Complex operator+(Complex a, Complex b) { return {a.x + b.x, a.y + b.y}; }
__device__ Complex operator-(Complex a, Complex b) { return {a.x - b.x, a.y - b.y}; }
__device__ Complex operator*(Complex a, Complex b) { return {a.x * b.x - a.y * b.y, a.x * b.y + a.y * b.x}; }
__device__ Complex times(Real f, Complex a) { return {f * a.x, f * a.y}; }
__device__ Complex minus_i(Complex a) { return {a.y, -a.x}; }

template <int R> __device__ void dft(Complex* v);

template <> __device__ void dft<2>(Complex* v) {
  Complex a = v[0];
  v[0] = a + v[1];
  v[1] = a - v[1];
}

template <> __device__ void dft<3>(Complex* v) {
  Complex sum = v[1] + v[2], side = times((Real)0.86602540378443864676, minus_i(v[1] - v[2])), middle = v[0] - times((Real)0.5, sum);
  v[0] = v[0] + sum;
  v[1] = middle + side;
  v[2] = middle - side;
}

template <> __device__ void dft<4>(Complex* v) {
  Complex a = v[0] + v[2], b = v[0] - v[2], c = v[1] + v[3], d = minus_i(v[1] - v[3]);
  v[0] = a + c;
  v[1] = b + d;
  v[2] = a - c;
  v[3] = b - d;
}

template <> __device__ void dft<5>(Complex* v) {
  const Real c1 = 0.30901699437494742410, c2 = -0.80901699437494742410, s1 = 0.95105651629515357212, s2 = 0.58778525229247312917;
  Complex a = v[1] + v[4], b = v[2] + v[3], c = minus_i(v[1] - v[4]), d = minus_i(v[2] - v[3]), first = v[0];
  Complex p = first + times(c1, a) + times(c2, b), q = times(s1, c) + times(s2, d);
  Complex r = first + times(c2, a) + times(c1, b), s = times(s2, c) - times(s1, d);
  v[0] = first + a + b;
  v[1] = p + q;
  v[2] = r + s;
  v[3] = r - s;
  v[4] = p - q;
}

template <> __device__ void dft<8>(Complex* v) {
  const Real h = 0.70710678118654752440;
  Complex even[4] = {v[0], v[2], v[4], v[6]}, odd[4] = {v[1], v[3], v[5], v[7]};
  dft<4>(even);
  dft<4>(odd);
  odd[1] = odd[1] * Complex{h, -h};
  odd[2] = minus_i(odd[2]);
  odd[3] = odd[3] * Complex{-h, -h};
  for (int k = 0; k < 4; k++) {
    v[k] = even[k] + odd[k];
    v[k + 4] = even[k] - odd[k];
  }
}

template <int R, int L> __device__ void stage(const Complex* from, Complex* to, const Complex* roots) {
  for (int i = threadIdx.x; i < N / R * WIDTH; i += blockDim.x) {
    int column = i % WIDTH, j = i / WIDTH, within = j % L, first = (j / L) * L * R + within;
    Complex v[R];
#pragma unroll
    for (int k = 0; k < R; k++) v[k] = from[(j + k * (N / R)) * WIDTH + column];
#pragma unroll
    for (int k = 1; k < R; k++) v[k] = v[k] * roots[within * k * (N / (R * L))];
    dft<R>(v);
#pragma unroll
    for (int k = 0; k < R; k++) to[(first + k * L) * WIDTH + column] = v[k];
  }
  __syncthreads();
}

// grid [coil, rows, width], kernel [N, width]. The inverse FFT is the conjugate of the FFT of the conjugate.
extern "C" __global__ void columns(Complex* grid, const Real* kernel, const Complex* roots, int rows, int width) {
  __shared__ Complex a[N * WIDTH], b[N * WIDTH];
  int x = blockIdx.x * WIDTH;
  Complex* part = grid + (size_t)blockIdx.y * rows * width + x;
  for (int i = threadIdx.x; i < N * WIDTH; i += blockDim.x) {
    Complex zero = {0, 0};
    a[i] = i < rows * WIDTH ? part[(size_t)(i / WIDTH) * width + i % WIDTH] : zero;
  }
  __syncthreads();
  FORWARD
  for (int i = threadIdx.x; i < N * WIDTH; i += blockDim.x) {
    Real factor = kernel[(size_t)(i / WIDTH) * width + x + i % WIDTH];
    Complex value = MIDDLE[i];
    MIDDLE[i] = {factor * value.x, -factor * value.y};
  }
  __syncthreads();
  BACK
  for (int i = threadIdx.x; i < rows * WIDTH; i += blockDim.x) {
    Complex value = a[i];
    part[(size_t)(i / WIDTH) * width + i % WIDTH] = {value.x, -value.y};
  }
}
"""


class ColumnConvolution:
    """Convolve the columns of `[coil, rows, width]` with a kernel given by its real Fourier transform `[size, width]`, in place."""

    def __init__(self, size: int, real: str) -> None:
        import cupy

        self.roots = cupy.asarray(np.exp(-2j * np.pi * np.arange(size) / size).astype(np.complex64 if real == "float32" else np.complex128))
        self.kernel = cupy.RawModule(code=source(size, real)).get_function("columns")

    def __call__(self, grid: Any, kernel: Any) -> None:
        coils, rows, width = grid.shape
        self.kernel((width // _WIDTH, coils), (_THREADS,), (grid, kernel, self.roots, np.int32(rows), np.int32(width)))


@cache
def column_convolution(size: int, width: int, real: str) -> ColumnConvolution | None:
    """The convolution for columns of this doubled size; None where it does not fit into shared memory or has a factor above 5."""
    bytes_of_block = 2 * size * _WIDTH * (8 if real == "float32" else 16)
    if radices(size) is None or width % _WIDTH or bytes_of_block > _SHARED:
        return None
    return ColumnConvolution(size, real)


def radices(size: int) -> list[int] | None:
    """Factors of `size`, each a radix of a stage, or None."""
    found = []
    for radix in _RADICES:
        while size % radix == 0 and size > 1:
            found.append(radix)
            size //= radix
    return found if size == 1 else None


def source(size: int, real: str) -> str:
    """The kernel's code for columns of this size."""
    forward, middle = _stages(size, "a", "b")
    back, _ = _stages(size, *(("a", "b") if middle == "a" else ("b", "a")))
    name = "float" if real == "float32" else "double"
    constants = {"N": size, "WIDTH": _WIDTH, "Real": name, "Complex": f"{name}2"}
    constants |= {"FORWARD": forward, "MIDDLE": middle, "BACK": back}
    return "".join(f"#define {key} {value}\n" for key, value in constants.items()) + _CODE


def _stages(size: int, now: str, then: str) -> tuple[str, str]:
    """The calls of the stages of an FFT that begins in buffer `now`, and where it ends."""
    calls, done = [], 1
    for radix in radices(size) or []:
        calls.append(f"stage<{radix}, {done}>({now}, {then}, roots);")
        done, now, then = done * radix, then, now
    return " ".join(calls), now
