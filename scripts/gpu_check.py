"""Check and time the GPU path of `recon` against the CPU one; prints JSON. Without a GPU the comparisons are skipped.

    PYTHONPATH=. python scripts/gpu_check.py [--only SECTION ...] [--repeats 1000] [--json OUT.json] [--seconds 110]

Each result is printed, and the file written, as soon as it is there; after `--seconds` the script says what it was at, and ends.
Needs numpy, scipy, tensorflow and finufft; on a GPU also cupy and cufinufft.
"""

from __future__ import annotations

import argparse
import faulthandler
import functools
import json
import os
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import gpu_graphs
import gpu_more
import gpu_reconstructions
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


def compare(case: Case) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Relative difference of GPU and CPU results; NUFFTs of tolerance 1e-3 agree to a few 1e-3. XLA's programs come last."""
    import tensorflow as tf

    images, trajectory = case.maps * case.truth, case.trajectory

    def gradients(kind: Any) -> list[Any]:
        values = tf.constant(images if kind == 2 else case.kspace)
        points = tf.constant(trajectory)
        with tf.GradientTape() as tape:
            tape.watch([values, points])
            loss = tf.reduce_sum(tf.abs(nufft.nufft(values, points, case.shape, kind, 1e-4)) ** 2)
        return list(tape.gradient(loss, [values, points]))

    def sense_gradients() -> list[Any]:
        values = [tf.constant(case.kspace), tf.constant(case.maps)]
        with tf.GradientTape() as tape:
            tape.watch(values)
            image = sense.cg_sense(values[0], trajectory, values[1], 2, weights=case.weights, toeplitz=True)
            loss = tf.reduce_sum(tf.abs(image) ** 2)
        return list(tape.gradient(loss, values))

    frames = tf.stack([tf.constant(case.kspace)] * 2)
    line = nufft.Nufft(trajectory[:, :1], case.shape[:1], gpu=False).forward(images[:, case.shape[0] // 2])
    jobs: dict[str, Callable[[], Any]] = {
        "plan_type2": lambda: nufft.plan(trajectory, case.shape).forward(images),
        "plan_type1": lambda: nufft.plan(trajectory, case.shape).adjoint(case.kspace),
        "plan_type1_double": lambda: nufft.plan(trajectory, case.shape, 1e-9, "complex128").adjoint(case.kspace),
        "cg_sense": lambda: sense.cg_sense(case.kspace, trajectory, case.maps, 4, weights=case.weights),
        "cg_sense_nufft": lambda: sense.cg_sense(case.kspace, trajectory, case.maps, 4, regularisation=0.01, toeplitz=False),
        "cg_sense_stopped": lambda: sense.cg_sense(case.kspace, trajectory, case.maps, 30, 0.1, 0.01, toeplitz=True),
        "cg_sense_double": lambda: sense.cg_sense(case.kspace.astype("complex128"), trajectory, case.maps, 4, nufft_tolerance=1e-9),
        "cg_sense_1d": lambda: sense.cg_sense(line, trajectory[:, :1], case.maps[:, case.shape[0] // 2], 4, toeplitz=True),
        "toeplitz_gram": lambda: device.get(ToeplitzGram(trajectory, case.shape)(device.put(images))),
        "gridding": lambda: sense.gridding(case.kspace, trajectory, case.weights, case.shape, case.maps),
        "tensor_type2": lambda: nufft.nufft(images, trajectory),
        "tensor_type1": lambda: nufft.nufft(case.kspace, trajectory, case.shape, 1),
        "tensor_type1_frames": lambda: nufft.nufft(frames, tf.constant(np.stack([trajectory, -trajectory])[:, None]), case.shape, 1),
        "gridding_tensor": lambda: sense.gridding(tf.constant(case.kspace), trajectory, case.weights, case.shape),
        "cg_sense_tensor": lambda: sense.cg_sense(tf.constant(case.kspace), trajectory, tf.constant(case.maps), 4, weights=case.weights),
    }
    for name, job in jobs.items():
        yield name, functools.partial(difference, job)
    yield "cg_sense_in_groups_of_coils", lambda: error(np.asarray(jobs["cg_sense"]()), in_groups(jobs["cg_sense"]))
    yield "gradients_type2", lambda: differences(functools.partial(gradients, 2))
    yield "gradients_type1", lambda: differences(functools.partial(gradients, 1))
    # The graph remembers the device it was traced for, so it is compared with the eager call.
    graph = tf.function(lambda values: nufft.nufft(values, trajectory, case.shape, 1))
    yield "graph_equals_eager", lambda: error(nufft.nufft(case.kspace, trajectory, case.shape, 1), graph(case.kspace))
    sense_graph = tf.function(lambda k, s: sense.cg_sense(k, trajectory, s, 4, weights=case.weights, toeplitz=True))
    given = tf.constant(case.kspace), tf.constant(case.maps)
    yield "cg_sense_graph_equals_eager", lambda: error(np.asarray(jobs["cg_sense_tensor"]()), sense_graph(*given))
    yield "cg_sense_gradients", lambda: differences(sense_gradients)


def differences(job: Callable[[], list[Any]]) -> float:
    """The largest relative difference of the GPU's results from the CPU's."""
    ours = [np.asarray(value) for value in job()]
    with device.on_cpu():
        expected = [np.asarray(value) for value in job()]
    return float(np.max([error(right, value) for value, right in zip(ours, expected, strict=True)]))


def difference(job: Callable[[], Any]) -> float:
    """The same for one result."""
    return differences(lambda: [job()])


def compared(sizes: gpu_reconstructions.Sizes) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Every reconstruction timed, beside its floor and the CPU's result."""
    for name, job in gpu_reconstructions.reconstructions(sizes).items():
        yield name, functools.partial(gpu_reconstructions.measured, job)


def tensors() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Small reconstructions of tensors, which TensorFlow computes on its own, eagerly: their errors."""
    for name, job in gpu_reconstructions.reconstructions(gpu_reconstructions.TINY, seed=None).items():
        if job.tensors:
            yield name, functools.partial(gpu_reconstructions.from_tensor, job)


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


Section = Callable[[], Iterable[tuple[str, Any]]]


def sections(repeats: int, sizes: gpu_reconstructions.Sizes) -> dict[str, Section]:
    """What there is to check, by name; without a GPU only the timings."""
    wait: Callable[[], Any] = lambda: None  # noqa: E731
    if not device.use_gpu():
        return {"timings": lambda: timings(wait).items()}
    import cupy

    wait = cupy.cuda.Device().synchronize
    return {
        "timings": lambda: timings(wait).items(),
        "difference": lambda: compare(Case(48, coils=8, size=128)),
        "stress": lambda: gpu_stress.all_stress(repeats).items(),
        "volumes": lambda: gpu_more.volumes().items(),
        "memory": lambda: gpu_more.memory().items(),
        "out_of_memory": lambda: gpu_more.out_of_memory().items(),
        "reconstructions": lambda: compared(sizes),
        "tensors": tensors,
        "graphs": gpu_graphs.graphs,
    }


def failures(result: dict[str, Any]) -> list[str]:
    """Names of what was found wrong."""
    failed = [name for name, value in result.get("difference", {}).items() if isinstance(value, dict) or not value < 1e-2]
    checks = {**result.get("stress", {}), "memory": {"passed": True, **result.get("memory", {})}}
    failed += [name for name, value in checks.items() if not value["passed"]]
    for section in ("reconstructions", "tensors", "graphs"):
        failed += [name for name, value in result.get(section, {}).items() if not value.get("worst", np.inf) < value.get("bound", 0)]
    failed += [name for name, value in result.get("out_of_memory", {}).items() if not value["difference"] < 1e-2]
    return failed + [f"{name}: {value}" for name, value in result.get("unfinished", {}).items()]


class Report:
    """Results, on the screen and in the file as soon as they are there. A timer ends the process when its time is up."""

    def __init__(self, path: Path | None, seconds: float | None) -> None:
        self.result: dict[str, Any] = {}
        self._path = path
        self._begin = time.perf_counter()
        self._at = ("start", "")
        if seconds is not None:
            timer = threading.Timer(seconds, self._cut, (seconds,))
            timer.daemon = True
            timer.start()

    def run(self, name: str, section: Section) -> None:
        """Run a section, item by item; an item that is a function is called for its result."""
        found = self.result[name] = {}
        self._at, start = (name, "its set-up"), time.perf_counter()
        try:
            for item, value in section():
                self._at, begin = (name, item), time.perf_counter()
                found[item] = self._called(value) if callable(value) else value
                self._say(f"{name} {item} {json.dumps(found[item])} ({time.perf_counter() - begin:.1f} s)")
        except Exception:
            self.result.setdefault("unfinished", {})[name] = traceback.format_exc()[-1500:]
        self._say(f"{name}: {time.perf_counter() - start:.0f} s")

    @staticmethod
    def _called(item: Callable[[], Any]) -> Any:
        try:
            return item()
        except Exception:
            return {"error": traceback.format_exc()[-1500:]}

    def _say(self, line: str) -> None:
        print(f"{time.perf_counter() - self._begin:6.1f} s  {line}", file=sys.stderr, flush=True)
        self.write()

    def write(self) -> None:
        """Put what is there into the file."""
        self.result["failed"] = failures(self.result)
        if self._path:
            self._path.write_text(json.dumps(self.result, indent=2) + "\n")

    def _cut(self, seconds: float) -> None:
        section, item = self._at
        self.result.setdefault("unfinished", {})[section] = f"not done after {seconds:g} s: {item}"
        self._say(f"{section}: CUT after {seconds:g} s, at {item}; nothing after it was run")
        faulthandler.dump_traceback()
        os._exit(1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all checks; 1 if one fails or is not done in time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    names = "timings, difference, stress, volumes, memory, out_of_memory, reconstructions, tensors, graphs"
    parser.add_argument("--repeats", type=int, default=1000, help="of the stress test")
    parser.add_argument("--only", nargs="+", metavar="SECTION", help=names)
    parser.add_argument("--json", type=Path, help="also write the results to this file, one by one")
    parser.add_argument("--seconds", type=float, help="end after so many seconds, whatever is running; what is not done counts as failed")
    parser.add_argument("--tiny", action="store_true", help="tiny problems in the section reconstructions, to try the script")
    given = parser.parse_args(arguments)
    report = Report(given.json, given.seconds)
    device.configure()
    start = time.perf_counter()
    device.warm_up()
    report.result.update(gpu=device.use_gpu(), warm_up_s=round(time.perf_counter() - start, 2))
    if device.use_gpu():
        import cupy

        report.result["device"] = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    sizes = gpu_reconstructions.TINY if given.tiny else gpu_reconstructions.Sizes()
    for name, section in sections(given.repeats, sizes).items():
        if not given.only or name in given.only:
            report.run(name, section)
    report.write()
    print(json.dumps(report.result, indent=2))
    return bool(report.result["failed"])


if __name__ == "__main__":
    sys.exit(main())
