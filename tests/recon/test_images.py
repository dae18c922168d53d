"""Cropping, scaling, gradients and isotropic k-space filters, against direct definitions; NumPy and tensors alike."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from recon.fourier import fftc
from recon.frequency_filters import atan_filter, crop_kspace, filter_kspace, hamming, hann
from recon.image_gradients import gradient_magnitude, image_gradients, total_variation
from recon.images import central_crop, resize_with_crop_or_pad, scale_by_min_max
from tests.recon.conftest import random_complex, random_trajectory

PLANE = np.array([[1, 3, 6, 2], [4, 1, 5, 7], [2, 5, 1, 4]], float)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=3))
def test_the_origin_stays_the_origin(sizes: list[tuple[int, int]]) -> None:
    old, new = zip(*sizes, strict=True)
    array = random_complex((2, *old))
    result = resize_with_crop_or_pad(array, new)
    assert result.shape == (2, *new)
    assert result.dtype == array.dtype
    for index in np.ndindex(*new):
        source = tuple(i - n // 2 + m // 2 for i, n, m in zip(index, new, old, strict=True))
        inside = all(0 <= i < m for i, m in zip(source, old, strict=True))
        assert np.array_equal(result[(..., *index)], array[(..., *source)] if inside else [0, 0])


def test_padding_k_space_interpolates_the_image() -> None:
    image = random_complex((5, 6), dtype="complex128")
    fine = fftc(resize_with_crop_or_pad(fftc(image, (0, 1)), (15, 18)), (0, 1))
    coarse = fftc(fftc(image, (0, 1)), (0, 1))
    # Every third sample from the centre is one of the coarse image.
    assert np.allclose(fine[7 % 3 :: 3, 9 % 3 :: 3] * 3, coarse)


def test_resizing_of_tensors_and_kinds_of_padding(tf: Any) -> None:
    array = np.arange(12.0).reshape(3, 4)
    assert np.array_equal(resize_with_crop_or_pad(array, (-1, 8), "reflect"), np.pad(array, ((0, 0), (2, 2)), "reflect"))
    for mode in ("constant", "reflect", "symmetric"):
        expected = resize_with_crop_or_pad(array, (5, 3), mode)
        assert np.array_equal(resize_with_crop_or_pad(tf.constant(array), (5, 3), mode), expected)
        graph = tf.function(
            lambda x, m=mode: resize_with_crop_or_pad(x, (-1, 5, 3), m), input_signature=[tf.TensorSpec([None, 3, 4], tf.float64)]
        )
        assert np.array_equal(graph(array[None]), expected[None])
    unknown = tf.function(lambda x: central_crop(x, (2, 2)), input_signature=[tf.TensorSpec([None, 4], tf.float64)])
    with pytest.raises(ValueError, match="is not known"):
        unknown(array)


def test_bad_sizes_are_named() -> None:
    array = np.zeros((3, 4))
    with pytest.raises(ValueError, match="9 samples wanted from 4"):
        central_crop(array, (9,))
    with pytest.raises(ValueError, match="expected lengths of at least 1"):
        central_crop(array, (0,))
    with pytest.raises(ValueError, match="for an array of shape"):
        resize_with_crop_or_pad(array, (1, 1, 1))
    with pytest.raises(ValueError, match="more than the mirrored image"):
        resize_with_crop_or_pad(array, (11,), "reflect")
    with pytest.raises(ValueError, match="mode 'wrap'"):
        resize_with_crop_or_pad(array, (11,), "wrap")  # type: ignore[arg-type]


def test_scaling_maps_the_extremes(tf: Any) -> None:
    values = np.random.default_rng(0).standard_normal((3, 8, 9))
    scaled = scale_by_min_max(values, -1, 3, dims=2)
    assert np.allclose(scaled.min((1, 2)), -1)
    assert np.allclose(scaled.max((1, 2)), 3)
    assert np.allclose(scaled[1], (values[1] - values[1].min()) / np.ptp(values[1]) * 4 - 1)
    waves = random_complex((3, 8, 9))
    waves[0, 0, 0] = 0
    turned = scale_by_min_max(waves, 1, 2)
    assert turned.dtype == np.complex64
    assert np.abs(turned).min() == pytest.approx(1)
    assert np.abs(turned).max() == pytest.approx(2)
    assert np.allclose(np.angle(turned), np.angle(waves), atol=1e-5)
    assert np.array_equal(scale_by_min_max(np.full((4, 4), 7.0)), np.zeros((4, 4)))
    for array in (values, waves):
        assert np.allclose(scale_by_min_max(tf.constant(array), 0, 2, dims=2), scale_by_min_max(array, 0, 2, dims=2), atol=1e-6)
    with pytest.raises(ValueError, match="range 1 to 1"):
        scale_by_min_max(values, 1, 1)
    with pytest.raises(ValueError, match="range -1 to 1"):
        scale_by_min_max(waves, -1, 1)
    with pytest.raises(ValueError, match="floating point"):
        scale_by_min_max(np.arange(3))


@pytest.mark.parametrize(
    ("method", "down", "right"),
    [
        ("prewitt", [[0, 0, 0, 0], [5, -2, -1, -8], [0, 0, 0, 0]], [[0, 7, 11, 0], [0, 5, 4, 0], [0, 1, 11, 0]]),
        ("sobel", [[0, 0, 0, 0], [6, 0, -6, -6], [0, 0, 0, 0]], [[0, 12, 10, 0], [0, 6, 10, 0], [0, 0, 10, 0]]),
        ("scharr", [[0, 0, 0, 0], [22, 8, -38, -10], [0, 0, 0, 0]], [[0, 56, 26, 0], [0, 22, 54, 0], [0, -4, 26, 0]]),
    ],
)
def test_gradients_of_tensorflow_mri(method: Any, down: Any, right: Any) -> None:
    assert np.array_equal(image_gradients(PLANE, method=method), np.stack([down, right], -1))


def test_gradients_equal_scipys_and_slopes(tf: Any) -> None:
    image = random_complex((2, 5, 6, 7), dtype="complex128")
    expected = np.stack([[ndimage.sobel(one, axis, mode="mirror") for one in image] for axis in range(3)], -1)
    assert np.allclose(image_gradients(image, dims=3), expected)
    assert np.allclose(image_gradients(tf.constant(image), dims=3), expected)
    ramp = 3.0 * np.arange(6)[:, None] - 4.0 * np.arange(7)
    for method in ("prewitt", "sobel", "scharr"):
        assert np.allclose(image_gradients(ramp, method=method, normalise=True)[1:-1, 1:-1], [3, -4])
        assert np.allclose(gradient_magnitude(ramp, method=method, normalise=True)[1:-1, 1:-1], 5)
    flat = tf.Variable(tf.zeros((4, 4)))
    with tf.GradientTape() as tape:
        length = tf.reduce_sum(gradient_magnitude(flat))
    assert np.array_equal(tape.gradient(length, flat), np.zeros((4, 4)))
    with pytest.raises(ValueError, match="'roberts': expected one of prewitt, sobel, scharr"):
        image_gradients(ramp, method="roberts")  # type: ignore[arg-type]


def test_total_variation_sums_the_steps(tf: Any) -> None:
    assert total_variation(PLANE) == np.abs(np.diff(PLANE, axis=0)).sum() + np.abs(np.diff(PLANE, axis=1)).sum()
    movie = random_complex((4, 5, 6), dtype="complex128")
    assert np.allclose(total_variation(movie, 0), np.abs(np.diff(movie, axis=0)).sum(0))
    expected = np.abs(np.diff(movie, axis=1)).sum((1, 2)) + np.abs(np.diff(movie, axis=2)).sum((1, 2))
    assert np.allclose(total_variation(movie, (-2, -1)), expected)
    assert total_variation(movie, (1, 2), keepdims=True).shape == (4, 1, 1)
    assert np.allclose(total_variation(tf.constant(movie), (-2, -1)), expected)
    with pytest.raises(ValueError, match="axes"):
        total_variation(PLANE, 2)


def test_filters_have_the_known_values(tf: Any) -> None:
    k = np.array([0, np.pi / 2, np.pi, 3.2, -np.pi / 2])
    assert np.allclose(hann(k), [1, 0.5, 0, 0, 0.5])
    assert np.allclose(hamming(k), [1, 0.54, 0.08, 0, 0.54])
    assert np.allclose(
        atan_filter(k, cutoff=np.pi / 2), [0.5 + np.arctan(100) / np.pi, 0.5, 0.5 - np.arctan(100) / np.pi, 0, 0.5], atol=4e-3
    )
    for function in (hann, hamming, atan_filter):
        assert np.allclose(function(tf.constant(k)), function(k))


def test_filtering_of_cartesian_k_space(tf: Any) -> None:
    kspace = random_complex((3, 8, 9))
    filtered = filter_kspace(kspace, filter_kind="hann")
    assert filtered.dtype == np.complex64
    assert np.allclose(filtered[:, 4, 4], kspace[:, 4, 4])
    radius = np.hypot(2 * np.pi * -2 / 8, 2 * np.pi * 3 / 9)
    assert np.allclose(filtered[:, 2, 7], kspace[:, 2, 7] * (0.5 + 0.5 * np.cos(radius)), atol=1e-6)
    assert np.array_equal(filtered[:, 0, 0], np.zeros(3))  # the corners lie beyond pi
    assert np.allclose(filter_kspace(tf.constant(kspace), filter_kind="hann"), filtered)
    line = filter_kspace(kspace, filter_kind=partial(atan_filter, cutoff=1.0), dims=1)
    assert np.allclose(line, kspace * (0.5 + np.arctan(100 * (1 - np.abs(np.arange(9) - 4) * 2 * np.pi / 9)) / np.pi), atol=1e-6)
    with pytest.raises(ValueError, match="'box': expected one of hamming, hann, atan"):
        filter_kspace(kspace, filter_kind="box")  # type: ignore[arg-type]


@pytest.mark.parametrize("batch", [(), (2,)])
def test_filtering_of_other_trajectories(tf: Any, batch: tuple[int, ...]) -> None:
    trajectory = np.stack([random_trajectory(20, 2, seed) for seed in range(2)])[0 if not batch else slice(None)]
    weights = hamming(np.linalg.norm(trajectory, axis=-1))
    for coils, axis in (((), weights), ((3,), weights[..., None, :])):
        kspace = random_complex((*batch, *coils, 20))
        assert np.allclose(filter_kspace(kspace, trajectory), kspace * axis, atol=1e-6)
        assert np.allclose(filter_kspace(tf.constant(kspace), trajectory), kspace * axis, atol=1e-6)
    with pytest.raises(ValueError, match="does not fit a trajectory"):
        filter_kspace(kspace[..., :-1], trajectory)


def test_cropping_keeps_the_centre_or_the_rest(tf: Any) -> None:
    trajectory, kspace = random_trajectory(50, 3), random_complex((4, 50))
    radius = np.linalg.norm(trajectory, axis=-1)
    inner, points = crop_kspace(kspace, trajectory, 2.0)
    assert np.array_equal(inner, kspace[:, radius < 2])
    assert np.array_equal(points, trajectory[radius < 2])
    outer, _ = crop_kspace(kspace, trajectory, 2.0, "high_pass")
    assert inner.shape[1] + outer.shape[1] == 50
    tensors = crop_kspace(tf.constant(kspace), tf.constant(trajectory), 2.0)
    assert np.array_equal(tensors[0], inner)
    assert np.array_equal(tensors[1], points)
    with pytest.raises(ValueError, match="keeps none of the samples"):
        crop_kspace(kspace, trajectory, 0.0)
    with pytest.raises(ValueError, match="views and samples flattened"):
        crop_kspace(kspace, trajectory.reshape(5, 10, 3), 1.0)
