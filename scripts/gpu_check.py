"""Check and time the GPU path of `recon` against the CPU one; prints JSON. Without a GPU the comparisons are skipped.

    PYTHONPATH=. python scripts/gpu_check.py [--repeats 1000] [--json OUT.json]

Needs numpy, scipy, tensorflow and finufft; on a GPU also cupy and cufinufft.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from recon import density, device, gpu_plans, nufft, sense
from recon.metrics import nrmse
from recon.operators import ToeplitzGram, gpu_convolution
from recon.phantoms import birdcage_coils, shepp_logan
from recon.trajectory import radial_trajectory

COILS, SIZE = 16, 256


def error(reference: Any, value: Any) -> float:
    """Relative l2 error of arrays or tensors."""
    return float(np.linalg.norm(np.asarray(value) - np.asarray(reference)) / np.linalg.norm(np.asarray(reference)))


def median_ms(function: Callable[[], Any], repeats: int = 20, wait: Callable[[], Any] = lambda: None) -> float:
    """Median wall time in ms, the device idle before and after."""
    times = []
    for repeat in range(repeats + 2):
        wait()
        start = time.perf_counter()
        function()
        wait()
        if repeat > 1:
            times.append(1e3 * (time.perf_counter() - start))
    return round(statistics.median(times), 4)


class Case:
    """A radial scan of the head phantom."""

    def __init__(self, spokes: int, coils: int = COILS, size: int = SIZE, samples: int | None = None) -> None:
        self.shape = (size, size)
        self.trajectory = radial_trajectory(size, spokes, ordering="golden").reshape(-1, 2)[:samples]
        self.truth = shepp_logan(self.shape).astype(np.complex64)
        self.maps = birdcage_coils(coils, self.shape)
        plan = nufft.Nufft(self.trajectory, self.shape, 1e-6, "complex128", gpu=False)
        self.kspace = plan.forward((self.maps * self.truth).astype("complex128")).astype(np.complex64)
        self.weights = density.pipe_weights(self.trajectory, self.shape)

    def read_only_maps(self) -> np.ndarray:
        """Maps that are copied to the GPU only once."""
        maps = self.maps.astype(np.complex64)
        maps.setflags(write=False)
        return maps


def realtime_frame(wait: Callable[[], Any]) -> float:
    """Median ms of CG-SENSE of a frame that is new in trajectory and data: 8 coils, 128 x 128, 13 spokes, 8 iterations."""
    case = Case(13, coils=8, size=128)
    maps = case.read_only_maps()
    spokes = iter(radial_trajectory(128, 13 * 64, ordering="golden").reshape(64, -1, 2))
    return median_ms(lambda: sense.cg_sense(case.kspace, next(spokes), maps, 8, regularisation=0.01), 40, wait)


def on_cpu(function: Callable[[], Any]) -> Any:
    """Call `function` as if there were no GPU."""
    found, device._gpu = device._gpu, False
    try:
        return function()
    finally:
        device._gpu = found


def compare(case: Case) -> dict[str, float]:
    """Relative difference of GPU and CPU results; NUFFTs of tolerance 1e-3 agree to a few 1e-3."""
    import tensorflow as tf

    images, trajectory = case.maps * case.truth, case.trajectory

    def gradients(kind: int) -> Any:
        values = tf.constant(images if kind == 2 else case.kspace)
        points = tf.constant(trajectory)
        with tf.GradientTape() as tape:
            tape.watch([values, points])
            loss = tf.reduce_sum(tf.abs(nufft.nufft(values, points, case.shape, kind, 1e-4)) ** 2)
        return tape.gradient(loss, [values, points])

    graph = tf.function(lambda values: nufft.nufft(values, trajectory, case.shape, 1))
    frames = tf.stack([tf.constant(case.kspace)] * 2)
    line = nufft.Nufft(trajectory[:, :1], case.shape[:1], gpu=False).forward(images[:, 64])
    jobs: dict[str, Callable[[], Any]] = {
        "plan_type2": lambda: nufft.plan(trajectory, case.shape).forward(images),
        "plan_type1": lambda: nufft.plan(trajectory, case.shape).adjoint(case.kspace),
        "plan_type1_double": lambda: nufft.plan(trajectory, case.shape, 1e-9, "complex128").adjoint(case.kspace),
        "tensor_type2": lambda: nufft.nufft(images, trajectory),
        "tensor_type1": lambda: nufft.nufft(case.kspace, trajectory, case.shape, 1),
        "tensor_type1_frames": lambda: nufft.nufft(frames, tf.constant(np.stack([trajectory, -trajectory])[:, None]), case.shape, 1),
        "gradient_values_type2": lambda: gradients(2)[0],
        "gradient_points_type2": lambda: gradients(2)[1],
        "gradient_values_type1": lambda: gradients(1)[0],
        "gradient_points_type1": lambda: gradients(1)[1],
        "gridding": lambda: sense.gridding(case.kspace, trajectory, case.weights, case.shape, case.maps),
        "gridding_tensor": lambda: sense.gridding(tf.constant(case.kspace), trajectory, case.weights, case.shape),
        "cg_sense": lambda: sense.cg_sense(case.kspace, trajectory, case.maps, 4, weights=case.weights),
        "cg_sense_nufft": lambda: sense.cg_sense(case.kspace, trajectory, case.maps, 4, regularisation=0.01, toeplitz=False),
        "cg_sense_stopped": lambda: sense.cg_sense(case.kspace, trajectory, case.maps, 30, 0.1, 0.01, toeplitz=True),
        "cg_sense_double": lambda: sense.cg_sense(case.kspace.astype("complex128"), trajectory, case.maps, 4, nufft_tolerance=1e-9),
        "cg_sense_1d": lambda: sense.cg_sense(line, trajectory[:, :1], case.maps[:, 64], 4, toeplitz=True),
        "toeplitz_gram": lambda: device.get(ToeplitzGram(trajectory, case.shape)(device.put(images))),
        "cg_sense_tensor": lambda: sense.cg_sense(tf.constant(case.kspace), trajectory, tf.constant(case.maps), 4, weights=case.weights),
    }
    result = {}
    for name, job in jobs.items():
        ours = np.asarray(job())
        result[name] = error(np.asarray(on_cpu(job)), ours)
    result["cg_sense_in_groups_of_coils"] = error(np.asarray(jobs["cg_sense"]()), in_groups(jobs["cg_sense"]))
    # The graph remembers the device it was traced for, so it is compared with the eager call.
    result["graph_equals_eager"] = error(nufft.nufft(case.kspace, trajectory, case.shape, 1), graph(case.kspace))
    return result


def in_groups(job: Callable[[], Any]) -> Any:
    """The result of `job` when only three coils' doubled images of 128 x 128 fit into the convolution's workspace."""
    workspace, gpu_convolution.WORKSPACE = gpu_convolution.WORKSPACE, 3 * 256**2 * 8
    try:
        return job()
    finally:
        gpu_convolution.WORKSPACE = workspace


def stress_frames(repeats: int) -> dict[str, Any]:
    """CG-SENSE of frames with ever new trajectories, from NumPy, CuPy and tensors in turn, against the same on the CPU."""
    import tensorflow as tf

    coils, shape = 8, (64, 64)
    maps = birdcage_coils(coils, shape).astype(np.complex64)
    maps.setflags(write=False)
    spokes = radial_trajectory(64, 16 * 13, ordering="golden").reshape(16, -1, 2)
    rng = np.random.default_rng(3)
    size = (len(spokes), coils, spokes.shape[1])
    kspace = (rng.standard_normal(size) + 1j * rng.standard_normal(size)).astype(np.complex64)
    tensors = tf.constant(kspace), tf.constant(maps)

    def frame(kind: str, index: int, scale: float) -> Any:
        samples, chosen = np.float32(scale) * kspace[index], maps
        if kind == "resident":
            samples = np.float32(scale) * device.put(kspace[index])
        elif kind == "tensor":
            samples, chosen = tf.constant(scale, tf.complex64) * tensors[0][index], tensors[1]
        image = sense.cg_sense(samples, spokes[index], chosen, 4, regularisation=0.01)
        return device.get(image) if kind == "resident" else image

    expected = on_cpu(lambda: [frame("numpy", index, 1) for index in range(len(spokes))])
    worst = 0.0
    for repeat in range(repeats):
        index, scale = int(rng.integers(len(spokes))), float(rng.uniform(0.5, 2))
        image = frame(("numpy", "resident", "tensor")[repeat % 3], index, scale)
        worst = max(worst, error(scale * expected[index], image))
    return {"repeats": repeats, "worst_error": worst, "passed": worst < 1e-2}


def stress(repeats: int) -> dict[str, Any]:
    """Transform ever-changing combinations of two images and compare with the same combinations of their transforms.

    Every input is the last link of a chain of operations on TensorFlow's stream and every output is used and dropped at
    once, so a missing synchronisation, either way, shows as a wrong or stale result.
    """
    import tensorflow as tf

    case = Case(16, coils=8, size=128)
    rng = np.random.default_rng(0)
    images = tf.constant((rng.standard_normal((2, 8, 128, 128)) + 1j).astype(np.complex64))
    kspace = nufft.nufft(images, case.trajectory)
    back = nufft.nufft(kspace, case.trajectory, case.shape, 1)
    worst = tf.constant(0.0)
    for _ in range(repeats):
        a, b = (tf.constant(complex(*rng.standard_normal(2)), tf.complex64) for _ in range(2))
        image = a * images[0] + b * images[1]
        for _ in range(3):
            image = tf.signal.ifft2d(tf.signal.fft2d(image))
        for result, expected in (
            (nufft.nufft(image, case.trajectory), a * kspace[0] + b * kspace[1]),
            (
                nufft.nufft(nufft.nufft(image, case.trajectory), case.trajectory, case.shape, 1),
                a * back[0] + b * back[1],
            ),
        ):
            worst = tf.maximum(worst, tf.norm(tf.abs(result - expected)) / tf.norm(tf.abs(expected)))
    return {"repeats": repeats, "worst_error": float(worst), "passed": float(worst) < 1e-3}


def stress_without_waiting(repeats: int) -> dict[str, Any]:
    """The same with the wait for TensorFlow's stream removed: shows whether the stress test can find a race."""
    wait = nufft._wait_for_tensorflow
    nufft._wait_for_tensorflow = lambda: None
    try:
        return stress(repeats)
    finally:
        nufft._wait_for_tensorflow = wait


