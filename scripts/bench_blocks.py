"""Memory and time of a fit in blocks of slices beside that of the whole volume: VFA, 10 flip angles, 16 slices of 128 x 128, TGV.

Each in a process of its own. Memory: largest resident set less that before the fit, the data being there; without a GPU device memory is
host memory, so that blocks are measured with arrays of the volume in memory and in files.

    python scripts/bench_blocks.py [--slices 16] [--size 128] [--block 2] [--iterations 10]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from recon.quantitative.model import SignalModel

MODES = ("whole", "blocks", "files", "threads")


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
        images[:, n] = clean + 1e-3 * (random.standard_normal(clean.shape) + 1j * random.standard_normal(clean.shape))
    return model, images


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak() -> int:
    """The most that it was. (`getrusage` would count what the parent had before it started this program.)"""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def measure(mode: str, slices: int, size: int, block: int, iterations: int) -> dict[str, float]:
    """One fit."""
    from recon.quantitative import data_term
    from recon.quantitative import slices as data
    from recon.quantitative.irgn import fit
    from recon.quantitative.lanes import Blocks
    from recon.quantitative.settings import Settings

    settings = Settings("TGV", max_gn_it=1, start_iters=iterations, rtol=0, atol=0, stag=0)
    model, few = volume(4, 16)
    with tempfile.TemporaryDirectory() as folder:
        blocks = {
            "whole": None,
            "blocks": Blocks(block),
            "files": Blocks(block, folder=Path(folder)),
            "threads": Blocks(block, ahead=1),
        }[mode]
        fit(model, data.images(few), settings, block_slices=blocks)  # so that libraries and graphs are there
        model, images = volume(slices, size)
        given = data_term.from_images(images) if blocks is None else data.images(images)
        before, clock, cpu = resident(), time.perf_counter(), time.process_time()
        result = fit(model, given, settings, block_slices=blocks)
    step = result.steps[-1]
    return {
        "peak_mb": (peak() - before) / 1e6,
        "before_mb": before / 1e6,
        "s": time.perf_counter() - clock,
        "cpu_s": time.process_time() - cpu,
        "s_per_iteration": step.seconds / step.iterations,
        "hidden": -1.0 if step.hidden is None else step.hidden,
        "cost": step.cost,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("slices", 16), ("size", 128), ("block", 2), ("iterations", 10)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--mode", choices=MODES)
    options = parser.parse_args()
    if options.mode:
        print(json.dumps(measure(options.mode, options.slices, options.size, options.block, options.iterations)))
        return
    for mode in MODES:
        done = subprocess.run([sys.executable, *sys.argv, "--mode", mode], capture_output=True, text=True, check=True)
        print(mode, done.stdout.strip().splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
