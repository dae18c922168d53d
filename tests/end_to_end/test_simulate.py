"""Simulated scans against the definition of their signal, and the bookkeeping that chains rely on."""

from __future__ import annotations

from pathlib import Path

import ismrmrd
import numpy as np
import pytest
from typer.testing import CliRunner

from gadgets.header import Header
from gadgets.items import Acquisition, Waveform
from gadgets.layout import Flag
from scripts import simulate


def imaging(scan: simulate.Scan) -> list[Acquisition]:
    return [i for i in scan.items if isinstance(i, Acquisition) and not i.is_flag_set(Flag.IS_NOISE_MEASUREMENT)]


def fourier_sum(image: np.ndarray, kx: np.ndarray, ky: np.ndarray) -> np.ndarray:
    """sum image[y, x] exp(-2 pi i (kx x + ky y)), pixels counted from n // 2, written out."""
    ny, nx = image.shape[-2:]
    y, x = np.arange(ny) - ny // 2, np.arange(nx) - nx // 2
    phase = np.exp(-2j * np.pi * (kx[:, None, None] * x[None, None, :] + ky[:, None, None] * y[None, :, None]))
    return np.einsum("cyx,kyx->ck", image, phase)


@pytest.mark.parametrize("make", [lambda: simulate.radial(20, 3, 5, 2, noise=0), lambda: simulate.spiral(20, 3, 4, 2, noise=0)])
def test_non_cartesian_samples_are_the_fourier_sum_along_the_trajectory(make) -> None:  # type: ignore[no-untyped-def]
    scan = make()
    for readout in imaging(scan)[::3]:
        frame = int(readout.idx["repetition"])
        assert readout.trajectory is not None
        assert np.abs(readout.trajectory).max() <= 0.5
        kx, ky = readout.trajectory.T.astype(float)
        expected = fourier_sum(scan.truth["frames"][frame] * scan.truth["coil_maps"], kx, ky)
        assert np.linalg.norm(readout.data - expected) < 1e-4 * np.linalg.norm(expected)


def test_the_centre_sample_is_the_centre() -> None:
    for scan in (simulate.radial(20, 2, 5, 1), simulate.spiral(20, 2, 4, 1)):
        for readout in imaging(scan):
            assert readout.trajectory is not None
            np.testing.assert_allclose(readout.trajectory[readout.center_sample], 0, atol=1e-7)


def test_cartesian_lines_are_the_orthonormal_fourier_sum_over_the_wide_field_of_view() -> None:
    scan = simulate.cartesian((12, 10), 2, acceleration=1, slices=2, noise=0)
    center = Header(scan.header).encoding().limit("kspace_encoding_step_1").center  # type: ignore[union-attr]
    for readout in imaging(scan)[::4]:
        kx = (np.arange(24) - int(readout.center_sample)) / 24
        ky = np.full(24, (int(readout.idx["kspace_encode_step_1"]) - center) / 10)
        image = scan.truth["images"][int(readout.idx["slice"])] * scan.truth["coil_maps"]
        np.testing.assert_allclose(readout.data, fourier_sum(image, kx, ky) / np.sqrt(24 * 10), atol=1e-5)


@pytest.mark.parametrize("acceleration", [2, 3, 4])
def test_acceleration_and_calibration_flags(acceleration: int) -> None:
    scan = simulate.cartesian((8, 40), 1, acceleration, 12, noise_readouts=2)
    encoding = Header(scan.header).encoding()
    limit = encoding.limit("kspace_encoding_step_1")
    assert limit is not None
    assert encoding.acceleration == (acceleration, 1)
    assert encoding.calibration_mode == "embedded"
    only, both, plain = set(), set(), set()
    for readout in imaging(scan):
        line = int(readout.idx["kspace_encode_step_1"])
        calibration, shared = (
            readout.is_flag_set(flag) for flag in (Flag.IS_PARALLEL_CALIBRATION, Flag.IS_PARALLEL_CALIBRATION_AND_IMAGING)
        )
        assert not (calibration and shared)
        (only if calibration else both if shared else plain).add(line)
    assert only | both == set(range(14, 26))  # 12 lines around line 20
    assert {(line - limit.center) % acceleration for line in both | plain} == {0}
    assert all((line - limit.center) % acceleration for line in only)
    assert both | plain == set(range(limit.center % acceleration, 40, acceleration))
    assert sum(isinstance(i, Acquisition) and i.is_flag_set(Flag.IS_NOISE_MEASUREMENT) for i in scan.items) == 2


