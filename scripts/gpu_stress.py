"""Does anything race between TensorFlow's stream and CuPy's? Part of `scripts/gpu_check.py`.

Every test runs under load - a kernel that spins for a while is queued in front of each transform - and as often with one of the waits of
`recon` taken away: if that does not fail, the test could not have found a race.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from recon import device, gpu_plans, hand_over, nufft, sense
from recon.phantoms import birdcage_coils
from recon.trajectory import radial_trajectory

SPIN_US = 300
_SPIN = r"""
extern "C" __global__ void spin(long long ns) {
  unsigned long long start, now;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(start));
  do { asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now)); } while (now - start < ns);
}
"""


@cache
def _spin() -> Any:
    import cupy

    return cupy.RawKernel(_SPIN, "spin")


def spin(us: int = SPIN_US) -> None:
    """Keep CuPy's current stream busy."""
    _spin()((1,), (1,), (np.int64(1000 * us),))


@contextmanager
def late_transforms() -> Iterator[None]:
    """Queue a spinning kernel in front of every NUFFT."""
    plain = gpu_plans.GpuPlans.execute_into

    def late(self: Any, source: Any, result: Any, adjoint: bool) -> None:
        import cupy

        with cupy.cuda.Stream.null:
            spin()
        plain(self, source, result, adjoint)

    gpu_plans.GpuPlans.execute_into = late  # type: ignore[method-assign]
    try:
        yield
    finally:
        gpu_plans.GpuPlans.execute_into = plain  # type: ignore[method-assign]


@contextmanager
def without(module: ModuleType, name: str) -> Iterator[None]:
    """Take a wait away."""
    plain = getattr(module, name)
    setattr(module, name, lambda *_: None)
    try:
        yield
    finally:
        setattr(module, name, plain)


def verdict(errors: list[float], tolerance: float) -> dict[str, Any]:
    """How many results were wrong."""
    wrong = sum(not value < tolerance for value in errors)
    return {"repeats": len(errors), "wrong": wrong, "worst_error": max(errors, key=lambda e: (np.isnan(e), e)), "passed": not wrong}


def tensors(repeats: int) -> dict[str, Any]:
    """NUFFTs, there and back, of ever-changing combinations of two images, against the combinations of their transforms.

    Every input is the last link of a chain of operations on TensorFlow's stream, every output is used there and dropped at once.
    """
    import tensorflow as tf

    size = 128
    trajectory = radial_trajectory(size, 16, ordering="golden").reshape(-1, 2)
    rng = np.random.default_rng(0)
    images = tf.constant((rng.standard_normal((2, 8, size, size)) + 1j).astype(np.complex64))
    busy = tf.constant(rng.standard_normal((1024, 1024)).astype(np.float32)) / 40
    kspace = nufft.nufft(images, trajectory)
    back = nufft.nufft(kspace, trajectory, (size, size), 1)
    errors = []
    with late_transforms():
        for _ in range(repeats):
            a, b = (tf.constant(complex(*rng.standard_normal(2)), tf.complex64) for _ in range(2))
            chain = busy
            for _ in range(4):
                chain = chain @ busy
            expected = a * back[0] + b * back[1]
            image = a * images[0] + b * images[1] + tf.cast(0 * chain[0, 0], tf.complex64)
            # Used at once: every operation in between would be time for the transform to end.
            error = nufft.nufft(nufft.nufft(image, trajectory), trajectory, (size, size), 1) - expected
            errors.append(tf.norm(tf.abs(error)) / tf.norm(tf.abs(expected)))
    return verdict([float(value) for value in errors], 1e-3)


def streams(repeats: int) -> dict[str, Any]:
    """The same for CuPy arrays on a stream of the caller's own, always in the same memory."""
    import cupy

    size = 128
    trajectory = radial_trajectory(size, 16, ordering="golden").reshape(-1, 2)
    plan = nufft.plan(trajectory, (size, size))
    rng = np.random.default_rng(1)
    images = device.put((rng.standard_normal((2, 8, size, size)) + 1j).astype(np.complex64))
    kspace = plan.forward(images)
    image, errors = images[0].copy(), []
    cupy.cuda.Device().synchronize()
    with cupy.cuda.Stream(non_blocking=True), late_transforms():
        for _ in range(repeats):
            a, b = (np.complex64(complex(*rng.standard_normal(2))) for _ in range(2))
            spin()
            image[...] = a * images[0] + b * images[1]
            expected = a * kspace[0] + b * kspace[1]
            errors.append(cupy.linalg.norm(plan.forward(image) - expected) / cupy.linalg.norm(expected))
        return verdict([float(value) for value in errors], 1e-3)


