"""Time, copies and memory of a fit in blocks of slices beside that of the whole volume: VFA, 10 flip angles, TGV.

    python scripts/bench_blocks.py [--slices N] [--size N] [--block N] [--iterations N] [--encoding images|radial] [--modes ...] [--plain]

A Gauss-Newton step of one inner iteration, for which graphs are compiled, and one of so many, which counts. Modes: the whole volume at
once; blocks one after another (serial); blocks with copies ahead of and behind the computation (ahead); the same with two threads that
give a device work (lanes); serial with arrays in files (files, without a GPU). Hidden: the share of the serial mode's copies by whose
time an iteration became shorter; hideable: the same if the longest of copies up, copies down and computation were all that is left.
Standard error says where it is, and every 20 s in one place what all threads do there.

On a GPU all modes run in this process; memory is the device's own count of bytes at the peak, less that before. Without one, each mode
runs in a process of its own; memory is the largest resident set less that before the fit, for device memory is host memory there.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from recon import device  # before NumPy's OpenMP libraries: sets the waiting policy

import numpy as np  # isort: skip

from recon.phantoms import birdcage_coils
from recon.quantitative import slices as data
from recon.quantitative.irgn import Step, fit
from recon.quantitative.lanes import Blocks, Lanes
from recon.quantitative.model import SignalModel
from recon.quantitative.settings import Settings
from recon.quantitative.slices import SliceData

MODES = ("serial", "ahead", "lanes", "whole", "files")
COILS, SPOKES = 4, 21
LONG = 20
"""Seconds in one place after which all threads' stacks are shown."""


class Progress:
    """Lines on standard error: seconds since the start, since the line before, and what took them; stacks when none comes."""

    def __init__(self) -> None:
        self._begun = self._last = time.perf_counter()
        self.watching = True
        # Not by faulthandler: of threads that go on running its dump can crash.
        threading.Thread(target=self._watch, args=(threading.get_ident(),), daemon=True).start()

    def __call__(self, done: str) -> None:
        now = time.perf_counter()
        print(f"{now - self._begun:7.2f} s, {now - self._last:6.2f} s for {done}", file=sys.stderr, flush=True)
        self._last = now

    def _watch(self, main: int) -> None:
        shown = 0.0
        while self.watching:
            time.sleep(1)
            if time.perf_counter() - max(self._last, shown) < LONG:
                continue
            shown = time.perf_counter()
            for thread, frame in sys._current_frames().items():
                if thread != threading.get_ident():
                    stack = " < ".join(f"{Path(at.filename).name}:{at.lineno} {at.name}" for at in reversed(traceback.extract_stack(frame)))
                    print(f"{shown - self._begun:7.2f} s, {'main' if thread == main else 'thread'}: {stack}", file=sys.stderr, flush=True)


class ToldLanes(Lanes):
    """Tells of each pass over the volume that took more than a second."""

    def __init__(self, devices: tuple[str, ...], ahead: int, told: Callable[[str], None]) -> None:
        super().__init__(devices, ahead)
        self._told = told

    def sweep(self, *args: Any) -> list[Any]:
        begun = time.perf_counter()
        numbers = super().sweep(*args)
        if time.perf_counter() - begun > 1:
            self._told(f"{sys._getframe(1).f_code.co_name}: {time.perf_counter() - begun:.2f} s, and what came before it")
        return numbers


@dataclass(frozen=True)
class ToldBlocks(Blocks):
    """Blocks that tell of their passes."""

    told: Callable[[str], None] = print

    def lanes(self) -> Lanes:
        return ToldLanes(self.devices, self.ahead or 0, self.told)


