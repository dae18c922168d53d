"""The NUFFT against the direct sum; adjoint, gradients, graph mode, determinism, cache."""

from __future__ import annotations

import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from recon import device, nufft
from tests.recon.conftest import random_complex, random_trajectory, relative_error

SHAPES = [(30,), (20, 17), (9, 12, 7)]


def matrix(trajectory: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The type-2 transform as a matrix, in double precision."""
    grid = np.stack(np.meshgrid(*(np.arange(n) - n // 2 for n in shape), indexing="ij"), -1)
    phase = trajectory.astype(float) @ grid.reshape(-1, len(shape)).T
    return np.exp(-1j * phase) / math.sqrt(math.prod(shape))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("complex64", 1e-2), ("complex64", 1e-3), ("complex64", 1e-5), ("complex128", 1e-8), ("complex128", 1e-11)]
)
def test_equals_the_direct_sum_within_the_tolerance(shape: tuple[int, ...], dtype: str, tolerance: float) -> None:
    trajectory = random_trajectory(200, len(shape), dtype="float32" if dtype == "complex64" else "float64")
    images = random_complex((2, 3, *shape), 1, dtype)
    kspace = random_complex((2, 3, 200), 2, dtype)
    plan = nufft.Nufft(trajectory, shape, tolerance, dtype)
    direct = matrix(trajectory, shape)
    forward, adjoint = plan.forward(images), plan.adjoint(kspace)
    assert forward.dtype == adjoint.dtype == dtype
    assert relative_error(images.reshape(2, 3, -1) @ direct.T, forward) < 2 * tolerance
    assert relative_error((kspace @ direct.conj()).reshape(images.shape), adjoint) < 2 * tolerance


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "bound"), [("complex64", 1e-5), ("complex128", 1e-12)])
def test_both_types_are_adjoint_at_any_tolerance(shape: tuple[int, ...], dtype: str, bound: float) -> None:
    plan = nufft.Nufft(random_trajectory(300, len(shape)), shape, 1e-3, dtype)
    x, y = random_complex((4, *shape), 3, dtype), random_complex((4, 300), 4, dtype)
    left, right = np.vdot(plan.forward(x), y), np.vdot(x, plan.adjoint(y))
    assert abs(left - right) / (np.linalg.norm(plan.forward(x)) * np.linalg.norm(y)) < bound


def test_gram_is_adjoint_after_weights_after_forward() -> None:
    plan = nufft.Nufft(random_trajectory(400, 2), (16, 18))
    images = random_complex((2, 3, 16, 18), 1)
    weights = np.random.default_rng(0).uniform(0, 1, 400).astype(np.float32)
    assert relative_error(plan.adjoint(plan.forward(images)), plan.gram(images)) < 1e-6
    assert relative_error(plan.adjoint(weights * plan.forward(images)), plan.gram(images, weights)) < 1e-6
    assert relative_error(plan.gram(images)[1, 2], plan.gram(images[1, 2])) == 0


def test_points_beyond_pi_are_folded() -> None:
    trajectory = random_trajectory(50, 2, dtype="float64")
    images = random_complex((12, 14), dtype="complex128")
    near, far = (nufft.Nufft(points, (12, 14), 1e-9) for points in (trajectory, trajectory + 2 * np.pi))
    assert relative_error(near.forward(images), far.forward(images)) < 1e-7


@pytest.mark.parametrize(
    ("trajectory", "shape", "message"),
    [
        (np.zeros((3, 5, 2)), (8, 8), "flattened"),
        (np.zeros((5, 2)), (8, 8, 8), "3 axes"),
        (np.full((5, 2), np.inf), (8, 8), "finite"),
        (np.zeros((0, 2)), (8, 8), "empty"),
    ],
)
def test_unusable_arguments_are_explained(trajectory: np.ndarray, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nufft.Nufft(trajectory, shape)


def test_input_of_another_shape_is_refused() -> None:
    plan = nufft.Nufft(random_trajectory(20, 2), (8, 8))
    with pytest.raises(ValueError, match="end in"):
        plan.forward(random_complex((8, 9)))
    with pytest.raises(ValueError, match="end in"):
        plan.adjoint(random_complex((4, 19)))


def test_an_empty_batch_stays_empty() -> None:
    plan = nufft.Nufft(random_trajectory(20, 2), (8, 8))
    assert plan.forward(random_complex((0, 8, 8))).shape == (0, 20)


# --- TensorFlow -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [1, 2, "type_1", "type_2"])
def test_tensors_eager_graph_and_numpy_agree(tf: Any, kind: Any) -> None:
    trajectory, shape = random_trajectory(80, 2), (10, 12)
    forward = kind in (2, "type_2")
    source = random_complex((2, 3, *shape) if forward else (2, 3, 80))
    plan = nufft.Nufft(trajectory, shape)
    expected = plan.forward(source) if forward else plan.adjoint(source)

    @tf.function
    def graph(values: Any, points: Any) -> Any:
        return nufft.nufft(values, points, shape, kind)

    for result in (
        nufft.nufft(source, trajectory, shape, kind),
        nufft.nufft(tf.constant(source), tf.constant(trajectory), shape, kind),
        graph(tf.constant(source), tf.constant(trajectory)),
    ):
        assert result.shape == expected.shape
        assert np.array_equal(result.numpy(), expected)


def test_trajectories_broadcast_against_the_batch(tf: Any) -> None:
    trajectories = random_trajectory(3 * 50, 2).reshape(3, 1, 50, 2)
    images = random_complex((3, 4, 8, 9))
    result = nufft.nufft(images, tf.constant(trajectories)).numpy()
    for index in range(3):
        expected = nufft.Nufft(trajectories[index, 0], (8, 9)).forward(images[index])
        assert np.array_equal(result[index], expected)
    shared = nufft.nufft(images[0], tf.constant(trajectories[:, :, :, :])).numpy()
    assert shared.shape == (3, 4, 50)


@pytest.mark.parametrize("kind", [1, 2])
@pytest.mark.parametrize("shape", [(14,), (7, 8), (5, 4, 6)])
@pytest.mark.parametrize("in_graph", [False, True])
def test_gradients_equal_finite_differences(tf: Any, kind: int, shape: tuple[int, ...], in_graph: bool) -> None:
    rng = np.random.default_rng(5)
    points = random_trajectory(30, len(shape), dtype="float64")
    source = random_complex((2, *shape) if kind == 2 else (2, 30), 1, "complex128")
    target = random_complex((2, 30) if kind == 2 else (2, *shape), 2, "complex128")

    def loss(values: Any, trajectory: Any) -> Any:
        result = nufft.nufft(values, trajectory, shape, kind, 1e-11)
        return tf.reduce_sum(tf.abs(result - target) ** 2)

    def gradients(values: Any, trajectory: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch([values, trajectory])
            value = loss(values, trajectory)
        return tape.gradient(value, [values, trajectory])

    function = tf.function(gradients) if in_graph else gradients
    by_source, by_points = (g.numpy() for g in function(tf.constant(source), tf.constant(points)))
    step, moved = 1e-6, rng.standard_normal(points.shape)
    numeric = loss(source, tf.constant(points + step * moved)) - loss(source, tf.constant(points - step * moved))
    assert (by_points * moved).sum() == pytest.approx(float(numeric) / (2 * step), rel=1e-5)
    changed = random_complex(source.shape, 3, "complex128")
    numeric = loss(source + step * changed, points) - loss(source - step * changed, points)
    assert np.vdot(by_source, changed).real == pytest.approx(float(numeric) / (2 * step), rel=1e-5)


def test_gradient_of_shared_points_sums_over_the_batch(tf: Any) -> None:
    images, trajectory = random_complex((3, 8, 8)), random_trajectory(20, 2)
    together, apart = tf.Variable(trajectory), tf.Variable(np.tile(trajectory, (3, 1, 1)))
    sums = []
    for points in (together, apart):
        with tf.GradientTape() as tape:
            value = tf.reduce_sum(tf.abs(nufft.nufft(images, points)) ** 2)
        sums.append(tape.gradient(value, points).numpy())
    assert relative_error(sums[0], sums[1].sum(0)) < 1e-4


def test_second_derivatives_exist(tf: Any) -> None:
    image, trajectory = tf.constant(random_complex((6, 6))), tf.Variable(random_trajectory(10, 2))
    with tf.GradientTape() as outer:
        with tf.GradientTape() as inner:
            value = tf.reduce_sum(tf.abs(nufft.nufft(image, trajectory)) ** 2)
        slope = tf.reduce_sum(inner.gradient(value, trajectory) ** 2)
    assert np.abs(outer.gradient(slope, trajectory).numpy()).max() > 0


def test_wrong_tensor_arguments_are_explained(tf: Any) -> None:
    with pytest.raises(ValueError, match="type must be"):
        nufft.nufft(random_complex((8, 8)), random_trajectory(5, 2), type=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="grid_shape"):
        nufft.nufft(random_complex((5,)), random_trajectory(5, 2), type=1)
    with pytest.raises(ValueError, match="flatten"):
        nufft.nufft(random_complex((6,)), random_trajectory(5, 2), (8, 8), type=1)


# --- determinism, threads, cache --------------------------------------------------------------------------------------

_DIGEST = """
import hashlib, sys
import numpy as np
from recon import device, nufft, sense
from recon.trajectory import radial_trajectory
device.configure(threads=int(sys.argv[1]))
rng = np.random.default_rng(0)
trajectory = radial_trajectory(64, 40, ordering='golden').reshape(-1, 2)
kspace = (rng.standard_normal((7, len(trajectory))) + 1j * rng.standard_normal((7, len(trajectory)))).astype('complex64')
plan = nufft.plan(trajectory, (64, 64))
images = plan.adjoint(kspace)
maps = sense.self_calibrated_maps(kspace, trajectory, (64, 64))
parts = [images, plan.forward(images), plan.adjoint(kspace[0]), sense.cg_sense(kspace, trajectory, maps, 6)]
print(hashlib.sha256(b''.join(part.tobytes() for part in parts)).hexdigest())
"""


def test_every_process_and_thread_count_gives_the_same_bits() -> None:
    digests = [
        subprocess.run([sys.executable, "-c", _DIGEST, str(threads)], capture_output=True, text=True, check=True).stdout
        for threads in (1, 2, 2, 5)
    ]
    assert len(digests[0]) == 65
    assert len(set(digests)) == 1


def test_plans_are_shared_safely_between_threads() -> None:
    plan = nufft.Nufft(random_trajectory(500, 2), (32, 32))
    sources = [random_complex((5, 500), seed) for seed in range(8)]
    expected = [plan.adjoint(source) for source in sources]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            results = list(pool.map(plan.adjoint, sources))
            assert all(np.array_equal(a, b) for a, b in zip(results, expected, strict=True))


def test_the_cache_returns_the_same_plan_and_stays_bounded() -> None:
    nufft.clear_plans()
    trajectory = random_trajectory(20, 2)
    first = nufft.plan(trajectory, (8, 8))
    assert nufft.plan(trajectory.copy(), (8, 8)) is first
    assert nufft.plan(trajectory, (8, 9)) is not first
    assert nufft.plan(trajectory, (8, 8), 1e-4) is not first
    assert nufft.plan(trajectory, (8, 8), dtype="complex128") is not first
    changed = trajectory.copy()
    changed[3, 1] += 0.1
    assert nufft.plan(changed, (8, 8)) is not first
    for seed in range(nufft.CACHED_PLANS + 5):
        nufft.plan(random_trajectory(20, 2, seed + 1), (8, 8))
    assert nufft.cached_plans() == nufft.CACHED_PLANS
    assert nufft.plan(trajectory, (8, 8)) is not first  # gone, the least recently used


def test_one_sided_failures_reach_the_caller() -> None:
    def fail(index: int) -> None:
        if index == 3:
            raise RuntimeError("coil 3")

    with pytest.raises(RuntimeError, match="coil 3"):
        nufft.run_each(fail, 6)


def test_device_settings_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="threads"):
        device.configure(threads=0)
    monkeypatch.setattr(device, "_threads", None)
    monkeypatch.setenv("OMP_NUM_THREADS", "3,1")
    assert device.threads() == 3


def test_a_gpu_that_computes_wrongly_is_not_used(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    class Wrong(nufft.Nufft):
        def __init__(self, trajectory: Any, shape: Any, gpu: bool | None = None) -> None:
            super().__init__(trajectory, shape, gpu=False)
            self.scale *= 1.1 if gpu else 1

    monkeypatch.setattr(nufft, "Nufft", Wrong)
    assert not device.self_test()
    assert "differs from the CPU" in caplog.text


def test_a_missing_gpu_library_is_named(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert not device.self_test()
    assert "using the CPU" in caplog.text


def test_a_worker_can_warm_up(tf: Any) -> None:
    device.warm_up()
    assert nufft.cached_plans() >= 1
    assert device.use_gpu() in (True, False)


def test_importing_recon_imports_no_tensorflow() -> None:
    modules = ["fourier", "trajectory", "density", "phantoms", "metrics", "coils", "nufft", "sense", "operators", "solvers", "device"]
    code = "import sys\n" + "".join(f"import recon.{name}\n" for name in modules) + "assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
