"""What undersampling does to maps that are fitted pixel by pixel to images: errors that look like signal, not like noise.

Where contrasts differ in their samples, artefacts differ too, and the residual of the fit tells of them. Where they share samples, as
the echoes of one spoke do, artefacts decay like signal and the fit takes them for such. So the fitted signals are sampled and
reconstructed once more, without noise, and fitted again: how far the maps move, beyond what the residual of that fit tells, belongs to
their uncertainty. The samples are taken elsewhere (`Measured.elsewhere`): the maps have in them what the measured places say and lack
what those leave out, so that the same places once more would move them little.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from scipy.ndimage import uniform_filter

from recon.quantitative.pixelwise import PixelwiseFit, fit_pixelwise

_NEIGHBOURHOOD = 5
"""Edge in voxels of the neighbourhood over which squares are averaged."""
_LARGEST, _PART = 5.0, 0.3
"""Errors count at most so many standard deviations or, if that is more, this part of the unknown: a fit that fails says nothing of its
neighbours."""


def with_aliasing(found: PixelwiseFit, reconstruct: Callable[[np.ndarray], np.ndarray]) -> PixelwiseFit:
    """The same fit with a covariance that holds the aliasing.

    Args:
        found: of all voxels, or NaN outside a mask.
        reconstruct: images `[contrast, *voxels]` -> what samples of them, without noise, like the measured ones but elsewhere, become
            by the reconstruction whose images were fitted.
    """
    inside = np.isfinite(found.parameters).all(0)
    parameters = np.where(inside, found.parameters, 0)
    signal = np.where(inside, np.nan_to_num(np.asarray(found.model(parameters))), 0)
    again = fit_pixelwise(found.model, reconstruct(signal), inside, start=parameters)
    size = np.abs(parameters)
    along = np.where(size > 0, parameters.conj() / np.where(size > 0, size, 1), 1)
    variance, told = (np.einsum("uu...->u...", one.covariance) for one in (found, again))
    known = inside & (variance > 0) & np.isfinite(variance)
    unit = np.where(known, variance, 1)
    with np.errstate(invalid="ignore"):
        moved = np.where(known, (along * (again.parameters - parameters)).real ** 2 / unit, 0)
        visible = np.where(known, told / unit, 0)
    largest = np.maximum(_LARGEST**2, (_PART * size) ** 2 / unit)
    squares, seen = (_average(np.minimum(np.nan_to_num(one), largest), known) for one in (moved, visible))
    excess = np.maximum(squares - seen, 0)
    factor = np.sqrt(1 + excess)
    return replace(found, covariance=found.covariance * (factor[:, None] * factor[None]).astype(found.covariance.dtype))


def _average(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Over the neighbours `[unknown, *voxels]` that are known."""
    edge = (1, *[_NEIGHBOURHOOD] * (values.ndim - 1))
    share = uniform_filter(known.astype(np.float64), edge, mode="constant")
    averaged: np.ndarray = uniform_filter(np.where(known, values, 0).astype(np.float64), edge, mode="constant") / np.maximum(share, 1e-9)
    return averaged
