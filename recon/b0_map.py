"""Maps of the static field B0 from echoes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.fft

from recon.solvers import conjugate_gradient

_ITERATIONS = 100
_TOLERANCE = 1e-5
_SHORTEST = 0.2


@dataclass(frozen=True, eq=False)
class B0Map:
    """A field map. hz: off-resonance, float32 `[*image]`; measured: where there was signal (elsewhere hz is a smooth continuation)."""

    hz: np.ndarray
    measured: np.ndarray


def b0_map(
    images: np.ndarray,
    echo_times: Sequence[float],
    rank: int = 2,
    threshold: float = 0.1,
    smoothing: float = 1.5,
) -> B0Map:
    """Off-resonance f from images at two or more echo times: the phase of a pixel is phi - 2 pi f t, as in `OffResonance`.

    The phase difference to the first echo, summed over coils, is fitted by a straight line over the echo times, each echo weighted by
    its magnitude squared. Echoes are unwrapped one after another by what the nearer ones predict, so that only the smallest difference
    of echo times limits the range: |f| < 1 / (2 difference). Then, over all pixels r and their neighbours,

        min_f  sum_r w_r (f_r - measured_r)^2 + smoothing^4 |laplacian f|^2,    w: magnitude squared, 0 where there is no signal,

    takes out noise and continues the map into regions without signal. Funai et al., IEEE Trans. Med. Imaging 27 (2008), with the
    data term linearised at the fit.

    Args:
        images: complex `[echo, *image]`, or `[echo, coil, *image]`.
        echo_times: in ms, one for each echo, in any order, all different.
        rank: number of image axes.
        threshold: signal is what exceeds this fraction of the largest magnitude.
        smoothing: in pixels, the length over which a pixel of median signal follows its neighbours; 0 only fills in.

    Raises:
        ValueError: fewer than two echoes, times that are equal, not finite or too few, images that are not complex or not finite, no
            signal, or a threshold or smoothing out of range.
    """
    images, times = _checked(images, echo_times, rank, threshold, smoothing)
    products = images * images[0].conj()
    if images.ndim > rank + 1:
        products = products.sum(axis=1)
    # |first|^2 of the first echo, |first| |echo| of the others.
    magnitude = np.abs(products)
    energy = magnitude[0]
    measured: np.ndarray = energy > threshold**2 * energy.max()
    hz = _fitted(np.angle(products), magnitude**2 / np.maximum(energy, np.finfo(np.float64).tiny), times)
    weights = np.where(measured, energy / np.median(energy[measured]), 0)
    return B0Map(_smooth(hz, weights, smoothing).astype(np.float32), measured)


def _checked(
    images: np.ndarray, echo_times: Sequence[float], rank: int, threshold: float, smoothing: float
) -> tuple[np.ndarray, np.ndarray]:
    images, times = np.asarray(images), np.asarray(echo_times, np.float64)
    if images.ndim not in (rank + 1, rank + 2) or images.dtype.kind != "c":
        raise ValueError(f"images must be complex [echo, (coil,) *image] with {rank} image axes, not {images.dtype} {images.shape}")
    if len(images) < 2:
        raise ValueError(f"a field map needs at least two echoes, not {len(images)}")
    if times.shape != (len(images),) or not np.isfinite(times).all() or len(np.unique(times)) < len(times):
        raise ValueError(f"echo_times must be {len(images)} different times in ms, one for each echo, not {list(echo_times)}")
    if not 0 <= threshold < 1 or not smoothing >= 0:
        raise ValueError(f"threshold must lie in 0 ... 1 and smoothing be at least 0, not {threshold} and {smoothing}")
    if not np.isfinite(images).all():
        raise ValueError("images must be finite; they hold NaN or infinite pixels")
    if not images[0].any():
        raise ValueError("there is no signal in the first echo: all pixels are 0")
    order = np.argsort(times)
    return images[order].astype(np.complex128), times[order] / 1000


def _fitted(phases: np.ndarray, weights: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Slope of the phases, in Hz, by weighted least squares; `phases[0]` is 0 and the times rise."""
    steps = np.diff(times)
    at = int(np.argmin(steps))
    # The closest two echoes tell the frequency within the widest range; it predicts the next echo, and so on outwards.
    slope = _wrapped(phases[at + 1] - phases[at]) / steps[at]
    unwrapped = phases.copy()
    unwrapped[at + 1] = phases[at] + slope * steps[at]
    first, last = at, at + 1
    while first > 0 or last < len(times) - 1:
        ahead = last < len(times) - 1 and (first == 0 or steps[last] <= steps[first - 1])
        new, known = (last + 1, last) if ahead else (first - 1, first)
        predicted = unwrapped[known] + slope * (times[new] - times[known])
        unwrapped[new] = predicted + _wrapped(phases[new] - predicted)
        first, last = min(first, new), max(last, new)
        slope = _slope(unwrapped[first : last + 1], weights[first : last + 1], times[first : last + 1])
    hz: np.ndarray = -slope / (2 * np.pi)
    return hz


def _wrapped(phase: np.ndarray) -> np.ndarray:
    wrapped: np.ndarray = np.angle(np.exp(1j * phase))
    return wrapped


def _slope(phases: np.ndarray, weights: np.ndarray, times: np.ndarray) -> np.ndarray:
    weights = weights + np.finfo(np.float64).tiny
    mean_time = np.tensordot(times, weights, 1) / weights.sum(0)
    offsets = times.reshape(-1, *(1,) * mean_time.ndim) - mean_time
    spread = (weights * offsets**2).sum(0)
    slope: np.ndarray = np.divide((weights * offsets * phases).sum(0), spread, out=np.zeros_like(spread), where=spread > 0)
    return slope


def _smooth(values: np.ndarray, weights: np.ndarray, length: float) -> np.ndarray:
    """Minimise sum w (f - values)^2 + length^4 |laplacian f|^2, with reflecting edges."""
    # Without smoothing a trace of it still has to continue the map.
    penalty = max(length, _SHORTEST) ** 4
    axes = range(values.ndim)
    # The cosine transform diagonalises the Laplacian: it inverts all but the variation of the weights.
    spectrum = sum(
        (2 - 2 * np.cos(np.pi * np.arange(n) / n)).reshape(-1, *(1,) * (values.ndim - axis - 1)) for axis, n in enumerate(values.shape)
    )

    def laplacian(f: np.ndarray) -> np.ndarray:
        result = np.zeros_like(f)
        for axis in axes:
            step = np.diff(f, axis=axis)
            padding = [(0, 0)] * f.ndim
            padding[axis] = (1, 1)
            result -= np.diff(np.pad(step, padding), axis=axis)
        return result

    def normal(f: np.ndarray) -> np.ndarray:
        result: np.ndarray = weights * f + penalty * laplacian(laplacian(f))
        return result

    inverse = 1 / (weights.mean() + penalty * spectrum**2)

    def preconditioner(f: np.ndarray) -> np.ndarray:
        result: np.ndarray = scipy.fft.idctn(scipy.fft.dctn(f, norm="ortho") * inverse, norm="ortho")
        return result

    start = np.full_like(values, np.average(values, weights=weights))
    smooth: np.ndarray = conjugate_gradient(normal, weights * values, _ITERATIONS, _TOLERANCE, start, preconditioner)
    return smooth
