"""Low rank plus sparse: a background that is correlated over time, and what moves in front of it."""

from __future__ import annotations

import numpy as np

from recon.arrays import Array
from recon.compressed_sensing import _number, _prepare, largest_eigenvalue
from recon.fourier import fftc, ifftc
from recon.functionals.low_rank import NuclearNorm, _singular_values
from recon.functionals.norms import L1
from recon.namespace import namespace
from recon.operators.batched_gram import fast_gram
from recon.resident import resident
from recon.solvers.fista import fista


def low_rank_plus_sparse(
    kspace: Array,
    maps: Array,
    trajectory: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    low_rank: float = 0.02,
    sparse: float = 0.002,
    iterations: int = 50,
    tolerance: float = 0.0,
) -> tuple[Array, Array]:
    """Minimise |E (L + S) - y|^2 / 2 + lambda_L |L|_* + lambda_S |F_t S|_1, F_t the Fourier transform over time.

    Otazo, Candès, Sodickson, Magn. Reson. Med. 73 (2015), by accelerated proximal gradients in L and S at once.

    Args:
        kspace: `[frame, coil, sample]` or Cartesian `[frame, coil, *image]`.
        maps, trajectory, mask, weights: see `recon.compressed_sensing.encode`, trajectory or mask with an axis of frames.
        low_rank: lambda_L as a fraction of the largest singular value of E^H y as a matrix of frames and pixels.
        sparse: lambda_S as a fraction of max |F_t E^H y|.
        iterations, tolerance: see `fista`.

    Returns:
        L and S, each `[frame, *image]`; the images are their sum.

    Raises:
        ValueError: not a series of frames, or see `encode`.
    """
    series = np.ndim(kspace) - np.ndim(maps) + (0 if trajectory is None else np.ndim(maps) - 2) == 1
    if not series or (trajectory is not None and np.ndim(trajectory) != 3):
        raise ValueError("low rank plus sparse needs frames: kspace [frame, coil, ...] and a trajectory or mask with an axis of frames")
    both = _both(kspace, maps, trajectory, mask, weights, low_rank, sparse, iterations, tolerance)
    return both[0], both[1]


@resident
def _both(
    kspace: Array,
    maps: Array,
    trajectory: np.ndarray | None,
    mask: np.ndarray | None,
    weights: np.ndarray | None,
    low_rank: float,
    sparse: float,
    iterations: int,
    tolerance: float,
) -> Array:
    """L and S, `[2, frame, *image]`."""
    encoding, rhs = _prepare(kspace, maps, trajectory, mask, weights)
    gram, space = fast_gram(encoding, rhs), namespace(rhs)
    spectral = space.max(_singular_values(space.reshape(rhs, (int(rhs.shape[0]), -1))))
    nuclear = NuclearNorm(low_rank * _number(spectral))
    peaks = L1(sparse * _number(space.max(space.abs(fftc(rhs, 0)))))

    def gradient(both: Array) -> Array:
        residual = gram(both[0] + both[1]) - rhs
        return space.stack([residual, residual], 0)

    def prox(both: Array, step: float) -> Array:
        return space.stack([nuclear.prox(both[0], step), ifftc(peaks.prox(fftc(both[1], 0), step), 0)], 0)

    # The sum of two variables: twice the largest eigenvalue.
    bound = 2 * largest_eigenvalue(encoding, gram, rhs)
    start = space.stack([space.zeros_like(rhs)] * 2, 0)
    return fista(gradient, prox, start, 1 / bound, iterations, tolerance)
