"""Time GRAPPA and measure its error: 16 coils, 256 x 256, R = 4 with 24 lines, 2 x 2 and CAIPIRINHA 2 x 2 with 24 x 24 calibration samples.

    python scripts/bench_grappa.py [--repeats 7] [--json OUT.json]

The whole of it, calibration and filling k-space; pygrappa beside it if it is installed (`pip install pygrappa scikit-image tqdm`).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from recon import device  # before numpy: sets the OpenMP waiting policy

import numpy as np  # isort: skip
from bench_coils import COILS, NOISE, SIZE, centre, measure

from recon.cartesian_sampling import regular_mask
from recon.fourier import fftc, ifftc
from recon.grappa import calibrate, reconstruct, unmixing
from recon.grappa_patterns import PatternKernels, grappa
from recon.metrics import nrmse
from recon.phantoms import birdcage_coils, shepp_logan

Filled = Callable[[np.ndarray], np.ndarray]
SHAPE = (SIZE, SIZE)


def sampling() -> dict[str, tuple[np.ndarray, tuple[slice, ...]]]:
    """Masks, and where they are complete."""
    block = centre(SHAPE)
    return {
        "R=4": (np.broadcast_to(regular_mask((SIZE,), (4,), (24,))[:, None], SHAPE), (block[0], slice(None))),
        "2x2": (regular_mask(SHAPE, (2, 2), (24, 24)), block),
        "caipi 2x2": (regular_mask(SHAPE, (2, 2), (24, 24), caipi_shift=1), block),
    }


def methods(mask: np.ndarray, block: tuple[slice, ...]) -> dict[str, Filled]:
    """k-space `[coil, y, x]` with all samples, from the undersampled one."""
    everywhere = (slice(None), *block)

    def fitted(kspace: np.ndarray) -> Filled:
        return PatternKernels(kspace[everywhere], mask, SHAPE, kernel_size=5, leave_gaps=True).fill

    found: dict[str, Filled] = {
        "grappa": lambda kspace: grappa(kspace, mask, kspace[everywhere]),
        "grappa_5x5": lambda kspace: fitted(kspace)(kspace),
    }
    if importlib.util.find_spec("pygrappa"):
        import pygrappa

        for name in ("cgrappa", "mdgrappa"):
            peer = getattr(pygrappa, name)
            found[name] = partial(_by_pygrappa, peer, everywhere)
    return found


def _by_pygrappa(peer: Callable[..., np.ndarray], everywhere: tuple[slice, ...], kspace: np.ndarray) -> np.ndarray:
    double = kspace.astype(np.complex128)
    return peer(double, np.ascontiguousarray(double[everywhere]), kernel_size=(5, 5), coil_axis=0)


def simulated() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth, maps of unit norm, noisy k-space."""
    maps = birdcage_coils(COILS, SHAPE)
    maps = (maps / np.sqrt((np.abs(maps) ** 2).sum(0))).astype(np.complex64)
    truth = shepp_logan(SHAPE).astype(np.complex64)
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((2, COILS, *SHAPE)).astype(np.float32)
    level = np.float32(NOISE * np.linalg.norm(truth) / SIZE / np.sqrt(2))
    return truth, maps, fftc(maps * truth, (-2, -1)) + level * (noise[0] + 1j * noise[1])


def errors(truth: np.ndarray, maps: np.ndarray, kspace: np.ndarray) -> dict[str, float]:
    """NRMSE of the images: coils combined with the true maps, and the root of their sum of squares."""
    images = ifftc(kspace, (-2, -1))
    combined, rss = (maps.conj() * images).sum(0), np.sqrt((np.abs(images) ** 2).sum(0))
    return {"nrmse": round(nrmse(truth, combined), 4), "nrmse_rss": round(nrmse(np.abs(truth), rss), 4)}


def bench_frames(kspace: np.ndarray, maps: np.ndarray, repeats: int) -> dict[str, Any]:
    """What a stream does at R = 4: kernel and unmixing once, then one product a frame (without sensitivity maps)."""
    lattice = np.zeros_like(kspace)[:, None]
    lattice[:, 0, ::4] = kspace[:, ::4]
    calibration = np.ascontiguousarray(kspace[:, None, centre(SHAPE)[0]])

    def weights(calibration: np.ndarray) -> np.ndarray:
        kernel = calibrate(calibration, calibration, acceleration=(1, 4), kernel_size=(1, 4, 5))
        return unmixing(kernel, maps[:, None])

    found, calibrating = measure(weights, calibration, repeats)
    return {"calibration_and_unmixing": calibrating, "frame": measure(lambda frame: reconstruct(frame, found), lattice, repeats)[1]}


def main() -> None:
    """Run the comparison and print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    arguments = parser.parse_args()
    truth, maps, kspace = simulated()
    result: dict[str, Any] = {"coils": COILS, "size": SIZE, "threads": device.threads(), "fully_sampled": errors(truth, maps, kspace)}
    for case, (mask, block) in sampling().items():
        result[case] = {}
        for name, method in methods(mask, block).items():
            filled, times = measure(method, kspace * mask, 1 if name == "mdgrappa" else arguments.repeats)
            result[case][name] = {**times, **errors(truth, maps, filled)}
    result["frames"] = bench_frames(kspace, maps, arguments.repeats)
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
