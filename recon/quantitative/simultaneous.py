"""Slices that were excited together, fitted from their common k-space: no step that takes them apart comes before the fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from recon.arrays import complex_dtype, real_dtype
from recon.fourier import ifftc
from recon.quantitative.data_term import DataTerm, SharedGram, white
from recon.quantitative.measured import Measured


def simultaneous(kspace: np.ndarray, maps: np.ndarray, phases: np.ndarray, mask: np.ndarray | None = None) -> DataTerm:
    """The sum of slices' k-spaces on a grid, each slice with a phase of its own at each line.

    SENSE of simultaneous slices as a data term: Breuer et al., Magn. Reson. Med. 53 (2005); see `recon.operators.sms`.

    Args:
        kspace: complex `[contrast, coil, y, x]`, centred; values outside the mask do not count.
        maps: sensitivities `[coil, slice, y, x]`.
        phases: rad, `[slice, ky]`, such as `caipi_phases(...)[..., 0]`.
        mask: sampled points, broadcast against `[contrast, y, x]`; None takes those where any coil is not zero.

    Returns:
        Data of images `[contrast, slice, y, x]`.

    Raises:
        ValueError: shapes that do not fit, or values that are not finite.
    """
    import tensorflow as tf

    kspace, maps, phases = np.asarray(kspace), np.asarray(maps), np.asarray(phases, np.float64)
    if kspace.ndim != 4 or maps.shape != (kspace.shape[1], len(phases), *kspace.shape[2:]) or phases.shape[1:] != kspace.shape[2:3]:
        raise ValueError(
            f"k-space {kspace.shape}, maps {maps.shape} and phases {phases.shape} do not fit: expected [contrast, coil, y, x], "
            "[coil, slice, y, x] and [slice, y]"
        )
    if not np.isfinite(kspace).all():
        raise ValueError("the common k-space of simultaneous slices holds values that are not finite (NaN, Inf)")
    dtype = complex_dtype(kspace)
    sampled = np.abs(kspace).max(1) > 0 if mask is None else np.broadcast_to(np.asarray(mask, bool), (len(kspace), *kspace.shape[2:]))
    kspace, maps = kspace * sampled[:, None], maps.astype(dtype)
    phasors = np.exp(1j * phases).astype(dtype)[:, :, None]

    def adjoint(data: np.ndarray) -> np.ndarray:
        back: np.ndarray = (maps.conj() * ifftc(data[:, :, None] * phasors.conj(), (-2, -1))).sum(1).astype(dtype)
        return back

    def noise(random: np.random.Generator) -> np.ndarray:
        return adjoint(white(kspace.shape, dtype, random) * sampled[:, None])

    rhs = adjoint(kspace)
    power = (np.abs(maps) ** 2).sum(0).astype(real_dtype(dtype))
    share = sampled.mean(axis=(1, 2)).astype(power.dtype)[:, None, None, None]
    # Of the sum of n slices' k-spaces |.|^2 is at most n times the sum of theirs.
    bound, diagonal = tf.constant(len(phases) * power[None]), tf.constant(power * share)
    # F^H M F is a circular convolution, for which centred and plain transforms are the same.
    points = tf.constant(np.fft.ifftshift(sampled, (1, 2))[:, None].astype(dtype))
    turns = tf.constant(np.fft.ifftshift(phasors, 1))
    gram = SharedGram("simultaneous", _gram, (points, turns, tf.constant(maps)))
    energy = float(np.sum(np.abs(kspace) ** 2, dtype=np.float64))
    return DataTerm(tf.constant(rhs), gram, bound, diagonal, False, energy, int(sampled.sum()) * kspace.shape[1], noise=noise)


def _gram(x: Any, points: Any, turns: Any, coils: Any) -> Any:
    import tensorflow as tf

    spectrum = tf.reduce_sum(turns * tf.signal.fft2d(coils * x[:, None]), 2) * points
    back = tf.signal.ifft2d(tf.math.conj(turns) * spectrum[:, :, None])
    return tf.reduce_sum(tf.math.conj(coils) * back, 1)


@dataclass(frozen=True, eq=False)
class SimultaneousMeasured(Measured):
    """Simultaneous slices. data: their common k-space `[contrast, coil, y, x]`; maps: `[coil, slice, y, x]`; phases: `[slice, ky]`, rad.

    The grid is that of all slices, `[slice, y, x]`.
    """

    phases: np.ndarray | None = None

    def term(self, dtype: np.dtype) -> DataTerm:
        assert self.maps is not None
        assert self.phases is not None
        return simultaneous(self.data.astype(dtype, copy=False), self.maps, self.phases, self.mask)

    def gridded(self) -> np.ndarray:
        raise ValueError("simultaneous slices cannot be told apart without iterations")
