"""Networks beside gridding and CG-SENSE on real-time scans whose truth is known.

    python scripts/compare_networks.py SCAN.h5 [SCAN.h5 ...] [--pictures DIR] [--also DIR]

The truth of ``scan.h5`` lies beside it in ``scan_truth.npz`` (see ``simulate.py``). SSIM, PSNR and NRMSE are medians over the frames
from the fifth on, after one scale for each frame, range = largest value of the truth; time is CPU time a frame on this machine. Flicker:
what changes from frame to frame where the truth rests. Moving: the error of the 5 % of pixels that change most, edges in motion. Both
root mean square, as fractions of the largest value.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from recon.metrics import nrmse, psnr, ssim
from service.local import reconstruct

FIRST = 4
"""The network's first image is that of the fifth frame."""


def chains(scan: Path, also: Sequence[Path]) -> dict[str, tuple[str, dict[str, str]]]:
    """Name -> config and properties; networks with the weights that are shipped, and with those in other folders that have them."""
    kind = "spiral" if "spiral" in scan.name else "radial"
    plain = f"{kind}_realtime.xml"
    found: dict[str, tuple[str, dict[str, str]]] = {
        "gridding, root of sum of squares": (plain, {"method": "root_sum_of_squares", "coils": ""}),
        "gridding, sensitivity maps": (plain, {"method": "gridding"}),
        "CG-SENSE": (plain, {}),
    }
    fast = {"spiral": "spiral_hyperslice.xml", "radial": "radial_fastdvdnet.xml"}[kind]
    networks = [("FastDVDnet", fast, f"fastdvdnet_{kind}", {"network": "FastDVDnet"})]
    if kind == "radial":
        networks.append(("3D U-Net", "radial_unet.xml", "unet_radial", {}))
    for name, config, weights, settings in networks:
        found[name] = (config, {})
        for folder in also:
            file = folder / f"{weights}.weights.h5"
            if file.exists():
                found[f"{name}, {folder.name}"] = (config, {"weights": str(file), **settings})
    return found


def main(
    scans: Annotated[list[Path], typer.Argument(help="ISMRMRD HDF5 files with their truth beside them")],
    pictures: Annotated[Path | None, typer.Option(help="write pictures of each scan here: a row of images, and of errors")] = None,
    also: Annotated[list[Path] | None, typer.Option(help="folder of other weights, NAME.weights.h5")] = None,
) -> None:
    """Print a table."""
    print("| scan | method | SSIM | PSNR dB | NRMSE | flicker | moving | CPU ms a frame |\n|---|---|---|---|---|---|---|---|")
    for scan in scans:
        with np.load(scan.with_name(f"{scan.stem}_truth.npz")) as file:
            combined = np.sqrt((np.abs(file["coil_maps"]) ** 2).sum(0))
            truth = np.abs(file["frames"]).astype(np.float64) * combined
        rows = []
        for name, (config, settings) in chains(scan, also or []).items():
            begin = time.process_time()
            images = reconstruct(scan, config, perform_noise_adjust=False, parameters=settings)
            cost = (time.process_time() - begin) / len(truth) * 1e3
            frames = [np.abs(image.data[0, 0]).astype(np.float64) for image in images][-(len(truth) - FIRST) :]
            scaled = [frame * (np.vdot(frame, true) / np.vdot(frame, frame)) for frame, true in zip(frames, truth[FIRST:], strict=True)]
            pairs = list(zip(truth[FIRST:], scaled, strict=True))
            values = [statistics.median(float(measure(a, b)) for a, b in pairs) for measure in (ssim, psnr, nrmse)]
            motion = " | ".join(f"{value:.3f}" for value in in_motion(np.stack(scaled), truth[FIRST:]))
            print(f"| {scan.stem} | {name} | {values[0]:.3f} | {values[1]:.2f} | {values[2]:.3f} | {motion} | {cost:.0f} |", flush=True)
            rows.append(scaled[len(scaled) // 2])
        if pictures:
            pictures.mkdir(exist_ok=True)
            true = truth[FIRST + (len(truth) - FIRST) // 2]
            row_of_images, errors = np.concatenate([*rows, true], 1), np.concatenate([4 * np.abs(row - true) for row in [*rows, true]], 1)
            picture = np.concatenate([row_of_images, errors])
            Image.fromarray((255 * np.clip(picture / truth.max(), 0, 1)).astype(np.uint8)).save(pictures / f"{scan.stem}.png")


def in_motion(found: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Flicker of pixels that rest, and error of those that change most, of images ``[frame, y, x]``."""
    largest = truth.max()
    change, true_change = np.diff(found, axis=0), np.abs(np.diff(truth, axis=0))
    rest = (true_change.max(0) < 0.005 * largest) & (truth.mean(0) > 0.05 * largest)
    moving = truth.std(0) >= np.quantile(truth.std(0), 0.95)
    flicker = np.sqrt(np.mean(change[:, rest] ** 2)) if rest.any() else np.nan
    return float(flicker / largest), float(np.sqrt(np.mean((found - truth)[:, moving] ** 2)) / largest)


if __name__ == "__main__":
    typer.run(main)
