"""What methods gain on public raw data (not part of the repository), by the script that makes the table of the documentation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gadgets.items import Acquisition
from scripts import real_data
from service.files import read_measurement
from service.local import reconstruct


def test_brain(shared: Path) -> None:
    methods = ("zero", "GRAPPA", "SPIRiT", "CG-SENSE", "L1", "TV, ESPIRiT")
    table = real_data.brain(shared / "data" / "cartesian_brain_8ch.h5", methods)
    for column, limit in ((0, 0.065), (1, 0.055)):
        found = {name: row[column] for name, row in table.rows.items()}
        for maps in ("Walsh", "ESPIRiT"):
            assert found[f"CG-SENSE, {maps} maps"] < 0.65 * found["zero-filled"]
            assert found[f"L1-wavelet, {maps} maps"] < min(limit, 0.72 * found[f"CG-SENSE, {maps} maps"])
        assert found["TV, ESPIRiT maps"] < min(limit, 0.72 * found["CG-SENSE, ESPIRiT maps"])
        for method in ("CG-SENSE", "L1-wavelet"):
            assert found[f"{method}, ESPIRiT maps"] < found[f"{method}, Walsh maps"]
        assert found["SPIRiT"] < 0.7 * found["zero-filled"]
    assert table.rows["GRAPPA"][1] == pytest.approx(table.rows["SPIRiT"][1], rel=0.15)


def test_the_chains_take_a_brain_of_a_quarter_of_the_lines(shared: Path) -> None:
    measurement = read_measurement(shared / "data" / "cartesian_brain_8ch.h5")
    readouts = [item for item in measurement.items() if isinstance(item, Acquisition)]
    lines = real_data.random_lines(230, 57)
    quarter = [readout for readout in readouts if lines[int(readout.header["idx"]["kspace_encode_step_1"])]]

    def plane(items: list[Acquisition], config: str) -> np.ndarray:
        (image,) = reconstruct(items, config, header=measurement.header_xml)
        return image.data[0, 0].astype(float)

    complete = plane(readouts, "cartesian")
    head = complete > 0.1 * np.percentile(complete, 99.5)
    for config, least, most in (("cartesian", 0.12, 1), ("cartesian_spirit", 0, 0.085), ("cartesian_compressed_sensing", 0, 0.06)):
        one, other = plane(quarter, config)[head], complete[head]
        assert least < np.linalg.norm(one * (one @ other) / (one @ one) - other) / np.linalg.norm(other) < most


def test_phantom_of_few_spokes(shared: Path) -> None:
    table = real_data.phantom(shared / "data" / "radial_phantom_4ch.h5", ("gridding", "CG", "L1", "TV, Inati"), counts=(43,))
    found = {name: row[0] for name, row in table.rows.items()}
    assert found["gridding"] < 0.11
    for maps in ("Inati", "ESPIRiT"):
        assert found[f"CG-SENSE, {maps} maps"] < 0.7 * found["gridding"]
        assert found[f"L1-wavelet, {maps} maps"] < 0.87 * found[f"CG-SENSE, {maps} maps"]
    assert found["TV, Inati maps"] < 0.8 * found["CG-SENSE, Inati maps"]


@pytest.mark.parametrize(
    ("scan", "file", "maps", "limit"),
    [("radial_cardiac", "radial_cardiac_12ch_25spokes", "ESPIRiT", 0.65), ("spiral_cardiac", "spiral_cardiac_8ch", "Inati", 0.58)],
)
def test_hearts_predict_the_samples_that_were_held_out(shared: Path, scan: str, file: str, maps: str, limit: float) -> None:
    table = getattr(real_data, scan)(shared / "data" / f"{file}.h5", ("gridding", "CG-SENSE", f"L1-wavelet, {maps}"))
    found = {name: row[0] for name, row in table.rows.items()}
    assert found[f"L1-wavelet, {maps} maps"] < min(limit, found[f"CG-SENSE, {maps} maps"])
    assert max(found["CG-SENSE, Inati maps"], found["CG-SENSE, ESPIRiT maps"]) < found["gridding"] < 1


@pytest.mark.parametrize("name", ["radial_cardiac_12ch_25spokes", "spiral_cardiac_8ch"])
def test_the_chain_takes_streaks_and_noise_out_of_the_air(shared: Path, name: str) -> None:
    """The outermost rows and columns, against the brightest tissue."""

    def haze(config: str) -> float:
        (image,) = reconstruct(shared / "data" / f"{name}.h5", config)
        plane = image.data[0, 0].astype(float)
        return float(np.median(np.r_[plane[:10].ravel(), plane[-10:].ravel(), plane[:, -10:].ravel()]) / np.percentile(plane, 99))

    assert haze("radial_compressed_sensing") < 0.8 * haze("spiral_cgsense" if "spiral" in name else "radial_cgsense")