def volume(slices: int, size: int) -> tuple[SignalModel, np.ndarray]:
    """VFA model and noisy images `[flip angle, slice, y, x]` of tubes whose T1 grows from slice to slice."""
    from recon.quantitative.catalogue import model_from

    model = model_from("VFA", {"TR": 5.4, "flip_angle(s)": [1, 2, 3, 4, 5, 7, 9, 11, 14, 19]})
    y, x = np.mgrid[:size, :size] / (size / 2) - 1
    random = np.random.default_rng(0)
    images = np.empty((10, slices, size, size), np.complex64)
    for n in range(slices):
        t1 = np.where(np.hypot(y - 0.3, x) < 0.3, 600, 1200) * (1 + 0.02 * n)
        inside = np.hypot(y, x) < 0.85
        clean = np.asarray(model(np.stack([inside.astype(complex), t1.astype(complex)])))
        noise = random.standard_normal((2, *clean.shape), np.float32)
        images[:, n] = clean + 1e-3 * (noise[0] + 1j * noise[1])
    return model, images


def radial(images: np.ndarray) -> SliceData:
    """The first of these slices as a stack of stars of 4 coils and 21 spokes a flip angle, as often as there are slices."""
    from recon.nufft import Nufft

    contrasts, count, size, _ = images.shape
    angles = np.arange(contrasts * SPOKES)[:, None] * np.pi * (np.sqrt(5) - 1) / 2
    radius = (np.arange(2 * size) - size) / size * np.pi
    points = np.stack([np.sin(angles) * radius, np.cos(angles) * radius], -1).reshape(contrasts, -1, 2).astype(np.float32)
    maps = birdcage_coils(COILS, (size, size)).astype(np.complex64)
    kspace = np.stack([Nufft(p, (size, size)).forward(maps * x) for p, x in zip(points, images[:, 0], strict=True)])
    weights = np.linalg.norm(points, axis=-1) + np.pi / size / 4
    one = data.noncartesian(kspace[:, :, None], points, maps[:, None], weights / weights.mean(), toeplitz=True)
    rhs, coils = np.repeat(one.rhs, count, 1), np.repeat(one.operands[0], count, 1)
    bound, diagonal = (np.repeat(part, count, 1) for part in (one.bound, one.diagonal))
    return SliceData(rhs, bound, diagonal, one.gram, (coils, *one.operands[1:]), count * one.energy, count * one.samples)


class HostMemory:
    """Largest resident set of this process less what it was."""

    def __init__(self) -> None:
        self._before = resident()

    def peak(self) -> int:
        return peak() - self._before


class DeviceMemory:
    """Bytes that TensorFlow had in use on the GPU at the peak, less those before, and what CuPy has taken, of which blocks are made."""

    def __init__(self) -> None:
        import cupy
        import tensorflow as tf

        cupy.get_default_memory_pool().free_all_blocks()
        self._taken: int = cupy.get_default_memory_pool().total_bytes()
        tf.config.experimental.reset_memory_stats("GPU:0")
        self._before: int = tf.config.experimental.get_memory_info("GPU:0")["current"]

    def peak(self) -> int:
        import cupy
        import tensorflow as tf

        taken: int = cupy.get_default_memory_pool().total_bytes() - self._taken
        most: int = tf.config.experimental.get_memory_info("GPU:0")["peak"]
        return most - self._before + taken


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak() -> int:
    """The most that it was. (`getrusage` would count what the parent had before it started this program.)"""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def measure(
    mode: str, model: SignalModel, given: SliceData, block: int, iterations: int, gpu: bool, plain: bool, progress: Progress
) -> dict[str, Any]:
    """One fit."""
    settings = Settings("TGV", max_gn_it=2, start_iters=1, inc=iterations, max_iters=iterations, rtol=0, atol=0, stag=0, replicas=0)
    where = "GPU:0" if gpu else "CPU:0"
    start = np.empty((2, *given.voxels), np.complex64)
    start[0], start[1] = np.abs(given.rhs).max() / np.abs(given.bound).max(), 1000

    def told(step: Step) -> None:
        progress(f"{mode}: step {step.number} of {step.total}, {step.iterations} iterations")

    files: Any = tempfile.TemporaryDirectory() if mode == "files" else nullcontext(None)
    with files as folder:
        devices, ahead = {"ahead": (1, 2 if gpu else 1), "lanes": (2, 2 if gpu else 1)}.get(mode, (1, 0))
        place = Path(folder) if folder else None
        blocks = None if mode == "whole" else ToldBlocks(block, (where,) * devices, ahead, place, False if plain else None, progress)
        memory = DeviceMemory() if gpu else HostMemory()
        clock, cpu = time.perf_counter(), time.process_time()
        step = fit(model, given, settings, start=start, callback=told, block_slices=blocks).steps[-1]
        row = {"mode": mode, "iteration_s": step.seconds / step.iterations, "iterations": step.iterations, "cost": step.cost}
        row |= {"fit_s": time.perf_counter() - clock, "fit_cpu_s": time.process_time() - cpu, "peak_gb": memory.peak() / 1e9}
    progress(f"{mode}: deviations")
    if step.times is not None:
        times = {
            "iteration_s": step.times.wall,
            "up_s": step.times.up,
            "down_s": step.times.down,
            "compute_s": step.times.computed,
            "waited_s": step.times.waited,
        }
        copied = {"up_gb": step.times.bytes_up / 1e9, "down_gb": step.times.bytes_down / 1e9}
        row |= {key: value / step.iterations for key, value in (times | copied).items()}
    return {key: value if isinstance(value, str) else float(f"{value:.4g}") for key, value in row.items()}


