"""Volumes and memory on a GPU. Part of `scripts/gpu_check.py`."""

from __future__ import annotations

import functools
import io
import logging
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from recon import device, gpu_plans, nufft, sense
from recon.koosh_ball import koosh_ball_trajectory
from recon.phantoms import birdcage_coils, shepp_logan
from recon.sense_recorded import clear_graphs
from recon.trajectory import radial_trajectory

MIB = 2**20


def difference(reference: Any, value: Any) -> float:
    """Relative l2 error of an array, CuPy array or tensor."""
    value = value.get() if hasattr(value, "get") else np.asarray(value)
    return float(f"{np.linalg.norm(value - reference) / np.linalg.norm(reference):.2g}")


def ms(job: Callable[[], Any], repeats: int = 5) -> float:
    """Median wall time in ms, after one run, the GPU idle before and after."""
    import cupy

    times = []
    for _ in range(repeats + 1):
        cupy.cuda.Device().synchronize()
        start = time.perf_counter()
        job()
        cupy.cuda.Device().synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return round(statistics.median(times[1:]), 2)


def timed(job: Callable[[], Any]) -> tuple[float, Any]:
    """Wall time in ms - of the first run where that is long, else the median of the next three - and the result."""
    import cupy

    start = time.perf_counter()
    result = job()
    cupy.cuda.Device().synchronize()
    first = 1e3 * (time.perf_counter() - start)
    return (ms(job, 3) if first < 1500 else round(first)), result


def tensor(values: np.ndarray) -> Any:
    """The array as a tensor."""
    import tensorflow as tf

    return tf.constant(values)


def volumes() -> dict[str, Any]:
    """CG-SENSE of a koosh ball, 8 coils, 10 iterations: 32 cubed against the CPU, 64 cubed timed; by convolution and by NUFFTs."""
    result: dict[str, Any] = {}
    for size, spokes in ((32, 600), (64, 2000)):
        shape = (size,) * 3
        trajectory = koosh_ball_trajectory(size, spokes).reshape(-1, 3).astype(np.float32)
        maps = birdcage_coils(8, shape).astype(np.complex64)
        truth = np.zeros(shape, np.complex64)
        truth[size // 4 : -size // 4] = shepp_logan((size, size))
        kspace = nufft.Nufft(trajectory, shape, 1e-4).forward(maps * truth)
        given = device.put(kspace), device.put(maps)

        def solve(toeplitz: bool | None, kspace: Any, maps: Any, points: np.ndarray = trajectory) -> Any:
            return sense.cg_sense(kspace, points, maps, 10, regularisation=0.01, toeplitz=toeplitz)

        if size == 32:
            with device.on_cpu():
                expected = solve(False, kspace, maps)
        for name, toeplitz in (("convolution", True), ("nufft", False), ("default", None)):
            key = f"{size}_cubed_{len(trajectory)}_samples_{name}"
            took, image = timed(functools.partial(solve, toeplitz, *given))
            result[key] = {"ms": took, "nrmse": difference(truth, image)}
            if size == 32:
                result[key]["difference"] = difference(expected, image)
                result[key]["difference_tensor"] = difference(expected, solve(toeplitz, tensor(kspace), tensor(maps)))
        fresh = iter([trajectory + np.float32(1e-6 * n) for n in range(1, 9)])
        result[f"{size}_cubed_new_trajectory_convolution_ms"] = ms(functools.partial(with_next, solve, given, fresh), 3)
    return result


def with_next(solve: Callable[..., Any], given: tuple[Any, ...], trajectories: Iterator[np.ndarray]) -> Any:
    """Solve with a trajectory that is new."""
    return solve(True, *given, next(trajectories))


def used_mib() -> int:
    """GPU memory in use by all, once CuPy's pool has given back what it does not need."""
    import cupy

    cupy.get_default_memory_pool().free_all_blocks()
    free, total = cupy.cuda.runtime.memGetInfo()
    return int((total - free) // MIB)


def memory() -> dict[str, Any]:
    """GPU memory after so many trajectories of three sizes; it must not go on growing."""
    used = {}
    for count in range(1, 241):
        size = (64, 96, 128)[count % 3]
        trajectory = (radial_trajectory(size, 8).reshape(-1, 2) * (1 - count * 1e-4)).astype(np.float32)
        maps = np.ones((4, size, size), np.complex64) / 2
        sense.cg_sense(np.ones((4, len(trajectory)), np.complex64), trajectory, maps, 2)
        if count in (60, 120, 180, 240):
            used[count] = used_mib()
    return {"used_mib": used, "plans": len(gpu_plans._pool), "trajectories": nufft.cached_plans(), "passed": used[240] <= used[120] + 8}


@contextmanager
def little_memory(mib: int) -> Iterator[None]:
    """Leave so much GPU memory free and no more."""
    import cupy

    nufft.clear_plans()
    clear_graphs()
    cupy.get_default_memory_pool().free_all_blocks()
    free = cupy.cuda.runtime.memGetInfo()[0]
    hog = cupy.cuda.runtime.malloc(free - mib * MIB)
    try:
        yield
    finally:
        cupy.cuda.runtime.free(hog)


@contextmanager
def messages() -> Iterator[io.StringIO]:
    """What `recon` logs."""
    text = io.StringIO()
    handler = logging.StreamHandler(text)
    logging.getLogger("recon").addHandler(handler)
    try:
        yield text
    finally:
        logging.getLogger("recon").removeHandler(handler)


def out_of_memory() -> dict[str, Any]:
    """A NUFFT of 32 coils and 512 x 512 (268 MB of fine grids) and CG-SENSE of them with little memory left, against the CPU."""
    size, coils = 512, 32
    trajectory = radial_trajectory(size, 16, ordering="golden").reshape(-1, 2)
    maps = birdcage_coils(coils, (size, size), rings=2).astype(np.complex64)
    image = shepp_logan((size, size)).astype(np.complex64)
    with device.on_cpu():
        kspace = nufft.plan(trajectory, (size, size)).forward(maps * image)
        back = nufft.plan(trajectory, (size, size)).adjoint(kspace)
        solved = sense.cg_sense(kspace, trajectory, maps, 2, regularisation=0.1)
    result: dict[str, Any] = {}
    jobs: dict[str, tuple[Any, Callable[[], Any]]] = {
        "type1": (back, lambda: nufft.Nufft(trajectory, (size, size)).adjoint(kspace)),
        "cg_sense": (solved, lambda: sense.cg_sense(kspace, trajectory, maps, 2, regularisation=0.1)),
    }
    for left in (2000, 350, 200, 130, 110, 30):
        for name, (expected, job) in jobs.items():
            with messages() as text:
                try:
                    with little_memory(left):
                        value = job()
                    result[f"{name}_{left}_mib"] = {"difference": difference(expected, value), "warnings": text.getvalue().splitlines()}
                except Exception:
                    result[f"{name}_{left}_mib"] = {"difference": float("nan"), "error": traceback.format_exc()[-1500:]}
    for name, (expected, job) in jobs.items():
        result[f"{name}_afterwards"] = {"difference": difference(expected, job())}
    return result