def test_noise_has_the_stated_covariance() -> None:
    scan = simulate.cartesian((8, 4), 3, acceleration=1, noise=0.5, noise_readouts=400)
    noise = np.concatenate([i.data for i in scan.items if isinstance(i, Acquisition) and i.is_flag_set(Flag.IS_NOISE_MEASUREMENT)], axis=1)
    covariance = noise @ noise.conj().T / noise.shape[1]
    truth = scan.truth["noise_covariance"]
    # 1e5 samples: standard error about 0.3 %.
    np.testing.assert_allclose(covariance, truth, atol=0.02 * np.abs(truth).max())
    assert np.sqrt(np.trace(truth).real / 3) == pytest.approx(0.5, rel=0.25)


def test_first_and_last_flags_and_counters() -> None:
    scan = simulate.cartesian((8, 6), 1, acceleration=1, repetitions=2, slices=2)
    readouts = imaging(scan)
    order = [(int(r.idx["repetition"]), int(r.idx["slice"]), int(r.idx["kspace_encode_step_1"])) for r in readouts]
    assert order == sorted(order)
    for flag, expected in {
        Flag.FIRST_IN_SLICE: {0, 6, 12, 18},
        Flag.LAST_IN_SLICE: {5, 11, 17, 23},
        Flag.FIRST_IN_REPETITION: {0, 12},
        Flag.LAST_IN_REPETITION: {11, 23},
        Flag.LAST_IN_MEASUREMENT: {23},
    }.items():
        assert {i for i, readout in enumerate(readouts) if readout.is_flag_set(flag)} == expected, flag
    acquisitions = [i for i in scan.items if isinstance(i, Acquisition)]
    assert [int(a.scan_counter) for a in acquisitions] == list(range(1, len(acquisitions) + 1))


@pytest.mark.parametrize("make", [simulate.radial, simulate.spiral, simulate.cartesian])
def test_the_header_is_complete_and_valid(make) -> None:  # type: ignore[no-untyped-def]
    scan = make((16, 16) if make is simulate.cartesian else 16, 2)
    header = ismrmrd.xsd.CreateFromDocument(scan.header)
    assert header.version is None, "a real Gadgetron compares it with its own library"
    assert header.measurementInformation.measurementID
    assert header.acquisitionSystemInformation.relativeReceiverNoiseBandwidth
    assert header.sequenceParameters.TR[0] > header.sequenceParameters.TE[0] > 0.5  # ms, not s
    assert header.encoding[0].encodingLimits.repetition is not None


def test_the_seed_decides_the_noise() -> None:
    first, again, other = (simulate.radial(16, 2, 3, 1, seed=seed) for seed in (1, 1, 2))
    same = [np.array_equal(a.data, b.data) for a, b in zip(first.items, again.items, strict=True)]  # type: ignore[attr-defined]
    different = [np.array_equal(a.data, b.data) for a, b in zip(first.items, other.items, strict=True)]  # type: ignore[attr-defined]
    assert all(same)
    assert not any(different)


def test_times_and_waveforms_are_interleaved() -> None:
    scan = simulate.radial(16, 2, 13, 10, waveforms=True, tr_ms=3.2)
    readouts = imaging(scan)
    stamps = np.array([int(r.acquisition_time_stamp) for r in readouts])
    exact = np.array([float(r.user_float[0]) for r in readouts])
    np.testing.assert_allclose(np.diff(exact), 3.2, rtol=1e-3)
    assert np.abs((stamps - simulate.START_TICK) * simulate.TICK_MS - exact).max() <= simulate.TICK_MS / 2 + 1e-3
    waves = [i for i in scan.items if isinstance(i, Waveform)]
    assert len(waves) * simulate.ECG_BLOCK * simulate.TICK_MS >= exact[-1]
    times = [int(i.header["time_stamp" if isinstance(i, Waveform) else "acquisition_time_stamp"]) for i in scan.items]  # type: ignore[attr-defined]
    assert times == sorted(times)


@pytest.mark.parametrize("kind", ["radial", "spiral", "cartesian"])
def test_the_command_writes_scan_and_truth(kind: str, tmp_path: Path) -> None:
    out = tmp_path / "scan.h5"
    size = ["--matrix", "16", "16"] if kind == "cartesian" else ["--matrix", "16", "--frames", "2"]
    result = CliRunner().invoke(simulate.app, [kind, str(out), *size, "--coils", "2", "--ecg"])
    assert result.exit_code == 0, result.output
    with ismrmrd.File(str(out), "r") as file:
        assert len(file["dataset"].acquisitions) == sum(isinstance(i, Acquisition) for i in _again(kind).items)
    with np.load(tmp_path / "scan_truth.npz") as truth:
        assert truth["coil_maps"].shape == (2, 16, 16)


def _again(kind: str) -> simulate.Scan:
    if kind == "cartesian":
        return simulate.cartesian((16, 16), 2)
    return simulate.radial(16, 2, frames=2) if kind == "radial" else simulate.spiral(16, 2, frames=2)
