"""Sensitivity maps from a singular value decomposition of every pixel's neighbourhood.

The method of Walsh et al. (Magn Reson Med 2000;43:682) in the form of Inati and Hansen that Gadgetron calls "Inati": the coil vector
of a pixel is the dominant right singular vector of its neighbourhood (points x coils), found by a few power iterations. The mean
phase of the object there goes into the maps, so that images combined with them are nearly real.
`recon.coils.inati` is the iterative variant.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

_BLOCK_BYTES = 2**21
"""Memory of the pixel-wise covariances of one block: about what a core's cache holds."""


def local_svd_maps(images: np.ndarray, kernel_size: Sequence[int] = (7, 7), iterations: int = 3) -> np.ndarray:
    """Sensitivity maps of coil images.

    Args:
        images: complex ``[coil, ...]`` with as many image axes as `kernel_size` has entries.
        kernel_size: edges of the neighbourhood in pixels, one an axis; even sizes are increased by one. Images wrap around.
        iterations: power iterations; Gadgetron's 3 leave a trace of the weaker singular vectors where noise dominates.

    Returns:
        Array of the shape and dtype of `images`; unit norm over coils, zero where a whole neighbourhood is zero.

    Raises:
        ValueError: the number of axes does not fit.
    """
    from recon.nufft import run_each

    if images.ndim != len(kernel_size) + 1:
        raise ValueError(f"local_svd_maps: images {images.shape} need one coil axis and {len(kernel_size)} image axes")
    sizes = [min(k + 1 - k % 2, 2 * n - 1) for k, n in zip(kernel_size, images.shape[1:], strict=True)]
    padded = np.pad(images, [(0, 0), *((k // 2, k // 2) for k in sizes)], mode="wrap")
    maps = np.empty_like(images)
    blocks = _blocks(images.shape, sizes, images.itemsize)

    def estimate(index: int) -> None:
        block = blocks[index]
        haloed = tuple(slice(b.start, b.stop + k - 1) for b, k in zip(block, sizes, strict=True))
        everything = (slice(None),)
        maps[everything + block] = _maps(padded[everything + haloed], sizes, iterations)

    run_each(estimate, len(blocks))
    return maps


def _blocks(shape: tuple[int, ...], sizes: list[int], itemsize: int) -> list[tuple[slice, ...]]:
    """Cut the image into blocks along all axes but the last."""
    coils, *image = shape
    lines = max(_BLOCK_BYTES // (itemsize * coils * (coils + 1) // 2 * image[-1]), 1)
    edge = max(int(lines ** (1 / max(len(image) - 1, 1))), 1)
    steps = [max(edge, k) for k in sizes[:-1]] + [image[-1]]
    ranges = [[slice(i, min(i + step, n)) for i in range(0, n, step)] for n, step in zip(image, steps, strict=True)]
    return list(product(*ranges))


def _maps(images: np.ndarray, sizes: list[int], iterations: int) -> np.ndarray:
    """Maps of the inner part of `images`, whose halo is half the neighbourhood."""
    coils = images.shape[0]
    mean = images
    for axis, size in enumerate(sizes, start=1):
        mean = _box_sum(mean, size, axis)
    covariance = np.empty((coils, coils, *mean.shape[1:]), images.dtype)
    for i in range(coils):
        pairs = images[i].conj() * images[i:]
        for axis, size in enumerate(sizes, start=1):
            pairs = _box_sum(pairs, size, axis)
        covariance[i, i:] = pairs
        covariance[i + 1 :, i] = pairs[1:].conj()
    vector = _normalised(mean)
    for _ in range(iterations):
        vector = _normalised(np.einsum("ij...,j...->i...", covariance, vector))
    phase = np.einsum("i...,i...->...", mean, vector)
    magnitude = np.abs(phase)
    phase = np.divide(phase, magnitude, out=np.ones_like(phase), where=magnitude > 0)
    result: np.ndarray = vector.conj() * phase
    return result


def _box_sum(values: np.ndarray, size: int, axis: int) -> np.ndarray:
    """Sums over windows of `size` along `axis` (only whole windows), by doubling: no running sum, hence no cancellation."""
    values = np.moveaxis(values, axis, -1)
    length = values.shape[-1] - size + 1
    total = np.zeros((*values.shape[:-1], length), values.dtype)
    offset, width, partial = 0, 1, values
    while True:
        if size & width:
            total += partial[..., offset : offset + length]
            offset += width
        if 2 * width > size:
            return np.moveaxis(total, -1, axis)
        partial = partial[..., :-width] + partial[..., width:]
        width *= 2


def _normalised(vector: np.ndarray) -> np.ndarray:
    # Scaling by the largest part first keeps faint backgrounds from underflowing in single precision.
    largest = np.maximum(np.abs(vector.real), np.abs(vector.imag)).max(axis=0)
    vector = np.divide(vector, largest, out=np.zeros_like(vector), where=largest > 0)
    norm = np.sqrt(np.sum(vector.real**2 + vector.imag**2, axis=0))
    result: np.ndarray = np.divide(vector, norm, out=vector, where=norm > 0)
    return result
