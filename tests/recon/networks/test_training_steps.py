"""Steps of training: Adam against NumPy, functions that XLA compiles meanwhile."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from recon.networks.training.steps import FlatAdam, Quickest, compile_meanwhile


def variables() -> list[tf.Variable]:
    """Two of different shapes."""
    return [tf.Variable([[1.0, -2.0], [0.5, 3.0]]), tf.Variable([0.1, 0.2, -0.3])]


def flat(arrays: list[tf.Variable]) -> np.ndarray:
    return np.concatenate([np.asarray(array).ravel() for array in arrays])


def adams(start: np.ndarray, gradients: np.ndarray, rates: list[float]) -> np.ndarray:
    """Kingma and Ba's algorithm 1, gradients of norms above 1 scaled to 1."""
    x, mean, square = start.astype(np.float64), np.zeros(start.size), np.zeros(start.size)
    for step, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        gradient = gradient / max(1, np.linalg.norm(gradient))
        mean, square = 0.9 * mean + 0.1 * gradient, 0.999 * square + 0.001 * gradient**2
        x = x - rate * (mean / (1 - 0.9**step)) / (np.sqrt(square / (1 - 0.999**step)) + 1e-7)
    return x


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_steps_are_adams(scale: float) -> None:
    random = np.random.default_rng(0)
    trained = variables()
    start, adam, rates = flat(trained), FlatAdam(trained, scale), [0.1, 0.05, 0.2, 0.1]
    gradients = np.stack([size * random.standard_normal(7) for size in (0.05, 3.0, 0.2, 10.0)])
    for gradient, rate in zip(gradients, rates, strict=True):
        parts = [scale * gradient[:4].reshape(2, 2), scale * gradient[4:]]
        adam.apply(adam.flat([tf.constant(part, tf.float32) for part in parts]), tf.constant(rate))
    np.testing.assert_allclose(flat(trained), adams(start, gradients, rates), rtol=1e-4)


def test_a_gradient_that_is_not_finite_changes_nothing_but_the_scale() -> None:
    trained = variables()
    adam = FlatAdam(trained, 8.0)
    adam.apply(tf.ones(7), tf.constant(0.1))
    before = flat(trained)
    for broken in (np.nan, np.inf):
        adam.apply(tf.constant([1.0] * 6 + [broken], tf.float32), tf.constant(0.1))
    np.testing.assert_array_equal(flat(trained), before)
    assert float(adam.scale) == 2.0
    adam.apply(tf.ones(7), tf.constant(0.1))
    assert (flat(trained) < before).all()


def test_it_finds_a_minimum_in_half_precision_gradients() -> None:
    x = tf.Variable([4.0, -3.0])
    adam = FlatAdam([x], 256.0)
    for _ in range(200):
        with tf.GradientTape() as tape:
            loss = adam.scale * tf.reduce_sum((x - [1.0, 2.0]) ** 2)
        adam.apply(adam.flat([tf.cast(tape.gradient(loss, x), tf.float16)]), tf.constant(0.1))
    np.testing.assert_allclose(x, [1, 2], atol=0.05)


def test_a_compiled_function_takes_over_with_the_same_result(capsys: pytest.CaptureFixture[str]) -> None:
    function, x = Quickest("cosine", lambda x: (tf.cos(x), tf.reduce_sum(x))), tf.linspace(0.0, 1.0, 100)
    plain = function(x)
    function.choose(x)
    assert capsys.readouterr().out == ""  # nothing is timed before something is compiled
    compile_meanwhile((function, [x])).join(60)
    assert "cosine: compiled in" in capsys.readouterr().out
    function.choose(x)
    assert "by XLA" in capsys.readouterr().out
    function.choose(x)
    assert capsys.readouterr().out == ""  # and once only
    for found, expected in zip(function(x), plain, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_what_xla_does_not_compile_stays_a_graph(capsys: pytest.CaptureFixture[str]) -> None:
    def function(x: tf.Tensor) -> tf.Tensor:
        return tf.numpy_function(np.sort, [x], tf.float32)

    sort, double, x = Quickest("sort", function), Quickest("double", lambda x: 2 * x), tf.constant([3.0, 1.0, 2.0])
    compile_meanwhile((sort, [x]), (double, [x])).join(60)
    printed = capsys.readouterr().out
    assert "sort: XLA does not compile it" in printed
    assert "double: compiled in" in printed
    sort.choose(x)
    np.testing.assert_array_equal(sort(x), [1, 2, 3])
