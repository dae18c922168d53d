"""Relative flip angles of simulated pairs."""

from __future__ import annotations

import numpy as np
import pytest

from recon.double_angle import relative_flip_angle

N = 32


def pair(nominal_deg: float, relative: np.ndarray, magnitude: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Fully relaxed images of a disc with a phase; nothing outside."""
    y, x = np.mgrid[:N, :N] / N - 0.5
    density = (np.hypot(y, x) < 0.4) * np.exp(1j * (3 * x - 2 * y))
    first, second = (density * np.sin(n * np.deg2rad(nominal_deg) * relative) for n in (1, 2))
    return (abs(first), abs(second)) if magnitude else (first, second)


def b1() -> np.ndarray:
    y, x = np.mgrid[:N, :N] / N - 0.5
    relative: np.ndarray = 1 + 0.25 * np.cos(2 * x + 1) * np.cos(3 * y)
    return relative


@pytest.mark.parametrize(("nominal", "magnitude"), [(60.0, False), (85.0, False), (40.0, True)])
def test_the_true_angle_where_there_is_signal(nominal: float, magnitude: bool) -> None:
    """At 85 degrees times 1.25 the second image is negative, which magnitudes would not tell."""
    found = relative_flip_angle(*pair(nominal, b1(), magnitude), nominal, 0.0)
    y, x = np.mgrid[:N, :N] / N - 0.5
    inside = np.hypot(y, x) < 0.4
    np.testing.assert_allclose(found[inside], b1()[inside], atol=1e-6)
    assert np.isfinite(found).all()
    assert found.min() >= b1()[inside].min() - 1e-6  # the nearest values, outside


def test_smoothing_takes_noise_away_and_keeps_the_map() -> None:
    random = np.random.default_rng(1)
    noisy = [one + 0.05 * (random.standard_normal(one.shape) + 1j * random.standard_normal(one.shape)) for one in pair(60, b1())]
    y, x = np.mgrid[:N, :N] / N - 0.5
    inside = np.hypot(y, x) < 0.33
    rough, smooth = (np.std((relative_flip_angle(*noisy, 60, width) - b1())[inside]) for width in (0.0, 1.5))
    assert smooth < 0.3 * rough
    assert smooth < 0.01


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a, b: (a, b[1:]), "differ in shape"),
        (lambda a, b: (np.where(a == 0, np.nan, a), b), "not finite"),
        (lambda a, b: (0 * a, b), "no signal in the first image"),
    ],
)
def test_faults(change: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        relative_flip_angle(*change(*pair(60, b1())), 60)  # type: ignore[operator]
