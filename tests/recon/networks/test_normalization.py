"""How images are scaled before a network sees them, against NumPy."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from recon.networks.normalization import min_max, window_scale

RANDOM = np.random.default_rng(2)


def test_minimum_and_maximum_become_0_and_1_and_come_back() -> None:
    images = (RANDOM.uniform(3, 9, (4, 10, 8, 1)) * 10.0 ** np.arange(-3, 9, 3)[:, None, None, None]).astype(np.float32)
    shift, scale = min_max(images)
    scaled = (images - shift) / scale
    np.testing.assert_allclose(np.min(scaled, (1, 2, 3)), 0, atol=1e-7)
    np.testing.assert_allclose(np.max(scaled, (1, 2, 3)), 1, atol=1e-6)
    np.testing.assert_allclose(scaled * scale + shift, images, rtol=1e-6)


def test_images_without_contrast_or_light_are_not_divided_by_0() -> None:
    constant = tf.constant([5.0, 0.0], shape=(2, 1, 1, 1)) * tf.ones((2, 6, 4, 1))
    shift, scale = min_max(constant)
    np.testing.assert_array_equal(((constant - shift) / scale).numpy(), np.zeros((2, 6, 4, 1)))
    np.testing.assert_array_equal(window_scale(tf.zeros((2, 6, 4, 5))), np.ones((2, 1, 1, 1)))


def test_of_the_mean_of_a_window_one_pixel_in_two_hundred_is_as_bright_or_brighter() -> None:
    windows = RANDOM.uniform(0, 1, (3, 40, 30, 5)).astype(np.float32)  # 1200 pixels, of which 6
    scale = np.asarray(window_scale(windows))
    assert scale.shape == (3, 1, 1, 1)
    for window, found in zip(windows, scale.ravel(), strict=True):
        mean = window.mean(-1)
        assert np.isclose(found, np.sort(mean.ravel())[-6], rtol=1e-6)
        assert (mean >= found * (1 - 1e-6)).sum() == 6
