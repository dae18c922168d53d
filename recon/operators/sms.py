"""Several slices excited at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recon.arrays import Array, is_tensor, matched
from recon.operators.linear import LinearOperator
from recon.operators.shapes import check_fit


class SMS(LinearOperator):
    """Simultaneous multi-slice: k-space of each slice `[..., slice, coil, *kspace]` to their sum `[..., coil, *kspace]`.

    Each slice has a phase of its own at each sample, such as that of CAIPIRINHA, see `caipi_phases`. The encoding of images
    `[..., slice, y, x]` with maps `[slice, coil, y, x]` is `SMS(phases) @ Fourier(2) @ Sensitivity(maps)`, with a `Mask` in
    front for undersampled data, and a `Nufft` instead of the `Fourier` for other trajectories.

    Breuer et al., Magn. Reson. Med. 53 (2005); Setsompop et al., Magn. Reson. Med. 67 (2012).

    Args:
        phases: rad, `[slice, *kspace]`, where axes of k-space may have size 1: `[slice, ky, 1]` or `[slice, sample]`.

    Raises:
        ValueError: phases are not finite, or have no axis of k-space, or an argument does not fit them.
    """

    def __init__(self, phases: np.ndarray) -> None:
        phases = np.asarray(phases)
        if phases.ndim < 2 or not np.isfinite(phases).all():
            raise ValueError(f"phases must be finite angles of shape [slice, *kspace], not an array of shape {phases.shape}")
        self.slices, self.axis = len(phases), -1 - phases.ndim
        # The axis of size 1 is that of the coils.
        self.phasors: np.ndarray = np.exp(1j * phases.astype(np.float64))[:, None]

    def forward(self, x: Array) -> Array:
        if len(x.shape) < -self.axis or x.shape[self.axis] != self.slices:
            raise ValueError(
                f"expected {self.slices} slices at axis {self.axis} of k-space [..., slice, coil, *kspace], not {tuple(x.shape)}"
            )
        check_fit("phases", self.phasors.shape, x, "k-space [slice, coil, *kspace]")
        modulated = x * matched(self.phasors, x)
        if is_tensor(x):
            import tensorflow as tf

            return tf.reduce_sum(modulated, self.axis)
        return modulated.sum(self.axis)

    def adjoint(self, y: Array) -> Array:
        check_fit("phases", self.phasors.shape[1:], y, "k-space [coil, *kspace]")
        if is_tensor(y):
            import tensorflow as tf

            return tf.expand_dims(y, self.axis) * matched(self.phasors.conj(), y)
        return np.expand_dims(y, self.axis) * matched(self.phasors.conj(), y)


def caipi_phases(slices: int, lines: int, shifts: Sequence[float] | None = None) -> np.ndarray:
    """Phases that shift the slices along y against each other.

    Args:
        slices: how many are excited together.
        lines: size of the axis ky.
        shifts: shift of each slice, as a fraction of the field of view, towards higher y; None for s / slices.

    Returns:
        Phases in rad `[slice, line, 1]`, for `SMS`.

    Raises:
        ValueError: another number of shifts than slices.
    """
    shifts = [s / slices for s in range(slices)] if shifts is None else shifts
    if len(shifts) != slices:
        raise ValueError(f"{len(shifts)} shifts do not fit {slices} slices; give one for each")
    line = np.arange(lines) - lines // 2
    phases: np.ndarray = -2 * np.pi * np.multiply.outer(np.asarray(shifts, float), line)[..., None]
    return phases
