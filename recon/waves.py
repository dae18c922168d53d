"""Smooth functions from few Fourier coefficients: a product of small matrices, without a padded FFT of every one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recon.arrays import like
from recon.namespace import namespace

SMALL_PRODUCT = 2**16
"""Multiplications of a complex matrix product up to which OpenBLAS was seen to start no threads of its own, if it has at least four
rows. Within threads of ours those made the same work twenty times slower while other processes were busy."""


def waves(pixels: int, degree: int, dtype: np.dtype) -> np.ndarray:
    """exp(2 pi i d r / `pixels`) for r = 0 ... pixels - 1 counted from pixels // 2 and d = -degree ... degree.

    Returns:
        Complex `[pixels, 2 degree + 1]`; multiply Fourier coefficients with it for the values of their function at every pixel.
    """
    position = np.arange(pixels) - pixels // 2
    turns = np.outer(position, np.arange(-degree, degree + 1)) % pixels / pixels
    values: np.ndarray = np.exp(2j * np.pi * turns).astype(dtype)
    return values


def along_axes(matrices: Sequence[np.ndarray], values: np.ndarray) -> np.ndarray:
    """Apply one matrix `[out, in]` along each of the last `len(matrices)` axes of `values`, NumPy or CuPy."""
    space = namespace(values)
    for matrix in reversed(matrices):
        product = _times(values, matrix.T) if space is np else values @ like(matrix.T, values)
        values = space.moveaxis(product, -1, -len(matrices))
    return values


def _times(values: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """`values` `[..., in]` @ `matrix` `[in, out]`, in blocks of rows that are a `SMALL_PRODUCT`."""
    flat = values.reshape(-1, len(matrix))
    rows = min(max(4, SMALL_PRODUCT // matrix.size), len(flat))
    whole = len(flat) // rows * rows
    result = np.empty((len(flat), matrix.shape[1]), flat.dtype)
    np.matmul(flat[:whole].reshape(-1, rows, len(matrix)), matrix, out=result[:whole].reshape(-1, rows, matrix.shape[1]))
    if whole < len(flat):
        np.matmul(flat[-rows:], matrix, out=result[-rows:])  # overlaps the last block: a rest of few rows would start threads
    return result.reshape(*values.shape[:-1], matrix.shape[1])
