"""The least that a reconstruction must move and compute, from the size of its problem. Part of `scripts/gpu_check.py`.

Single precision: a complex number has 8 bytes. Bytes are those of kernels that read their input once and write their output once, with
the FFTs a library's: one pass an axis, reading and writing. What a cache holds is not taken off.
"""

from __future__ import annotations

import math
from typing import NamedTuple

BYTES_PER_S, FLOPS_PER_S = 4.8e12, 60e12
"""An H200's memory by its datasheet, and its single precision."""
FINE = 4
"""Points of cuFINUFFT's fine grid over pixels, in two dimensions."""
WIDTH = 4
"""Width of its kernel at a tolerance of 1e-3."""


class Work(NamedTuple):
    """Bytes moved and operations done."""

    bytes: float
    flops: float

    def __add__(self, other: tuple[float, ...]) -> Work:  # type: ignore[override]
        return Work(self.bytes + other[0], self.flops + other[1])

    def __mul__(self, times: float) -> Work:  # type: ignore[override]
        return Work(times * self.bytes, times * self.flops)

    def report(self) -> dict[str, float]:
        """MB and GFLOP, and the ms that each takes at the least."""
        values = {
            "MB": self.bytes / 1e6,
            "GFLOP": self.flops / 1e9,
            "floor_bytes_ms": 1e3 * self.bytes / BYTES_PER_S,
            "floor_flops_ms": 1e3 * self.flops / FLOPS_PER_S,
        }
        return {name: float(f"{value:.3g}") for name, value in values.items()}


def fft(images: int, pixels: int) -> Work:
    """Two-dimensional FFTs."""
    return Work(4 * 8 * images * pixels, 5 * images * pixels * math.log2(pixels))


def passes(count: float, values: int) -> Work:
    """So many readings or writings of an array, and as many complex additions or real multiplications."""
    return Work(8 * count * values, 2 * count * values)


def cartesian_gram(coils: int, pixels: int) -> Work:
    """Maps, FFT, mask, FFT, maps: the coils are read or written 2 + 2 + 2 times beside the FFTs."""
    return fft(2 * coils, pixels) + passes(6, coils * pixels) + Work(0, 16 * coils * pixels)


def toeplitz_gram(coils: int, pixels: int) -> Work:
    """The same with a convolution: rows of the doubled image by FFT, columns in shared memory (`recon.operators.gpu_columns`)."""
    moved = Work(8 * 17 * coils * pixels + 16 * pixels, 0)
    return moved + Work(0, 2 * 5 * coils * (2 * pixels * math.log2(2 * math.sqrt(pixels)) * 2) + 16 * coils * pixels)


def nufft_gram(coils: int, pixels: int, samples: int) -> Work:
    """Maps, NUFFT, its adjoint, maps."""
    grid = FINE * pixels
    spread = Work(8 * (grid + samples), 8 * samples * WIDTH**2)
    one = (fft(1, grid) + spread + passes(1, pixels + grid)) * 2
    return one * coils + passes(4, coils * pixels)


def fista(gram: Work, unknowns: int, prox_passes: float) -> Work:
    """One iteration: gradient, step, momentum, restart."""
    return gram + passes(8 + prox_passes, unknowns)


def admm(gram: Work, unknowns: int, axes: int, inner: int = 10) -> Work:
    """One iteration with finite differences along so many axes."""
    return (gram + passes(10 + 2 * axes, unknowns)) * inner + passes(6 + 8 * axes, unknowns)


def wavelet_passes(axes: int = 2) -> float:
    """There and back, each level a quarter of the one before."""
    return 2 * 2 * axes * 4 / 3


def spirit(coils: int, pixels: int, iterations: int) -> Work:
    """A matrix of the coils at every pixel, between two FFTs; the matrices are made once."""
    matrices = coils**2 * pixels
    step = fft(2 * coils, pixels) + Work(8 * matrices, 8 * matrices) + passes(12, coils * pixels)
    return step * (iterations + 1) + Work(3 * 8 * matrices, 8 * coils * matrices)


def espirit(coils: int, pixels: int, calibration: int = 24, kernel: int = 6) -> Work:
    """Patches, their Gram matrix and its eigenvectors (25 n^3), the projector; a matrix of the coils at every pixel, three squarings."""
    rows, columns = coils * kernel**2, (calibration - kernel + 1) ** 2
    small = min(rows, columns)
    algebra = 8 * rows * columns * small + 4 * 25 * small**3 + 8 * rows**2 * small
    matrices = coils**2 * pixels
    return Work(8 * (2 * matrices + 2 * rows**2), algebra + matrices * (3 * 8 * coils + 4 * 8))


def walsh(coils: int, pixels: int) -> Work:
    """A covariance at every pixel, its box filter along two axes, two squarings."""
    matrices = coils**2 * pixels
    return Work(8 * 6 * matrices, matrices * (8 + 2 * 10 + 2 * 8 * coils + 3 * 8))


def inati(coils: int, pixels: int, iterations: int = 5) -> Work:
    """Images times the conjugate image, box filter along two axes, norm, combination, phase."""
    return passes(12, coils * pixels) * iterations + Work(0, 60 * coils * pixels * iterations)


def nlinv(gram: Work, coils: int, pixels: int, degrees: int, steps: int) -> Work:
    """Gauss-Newton steps of conjugate gradients, `steps` in all: products of maps and image, maps from their coefficients and back."""
    waves = Work(8 * 2 * coils * pixels, 2 * 8 * coils * pixels * degrees)
    return (gram + waves + passes(10, coils * pixels)) * steps


def grappa_frame(coils: int, pixels: int) -> Work:
    """FFT, weights, sum over the coils."""
    return fft(coils, pixels) + passes(2, coils * pixels) + Work(0, 8 * coils * pixels)


def grappa_calibration(coils: int, pixels: int, neighbours: int, equations: int, missing: float) -> Work:
    """Normal equations, their solution for all targets, and a product for every missing sample."""
    unknowns = coils * neighbours
    algebra = 8 * unknowns**2 * equations / 2 + 8 / 6 * unknowns**3 + 8 * unknowns**2 * coils
    return Work(8 * (2 * coils * pixels + unknowns**2), algebra + 8 * missing * pixels * coils * unknowns)
