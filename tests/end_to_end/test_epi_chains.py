"""The packaged echo-planar chains at a client: ghosts and errors against the truth, as shipped."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from gadgets.items import Acquisition, Image, Item
from gadgets.layout import Flag
from recon.epi import EpiReadout
from recon.epi_correction import ghost_level
from recon.fourier import fftc
from scripts import simulate
from service.local import reconstruct

CLEAN: dict[str, Any] = {"delay_us": 0.0, "phase": 0.0, "off_resonance_hz": 0.0}


def images(scan: simulate.Scan, config: str = "epi_grappa", **properties: object) -> list[Image]:
    return reconstruct(scan.items, config, header=scan.header, **properties)


def fitted(image: Image, truth: np.ndarray) -> np.ndarray:
    """The magnitude in the truth's units: the chains whiten, and some scale to integers."""
    found, true = np.abs(image.data[0, 0]).astype(float), np.abs(truth)
    return np.asarray(found * (found * true).sum() / (found**2).sum())


def error(image: Image, truth: np.ndarray) -> float:
    return float(np.linalg.norm(fitted(image, truth) - np.abs(truth)) / np.linalg.norm(truth))


def ghost_energy(image: Image, truth: np.ndarray) -> float:
    """Energy where only the ghost is, relative to the object's, both a pixel."""
    return ghost_level(image.data[0, 0], np.abs(truth) > 0.02) ** 2


def test_ghosts_go_and_the_image_is_that_of_a_perfect_scanner() -> None:
    scan = simulate.epi()
    truth = scan.truth["images"]
    found, perfect = images(scan), images(simulate.epi(**CLEAN))
    ghosts = images(scan, odd_even="none", drift="none", delay=0)
    assert [(int(i.repetition), int(i.slice)) for i in found] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for one, best, worst in zip(found, perfect, ghosts, strict=True):
        true = truth[int(one.slice)]
        assert one.data.shape == (1, 1, 64, 64)
        assert ghost_energy(worst, true) > 0.25
        assert ghost_energy(one, true) < 0.002
        assert ghost_energy(one, true) < 1.15 * ghost_energy(best, true)
        assert error(worst, true) > 0.4
        assert error(one, true) < 1.03 * error(best, true) < 0.08
    flips = [truth[0][::-1], truth[0][:, ::-1], truth[0].T, np.roll(truth[0], 1, 0), np.roll(truth[0], -1, 1)]
    assert min(error(found[0], flip) for flip in flips) > 2 * error(found[0], truth[0])


def test_without_noise_nothing_of_the_faults_is_left() -> None:
    scan = simulate.epi(noise=0.0, noise_readouts=0, repetitions=1)
    for image in images(scan):
        true = scan.truth["images"][int(image.slice)]
        assert ghost_energy(image, true) < 1e-7
        assert error(image, true) < 3e-3


@pytest.mark.parametrize(
    ("config", "dtype", "scan", "bound"),
    [
        ("epi", np.uint16, {}, 0.002),
        ("Generic_Cartesian_Grappa_EPI", np.uint16, {}, 0.21),  # its filter blurs
        ("Generic_Cartesian_Grappa_EPI", np.uint16, {"acceleration": 2}, 0.21),
        ("Generic_Cartesian_Grappa_EPI_AVE", np.uint16, {}, 0.21),
        ("epi_grappa", np.float32, {"shots": 2}, 0.003),
        ("epi_grappa", np.float32, {"acceleration": 2}, 0.06),
        ("epi_grappa", np.float32, {"first_line": 12}, 0.04),
        ("epi_grappa", np.float32, {"matrix": (45, 51)}, 0.003),
        ("epi_grappa", np.float32, {"coils": 1}, 0.003),
        ("epi_grappa", np.float32, {"delay_us": -4.0, "phase": -2.5, "off_resonance_hz": 150.0}, 0.003),
    ],
)
def test_chains_and_scans(config: str, dtype: type, scan: dict[str, Any], bound: float) -> None:
    """No image differs from that of a perfect scanner by more than 0.003 of the object's maximum anywhere (0.03 after POCS, which cuts)."""
    settings: dict[str, Any] = {"matrix": (48, 48), "coils": 6, "noise": 1e-4, "noise_readouts": 0, **scan}
    faulty, clean = simulate.epi(**settings), simulate.epi(**{**settings, **CLEAN})
    found, perfect = images(faulty, config), images(clean, config)
    assert len(found) == len(perfect) == 4
    for one, best in zip(found, perfect, strict=True):
        true = faulty.truth["images"][int(one.slice)]
        assert one.data.dtype == dtype
        assert error(one, true) < bound
        assert np.abs(fitted(one, true) - fitted(best, true)).max() < (0.03 if "first_line" in scan else 0.003)


