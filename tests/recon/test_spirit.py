"""SPIRiT: the calibrated kernel against its definition, filling of missing samples, tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from recon.fourier import fftc, ifftc
from recon.metrics import nrmse
from recon.phantoms import birdcage_coils, shepp_logan
from recon.spirit import SpiritConsistency, _filled, calibrate, fill, spirit
from tests.recon.conftest import random_complex, relative_error


@pytest.fixture(scope="module")
def full() -> np.ndarray:
    """Noisy k-space of eight coils, fully sampled."""
    shape = (64, 60)
    kspace = fftc(birdcage_coils(8, shape) * shepp_logan(shape), (-2, -1))
    return (kspace + 2e-3 * random_complex(kspace.shape)).astype(np.complex64)


@pytest.mark.parametrize("shape", [(12, 10), (9, 11)])
def test_consistency_is_the_convolution_of_k_space(shape: tuple[int, int]) -> None:
    kernel, samples = random_complex((3, 3, 5, 3), 1, "complex128"), random_complex((3, *shape), 2, "complex128")
    expected = -samples
    for y in range(5):
        for x in range(3):
            shifted = np.roll(samples, (2 - y, 1 - x), (-2, -1))
            expected = expected + np.einsum("ts,s...->t...", kernel[:, :, y, x], shifted)
    image = SpiritConsistency(kernel, shape)(ifftc(samples, (-2, -1)))
    assert relative_error(expected, fftc(image, (-2, -1))) < 1e-12


@pytest.mark.parametrize(("dtype", "bound"), [("complex64", 1e-5), ("complex128", 1e-12)])
def test_consistency_passes_the_dot_test_and_takes_tensors(tf: Any, dtype: str, bound: float) -> None:
    operator = SpiritConsistency(random_complex((3, 3, 5, 5), 1, dtype), (8, 7))
    x, y = random_complex((2, 3, 8, 7), 2, dtype), random_complex((2, 3, 8, 7), 3, dtype)
    image, back = operator(x), operator.H(y)
    assert image.dtype == dtype
    assert abs(np.vdot(y, image) - np.vdot(back, x)) < bound * np.linalg.norm(image) * np.linalg.norm(y)
    for function, argument, expected in ((operator, x, image), (operator.H, y, back)):
        for run in (function, tf.function(function)):
            assert relative_error(expected, run(tf.constant(argument)).numpy()) < bound


def test_the_kernel_predicts_samples_and_not_from_themselves(full: np.ndarray) -> None:
    kernel = calibrate(full[:, 20:44, 18:42], 5, 1e-3)
    assert kernel.shape == (8, 8, 5, 5)
    assert all(kernel[coil, coil, 2, 2] == 0 for coil in range(8))
    predicted = sum(
        np.einsum("ts,syx->tyx", kernel[:, :, y, x], full[:, 22 + y - 2 : 42 + y - 2, 20 + x - 2 : 40 + x - 2])
        for y in range(5)
        for x in range(5)
    )
    assert nrmse(full[:, 22:42, 20:40], predicted) < 0.1


def test_missing_lines_are_filled_and_measured_ones_kept(full: np.ndarray) -> None:
    mask = np.zeros(full.shape[1:], bool)
    mask[::2] = mask[22:42] = True
    kspace = full * mask
    filled = spirit(kspace, mask, (20, 60), regularisation=1e-3, iterations=60)
    assert np.array_equal(filled[:, mask], kspace[:, mask])
    assert nrmse(full, filled) < 0.15 * nrmse(full, kspace)
    assert np.array_equal(spirit(kspace, None, (20, 60), regularisation=1e-3, iterations=60), filled)
    # Random sampling of both axes, which GRAPPA cannot take.
    random = np.random.default_rng(0).uniform(size=mask.shape) < 0.5
    random[22:42, 20:40] = True
    scattered = spirit(full * random, random, 20, regularisation=1e-3, iterations=60)
    assert nrmse(full, scattered) < 0.2 * nrmse(full, full * random)
    assert np.array_equal(spirit(full), full)


def test_the_kernel_is_the_least_squares_one() -> None:
    region = random_complex((2, 7, 8), 1, "complex128")
    kernel = calibrate(region, (3, 5), 0.1)
    windows = np.lib.stride_tricks.sliding_window_view(region, (3, 5), axis=(1, 2))
    patches = np.moveaxis(windows, 0, 2).reshape(-1, 30)
    damping = 0.1 * np.linalg.norm(patches) ** 2 / 30
    for coil, own in ((0, 7), (1, 22)):
        others = np.delete(patches, own, axis=1)
        stacked = np.vstack([others, np.sqrt(damping) * np.eye(29)])
        expected = np.linalg.lstsq(stacked, np.append(patches[:, own], np.zeros(29)), rcond=None)[0]
        assert relative_error(expected, np.delete(kernel[coil].ravel(), own)) < 1e-10


def test_a_volume_is_solved_slice_by_slice() -> None:
    shape = (20, 18, 12)
    depth = np.exp(-((np.linspace(-1, 1, 20)[:, None, None] - np.array([-1, 1, 0]).repeat(2)[:, None, None, None]) ** 2))
    truth = np.hanning(22)[1:-1, None, None] * shepp_logan(shape[1:])
    full = fftc((birdcage_coils(6, shape[1:])[:, None] * depth * truth).astype(np.complex128), (-3, -2, -1))
    mask = np.random.default_rng(0).uniform(size=shape[:2]) < 0.5
    mask[4:16, 3:15] = True
    mask = np.broadcast_to(mask[..., None], shape)
    kernel = calibrate(full[:, 4:16, 3:15, :], (3, 3, 3), 1e-4)
    found = fill(full * mask, kernel, mask, 200, 1e-6)
    assert relative_error(_filled(full * mask, kernel, mask, 400, 1e-6), found) < 1e-3
    assert nrmse(full, found) < 0.3 * nrmse(full, full * mask)


def test_tensors_are_filled(tf: Any, full: np.ndarray) -> None:
    mask = np.zeros(full.shape[1:], bool)
    mask[::2] = mask[22:42] = True
    expected = spirit(full * mask, mask, (20, 60), iterations=5)
    assert relative_error(expected, spirit(tf.constant(full * mask), None, (20, 60), iterations=5).numpy()) < 1e-4
    kernel = calibrate(full[:, 22:42], 5, 0.01)
    graph = tf.function(lambda samples: fill(samples, kernel, mask, 5))
    assert relative_error(expected, graph(tf.constant(full * mask)).numpy()) < 1e-4
    with pytest.raises(ValueError, match="beforehand"):
        tf.function(lambda samples: spirit(samples, mask, (20, 60)))(tf.constant(full))


def test_bad_input_is_explained(full: np.ndarray) -> None:
    mask = np.zeros(full.shape[1:], bool)
    mask[::2] = True
    with pytest.raises(ValueError, match="fully sampled"):
        spirit(full * mask, mask)
    with pytest.raises(ValueError, match="fit"):
        fill(full, np.zeros((3, 3, 5, 5)))
    with pytest.raises(ValueError, match="odd"):
        calibrate(full, 4)
    with pytest.raises(ValueError, match="smaller"):
        calibrate(full[:, :4, :4], 5)
    with pytest.raises(ValueError, match="sampled"):
        calibrate(0 * full)
