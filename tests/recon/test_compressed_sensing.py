"""Reconstructions: TensorFlow MRI's results, closed forms, optimality, undersampled phantoms, real data."""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np
import pytest

from recon import least_squares as linear
from recon.compressed_sensing import (
    compressed_sensing,
    encode,
    grasp,
    l1_wavelet,
    largest_eigenvalue,
    locally_low_rank,
    total_variation,
)
from recon.density import pipe_weights
from recon.espirit import espirit
from recon.fourier import fftc, ifftc
from recon.functionals.indicators import Box
from recon.functionals.norms import L1, SquaredL2
from recon.functionals.tgv import TGV
from recon.functionals.total_variation import TotalVariation
from recon.functionals.wavelet import L1Wavelet
from recon.least_squares import adjoint, least_squares, sense
from recon.low_rank import low_rank_plus_sparse
from recon.metrics import nrmse
from recon.operators.cartesian_gram import CartesianGram
from recon.operators.encoding import Encoding
from recon.operators.frames import Frames
from recon.phantoms import birdcage_coils, moving_heart, shepp_logan
from recon.sense import cg_sense, gridding
from recon.trajectory import radial_trajectory
from tests.recon import tfmri_small
from tests.recon.conftest import random_complex, relative_error

SIZE, COILS = 48, 6


