"""The CUDA code of `recon.operators.gpu_columns`, compiled for the CPU with a thread for each of CUDA's, against NumPy's FFT.

On a GPU `scripts/gpu_check.py` runs it.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from recon.operators.gpu_columns import column_convolution, radices, source
from tests.recon.conftest import relative_error

_CUDA = r"""
#include <barrier>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>
struct float2 { float x, y; };
struct double2 { double x, y; };
struct Index { int x, y; };
static thread_local Index threadIdx, blockIdx;
static Index blockDim{8, 1};
static std::barrier<> everybody(8);
#define __syncthreads() everybody.arrive_and_wait()
#define __device__
#define __global__
#define __shared__ static
"""
_MAIN = r"""
int main(int, char** sizes) {
  int coils = atoi(sizes[1]), rows = atoi(sizes[2]), width = atoi(sizes[3]);
  std::vector<Complex> grid(coils * rows * width), roots(N);
  std::vector<Real> kernel(N * width);
  if (!fread(grid.data(), sizeof(Complex), grid.size(), stdin) || !fread(kernel.data(), sizeof(Real), kernel.size(), stdin) ||
      !fread(roots.data(), sizeof(Complex), N, stdin)) return 1;
  std::vector<std::thread> threads;
  for (int t = 0; t < blockDim.x; t++) threads.emplace_back([&, t] {
    threadIdx = {t, 0};
    for (int y = 0; y < coils; y++) for (int x = 0; x < width / WIDTH; x++) {
      blockIdx = {x, y};
      columns(grid.data(), kernel.data(), roots.data(), rows, width);
      __syncthreads();
    }
  });
  for (auto& thread : threads) thread.join();
  fwrite(grid.data(), sizeof(Complex), grid.size(), stdout);
}
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize(("size", "real", "tolerance"), [(512, "float32", 1e-6), (480, "float32", 1e-6), (90, "float64", 1e-14)])
def test_columns_are_convolved(size: int, real: str, tolerance: float, tmp_path: Path) -> None:
    coils, rows, width = 2, size // 2, 8
    (tmp_path / "columns.cpp").write_text(_CUDA + source(size, real) + _MAIN)
    command = ["g++", "-std=c++20", "-O1", "-w", "-pthread", "columns.cpp", "-o", "columns"]
    subprocess.run(command, cwd=tmp_path, check=True)
    rng = np.random.default_rng(0)
    dtype = np.complex64 if real == "float32" else np.complex128
    grid = (rng.standard_normal((coils, rows, width)) + 1j * rng.standard_normal((coils, rows, width))).astype(dtype)
    kernel = rng.standard_normal((size, width)).astype(real)
    roots = np.exp(-2j * np.pi * np.arange(size) / size).astype(dtype)
    given = grid.tobytes() + kernel.tobytes() + roots.tobytes()
    done = subprocess.run([tmp_path / "columns", str(coils), str(rows), str(width)], input=given, capture_output=True, check=True)
    expected = size * np.fft.ifft(np.fft.fft(grid, size, 1) * kernel, axis=1)[:, :rows]
    assert relative_error(expected, np.frombuffer(done.stdout, dtype).reshape(grid.shape)) < tolerance


def test_sizes_that_do_not_fit_are_left_to_cufft() -> None:
    assert radices(480) == [8, 4, 3, 5]
    assert radices(14) is None
    for size, width, real in ((14, 16, "float32"), (512, 510, "float32"), (1024, 1024, "float32"), (512, 512, "float64")):
        assert column_convolution(size, width, real) is None
