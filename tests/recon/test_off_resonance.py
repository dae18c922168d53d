"""Time-segmented off-resonance against the sum over all pixels and samples, written out."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from recon.operators import Fourier, Nufft
from recon.operators.off_resonance import OffResonance
from recon.solvers import conjugate_gradient
from tests.recon.conftest import random_complex, random_trajectory, relative_error

SHAPE, SAMPLES = (12, 11), 300
POINTS = random_trajectory(SAMPLES, 2, dtype="float64")
TIMES = np.tile(np.linspace(1e-3, 11e-3, SAMPLES // 3), 3)
Y, X = np.mgrid[:12, :11] - np.array([6, 5])[:, None, None]
FIELD_MAP = 80 * np.exp(-(Y**2 + X**2) / 12) + 6.0 * X
IMAGE = random_complex(SHAPE, 1, "complex128")


def phases(times: np.ndarray) -> np.ndarray:
    """exp(-i 2 pi B0(r) t) for every time (rows) and pixel (columns)."""
    return np.exp(-2j * np.pi * np.outer(times, FIELD_MAP.ravel()))


def direct_matrix() -> np.ndarray:
    """The matrix of the signal equation, nothing approximated."""
    positions = np.stack([Y.ravel(), X.ravel()])
    return np.exp(-1j * POINTS @ positions) * phases(TIMES) / np.sqrt(IMAGE.size)


@pytest.mark.parametrize("tolerance", [1e-1, 1e-2, 1e-3, 1e-5])
def test_signal_of_a_nonuniform_trajectory(tolerance: float) -> None:
    operator = OffResonance(Nufft(POINTS, SHAPE, 1e-10), FIELD_MAP, TIMES, tolerance=tolerance)
    expected = direct_matrix() @ IMAGE.ravel()
    assert operator.error <= tolerance
    assert relative_error(expected, operator(IMAGE)) < 2 * tolerance
    back = direct_matrix().conj().T @ expected
    assert relative_error(back, operator.H(expected).ravel()) < 3 * tolerance


def test_signal_of_a_cartesian_readout() -> None:
    times = np.linspace(-4e-3, 5e-3, SHAPE[1])
    rows = np.exp(-2j * np.pi * np.outer(np.arange(12) - 6, np.arange(12) - 6) / 12)
    columns = np.exp(-2j * np.pi * np.outer(np.arange(11) - 5, np.arange(11) - 5) / 11)
    evolved = phases(times).reshape(11, *SHAPE) * IMAGE
    expected = np.einsum("ay,bx,byx->ab", rows, columns, evolved) / np.sqrt(IMAGE.size)
    assert relative_error(expected, OffResonance(Fourier(2), FIELD_MAP, times, tolerance=1e-5)(IMAGE)) < 2e-5


def test_error_falls_with_the_segments_and_is_the_one_promised() -> None:
    uniform = np.linspace(-100, 100, 40 * 40).reshape(40, 40)
    times = np.linspace(0, 10e-3, 200)
    errors = [OffResonance(Fourier(2), uniform, times, segments).error for segments in range(2, 11)]
    assert all(after < before for before, after in pairwise(errors))
    # The table of the docstring: two turns.
    needed = [OffResonance(Fourier(2), uniform, times, tolerance=t).segments for t in (1e-1, 1e-2, 1e-3, 1e-4)]
    assert needed == [4, 6, 7, 8]
    operator = OffResonance(Fourier(2), uniform, times, 5)
    approximation = np.einsum("lt,lyx->tyx", operator.interpolators, operator.phasors)
    exact = np.exp(-2j * np.pi * np.multiply.outer(times, uniform))
    rms = np.sqrt((np.abs(approximation - exact) ** 2).mean((1, 2)))
    assert rms.max() == pytest.approx(operator.error, rel=0.1)


def test_no_field_needs_one_segment_and_changes_nothing() -> None:
    plain = Nufft(POINTS, SHAPE)
    operator = OffResonance(plain, np.zeros(SHAPE), TIMES)
    assert operator.segments == 1
    assert relative_error(plain(IMAGE), operator(IMAGE)) < 1e-9


def test_a_blurred_image_becomes_sharp() -> None:
    data = direct_matrix() @ IMAGE.ravel()
    corrected = OffResonance(Nufft(POINTS, SHAPE, 1e-8), FIELD_MAP, TIMES, tolerance=1e-6)
    plain = Nufft(POINTS, SHAPE, 1e-8)
    solutions = [conjugate_gradient(operator.gram, operator.H(data), 100, 1e-8) for operator in (corrected, plain)]
    sharp, blurred = (relative_error(IMAGE, solution) for solution in solutions)
    assert sharp < 1e-3
    assert blurred > 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((FIELD_MAP * 1j, TIMES), "field_map must be real"),
        ((FIELD_MAP * np.nan, TIMES), "field_map must be real, finite"),
        ((FIELD_MAP, TIMES[:0]), "times must be real"),
        ((FIELD_MAP, TIMES, 0), "segments must be at least 1"),
        ((FIELD_MAP, TIMES * 1000), "are they in s"),
        ((FIELD_MAP, TIMES * 60, None, 1e-15), "segments do not reach"),
    ],
)
def test_errors_name_the_argument(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OffResonance(Fourier(2), *arguments)


def test_maps_and_times_that_do_not_fit_are_refused() -> None:
    operator = OffResonance(Fourier(2), FIELD_MAP, TIMES[:11])
    with pytest.raises(ValueError, match="field_map of shape"):
        operator(np.ones((11, 12), complex))
    with pytest.raises(ValueError, match="times of shape"):
        OffResonance(Fourier(2), FIELD_MAP, TIMES)(IMAGE)
    with pytest.raises(ValueError, match="times of shape"):
        operator.H(np.ones((11, 12), complex))
