"""Eigen channels against a covariance computed on its own."""

import numpy as np
import pytest

from recon.eigen_channels import eigen_channels, kept_channels
from tests.recon.conftest import random_complex


def test_eigen_channels_are_uncorrelated_and_sorted():
    mixing = random_complex((5, 5), 1, "complex128")
    data = np.tensordot(mixing, random_complex((5, 20, 30), 2, "complex128"), 1) + 3
    matrix, values = eigen_channels(data)
    np.testing.assert_allclose(matrix @ matrix.conj().T, np.eye(5), atol=1e-12)
    channels = np.tensordot(matrix, data, 1).reshape(5, -1)
    channels -= channels.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(channels @ channels.conj().T, np.diag(values), atol=1e-8 * values[0])
    assert (np.diff(values) <= 0).all()


def test_few_points_still_give_a_basis():
    matrix, values = eigen_channels(random_complex((6, 3)))
    np.testing.assert_allclose(matrix @ matrix.conj().T, np.eye(6), atol=1e-5)
    assert values.shape == (6,)
    assert np.count_nonzero(values > 1e-6 * values[0]) == 2  # three points, the mean taken out


def test_values_that_are_not_finite_are_refused():
    data = random_complex((2, 9))
    data[1, 3] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        eigen_channels(data)


@pytest.mark.parametrize(("threshold", "kept"), [(-1, 4), (0, 4), (0.01, 3), (0.2, 2), (0.9, 1)])
def test_weak_channels_are_left_out(threshold, kept):
    assert kept_channels(np.array([10.0, 5.0, 1.0, 0.01]), threshold) == kept
