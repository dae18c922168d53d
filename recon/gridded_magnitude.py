"""Gridding of a frame with its coils combined as the root of the sum of squares: the quickest image, without sensitivity maps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recon import nufft
from recon.arrays import Array, is_tensor
from recon.coils import combine
from recon.gridding_recorded import recorded_gridding
from recon.namespace import namespace
from recon.resident import call_resident
from recon.sense import gridding


def gridded_magnitude(
    kspace: Array, trajectory: np.ndarray, weights: np.ndarray | None, image_shape: Sequence[int], tolerance: float = nufft.TOLERANCE
) -> Array:
    """(sum_c |A^H W y_c|^2)^1/2. On a GPU the coils' images never leave it: of their bytes a twentieth comes back.

    Args:
        kspace, trajectory, weights, image_shape, tolerance: see `recon.sense.gridding`.

    Returns:
        Real images `[..., *image_shape]`, of the kind of `kspace`.

    Raises:
        ValueError: shapes do not fit.
    """

    def combined(values: Array) -> Array:
        on_gpu = not isinstance(values, np.ndarray) and not is_tensor(values)
        recorded = recorded_gridding(values, trajectory, image_shape, tolerance) if on_gpu and weights is not None else None
        if recorded is not None:
            return recorded(values, namespace(values).asarray(weights))
        return combine(gridding(values, trajectory, weights, image_shape, tolerance=tolerance), rank=len(image_shape))

    return call_resident("gridding", combined, kspace)