def mask_of(shape: tuple[int, int], seed: int = 0, fraction: float = 0.3, centre: int = 10) -> np.ndarray:
    """Random samples, denser in the middle."""
    y, x = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    density = np.exp(-3 * (y**2 + x**2))
    mask = np.random.default_rng(seed).uniform(size=shape) < density * fraction / density.mean()
    mask[tuple(slice(n // 2 - centre // 2, n // 2 + centre // 2) for n in shape)] = True
    return mask


@pytest.fixture(scope="module")
def scan() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Truth, maps, mask and undersampled noisy k-space."""
    truth = shepp_logan((SIZE, SIZE)).astype(np.complex64)
    maps = birdcage_coils(COILS, (SIZE, SIZE))
    mask = mask_of((SIZE, SIZE))
    kspace = (fftc(maps * truth, (-2, -1)) + 0.005 * random_complex(maps.shape)) * mask
    return truth, maps, mask, kspace.astype(np.complex64)


@pytest.fixture(scope="module")
def series() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Truth `[frame, y, x]`, maps, mask `[frame, y, x]` and k-space of a beating heart."""
    frames = np.stack([moving_heart((SIZE, SIZE), 60.0 * n) for n in range(10)]).astype(np.complex64)
    maps = birdcage_coils(COILS, (SIZE, SIZE))
    # Each sample is taken in one frame, those in the middle in all.
    owner = np.random.default_rng(0).integers(10, size=(SIZE, SIZE))
    owner[SIZE // 2 - 4 : SIZE // 2 + 4, SIZE // 2 - 4 : SIZE // 2 + 4] = -1
    mask = np.stack([(owner == n) | (owner == -1) for n in range(10)])
    kspace = fftc(maps * frames[:, None], (-2, -1)) + 0.005 * random_complex((10, *maps.shape))
    return frames, maps, mask, (kspace * mask[:, None]).astype(np.complex64)


# --- parity with TensorFlow MRI ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["TOTAL_VARIATION", "L1_HAAR"])
def test_small_problems_of_tensorflow_mri(tf: Any, name: str) -> None:
    functional = TotalVariation(0.5, isotropic=False) if name == "TOTAL_VARIATION" else L1Wavelet((8, 8), 0.5, "haar", 2)
    encoding = encode(np.ones((1, 8, 8), "complex128"), mask=tfmri_small.MASK)
    kspace = (8 * fftc(tfmri_small.PHANTOM.astype("complex128"), (-2, -1)) * tfmri_small.MASK)[None]

    def run(samples: Any) -> Any:
        return compressed_sensing(encoding, samples, functional, 50, "admm", 20, penalty=1.0, lipschitz=1.0)

    expected = getattr(tfmri_small, name)
    assert np.abs(run(kspace) - expected).max() < 1e-4
    assert np.abs(tf.function(run)(tf.constant(kspace)).numpy() - expected).max() < 1e-4


def scaled_error(reference: np.ndarray, image: np.ndarray) -> float:
    return nrmse(reference, image * (np.vdot(image, reference) / np.vdot(image, image)))


def test_gridding_equals_the_oracle(oracle: Any) -> None:
    maps, trajectory = oracle["phantom64_sens"], oracle["radial33"].reshape(-1, 2)
    image = adjoint(oracle["radial33_kspace"], maps, trajectory, weights=1 / oracle["density_pipe"].ravel())
    assert relative_error(oracle["radial33_adjoint"], image) < 1e-2
    assert scaled_error(oracle["phantom64"], image) == pytest.approx(0.336, abs=0.005)


def test_sense_of_every_second_line_finds_the_phantom(oracle: Any) -> None:
    mask = np.zeros((64, 64), bool)
    mask[::2] = True
    kspace, maps = (oracle[name].astype(np.complex128) for name in ("cartesian_kspace", "phantom64_sens"))
    assert scaled_error(oracle["phantom64"], least_squares(kspace * mask, maps, mask=mask, iterations=60)) < 1e-5


def test_oracles_conjugate_gradients_and_total_variation(oracle: Any) -> None:
    maps, trajectory = oracle["phantom64_sens"], oracle["radial33"].reshape(-1, 2)
    weights, kspace = 1 / oracle["density_pipe"].ravel(), oracle["radial33_kspace"]
    for iterations in (5, 10, 20):
        image = least_squares(kspace, maps, trajectory, weights=weights, iterations=iterations, toeplitz=True)
        assert relative_error(oracle[f"radial33_cg{iterations}"], image) < 1e-2  # the NUFFT's own tolerance is 1e-3
    # 1/2 |W^1/2 (A x - y)|^2 + 0.01 TV(x), anisotropic, 20 ADMM steps of penalty 1.
    encoding = Encoding(maps, trajectory, weights=weights, toeplitz=True, tolerance=1e-6)
    functional = TotalVariation(1e-2, isotropic=False)
    image = compressed_sensing(encoding, kspace, functional, 20, inner_iterations=20, penalty=1.0)
    assert relative_error(oracle["radial33_tv_admm20_1e-2"], image) < 1e-3


# --- the objective ----------------------------------------------------------------------------------------------------


def test_all_solvers_find_the_same_image() -> None:
    maps, mask = birdcage_coils(3, (12, 14)).astype("complex128"), mask_of((12, 14), centre=6)
    kspace = random_complex(maps.shape, 1, "complex128") * mask
    encoding = encode(maps, mask=mask)
    tv, l1 = TotalVariation(0.2, iterations=30), L1(0.2)
    for functional, solvers in ((tv, ("admm", "primal_dual", "fista")), (l1, ("fista", "admm", "primal_dual"))):
        images = [compressed_sensing(encoding, kspace, functional, 100, solver) for solver in solvers]  # type: ignore[arg-type]
        assert relative_error(images[0], images[1]) < 5e-3
        assert relative_error(images[0], images[2]) < 5e-3
        assert np.array_equal(compressed_sensing(encoding, kspace, functional, 100), images[0])

        def objective(x: np.ndarray, functional: Any = functional) -> float:
            return 0.5 * float(np.linalg.norm(encoding(x) - kspace) ** 2) + float(functional(x))

        best = objective(images[0])
        assert all(best <= objective(images[0] + 1e-2 * random_complex((12, 14), n, "complex128")) for n in range(4))
    quadratic = compressed_sensing(encoding, kspace, SquaredL2(0.1), 300)
    exact = least_squares(kspace, maps, mask=mask, iterations=100, regularisation=0.1 / encoding.mean_diagonal)  # type: ignore[attr-defined]
    assert relative_error(exact, quadratic) < 1e-6
    assert compressed_sensing(encoding, kspace, Box(0.0, 0.5), 50).real.max() <= 0.5


def test_images_get_better_with_every_prior(scan: Any) -> None:
    truth, maps, mask, kspace = scan
    zero_filled, least = adjoint(kspace, maps, mask=mask), least_squares(kspace, maps, mask=mask, iterations=30)
    wavelet = l1_wavelet(kspace, maps, mask=mask, weight=0.002, level=3)
    variation = total_variation(kspace, maps, mask=mask, weight=0.002)
    general = compressed_sensing(encode(maps, mask=mask), kspace, TGV(0.002 * float(np.abs(zero_filled).max())), 100)
    errors = [nrmse(truth, image) for image in (zero_filled, least, wavelet, variation, general)]
    assert errors[0] > 0.3
    assert errors[1] < 0.7 * errors[0]
    assert errors[2] < 0.7 * errors[1]
    assert errors[3] < 0.5 * errors[1]
    assert errors[4] < 0.5 * errors[1]
    assert np.array_equal(l1_wavelet(kspace, maps, weight=0.002, level=3), wavelet)  # the mask is where samples are
    assert relative_error(10 * wavelet, l1_wavelet(10 * kspace, maps, mask=mask, weight=0.002, level=3)) < 1e-4  # the scale is free


def test_odd_sizes_lie_in_a_larger_image() -> None:
    shape = (45, 50)
    truth, maps, mask = shepp_logan(shape).astype(np.complex64), birdcage_coils(4, shape), mask_of(shape)
    kspace = (fftc(maps * truth, (-2, -1)) * mask).astype(np.complex64)
    image = l1_wavelet(kspace, maps, mask=mask, weight=0.001)
    assert image.shape == shape
    assert nrmse(truth, image) < 0.5 * nrmse(truth, adjoint(kspace, maps, mask=mask))


def test_radial_data_are_reconstructed(tf: Any) -> None:
    truth, maps = shepp_logan((SIZE, SIZE)).astype(np.complex64), birdcage_coils(COILS, (SIZE, SIZE))
    trajectory = radial_trajectory(SIZE, 15, ordering="golden").reshape(-1, 2)
    weights = pipe_weights(trajectory, (SIZE, SIZE))
    kspace = Encoding(maps, trajectory)(truth)
    gridded = adjoint(kspace, maps, trajectory, weights=weights)
    assert relative_error(gridding(kspace, trajectory, weights, (SIZE, SIZE), maps), gridded) < 1e-5
    least = least_squares(kspace, maps, trajectory, weights=weights, iterations=10, toeplitz=False)
    assert relative_error(cg_sense(kspace, trajectory, maps, 10, weights=weights, toeplitz=False), least) < 1e-5
    image = total_variation(kspace, maps, trajectory, weights=weights, weight=0.002)
    assert nrmse(truth, image) < 0.8 * nrmse(truth, least) < 0.8 * nrmse(truth, gridded)
    encoding = encode(maps, trajectory, weights=weights)
    bound = largest_eigenvalue(encoding, encoding.gram, gridded)
    functional = L1Wavelet((SIZE, SIZE), 0.01, "haar", 3)

    def run(samples: Any) -> Any:
        return compressed_sensing(encoding, samples, functional, 8, lipschitz=bound)

    for graph in (run, tf.function(run)):
        assert relative_error(run(kspace), graph(tf.constant(kspace)).numpy()) < 1e-4
    tensor = least_squares(tf.constant(kspace), tf.constant(maps), trajectory, weights=weights, iterations=10, toeplitz=False)
    assert relative_error(least, tensor.numpy()) < 1e-3


# --- series -----------------------------------------------------------------------------------------------------------


def test_series_use_what_frames_share(series: Any) -> None:
    frames, maps, mask, kspace = series
    alone = least_squares(kspace, maps, mask=mask, iterations=20, regularisation=0.01)
    together = {
        "grasp": grasp(kspace, maps, mask=mask),
        "llr": locally_low_rank(kspace, maps, mask=mask),
        "l+s": sum(low_rank_plus_sparse(kspace, maps, mask=mask)),
    }
    limit = 0.4 * nrmse(frames, alone)
    for name, images in together.items():
        assert images.shape == frames.shape, name
        assert nrmse(frames, images) < limit, name
        # It moves: no frame is merely the mean of all.
        assert nrmse(frames, images) < 0.85 * nrmse(frames, np.broadcast_to(frames.mean(0), frames.shape)), name
    assert relative_error(least_squares(kspace[3], maps, mask=mask[3], iterations=20, regularisation=0.01), alone[3]) < 1e-6
    assert relative_error(adjoint(kspace[3], maps, mask=mask[3]), adjoint(kspace, maps, mask=mask)[3]) < 1e-6


def test_low_rank_and_sparse_parts_meet_their_conditions(series: Any) -> None:
    _, maps, mask, kspace = series
    low, sparse = low_rank_plus_sparse(kspace[:, :2], maps[:2], mask=mask, low_rank=0.05, sparse=0.05, iterations=250)
    encoding = encode(maps[:2], mask=mask)
    slope = encoding.adjoint(kspace[:, :2] - encoding(low + sparse))
    rhs = encoding.adjoint(kspace[:, :2])
    # The gradient lies in both subdifferentials: spectral norm, and largest temporal frequency, at most lambda.
    assert np.linalg.norm(slope.reshape(10, -1), 2) <= 1.02 * 0.05 * np.linalg.norm(rhs.reshape(10, -1), 2)
    assert np.abs(fftc(slope, 0)).max() <= 1.02 * 0.05 * np.abs(fftc(rhs, 0)).max()
    assert np.linalg.matrix_rank(low.reshape(10, -1), 1e-3 * np.linalg.norm(low)) < 10
    assert (np.abs(fftc(sparse, 0)) > 1e-6 * np.abs(fftc(sparse, 0)).max()).mean() < 0.5


def test_low_rank_plus_sparse_takes_tensors(tf: Any, series: Any) -> None:
    _, maps, mask, kspace = series
    expected = low_rank_plus_sparse(kspace[:, :2], maps[:2], mask=mask, iterations=5)
    found = low_rank_plus_sparse(tf.constant(kspace[:, :2]), tf.constant(maps[:2]), mask=mask, iterations=5)
    assert all(relative_error(one, other.numpy()) < 1e-4 for one, other in zip(expected, found, strict=True))


@pytest.mark.parametrize(("dtype", "bound"), [("complex64", 1e-5), ("complex128", 1e-12)])
def test_frames_take_a_trajectory_each(dtype: str, bound: float) -> None:
    maps = birdcage_coils(3, (16, 16)).astype(dtype)
    trajectory = radial_trajectory(16, 8, ordering="golden").reshape(2, -1, 2)
    weights = np.random.default_rng(0).uniform(0.1, 1, trajectory.shape[:2])
    encoding = encode(maps, trajectory, weights=weights)
    assert isinstance(encoding, Frames)
    x, y = random_complex((2, 16, 16), 1, dtype), random_complex((2, 3, trajectory.shape[1]), 2, dtype)
    image, back = encoding(x), encoding.H(y)
    assert abs(np.vdot(y, image) - np.vdot(back, x)) < bound * np.linalg.norm(image) * np.linalg.norm(y)
    assert relative_error(encoding.adjoint(image), encoding.gram(x)) < 1e-5
    assert relative_error(Encoding(maps, trajectory[1], weights=weights[1])(x[1]), image[1]) < bound
    kspace = np.stack([part.weigh(y[n]) for n, part in enumerate(encoding.operators)])  # type: ignore[attr-defined]
    assert relative_error(encoding.adjoint(kspace), adjoint(y, maps, trajectory, weights=weights)) < bound
    with pytest.raises(ValueError, match="frames"):
        encoding(x[:1])


# --- pieces -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(12, 10), (9, 7)])
@pytest.mark.parametrize("kind", ["both", "lines", "weighted", "full"])
def test_cartesian_gram_equals_adjoint_after_forward(shape: tuple[int, int], kind: str) -> None:
    random = np.random.default_rng(0).uniform(size=shape)
    mask = {"both": random < 0.4, "lines": random[:, :1] < 0.4, "weighted": random, "full": None}[kind]
    encoding = Encoding(random_complex((3, *shape), 1, "complex128"), mask=mask)
    gram = CartesianGram.of(encoding, encoding.maps)
    assert isinstance(gram, CartesianGram)
    assert len(gram.axes) == {"both": 2, "weighted": 2, "lines": 1, "full": 0}[kind]
    x = random_complex((2, *shape), 2, "complex128")
    assert relative_error(encoding.adjoint(encoding(x)), gram(x)) < 1e-12
    assert relative_error(encoding.adjoint(encoding(x)), gram.H(x)) < 1e-12
    assert gram(x.astype("complex64")).shape == x.shape


def test_a_prior_pulls_the_image(scan: Any) -> None:
    _, maps, mask, kspace = scan
    prior = random_complex((SIZE, SIZE), 4)
    pulled = least_squares(kspace, maps, mask=mask, iterations=60, regularisation=1e4, prior=prior)
    assert relative_error(prior, pulled) < 1e-2
    encoding = Encoding(maps, mask=mask)
    image = least_squares(kspace, maps, mask=mask, iterations=200, tolerance=1e-6, regularisation=0.5, prior=prior)
    slope = encoding.adjoint(encoding(image) - kspace) + 0.5 * encoding.mean_diagonal * (image - prior)
    assert np.linalg.norm(slope) < 1e-4 * np.linalg.norm(prior)


def test_the_faster_gram_operator_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    linear._choices.clear()
    maps = birdcage_coils(2, (16, 16))
    trajectory = radial_trajectory(16, 20, ordering="golden").reshape(-1, 2)
    kspace = Encoding(maps, trajectory)(shepp_logan((16, 16)).astype(np.complex64))
    measured: list[int] = []
    clock = linear.time.perf_counter
    monkeypatch.setattr(linear.time, "perf_counter", lambda: measured.append(1) or clock())
    first = least_squares(kspace, maps, trajectory, iterations=5)
    count = len(measured)
    assert count > 0
    assert np.array_equal(least_squares(kspace, maps, trajectory, iterations=5), first)
    assert len(measured) == count
    both = [least_squares(kspace, maps, trajectory, iterations=5, toeplitz=toeplitz) for toeplitz in (True, False)]
    assert any(np.array_equal(first, image) for image in both)


@pytest.mark.parametrize(("factors", "first"), [((2, 1), (0, 0)), ((1, 3), (0, 2)), ((2, 2), (1, 1)), ((4, 1), (3, 0)), ((1, 1), (0, 0))])
def test_sense_unfolds_exactly(tf: Any, factors: tuple[int, int], first: tuple[int, int]) -> None:
    shape = (24, 18)
    truth, maps = random_complex(shape, 1, "complex128"), random_complex((6, *shape), 2, "complex128")
    mask = np.zeros(shape)
    mask[first[0] :: factors[0], first[1] :: factors[1]] = 1
    if shape[0] % factors[0] or shape[1] % factors[1]:
        pytest.fail("the test's own shapes")
    kspace = fftc(maps * truth, (-2, -1)) * mask
    assert relative_error(truth, sense(kspace, maps, factors, first)) < 1e-9
    both = tf.function(lambda k: sense(k, maps, factors, first))(tf.constant(np.stack([kspace, 2 * kspace])))
    assert both.shape == (2, *shape)
    assert relative_error(2 * truth, both[1].numpy()) < 1e-9
    # Damped, it is the solution of the normal equations of the encoding.
    damped = sense(kspace, maps, factors, first, regularisation=0.3)
    assert np.linalg.norm(damped) < np.linalg.norm(truth)


def test_sense_leaves_the_background_empty() -> None:
    truth, maps = shepp_logan((32, 32)).astype(np.complex64), birdcage_coils(6, (32, 32))
    maps = maps * (truth != 0)
    kspace = fftc(maps * truth, (-2, -1))
    kspace[:, 1::2] = 0
    image = sense(kspace, maps, (2, 1))
    assert relative_error(truth, image) < 1e-4
    assert not image[truth == 0].any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda k, m: sense(k, m, (5, 1)), "divide"),
        (lambda k, m: sense(k, m, (4, 4)), "coils"),
        (lambda k, m: sense(k[1:], m, (2, 1)), "fit"),
        (lambda k, m: least_squares(k, m, mask=np.zeros((16, 16))), "empty"),
        (lambda k, m: l1_wavelet(0 * k, m), "empty"),
        (lambda k, m: total_variation(k * np.nan, m, mask=np.ones((16, 16))), "NaN"),
        (lambda k, m: least_squares(k, m, regularisation=-1.0), "regularisation"),
        (lambda k, m: compressed_sensing(encode(m), k, L1(), solver="newton"), "solver"),
        (lambda k, m: low_rank_plus_sparse(k, m), "frames"),
    ],
)
def test_bad_input_is_explained(make: Any, message: str) -> None:
    maps = birdcage_coils(8, (16, 16))
    with pytest.raises(ValueError, match=message):
        make(fftc(maps, (-2, -1)), maps)


def test_brain_undersampled_four_times(shared: Any) -> None:
    with h5py.File(shared / "data" / "cartesian_brain_8ch.h5") as file:
        readouts = file["dataset/data"][:]
    order = np.argsort(readouts["head"]["idx"]["kspace_encode_step_1"])
    full = np.stack([readouts["data"][n].view(np.complex64).reshape(8, -1) for n in order], 1)
    lines = np.zeros(full.shape[1], bool)
    lines[103:127] = True
    lines[np.random.default_rng(3).choice(np.flatnonzero(~lines), 34, replace=False)] = True
    kspace = full * lines[:, None]
    maps = espirit(kspace, calibration=(24, full.shape[2])).reshape(-1, *full.shape[1:])[-8:]
    reference = (maps.conj() * ifftc(full, (-2, -1))).sum(0)
    mask = np.broadcast_to(lines[:, None], full.shape[1:])
    zero_filled = nrmse(reference, adjoint(kspace, maps, mask=mask))
    linear_error = nrmse(reference, least_squares(kspace, maps, mask=mask, iterations=20, regularisation=0.03))
    wavelet = nrmse(reference, l1_wavelet(kspace, maps, mask=mask, weight=0.002, iterations=30))
    assert linear_error < 0.9 * zero_filled
    assert wavelet < 0.8 * linear_error