def timings(wait: Callable[[], Any]) -> dict[str, Any]:
    """Medians in ms of the NUFFT and of CG-SENSE on the device in use, with their errors."""
    import tensorflow as tf

    small = Case(37, coils=10, size=240, samples=17565)
    plan = nufft.plan(small.trajectory, small.shape)
    kspace = tf.constant(small.kspace)
    result: dict[str, Any] = {
        "samples": len(small.trajectory),
        "type1_10_coils_240_tensor_ms": median_ms(lambda: nufft.nufft(kspace, small.trajectory, small.shape, 1), wait=wait),
        "type1_10_coils_240_numpy_ms": median_ms(lambda: plan.adjoint(small.kspace), wait=wait),
    }
    on_device = device.put(small.kspace)
    result["type1_10_coils_240_resident_ms"] = median_ms(lambda: plan.adjoint(on_device), wait=wait)
    images = device.put(small.maps * small.truth)
    result["type2_10_coils_240_resident_ms"] = median_ms(lambda: plan.forward(images), wait=wait)
    result["realtime_frame_ms"] = realtime_frame(wait)
    for spokes in (24, 96):
        case = Case(spokes)
        inputs = {
            "numpy": (case.kspace, case.maps),
            "numpy_maps_read_only": (case.kspace, case.read_only_maps()),
            "resident": (device.put(case.kspace), device.put(case.maps.astype(np.complex64))),
            "tensor": (tf.constant(case.kspace), tf.constant(case.maps)),
        }
        options: dict[str, dict[str, Any]] = {
            "cg10_nufft": {"iterations": 10, "toeplitz": False},
            "cg10_toeplitz": {"iterations": 10, "toeplitz": True},
            "cg4_weighted": {"iterations": 4, "weights": case.weights},
        }
        for kind, (samples, maps) in inputs.items():
            for name, chosen in options.items():
                job = functools.partial(sense.cg_sense, samples, case.trajectory, maps, **chosen)
                result[f"{name}_{spokes}_spokes_{kind}"] = {
                    "ms": median_ms(job, 10, wait),
                    "nrmse": round(nrmse(case.truth, np.asarray(job() if kind == "tensor" else device.get(job()))), 4),
                }
    return result


def main() -> None:
    """Run all checks; exit status 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=1000, help="of the stress test")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    arguments = parser.parse_args()
    device.configure()
    start = time.perf_counter()
    device.warm_up()
    gpu = device.use_gpu()
    result: dict[str, Any] = {"gpu": gpu, "warm_up_s": round(time.perf_counter() - start, 2)}
    failed = []
    wait: Callable[[], Any] = lambda: None  # noqa: E731
    if gpu:
        import cupy

        wait = cupy.cuda.Device().synchronize
        result["device"] = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
        result["self_test"] = device.self_test()
        result["difference"] = compare(Case(48, coils=8, size=128))
        failed += [name for name, value in result["difference"].items() if not value < 1e-2]
    result["stress"] = stress(arguments.repeats)
    result["stress_frames"] = stress_frames(arguments.repeats)
    failed += [name for name in ("stress", "stress_frames") if not result[name]["passed"]]
    if gpu:
        result["plans"] = {"trajectories": nufft.cached_plans(), "on_gpu": len(gpu_plans._pool), "most": gpu_plans.POOLED_PLANS}
        result["stress_without_waiting"] = stress_without_waiting(arguments.repeats // 5)
    result["timings"] = timings(wait)
    result["failed"] = failed
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
