"""Simultaneous multi-slice: shifts of CAIPIRINHA, and slices that come apart again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from recon.fourier import ifftc
from recon.operators import Fourier, Nufft, Sensitivity
from recon.operators.diagonal import Mask
from recon.operators.sms import SMS, caipi_phases
from recon.phantoms import birdcage_coils
from recon.solvers import conjugate_gradient
from tests.recon.conftest import random_complex, random_trajectory, relative_error

SHAPE, SLICES, COILS = (24, 20), 3, 8
IMAGES = random_complex((SLICES, *SHAPE), 1, "complex128")


def test_slices_are_shifted_and_added() -> None:
    coil_images = IMAGES[:, None] * random_complex((SLICES, 2, *SHAPE), 2, "complex128")
    kspace = SMS(caipi_phases(SLICES, SHAPE[0]))(Fourier(2)(coil_images))
    expected = sum(np.roll(coil_images[s], s * SHAPE[0] // SLICES, -2) for s in range(SLICES))
    assert relative_error(expected, ifftc(kspace, (-2, -1))) < 1e-12
    one_way = SMS(caipi_phases(2, SHAPE[0], [0, -0.25]))(Fourier(2)(coil_images[:2]))
    assert relative_error(coil_images[0] + np.roll(coil_images[1], -6, -2), ifftc(one_way, (-2, -1))) < 1e-12


def slice_maps() -> np.ndarray:
    """Birdcage coils turned a little from slice to slice."""
    maps = birdcage_coils(COILS, (SHAPE[0] + 8, SHAPE[1] + 8)).astype("complex128")
    return np.stack([maps[:, 4 * s : 4 * s + SHAPE[0], 4 * s : 4 * s + SHAPE[1]] for s in range(SLICES)])


@pytest.mark.parametrize("trajectory", ["cartesian", "nonuniform"])
def test_coils_take_the_slices_apart(trajectory: str) -> None:
    if trajectory == "cartesian":
        # The coils make up for two more slices and every sixth line.
        mask = np.ones((SHAPE[0], 1))
        mask[1::6] = 0
        operator = Mask(mask) @ SMS(caipi_phases(SLICES, SHAPE[0])) @ Fourier(2) @ Sensitivity(slice_maps())
    else:
        maps = random_complex((SLICES, COILS, *SHAPE), 4, "complex128")
        phases = np.random.default_rng(3).uniform(-np.pi, np.pi, (SLICES, 600))
        operator = SMS(phases) @ Nufft(random_trajectory(600, 2, dtype="float64"), SHAPE, 1e-8) @ Sensitivity(maps)
    solution = conjugate_gradient(operator.gram, operator.H(operator(IMAGES)), 400, 1e-8)
    assert relative_error(IMAGES, solution) < 1e-3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: SMS(np.zeros(4)), r"\[slice, \*kspace\]"),
        (lambda: SMS(np.full((2, 3), np.inf)), "finite"),
        (lambda: SMS(np.zeros((2, 4, 1)))(np.zeros((3, 1, 4, 4), complex)), "expected 2 slices at axis -4"),
        (lambda: SMS(np.zeros((2, 4, 1)))(np.zeros((2, 1, 5, 4), complex)), "phases of shape"),
        (lambda: SMS(np.zeros((2, 4, 1))).H(np.zeros((1, 5, 4), complex)), "phases of shape"),
        (lambda: caipi_phases(3, 8, [0, 0.5]), "2 shifts do not fit 3 slices"),
    ],
)
def test_errors_name_the_argument(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
