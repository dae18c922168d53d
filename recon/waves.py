"""Smooth functions from few Fourier coefficients: a product of small matrices, without a padded FFT of every one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def waves(pixels: int, degree: int, dtype: np.dtype) -> np.ndarray:
    """exp(2 pi i d r / `pixels`) for r = 0 ... pixels - 1 counted from pixels // 2 and d = -degree ... degree.

    Returns:
        Complex `[pixels, 2 degree + 1]`; multiply Fourier coefficients with it for the values of their function at every pixel.
    """
    position = np.arange(pixels) - pixels // 2
    turns = np.outer(position, np.arange(-degree, degree + 1)) % pixels / pixels
    return np.exp(2j * np.pi * turns).astype(dtype)


def along_axes(matrices: Sequence[np.ndarray], values: np.ndarray) -> np.ndarray:
    """Apply one matrix `[out, in]` along each of the last `len(matrices)` axes of `values`."""
    for axis, matrix in zip(range(-len(matrices), 0), matrices, strict=True):
        if axis == -1:
            values = values @ matrix.T
        else:
            moved = np.moveaxis(values, axis, -2)
            values = np.moveaxis(matrix @ moved, -2, axis)
    return values
