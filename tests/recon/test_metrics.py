"""Image quality measures: parity with the oracle, direct definitions, batches, tensors, gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import correlate, correlate1d, uniform_filter

from recon.metrics import SCALE_WEIGHTS, gmsd, ms_ssim, nrmse, psnr, ssim
from recon.phantoms import shepp_logan
from tests.recon.conftest import random_complex

METRICS = {"nrmse": nrmse, "psnr": psnr, "ssim": ssim, "gmsd": gmsd}


def noisy_pair(shape: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A smooth random reference between 0 and 1 and a noisy copy."""
    rng = np.random.default_rng(seed)
    reference = uniform_filter(rng.uniform(0, 1, shape), 3)
    return reference, np.abs(reference + 0.1 * rng.standard_normal(shape))


def test_metrics_of_known_differences() -> None:
    image = shepp_logan((64, 64))
    assert nrmse(image, 1.1 * image) == pytest.approx(0.1, rel=1e-5)
    assert psnr(image, image + 0.1) == pytest.approx(20, abs=1e-4)
    assert psnr(image, image) == float("inf")
    assert ssim(image, image) == pytest.approx(1)
    assert gmsd(image, image) == 0
    assert ssim(image, image.max() - image) < 0.1
    phase = np.exp(1j * np.linspace(0, 6, 64))
    assert ssim(image, image * phase) == pytest.approx(1)
    assert psnr(image, (image + 0.1) * phase) == pytest.approx(20, abs=1e-4)
    assert nrmse(image, image * phase) > 0.5
    counts = (200 * image).astype(np.uint8)
    assert nrmse(counts, counts // 2) == pytest.approx(0.5, rel=0.01)  # no wrap-around of unsigned differences


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


@pytest.mark.parametrize("shape", [(40, 33), (16, 15, 18)])
def test_ssim_and_its_scales_equal_their_definition(shape: tuple[int, ...]) -> None:
    def terms(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
        kernel = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
        inner = (slice(5, -5),) * a.ndim

        def local(x: np.ndarray) -> np.ndarray:
            for axis in range(x.ndim):
                x = correlate1d(x, kernel / kernel.sum(), axis)
            return x[inner]

        c1, c2 = 0.01**2, 0.03**2
        ma, mb = local(a), local(b)
        contrast = (2 * local(a * b) - 2 * ma * mb + c2) / (local(a * a) - ma**2 + local(b * b) - mb**2 + c2)
        return float(((2 * ma * mb + c1) / (ma**2 + mb**2 + c1) * contrast).mean()), float(contrast.mean())

    def halved(x: np.ndarray) -> np.ndarray:
        x = np.pad(x, [(0, n % 2) for n in x.shape], mode="edge")
        pairs = x.reshape([m for n in x.shape for m in (n // 2, 2)])
        return pairs.mean(axis=tuple(range(1, 2 * x.ndim, 2)))

    a, b = noisy_pair(shape)
    assert ssim(a, b, 1.0) == pytest.approx(terms(a, b)[0], rel=1e-10)
    large_a, large_b = (np.kron(x, np.ones((2,) * x.ndim))[(slice(1, None),) * x.ndim] for x in (a, b))
    expected = terms(large_a, large_b)[1] ** 0.4 * terms(halved(large_a), halved(large_b))[0] ** 0.6
    assert ms_ssim(large_a, large_b, 1.0, weights=(0.4, 0.6)) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("shape", [(20, 31), (9, 10, 12)])
def test_gmsd_equals_its_definition(shape: tuple[int, ...]) -> None:
    def gradient(x: np.ndarray) -> np.ndarray:
        x = np.pad(255 * x, [(0, n % 2) for n in x.shape], mode="edge")
        pairs = x.reshape([m for n in x.shape for m in (n // 2, 2)])
        small = pairs.mean(axis=tuple(range(1, 2 * x.ndim, 2)))
        squares = np.zeros_like(small)
        for axis in range(x.ndim):
            kernel = np.moveaxis(np.multiply.outer([-1.0, 0.0, 1.0], np.full((3,) * (x.ndim - 1), 3.0 ** (1 - x.ndim))), 0, axis)
            squares += correlate(small, kernel, mode="mirror") ** 2
        return np.sqrt(squares)

    a, b = noisy_pair(shape)
    x, y = gradient(a), gradient(b)
    assert gmsd(a, b, 1.0) == pytest.approx(((2 * x * y + 170) / (x**2 + y**2 + 170)).std(), rel=1e-10)


def test_metrics_equal_the_oracle(oracle: Any) -> None:
    reference = np.abs(oracle["phantom64"])
    blurred = uniform_filter(reference, 3, mode="nearest")
    assert psnr(reference, blurred, 1.0) == pytest.approx(float(oracle["metric_psnr"][0]), abs=1e-4)
    assert ssim(reference, blurred, 1.0) == pytest.approx(float(oracle["metric_ssim"][0]), abs=1e-5)
    assert gmsd(reference, blurred, 1.0) == pytest.approx(float(oracle["metric_gmsd"][0]), abs=1e-5)
    large = np.kron(reference, np.ones((3, 3)))
    assert ms_ssim(large, uniform_filter(large, 3, mode="nearest"), 1.0) == pytest.approx(float(oracle["metric_msssim"][0]), abs=1e-4)


def test_metrics_equal_those_of_tensorflow(tf: Any) -> None:
    a, b = np.stack([noisy_pair((177, 164), seed) for seed in range(2)], axis=1).astype(np.float32)
    batch = (a[..., None], b[..., None], 2.0)
    assert np.allclose(psnr(a, b, 2.0, dims=2), tf.image.psnr(*batch), rtol=1e-5)
    assert np.allclose(ssim(a, b, 2.0, dims=2), tf.image.ssim(*batch), rtol=1e-5)
    assert np.allclose(ms_ssim(a, b, 2.0, dims=2), tf.image.ssim_multiscale(*batch), rtol=1e-5)
    assert np.allclose(ms_ssim(tf.constant(a), tf.constant(b), 2.0, dims=2), tf.image.ssim_multiscale(*batch), rtol=1e-5)


@pytest.mark.parametrize("name", METRICS)
def test_a_batch_equals_its_images_one_by_one(name: str) -> None:
    metric: Callable[..., Any] = METRICS[name]
    pairs = [noisy_pair((24, 20), seed) for seed in range(6)]
    scaled = [(seed + 1.0) * np.array(pair) for seed, pair in enumerate(pairs)]  # a data range of its own for each
    references, images = (np.array([pair[i] for pair in scaled]).reshape(2, 3, 24, 20) for i in range(2))
    expected = np.reshape([metric(*pair) for pair in scaled], (2, 3))
    assert np.allclose(metric(references, images, dims=2), expected, rtol=1e-10)
    if name != "nrmse":
        ranges = np.arange(1, 7.0).reshape(2, 3)
        expected = np.reshape([metric(*pair, data_range=i + 1.0) for i, pair in enumerate(scaled)], (2, 3))
        assert np.allclose(metric(references, images, ranges, dims=2), expected, rtol=1e-10)


@pytest.mark.parametrize("name", METRICS)
def test_tensors_agree_eagerly_in_a_graph_and_compiled(tf: Any, name: str) -> None:
    metric: Callable[..., Any] = METRICS[name]
    a, b = np.stack([noisy_pair((22, 25), seed) for seed in range(3)], axis=1).astype(np.float32)
    phase = np.exp(1j * np.linspace(0, 2, 25)).astype(np.complex64)
    a, b = a * phase, b * phase
    expected = metric(a, b, dims=2)
    assert np.allclose(metric(tf.constant(a), tf.constant(b), dims=2), expected, rtol=1e-4)
    unknown = tf.TensorSpec([None, None, None], tf.complex64)
    assert np.allclose(tf.function(lambda x, y: metric(x, y, dims=2), input_signature=[unknown] * 2)(a, b), expected, rtol=1e-4)
    compiled = tf.function(lambda x, y: metric(x, y, dims=2), jit_compile=True)
    assert np.allclose(compiled(tf.constant(a), tf.constant(b)), expected, rtol=1e-4)
    assert np.allclose(metric(a, tf.constant(b), dims=2), expected, rtol=1e-4)


@pytest.mark.parametrize("name", [*METRICS, "ms_ssim"])
def test_gradients_agree_with_finite_differences(tf: Any, name: str) -> None:
    metric: Callable[..., Any] = METRICS.get(name, lambda *args, **kw: ms_ssim(*args, **kw, weights=SCALE_WEIGHTS[:2]))
    arguments = {} if name == "nrmse" else {"data_range": 1.0}
    a, b = noisy_pair((24, 22), 3)
    a[:, :7] = b[:, :7] = 0  # background, where square roots have no derivative
    step = np.random.default_rng(1).standard_normal(a.shape) * (b > 0)
    image = tf.Variable(b)
    with tf.GradientTape() as tape:
        value = metric(tf.constant(a), image, **arguments)
    gradient = tape.gradient(value, image).numpy()
    assert np.isfinite(gradient).all()
    difference = (metric(a, b + 1e-5 * step, **arguments) - metric(a, b - 1e-5 * step, **arguments)) / 2e-5
    assert np.vdot(gradient, step) == pytest.approx(difference, rel=1e-4)


def test_gradients_of_equal_images_are_finite(tf: Any) -> None:
    a = shepp_logan((32, 32))
    for metric in (lambda x: nrmse(a, x), lambda x: ssim(a, x), lambda x: gmsd(a, x), lambda x: ms_ssim(a, 1 - x, 1.0, weights=(0.5, 0.5))):
        image = tf.Variable(a)
        with tf.GradientTape() as tape:
            value = metric(image)
        assert np.isfinite(tape.gradient(value, image)).all()


def test_bad_input_is_named(tf: Any) -> None:
    image = shepp_logan((64, 64))
    with pytest.raises(ValueError, match="cannot be compared"):
        ssim(image, image[1:])
    with pytest.raises(ValueError, match="at least 11 x 11 pixels, not"):
        ssim(image[:8, :8], image[:8, :8])
    with pytest.raises(ValueError, match="two or three axes"):
        ssim(image[0], image[0])
    with pytest.raises(ValueError, match="at least 161 x 161"):
        ms_ssim(image, image)
    with pytest.raises(ValueError, match="dims 3"):
        psnr(image, image, dims=3)
    with pytest.raises(ValueError, match="complex64 and float32 cannot be compared"):
        nrmse(tf.constant(image, tf.complex64), tf.constant(image, tf.float32))
    with pytest.raises(ValueError, match="cannot be compared"):
        ssim(tf.constant(image), tf.constant(image[1:]))
