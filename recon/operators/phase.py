"""Images whose phase is known."""

from __future__ import annotations

import numpy as np

from recon.arrays import Array, complex_dtype, is_tensor, matched, real_dtype
from recon.operators.linear import LinearOperator
from recon.operators.shapes import check_fit


class PhaseConstrained(LinearOperator):
    """x exp(i phase) of a real image x: `E @ PhaseConstrained(phase)` encodes real images, half the unknowns.

    It is linear over the real numbers, with the adjoint Re(conj(exp(i phase)) y): <A x, y> and <x, A^H y> have the same
    real part. Lew et al., Magn. Reson. Med. 58 (2007).

    Args:
        phase: rad, broadcast against the last axes of the image.

    Raises:
        ValueError: the phase is complex or not finite, an image is complex, or does not fit the phase.
    """

    def __init__(self, phase: np.ndarray) -> None:
        phase = np.asarray(phase)
        if phase.dtype.kind == "c" or not np.isfinite(phase).all():
            raise ValueError("the phase must be finite angles in rad; for a complex image give np.angle of it")
        self.phasor: np.ndarray = np.exp(1j * phase.astype(np.float64))

    def forward(self, x: Array) -> Array:
        check_fit("phase", self.phasor.shape, x, "the image")
        dtype = complex_dtype(x)
        if (x.dtype.as_numpy_dtype if is_tensor(x) else x.dtype) == dtype:
            raise ValueError("phase-constrained images are real; this one is complex (give its real part)")
        if is_tensor(x):
            import tensorflow as tf

            return tf.cast(x, dtype) * matched(self.phasor, tf.zeros([], dtype))
        return x.astype(real_dtype(dtype), copy=False) * matched(self.phasor, x)

    def adjoint(self, y: Array) -> Array:
        check_fit("phase", self.phasor.shape, y, "the image")
        product = y * matched(self.phasor.conj(), y)
        if is_tensor(y):
            import tensorflow as tf

            return tf.math.real(product)
        return product.real
