"""Error and cost of real-time frames reconstructed alone and together, against the truth of a moving object.

    python scripts/bench_dynamic.py                                  # a simulated radial scan
    python scripts/bench_dynamic.py scan.h5 --config spiral_realtime.xml

The truth of ``scan.h5`` lies beside it in ``scan_truth.npz`` (see ``simulate.py``). Errors are the median and the largest of the
frames' relative l2 errors after one scale each, without the first seven, which come from shorter windows.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import typer

sys.path.insert(0, str(Path(__file__).parents[1]))

from scripts import simulate
from service.local import reconstruct

BEGINNING = 7
CHAINS: tuple[tuple[str, str, dict[str, str]], ...] = tuple(
    (f"{name}, {when}", config, {**method, **settings})
    for name, config, method in (
        ("GRASP", "radial_grasp.xml", {}),
        ("locally low rank", "radial_llr.xml", {}),
        ("low rank plus sparse", "radial_grasp.xml", {"method": "low_rank_plus_sparse"}),
    )
    for when, settings in (
        ("newest of 8", {}),
        ("4 newer awaited", {"delay_frames": "4"}),
        ("whole scan", {"window_frames": "0", "iterations": "30"}),
    )
)


def main(
    scan: Annotated[Path | None, typer.Argument(help="ISMRMRD HDF5 file; its truth lies beside it; none: simulated")] = None,
    config: Annotated[str, typer.Option(help="chain for frames alone")] = "radial_realtime.xml",
) -> None:
    """Print a table."""
    with TemporaryDirectory() as folder:
        if scan is None:
            scan = Path(folder) / "scan.h5"
            simulate.radial(128, 8, 13, 20).save(scan)
        with np.load(scan.with_name(f"{scan.stem}_truth.npz")) as file:
            combined = np.sqrt((np.abs(file["coil_maps"]) ** 2).sum(0))
            truth = np.abs(file["frames"]).astype(np.float64) * combined
        print("| frames | error, median | largest | CPU ms a frame |\n|---|---|---|---|")
        for name, chain, settings in (("alone", config, {}), *CHAINS):
            begin = time.process_time()
            images = reconstruct(scan, chain, perform_noise_adjust=False, parameters=settings)
            cost = (time.process_time() - begin) / len(images) * 1e3
            errors = [_error(np.abs(image.data[0, 0]), frame) for image, frame in zip(images, truth, strict=True)][BEGINNING:]
            print(f"| {name} | {statistics.median(errors):.3f} | {max(errors):.3f} | {cost:.0f} |", flush=True)


def _error(image: np.ndarray, truth: np.ndarray) -> float:
    scale = (image * truth).sum() / (image.astype(np.float64) ** 2).sum()
    return float(np.linalg.norm(scale * image - truth) / np.linalg.norm(truth))


if __name__ == "__main__":
    typer.run(main)
