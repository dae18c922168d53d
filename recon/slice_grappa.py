"""Slices that were excited together, taken apart by kernels in k-space: split slice-GRAPPA."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recon.grappa import calibrate, convolution_kernel, normal_equations, reconstruct, solve, unmixing


class SliceGrappa:
    """Split slice-GRAPPA, then GRAPPA in the plane, then combination of the coils; all of it one weight a slice, coil and pixel.

    The kernel of slice m turns the k-space of all slices into its own: with A_s the neighbourhoods of slice s alone,
    min_w  sum_s |A_s w - d_sm b_m|^2 + lambda mean_diagonal |w|^2, so that it passes slice m and blocks the others.
    Setsompop et al., Magn. Reson. Med. 67 (2012); Cauley et al., Magn. Reson. Med. 72 (2014).

    Args:
        calibration: complex `[slice, coil, ky, kx]`, adjacent lines of each slice alone, without its shift.
        maps: `[slice, coil, y, x]`, to combine the coils.
        shifts: of each slice, in turns a line; positive moves it to higher y, see `recon.operators.sms.caipi_phases`.
        acceleration: every so many lines are sampled.
        kernel_size: source points along ky (of sampled lines) and kx, odd.
        regularisation: lambda.

    Raises:
        ValueError: shapes do not fit, even kernel sizes, too few calibration lines, or no signal in them.
    """

    def __init__(
        self,
        calibration: np.ndarray,
        maps: np.ndarray,
        shifts: Sequence[float],
        acceleration: int = 1,
        kernel_size: tuple[int, int] = (5, 5),
        regularisation: float = 5e-4,
    ) -> None:
        calibration, maps = np.asarray(calibration), np.asarray(maps)
        if calibration.ndim != 4 or maps.ndim != 4 or calibration.shape[:2] != maps.shape[:2] or len(shifts) != len(maps):
            raise ValueError(
                f"calibration {calibration.shape}, maps {maps.shape} and {len(shifts)} shifts do not fit: expected [slice, coil, ky, kx], "
                "[slice, coil, y, x] and one shift for each slice"
            )
        if any(n % 2 == 0 for n in kernel_size):
            raise ValueError(f"kernel sizes must be odd, not {kernel_size}")
        self.shape = maps.shape[1:]
        line = np.arange(maps.shape[2]) - maps.shape[2] // 2
        turns = np.asarray(shifts, float)
        self._demodulation = np.exp(2j * np.pi * np.multiply.outer(turns, line))[:, None, :, None].astype(np.complex64)
        kernels = _kernels(calibration, turns, acceleration, kernel_size, regularisation)
        self.weights = np.stack([_weights(*parts, acceleration, regularisation) for parts in zip(kernels, calibration, maps, strict=True)])

    def __call__(self, kspace: np.ndarray) -> np.ndarray:
        """Images `[..., slice, y, x]` of k-space `[..., coil, ky, kx]`, zero where nothing was sampled."""
        if kspace.shape[-3:] != self.shape:
            raise ValueError(f"k-space {kspace.shape} does not fit maps of {self.shape}: expected [..., coil, ky, kx]")
        parts = [
            reconstruct((kspace * phase)[..., None, :, :], weights)[..., 0, :, :]
            for phase, weights in zip(self._demodulation, self.weights, strict=True)
        ]
        return np.stack(parts, axis=-3)


def _kernels(
    calibration: np.ndarray, turns: np.ndarray, acceleration: int, kernel_size: tuple[int, int], regularisation: float
) -> list[np.ndarray]:
    """Convolution kernels `[target, coil, 1, ky, kx]`, one a slice, for k-space whose lines were turned back for that slice."""
    slices, coils, lines, _ = calibration.shape
    along = [np.arange(-(n // 2), n // 2 + 1) for n in kernel_size]
    offsets = (np.zeros(1, int), along[0] * acceleration, along[1])
    modulation = np.exp(-2j * np.pi * np.multiply.outer(turns, np.arange(lines)))[:, None, :, None]
    shifted = (calibration * modulation).astype(calibration.dtype)[:, :, None]
    # Of a slice that is to be blocked the right-hand side is 0: all slices share one matrix.
    grams, rights = zip(*(normal_equations(one, one, offsets, [(0, 0)], 0.0) for one in shifted), strict=True)
    solved = solve(sum(grams[1:], grams[0]), np.concatenate(rights, axis=1), regularisation)
    weights = solved.reshape(coils, 1, *kernel_size, slices, coils)
    kernels = []
    for number, turn in enumerate(turns):
        back = np.exp(-2j * np.pi * turn * offsets[1])[None, None, :, None, None, None]
        own = (weights[..., number, None, :] * back).astype(calibration.dtype)
        kernels.append(convolution_kernel(own, offsets, [(0, 0)], keep_sampled=False))
    return kernels


def _weights(kernel: np.ndarray, calibration: np.ndarray, maps: np.ndarray, acceleration: int, regularisation: float) -> np.ndarray:
    """The slice's kernel, then GRAPPA in the plane, then the coils combined: `[coil, 1, y, x]`."""
    plane = calibrate(calibration[:, None], acceleration=(1, acceleration), kernel_size=(1, 4, 5), regularization=regularisation)
    return unmixing(kernel, unmixing(plane, maps[:, None]).conj())
