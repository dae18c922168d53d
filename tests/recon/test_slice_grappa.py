"""Split slice-GRAPPA: one weight a pixel does what the kernels in k-space do, and they pass one slice and block the others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from recon.fourier import fftc, ifftc
from recon.operators.sms import caipi_phases
from recon.slice_grappa import SliceGrappa, _kernels
from tests.gadgets.sms_scan import SMSScan
from tests.recon.conftest import relative_error

SCAN = SMSScan(n=32, factor=2, groups=1, shift=0.5)
CALIBRATION = SCAN.kspace[:, :, 4:28].astype(np.complex64)
MAPS = SCAN.maps.astype(np.complex64)


def collapsed(slices: list[int], shifts: list[float], acceleration: int = 1) -> np.ndarray:
    phases = caipi_phases(2, SCAN.n, shifts)[..., 0]
    lines = (np.arange(SCAN.n) - SCAN.n // 2) % acceleration == 0
    total = sum(np.exp(1j * phases[s])[:, None] * SCAN.kspace[s] for s in slices)
    return (total * lines[:, None]).astype(np.complex64)


@pytest.mark.parametrize(("acceleration", "pass_bound", "leak"), [(1, 0.02, 0.01), (2, 0.05, 0.03)])
def test_a_slice_passes_and_the_other_is_blocked(acceleration: int, pass_bound: float, leak: float) -> None:
    shifts = [0.0, 0.5 / acceleration]
    solver = SliceGrappa(CALIBRATION, MAPS, shifts, acceleration)
    both = solver(collapsed([0, 1], shifts, acceleration))
    assert both.shape == (2, SCAN.n, SCAN.n)
    for s in range(2):
        assert relative_error(SCAN.truth[s], both[s]) < pass_bound
        alone = solver(collapsed([s], shifts, acceleration))
        assert np.linalg.norm(alone[1 - s]) < leak * np.linalg.norm(SCAN.truth[s])


def test_weights_are_the_convolution_of_the_kernels() -> None:
    """Kernel by kernel in k-space, written out: turn the lines back, convolve, transform, combine."""
    shifts = [0.0, 0.3]
    solver = SliceGrappa(CALIBRATION, MAPS, shifts, kernel_size=(3, 5))
    kernels = _kernels(CALIBRATION, np.array(shifts), 1, (3, 5), 5e-4)
    kspace = collapsed([0, 1], shifts)
    for s, kernel in enumerate(kernels):
        turned = kspace * np.exp(2j * np.pi * shifts[s] * (np.arange(SCAN.n) - SCAN.n // 2))[:, None]
        output = np.zeros_like(turned)
        for dy in range(-1, 2):
            for dx in range(-2, 3):
                # Its origin in the middle, a convolution takes the sample at k - d with the tap at d.
                output += np.einsum("tc,cyx->tyx", kernel[:, :, 0, 1 + dy, 2 + dx], np.roll(turned, (dy, dx), (-2, -1)))
        combined = (MAPS[s].conj() * ifftc(output, (-2, -1))).sum(0)
        assert relative_error(combined, solver(kspace)[s]) < 1e-4


def test_a_series_at_once_is_one_after_another() -> None:
    solver = SliceGrappa(CALIBRATION, MAPS, [0.0, 0.5])
    frames = np.stack([collapsed([0, 1], [0.0, 0.5]), collapsed([1], [0.0, 0.5])])
    assert relative_error(np.stack([solver(frame) for frame in frames]), solver(frames)) < 1e-6
    assert relative_error(solver(frames[0]), solver(fftc(ifftc(frames[0], (-1,)), (-1,)))) < 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shifts": [0.0]}, "1 shifts do not fit"),
        ({"maps": MAPS[:1]}, "do not fit: expected"),
        ({"kernel_size": (4, 5)}, r"must be odd, not \(4, 5\)"),
        ({"calibration": CALIBRATION[:, :, :3]}, "3 calibration samples along e1 are too few"),
        ({"calibration": CALIBRATION * 0}, "no signal"),
    ],
)
def test_errors_name_the_argument(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SliceGrappa(**{"calibration": CALIBRATION, "maps": MAPS, "shifts": [0.0, 0.5], **change})
    with pytest.raises(ValueError, match=r"expected \[..., coil, ky, kx\]"):
        SliceGrappa(CALIBRATION, MAPS, [0.0, 0.5])(np.zeros((3, 3, 3), np.complex64))
