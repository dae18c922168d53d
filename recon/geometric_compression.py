"""Geometric coil compression: along a fully sampled readout every position has its own virtual coils.

Zhang, Pauly, Vasanawala, Lustig, Magn. Reson. Med. 69 (2013) 571. At one position of the readout the coils differ in fewer ways
than in the whole volume, so that fewer virtual coils hold the same signal. Each position's compression is rotated towards its
neighbour's, which keeps the virtual coils' sensitivities smooth along the readout, as parallel imaging needs them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recon.arrays import Array, complex_dtype, is_tensor
from recon.fourier import fftc, ifftc


@dataclass(frozen=True)
class GeometricCompressor:
    """Coil compression that varies along a Cartesian readout, the last axis of the data; fit once, apply to every frame.

    `matrices` `[readout position, virtual, coil]` have orthonormal rows; `energy` `[readout position]` is the share of the
    calibration data's energy that is kept.
    """

    matrices: np.ndarray
    energy: np.ndarray

    @classmethod
    def fit(cls, kspace: np.ndarray, coils: int, window: int = 5, coil_axis: int = -3) -> GeometricCompressor:
        """Find the compression from calibration data.

        Args:
            kspace: complex, coils along `coil_axis` and a fully sampled readout along the last axis; `[coil, line, sample]`, for
                example the lines of the centre of k-space. Lines that were not sampled may be zero.
            coils: number of virtual coils.
            window: neighbouring positions of the readout, an odd number, that share their covariance.
            coil_axis: not the last one.

        Raises:
            ValueError: axes or numbers out of range, or values that are not finite.
        """
        kspace = np.asarray(kspace)
        if kspace.ndim < 2 or not -kspace.ndim <= coil_axis < kspace.ndim or coil_axis % kspace.ndim == kspace.ndim - 1:
            raise ValueError(f"coil_axis {coil_axis} of data of shape {kspace.shape}: the last axis is the readout, coils are another")
        channels = kspace.shape[coil_axis]
        if not 1 <= coils <= channels:
            raise ValueError(f"coils must lie between 1 and {channels}, not {coils}")
        if window < 1 or window % 2 == 0:
            raise ValueError(f"window must be odd and positive, not {window}")
        if not np.isfinite(kspace).all():
            raise ValueError("geometric compression: the calibration data hold values that are not finite")
        hybrid = np.moveaxis(ifftc(kspace.astype(np.complex128), -1), (-1, coil_axis), (0, 1))
        hybrid = hybrid.reshape(*hybrid.shape[:2], -1)
        covariance = _moving_sum(hybrid @ hybrid.conj().swapaxes(1, 2), window)
        values, vectors = np.linalg.eigh(covariance)
        matrices = vectors[:, :, : -coils - 1 : -1].conj().swapaxes(1, 2)
        total = values.sum(1)
        energy = np.divide(values[:, -coils:].sum(1), total, out=np.ones_like(total), where=total > 0)
        return cls(_aligned(matrices, int(total.argmax())), energy)

    def apply(self, kspace: Array, coil_axis: int = -3) -> Array:
        """Compress k-space along `coil_axis`; the readout is the last axis. Arrays or tensors, a readout or many at a time.

        Raises:
            ValueError: the number of coils or the length of the readout is not that of the calibration data.
        """
        positions, virtual, channels = self.matrices.shape
        if kspace.shape[coil_axis] != channels or kspace.shape[-1] != positions:
            raise ValueError(
                f"data of shape {tuple(kspace.shape)} do not fit a compression of {channels} coils (axis {coil_axis}) and readouts of "
                f"{positions} samples"
            )
        hybrid = ifftc(kspace, -1)
        if is_tensor(kspace):
            import tensorflow as tf

            moved = tf.experimental.numpy.moveaxis(hybrid, coil_axis, -2)
            mixed = tf.einsum("xvc,...cx->...vx", tf.cast(self.matrices, hybrid.dtype), moved)
            return fftc(tf.experimental.numpy.moveaxis(mixed, -2, coil_axis), -1)
        moved = np.moveaxis(hybrid, (-1, coil_axis), (0, 1))
        mixed = self.matrices.astype(complex_dtype(hybrid)) @ moved.reshape(positions, channels, -1)
        mixed = mixed.reshape(positions, virtual, *moved.shape[2:])
        return fftc(np.moveaxis(mixed, (0, 1), (-1, coil_axis)), -1)


def _moving_sum(values: np.ndarray, window: int) -> np.ndarray:
    """Sum over `window` neighbours along the first axis; fewer at the ends."""
    sums = np.concatenate([np.zeros_like(values[:1]), values.cumsum(0)])
    index = np.arange(len(values))
    result: np.ndarray = sums[np.minimum(index + window // 2 + 1, len(values))] - sums[np.maximum(index - window // 2, 0)]
    return result


def _aligned(matrices: np.ndarray, start: int) -> np.ndarray:
    """Rotate the virtual coils `[position, virtual, coil]` to be nearest to their neighbours', from `start` to both ends."""
    aligned: np.ndarray = matrices.copy()
    for order in (range(start + 1, len(matrices)), range(start - 1, -1, -1)):
        before = aligned[start]
        for position in order:
            left, _, right = np.linalg.svd(before @ aligned[position].conj().T)
            before = aligned[position] = left @ right @ aligned[position]
    return aligned
