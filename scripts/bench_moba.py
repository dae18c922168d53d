"""Maps from k-space beside BART's `moba`, where it has the model: T1 of a Look-Locker train, T2 of spin echoes, T2* of gradient echoes.

    python scripts/bench_moba.py [--size 128] [--reduction 1 3] [--cases look_locker echoes gradient_echoes] [--json OUT.json]

Both get the same noisy Cartesian k-space of four coils (the phantom and the noise of `bench_quantitative.py`) and no sensitivities:
moba finds them together with the maps, ours by ESPIRiT from all contrasts, as `reconstream fit` does. Reduction: only every n-th line
is there, others in each contrast, beside the 24 in the middle. moba runs with total variation, at the best of some tried weights and
limits; ours with its defaults, without standard deviations, once with compiling and once without. Errors: median over the pixels away
from edges, percent.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from recon import device  # before NumPy's OpenMP libraries: sets the waiting policy

import numpy as np  # isort: skip
from bench_quantitative import COILS, noisy, phantom
from peers import bart_command

from gadgets.contrasts import cartesian_maps
from recon.fourier import fftc
from recon.phantoms import birdcage_coils
from recon.quantitative import data_term
from recon.quantitative.irgn import fit
from recon.quantitative.model import SignalModel
from recon.quantitative.models.exp_decay import ExpDecay
from recon.quantitative.models.look_locker import LookLocker
from recon.quantitative.models.r2star import R2Star
from recon.quantitative.settings import Settings

CENTRE, FRAMES, TR, FLIP = 24, 20, 5.0, 6.0
ECHOES = np.arange(15.0, 151.0, 15.0)
GRADIENT_ECHOES = 2.3 + 4.6 * np.arange(7)
TRAIN = TR * 40 * np.arange(FRAMES)
"""Times in ms; a frame every 40 readouts."""
OFF_RESONANCE = 10.0
"""Hz at the sides, growing evenly from 0 in the middle."""
MOBA = {
    "look_locker": ["moba", "-L", "-rT:3:0:0.01", "-i8", "-C100", "-j0.001", "--scale_data=5000."],
    "echoes": ["moba", "-F", "-rT:3:0:0.01", "-i8", "-C30", "-j0.001", "--scale_data=5000."],
    "gradient_echoes": ["moba", "-G", "-m3", "-rT:3:0:0.01", "-i8", "-C30", "-j0.001", "--scale_data=5000."],
}
_R2_UNIT = 10.0
"""Of moba's map of R2, per second."""


def sampled(contrasts: int, size: int, reduction: int) -> np.ndarray:
    """Lines that are there, bool `[contrast, y, 1]`."""
    lines = np.zeros((contrasts, size, 1), bool)
    for n in range(contrasts):
        lines[n, n % reduction :: reduction] = True
    lines[:, (size - CENTRE) // 2 : (size + CENTRE) // 2] = True
    return lines


def scan(case: str, size: int, reduction: int) -> tuple[SignalModel, np.ndarray, np.ndarray, np.ndarray]:
    """Model, true map in ms `[y, x]`, pixels that count, and k-space `[contrast, coil, y, x]`."""
    density, t1, inside = phantom(size)
    model: SignalModel
    if case == "gradient_echoes":
        truth, model = 10 + t1 / 40, R2Star(GRADIENT_ECHOES.tolist())
        turns = np.linspace(-1, 1, size) * OFF_RESONANCE * GRADIENT_ECHOES[:, None, None] / 1e3
        images = density * np.exp(-GRADIENT_ECHOES[:, None, None] / truth - 2j * np.pi * turns)
    elif case == "echoes":
        truth, model = 40 + t1 / 10, ExpDecay(ECHOES.tolist())
        images = density * np.exp(-ECHOES[:, None, None] / truth)
    else:
        truth, model = t1, LookLocker(TRAIN.tolist(), TR, FLIP)
        cosine, recovery = np.cos(np.deg2rad(FLIP)), np.exp(-TR / t1)
        steady = (1 - recovery) / (1 - recovery * cosine)
        images = density * (steady - (1 + steady) * (recovery * cosine) ** (TRAIN[:, None, None] / TR))
    kspace = noisy(fftc(birdcage_coils(COILS, (size, size)) * images[:, None], (-2, -1)), np.abs(images).max())
    return model, truth, inside, kspace * sampled(len(images), size, reduction)[:, None]


def ours(model: SignalModel, kspace: np.ndarray) -> np.ndarray:
    """The map in ms."""
    maps = cartesian_maps(kspace, [], "espirit", (-2, -1))
    found = fit(model, data_term.cartesian(kspace, maps), Settings("TGV", replicas=0)).maps()
    values: np.ndarray = next(found[name].values for name in ("T1", "T2", "T2star") if name in found)
    return values


def moba(case: str, kspace: np.ndarray) -> Callable[[], np.ndarray]:
    """What runs moba and gives the map in ms."""
    contrasts, coils, *image = kspace.shape
    times = {"echoes": ECHOES / 1e3, "gradient_echoes": GRADIENT_ECHOES, "look_locker": TRAIN / 1e3}[case]  # of gradient echoes in ms
    data = kspace.transpose(3, 2, 1, 0).reshape(*image[::-1], 1, coils, 1, contrasts)
    run = bart_command(MOBA[case], [data, times.reshape(1, 1, 1, 1, 1, -1)])

    def found() -> np.ndarray:
        parts = np.abs(run().reshape(-1, *image))
        with np.errstate(divide="ignore", invalid="ignore"):
            rates = {"echoes": _R2_UNIT * parts[1], "gradient_echoes": parts[1], "look_locker": parts[0] * parts[2] / parts[1]}[case]
            values: np.ndarray = 1e3 / rates
        return values

    return found


def measured(run: Callable[[], np.ndarray], truth: np.ndarray, inside: np.ndarray) -> dict[str, float]:
    """Error and bias in percent, wall time and CPU time, that of other processes included."""
    clock, cpu = time.perf_counter(), _cpu_seconds()
    relative = (run() - truth)[inside] / truth[inside]
    spent = {"wall_s": time.perf_counter() - clock, "cpu_s": _cpu_seconds() - cpu}
    errors = {"error_percent": 100 * float(np.median(np.abs(relative))), "bias_percent": 100 * float(np.median(relative))}
    return {name: round(value, 2) for name, value in (errors | spent).items()}


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def main() -> None:
    """Print the figures of each case as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--reduction", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--cases", nargs="+", choices=tuple(MOBA), default=tuple(MOBA))
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    arguments = parser.parse_args()
    if not shutil.which("bart"):
        print("BART is not installed (Debian: apt-get install bart): only our fits are measured", file=sys.stderr)
    results: list[dict[str, Any]] = []
    for case in arguments.cases:
        for reduction in arguments.reduction:
            model, truth, inside, kspace = scan(case, arguments.size, reduction)
            runs = dict.fromkeys(("ours_first", "ours_again"), partial(ours, model, kspace))
            if shutil.which("bart"):
                runs["moba"] = moba(case, kspace)
            for name, run in runs.items():
                results.append({"case": case, "reduction": reduction, "of": name, **measured(run, truth, inside)})
                print(json.dumps(results[-1]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"threads": device.threads(), "size": arguments.size, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
