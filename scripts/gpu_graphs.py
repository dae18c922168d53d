"""What is recorded as CUDA graphs - FastDVDnet, griddings - against the CPU, again and again, and timed. Part of `scripts/gpu_check.py`."""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from recon import device, gridding_recorded, nufft
from recon.gridded_magnitude import gridded_magnitude
from recon.networks.denoiser import Denoiser, denoiser
from recon.phantoms import moving_heart
from recon.realtime_spiral import RealtimeSpiral

FRAME_S = 0.0546
NETWORKS = (("fastdvdnet_spiral", 240), ("fastdvdnet_radial", 128))
BOUND = 2e-3
COILS = 10


def graphs() -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """What there is, by name; each result says its worst relative difference and the bound."""
    for name, size in NETWORKS:
        yield name, functools.partial(network, name, size)
    yield "griddings", griddings


def difference(reference: np.ndarray, value: np.ndarray) -> float:
    """Relative l2 error."""
    return float(f"{np.linalg.norm(value - reference) / np.linalg.norm(reference):.2g}")


def times(job: Callable[[], Any]) -> dict[str, float]:
    """Median wall time in ms of 100 runs at once, and of 40 at the pace of HyperSLICE's frames, with the worst of these."""
    result = {}
    for name, runs, gap in (("hot", 100, 0.0), ("paced", 40, FRAME_S)):
        taken, due = [], time.perf_counter()
        for _ in range(runs):
            due += gap
            time.sleep(max(0.0, due - time.perf_counter()))
            start = time.perf_counter()
            job()
            taken.append(1e3 * (time.perf_counter() - start))
        result[f"{name}_ms"], result[f"{name}_worst_ms"] = round(statistics.median(taken), 3), round(max(taken), 3)
    return result


def network(name: str, size: int) -> dict[str, Any]:
    """A shipped network, recorded and by TensorFlow on the GPU, against TensorFlow on the CPU; 100 windows in turn, always the same."""
    import cupy

    there = denoiser(name)
    random = np.random.default_rng(0)
    heart = np.stack([np.abs(moving_heart((size, size), 40.0 * n)) for n in range(8)])
    frames = (heart + 0.2 * random.random(heart.shape)).astype(np.float32)[:, None]
    given = [cupy.asarray(frame) for frame in frames]
    windows = [slice(n, n + 5) for n in range(4)]
    with device.on_cpu():
        here = Denoiser(name, there.network, there.frames, there.scaling, there.multiple)
        expected = [here(list(frames[window])) for window in windows]
    first = [there(given[window]) for window in windows]
    changed = sum(not np.array_equal(there(given[windows[n % 4]]), first[n % 4]) for n in range(100))
    worst = max(map(difference, expected, first))
    recorded = dict(there._recorded)
    found: dict[str, Any] = {"recorded": None not in recorded.values(), "changed_of_100": changed, **times(lambda: there(given[:5]))}
    there._recorded.update(dict.fromkeys(recorded))
    found["tensorflow"] = {"difference": difference(expected[0], there(given[:5])), **times(lambda: there(given[:5]))}
    there._recorded.update(recorded)
    return {"worst": worst if found["recorded"] and not changed else math.inf, "bound": BOUND, **found}


def griddings() -> dict[str, Any]:
    """400 frames of HyperSLICE, its twelve rotations in turn, against NUFFTs in double precision; five images are kept at a time."""
    import cupy

    gridding_recorded.clear_graphs()
    protocol = RealtimeSpiral()
    shape = (protocol.base_resolution,) * 2
    trajectories = [np.ascontiguousarray(points.reshape(-1, 2), np.float32) for points in protocol.trajectory]
    random = np.random.default_rng(0)
    samples = len(trajectories[0])
    kspace = (random.standard_normal((COILS, samples)) + 1j * random.standard_normal((COILS, samples))).astype(np.complex64)
    weights = protocol.weights.reshape(-1).astype(np.float32)
    expected = []
    for points in trajectories:
        points.setflags(write=False)
        plan = nufft.Nufft(points, shape, 1e-6, "complex128", gpu=False)
        expected.append(np.sqrt((np.abs(plan.adjoint((kspace * weights).astype(complex))) ** 2).sum(0)))
    data, there = cupy.asarray(kspace), cupy.asarray(weights)
    worst, kept = 0.0, []
    for n in range(400):
        kept.append(gridded_magnitude(data * np.float32(1 + n % 3), trajectories[n % 12], there, shape))
        if len(kept) == 5:
            for number, image in enumerate(kept, n - 4):
                worst = max(worst, difference((1 + number % 3) * expected[number % 12], image.get()))
            kept = []

    count = sum(one is not None for one in gridding_recorded._graphs._values.values())
    for n in range(gridding_recorded.RECORDED + 6):  # the first ones go
        other = trajectories[0] * np.float32(1 - n / 1000)
        worst = max(worst, difference(*(gridded_magnitude(data, other, there, shape).get() for _ in range(2))))
    for _ in range(2):
        gridded_magnitude(data, trajectories[0], there, shape)

    def job() -> None:
        gridded_magnitude(data, trajectories[0], there, shape)
        cupy.cuda.Stream.null.synchronize()

    return {"worst": worst if count == len(trajectories) else math.inf, "bound": BOUND, "samples": samples, "graphs": count, **times(job)}
