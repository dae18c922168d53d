"""Every linear operator: dot test, Gram operator, NumPy equals tensors eagerly and in a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from recon.operators import Encoding, Fourier, LinearOperator, Nufft, Sensitivity, ToeplitzGram
from recon.phantoms import birdcage_coils
from tests.recon.conftest import random_complex, random_trajectory, relative_error

SHAPE, VOLUME, COILS, SAMPLES = (12, 10), (6, 5, 4), 3, 150
POINTS, POINTS_3D = random_trajectory(SAMPLES, 2), random_trajectory(SAMPLES, 3)
WEIGHTS = np.random.default_rng(3).uniform(0.1, 1, SAMPLES).astype(np.float32)
MASK = np.random.default_rng(4).uniform(size=SHAPE) < 0.4
SETS = random_complex((2, COILS, *SHAPE), 7, "complex128")
MAPS, MAPS_3D = random_complex((COILS, *SHAPE), 5, "complex128"), random_complex((COILS, *VOLUME), 6, "complex128")

Make = Callable[[str], LinearOperator]
OPERATORS: dict[str, tuple[Make, tuple[int, ...], tuple[int, ...]]] = {
    "fourier": (lambda d: Fourier(2), SHAPE, SHAPE),
    "fourier_mask": (lambda d: Fourier(2, MASK), SHAPE, SHAPE),
    "nufft": (lambda d: Nufft(POINTS, SHAPE), SHAPE, (SAMPLES,)),
    "nufft_3d": (lambda d: Nufft(POINTS_3D, VOLUME), VOLUME, (SAMPLES,)),
    "toeplitz": (lambda d: ToeplitzGram(POINTS, SHAPE, WEIGHTS), SHAPE, SHAPE),
    "toeplitz_3d": (lambda d: ToeplitzGram(POINTS_3D, VOLUME), VOLUME, VOLUME),
    "sensitivity": (lambda d: Sensitivity(MAPS.astype(d)), SHAPE, (COILS, *SHAPE)),
    "sensitivity_sets": (lambda d: Sensitivity(SETS.astype(d), sets=True), (2, *SHAPE), (COILS, *SHAPE)),
    "composition": (lambda d: Fourier(2, MASK) @ Sensitivity(MAPS.astype(d)), SHAPE, (COILS, *SHAPE)),
    "encoding_cartesian": (lambda d: Encoding(MAPS.astype(d), mask=MASK), SHAPE, (COILS, *SHAPE)),
    "encoding": (lambda d: Encoding(MAPS.astype(d), POINTS), SHAPE, (COILS, SAMPLES)),
    "encoding_weighted": (lambda d: Encoding(MAPS.astype(d), POINTS, weights=WEIGHTS), SHAPE, (COILS, SAMPLES)),
    "encoding_3d": (lambda d: Encoding(MAPS_3D.astype(d), POINTS_3D), VOLUME, (COILS, SAMPLES)),
    "encoding_sets_cartesian": (lambda d: Encoding(SETS.astype(d), mask=MASK, sets=True), (2, *SHAPE), (COILS, *SHAPE)),
    "encoding_sets": (lambda d: Encoding(SETS.astype(d), POINTS, weights=WEIGHTS, sets=True), (2, *SHAPE), (COILS, SAMPLES)),
    "encoding_sets_toeplitz": (lambda d: Encoding(SETS.astype(d), POINTS, toeplitz=True, sets=True), (2, *SHAPE), (COILS, SAMPLES)),
    "encoding_toeplitz": (lambda d: Encoding(MAPS.astype(d), POINTS, weights=WEIGHTS, toeplitz=True), SHAPE, (COILS, SAMPLES)),
}


@pytest.mark.parametrize(("dtype", "bound"), [("complex64", 1e-5), ("complex128", 1e-12)])
@pytest.mark.parametrize("name", OPERATORS)
def test_adjoint_is_the_conjugate_transpose(name: str, dtype: str, bound: float) -> None:
    make, domain, range_ = OPERATORS[name]
    operator = make(dtype)
    x, y = random_complex((2, *domain), 1, dtype), random_complex((2, *range_), 2, dtype)
    image, back = operator(x), operator.H(y)
    assert image.shape == y.shape
    assert back.shape == x.shape
    assert image.dtype == back.dtype == dtype
    assert abs(np.vdot(y, image) - np.vdot(back, x)) / (np.linalg.norm(image) * np.linalg.norm(y)) < bound
    assert operator.H.H is operator


@pytest.mark.parametrize("name", OPERATORS)
def test_gram_is_adjoint_after_forward(name: str) -> None:
    make, domain, _ = OPERATORS[name]
    operator = make("complex64")
    x = random_complex((2, *domain), 1)
    # The convolution is exact where the NUFFT has its tolerance of 1e-3.
    assert relative_error(operator.adjoint(operator(x)), operator.gram(x)) < (3e-3 if "toeplitz" in name else 1e-5)
    assert relative_error(operator.gram(x), operator.gram.H(x)) == 0


@pytest.mark.parametrize("name", OPERATORS)
def test_tensors_give_the_same_eagerly_and_in_a_graph(tf: Any, name: str) -> None:
    make, domain, range_ = OPERATORS[name]
    operator = make("complex64")
    for function, shape in ((operator, domain), (operator.H, range_), (operator.gram, domain)):
        x = random_complex((2, *shape), 1)
        expected = function(x)
        assert relative_error(expected, function(tf.constant(x)).numpy()) < 1e-5
        assert relative_error(expected, tf.function(function)(tf.constant(x)).numpy()) < 1e-5


def test_toeplitz_equals_the_nufft_in_double_precision() -> None:
    x = random_complex(SHAPE, 1, "complex128")
    exact = Nufft(POINTS, SHAPE, 1e-11)
    expected = exact.adjoint(WEIGHTS * exact(x))
    assert relative_error(expected, ToeplitzGram(POINTS, SHAPE, WEIGHTS, 1e-11)(x)) < 1e-9


def test_gradients_flow_through_the_encoding(tf: Any) -> None:
    encoding = Encoding(tf.constant(MAPS.astype("complex64")), POINTS, weights=WEIGHTS)
    x, y = tf.constant(random_complex(SHAPE, 1)), random_complex((COILS, SAMPLES), 2)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_sum(tf.abs(encoding(x) - y) ** 2)
    # d|Ex - y|^2 = 2 E^H (Ex - y)
    expected = 2 * encoding.adjoint(encoding(x) - y)
    assert relative_error(expected.numpy(), tape.gradient(loss, x).numpy()) < 1e-5


def test_mean_diagonal_is_that_of_the_gram_matrix() -> None:
    maps = birdcage_coils(4, SHAPE).astype("complex128")
    for encoding in (
        Encoding(maps, POINTS, tolerance=1e-9),
        Encoding(maps, POINTS, weights=WEIGHTS, tolerance=1e-9),
        Encoding(maps, mask=MASK),
        Encoding(maps),
    ):
        unit = np.eye(SHAPE[0] * SHAPE[1], dtype="complex128").reshape(-1, *SHAPE)
        matrix = encoding.gram(unit).reshape(len(unit), -1)
        assert np.trace(matrix).real / len(unit) == pytest.approx(encoding.mean_diagonal, rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"trajectory": POINTS, "mask": MASK}, "either"),
        ({"weights": WEIGHTS}, "need a trajectory"),
        ({"toeplitz": True}, "need a trajectory"),
        ({"trajectory": POINTS, "weights": WEIGHTS[1:]}, "do not fit"),
    ],
)
def test_contradictory_encodings_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Encoding(MAPS, **arguments)