def frames(repeats: int, kinds: tuple[str, ...] = ("numpy", "resident", "tensor")) -> dict[str, Any]:
    """CG-SENSE of frames with ever new trajectories, from NumPy, CuPy and tensors in turn, against the same on the CPU."""
    import tensorflow as tf

    coils, shape = 8, (64, 64)
    maps = birdcage_coils(coils, shape).astype(np.complex64)
    maps.setflags(write=False)
    spokes = radial_trajectory(64, 16 * 13, ordering="golden").reshape(16, -1, 2)
    rng = np.random.default_rng(3)
    size = (len(spokes), coils, spokes.shape[1])
    kspace = (rng.standard_normal(size) + 1j * rng.standard_normal(size)).astype(np.complex64)
    on_gpu = tf.constant(kspace), tf.constant(maps)

    def frame(kind: str, index: int, scale: float) -> Any:
        samples, chosen = np.float32(scale) * kspace[index], maps
        if kind == "resident":
            samples = np.float32(scale) * device.put(kspace[index])
        elif kind == "tensor":
            samples, chosen = tf.constant(scale, tf.complex64) * on_gpu[0][index], on_gpu[1]
        image = sense.cg_sense(samples, spokes[index], chosen, 4, regularisation=0.01)
        # A tensor is read in the order of TensorFlow's stream, not after a wait for the whole GPU.
        return device.get(image) if kind == "resident" else np.asarray(2 * image) / 2

    with device.on_cpu():
        expected = [frame("numpy", index, 1) for index in range(len(spokes))]
    errors = []
    with late_transforms():
        for repeat in range(repeats):
            index, scale = int(rng.integers(len(spokes))), float(rng.uniform(0.5, 2))
            wanted = scale * expected[index]
            errors.append(float(np.linalg.norm(frame(kinds[repeat % len(kinds)], index, scale) - wanted) / np.linalg.norm(wanted)))
    return verdict(errors, 1e-2)


def lending_waits() -> bool:
    """Tell whether TensorFlow itself waits for its stream when it lends a tensor."""
    import time

    import tensorflow as tf

    busy = tf.constant(np.random.default_rng(0).standard_normal((8192, 8192)).astype(np.float32))

    def lend() -> float:
        product = busy
        for _ in range(4):
            product = product @ busy
        start = time.perf_counter()
        tf.experimental.dlpack.to_dlpack(product)
        lent = time.perf_counter() - start
        hand_over.wait_for_tensorflow()
        return lent / (time.perf_counter() - start)

    lend()
    return lend() > 0.5


def all_stress(repeats: int) -> dict[str, Any]:
    """Each test as it is, which must pass, and with a wait taken away, which must not."""
    on_gpu = device.use_gpu()
    result: dict[str, Any] = {"frames": frames(repeats)} if on_gpu else {}
    tests: list[tuple[str, Callable[[int], dict[str, Any]], ModuleType, str]] = [
        ("tensors", tensors, hand_over, "wait_for_cupy"),
        ("tensor_frames", lambda n: frames(n, ("tensor",)), hand_over, "wait_for_cupy"),
        ("streams", streams, gpu_plans, "wait_for"),
    ]
    for name, test, module, wait in tests if on_gpu else []:
        result[name] = test(repeats)
        with without(module, wait):
            broken = test(max(1, repeats // 10))
        result[f"{name}_without_{wait}"] = {**broken, "passed": not broken["passed"]}
    if on_gpu:
        with without(hand_over, "wait_for_tensorflow"):
            result["tensors_without_wait_for_tensorflow"] = {**tensors(repeats // 10), "lending_waits": lending_waits()}
    return result
