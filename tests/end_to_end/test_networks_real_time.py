"""The shipped networks on scans that no recipe knows: better than gridding and than CG-SENSE."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from recon.metrics import nrmse, ssim
from scripts import simulate
from service.local import reconstruct


class Score(NamedTuple):
    """Medians over the frames from the fifth on, after one scale each."""

    ssim: float
    nrmse: float


class Truth(NamedTuple):
    """A scan and its frames as the root of the sum of squares over coils shows them."""

    scan: Path
    frames: np.ndarray


def known(scan: Path) -> Truth:
    with np.load(scan.with_name(f"{scan.stem}_truth.npz")) as file:
        return Truth(scan, np.abs(file["frames"]).astype(np.float64) * np.sqrt((np.abs(file["coil_maps"]) ** 2).sum(0)))


def score(truth: Truth, config: str, weights: str | None = None, **parameters: str) -> Score:
    """Of a chain, whose images must be made by these weights and none of them gridded."""
    images = reconstruct(truth.scan, config, perform_noise_adjust=False, parameters=parameters)
    assert {image.meta.get("NetworkWeights") for image in images} == {weights}
    frames = truth.frames[4:]
    found = [np.abs(image.data[0, 0]).astype(np.float64) for image in images][-len(frames) :]
    pairs = [(true, frame * (np.vdot(frame, true) / np.vdot(frame, frame))) for true, frame in zip(frames, found, strict=True)]
    return Score(*(statistics.median(float(measure(*pair)) for pair in pairs) for measure in (ssim, nrmse)))


def without_networks(truth: Truth, kind: str) -> tuple[Score, Score]:
    """Gridding and CG-SENSE."""
    config = f"{kind}_realtime.xml"
    return score(truth, config, method="root_sum_of_squares", coils=""), score(truth, config)


@pytest.fixture(scope="module")
def heart(tmp_path_factory: pytest.TempPathFactory) -> tuple[Truth, tuple[Score, Score]]:
    """A simulated heart, smaller than the images of the recipes, and what gridding and CG-SENSE make of it."""
    path = tmp_path_factory.mktemp("heart") / "scan.h5"
    simulate.radial(96, 9, 13, 24).save(path)
    truth = known(path)
    return truth, without_networks(truth, "radial")


CHAINS = [
    pytest.param("radial_fastdvdnet.xml", "fastdvdnet_radial", Score(0.92, 0.55), id="FastDVDnet"),
    pytest.param("radial_unet.xml", "unet_radial", Score(0.95, 0.35), id="3D U-Net"),
]
"""SSIM to reach, and NRMSE as a fraction of CG-SENSE's."""


@pytest.mark.parametrize(("config", "weights", "least"), CHAINS)
def test_a_simulated_heart(heart: tuple[Truth, tuple[Score, Score]], config: str, weights: str, least: Score) -> None:
    truth, (gridded, sense) = heart
    check(score(truth, config, weights), gridded, sense, least)


def check(found: Score, gridded: Score, sense: Score, least: Score) -> None:
    assert found.ssim > max(least.ssim, gridded.ssim + 0.35, sense.ssim + 0.35)
    assert found.nrmse < least.nrmse * min(gridded.nrmse, sense.nrmse)


@pytest.fixture(scope="module")
def golden(shared: Path) -> tuple[Truth, tuple[Score, Score]]:
    """The shared radial scan."""
    truth = known(shared / "data" / "realtime_radial_golden.h5")
    return truth, without_networks(truth, "radial")


@pytest.mark.parametrize(("config", "weights", "least"), CHAINS)
def test_radial_scan_with_truth(golden: tuple[Truth, tuple[Score, Score]], config: str, weights: str, least: Score) -> None:
    truth, (gridded, sense) = golden
    check(score(truth, config, weights), gridded, sense, least)


def test_spiral_scan_with_truth(shared: Path) -> None:
    truth = known(shared / "data" / "realtime_spiral.h5")
    check(score(truth, "spiral_hyperslice.xml", "fastdvdnet_spiral"), *without_networks(truth, "spiral"), Score(0.93, 0.55))
