"""Field maps from echoes, against the field that the echoes were made with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from recon.b0_map import b0_map
from recon.phantoms import birdcage_coils, shepp_logan

N = 48
Y, X = np.mgrid[:N, :N] / N - 0.5
FIELD = 140 * np.exp(-((Y + 0.2) ** 2 + (X - 0.1) ** 2) / 0.08) - 120 * X - 40
OBJECT = np.maximum(shepp_logan((N, N)), 0) * np.exp(1j * (X + 2 * Y))
INSIDE = np.abs(OBJECT) > 0.05


def echoes(times: list[float], noise: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(1)
    images = np.stack([OBJECT * np.exp(-2j * np.pi * FIELD * t / 1000 - t / 30) for t in times])
    return images + noise * (rng.standard_normal(images.shape) + 1j * rng.standard_normal(images.shape))


def rms(hz: np.ndarray) -> float:
    return float(np.sqrt(((hz - FIELD)[INSIDE] ** 2).mean()))


@pytest.mark.parametrize("times", [[2.0, 4.5], [4.5, 2.0], [1.0, 2.5, 8.0, 20.0], [9.0, 3.0, 1.5, 14.0]])
def test_the_field_without_noise(times: list[float]) -> None:
    found = b0_map(echoes(times), times, smoothing=0)
    assert rms(found.hz) < 0.2
    assert (found.measured == (np.abs(OBJECT) > 0.1 * np.abs(OBJECT).max())).all()


def test_each_further_echo_takes_out_noise() -> None:
    times = [2.0, 4.0, 8.0, 16.0]
    images = echoes(times, 0.02)
    errors = [rms(b0_map(images[:n], times[:n], smoothing=0).hz) for n in (2, 3, 4)]
    assert errors[0] > 1.8 * errors[1] > 3 * errors[2]
    # Of uncorrelated phases: sqrt(2) sigma / (|x| 2 pi dt); the object's magnitude is mostly 0.2.
    assert errors[0] == pytest.approx(np.sqrt(np.mean((np.sqrt(2) * 0.02 / np.abs(OBJECT[INSIDE]) / (2 * np.pi * 2e-3)) ** 2)), rel=0.2)


def test_smoothing_takes_out_noise_and_continues_the_map() -> None:
    images = echoes([2.0, 4.0], 0.02)
    rough, smooth = (b0_map(images, [2.0, 4.0], smoothing=s) for s in (0.0, 2.0))
    assert rms(smooth.hz) < 0.35 * rms(rough.hz)
    assert np.abs(np.diff(smooth.hz, axis=1)).max() < 12
    assert FIELD.min() - 60 < smooth.hz.min() < smooth.hz.max() < FIELD.max() + 60


def test_coils_are_summed_and_their_phases_cancel() -> None:
    maps = birdcage_coils(4, (N, N))
    found = b0_map(echoes([2.0, 4.0])[:, None] * maps, [2.0, 4.0], smoothing=0)
    assert rms(found.hz) < 0.2


def test_a_volume() -> None:
    field = np.linspace(-80, 100, 6 * 8 * 10).reshape(6, 8, 10)
    images = np.exp(-2j * np.pi * np.array([1e-3, 4e-3]).reshape(-1, 1, 1, 1) * field)
    assert np.abs(b0_map(images, [1.0, 4.0], rank=3, smoothing=0).hz - field).max() < 0.1


@pytest.mark.parametrize(
    ("images", "times", "options", "message"),
    [
        (OBJECT[None], [1.0], {}, "at least two echoes, not 1"),
        (np.abs(echoes([1.0, 2.0])), [1.0, 2.0], {}, "must be complex"),
        (echoes([1.0, 2.0]), [1.0], {}, "2 different times in ms"),
        (echoes([1.0, 2.0]), [2.0, 2.0], {}, "2 different times in ms"),
        (echoes([1.0, 2.0]) * np.nan, [1.0, 2.0], {}, "NaN or infinite"),
        (echoes([1.0, 2.0]) * 0, [1.0, 2.0], {}, "no signal"),
        (echoes([1.0, 2.0]), [1.0, 2.0], {"threshold": 1.0}, "threshold must lie"),
    ],
)
def test_errors_name_the_argument(images: Any, times: Any, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        b0_map(images, times, **options)
