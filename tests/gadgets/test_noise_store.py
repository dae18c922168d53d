"""Noise measured in one scan whitens a later one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gadgets.base import Context, GadgetError, run
from gadgets.header import Header
from gadgets.items import Acquisition, DependencyQuery
from gadgets.layout import Flag
from gadgets.noise import NoiseAdjust, NoiseSummary
from gadgets.noise_store import NoiseStore, StoredNoise

CHANNELS, SAMPLES = 4, 256


def header(measurement: str, noise: str = "") -> Header:
    dependency = (
        f"<measurementDependency><dependencyType>Noise</dependencyType><measurementID>{noise}</measurementID></measurementDependency>"
    )
    return Header(
        f"<ismrmrdHeader><measurementInformation><measurementID>{measurement}</measurementID>{dependency if noise else ''}"
        "</measurementInformation></ismrmrdHeader>"
    )


def readout(seed: int, noise: bool) -> Acquisition:
    rng = np.random.default_rng(seed)
    mix = np.tril(np.random.default_rng(7).standard_normal((CHANNELS, CHANNELS))) + 3 * np.eye(CHANNELS)
    samples = rng.standard_normal((CHANNELS, SAMPLES)) + 1j * rng.standard_normal((CHANNELS, SAMPLES))
    acquisition = Acquisition(None, (mix @ samples).astype(np.complex64))
    acquisition.sample_time_us = 5.0
    if noise:
        acquisition.set_flag(Flag.IS_NOISE_MEASUREMENT)
    return acquisition


NOISE = [readout(i, True) for i in range(20)]
IMAGING = [readout(100 + i, False) for i in range(20)]


def whitened(items: list[Acquisition], context: Context) -> np.ndarray:
    return np.concatenate([item.data for item in run([NoiseAdjust()], items, context)], axis=1)


def test_a_noise_scan_whitens_the_scan_that_depends_on_it(tmp_path: Path) -> None:
    assert list(run([NoiseAdjust()], NOISE, Context(header("noise/1"), storage=tmp_path))) == []
    later = whitened(IMAGING, Context(header("scan", noise="noise/1"), storage=tmp_path))
    same_scan = whitened([*NOISE, *IMAGING], Context(header("other")))
    np.testing.assert_array_equal(later, same_scan)
    covariance = later @ later.conj().T / later.shape[1]
    assert np.linalg.norm(covariance / np.trace(covariance) * CHANNELS - np.eye(CHANNELS)) < 0.2


def test_noise_of_the_scan_itself_comes_first(tmp_path: Path) -> None:
    NoiseStore(tmp_path).save("old", StoredNoise(np.eye(CHANNELS, dtype=complex), 5.0, 900))
    context = Context(header("scan", noise="old"), storage=tmp_path)
    np.testing.assert_array_equal(whitened([*NOISE, *IMAGING], context), whitened([*NOISE, *IMAGING], Context()))


@pytest.mark.parametrize("kept", [True, False])
def test_a_missing_noise_scan_is_said_and_data_pass(tmp_path: Path, kept: bool, caplog: pytest.LogCaptureFixture) -> None:
    context = Context(header("scan", noise="n9"), storage=tmp_path if kept else None)
    np.testing.assert_array_equal(whitened(IMAGING, context), np.concatenate([item.data for item in IMAGING], axis=1))
    assert "depends on the noise of measurement n9" in caplog.text


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    store = NoiseStore(tmp_path)
    store.save("n", StoredNoise(np.eye(CHANNELS, dtype=complex), 5.0, 900))
    next(tmp_path.iterdir()).write_bytes(b"garbage")
    with pytest.raises(GadgetError, match=r"noise_n_.*npz cannot be read.*delete it"):
        whitened(IMAGING, Context(header("scan", noise="n"), storage=tmp_path))


def test_ids_cannot_leave_the_folder_or_collide(tmp_path: Path) -> None:
    store = NoiseStore(tmp_path / "kept")
    ids = ["../escape", "a/b", "a_b", "a.b", "x" * 500, ""]
    for number, name in enumerate(ids):
        store.save(name, StoredNoise(np.full((1, 1), number, complex), 1.0, 1))
    found = [store.load(name) for name in ids]
    assert [None if one is None else one.covariance.item() for one in found] == list(range(len(ids)))
    assert [path.parent.name for path in tmp_path.rglob("*.npz")] == ["kept"] * len(ids)


def test_the_summary_tells_what_is_kept(tmp_path: Path) -> None:
    NoiseStore(tmp_path).save("n1", StoredNoise(np.diag([1.0, 4.0, 9.0]).astype(complex), 2.5, 900))
    context = Context(storage=tmp_path)
    (answer,) = run([NoiseSummary(noise_file="GadgetronNoiseCovarianceMatrix_n1")], [], context)
    assert isinstance(answer, DependencyQuery)
    assert answer.meta == {
        "noise_dwell_time_us": "2.5",
        "min_sigma": "1",
        "max_sigma": "3",
        "mean_sigma": "2",
        "channels": "3",
        "status": "success",
    }
    for unknown in ("n2", ""):
        (answer,) = run([NoiseSummary(noise_file=unknown)], [], context)
        assert isinstance(answer, DependencyQuery)
        assert answer.meta == {"status": "failed"}