def finish(rows: list[dict[str, Any]], gpu: bool) -> None:
    """Say what of the copies each mode hides, and its memory beside the whole's. On a CPU copies only compete with computation."""
    by = {row["mode"]: row for row in rows}
    serial, whole = by.get("serial"), by.get("whole")
    for row in rows:
        if gpu and serial and "up_s" in row:
            copies = serial["up_s"] + serial["down_s"]
            least = max(serial["up_s"], serial["down_s"], serial["compute_s"])
            row["hidden"] = round((serial["iteration_s"] - row["iteration_s"]) / copies, 3)
            row["hideable"] = round((serial["iteration_s"] - least) / copies, 3)
        if whole and row is not whole:
            row["of_whole"] = round(row["peak_gb"] / whole["peak_gb"], 3)
        print(json.dumps(row), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    progress = Progress()
    # In a process of its own a mode must not touch the GPU before it is asked to.
    gpu = "--mode" not in sys.argv and device.use_gpu()
    progress("imports and devices")
    sizes = (32, 160, 4, 6) if gpu else (16, 128, 2, 10)
    for name, default in zip(("slices", "size", "block", "iterations"), sizes, strict=True):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--encoding", choices=("images", "radial"), default="images")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=MODES[:4] if gpu else MODES)
    parser.add_argument("--plain", action="store_true", help="blocks are not compiled by XLA")
    parser.add_argument("--mode", choices=MODES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    modes = [options.mode] if options.mode else options.modes
    if not gpu and not options.mode:
        progress.watching = False
        command = [sys.executable, *sys.argv, "--mode"]
        done = [subprocess.run([*command, mode], stdout=subprocess.PIPE, text=True) for mode in modes]
        failed = next((one for one in done if one.returncode), None)
        if failed is not None:
            sys.exit(f"{failed.args} failed")
        finish([json.loads(one.stdout.splitlines()[-1]) for one in done], gpu)
        return
    model, images = volume(options.slices, options.size)
    given = data.images(images) if options.encoding == "images" else radial(images)
    progress("data")
    if options.mode:
        few = data.images(volume(4, 16)[1])
        measure(options.mode, model, few, options.block, 1, gpu, options.plain, progress)  # so that libraries are there
    rows = []
    for mode in modes:
        rows.append(measure(mode, model, given, options.block, options.iterations, gpu, options.plain, progress))
        print(rows[-1], file=sys.stderr, flush=True)  # for runs that are cut
    finish(rows, gpu)


if __name__ == "__main__":
    main()
