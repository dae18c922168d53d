"""Finite differences against `numpy.diff`; the properties that total variation and its generalisation rely on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from recon.operators.differences import FiniteDifference, Gradient, SymmetrisedGradient
from tests.recon.conftest import random_complex

X = random_complex((3, 7, 5), 1, "complex128")


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_differences_are_those_of_numpy(axis: int) -> None:
    inside = np.diff(X, axis=axis)
    edge = np.zeros_like(np.take(X, [0], axis))
    wrapped = np.take(X, [0], axis) - np.take(X, [-1], axis)
    expected: dict[tuple[Any, bool], np.ndarray] = {
        ("none", False): inside,
        ("none", True): inside,
        ("neumann", False): np.concatenate([inside, edge], axis),
        ("neumann", True): np.concatenate([edge, inside], axis),
        ("periodic", False): np.concatenate([inside, wrapped], axis),
        ("periodic", True): np.concatenate([wrapped, inside], axis),
    }
    for (boundary, backward), value in expected.items():
        assert np.allclose(FiniteDifference(axis, boundary, backward)(X), value, atol=1e-14)


def test_gradient_of_a_ramp_is_its_slope_per_unit_of_length() -> None:
    ramp = 6.0 * np.arange(4)[:, None, None] + 1.0 * np.arange(5)[:, None] - 2.0 * np.arange(6)
    gradient = Gradient(3, spacing=(3, 1, 0.5))(ramp)
    assert gradient.shape == (3, 4, 5, 6)
    assert np.allclose(gradient[:, :-1, :-1, :-1].reshape(3, -1).T, [2, 1, -4])
    assert not gradient[0, -1].any()
    assert not gradient[2, ..., -1].any()


def test_symmetrised_gradient_has_the_frobenius_norm_of_the_symmetric_jacobian() -> None:
    field = random_complex((3, 6, 5, 4), 2, "complex128")
    jacobian = np.stack([[FiniteDifference(axis, "neumann", backward=True)(part) for axis in (-3, -2, -1)] for part in field])
    symmetric = (jacobian + jacobian.swapaxes(0, 1)) / 2
    result = SymmetrisedGradient(3)(field)
    assert np.allclose(np.linalg.norm(result, axis=0), np.linalg.norm(symmetric.reshape(9, 6, 5, 4), axis=0))
    assert np.allclose(result[4], np.sqrt(2) * symmetric[0, 2])


def test_symmetrised_gradient_vanishes_for_constants_and_rotations() -> None:
    y, x = np.mgrid[:6, :7].astype(float)
    assert not SymmetrisedGradient()(np.ones((2, 6, 7))).any()
    rotation = SymmetrisedGradient()(np.stack([x, -y]))
    assert np.abs(rotation[:, 1:, 1:]).max() < 1e-14
    assert np.abs(SymmetrisedGradient()(np.stack([x, y]))[2]).max() > 1


@pytest.mark.parametrize("boundary", ["neumann", "periodic"])
def test_a_graph_may_leave_sizes_open(tf: Any, boundary: Any) -> None:
    gradient, symmetrised = Gradient(2, boundary), SymmetrisedGradient(2, boundary)
    graph = tf.function(lambda x: symmetrised(gradient(x)), input_signature=[tf.TensorSpec([None, None, None], tf.complex128)])
    assert np.allclose(graph(tf.constant(X)), symmetrised(gradient(X)), atol=1e-12)
    adjoint = tf.function(lambda x: gradient.H(gradient(x)), input_signature=[tf.TensorSpec([None, None, None], tf.complex128)])
    assert np.allclose(adjoint(tf.constant(X)), gradient.gram(X), atol=1e-12)


def test_norm_of_the_gradient_stays_below_its_bound() -> None:
    """|gradient|^2 <= 4 per axis (Chambolle 2004), the bound of step sizes."""
    x = random_complex((9, 8), 3, "complex128")
    for _ in range(200):
        x = Gradient().gram(x)
        norm = np.linalg.norm(x)
        x = x / norm
    assert 7 < norm <= 8


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FiniteDifference(boundary="zero"), "boundary must be"),  # type: ignore[arg-type]
        (lambda: FiniteDifference()(np.ones((4, 1))), "has one sample"),
        (lambda: Gradient(boundary="none"), "keep the size"),
        (lambda: Gradient(3, spacing=(1, 2)), "3 positive numbers"),
        (lambda: Gradient(2, spacing=(1, 0)), "2 positive numbers"),
        (lambda: SymmetrisedGradient()(np.ones((3, 4, 4))), "expected 2 components at axis -3"),
        (lambda: SymmetrisedGradient().H(np.ones((2, 4, 4))), "expected 3 components at axis -3"),
        (lambda: Gradient().H(np.ones(4)), "expected 2 components"),
    ],
)
def test_errors_name_the_argument(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
