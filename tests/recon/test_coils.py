"""Whitening, sensitivities, combination and compression of coils."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recon.coils import (
    CoilCompressor,
    apply_channels,
    combine,
    compress_svd,
    inati,
    noise_covariance,
    walsh,
    whitening_matrix,
)
from recon.espirit import espirit
from recon.fourier import fftc
from recon.phantoms import birdcage_coils, shepp_logan
from tests.recon.conftest import random_complex, relative_error


def correlated_noise(coils: int, samples: int = 20000) -> tuple[np.ndarray, np.ndarray]:
    """Noise and its true covariance."""
    mix = random_complex((coils, coils), 7, "complex128")
    return mix @ random_complex((coils, samples), 8, "complex128"), 2 * mix @ mix.conj().T


def test_covariance_of_known_noise() -> None:
    noise, truth = correlated_noise(5)
    assert relative_error(truth, noise_covariance(noise)) < 0.05
    readouts = noise.reshape(5, 100, 200).swapaxes(0, 1)
    assert np.allclose(noise_covariance(readouts), noise_covariance(noise))


@settings(max_examples=25, deadline=None)
@given(coils=st.integers(1, 12), seed=st.integers(0, 999))
def test_whitening_makes_the_covariance_the_identity(coils: int, seed: int) -> None:
    mix = random_complex((coils, coils + 2), seed, "complex128")
    covariance = mix @ mix.conj().T
    whiten = whitening_matrix(covariance)
    assert np.allclose(whiten @ covariance @ whiten.conj().T, np.eye(coils), atol=1e-7)
    assert np.allclose(np.triu(whiten, 1), 0)


@pytest.mark.parametrize("fault", ["dead", "copy", "nan"])
def test_singular_covariances_name_the_channels(fault: str) -> None:
    noise, _ = correlated_noise(6, 500)
    if fault == "dead":
        noise[4] = 0
    elif fault == "copy":
        noise[4] = 2j * noise[1]
    else:
        noise[4, 3] = np.nan
    with pytest.raises(ValueError, match=r"channel\(s\) (1, )?4 .*(dead|copy|finite)") as error:
        whitening_matrix(noise_covariance(noise))
    assert ("1, 4" in str(error.value)) == (fault == "copy")


def test_all_channels_dead_and_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="0, 1, 2"):
        whitening_matrix(np.zeros((3, 3)))
    with pytest.raises(ValueError, match="square"):
        whitening_matrix(np.zeros((3, 4)))
    with pytest.raises(ValueError, match="too few noise samples"):
        whitening_matrix(noise_covariance(random_complex((6, 4))))


def test_channels_are_mixed_along_any_axis(tf: Any) -> None:
    matrix = random_complex((3, 5))
    images = random_complex((2, 5, 6, 7))
    expected = np.einsum("oc,bcyx->boyx", matrix, images)
    for result in (apply_channels(matrix, images, -3), apply_channels(matrix, tf.constant(images), -3).numpy()):
        assert result.dtype == np.complex64
        assert relative_error(expected, result) < 1e-6
    readouts = images[0].reshape(5, 42)
    assert relative_error(matrix @ readouts, apply_channels(matrix.astype("complex128"), readouts)) < 1e-6


def test_matched_combination_inverts_the_sensitivities(tf: Any) -> None:
    truth = shepp_logan((24, 32)) * np.exp(1j * np.linspace(0, 3, 32)).astype(np.complex64)
    maps = birdcage_coils(6, (24, 32)) * np.float32(1.7)
    maps[:, :2] = 0
    truth[:2] = 0
    for convert in (np.asarray, tf.constant):
        assert np.allclose(combine(convert(maps * truth), convert(maps)), truth, atol=1e-5)
        assert np.allclose(combine(convert(maps * truth)), np.abs(truth) * 1.7, atol=1e-5)


def subspace_correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pixel-wise |a^H b| of coil vectors of unit length."""
    norms = np.linalg.norm(a, axis=0) * np.linalg.norm(b, axis=0)
    return np.abs((a.conj() * b).sum(0)) / np.maximum(norms, 1e-30)


@pytest.mark.parametrize("estimate", [walsh, inati])
def test_maps_equal_the_true_ones_up_to_a_smooth_phase(estimate: Any) -> None:
    shape = (64, 48)
    truth, coils = shepp_logan(shape), birdcage_coils(8, shape)
    noise = 1e-3 * random_complex((8, *shape))
    maps = estimate((coils * truth).astype(np.complex64) + noise)
    inside = truth > 0.1
    assert maps.dtype == np.complex64
    assert subspace_correlation(maps, coils)[inside].min() > 0.99
    assert np.allclose((np.abs(maps) ** 2).sum(0), 1, atol=1e-4)
    # Maps for encoding must be smooth: neighbouring pixels have nearly the same complex vector.
    step = np.linalg.norm(np.diff(maps, axis=-1), axis=0)[inside[:, 1:] & inside[:, :-1]]
    assert np.median(step) < 0.1
    assert step.max() < 0.6


@pytest.mark.parametrize(("estimate", "name"), [(walsh, "sens_walsh"), (inati, "sens_inati")])
def test_maps_agree_with_the_oracle(oracle: Any, estimate: Any, name: str) -> None:
    maps = estimate(oracle["phantom64_multicoil"])
    inside = np.abs(oracle["phantom64"]) > 0.05
    assert subspace_correlation(maps, oracle[name])[inside].min() > 0.999


