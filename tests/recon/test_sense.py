"""Conjugate gradients, gridding, self-calibration and CG-SENSE against known truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
import pytest

from recon import device, nufft, sense
from recon.coils import combine
from recon.density import pipe_weights
from recon.metrics import nrmse
from recon.operators import Encoding
from recon.phantoms import birdcage_coils, shepp_logan
from recon.sense import cg_sense, gridding, self_calibrated_maps
from recon.sense_compiled import compiled_sense
from recon.solvers import conjugate_gradient
from recon.trajectory import from_acquisition_units, radial_trajectory
from tests.recon.conftest import random_complex, relative_error


@dataclass(frozen=True)
class Scan:
    """A simulated radial scan."""

    truth: np.ndarray
    maps: np.ndarray
    trajectory: np.ndarray
    kspace: np.ndarray


def simulate(spokes: int, size: int = 64, coils: int = 8, noise: float = 0.0) -> Scan:
    """Golden-angle scan of the head phantom, computed in double precision."""
    shape = (size, size)
    truth = shepp_logan(shape).astype(np.complex64)
    maps = birdcage_coils(coils, shape)
    trajectory = radial_trajectory(size, spokes, ordering="golden").reshape(-1, 2)
    kspace = nufft.Nufft(trajectory, shape, 1e-9, "complex128").forward((maps * truth).astype("complex128"))
    return Scan(truth, maps, trajectory, (kspace + noise * random_complex(kspace.shape)).astype(np.complex64))


@pytest.fixture(scope="module")
def scan() -> Scan:
    return simulate(24)


# --- conjugate gradients ----------------------------------------------------------------------------------------------


def hermitian(size: int, condition: float = 50.0) -> np.ndarray:
    unitary = np.linalg.qr(random_complex((size, size), 1, "complex128"))[0]
    return (unitary * np.linspace(1, condition, size)) @ unitary.conj().T


@pytest.mark.parametrize("dtype", ["complex128", "float64"])
def test_conjugate_gradients_solve_the_system(tf: Any, dtype: str) -> None:
    matrix = hermitian(12) if dtype == "complex128" else hermitian(12).real + 30 * np.eye(12)
    rhs = random_complex((12,), 2, "complex128").astype(dtype) if dtype == "complex128" else np.arange(12.0)
    expected = np.linalg.solve(matrix, rhs)
    assert relative_error(expected, conjugate_gradient(lambda x: matrix @ x, rhs, 12)) < 1e-9
    start = expected + 0.1
    assert relative_error(expected, conjugate_gradient(lambda x: matrix @ x, rhs, 12, initial=start)) < 1e-9

    def apply(x: Any) -> Any:
        return tf.linalg.matvec(matrix, x)

    solve = tf.function(lambda b: conjugate_gradient(apply, b, 12))
    assert relative_error(expected, solve(tf.constant(rhs)).numpy()) < 1e-9
    assert relative_error(expected, conjugate_gradient(apply, tf.constant(rhs), 12).numpy()) < 1e-9


def test_conjugate_gradients_stop_at_the_tolerance_and_in_the_null_space(tf: Any) -> None:
    calls: list[int] = []

    def apply(x: np.ndarray) -> np.ndarray:
        calls.append(1)
        return 3 * x

    assert np.allclose(conjugate_gradient(apply, np.ones(5), 50, 1e-6), 1 / 3)
    assert len(calls) == 1
    for zeros in (np.zeros(5), tf.zeros(5)):
        assert not np.asarray(conjugate_gradient(lambda x: x, zeros, 5)).any()
    assert not np.asarray(conjugate_gradient(lambda x: 0 * x, np.ones(5), 5)).any()
    assert not np.asarray(conjugate_gradient(lambda x: 0 * x, tf.ones(5), 5)).any()


def test_conjugate_gradients_can_be_differentiated(tf: Any) -> None:
    matrix = hermitian(6).real + 40 * np.eye(6)
    rhs = tf.constant(np.arange(1.0, 7))
    with tf.GradientTape() as tape:
        tape.watch(rhs)
        solution = conjugate_gradient(lambda x: tf.linalg.matvec(matrix, x), rhs, 10, 1e-12)
        total = tf.reduce_sum(solution)
    assert np.allclose(tape.gradient(total, rhs).numpy(), np.linalg.solve(matrix.T, np.ones(6)), rtol=1e-5)


# --- reconstruction ---------------------------------------------------------------------------------------------------


def test_cg_sense_converges_to_the_least_squares_solution() -> None:
    size, coils = 12, 4
    rng = np.random.default_rng(0)
    trajectory = rng.uniform(-np.pi, np.pi, (90, 2))
    maps = birdcage_coils(coils, (size, size)).astype("complex128")
    kspace = random_complex((coils, 90), 1, "complex128")
    weights = rng.uniform(0.2, 1, 90)
    grid = np.stack(np.meshgrid(*[np.arange(size) - size // 2] * 2, indexing="ij"), -1).reshape(-1, 2)
    fourier = np.exp(-1j * trajectory @ grid.T) / size
    matrix = np.concatenate([fourier * maps[coil].ravel() for coil in range(coils)])
    root = np.tile(np.sqrt(weights), coils)
    damping = 0.1 * weights.sum() / size**2
    normal = (root[:, None] * matrix).conj().T @ (root[:, None] * matrix) + damping * np.eye(size**2)
    expected = np.linalg.solve(normal, (root[:, None] * matrix).conj().T @ (root * kspace.ravel())).reshape(size, size)
    ours = cg_sense(kspace, trajectory, maps, 60, 1e-10, 0.1, weights, nufft_tolerance=1e-10)
    assert relative_error(expected, ours) < 1e-7


def test_cg_sense_recovers_an_undersampled_phantom(scan: Scan) -> None:
    weights = pipe_weights(scan.trajectory, scan.truth.shape)
    zero_filled = gridding(scan.kspace, scan.trajectory, weights, scan.truth.shape, scan.maps)
    plain = cg_sense(scan.kspace, scan.trajectory, scan.maps, 20)
    weighted = cg_sense(scan.kspace, scan.trajectory, scan.maps, 8, weights=weights)
    # What remains is the ringing of a sharp object and the corners of k-space, which radial sampling leaves out.
    assert nrmse(scan.truth, zero_filled) > 0.4
    assert nrmse(scan.truth, plain) < 0.35
    assert nrmse(scan.truth, weighted) < 0.33
    # The amplitude is the object's own.
    brain = np.isclose(scan.truth, 0.2)
    assert weighted[brain].real.mean() == pytest.approx(0.2, rel=0.05)


def test_convolution_and_nufft_give_the_same_image(scan: Scan) -> None:
    weights = pipe_weights(scan.trajectory, scan.truth.shape)
    images = [
        cg_sense(scan.kspace, scan.trajectory, scan.maps, 6, weights=weights, nufft_tolerance=1e-5, toeplitz=toeplitz)
        for toeplitz in (True, False, None)
    ]
    assert relative_error(images[0], images[1]) < 1e-3
    assert np.array_equal(images[2], images[0])  # 0.75 samples a pixel: the convolution costs less
    few = slice(1000)
    chosen, forced = (cg_sense(scan.kspace[:, few], scan.trajectory[few], scan.maps, 2, toeplitz=toeplitz) for toeplitz in (None, False))
    assert np.array_equal(chosen, forced)


def test_regularisation_keeps_noise_down() -> None:
    noisy = simulate(16, noise=0.05)
    free = cg_sense(noisy.kspace, noisy.trajectory, noisy.maps, 30)
    damped = cg_sense(noisy.kspace, noisy.trajectory, noisy.maps, 30, regularisation=0.03)
    assert nrmse(noisy.truth, damped) < nrmse(noisy.truth, free)


def test_frames_are_reconstructed_one_by_one(scan: Scan) -> None:
    frames = np.stack([scan.kspace, 2 * scan.kspace])
    one = cg_sense(scan.kspace, scan.trajectory, scan.maps, 3)
    both = cg_sense(frames, np.stack([scan.trajectory] * 2), np.stack([scan.maps] * 2), 3)
    assert np.array_equal(both[0], one)
    assert relative_error(2 * one, both[1]) < 1e-5
    weights = pipe_weights(scan.trajectory, scan.truth.shape)
    images = gridding(frames, np.stack([scan.trajectory] * 2), np.stack([weights] * 2), scan.truth.shape)
    assert np.array_equal(images[0], gridding(scan.kspace, scan.trajectory, weights, scan.truth.shape))


def test_tensors_give_the_same_images(tf: Any, scan: Scan) -> None:
    kspace, shape = tf.constant(scan.kspace), scan.truth.shape
    weights = pipe_weights(scan.trajectory, shape)

    def images(values: Any, maps: Any) -> Any:
        return (
            gridding(values, scan.trajectory, weights, shape),
            gridding(values, scan.trajectory, weights, shape, maps),
            cg_sense(values, scan.trajectory, maps, 4, weights=weights, regularisation=0.01),
            self_calibrated_maps(values, scan.trajectory, shape, weights),
        )

    expected = images(scan.kspace, scan.maps)
    for result in (images(kspace, tf.constant(scan.maps)), tf.function(images)(kspace, tf.constant(scan.maps))):
        for tensor, array in zip(result, expected, strict=True):
            assert relative_error(array, tensor.numpy()) < 1e-4
    frames = tf.stack([kspace, 2 * kspace])
    batched = gridding(frames, np.stack([scan.trajectory] * 2), np.stack([weights] * 2), shape)
    assert relative_error(2 * expected[0], batched[1].numpy()) < 1e-5
    assert cg_sense(frames, scan.trajectory, tf.constant(scan.maps), 2).shape == (2, *shape)


@pytest.mark.parametrize("method", ["inati", "walsh"])
def test_self_calibrated_maps_combine_like_the_true_ones(method: Any) -> None:
    full = simulate(100, noise=1e-3)
    maps = self_calibrated_maps(full.kspace, full.trajectory, full.truth.shape, method=method)
    inside = full.truth.real > 0.1
    correlation = np.abs((maps.conj() * full.maps).sum(0))[inside]
    assert np.median(correlation) > 0.999
    assert correlation.min() > 0.95
    ours, ideal = (np.abs(cg_sense(full.kspace, full.trajectory, chosen, 15)) for chosen in (maps, full.maps))
    assert nrmse(full.truth, ours) < 1.1 * nrmse(full.truth, ideal)


def test_gridding_finds_weights_itself_and_combines(scan: Scan) -> None:
    shape = scan.truth.shape
    weights = pipe_weights(scan.trajectory, shape)
    images = gridding(scan.kspace, scan.trajectory, None, shape)
    assert np.array_equal(images, gridding(scan.kspace, scan.trajectory, weights, shape))
    combined = gridding(scan.kspace, scan.trajectory, weights, shape, scan.maps)
    assert np.array_equal(combined, combine(images, scan.maps))


def test_misfitting_shapes_are_explained(scan: Scan) -> None:
    with pytest.raises(ValueError, match="flatten"):
        gridding(scan.kspace, scan.trajectory.reshape(24, -1, 2), None, (64, 64))
    with pytest.raises(ValueError, match="do not fit"):
        gridding(scan.kspace, scan.trajectory, np.ones(5), (64, 64))
    with pytest.raises(ValueError, match="coils"):
        cg_sense(scan.kspace, scan.trajectory, scan.maps[:3])
    with pytest.raises(ValueError, match="bandwidth"):
        self_calibrated_maps(scan.kspace[:, :4], scan.trajectory[:4], (64, 64))
    with pytest.raises(ValueError, match="inati"):
        self_calibrated_maps(scan.kspace, scan.trajectory, (64, 64), method="guess")  # type: ignore[arg-type]


def test_cg_sense_matches_the_oracle(oracle: Any) -> None:
    trajectory = oracle["radial33"].reshape(-1, 2)
    weights = 1 / oracle["density_pipe"].ravel()
    truth = oracle["phantom64"]
    maps = oracle["phantom64_sens"]
    for iterations in (5, 10, 20):
        expected = oracle[f"radial33_cg{iterations}"]
        ours = cg_sense(oracle["radial33_kspace"], trajectory, maps, iterations, weights=weights)
        scale = np.vdot(ours, expected) / np.vdot(ours, ours)
        assert relative_error(expected, scale * ours) < 0.05
        assert _scaled_nrmse(truth, ours) < 1.02 * _scaled_nrmse(truth, expected)


def _scaled_nrmse(truth: np.ndarray, image: np.ndarray) -> float:
    return nrmse(truth, image * (np.vdot(image, truth) / np.vdot(image, image)))


def test_a_real_time_frame_comes_out_in_place_and_at_scale(shared: Any) -> None:
    with h5py.File(shared / "data" / "realtime_radial_golden.h5") as file:
        acquisitions = file["dataset/data"][5 : 5 + 65]
    truth = np.load(shared / "data" / "realtime_radial_golden_truth.npz")
    heads = acquisitions["head"]
    samples, coils = int(heads["number_of_samples"][0]), int(heads["active_channels"][0])
    kspace = np.stack([data.view(np.complex64).reshape(coils, samples) for data in acquisitions["data"]], 1)
    points = np.stack([traj.reshape(samples, 2) for traj in acquisitions["traj"]])
    trajectory = from_acquisition_units(points.reshape(-1, 2), 128)
    image = cg_sense(kspace.reshape(coils, -1), trajectory, truth["coil_maps"], 8, regularisation=0.01)
    # Five frames of 13 spokes in one image: compare with their mean (the file's k-space is not orthonormal).
    frames = float(truth["frame_scale"]) * truth["frames"][:5].astype(np.float32).mean(0)
    inside = truth["mask"].astype(bool)
    image = np.abs(image) * inside / 128
    assert np.corrcoef(image[inside], frames[inside])[0, 1] > 0.95
    assert np.vdot(frames, image) / np.vdot(frames, frames) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("tolerance", [0.0, 0.2])
def test_the_compiled_program_gives_the_same_image_and_gradient(tf: Any, scan: Scan, tolerance: float) -> None:
    shape = scan.truth.shape
    encoding = Encoding(tf.constant(scan.maps), scan.trajectory, toeplitz=True)
    rhs = encoding.adjoint(tf.constant(scan.kspace))
    damping, gram = 0.01 * encoding.mean_diagonal, encoding.gram

    def plain(values: Any) -> Any:
        return conjugate_gradient(lambda image: gram(image) + damping * image, values, 4, tolerance)

    def compiled(values: Any) -> Any:
        return compiled_sense(values, scan.maps, encoding.toeplitz, damping, 4, tolerance)

    expected = cg_sense(scan.kspace, scan.trajectory, scan.maps, 4, tolerance, regularisation=0.01, toeplitz=True)
    for result in (compiled(rhs), tf.function(compiled)(rhs)):
        assert result.shape == shape
        assert relative_error(expected, result.numpy()) < 1e-4
    gradients = []
    for solve in (plain, compiled):
        with tf.GradientTape() as tape:
            tape.watch(rhs)
            loss = tf.reduce_sum(tf.abs(solve(rhs)) ** 2)
        gradients.append(tape.gradient(loss, rhs).numpy())
    assert relative_error(*gradients) < 1e-3


def test_too_little_gpu_memory_means_the_cpu(scan: Scan, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    expected = cg_sense(scan.kspace, scan.trajectory, scan.maps, 2)

    def full(*_: Any) -> Any:
        raise MemoryError("out of memory")

    monkeypatch.setattr(device, "_gpu", True)
    monkeypatch.setattr(device, "put", lambda array: array)
    monkeypatch.setattr(sense, "_solve_on_gpu", full)
    assert np.array_equal(cg_sense(scan.kspace, scan.trajectory, scan.maps, 2), expected)
    assert "using the CPU" in caplog.text
