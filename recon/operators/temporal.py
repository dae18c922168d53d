"""The Fourier transform over time."""

from __future__ import annotations

from recon.arrays import Array
from recon.fourier import fftc, ifftc
from recon.operators.linear import LinearOperator


class TemporalFourier(LinearOperator):
    """Centred orthonormal FFT over the frames: series x-t `[..., frame, y, x]` to spectra x-f of the same shape.

    Frequency 0 lies at index n // 2. With an encoding E of the series, `E @ TemporalFourier().H` encodes spectra, which are
    sparse for periodic motion (k-t methods; Jung et al., Magn. Reson. Med. 61 (2009)).

    Args:
        axis: axis of the frames.
    """

    def __init__(self, axis: int = -3) -> None:
        self.axis = axis

    def forward(self, x: Array) -> Array:
        return fftc(x, self.axis)

    def adjoint(self, y: Array) -> Array:
        return ifftc(y, self.axis)
