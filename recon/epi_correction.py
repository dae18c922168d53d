"""Phase correction of echo-planar lines from navigators: lines without phase encoding at the head of an echo train.

In image space along the readout, the line of echo e has the phase of the object plus `e drift(x) + s odd_even(x) / 2`, s = 1 for forward
and -1 for backward lines: `drift` is the precession off resonance from one echo to the next, `odd_even` comes from gradient
delays (linear in x) and eddy currents (constant, higher orders). Left alone, `odd_even` makes a ghost half a field of view away
(Bruder et al., Magn Reson Med 1992;23:311; Heid, ISMRM 1997, 2014).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import scipy.signal

POINTWISE_WINDOW = 9
"""Pixels over which the pointwise phase is averaged (Hann window)."""
_POINTWISE_FLOOR = 0.01  # of the strongest signal: weaker pixels keep the phase of the fit


@dataclass(frozen=True)
class LinePhase:
    """Phase of the lines of an echo train, rad.

    drift: polynomial coefficients `[order + 1]` over `x = (pixel - pixels // 2) / pixels`, per echo; odd_even: likewise, of forward
    relative to backward lines; further: what a pointwise odd_even has beyond its polynomial, `[pixels]`.
    """

    drift: np.ndarray
    odd_even: np.ndarray
    further: np.ndarray

    def correction(self, echo: int, reverse: bool) -> np.ndarray:
        """Factors complex64 `[pixels]` that take the phase off the line of that echo."""
        phase = echo * self._drift + (-0.5 if reverse else 0.5) * self._odd_even
        return np.asarray(np.exp(-1j * phase), np.complex64)

    @cached_property
    def _drift(self) -> np.ndarray:
        return polynomial(self.drift, len(self.further))

    @cached_property
    def _odd_even(self) -> np.ndarray:
        return np.asarray(polynomial(self.odd_even, len(self.further)) + self.further)

    @property
    def delay(self) -> float:
        """Shift of the echo of a forward line, in samples of an even line of the image's field of view; of a backward one its opposite."""
        return float(self.odd_even[1] / (4 * np.pi)) if len(self.odd_even) > 1 else 0.0


def estimate_line_phase(
    navigators: np.ndarray, reverse: Sequence[bool], drift_order: int = 0, odd_even_order: int = 1, pointwise: bool = False
) -> LinePhase:
    """Drift and odd-even phase from navigators.

    The drift comes from neighbours of the same direction, two echoes apart, the odd-even phase from neighbours of opposite directions,
    freed from the drift; conjugate products are summed over lines and coils, so that strong signal counts most. Where there are no
    such neighbours, that phase is 0: three navigators are needed for both, two for the odd-even phase alone (whose constant then
    contains the drift of an echo).

    Args:
        navigators: `[line, coil, pixel]` in image space along the readout, in the order of time, the same direction of x for all.
        reverse: `[line]`, which ones were read backwards.
        drift_order: order of the polynomial; negative for none.
        odd_even_order: order of the polynomial; negative for none.
        pointwise: follow the odd-even phase from pixel to pixel beyond the polynomial, averaged over `POINTWISE_WINDOW` pixels.

    Raises:
        ValueError: shapes do not fit, or navigators that are not finite.
    """
    navigators = np.asarray(navigators, np.complex128)
    if navigators.ndim != 3 or len(navigators) != len(reverse):
        raise ValueError(
            f"navigators must be [line, coil, pixel] with a direction each, not {navigators.shape} with {len(reverse)} directions"
        )
    if not np.isfinite(navigators).all():
        raise ValueError("navigators hold samples that are not finite")
    pixels = navigators.shape[2]
    apart = np.zeros(pixels, np.complex128)
    for first in range(len(navigators) - 2):
        if reverse[first] == reverse[first + 2]:
            apart += (navigators[first].conj() * navigators[first + 2]).sum(0)
    drift = fit_phase(apart, drift_order) / 2
    without_drift = np.exp(-1j * polynomial(drift, pixels))
    opposite = np.zeros(pixels, np.complex128)
    for first in range(len(navigators) - 1):
        if reverse[first] != reverse[first + 1]:
            product = (navigators[first].conj() * navigators[first + 1]).sum(0) * without_drift
            opposite += product if reverse[first] else product.conj()
    odd_even = fit_phase(opposite, odd_even_order)
    further = _further(opposite, odd_even) if pointwise else np.zeros(pixels)
    return LinePhase(drift, odd_even, further)


