"""The centre of non-Cartesian k-space on the Cartesian grid, for calibrations that need one (ESPIRiT, SPIRiT)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from recon.fourier import fftc
from recon.images import central_crop
from recon.sense import cg_sense

MARGIN = 1.5
"""Grid over block: samples beyond the block keep its border right, and the grid's own border falls outside."""


def cartesian_centre(kspace: np.ndarray, trajectory: np.ndarray, image_shape: Sequence[int], size: int, iterations: int = 10) -> np.ndarray:
    """Cartesian samples around the centre of k-space, spaced by the inverse of the field of view, by least squares.

    Every coil's coarse image that agrees with the samples near the centre is found by conjugate gradients, and transformed.

    Args:
        kspace: complex `[coil, sample]`.
        trajectory: `[sample, axis]` in rad per pixel of `image_shape`, dense near the centre.
        image_shape: pixels per axis of the field of view.
        size: edge of the block in samples, at most the image's. Where gaps are wider than the grid, the field of view folds, and
            maps made from the block with it; see `dense_edge`.
        iterations: of the conjugate gradients.

    Returns:
        Complex `[coil, *block]`, the centre at n // 2, on the scale of `kspace`.

    Raises:
        ValueError: shapes do not fit, or no sample lies near the centre.
    """
    shape = tuple(int(n) for n in image_shape)
    block = tuple(min(size, n) for n in shape)
    coarse = tuple(min(2 * math.ceil(MARGIN * size / 2), n) for n in shape)
    scale = np.array([n / m for n, m in zip(shape, coarse, strict=True)], trajectory.dtype)
    near = (np.abs(trajectory * scale) <= np.pi).all(axis=-1)
    if not near.any():
        raise ValueError(f"no sample lies in the central {coarse} of {shape} grid points; the trajectory must pass the centre of k-space")
    images = cg_sense(kspace[:, None, near], trajectory[near] * scale, np.ones((1, *coarse), np.complex64), iterations, regularisation=1e-3)
    return np.ascontiguousarray(central_crop(fftc(images, tuple(range(-len(shape), 0))), block))


def dense_edge(spokes: int | None) -> int:
    """Edge in samples of a block for ESPIRiT: as far as `spokes` over 180 degrees leave no gaps of much more than one grid point.

    Of other trajectories (None) a small one, because variable-density spirals are often undersampled outside it already.
    """
    return 14 if spokes is None else min(24, max(12, round(2.2 * spokes / math.pi)))
