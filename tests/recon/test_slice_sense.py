"""Slices taken apart by coils: the direct solution against the matrix of the problem, and against conjugate gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from recon.operators.sms import caipi_phases
from recon.slice_sense import SliceSense
from tests.recon.conftest import random_complex, relative_error

NY, NX, COILS = 12, 5, 7


def problem(slices: int, acceleration: int, shift: float, first: int = 0, dtype: str = "complex128") -> tuple[np.ndarray, ...]:
    """Maps, phases, sampled lines."""
    maps = random_complex((slices, COILS, NY, NX), 1, dtype)
    phases = caipi_phases(slices, NY, [shift / acceleration * s for s in range(slices)])[..., 0]
    lines = (np.arange(NY) - NY // 2) % acceleration == 0
    lines[:first] = False
    return maps, phases, lines


def matrix(maps: np.ndarray, phases: np.ndarray, lines: np.ndarray) -> np.ndarray:
    """Encoding of one column of pixels along y: `[x, (coil, line), (slice, y)]`."""
    index = np.arange(NY) - NY // 2
    transform = np.exp(-2j * np.pi * np.outer(index, index) / NY) / np.sqrt(NY)
    encoded = np.einsum("k,mk,ky,mcyx->xckmy", lines.astype(float), np.exp(1j * phases), transform, maps)
    return encoded.reshape(NX, COILS * NY, -1)


def columns(kspace: np.ndarray) -> np.ndarray:
    """K-space `[coil, ky, kx]` as `[x, (coil, line)]`."""
    index = np.arange(NX) - NX // 2
    back = np.exp(2j * np.pi * np.outer(index, index) / NX) / np.sqrt(NX)
    return np.einsum("xk,cyk->xcy", back, kspace).reshape(NX, -1)


@pytest.mark.parametrize(
    ("slices", "acceleration", "shift", "first", "period"),
    [
        (2, 1, 0.5, 0, 2),
        (3, 1, 1 / 3, 0, 3),
        (2, 2, 0.5, 0, 4),
        (3, 2, 1 / 3, 0, 6),
        (2, 3, 0.0, 0, 3),
        (1, 4, 0.0, 0, 4),
        (2, 2, 0.5, 3, 12),
    ],
)
def test_the_solution_of_the_regularised_problem(slices: int, acceleration: int, shift: float, first: int, period: int) -> None:
    maps, phases, lines = problem(slices, acceleration, shift, first)
    kspace = random_complex((COILS, NY, NX), 2, "complex128")
    regularisation = 0.05
    encoded = matrix(maps, phases, lines)
    adjoint = encoded.conj().swapaxes(1, 2)
    normal = adjoint @ encoded + regularisation * lines.mean() * np.eye(slices * NY)
    expected = np.linalg.solve(normal, adjoint @ columns(kspace)[..., None])[..., 0]
    direct = SliceSense(maps, phases, lines, regularisation)
    assert direct.period == period
    found = direct(np.stack([kspace, 2 * kspace]))
    assert relative_error(expected, found[0].transpose(2, 0, 1).reshape(NX, -1)) < 1e-9
    assert relative_error(2 * found[0], found[1]) < 1e-12


@pytest.mark.parametrize("shift", [0.37, 1 / 7])
def test_shifts_that_never_repeat_are_iterated(shift: float) -> None:
    maps, phases, lines = problem(4, 1, shift)
    solver = SliceSense(maps, phases, lines, 0.05, iterations=300, tolerance=1e-10)
    assert solver.period is None
    kspace = random_complex((COILS, NY, NX), 2, "complex128")
    encoded = matrix(maps, phases, lines)
    adjoint = encoded.conj().swapaxes(1, 2)
    expected = np.linalg.solve(adjoint @ encoded + 0.05 * np.eye(4 * NY), adjoint @ columns(kspace)[..., None])[..., 0]
    assert relative_error(expected, solver(kspace).transpose(2, 0, 1).reshape(NX, -1)) < 1e-7


def test_pixels_without_sensitivity_are_zero_and_equal_coils_finite() -> None:
    maps, phases, lines = problem(2, 1, 0.5, dtype="complex64")
    maps[0, :, 3:5] = 0
    maps[1] = maps[0]
    images = SliceSense(maps, phases * 0, lines, 0.0)(random_complex((COILS, NY, NX), 2))
    assert images.dtype == np.complex64
    assert np.isfinite(images).all()
    assert not images[:, 3:5].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"maps": np.ones((2, COILS, NY))}, r"expected \[slice, coil, y, x\]"),
        ({"phases": np.zeros((3, NY))}, "do not fit"),
        ({"lines": np.zeros(NY, bool)}, "no line is sampled"),
        ({"maps": np.ones((2, 1, NY, NX))}, "every 1th line fold 2 pixels onto each other, but there are only 1 coils"),
        ({"regularisation": -1.0}, "at least 0"),
    ],
)
def test_errors_name_the_argument(change: dict[str, Any], message: str) -> None:
    maps, phases, lines = problem(2, 1, 0.5)
    with pytest.raises(ValueError, match=message):
        SliceSense(**{"maps": maps, "phases": phases, "lines": lines, **change})
    with pytest.raises(ValueError, match=r"expected \[..., coil, ky, kx\]"):
        SliceSense(maps, phases, lines)(np.zeros((COILS, NY, NX + 1), complex))