def fit_phase(product: np.ndarray, order: int) -> np.ndarray:
    """Polynomial through the phase of `product` without unwrapping it.

    The slope is that of neighbouring pixels (Ahn & Cho, IEEE Trans Med Imaging 1987;6:32), the constant that of the sum freed from
    it; what is left is small and fitted by least squares, the squared error of each pixel weighted by |product|, the inverse variance of
    its phase.

    Args:
        product: `[pixels]`, a sum of conjugate products.
        order: 0 for a constant; negative for none.

    Returns:
        float64 `[max(order, 0) + 1]`, coefficients for `polynomial`, rad.
    """
    coefficients = np.zeros(max(order, 0) + 1)
    if order < 0 or not product.any():
        return coefficients
    pixels = len(product)
    if order >= 1:
        coefficients[1] = pixels * np.angle(np.vdot(product[:-1], product[1:]))
    coefficients[0] = np.angle((product * np.exp(-1j * polynomial(coefficients, pixels))).sum())
    if order >= 1:
        left = np.angle(product * np.exp(-1j * polynomial(coefficients, pixels)))
        weight = np.sqrt(np.abs(product) / np.abs(product).max())
        powers = _places(pixels)[:, None] ** np.arange(order + 1)
        coefficients += np.linalg.lstsq(weight[:, None] * powers, weight * left, rcond=1e-6)[0]
    return coefficients


def polynomial(coefficients: np.ndarray, pixels: int) -> np.ndarray:
    """`sum_n coefficients[n] x^n` at `x = (pixel - pixels // 2) / pixels`, float64 `[pixels]`."""
    return np.asarray(np.polynomial.polynomial.polyval(_places(pixels), coefficients))


def _places(pixels: int) -> np.ndarray:
    return (np.arange(pixels) - pixels // 2) / pixels


def _further(product: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    left = product * np.exp(-1j * polynomial(coefficients, len(product)))
    window = scipy.signal.windows.hann(POINTWISE_WINDOW + 2)[1:-1]
    smooth = np.convolve(left, window / window.sum(), mode="full")[POINTWISE_WINDOW // 2 :][: len(left)]
    return np.asarray(np.angle(smooth + _POINTWISE_FLOOR * np.abs(product).max()))


def smooth_line_phase(history: Sequence[LinePhase], weights: Sequence[float]) -> LinePhase:
    """The newest of a series of line phases, its coefficients taken from straight lines through the series.

    Constants are fitted as factors exp(i phase), so that they do not suffer from jumps of 2 pi.

    Args:
        history: of successive trains of one slice, newest last.
        weights: of each, such as the mean magnitude of its navigators; at least one positive.

    Returns:
        `LinePhase` with the pointwise part of the newest.
    """
    newest = history[-1]
    if len(history) < 3 or not any(weights):
        return newest
    weight = np.asarray(weights, float)[:, None]
    design = weight * np.stack([np.ones(len(history)), np.arange(1.0 - len(history), 1)], axis=1)

    def fitted(values: np.ndarray) -> np.ndarray:
        trend: np.ndarray = np.linalg.lstsq(design, weight * values, rcond=None)[0][0]
        trend[0] = np.angle(np.linalg.lstsq(design, weight * np.exp(1j * values), rcond=None)[0][0, 0])
        return trend

    # The drift was measured over two echoes: it jumps by pi.
    drift = fitted(2 * np.stack([phase.drift for phase in history])) / 2
    return replace(newest, drift=drift, odd_even=fitted(np.stack([phase.odd_even for phase in history])))


def ghost_level(image: np.ndarray, mask: np.ndarray, axis: int = -2) -> float:
    """Root mean square of an image where only its ghost half a field of view away is, relative to the object's.

    Args:
        image: `[..., y, x]`, real or complex.
        mask: bool of the image's last axes, true in the object.
        axis: of phase encoding.

    Raises:
        ValueError: the mask is empty, or the object covers its ghost.
    """
    ghost = np.roll(mask, mask.shape[axis] // 2, axis) & ~mask
    if not ghost.any():
        raise ValueError("the mask leaves no place for a ghost: it is empty, or the object fills the field of view")
    power = np.abs(np.asarray(image)) ** 2
    return float(np.sqrt(power[..., ghost].mean() / power[..., mask].mean()))
