"""Geometric coil compression: what it keeps, how smooth it is, what it costs an image."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from recon.coils import CoilCompressor, combine
from recon.fourier import fftc, ifftc
from recon.geometric_compression import GeometricCompressor
from recon.phantoms import birdcage_coils, shepp_logan
from tests.recon.conftest import random_complex, relative_error

SHAPE, COILS = (40, 48), 12


@pytest.fixture(scope="module")
def kspace() -> np.ndarray:
    """Multi-coil k-space `[coil, y, x]`, the readout along x."""
    return fftc((birdcage_coils(COILS, SHAPE) * shepp_logan(SHAPE)).astype(np.complex64), (-2, -1))


def lost(kspace: np.ndarray, compressed: np.ndarray) -> float:
    """Share of the energy that compression loses; its rows are orthonormal."""
    return float(1 - np.linalg.norm(compressed) ** 2 / np.linalg.norm(kspace) ** 2)


def test_it_keeps_more_than_one_compression_for_all(kspace: np.ndarray) -> None:
    fitted = GeometricCompressor.fit(kspace, 4)
    compressed = fitted.apply(kspace)
    assert compressed.shape == (4, *SHAPE)
    assert compressed.dtype == np.complex64
    assert np.allclose(fitted.matrices @ fitted.matrices.conj().swapaxes(1, 2), np.eye(4), atol=1e-9)
    plain = CoilCompressor.fit(kspace, 4, coil_axis=-3).apply(kspace, -3)
    assert lost(kspace, compressed) < 0.3 * lost(kspace, plain)
    truth = combine(ifftc(kspace, (-2, -1)))
    assert relative_error(truth, combine(ifftc(compressed, (-2, -1)))) < 0.3 * relative_error(truth, combine(ifftc(plain, (-2, -1))))


def test_without_a_window_every_position_has_its_singular_vectors(kspace: np.ndarray) -> None:
    fitted = GeometricCompressor.fit(kspace, 3, window=1)
    hybrid, found = ifftc(kspace, -1), ifftc(fitted.apply(kspace), -1)
    for position in range(SHAPE[1]):
        values = np.linalg.svd(hybrid[:, :, position], compute_uv=False)
        assert np.linalg.norm(found[:, :, position]) == pytest.approx(np.linalg.norm(values[:3]), rel=1e-3, abs=1e-4)
        share = (values[:3] ** 2).sum() / (values**2).sum()
        assert fitted.energy[position] == pytest.approx(share, abs=1e-3) or values[0] < 1e-3


def test_the_virtual_coils_are_smooth_along_the_readout(kspace: np.ndarray) -> None:
    matrices = GeometricCompressor.fit(kspace, 4).matrices[8:40]  # where the object is
    steps = np.linalg.norm(np.diff(matrices, axis=0), axis=(1, 2))
    # No rotation brings neighbours closer: their overlap is Hermitian and positive.
    overlap = matrices[1:] @ matrices[:-1].conj().swapaxes(1, 2)
    assert np.allclose(overlap, overlap.conj().swapaxes(1, 2), atol=1e-9)
    assert np.linalg.eigvalsh(overlap).min() > 0
    assert np.median(steps) < 0.3


def test_few_lines_fit_and_every_frame_and_readout_is_compressed_alike(tf: Any, kspace: np.ndarray) -> None:
    fitted = GeometricCompressor.fit(kspace[:, 14:26], 5)
    assert lost(kspace, fitted.apply(kspace)) < 1.5 * lost(kspace, GeometricCompressor.fit(kspace, 5).apply(kspace))
    expected = fitted.apply(kspace)
    frames = np.stack([kspace, 2 * kspace])
    assert relative_error(np.stack([expected, 2 * expected]), fitted.apply(frames)) < 1e-6
    assert relative_error(expected[:, 7], fitted.apply(kspace[:, 7], -2)) < 1e-6
    for axis, data in ((-3, frames), (-2, kspace[:, 7])):
        for function in (fitted.apply, tf.function(fitted.apply)):
            assert relative_error(fitted.apply(data, axis), function(tf.constant(data), axis).numpy()) < 1e-5


def test_all_coils_are_kept_unchanged_but_for_a_rotation(kspace: np.ndarray) -> None:
    every = GeometricCompressor.fit(kspace, COILS)
    assert relative_error(combine(ifftc(kspace, (-2, -1))), combine(ifftc(every.apply(kspace), (-2, -1)))) < 1e-5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"coils": 0}, "coils must"),
        ({"coils": 13}, "coils must"),
        ({"coils": 2, "window": 4}, "window"),
        ({"coils": 2, "coil_axis": -1}, "readout"),
        ({"coils": 2, "coil_axis": 3}, "readout"),
    ],
)
def test_arguments_are_checked(kspace: np.ndarray, arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GeometricCompressor.fit(kspace, **arguments)


def test_data_are_checked(kspace: np.ndarray) -> None:
    with pytest.raises(ValueError, match="finite"):
        GeometricCompressor.fit(np.full((2, 3, 4), np.nan), 1)
    with pytest.raises(ValueError, match="12 coils"):
        GeometricCompressor.fit(kspace, 2).apply(random_complex((12, 40, 47)))
