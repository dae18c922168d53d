"""Time this package's NUFFT and CG-SENSE against raw finufft in the same run: medians and ratios.

    python scripts/bench_recon.py [--repeats 15] [--json OUT.json]

The first peer is what a careful user writes in ten lines: finufft plans for all coils at once, reused, with all its threads. Beside
it run those of mri-nufft, mrpro, sigpy and BART that are installed (see `peers.py`). NRMSE is after the best complex factor.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recon import device  # before finufft: sets the OpenMP waiting policy

import finufft  # isort: skip
import numpy as np
from peers import peers

from recon import density, nufft, sense
from recon.metrics import nrmse
from recon.phantoms import birdcage_coils, shepp_logan
from recon.trajectory import radial_trajectory

COILS, SIZE = 16, 256


def alternate(functions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, dict[str, float]]:
    """Median wall and CPU time in ms of each function, called in turn so that a busy machine slows all alike."""
    clocks = {"wall_ms": time.perf_counter, "cpu_ms": time.process_time}
    times: dict[str, dict[str, list[float]]] = {clock: {name: [] for name in functions} for clock in clocks}
    for repeat in range(repeats + 1):
        for name, function in functions.items():
            start = {clock: read() for clock, read in clocks.items()}
            function()
            if repeat:
                for clock, read in clocks.items():
                    times[clock][name].append(1e3 * (read() - start[clock]))
    return {clock: {name: round(statistics.median(values), 2) for name, values in by_name.items()} for clock, by_name in times.items()}


def raw_plans(trajectory: np.ndarray) -> tuple[finufft.Plan, finufft.Plan]:
    """Plans of both types for all coils, at the accuracy and the threads of ours."""
    plans = []
    for kind, sign in ((2, -1), (1, 1)):
        plan = finufft.Plan(kind, (SIZE, SIZE), COILS, nufft.TOLERANCE, sign, dtype="complex64", nthreads=device.threads())
        plan.setpts(*np.ascontiguousarray(trajectory.T))
        plans.append(plan)
    return plans[0], plans[1]


def raw_cg(kspace: np.ndarray, maps: np.ndarray, trajectory: np.ndarray, iterations: int) -> np.ndarray:
    """CG-SENSE in NumPy on raw plans."""
    forward, adjoint = raw_plans(trajectory)
    conjugate = maps.conj()

    def back(samples: np.ndarray) -> np.ndarray:
        return (conjugate * adjoint.execute(samples)).sum(0) / SIZE

    residual = back(kspace)
    image, direction = np.zeros_like(residual), residual.copy()
    energy = np.vdot(residual, residual).real
    for _ in range(iterations):
        applied = back(forward.execute(maps * direction)) / SIZE
        step = energy / np.vdot(direction, applied).real
        image += step * direction
        residual -= step * applied
        previous, energy = energy, np.vdot(residual, residual).real
        direction = residual + (energy / previous) * direction
    return image


def compare(spokes: int, repeats: int) -> dict[str, Any]:
    """Medians, ratios (ours / raw) and errors for one number of golden-angle spokes."""
    shape = (SIZE, SIZE)
    trajectory = radial_trajectory(SIZE, spokes, ordering="golden").reshape(-1, 2)
    truth = shepp_logan(shape).astype(np.complex64)
    maps = birdcage_coils(COILS, shape)
    maps /= np.sqrt((np.abs(maps) ** 2).sum(0))
    exact = nufft.Nufft(trajectory, shape, 1e-6, np.complex128, gpu=False).forward(maps * truth)
    kspace = exact.astype(np.complex64)
    images = np.ascontiguousarray(maps * truth, np.complex64)
    raw2, raw1 = raw_plans(trajectory)
    ours = nufft.plan(trajectory, shape)
    weights = density.pipe_weights(trajectory, shape)
    runs: dict[str, Callable[[], Any]] = {
        "type2_raw": lambda: raw2.execute(images),
        "type2": lambda: ours.forward(images),
        "type1_raw": lambda: raw1.execute(kspace),
        "type1": lambda: ours.adjoint(kspace),
        "cg10_raw": lambda: raw_cg(kspace, maps, trajectory, 10),
        "cg10": lambda: sense.cg_sense(kspace, trajectory, maps, 10),
        "cg4_weighted": lambda: sense.cg_sense(kspace, trajectory, maps, 4, weights=weights),
    }
    runs |= peers(trajectory.astype(np.float32), maps.astype(np.complex64), kspace, images, nufft.TOLERANCE, 10)
    result: dict[str, Any] = dict(alternate(runs, repeats))
    for clock in ("wall_ms", "cpu_ms"):
        measured = result[clock]
        result[f"ratio_{clock[:-3]}"] = {name: round(measured[name] / measured[f"{name}_raw"], 3) for name in ("type2", "type1", "cg10")}
    result["nrmse"] = {name: round(scaled_nrmse(truth, run()), 4) for name, run in runs.items() if name.startswith("cg")}
    return result


def scaled_nrmse(truth: np.ndarray, image: np.ndarray) -> float:
    """NRMSE after the best complex factor: the peers scale k-space differently."""
    factor = np.vdot(image, truth) / np.vdot(image, image)
    return float(nrmse(truth, factor * image))


def main() -> None:
    """Run the comparison and print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    arguments = parser.parse_args()
    result = {f"{spokes}_spokes": compare(spokes, arguments.repeats) for spokes in (24, 96)}
    text = json.dumps({"coils": COILS, "size": SIZE, "threads": device.threads(), **result}, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
