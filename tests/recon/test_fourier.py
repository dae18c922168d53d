"""Centred Fourier transforms against the sum that defines them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recon.fourier import fftc, ifftc
from tests.recon.conftest import random_complex, relative_error


def direct(x: np.ndarray, axis: int) -> np.ndarray:
    """Centred DFT along one axis by its matrix."""
    n = x.shape[axis]
    index = np.arange(n) - n // 2
    matrix = np.exp(-2j * np.pi * np.outer(index, index) / n) / np.sqrt(n)
    return np.moveaxis(np.tensordot(matrix, x.astype(complex), (1, axis)), 0, axis)


@settings(max_examples=30, deadline=None)
@given(shape=st.lists(st.integers(1, 9), min_size=1, max_size=4), data=st.data())
def test_equals_the_direct_sum_for_any_lengths_and_axes(shape: list[int], data: Any) -> None:
    axes = data.draw(st.lists(st.integers(-len(shape), -1), min_size=1, unique=True))
    x = random_complex(tuple(shape), dtype="complex128")
    expected = x
    for axis in axes:
        expected = direct(expected, axis)
    assert np.allclose(fftc(x, axes), expected, atol=1e-12)
    assert np.allclose(ifftc(fftc(x, axes), axes), x, atol=1e-12)


@pytest.mark.parametrize(("given", "kept"), [("complex64", "complex64"), ("float32", "complex64"), ("float64", "complex128")])
def test_keeps_the_precision(given: str, kept: str) -> None:
    assert fftc(np.ones((4, 6), given), -1).dtype == kept
    assert ifftc(np.ones((4, 6), given), (-2, -1)).dtype == kept


def test_does_not_change_its_input() -> None:
    x = random_complex((3, 8))
    before = x.copy()
    fftc(x, -1)
    ifftc(x, (0, 1))
    assert np.array_equal(x, before)


@pytest.mark.parametrize("axes", [-1, 0, (-2, -1), (0, -1), (1, 0, 2)])
def test_tensors_give_the_same_eagerly_and_in_a_graph(tf: Any, axes: Any) -> None:
    x = random_complex((4, 5, 7))
    for function in (fftc, ifftc):
        eager = function(tf.constant(x), axes)
        graph = tf.function(lambda values, f=function: f(values, axes))(tf.constant(x))
        assert relative_error(function(x, axes), eager.numpy()) < 1e-6
        assert relative_error(function(x, axes), graph.numpy()) < 1e-6
