"""The algebra of operators is that of their matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from recon.operators import Encoding, Fourier, LinearOperator, Nufft
from recon.operators.diagonal import Diagonal, Identity, Mask
from recon.operators.differences import FiniteDifference
from recon.operators.linear import Sum
from recon.operators.phase import PhaseConstrained
from recon.operators.stack import Stack
from recon.operators.temporal import TemporalFourier
from recon.solvers import conjugate_gradient
from tests.recon.conftest import random_complex, random_trajectory, relative_error

SHAPE = (4, 5)


def matrix(operator: LinearOperator) -> np.ndarray:
    """The matrix of an operator on images, column by column."""
    unit = np.eye(20, dtype="complex128").reshape(20, *SHAPE)
    return operator(unit).reshape(20, -1).T


A, B = Fourier(2), Diagonal(random_complex(SHAPE, 1, "complex128"))
D = FiniteDifference(-1, "periodic")
MA, MB, MD = matrix(A), matrix(B), matrix(D)


@pytest.mark.parametrize(
    ("operator", "expected"),
    [
        (A @ B, MA @ MB),
        (A @ B @ D, MA @ MB @ MD),
        (A + B - D, MA + MB - MD),
        (-B, -MB),
        (2j * B, 2j * MB),
        (B * 3, 3 * MB),
        (np.float64(0.5) * B, 0.5 * MB),
        (np.complex64(0.5j) * B, 0.5j * MB),
        (np.array(2.0) * B, 2 * MB),
        ((2j * A @ B).H, (2j * MA @ MB).conj().T),
        ((A + 1j * B).gram, (MA + 1j * MB).conj().T @ (MA + 1j * MB)),
        ((B @ D).gram, MD.T @ MB.conj().T @ MB @ MD),
        (D.gram + 0.1 * Identity(), MD.T @ MD + 0.1 * np.eye(20)),
        (Stack([A, 2 * D], SHAPE), np.concatenate([MA, 2 * MD])),
        (Stack([A, D, B], SHAPE).gram, MA.conj().T @ MA + MD.T @ MD + MB.conj().T @ MB),
    ],
)
def test_matrices(operator: LinearOperator, expected: np.ndarray) -> None:
    assert np.allclose(matrix(operator), expected, atol=1e-12)


def test_scaling_keeps_the_precision() -> None:
    x = random_complex(SHAPE, 2)
    for scale in (2.5, np.float64(2.5), 1 + 2j, np.complex128(1 + 2j)):
        assert (scale * Fourier(2))(x).dtype == np.complex64


def test_scale_can_be_trained(tf: Any) -> None:
    scale = tf.Variable(2.0)
    x = tf.constant(random_complex(SHAPE, 2))
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(tf.abs((scale * Fourier(2))(x)) ** 2)
    # d (s^2 |x|^2) / ds = 2 s |x|^2
    assert float(tape.gradient(value, scale)) == pytest.approx(4 * float(np.sum(np.abs(x.numpy()) ** 2)), rel=1e-5)
    complex_scale = tf.constant(1 + 2j, tf.complex64)
    assert relative_error((1 - 2j) * x.numpy(), ((complex_scale * Identity()).H)(x).numpy()) < 1e-6


def test_diagonal_can_be_trained(tf: Any) -> None:
    values = tf.Variable(random_complex(SHAPE, 3))
    x = random_complex(SHAPE, 2)
    assert relative_error(values.numpy() * x, Diagonal(values)(tf.constant(x)).numpy()) < 1e-6
    assert relative_error(values.numpy().conj() * x, Diagonal(values).H(tf.constant(x)).numpy()) < 1e-6


def test_stack_gives_its_parts_back(tf: Any) -> None:
    x = random_complex((2, 3, *SHAPE), 2)
    stack = Stack([A, FiniteDifference(-2)], SHAPE)
    for values in (x, tf.constant(x)):
        first, second = stack.split(stack(values))
        assert np.allclose(first, A(x), atol=1e-6)
        assert np.array_equal(second, np.diff(x, axis=-2))
    graph = tf.function(stack, input_signature=[tf.TensorSpec([None, *SHAPE], tf.complex64)])
    assert relative_error(stack(x[0]), graph(tf.constant(x[0])).numpy()) < 1e-6


def test_regularised_least_squares_reads_like_its_formula() -> None:
    """Solve (A^H A + mu D^H D) x = A^H y; the same with the stack [A; sqrt(mu) D]."""
    y = random_complex(SHAPE, 5, "complex128")
    encode = Mask(np.arange(5) != 1) @ A
    direct = np.linalg.solve(matrix(encode.gram + 0.3 * D.gram), encode.H(y).ravel())
    stacked = Stack([encode, np.sqrt(0.3) * D], SHAPE)
    data = np.concatenate([y.ravel(), np.zeros(20)])
    assert relative_error(direct, conjugate_gradient(stacked.gram, stacked.H(data), 40, 1e-12).ravel()) < 1e-8


def test_known_phase_halves_the_unknowns() -> None:
    """Half of k-space suffices for a real image: its other half is the conjugate."""
    phase = np.angle(random_complex((8, 8), 1))
    image = np.random.default_rng(2).standard_normal((8, 8))
    half = Mask((np.arange(8) < 5)[:, None]) @ Fourier(2)
    encode = half @ PhaseConstrained(phase)
    data = half(image * np.exp(1j * phase))
    assert np.allclose(data, encode(image))
    constrained = conjugate_gradient(encode.gram, encode.H(data), 200, 1e-12)
    assert constrained.dtype == np.float64
    assert relative_error(image, constrained) < 0.5 * relative_error(image * np.exp(1j * phase), half.H(data))


def test_temporal_spectrum_of_a_periodic_series() -> None:
    frames, turns = 16, 3
    series = np.exp(2j * np.pi * turns * np.arange(frames) / frames)[:, None, None] * np.ones(SHAPE)
    spectrum = TemporalFourier()(series)
    assert np.allclose(np.abs(spectrum[frames // 2 + turns]), 4)
    assert np.allclose(np.delete(spectrum, frames // 2 + turns, 0), 0, atol=1e-12)


def test_composition_uses_the_fast_gram_of_the_outer_operator() -> None:
    class Outer(LinearOperator):
        """Knows its Gram operator only."""

        def forward(self, x: Any) -> Any:
            raise AssertionError("the Gram operator is known")

        adjoint = forward

        @property
        def gram(self) -> LinearOperator:
            return 2 * Identity()

    assert np.allclose(matrix((Outer() @ B).gram), 2 * MB.conj().T @ MB)


def test_composed_encoding_equals_the_encoding() -> None:
    maps, points = random_complex((3, *SHAPE), 4, "complex128"), random_trajectory(30, 2, dtype="float64")
    encoding = Encoding(maps, points)
    composed = Nufft(points, SHAPE) @ encoding.sensitivity
    assert relative_error(matrix(encoding.gram), matrix(composed.gram)) < 1e-10


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: np.ones(3) * A, "use Diagonal"),
        (lambda: Sum(), "at least one"),
        (lambda: Stack([], SHAPE), "at least one"),
        (lambda: Stack([A], SHAPE)(np.ones((5, 4))), "domain of shape"),
        (lambda: Stack([A], SHAPE).H(np.ones(19)), "range of shape"),
        (lambda: Stack([A], SHAPE)(np.ones(5)), "domain of shape"),
        (lambda: Mask(np.zeros(3)), "keeps nothing"),
        (lambda: Mask(np.array([0, 0.5])), "only 0 and 1"),
        (lambda: Mask(np.array([1, np.nan])), "only 0 and 1"),
        (lambda: Diagonal(np.array([1, np.nan])), "must be finite"),
        (lambda: Diagonal(np.ones((3, 4)))(np.ones((2, 4))), r"values of shape \(3, 4\) does not fit"),
        (lambda: Diagonal(np.ones((3, 4))).H(np.ones(4)), r"values of shape \(3, 4\) does not fit"),
        (lambda: Mask(np.ones((3, 1)))(np.ones((1, 4))), "mask of shape"),
        (lambda: PhaseConstrained(np.ones((3, 4)))(np.ones((4, 3))), "phase of shape"),
        (lambda: PhaseConstrained(np.ones((3, 4))).H(np.ones((4, 3))), "phase of shape"),
        (lambda: PhaseConstrained(np.ones(3) * 1j), "angles in rad"),
        (lambda: PhaseConstrained(np.ones(3))(np.ones(3, complex)), "are real"),
    ],
)
def test_errors_name_the_argument(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_scaling_by_a_tensor_of_many_numbers_is_refused(tf: Any) -> None:
    with pytest.raises(ValueError, match="use Diagonal"):
        A * tf.ones(3)
