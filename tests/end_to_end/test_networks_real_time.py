"""The shipped networks on scans that no recipe knows: better than gridding and than CG-SENSE."""

from __future__ import annotations

import statistics
from pathlib import Path

import numpy as np
import pytest

from recon.metrics import nrmse, ssim
from scripts import simulate
from service.local import reconstruct


def scores(scan: Path, truth: np.ndarray, config: str, **parameters: str) -> tuple[float, float]:
    """Median SSIM and NRMSE over the frames from the fifth on, after one scale each."""
    images = reconstruct(scan, config, perform_noise_adjust=False, parameters=parameters)
    found = [np.abs(image.data[0, 0]).astype(np.float64) for image in images][-(len(truth) - 4) :]
    pairs = [(true, frame * (np.vdot(frame, true) / np.vdot(frame, frame))) for true, frame in zip(truth[4:], found, strict=True)]
    return statistics.median(float(ssim(*pair)) for pair in pairs), statistics.median(float(nrmse(*pair)) for pair in pairs)


def compare(scan: Path, truth: np.ndarray, kind: str, network: str) -> None:
    """Gridding, CG-SENSE, network."""
    gridded = scores(scan, truth, f"{kind}_realtime.xml", method="root_sum_of_squares")
    sense = scores(scan, truth, f"{kind}_realtime.xml")
    denoised = scores(scan, truth, network)
    for other in (gridded, sense):
        assert denoised[0] > other[0] + 0.1
        assert denoised[1] < other[1]


def test_a_simulated_heart(tmp_path: Path) -> None:
    scan = tmp_path / "scan.h5"
    simulate.radial(128, 8, 13, 10).save(scan)
    with np.load(tmp_path / "scan_truth.npz") as file:
        truth = np.abs(file["frames"]).astype(np.float64) * np.sqrt((np.abs(file["coil_maps"]) ** 2).sum(0))
    compare(scan, truth, "radial", "radial_fastdvdnet.xml")


@pytest.mark.parametrize(
    ("name", "kind", "network"),
    [("realtime_radial_golden", "radial", "radial_fastdvdnet.xml"), ("realtime_spiral", "spiral", "spiral_hyperslice.xml")],
)
def test_scans_with_truth(shared: Path, name: str, kind: str, network: str) -> None:
    with np.load(shared / "data" / f"{name}_truth.npz") as file:
        truth = np.abs(file["frames"]).astype(np.float64) * np.sqrt((np.abs(file["coil_maps"]) ** 2).sum(0))
    compare(shared / "data" / f"{name}.h5", truth, kind, network)
