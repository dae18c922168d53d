"""Standard deviations of pixel-wise maps of undersampled data against the scatter over noise and places of the samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import binary_erosion, gaussian_filter

from recon.fourier import fftc
from recon.phantoms import birdcage_coils
from recon.quantitative.aliasing import with_aliasing
from recon.quantitative.measured import Measured
from recon.quantitative.model import SignalModel
from recon.quantitative.models.exp_decay import ExpDecay
from recon.quantitative.models.look_locker import LookLocker
from recon.quantitative.models.r2star import R2Star
from recon.quantitative.models.vfa import VFA
from recon.quantitative.pixelwise import PixelwiseFit, fit_pixelwise
from recon.quantitative.subspace import widened
from tests.recon.conftest import relative_error
from tests.recon.quantitative.small_models import Decay, add_noise, tubes

SIZE, NOISE, REPEATS = 48, 1.5e-2, 6
MAPS = birdcage_coils(3, (SIZE, SIZE)).astype(np.complex64)
SINGLE = np.dtype(np.complex64)
TRAIN = 12 + 4.5 * 40 * np.arange(12)
MODELS: dict[str, SignalModel] = {
    "VFA": VFA(12.0, [2, 3, 4, 6, 9, 13, 18, 24]),
    "LookLocker": LookLocker(TRAIN.tolist(), 4.5, 6.0, readouts=40, TI_first=12.0),
    "T2": ExpDecay((12.0 * np.arange(1, 9)).tolist()),
    "R2Star": R2Star((2.3 + 4.6 * np.arange(7)).tolist()),
}
SHARED = {"radial": ("T2", "R2Star"), "cartesian": ("T2", "R2Star", "LookLocker")}
"""Contrasts that have their samples in common: echoes of the same excitations, frames of a train that is repeated for each line."""


def rate_map(model: SignalModel) -> np.ndarray:
    """The true second unknown: tubes with edges two pixels wide."""
    t1 = 1 / gaussian_filter(1 / tubes(SIZE)[1], 0.6)
    found: np.ndarray = 1000 / (20 + t1 / 15) if model.unknowns[1].unit == "1/s" else t1
    return found


def clean(model: SignalModel) -> np.ndarray:
    m0 = tubes(SIZE)[0]
    m0 = gaussian_filter(m0.real, 0.6) + 1j * gaussian_filter(m0.imag, 0.6)
    x = np.arange(SIZE) / SIZE - 0.5
    every = [m0, rate_map(model), np.broadcast_to(20 * x, m0.shape)]
    values: np.ndarray = np.asarray(model(np.stack(every[: len(model.unknowns)])))
    return values.astype(np.complex64)


def radial(contrasts: int, spokes: int, shared: bool, random: np.random.Generator) -> Measured:
    """Golden-angle spokes that begin at any angle, counted on from contrast to contrast or the same for all."""
    count = spokes if shared else spokes * contrasts
    angles = random.uniform(0, np.pi) + np.arange(count)[:, None] * np.pi * (np.sqrt(5) - 1) / 2
    radius = (np.arange(2 * SIZE) - SIZE) / SIZE * np.pi
    points = np.stack([np.sin(angles) * radius, np.cos(angles) * radius], -1).astype(np.float32).reshape(-1, spokes * 2 * SIZE, 2)
    return Measured(np.zeros((contrasts, 3, points.shape[1]), np.complex64), MAPS, np.repeat(points, contrasts if shared else 1, 0))


def cartesian(contrasts: int, shared: bool, random: np.random.Generator) -> Measured:
    """Random lines, fewer outside, of 4 or so one: the same for all contrasts or not."""
    share = 0.7 * np.clip(0.9 - 1.6 * np.abs(np.arange(SIZE) / SIZE - 0.5), 0.15, 1)
    lines = random.random((1 if shared else contrasts, SIZE, 1)) < share[:, None]
    lines[:, SIZE // 2 - 3 : SIZE // 2 + 3] = True
    mask = np.repeat(lines, contrasts if shared else 1, 0)
    return Measured(np.zeros((contrasts, *MAPS.shape), np.complex64), MAPS, mask=mask)


def scan(name: str, kind: str, noise: float, seed: int) -> Measured:
    model, random = MODELS[name], np.random.default_rng(seed)
    shared = name in SHARED[kind]
    empty = radial(model.contrasts, 24, shared, random) if kind == "radial" else cartesian(model.contrasts, shared, random)
    images = clean(model)
    return replace(empty, data=add_noise(empty.encoded(images), noise * np.abs(images).max(), seed).astype(np.complex64))


def fitted(name: str, measured: Measured) -> PixelwiseFit:
    images = measured.term(SINGLE).images().numpy()
    return fit_pixelwise(MODELS[name], images, np.ones((SIZE, SIZE), bool))


def sampled_elsewhere(measured: Measured) -> Callable[[np.ndarray], np.ndarray]:
    term = measured.elsewhere().term(SINGLE)
    return lambda images: np.asarray(term.of(images).images())


@pytest.mark.parametrize("kind", ["radial", "cartesian"])
@pytest.mark.parametrize("name", MODELS)
def test_deviation_is_the_scatter_whatever_the_noise(name: str, kind: str) -> None:
    """Of iterative SENSE about the truth, over places of the samples, noise and neighbours: median ratio within 0.8 to 1.3."""
    inside = binary_erosion(tubes(SIZE)[2])
    truth = rate_map(MODELS[name])
    for noise in (3 * NOISE, NOISE, NOISE / 3):
        errors, told = [], []
        for seed in range(REPEATS):
            measured = scan(name, kind, noise, seed)
            found = fitted(name, measured)
            errors.append(found.parameters[1].real - truth)
            if seed == 0:
                full = with_aliasing(found, sampled_elsewhere(measured))
                np.testing.assert_array_equal(full.parameters, found.parameters)
                told = [found.deviation[1], full.deviation[1]]
        near = [np.roll(errors, (i, j), (1, 2)) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        scatter = 1.4826 * np.median(np.abs(np.concatenate(near)), 0)
        alone, whole = (float(np.median((one / scatter)[inside])) for one in told)
        assert 0.8 < whole < 1.3, (noise, alone, whole)
    if (name, kind) in (("T2", "radial"), ("R2Star", "radial"), ("LookLocker", "cartesian")):
        assert alone < 0.65  # at the least noise the residual alone is far off


@pytest.mark.parametrize("name", ["VFA", "T2"])
def test_nothing_is_added_where_everything_was_measured(name: str) -> None:
    model = MODELS[name]
    full = Measured(np.zeros((model.contrasts, *MAPS.shape), np.complex64), MAPS, mask=np.ones((model.contrasts, SIZE, 1), bool))
    found = fitted(name, replace(full, data=add_noise(full.encoded(clean(model)), NOISE).astype(np.complex64)))
    more = with_aliasing(found, sampled_elsewhere(full))
    np.testing.assert_allclose(more.deviation, found.deviation, rtol=1e-3)


def test_samples_of_images_are_those_of_the_encoding() -> None:
    images = clean(MODELS["T2"])
    mask = np.zeros((8, SIZE, 1), bool)
    mask[:, ::3] = True
    grid = Measured(np.zeros((8, *MAPS.shape), np.complex64), MAPS, mask=mask)
    assert relative_error(fftc(MAPS * images[:, None], (-2, -1)) * mask[:, None], grid.encoded(images)) < 1e-5
    series = Measured(images)
    np.testing.assert_array_equal(series.encoded(2 * images), 2 * images)


def test_images_that_come_back_as_they_were_add_nothing() -> None:
    m0, t1, inside = tubes(SIZE)
    signal = Decay()(np.stack([m0, 20 / t1])).numpy()
    found = fit_pixelwise(Decay(), add_noise(signal, NOISE).astype(np.complex64))
    full = with_aliasing(found, lambda images: images)
    np.testing.assert_allclose(full.covariance, found.covariance, rtol=1e-3)
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
