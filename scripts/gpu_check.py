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

import gpu_more
import gpu_stress

from recon import density, device, nufft, sense
from recon.metrics import nrmse
from recon.operators import ToeplitzGram, gpu_convolution
from recon.phantoms import birdcage_coils, shepp_logan
from recon.sense_recorded import clear_graphs
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


def compare(case: Case) -> dict[str, float]:
    """Relative difference of GPU and CPU results; NUFFTs of tolerance 1e-3 agree to a few 1e-3."""
    import tensorflow as tf

    images, trajectory = case.maps * case.truth, case.trajectory

    def gradients(kind: Any) -> Any:
        values = tf.constant(images if kind == 2 else case.kspace)
        points = tf.constant(trajectory)
        with tf.GradientTape() as tape:
            tape.watch([values, points])
            loss = tf.reduce_sum(tf.abs(nufft.nufft(values, points, case.shape, kind, 1e-4)) ** 2)
        return tape.gradient(loss, [values, points])

    def sense_gradient(which: int) -> Any:
        values = [tf.constant(case.kspace), tf.constant(case.maps)]
        with tf.GradientTape() as tape:
            tape.watch(values)
            image = sense.cg_sense(values[0], trajectory, values[1], 4, weights=case.weights, toeplitz=True)
            loss = tf.reduce_sum(tf.abs(image) ** 2)
        return tape.gradient(loss, values[which])

    graph = tf.function(lambda values: nufft.nufft(values, trajectory, case.shape, 1))
    sense_graph = tf.function(lambda k, s: sense.cg_sense(k, trajectory, s, 4, weights=case.weights, toeplitz=True))
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
    jobs["cg_sense_gradient_kspace"] = lambda: sense_gradient(0)
    jobs["cg_sense_gradient_maps"] = lambda: sense_gradient(1)
    result = {}
    for name, job in jobs.items():
        ours = np.asarray(job())
        with device.on_cpu():
            result[name] = error(np.asarray(job()), ours)
    result["cg_sense_in_groups_of_coils"] = error(np.asarray(jobs["cg_sense"]()), in_groups(jobs["cg_sense"]))
    # The graph remembers the device it was traced for, so it is compared with the eager call.
    result["graph_equals_eager"] = error(nufft.nufft(case.kspace, trajectory, case.shape, 1), graph(case.kspace))
    eager = np.asarray(jobs["cg_sense_tensor"]())
    result["cg_sense_graph_equals_eager"] = error(eager, sense_graph(tf.constant(case.kspace), tf.constant(case.maps)))
    return result


def in_groups(job: Callable[[], Any]) -> Any:
    """The result of `job` when only three coils' doubled images of 128 x 128 fit into the convolution's workspace."""
    workspace, gpu_convolution.WORKSPACE = gpu_convolution.WORKSPACE, 3 * 256**2 * 8
    clear_graphs()
    try:
        return job()
    finally:
        gpu_convolution.WORKSPACE = workspace
        clear_graphs()


def in_graph(trajectory: np.ndarray) -> Any:
    """CG-SENSE of tensors as a `tf.function`."""
    import tensorflow as tf

    return tf.function(lambda kspace, maps: sense.cg_sense(kspace, trajectory, maps, 10, toeplitz=True), autograph=False)


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
        graph = in_graph(case.trajectory)
        kspace, maps = inputs["tensor"]
        result[f"cg10_toeplitz_{spokes}_spokes_graph_ms"] = median_ms(lambda g=graph, k=kspace, m=maps: g(k, maps=m), 10, wait)  # type: ignore[misc]
    return result


def sections(repeats: int) -> dict[str, Callable[[], dict[str, Any]]]:
    """What there is to check, by name; without a GPU only the timings."""
    wait: Callable[[], Any] = lambda: None  # noqa: E731
    if not device.use_gpu():
        return {"timings": lambda: timings(wait)}
    import cupy

    wait = cupy.cuda.Device().synchronize
    return {
        "timings": lambda: timings(wait),
        "difference": lambda: compare(Case(48, coils=8, size=128)),
        "stress": lambda: gpu_stress.all_stress(repeats),
        "volumes": gpu_more.volumes,
        "memory": gpu_more.memory,
        "out_of_memory": gpu_more.out_of_memory,
        "reconstructions": gpu_more.reconstructions,
    }


def failures(result: dict[str, Any]) -> list[str]:
    """Names of what was found wrong."""
    failed = [name for name, value in result.get("difference", {}).items() if not value < 1e-2]
    checks = {**result.get("stress", {}), "memory": result.get("memory", {"passed": True})}
    failed += [name for name, value in checks.items() if not value["passed"]]
    for name, kinds in result.get("reconstructions", {}).items():
        failed += [f"{name}, {kind}" for kind, value in kinds.items() if kind != "cpu_ms" and not value.get("difference", np.inf) < 1e-2]
    return failed + [name for name, value in result.get("out_of_memory", {}).items() if not value["difference"] < 1e-2]


def main() -> None:
    """Run all checks; exit status 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=1000, help="of the stress test")
    parser.add_argument(
        "--only", nargs="+", metavar="SECTION", help="timings, difference, stress, volumes, memory, out_of_memory, reconstructions"
    )
    parser.add_argument("--json", type=Path, help="also write the result to this file, section by section")
    arguments = parser.parse_args()
    device.configure()
    start = time.perf_counter()
    device.warm_up()
    result: dict[str, Any] = {"gpu": device.use_gpu(), "warm_up_s": round(time.perf_counter() - start, 2)}
    if device.use_gpu():
        import cupy

        result["device"] = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    chosen = {name: run for name, run in sections(arguments.repeats).items() if not arguments.only or name in arguments.only}
    for name, run in chosen.items():
        start = time.perf_counter()
        result[name] = run()
        result["failed"] = failures(result)
        print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
        if arguments.json:
            arguments.json.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    sys.exit(bool(result.get("failed")))


if __name__ == "__main__":
    main()
