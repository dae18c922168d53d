"""Standard deviations of pixel-wise maps of undersampled data against the scatter over noise and directions of the spokes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from recon.fourier import fftc
from recon.phantoms import birdcage_coils
from recon.quantitative.aliasing import with_aliasing
from recon.quantitative.measured import Measured
from recon.quantitative.pixelwise import fit_pixelwise
from recon.quantitative.subspace import widened
from tests.recon.conftest import relative_error
from tests.recon.quantitative.small_models import Decay, add_noise, tubes

SIZE, NOISE, REPEATS = 48, 1.5e-2, 20
MAPS = birdcage_coils(3, (SIZE, SIZE)).astype(np.complex64)


def clean() -> np.ndarray:
    m0, t1, _ = tubes(SIZE)
    values: np.ndarray = Decay()(np.stack([m0, 20 / t1])).numpy()
    return values.astype(np.complex64)


def echoes(seed: int) -> Measured:
    """Five echoes of the same 31 spokes, less than half of what an image needs, which begin at any angle."""
    angles = np.random.default_rng(seed).uniform(0, np.pi) + np.arange(31)[:, None] * np.pi * (np.sqrt(5) - 1) / 2
    radius = (np.arange(2 * SIZE) - SIZE) / SIZE * np.pi
    points = np.stack([np.sin(angles) * radius, np.cos(angles) * radius], -1).reshape(1, -1, 2).astype(np.float32)
    empty = Measured(np.zeros((5, 3, points.shape[1]), np.complex64), MAPS, np.repeat(points, 5, 0))
    return replace(empty, data=add_noise(empty.encoded(clean()), NOISE, seed).astype(np.complex64))


def test_deviation_is_the_scatter_over_noise_and_directions() -> None:
    """Of gridded images: median ratio within 0.7 to 1.4, where the residual alone tells less."""
    _, _, inside = tubes(SIZE)
    everywhere = np.ones((SIZE, SIZE), bool)
    rates, told = [], []
    for seed in range(REPEATS):
        scan = echoes(seed)
        found = fit_pixelwise(Decay(), scan.gridded().astype(np.complex64), everywhere)
        rates.append(found.parameters[1].real)
        if seed < 3:
            full = with_aliasing(found, lambda images, scan=scan: replace(scan, data=scan.encoded(images)).gridded())
            np.testing.assert_array_equal(full.parameters, found.parameters)
            told.append((found.deviation[1], full.deviation[1]))
    scatter = np.std(rates, 0, ddof=1)
    alone, whole = (float(np.median([(one[n] / scatter)[inside] for one in told])) for n in (0, 1))
    assert alone < 0.7 < whole < 1.4


def test_samples_of_images_are_those_of_the_encoding() -> None:
    mask = np.zeros((5, SIZE, 1), bool)
    mask[:, ::3] = True
    grid = Measured(np.zeros((5, *MAPS.shape), np.complex64), MAPS, mask=mask)
    assert relative_error(fftc(MAPS * clean()[:, None], (-2, -1)) * mask[:, None], grid.encoded(clean())) < 1e-5
    images = Measured(clean())
    np.testing.assert_array_equal(images.encoded(2 * clean()), 2 * clean())


def test_images_that_come_back_as_they_were_add_nothing() -> None:
    found = fit_pixelwise(Decay(), add_noise(clean(), NOISE).astype(np.complex64))
    full = with_aliasing(found, lambda images: images)
    np.testing.assert_allclose(full.covariance, found.covariance, rtol=1e-3)
    inside = tubes(SIZE)[2]
    shift = 5 * float(np.median(found.deviation[1][inside]))
    faster = with_aliasing(found, lambda images: images * np.exp(-shift * Decay().times).reshape(-1, 1, 1))
    added = np.sqrt(faster.deviation[1] ** 2 - found.deviation[1] ** 2)[inside]
    assert 0.5 * shift < np.median(added) < 1.5 * shift


def test_combinations_of_few_signals_have_noise_of_as_few_dimensions() -> None:
    """Images projected onto three of their five dimensions: what the residual lacks is put back."""
    model, basis = Decay(), np.linalg.svd(Decay()(np.stack([np.ones(50), np.geomspace(2e-3, 0.2, 50)]).astype(complex)).numpy())[0][:, :3]
    signal = model(np.stack([np.ones(4000), np.full(4000, 0.03)]).astype(complex)).numpy()
    noise = add_noise(np.zeros(signal.shape, complex), 0.01)
    found = fit_pixelwise(model, signal + basis @ (basis.conj().T @ noise))
    scatter = np.std(found.parameters[1].real)
    wide = widened(found, 3)
    root = np.sqrt(np.mean(wide.deviation[1] ** 2))
    assert root == pytest.approx(np.sqrt(7 / 3 * np.mean(found.deviation[1] ** 2)), rel=1e-3)
    assert root == pytest.approx(scatter, rel=0.1)
    assert widened(found, 5) is found
    assert np.isinf(widened(found, 1).covariance).all()