def test_exact_walsh_agrees_with_the_iteration_and_with_the_oracle(oracle: Any) -> None:
    images = oracle["phantom64_multicoil"]
    maps, inside = walsh(images, exact=True), np.abs(oracle["phantom64"]) > 0.05
    assert subspace_correlation(maps, oracle["sens_walsh"])[inside].min() > 0.9999
    assert subspace_correlation(maps, walsh(images))[inside].min() > 0.9999


def test_exact_walsh_finds_the_eigenvectors_in_noise() -> None:
    images = random_complex((4, 9, 8), 1, "complex128")
    maps = walsh(images, 3, exact=True)
    windows = np.lib.stride_tricks.sliding_window_view(images, (3, 3), axis=(1, 2))
    for y, x in ((0, 0), (3, 4), (6, 5)):
        patch = windows[:, y, x].reshape(4, -1)
        expected = np.linalg.svd(patch)[0][:, 0]
        assert abs(np.vdot(expected, maps[:, y + 1, x + 1])) == pytest.approx(1, abs=1e-9)
    assert not walsh(np.zeros((3, 9, 8), np.complex64), exact=True).any()


def test_combination_agrees_with_the_oracle(oracle: Any) -> None:
    images = oracle["phantom64_multicoil"]
    assert relative_error(np.abs(oracle["combine_sos"]), combine(images)) < 1e-6
    assert relative_error(oracle["combine_maps"], combine(images, oracle["phantom64_sens"])) < 1e-6


@pytest.mark.parametrize("estimate", [walsh, inati])
def test_maps_of_batches_tensors_and_nothing(tf: Any, estimate: Any) -> None:
    images = random_complex((2, 3, 9, 8))
    expected = np.stack([estimate(image) for image in images])
    assert np.array_equal(estimate(images), expected)
    assert np.array_equal(estimate(tf.constant(images)).numpy(), expected)
    assert np.array_equal(tf.function(estimate)(tf.constant(images)).numpy(), expected)
    assert not estimate(np.zeros((3, 9, 8), np.complex64)).any()
    volume = random_complex((3, 4, 6, 5))
    assert np.allclose((np.abs(estimate(volume, 3, rank=3)) ** 2).sum(0), 1, atol=1e-4)
    with pytest.raises(ValueError, match="coil axis"):
        estimate(np.zeros((9, 8), np.complex64))


def test_walsh_does_not_depend_on_its_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    images = random_complex((4, 30, 20))
    whole = walsh(images)
    monkeypatch.setattr("recon.coils._SLAB_VALUES", 16 * 20 * 7)
    assert relative_error(whole, walsh(images)) < 1e-3


def test_compression_keeps_the_energy_it_promises() -> None:
    shape = (32, 32)
    images = birdcage_coils(12, shape) * shepp_logan(shape)
    fitted = CoilCompressor.fit(images, energy=0.99, coil_axis=-3)
    virtual = fitted.matrix.shape[0]
    assert 1 < virtual < 12
    kept = np.linalg.norm(fitted.apply(images, -3)) ** 2 / np.linalg.norm(images) ** 2
    assert kept == pytest.approx(fitted.energy[:virtual].sum(), rel=1e-4)
    assert fitted.energy[: virtual - 1].sum() < 0.99 <= kept
    assert np.allclose(fitted.matrix @ fitted.matrix.conj().T, np.eye(virtual), atol=1e-9)


def test_energy_is_the_least_that_is_kept() -> None:
    """Four equal coils: 0.5 is two of them exactly, a little more is three; TensorFlow MRI would keep two of both."""
    data = np.eye(4, dtype=np.complex64)
    assert [CoilCompressor.fit(data, energy=share).matrix.shape[0] for share in (0.2, 0.5, 0.51, 0.75, 1.0)] == [1, 2, 3, 3, 4]


def test_compression_equals_the_singular_value_decomposition() -> None:
    data = random_complex((6, 200))
    values = np.linalg.svd(data, compute_uv=False)
    compressed = compress_svd(data, 4)
    assert np.allclose(np.linalg.norm(compressed, axis=1), values[:4], rtol=1e-4)
    assert relative_error(data, CoilCompressor.fit(data, 6).matrix.conj().T @ compress_svd(data, 6)) < 1e-5


@pytest.mark.parametrize("arguments", [{}, {"coils": 2, "energy": 0.5}, {"coils": 7}, {"energy": 1.5}])
def test_compression_arguments_are_checked(arguments: Any) -> None:
    with pytest.raises(ValueError, match=r"energy|coils"):
        CoilCompressor.fit(random_complex((6, 20)), **arguments)


def test_compression_agrees_with_the_oracle(oracle: Any) -> None:
    fitted = CoilCompressor.fit(oracle["phantom64_multicoil"], 4, coil_axis=-3)
    assert fitted.energy[:4].sum() == pytest.approx(0.99614, abs=1e-4)


@pytest.mark.parametrize("estimate", [walsh, lambda images: espirit(fftc(images, (-2, -1)), calibration=16)])
def test_the_phase_of_maps_is_not_left_to_the_library(estimate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eigenvectors of LAPACK and of a GPU's library differ in sign."""
    images = birdcage_coils(4, (32, 32)).astype(np.complex64) * (shepp_logan((32, 32)) + 0.01).astype(np.complex64)
    expected, plain = estimate(images), np.linalg.eigh

    def turned(matrix: np.ndarray) -> Any:
        values, vectors = plain(matrix)
        return values, vectors * np.complex64(np.exp(1j))

    monkeypatch.setattr(np.linalg, "eigh", turned)
    assert relative_error(expected, estimate(images)) < 1e-5
