"""Training data: the same as sampling and gridding them, noise included; reproducible; within bounds."""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from recon.density import pipe_weights
from recon.networks.training.coils import random_coils
from recon.networks.training.draws import Draws
from recon.networks.training.gridded_frames import GriddedFrames
from recon.networks.training.moving_objects import moving_objects
from recon.networks.training.tasks import CoilClip
from recon.nufft import Nufft
from recon.trajectory import radial_trajectory

SHAPE = (24, 20)


def frames_and_trajectory() -> tuple[GriddedFrames, np.ndarray, np.ndarray]:
    """One trajectory of few spokes."""
    trajectory = radial_trajectory(24, 7, ordering="tiny").reshape(-1, 2)
    weights = pipe_weights(trajectory, SHAPE)
    return GriddedFrames([[(trajectory, weights)]], SHAPE), trajectory, weights


def test_gridding_by_convolution_is_gridding_of_samples() -> None:
    gridded, trajectory, weights = frames_and_trajectory()
    random = np.random.default_rng(0)
    images = (random.standard_normal((1, 2, 3, *SHAPE)) + 1j * random.standard_normal((1, 2, 3, *SHAPE))).astype(np.complex64)
    plan = Nufft(trajectory, SHAPE, 1e-6, np.complex128)
    expected = plan.adjoint(weights * plan.forward(images.reshape(-1, *SHAPE).astype(np.complex128)))
    found = gridded(Draws([1, 2]), tf.constant(images), tf.zeros([1])).numpy()
    np.testing.assert_allclose(found.reshape(-1, *SHAPE), expected, atol=2e-5 * np.abs(expected).max())


def test_noise_has_the_covariance_of_gridded_noise() -> None:
    """Variance of every pixel, and covariance with one, from many draws against those of the operator, faded with distance."""
    gridded, trajectory, weights = frames_and_trajectory()
    draws = 2000
    noise = gridded(Draws([3, 4]), tf.zeros([draws // 10, 5, 2, *SHAPE], tf.complex64), 0.5 * tf.ones([draws // 10])).numpy()
    noise = noise.reshape(draws, *SHAPE)
    plan = Nufft(trajectory, SHAPE, 1e-6, np.complex128)
    impulse = np.zeros((1, *SHAPE), np.complex128)
    impulse[0, 12, 10] = 1
    expected = plan.adjoint(weights**2 * plan.forward(impulse))[0]
    expected *= 0.25 / expected[12, 10].real
    distance = [1 - np.abs(np.arange(n) - middle) / n for n, middle in zip(SHAPE, (12, 10), strict=True)]
    expected *= np.multiply.outer(*distance)
    found = (noise * noise[:, 12, 10].conj()[:, None, None]).mean(0)
    peak = expected[12, 10].real
    assert np.abs(found - expected).max() < 6 * peak / np.sqrt(draws)
    variance = (np.abs(noise) ** 2).mean(0)
    np.testing.assert_allclose(variance, peak, rtol=8 / np.sqrt(draws))


def test_objects_are_reproducible_bounded_and_move() -> None:
    anatomy = np.random.default_rng(0).uniform(size=(3, 16, 16)).astype(np.float32)
    make = tf.function(lambda step: moving_objects(Draws(tf.stack([7, step])), 3, 5, (32, 32), anatomy, ellipses=4))
    first, again, other = make(tf.constant(1)).numpy(), make(tf.constant(1)).numpy(), make(tf.constant(2)).numpy()
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1
    size = np.abs(first)
    assert np.isfinite(first).all()
    np.testing.assert_allclose(size.max((1, 2, 3)), 1, rtol=1e-5)
    assert (np.abs(size[:, 1:] - size[:, :-1]).max((2, 3)) > 0.01).any(1).all()


def test_an_object_of_two_frames_can_be_cut() -> None:
    """With every series cut, most jump within the series; the frames before and after the jump differ much."""
    cut = np.abs(moving_objects(Draws([1, 1]), 8, 6, (24, 24), cuts=1.0, ellipses=6).numpy())
    smooth = np.abs(moving_objects(Draws([1, 1]), 8, 6, (24, 24), cuts=0.0, ellipses=6).numpy())
    steps = [np.abs(np.diff(series, axis=1)).mean((2, 3)).max(1) for series in (cut, smooth)]
    assert np.median(steps[0]) > 1.5 * np.median(steps[1])


def test_coils_have_unit_root_sum_of_squares_on_average() -> None:
    maps = random_coils(Draws([5, 6]), 2, 6, (16, 18)).numpy()
    size = np.sqrt((np.abs(maps) ** 2).sum(1))
    np.testing.assert_allclose(size.mean((1, 2)), 1, rtol=1e-5)
    assert size.min() > 0.2


def test_clips_of_coils_are_what_the_stream_makes_of_them() -> None:
    """Scaled by the brightness of the clip, virtual coils with the strongest first; sampled fully, without noise, the target itself."""
    full = np.stack(np.meshgrid(*[2 * np.pi * (np.arange(n) - n // 2) / n for n in SHAPE], indexing="ij"), -1).reshape(-1, 2)
    frames = GriddedFrames([[(full.astype(np.float32), np.ones(len(full), np.float32))]], SHAPE)
    inputs, target, start = (array.numpy() for array in CoilClip(frames, (1e-6, 2e-6), None, 4, 3)(tf.constant([1, 2]), 2))
    assert inputs.shape == (2, 4, *SHAPE, 6)
    assert target.shape == start.shape == (2, 4, *SHAPE, 1)
    np.testing.assert_allclose(start, target, atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(inputs, axis=-1), start[..., 0], rtol=1e-4, atol=1e-6)
    energy = (inputs[..., :3] ** 2 + inputs[..., 3:] ** 2).sum((1, 2, 3))
    assert (np.diff(energy, axis=1) <= 0).all()
    brightest = np.sort(start.mean(1).reshape(2, -1), axis=1)[:, -3]  # 0.5 % of 480 pixels is three
    np.testing.assert_allclose(brightest, 1, rtol=1e-4)
