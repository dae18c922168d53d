"""Model signals against raw data of Bloch simulations (phase distribution graphs), which know nothing of our formulas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import finufft
import ismrmrd
import numpy as np
import pytest

from recon.quantitative.models.look_locker import LookLocker
from recon.quantitative.models.r2star import R2Star
from recon.quantitative.models.vfa import VFA

pytestmark = pytest.mark.shared
READOUTS = 7


def vfa(truth: Any) -> tuple[np.ndarray, np.ndarray]:
    model = VFA(12.0, [2, 3, 4, 6, 9, 13, 18, 24])
    return np.arange(8), model(unknowns(truth["T1_ms"])).numpy() * weighting(truth, 2.2)


def irll(truth: Any) -> tuple[np.ndarray, np.ndarray]:
    readouts = np.array([0, 40, 100, 200, 400, 775])
    model = LookLocker(12.0 + 4.5 * readouts, 4.5, 6.0, TI_first=12.0)
    return readouts, model(unknowns(truth["T1_ms"])).numpy() * weighting(truth, 2.0)


def megre(truth: Any) -> tuple[np.ndarray, np.ndarray]:
    model = R2Star(2.3 + 4.6 * np.arange(7))
    rate = 1000 / filled(truth["T2star_ms"])
    angle, E1 = np.deg2rad(15.0), np.exp(-40.0 / filled(truth["T1_ms"]))
    steady = np.sin(angle) * (1 - E1) / (1 - E1 * np.cos(angle))
    return np.arange(7), model(np.stack([np.ones_like(rate), rate, truth["B0_hz"]]).astype(complex)).numpy() * steady


@pytest.mark.parametrize(("name", "predict"), [("t1_vfa_radial", vfa), ("t1_irll_radial", irll), ("t2star_megre_radial", megre)])
def test_predicts_raw_data_to_the_noise(shared: Path, tmp_path: Path, name: str, predict: Any) -> None:
    truth = np.load(shared / "data" / f"{name}_truth.npz")
    copy = tmp_path / "scan.h5"
    copy.write_bytes((shared / "data" / f"{name}.h5").read_bytes())
    with ismrmrd.Dataset(copy, "dataset", False) as file:
        acquisitions = [file.read_acquisition(n) for n in range(file.number_of_acquisitions())]
    readouts = [one for one in acquisitions if not one.is_flag_set(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)]
    places, signals = predict(truth)
    for place, signal in zip(places, signals, strict=True):
        image = (truth["PD"] * signal * truth["coil_maps"]).astype(np.complex128)
        chosen = [readouts[place]] if name == "t1_irll_radial" else [one for one in readouts if one.idx.contrast == place][:READOUTS]
        noise = [np.sqrt(np.mean(np.abs(one.data - project(image, one.traj)) ** 2)) for one in chosen]
        # The median: at high flip angles a readout in ten shows what spoiling left over.
        assert np.median(noise) == pytest.approx(float(truth["noise_sigma"]), rel=0.15)


def project(image: np.ndarray, trajectory: np.ndarray) -> np.ndarray:
    """Samples ``[coil, sample]`` of images ``[coil, y, x]``."""
    x, y = 2 * np.pi * trajectory.astype(np.float64).T
    samples: np.ndarray = finufft.nufft2d2(np.ascontiguousarray(y), np.ascontiguousarray(x), image, isign=-1, eps=1e-6)
    return samples


def unknowns(T1: np.ndarray) -> np.ndarray:
    return np.stack([np.ones_like(T1), filled(T1)]).astype(complex)


def filled(values: np.ndarray) -> np.ndarray:
    return np.where(values > 0, values, 1000.0)


def weighting(truth: Any, echo: float) -> np.ndarray:
    weight: np.ndarray = np.exp(-echo / filled(truth["T2star_ms"]) - 2j * np.pi * truth["B0_hz"] * echo / 1000)
    return weight
