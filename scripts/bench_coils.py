"""Time sensitivity maps and measure what they are worth: 16 coils, 256 x 256, and optionally a fully sampled scan.

    python scripts/bench_coils.py [--repeats 7] [--scan FILE.h5] [--json OUT.json]

sigpy and BART are timed beside them if they are installed. With `--scan` (an ISMRMRD file of one fully sampled Cartesian slice) k-space is
undersampled four-fold (every second line and column, 24 x 24 in the centre) and reconstructed by CG-SENSE with every kind of maps.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recon import device  # before numpy: sets the OpenMP waiting policy

import numpy as np  # isort: skip
from peers import bart_command, bart_order

from recon.coils import inati, walsh
from recon.espirit import espirit
from recon.fourier import fftc, ifftc
from recon.metrics import nrmse
from recon.nlinv import nlinv
from recon.operators import Encoding
from recon.phantoms import birdcage_coils, shepp_logan
from recon.solvers import conjugate_gradient

COILS, SIZE, CENTRE = 16, 256, 24
NOISE = 0.0207
"""NRMSE of the fully sampled noisy data, as when the peers were measured."""
DAMPING = 1e-3

Maps = Callable[[np.ndarray], np.ndarray]


def methods() -> dict[str, Maps]:
    """Maps `[coil, y, x]` or `[set, coil, y, x]` from k-space with a sampled centre."""
    found: dict[str, Maps] = {
        "walsh": lambda kspace: walsh(low_resolution(kspace)),
        "walsh_exact": lambda kspace: walsh(low_resolution(kspace), exact=True),
        "inati": lambda kspace: inati(low_resolution(kspace)),
        "espirit": espirit,
        "espirit_2_sets_soft": lambda kspace: espirit(kspace, sets=2, soft=True),
        "nlinv": lambda kspace: nlinv(kspace)[1],
    }
    if importlib.util.find_spec("sigpy"):
        from sigpy.mri.app import EspiritCalib

        found["espirit_sigpy"] = lambda kspace: EspiritCalib(kspace, calib_width=CENTRE, kernel_width=6, crop=0.8, show_pbar=False).run()
    if shutil.which("bart"):
        found["espirit_bart"] = bart_espirit
    return found


def bart_espirit(kspace: np.ndarray) -> np.ndarray:
    """BART's ecalib; the time includes writing k-space to a file in memory."""
    run = bart_command(["ecalib", "-m1", f"-r{CENTRE}", "-k6"], [bart_order(kspace)])
    return run().reshape(kspace.shape)


def centre(shape: tuple[int, ...]) -> tuple[slice, ...]:
    """The calibration region."""
    return tuple(slice(n // 2 - CENTRE // 2, n // 2 + CENTRE // 2) for n in shape)


def low_resolution(kspace: np.ndarray) -> np.ndarray:
    """Coil images of the calibration region, Hann-windowed."""
    inside = (slice(None), *centre(kspace.shape[1:]))
    window = np.hanning(CENTRE + 2)[1:-1].astype(np.float32)
    kept = np.zeros_like(kspace)
    kept[inside] = kspace[inside] * window[:, None] * window
    return ifftc(kept, (-2, -1))


def measure(estimate: Maps, kspace: np.ndarray, repeats: int) -> tuple[np.ndarray, dict[str, float]]:
    """Maps, and the medians of wall and CPU time in ms after one call to warm up."""
    maps = estimate(kspace)
    times: dict[str, list[float]] = {"wall_ms": [], "cpu_ms": []}
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        estimate(kspace)
        times["wall_ms"].append(1e3 * (time.perf_counter() - wall))
        times["cpu_ms"].append(1e3 * (time.process_time() - cpu))
    return maps, {name: round(statistics.median(values), 1) for name, values in times.items()}


def bench_maps(repeats: int) -> dict[str, Any]:
    """Time, and the share of the true coil images that the maps cannot explain (peers: BART .013, sigpy .009)."""
    shape, rng = (SIZE, SIZE), np.random.default_rng(0)
    images = (birdcage_coils(COILS, shape) * shepp_logan(shape)).astype(np.complex64)
    noise = (rng.standard_normal(images.shape) + 1j * rng.standard_normal(images.shape)).astype(np.complex64)
    kspace = fftc(images, (-2, -1)) + noise * np.float32(NOISE * np.linalg.norm(images) / np.linalg.norm(noise))
    result = {}
    for name, estimate in methods().items():
        slow = name in ("nlinv", "walsh_exact", "espirit_sigpy", "espirit_bart")
        maps, times = measure(estimate, kspace, 1 if slow else repeats)
        sets = maps.reshape(-1, *images.shape)
        explained = (sets * (sets.conj() * images).sum(1, keepdims=True)).sum(0)
        result[name] = {**times, "projection_error": round(nrmse(images, explained), 4)}
    return result


def read_slice(path: Path) -> np.ndarray:
    """k-space `[coil, y, x]` of a fully sampled Cartesian slice."""
    import h5py
    from ismrmrd import ACQ_IS_NOISE_MEASUREMENT

    with h5py.File(path) as file:  # read-only, which ismrmrd.Dataset is not
        readouts = file["dataset/data"][:]
    heads = readouts["head"]
    lines = np.flatnonzero((heads["flags"] >> np.uint64(ACQ_IS_NOISE_MEASUREMENT - 1)) & np.uint64(1) == 0)
    coils, samples = int(heads["active_channels"][lines[0]]), int(heads["number_of_samples"][lines[0]])
    rows = heads["idx"]["kspace_encode_step_1"]
    kspace = np.zeros((coils, 1 + int(rows[lines].max()), samples), np.complex64)
    for n in lines:
        kspace[:, rows[n]] = readouts["data"][n].view(np.complex64).reshape(coils, samples)
    return kspace


def bench_scan(path: Path) -> dict[str, float]:
    """NRMSE of the magnitude after CG-SENSE (30 iterations) with each kind of maps, four-fold undersampled."""
    kspace = read_slice(path)
    mask = np.zeros(kspace.shape[1:], bool)
    mask[::2, ::2] = mask[centre(mask.shape)] = True
    truth = np.linalg.norm(ifftc(kspace, (-2, -1)), axis=0)
    result = {"acceleration": round(float(1 / mask.mean()), 2)}
    for name, estimate in methods().items():
        maps = estimate(kspace * mask)
        encoding = Encoding(maps, mask=mask, sets=maps.ndim == 4)
        gram = encoding.gram
        image = conjugate_gradient(lambda x, gram=gram: gram(x) + DAMPING * x, encoding.adjoint(kspace * mask), 30)
        result[name] = round(nrmse(truth, np.linalg.norm(encoding.sensitivity(image), axis=0)), 4)
    return result


def main() -> None:
    """Run the comparison and print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--scan", type=Path, help="also compare reconstructions of this fully sampled slice")
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"coils": COILS, "size": SIZE, "threads": device.threads(), "maps": bench_maps(arguments.repeats)}
    if arguments.scan:
        result["nrmse_of_cg_sense"] = bench_scan(arguments.scan)
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
