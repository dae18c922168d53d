"""Networks beside gridding and CG-SENSE on real-time scans whose truth is known.

    python scripts/compare_networks.py SCAN.h5 [SCAN.h5 ...] [--pictures DIR]

The truth of ``scan.h5`` lies beside it in ``scan_truth.npz`` (see ``simulate.py``). SSIM, PSNR and NRMSE are medians over the frames
from the fifth on, after one scale for each frame, range = largest value of the truth; time is CPU time a frame on this machine.
"""

from __future__ import annotations

import statistics
import sys
import time
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


def chains(scan: Path) -> dict[str, tuple[str, dict[str, str]]]:
    """Name -> config and properties."""
    kind = "spiral" if "spiral" in scan.name else "radial"
    network = {"spiral": "spiral_hyperslice.xml", "radial": "radial_fastdvdnet.xml"}[kind]
    plain = f"{kind}_realtime.xml"
    return {
        "gridding, root of sum of squares": (plain, {"method": "root_sum_of_squares"}),
        "gridding, sensitivity maps": (plain, {"method": "gridding"}),
        "CG-SENSE": (plain, {}),
        "FastDVDnet": (network, {}),
    }


def main(
    scans: Annotated[list[Path], typer.Argument(help="ISMRMRD HDF5 files with their truth beside them")],
    pictures: Annotated[Path | None, typer.Option(help="write a picture of each scan here")] = None,
) -> None:
    """Print a table."""
    print("| scan | method | SSIM | PSNR dB | NRMSE | CPU ms a frame |\n|---|---|---|---|---|---|")
    for scan in scans:
        with np.load(scan.with_name(f"{scan.stem}_truth.npz")) as file:
            combined = np.sqrt((np.abs(file["coil_maps"]) ** 2).sum(0))
            truth = np.abs(file["frames"]).astype(np.float64) * combined
        rows = []
        for name, (config, settings) in chains(scan).items():
            begin = time.process_time()
            images = reconstruct(scan, config, perform_noise_adjust=False, parameters=settings)
            cost = (time.process_time() - begin) / len(truth) * 1e3
            found = [np.abs(image.data[0, 0]).astype(np.float64) for image in images][-(len(truth) - FIRST) :]
            scaled = [frame * (np.vdot(frame, true) / np.vdot(frame, frame)) for frame, true in zip(found, truth[FIRST:], strict=True)]
            pairs = list(zip(truth[FIRST:], scaled, strict=True))
            values = [statistics.median(float(measure(a, b)) for a, b in pairs) for measure in (ssim, psnr, nrmse)]
            print(f"| {scan.stem} | {name} | {values[0]:.3f} | {values[1]:.2f} | {values[2]:.3f} | {cost:.0f} |", flush=True)
            rows.append(scaled[len(scaled) // 2])
        if pictures:
            pictures.mkdir(exist_ok=True)
            row = np.concatenate([*rows, truth[FIRST + len(scaled) // 2]], 1)
            Image.fromarray((255 * np.clip(row / truth.max(), 0, 1)).astype(np.uint8)).save(pictures / f"{scan.stem}.png")


if __name__ == "__main__":
    typer.run(main)
