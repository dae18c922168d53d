"""Phantoms and metrics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.ndimage import maximum_filter, minimum_filter

from recon.metrics import nrmse, psnr, ssim
from recon.phantoms import birdcage_coils, moving_heart, shepp_logan
from tests.recon.conftest import random_complex


def test_shepp_logan_equals_the_oracle(oracle: Any) -> None:
    image = shepp_logan((64, 64))
    expected = np.abs(oracle["phantom64"])
    # The oracle's grid is half a pixel off: compare away from the edges.
    flat = maximum_filter(expected, 3) - minimum_filter(expected, 3) < 1e-3
    assert flat.mean() > 0.5
    assert np.abs(image - expected)[flat].max() < 1e-3


def test_shepp_logan_has_the_known_values() -> None:
    image = shepp_logan((256, 256))
    assert image.max() == pytest.approx(1)
    assert image[128, 128] == pytest.approx(0.2, abs=1e-6)
    assert image[0].max() == 0
    # Skull: outer minus inner ellipse of the table.
    area = np.pi * (0.69 * 0.92 - 0.6624 * 0.874) / 4
    assert (image > 0.95).mean() == pytest.approx(area, rel=0.05)
    assert image[24:128].sum() != pytest.approx(image[129:233].sum(), rel=1e-3)  # up and down differ
    assert shepp_logan((40, 64)).shape == (40, 64)


def test_the_heart_beats_and_repeats() -> None:
    still, squeezed = moving_heart((96, 96), 0), moving_heart((96, 96), 400)
    assert still.dtype == np.float32
    assert still.min() >= 0
    assert still.max() <= 1
    assert (still > 0.95).sum() > 2 * (squeezed > 0.95).sum() > 0
    assert np.allclose(still, moving_heart((96, 96), 5 * 800), atol=1e-5)
    assert 0 < nrmse(still, moving_heart((96, 96), 5)) < nrmse(still, moving_heart((96, 96), 50))


def test_birdcage_coils_surround_the_object() -> None:
    maps = birdcage_coils(8, (48, 64))
    assert np.allclose((np.abs(maps) ** 2).sum(0), 1, atol=1e-5)
    peaks = [np.unravel_index(np.abs(coil).argmax(), (48, 64)) for coil in maps]
    assert peaks[0][1] == 63  # coil 0 lies on the positive x side
    assert peaks[2][0] == 47  # coil 2, a quarter turn on, on the positive y side
    # Phases vary: the maps span several dimensions, so that SENSE can unfold with them.
    values = np.linalg.svd(maps.reshape(8, -1), compute_uv=False)
    assert values[3] > 0.05 * values[0]


def test_metrics_of_known_differences() -> None:
    image = shepp_logan((64, 64))
    assert nrmse(image, 1.1 * image) == pytest.approx(0.1, rel=1e-5)
    assert psnr(image, image + 0.1) == pytest.approx(20, abs=1e-4)
    assert psnr(image, image) == float("inf")
    assert ssim(image, image) == pytest.approx(1)
    assert ssim(image, image.max() - image) < 0.1
    phase = np.exp(1j * np.linspace(0, 6, 64))
    assert ssim(image, image * phase) == pytest.approx(1)
    with pytest.raises(ValueError, match="cannot be compared"):
        ssim(image, image[1:])
    with pytest.raises(ValueError, match="11 x 11"):
        ssim(image[:8, :8], image[:8, :8])


def test_ssim_equals_its_formula_in_one_window() -> None:
    a, b = (np.abs(random_complex((11, 11), seed, "complex128")) for seed in (1, 2))
    kernel = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(kernel, kernel) / kernel.sum() ** 2
    mean_a, mean_b = (window * a).sum(), (window * b).sum()
    c1, c2 = (0.01 * np.ptp(a)) ** 2, (0.03 * np.ptp(a)) ** 2
    covariance = (window * (a - mean_a) * (b - mean_b)).sum()
    spread = (window * (a - mean_a) ** 2).sum() + (window * (b - mean_b) ** 2).sum()
    expected = (2 * mean_a * mean_b + c1) * (2 * covariance + c2) / ((mean_a**2 + mean_b**2 + c1) * (spread + c2))
    assert ssim(a, b) == pytest.approx(expected, rel=1e-6)


def test_metrics_agree_with_the_oracle(oracle: Any) -> None:
    reference = np.abs(oracle["phantom64"])
    padded = np.pad(reference, 1, mode="edge")
    blurred = sum(padded[i : i + 64, j : j + 64] for i in range(3) for j in range(3)) / 9
    assert psnr(reference, blurred, 1.0) == pytest.approx(float(oracle["metric_psnr"][0]), abs=0.5)
    assert ssim(reference, blurred, 1.0) == pytest.approx(float(oracle["metric_ssim"][0]), abs=0.02)
