"""Time compressed sensing, and compare methods on an undersampled brain scan.

    python scripts/bench_compressed_sensing.py [--repeats 7] [--brain cartesian_brain_8ch.h5] [--json OUT.json]

Simulated: 16 coils, 256 x 256, variable-density random sampling, R = 6.5, L1-wavelet with 50 iterations, beside
`bart pics -R W:3:0:.005` in the same run where BART is installed (NRMSE of magnitudes, after the best factor).
Brain: fully sampled data with three of four lines left out (random, 24 in the centre), every method against the fully
sampled image of the same maps; each weight is the best of a scan.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recon import device  # before NumPy's OpenMP libraries: sets the waiting policy

import h5py  # isort: skip
import numpy as np
from peers import bart_command, bart_order

from recon.compressed_sensing import encode, l1_wavelet, total_variation
from recon.espirit import espirit
from recon.fourier import fftc, ifftc
from recon.least_squares import least_squares
from recon.metrics import nrmse, ssim
from recon.phantoms import birdcage_coils, shepp_logan
from recon.spirit import spirit

COILS, SIZE = 16, 256


def variable_density_mask(shape: tuple[int, int], acceleration: float, centre: int = 24, seed: int = 0) -> np.ndarray:
    """Random samples, denser towards the fully sampled centre."""
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    density = (1 - np.minimum(np.hypot(*axes) / np.sqrt(2), 1)) ** 3
    middle = tuple(slice((n - centre) // 2, (n - centre) // 2 + centre) for n in shape)
    density[middle] = 0
    wanted = np.prod(shape) / acceleration - centre**2
    low, high = 0.0, 1e3
    for _ in range(60):
        scale = (low + high) / 2
        low, high = (scale, high) if np.minimum(scale * density, 1).sum() < wanted else (low, scale)
    mask = np.random.default_rng(seed).uniform(size=shape) < scale * density
    mask[middle] = True
    return mask


def median_times(function: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Medians of wall and CPU time in s, after one run to warm up."""
    walls, cpus = [], []
    for repeat in range(repeats + 1):
        wall, cpu = time.perf_counter(), time.process_time()
        function()
        if repeat:
            walls.append(time.perf_counter() - wall)
            cpus.append(time.process_time() - cpu)
    return {"wall_s": round(statistics.median(walls), 3), "cpu_s": round(statistics.median(cpus), 3)}


def simulated(repeats: int) -> dict[str, Any]:
    """The peers' task."""
    truth = shepp_logan((SIZE, SIZE)).astype(np.complex64)
    maps = birdcage_coils(COILS, (SIZE, SIZE))
    random = np.random.default_rng(1)
    kspace = fftc(maps * truth, (-2, -1))
    noise = random.standard_normal(kspace.shape) + 1j * random.standard_normal(kspace.shape)
    kspace = (kspace + 0.0036 * noise).astype(np.complex64)
    mask = variable_density_mask((SIZE, SIZE), 6.5)
    kspace *= mask

    def run() -> np.ndarray:
        image: np.ndarray = l1_wavelet(kspace, maps, mask=mask, iterations=50)
        return image

    def error(image: np.ndarray) -> float:
        size = np.abs(image)
        return round(float(nrmse(np.abs(truth), size * (np.vdot(size, np.abs(truth)) / np.vdot(size, size)))), 4)

    result = {"acceleration": round(mask.size / mask.sum(), 2), "nrmse": error(run()), **median_times(run, repeats)}
    if shutil.which("bart"):
        pics = bart_command(["pics", "-i50", "-R", "W:3:0:.005"], [bart_order(kspace), bart_order(maps)])
        result["bart"] = {"nrmse": error(pics().reshape(SIZE, SIZE)), **median_times(pics, repeats)}
    return result


def brain(path: Path, repeats: int) -> dict[str, Any]:
    """NRMSE of each method at R = 4, lines along the first axis."""
    with h5py.File(path) as file:
        readouts = file["dataset/data"][:]
    heads = readouts["head"]
    order = np.argsort(heads["idx"]["kspace_encode_step_1"])
    coils, samples = int(heads["active_channels"][0]), int(heads["number_of_samples"][0])
    full = np.stack([readouts["data"][n].view(np.complex64).reshape(coils, samples) for n in order], 1)
    full = full / np.abs(ifftc(full, (-2, -1))).max()
    rows = full.shape[1]
    lines = np.zeros(rows, bool)
    lines[(rows - 24) // 2 : (rows + 24) // 2] = True
    random = np.random.default_rng(3)
    odds = np.exp(-((np.arange(rows) - rows / 2) ** 2) / (2 * (rows / 5) ** 2)) * ~lines
    lines[random.choice(rows, rows // 4 - 24, replace=False, p=odds / odds.sum())] = True
    mask = np.broadcast_to(lines[:, None], full.shape[1:])
    maps = espirit(full * mask, calibration=(24, samples))
    if maps.ndim == 4:
        maps = maps[0]
    reference = (maps.conj() * ifftc(full, (-2, -1))).sum(0)
    inside = np.abs(maps).sum(0) > 0
    undersampled = (full * mask).astype(np.complex64)

    def best(name: str, function: Callable[[float], np.ndarray], scan: tuple[float, ...]) -> dict[str, Any]:
        errors = {value: nrmse(reference, function(value) * inside) for value in scan}
        value = min(errors, key=errors.__getitem__)
        image = function(value) * inside
        times = median_times(lambda: function(value), repeats)
        return {"method": name, "weight": value, "nrmse": round(errors[value], 4), "ssim": round(ssim(reference, image), 4), **times}

    def combined_spirit(weight: float) -> np.ndarray:
        result: np.ndarray = (
            maps.conj() * ifftc(spirit(undersampled, mask, calibration=(24, samples), regularisation=weight), (-2, -1))
        ).sum(0)
        return result

    encoding = encode(maps, mask=mask)
    rows_of_table = [
        best("zero-filled", lambda _: encoding.adjoint(undersampled), (0.0,)),
        best(
            "CG-SENSE", lambda w: least_squares(undersampled, maps, mask=mask, iterations=20, regularisation=w), (0.0, 0.01, 0.03, 0.1, 0.3)
        ),
        best("SPIRiT", combined_spirit, (0.0001, 0.001, 0.01)),
        best("L1-wavelet", lambda w: l1_wavelet(undersampled, maps, mask=mask, weight=w), (0.0003, 0.001, 0.002, 0.004)),
        best("TV", lambda w: total_variation(undersampled, maps, mask=mask, weight=w), (0.0003, 0.001, 0.002, 0.004)),
    ]
    return {"acceleration": round(mask.size / mask.sum(), 2), "methods": rows_of_table}


def main() -> None:
    """Run and print as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--brain", type=Path, help="ISMRMRD file of a fully sampled Cartesian scan")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"threads": device.threads(), "l1_wavelet": simulated(arguments.repeats)}
    if arguments.brain:
        result["brain"] = brain(arguments.brain, min(arguments.repeats, 3))
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
