"""Show what correction of off-resonance and simultaneous slices are worth, against the truth, and what they cost.

    OMP_NUM_THREADS=1 python scripts/bench_b0_sms.py [--repeats 3] [--json OUT.json]

Off-resonance: Shepp-Logan phantom 128 x 128, 8 coils, 8 spiral arms, noise 1 % of the maximum; a field of a bump and a slope, its map
found from two echoes 2 ms apart with one refinement. Simultaneous slices: 12 coils in three rings, 128 x 128, noise 1 %, calibration
of 24 lines; leakage is what one slice alone leaves in the others. Errors are NRMSE of magnitudes; times are CPU seconds, medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from recon import device  # isort: skip  (before NumPy's OpenMP libraries: sets the waiting policy)

import numpy as np

from recon.b0_map import b0_map
from recon.b0_sense import b0_sense
from recon.espirit import espirit
from recon.operators import Nufft
from recon.operators.off_resonance import OffResonance
from recon.operators.sms import caipi_phases
from recon.phantoms import birdcage_coils, shepp_logan
from recon.sense import cg_sense
from recon.slice_grappa import SliceGrappa
from recon.slice_sense import SliceSense

N, ITERATIONS, NOISE, CALIBRATION = 128, 12, 0.01, 24


def timed(function: Callable[[], Any], repeats: int) -> tuple[Any, float]:
    seconds = []
    for _ in range(repeats):
        begin = time.process_time()
        result = function()
        seconds.append(time.process_time() - begin)
    return result, statistics.median(seconds)


def error(image: np.ndarray, truth: np.ndarray) -> float:
    return float(np.linalg.norm(np.abs(image) - np.abs(truth)) / np.linalg.norm(truth))


def noise_like(values: np.ndarray, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    noise: np.ndarray = NOISE * (rng.standard_normal(values.shape) + 1j * rng.standard_normal(values.shape)) / np.sqrt(2)
    return noise


def off_resonance(hertz: float, milliseconds: float, repeats: int) -> dict[str, float]:
    """A field of -`hertz` to `hertz` and a readout of so many ms."""
    arms, samples = 8, 2100
    t = np.sqrt(np.linspace(0, 1, samples))  # constant speed along the spiral
    turn = np.pi * N / arms * t + 2 * np.pi * np.arange(arms)[:, None] / arms
    trajectory = (np.pi * np.stack([t * np.sin(turn), t * np.cos(turn)], -1)).reshape(-1, 2)
    times = np.tile(np.linspace(0, milliseconds / 1000, samples), arms)
    y, x = np.mgrid[:N, :N] / N - 0.5
    field = 150 * np.exp(-((y + 0.2) ** 2 + (x - 0.1) ** 2) / 0.05) - 160 * x
    field = hertz * (2 * (field - field.min()) / np.ptp(field) - 1)
    maps, truth = birdcage_coils(8, (N, N)), shepp_logan((N, N))
    exact = Nufft(trajectory, (N, N), 1e-9)

    def measured(te: float, seed: int) -> Any:
        signal = OffResonance(exact, field, times + te, tolerance=1e-6)(maps.astype(complex) * truth)
        return np.asarray(signal + noise_like(signal, seed), np.complex64)

    echoes = [measured(te, seed) for seed, te in enumerate((0.0, 2e-3))]
    homogeneous = exact(maps.astype(complex) * truth)
    homogeneous = (homogeneous + noise_like(homogeneous, 0)).astype(np.complex64)
    points = trajectory.astype(np.float32)

    def found() -> np.ndarray:
        hz = np.zeros((N, N))
        for _ in range(2):
            images = np.stack([b0_sense(echo, points, maps, hz, times, ITERATIONS) for echo in echoes])
            hz = b0_map(images, [0.0, 2.0]).hz
        return hz

    hz, map_seconds = timed(found, 1)
    corrected, seconds = timed(lambda: b0_sense(echoes[0], points, maps, hz, times, ITERATIONS), repeats)
    blurred, plain_seconds = timed(lambda: cg_sense(echoes[0], points, maps, ITERATIONS), repeats)
    difference = (hz - field)[truth > 0.05]
    return {
        "hertz": hertz,
        "milliseconds": milliseconds,
        "without a field": error(cg_sense(homogeneous, points, maps, ITERATIONS), truth),
        "uncorrected": error(blurred, truth),
        "corrected": error(corrected, truth),
        "with the true map": error(b0_sense(echoes[0], points, maps, field, times, ITERATIONS), truth),
        "map rms Hz": float(np.sqrt((difference**2).mean())),
        "map max Hz": float(np.abs(difference).max()),
        "map s": map_seconds,
        "image s": seconds,
        "uncorrected s": plain_seconds,
    }


def slices(factor: int, acceleration: int, shift: float, repeats: int) -> list[dict[str, Any]]:
    """Both methods for `factor` slices and every `acceleration`-th line."""
    base = np.sqrt(np.maximum(shepp_logan((N, N)), 0))
    truth = np.stack([np.rot90(base, s) * (1 - 0.1 * s) for s in range(factor)])
    coils = birdcage_coils(12, (8 * factor, N, N), rings=3)[:, 4::8].swapaxes(0, 1)
    line = np.arange(N) - N // 2
    transform = np.exp(-2j * np.pi * np.outer(line, line) / N) / np.sqrt(N)
    kspace = transform @ (coils * truth[:, None]) @ transform.T
    lines = line % acceleration == 0
    shifts = [shift / acceleration * s for s in range(factor)]
    phases = caipi_phases(factor, N, shifts)[..., 0]
    modulated = kspace * np.exp(1j * phases)[:, None, :, None] * lines[:, None]
    together = (modulated.sum(0) + noise_like(kspace[0], 1) * lines[:, None]).astype(np.complex64)
    middle = slice((N - CALIBRATION) // 2, (N + CALIBRATION) // 2)
    reference = np.zeros(kspace.shape, np.complex64)
    reference[:, :, middle] = (kspace + noise_like(kspace, 2))[:, :, middle]
    maps, map_seconds = timed(lambda: espirit(reference, calibration=CALIBRATION, crop=0.9, soft=True), 1)
    seen = np.linalg.norm(maps, axis=1)

    def sense() -> Callable[[np.ndarray], np.ndarray]:
        solver = SliceSense(maps, phases, lines)
        return lambda data: solver(data) * seen

    rows = []
    methods: dict[str, Callable[[], Any]] = {
        "sense": sense,
        "slice_grappa": lambda: SliceGrappa(reference[:, :, middle], maps, shifts, acceleration),
    }
    for name, prepare in methods.items():
        solver, prepare_seconds = timed(prepare, 1)
        images, seconds = timed(partial(solver, together), repeats)
        leaks = []
        for s in range(factor):
            alone = solver(modulated[s].astype(np.complex64))
            leaks += [np.linalg.norm(alone[other]) / np.linalg.norm(alone[s]) for other in range(factor) if other != s]
        rows.append(
            {
                "factor": factor,
                "acceleration": acceleration,
                "method": name,
                "error": max(error(image, true) for image, true in zip(images, truth, strict=True)),
                "leakage": float(max(leaks)),
                "maps s": map_seconds,
                "prepare s": prepare_seconds,
                "image s": seconds,
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    fields = [off_resonance(hertz, ms, options.repeats) for hertz in (100.0, 200.0) for ms in (10.0, 20.0)]
    bands = [
        row
        for factor, acceleration, shift in ((2, 1, 1 / 2), (3, 1, 1 / 3), (2, 2, 1 / 2), (3, 2, 1 / 3))
        for row in slices(factor, acceleration, shift, options.repeats)
    ]
    print(f"threads {device.threads()}, GPU {device.use_gpu()}")
    for rows in (fields, bands):
        print(" | ".join(rows[0]))
        for row in rows:
            print(" | ".join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    if options.json:
        options.json.write_text(json.dumps({"off_resonance": fields, "slices": bands}, indent=1))


if __name__ == "__main__":
    main()
