"""Gram operators of parallel imaging on a GPU, all coils and frames in one batch: queueing many small kernels takes longer than they do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from recon.arrays import Array, complex_dtype, like, real_dtype
from recon.fourier import fft_module
from recon.operators.cartesian_gram import CartesianGram, _fits
from recon.operators.encoding import Encoding, _toeplitz
from recon.operators.fourier import Nufft, convolve
from recon.operators.frames import Frames
from recon.operators.linear import LinearOperator
from recon.operators.sensitivity import Sensitivity

WORKSPACE = 2**28
"""Bytes of coil images that are transformed at once; some three times as much is in use."""


class BatchedGram(LinearOperator):
    """S^H C_t S of CuPy images: maps, a convolution for each frame, maps.

    Args:
        maps: CuPy, complex `[coil, *image_shape]`.
        kernels: CuPy, real, Fourier transforms of the convolutions `[frame, *doubled]`, or `[*doubled]` for one that is the same for all
            images. Not doubled where they are circular.
        axes: of the circular convolution; None for one on a grid of twice the size.
    """

    def __init__(self, maps: Array, kernels: Array, axes: tuple[int, ...] | None = None) -> None:
        self.rank = maps.ndim - 1
        self.sensitivity = Sensitivity(maps, self.rank)
        self.of_frames = kernels.ndim > self.rank
        self.kernels = kernels[:, None] if self.of_frames else kernels
        self.axes = axes
        self.frames = max(1, WORKSPACE // (len(maps) * math.prod(kernels.shape[-self.rank :]) * maps.dtype.itemsize))

    def forward(self, x: Array) -> Array:
        if not self.of_frames:
            return self._apply(x, self.kernels)
        if len(x) != len(self.kernels):
            raise ValueError(f"{len(self.kernels)} operators cannot act on {len(x)} frames (the first axis of {tuple(x.shape)})")
        if len(x) <= self.frames:
            return self._apply(x, self.kernels)
        parts = [slice(start, start + self.frames) for start in range(0, len(x), self.frames)]
        return np.concatenate([self._apply(x[part], self.kernels[part]) for part in parts])

    def _apply(self, x: Array, kernels: Array) -> Array:
        coil_images = self.sensitivity(x)
        if self.axes is None:
            return self.sensitivity.adjoint(convolve(coil_images, kernels, self.rank))
        if self.axes:
            fft, _ = fft_module(coil_images)
            return self.sensitivity.adjoint(fft.ifftn(fft.fftn(coil_images, axes=self.axes) * kernels, axes=self.axes))
        return self.sensitivity.adjoint(coil_images * kernels)

    def adjoint(self, y: Array) -> Array:
        return self.forward(y)


def fast_gram(encoding: LinearOperator, like: Array) -> LinearOperator:
    """The Gram operator of `encoding`, or something equal that costs less on arrays such as `like`.

    On a GPU, NUFFTs are replaced by convolutions, whose error is smaller.
    """
    if not hasattr(like, "get"):
        return CartesianGram.of(encoding, like)
    parts = encoding.operators if isinstance(encoding, Frames) else (encoding,)
    if not all(isinstance(part, Encoding) and part.sensitivity.set_axis is None for part in parts):
        return encoding.gram
    encodings: Sequence[Any] = parts
    maps = encodings[0].maps
    if any(one.maps is not maps for one in encodings) or complex_dtype(maps) != complex_dtype(like):
        return encoding.gram
    found = _kernels(encodings, real_dtype(complex_dtype(like)))
    if found is None:
        return encoding.gram
    kernels, axes = found
    return BatchedGram(maps, kernels if isinstance(encoding, Frames) else kernels[0], axes)


def _kernels(encodings: Sequence[Encoding], dtype: np.dtype) -> tuple[Array, tuple[int, ...] | None] | None:
    """Kernels `[frame, ...]` on the GPU and the axes of circular ones; None where the Gram operators are no such convolutions."""
    maps, shape = encodings[0].maps, encodings[0].image_shape
    if all(isinstance(one.fourier, Nufft) for one in encodings):
        if len(shape) > 2:
            return None  # eight times the memory
        frames = [_toeplitz(one.fourier.trajectory, shape, _host(one.weights), 1e-6) for one in encodings]  # type: ignore[attr-defined]
        return _stack([frame.kernel_like(maps).astype(dtype, copy=False) for frame in frames], maps), None
    if not all(_fits(one, anywhere=True) for one in encodings):
        return None
    grams = [CartesianGram(one) for one in encodings]
    axes = tuple(sorted({axis for gram in grams for axis in gram.axes}))
    squares = [CartesianGram(one, axes).square(dtype) for one in encodings]
    return _stack([like(square, maps) for square in squares], maps), axes


def _stack(arrays: Sequence[Array], maps: Array) -> Array:
    from recon.namespace import namespace

    return namespace(maps).stack(arrays, 0)


def _host(weights: Array) -> np.ndarray | None:
    """Density weights as a NumPy array."""
    result: np.ndarray | None = weights.get() if hasattr(weights, "get") else weights
    return result
