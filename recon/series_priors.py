"""What is known of a series of images: the regularisations R of `recon.moving_window`.

Their weights are fractions of what the first frame shows, and are fixed by it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from recon.arrays import Array
from recon.fourier import fftc, ifftc
from recon.functionals.low_rank import LocallyLowRank, NuclearNorm
from recon.functionals.norms import L1
from recon.functionals.total_variation import TotalVariation
from recon.namespace import inner, namespace, root

TOTAL_VARIATION_ITERATIONS = 4
"""Of its proximal map: 10 gave the same errors (moving heart, 13 spokes a frame)."""


class SeriesPrior(NamedTuple):
    """R of a series whose images are the sum of `parts` unknown series; `prox` is its proximal map on `[part, frame, *image]`."""

    parts: int
    prox: Callable[[Array, float], Array]


def temporal_variation(first: Array, weight: float = 0.006) -> SeriesPrior:
    """R(x) = lambda sum |x[t + 1] - x[t]|: GRASP, Feng et al., Magn. Reson. Med. 72 (2014).

    Args:
        first: E^H y of the first frame, `[*image]`.
        weight: lambda as a fraction of max |first|.
    """
    peak = float(namespace(first).abs(first).max())
    return SeriesPrior(1, TotalVariation(weight * peak, (-1 - first.ndim,), iterations=TOTAL_VARIATION_ITERATIONS).prox)


def blockwise_low_rank(first: Array, weight: float = 0.01, block: int = 8, seed: int = 0) -> SeriesPrior:
    """R(x) = lambda times the nuclear norms of the blocks of x: Zhang, Pauly, Levesque, Magn. Reson. Med. 73 (2015).

    Args:
        first: E^H y of the first frame, `[*image]`.
        weight: lambda as a fraction of the largest norm of a block of `first`.
        block: edge of the blocks in pixels.
        seed: of the random moves of their grid.
    """
    space = namespace(first)
    blocks, _ = LocallyLowRank(1.0, block, first.ndim)._blocks(first[None])
    largest = float(space.sqrt((space.abs(blocks) ** 2).sum((-2, -1)).max()))
    return SeriesPrior(1, LocallyLowRank(weight * largest, block, first.ndim, seed).prox)


def low_rank_plus_sparse(first: Array, weight: float = 0.01, sparse: float = 0.01) -> SeriesPrior:
    """R(L, S) = lambda_L |L|_* + lambda_S |F_t S|_1 with x = L + S and F_t the Fourier transform over the frames.

    Otazo, Candès, Sodickson, Magn. Reson. Med. 73 (2015).

    Args:
        first: E^H y of the first frame, `[*image]`.
        weight: lambda_L as a fraction of |first|.
        sparse: lambda_S as a fraction of max |first|.
    """
    space = namespace(first)
    nuclear = NuclearNorm(weight * root(inner(first, first)))
    peaks = L1(sparse * float(space.abs(first).max()))

    def prox(both: Array, step: float) -> Array:
        return space.stack([nuclear.prox(both[0], step), ifftc(peaks.prox(fftc(both[1], 0), step), 0)], 0)

    return SeriesPrior(2, prox)
