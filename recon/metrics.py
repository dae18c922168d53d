"""Image quality measures against a reference. Complex images are compared as they are by `nrmse`, else by magnitude."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter


def nrmse(reference: np.ndarray, image: np.ndarray) -> float:
    """|image - reference| / |reference| (l2 over all pixels), real or complex."""
    return float(np.linalg.norm(np.ravel(image - reference)) / np.linalg.norm(np.ravel(reference)))


def psnr(reference: np.ndarray, image: np.ndarray, data_range: float | None = None) -> float:
    """Peak signal-to-noise ratio of the magnitudes in dB; `data_range` is by default the reference's range."""
    reference, image = _magnitudes(reference, image)
    error = float(np.mean((image - reference) ** 2))
    return float(10 * np.log10(_range(reference, data_range) ** 2 / error)) if error else float("inf")


def ssim(reference: np.ndarray, image: np.ndarray, data_range: float | None = None) -> float:
    """Mean structural similarity of two-dimensional magnitude images.

    Wang, Bovik, Sheikh, Simoncelli, IEEE Trans. Image Process. 13 (2004): Gaussian window 11 x 11 of width 1.5,
    constants 0.01 and 0.03; windows that cross the border are left out.
    """
    reference, image = _magnitudes(reference, image)
    if reference.ndim != 2 or min(reference.shape) < 11:
        raise ValueError(f"ssim compares two-dimensional images of at least 11 x 11 pixels, not {reference.shape}")
    low, high = (0.01 * _range(reference, data_range)) ** 2, (0.03 * _range(reference, data_range)) ** 2

    def local(values: np.ndarray) -> np.ndarray:
        averaged: np.ndarray = gaussian_filter(values, 1.5, radius=5)
        return averaged

    mean_a, mean_b = local(reference), local(image)
    variance_a, variance_b = local(reference**2) - mean_a**2, local(image**2) - mean_b**2
    covariance = local(reference * image) - mean_a * mean_b
    similarity = (2 * mean_a * mean_b + low) * (2 * covariance + high)
    similarity /= (mean_a**2 + mean_b**2 + low) * (variance_a + variance_b + high)
    return float(similarity[5:-5, 5:-5].mean())


def _magnitudes(reference: np.ndarray, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if np.shape(reference) != np.shape(image):
        raise ValueError(f"images of shapes {np.shape(reference)} and {np.shape(image)} cannot be compared")

    def real(values: np.ndarray) -> np.ndarray:
        values = np.asarray(values)
        return (np.abs(values) if np.iscomplexobj(values) else values).astype(np.float64)

    return real(reference), real(image)


def _range(reference: np.ndarray, data_range: float | None) -> float:
    return float(np.ptp(reference)) if data_range is None else data_range