@pytest.mark.parametrize("config", ["epi_grappa", "Generic_Cartesian_Grappa_EPI"])
def test_calibration_by_a_gradient_echo_of_its_own_encoding_space(config: str) -> None:
    """24 oversampled Cartesian lines a slice, without the faults of the echo-planar ones, in front of the accelerated scan."""
    scan = simulate.epi((48, 48), 6, acceleration=2, noise=1e-4, noise_readouts=0)
    xml = scan.header.decode()
    encoding = xml[xml.index("<encoding>") : xml.index("</encoding>") + len("</encoding>")]
    other = re.sub(r"<trajectoryDescription>.*</trajectoryDescription>", "", encoding, flags=re.DOTALL).replace(">epi<", ">cartesian<")
    other = other.replace("<x>48</x>", "<x>96</x>", 1).replace("<x>144.0</x>", "<x>288.0</x>", 1)
    lines: list[Item] = []
    for number in range(2):
        wide = np.zeros((6, 48, 96), np.complex64)
        wide[:, :, 24:72] = scan.truth["images"][number] * scan.truth["coil_maps"]
        kspace = fftc(wide, (1, 2))
        for row in range(12, 36):
            line = Acquisition(None, np.ascontiguousarray(kspace[:, row]))
            line.set_flag(Flag.IS_PARALLEL_CALIBRATION)
            line.header["encoding_space_ref"] = 1
            line.header["idx"]["kspace_encode_step_1"], line.header["idx"]["slice"] = row, number
            lines.append(line)
    imaging = scan.items[2 * 27 :]  # without the echo-planar calibration: two trains of 3 navigators and 24 lines
    assert not any(item.is_flag_set(Flag.IS_PARALLEL_CALIBRATION) for item in imaging)  # type: ignore[attr-defined]
    header = xml.replace(encoding, encoding + other).encode()
    found = reconstruct([*lines, *imaging], config, header=header)
    usual = images(scan, config)
    assert len(found) == len(usual) == 4
    for one, best in zip(found, usual, strict=True):
        true = scan.truth["images"][int(one.slice)]
        assert error(one, true) < 1.1 * error(best, true) + 0.005


def test_navigators_missing_or_a_scan_cut_off_end_in_images(caplog: pytest.LogCaptureFixture) -> None:
    scan = simulate.epi((32, 32), 4, navigators=0)
    with caplog.at_level(logging.WARNING, "reconstream"):
        assert len(images(scan)) == 4
    assert "no navigators" in caplog.text
    scan = simulate.epi((32, 32), 4)
    cut = simulate.Scan(scan.header, scan.items[:-10], scan.truth)
    whole, short = images(scan), images(cut)
    assert len(short) == 4
    for one, other in zip(whole[:3], short, strict=False):
        assert one.data.tobytes() == other.data.tobytes()
    assert [image.data.tobytes() for image in images(scan)] == [image.data.tobytes() for image in whole]


def test_simulated_lines_are_the_fourier_sum_along_the_delayed_gradient() -> None:
    readout = EpiReadout(40, 3.0, 80, 25, 25)
    scan = simulate.epi(
        (20, 16), 2, readout=readout, noise=0, noise_readouts=0, repetitions=1, calibration_lines=0, delay_us=1.5, phase=0.4
    )
    k = EpiReadout(40, 3.0, 80, 25, 25, delay=1.5).positions()
    y, x = np.arange(16) - 8, np.arange(20) - 10
    drift = float(scan.truth["drift"])
    assert drift == pytest.approx(2 * np.pi * 15.0 * 130e-6)
    for place, item in enumerate(scan.items):
        assert isinstance(item, Acquisition)
        echo, back = place % 19, item.is_flag_set(Flag.IS_REVERSE)
        assert back == bool(echo % 2)
        assert item.is_flag_set(Flag.IS_PHASECORR_DATA) == (echo < 3)
        ky = 2 * np.pi * (int(item.idx["kspace_encode_step_1"]) - 8) / 16
        line = np.exp(-1j * ((-k if back else k)[:, None, None] * x + ky * y[:, None]))
        image = scan.truth["images"][int(item.idx["slice"])] * scan.truth["coil_maps"]
        phase = np.exp(1j * (echo * drift + (-0.2 if back else 0.2)))
        expected = np.einsum("cyx,kyx->ck", image, line) * phase / np.sqrt(320)
        assert np.abs(item.data - expected).max() < 1e-5


def test_the_command_writes_a_scan(tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    outcome = CliRunner().invoke(
        simulate.app, ["epi", str(path), "--matrix", "32", "32", "--coils", "3", "--slices", "1", "--acceleration", "2"]
    )
    assert outcome.exit_code == 0, outcome.output
    assert len(reconstruct(path, "epi_grappa")) == 2
    assert float(np.load(tmp_path / "scan_truth.npz")["phase"]) == pytest.approx(0.4)
