"""Functionals of the singular values of a series of images: nuclear norm, locally low rank."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from recon.arrays import Array, is_tensor
from recon.functionals.base import Functional, positive
from recon.functionals.shifts import RandomShift
from recon.namespace import cast, namespace, real_like, times, total


class NuclearNorm(Functional):
    """weight times the sum of the singular values of the Casorati matrix `[frame, everything else]`.

    Cai, Candès, Shen, SIAM J. Optim. 20 (2010): the proximal map shrinks the singular values.

    Args:
        weight: at least 0, in the units of x.
        axis: of the frames.
    """

    def __init__(self, weight: float = 1.0, axis: int = 0) -> None:
        self.weight, self.axis = positive("weight", weight), axis

    def __call__(self, x: Array) -> Any:
        return self.weight * total(_singular_values(self._matrix(x)[0]))

    def prox(self, x: Array, step: Any = 1.0) -> Array:
        matrix, order, shape = self._matrix(x)
        space = namespace(x)
        shrunk = space.reshape(_shrink_singular_values(matrix, times(step, self._weight_like(x))), shape)
        return space.transpose(shrunk, [int(n) for n in np.argsort(order)])

    def _weight_like(self, x: Array) -> Any:
        return real_like(self.weight, namespace(x).real(x))

    def _matrix(self, x: Array) -> tuple[Array, list[int], tuple[int, ...]]:
        space = namespace(x)
        axis = self.axis % len(x.shape)
        order = [axis, *(n for n in range(len(x.shape)) if n != axis)]
        moved = space.transpose(x, order)
        return space.reshape(moved, (int(moved.shape[0]), -1)), order, tuple(int(n) for n in moved.shape)


class LocallyLowRank(Functional):
    """weight times the nuclear norms of the blocks of an image series `[frame, *image]`, frame by pixels of a block each.

    Trzasko and Manduca, ISMRM 2011, 4371; Zhang, Pauly, Levesque, Magn. Reson. Med. 73 (2015). Blocks at the border are
    smaller. With a seed the grid of blocks moves randomly from one proximal map to the next, which removes the edges
    between blocks: a different functional each time, as usual in practice.

    Args:
        weight: at least 0, in the units of x.
        block: edge of the blocks in pixels, one number or one for each image axis.
        rank: number of image axes, the last ones; the axis before them holds the frames.
        seed: of the random shifts; None keeps the grid in place.
    """

    def __init__(self, weight: float = 1.0, block: int | Sequence[int] = 8, rank: int = 2, seed: int | None = None) -> None:
        self.weight = positive("weight", weight)
        self.block = (block,) * rank if isinstance(block, int) else tuple(block)
        if len(self.block) != rank or min(self.block) < 1:
            raise ValueError(f"block must be {rank} edges of at least one pixel, not {block}")
        self._shift = RandomShift(self.block, seed)

    def __call__(self, x: Array) -> Any:
        return self.weight * total(_singular_values(self._blocks(x)[0]))

    def prox(self, x: Array, step: Any = 1.0) -> Array:
        def shrink(image: Array) -> Array:
            blocks, restore = self._blocks(image)
            threshold = times(step, real_like(self.weight, namespace(image).real(image)))
            return restore(_shrink_singular_values(blocks, threshold))

        return self._shift.around(shrink, x)

    def _blocks(self, x: Array) -> tuple[Array, Any]:
        """`[..., block, frame, pixel]`, and the function that puts them back; zeros that fill the last blocks change no value."""
        space = namespace(x)
        rank, block = len(self.block), self.block
        shape = tuple(int(n) for n in x.shape)
        if len(shape) < rank + 1:
            raise ValueError(f"locally low rank needs [..., frame, *image] with {rank} image axes, not {shape}")
        image, lead = shape[-rank:], shape[: -rank - 1]
        counts = [math.ceil(n / edge) for n, edge in zip(image, block, strict=True)]
        margin = [(0, count * edge - n) for count, edge, n in zip(counts, block, image, strict=True)]
        padded = space.pad(x, [(0, 0)] * (len(lead) + 1) + margin)
        split = [length for pair in zip(counts, block, strict=True) for length in pair]
        base, first = len(lead), len(lead) + 1
        order = [*range(base), *range(first, first + 2 * rank, 2), base, *range(first + 1, first + 2 * rank, 2)]
        frames = shape[-rank - 1]
        tiles = space.transpose(space.reshape(padded, [*lead, frames, *split]), order)
        tiled = [int(n) for n in tiles.shape]

        def restore(matrices: Array) -> Array:
            back = space.transpose(space.reshape(matrices, tiled), [int(n) for n in np.argsort(order)])
            whole = space.reshape(back, [*lead, frames, *(count * edge for count, edge in zip(counts, block, strict=True))])
            inside: tuple[Any, ...] = (..., *(slice(n) for n in image))
            return whole[inside]

        return space.reshape(tiles, (-1, frames, math.prod(block))), restore


def _singular_values(matrices: Array) -> Array:
    if is_tensor(matrices):
        import tensorflow as tf

        return tf.linalg.svd(matrices, compute_uv=False)
    return namespace(matrices).linalg.svd(matrices, compute_uv=False)


def largest_singular_value(matrices: Array) -> Any:
    """The largest singular value of all matrices `[..., m, n]`, a scalar."""
    values, _ = _eigh(matrices, matrices.shape[-2] <= matrices.shape[-1])
    space = namespace(values)
    return space.sqrt(space.maximum(space.max(values), real_like(0, values)))


def _shrink_singular_values(matrices: Array, threshold: Any) -> Array:
    """U max(S - threshold, 0) V^H of `[..., m, n]` by the eigenvectors of the smaller Gram matrix, in double precision.

    Squaring halves the number of right digits, which double precision has to spare; it costs a fraction of an SVD.
    """
    wide = matrices.shape[-2] <= matrices.shape[-1]
    values, vectors = _eigh(matrices, wide)
    space = namespace(values)
    singular = space.sqrt(space.maximum(values, real_like(0, values)))
    threshold = real_like(threshold, values)
    above = singular > threshold
    factors = space.where(above, 1 - threshold / space.where(above, singular, real_like(1, values)), real_like(0, values))
    projector = cast((vectors * cast(factors, vectors)[..., None, :]) @ _transposed(vectors), matrices)
    return projector @ matrices if wide else matrices @ projector


def _eigh(matrices: Array, wide: bool) -> tuple[Array, Array]:
    if is_tensor(matrices):
        import tensorflow as tf

        double = tf.cast(matrices, tf.complex128 if matrices.dtype.is_complex else tf.float64)
        values, vectors = tf.linalg.eigh(double @ _transposed(double) if wide else _transposed(double) @ double)
        return tf.math.real(values), vectors
    space = namespace(matrices)
    double = matrices.astype(np.complex128 if matrices.dtype.kind == "c" else np.float64)
    values, vectors = space.linalg.eigh(double @ _transposed(double) if wide else _transposed(double) @ double)
    return values, vectors


def _transposed(matrices: Array) -> Array:
    if is_tensor(matrices):
        import tensorflow as tf

        return tf.linalg.adjoint(matrices)
    return matrices.conj().swapaxes(-1, -2)
