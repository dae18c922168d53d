"""Signal of spins that are off resonance, by time segmentation."""

from __future__ import annotations

import numpy as np

from recon import device
from recon.arrays import Array, complex_dtype, is_tensor, matched
from recon.cache import ArrayKey, Cache
from recon.operators.linear import LinearOperator
from recon.operators.shapes import check_fit

_BINS = 100
_PROBES = 64
_MOST = 100


class OffResonance(LinearOperator):
    """A Fourier operator with the phase that spins gather during the readout: k_j = sum_r F_jr exp(-i 2 pi B0(r) t_j) x_r.

    The phase is split into L segments, sum_l b_l(t) exp(-i 2 pi B0(r) t_l), so that one application costs L Fourier
    transforms. The times t_l are equidistant; the interpolators b_l minimise the square error over the histogram of B0.
    Noll et al., IEEE Trans. Med. Imaging 10 (1991); Sutton, Noll, Fessler, IEEE Trans. Med. Imaging 22 (2003).

    Segments needed, for B0 uniform over a range, by the turns that its extremes gather against each other (range in Hz times
    readout in s: +-100 Hz and 10 ms are 2 turns), where the error of the phase factor is rms over the image at the worst time:

    | turns | error 1e-1 | 1e-2 | 1e-3 | 1e-4 |
    |---|---|---|---|---|
    | 1 | 3 | 4 | 5 | 6 |
    | 2 | 4 | 6 | 7 | 8 |
    | 4 | 6 | 8 | 10 | 11 |
    | 8 | 11 | 13 | 15 | 17 |

    Args:
        fourier: `Fourier`, `Nufft` or another operator that ends in it; images `[..., *image_shape]` to `[..., *kspace]`.
        field_map: B0 in Hz, real `[*image_shape]`.
        times: time of each sample in s, broadcast against `[*kspace]`: `[sample]`, or `[x]` for a Cartesian readout.
        segments: L; None for as few as reach the tolerance.
        tolerance: error to reach, as above.

    Attributes:
        segments: L.
        error: error of the phase factor as above, found from the histogram.

    Raises:
        ValueError: field map or times are complex, empty or not finite, or do not fit the argument; fewer than one segment;
            a tolerance that 100 segments do not reach.
    """

    def __init__(
        self,
        fourier: LinearOperator,
        field_map: np.ndarray,
        times: np.ndarray,
        segments: int | None = None,
        tolerance: float = 1e-3,
    ) -> None:
        field_map, times = _check("field_map", field_map), _check("times", times)
        if segments is not None and segments < 1:
            raise ValueError(f"segments must be at least 1, not {segments}")
        key = (ArrayKey(field_map), ArrayKey(times), segments, tolerance)
        found = _kept.get(key, lambda: _Segments(field_map, times, segments, tolerance))
        self.fourier, self.segments, self.error = fourier, len(found.phasors), found.error
        self.interpolators, self.phasors, self._found = found.interpolators, found.phasors, found

    def forward(self, x: Array) -> Array:
        phasors, interpolators = self._found.like(x)
        check_fit("field_map", phasors.shape[1:], x, "the image")
        parts = (
            self._timed(self.fourier.forward(x * matched(phasor, x)), interpolator)
            for phasor, interpolator in zip(phasors, interpolators, strict=True)
        )
        return sum(parts, next(parts))

    def adjoint(self, y: Array) -> Array:
        phasors, interpolators = self._found.like(y)
        parts = (
            self.fourier.adjoint(self._timed(y, interpolator.conj())) * matched(phasor.conj(), y)
            for phasor, interpolator in zip(phasors, interpolators, strict=True)
        )
        return sum(parts, next(parts))

    @staticmethod
    def _timed(kspace: Array, interpolator: np.ndarray) -> Array:
        check_fit("times", interpolator.shape, kspace, "k-space")
        return kspace * matched(interpolator, kspace)


class _Segments:
    """Phases `[segment, *image_shape]` and interpolators `[segment, *times]` for one field map; kept for the frames to come."""

    def __init__(self, field_map: np.ndarray, times: np.ndarray, segments: int | None, tolerance: float) -> None:
        frequencies, weights = _histogram(field_map, np.ptp(times))
        probes = np.linspace(times.min(), times.max(), _PROBES)
        for count in _candidates(np.ptp(field_map) * np.ptp(times)) if segments is None else [segments]:
            centres = _centres(times, count)
            self.error = _error(frequencies, weights, centres, probes)
            if self.error <= tolerance or segments is not None:
                break
        else:
            raise ValueError(
                f"{_MOST} segments do not reach the tolerance of {tolerance:.1e}: B0 spans {np.ptp(field_map):.3g} Hz (is it in Hz?) "
                f"and the times {np.ptp(times):.3g} s (are they in s?)"
            )
        unique, inverse = np.unique(times, return_inverse=True)
        interpolators = _interpolators(frequencies, weights, centres, unique)
        self.interpolators = interpolators[:, inverse.reshape(times.shape)]
        self.phasors: np.ndarray = np.exp(-2j * np.pi * np.multiply.outer(centres, field_map))
        self._single: list[np.ndarray] = []

    def like(self, x: Array) -> tuple[Array, Array]:
        """Phases and interpolators in the precision and on the device of `x`; for tensors in double precision."""
        if is_tensor(x) or complex_dtype(x) == np.complex128:
            return self.phasors, self.interpolators
        if not self._single:
            self._single = [array.astype(np.complex64) for array in (self.phasors, self.interpolators)]
            for array in self._single:
                array.setflags(write=False)  # copied to a GPU only once
        phasors, interpolators = (device.put(array) if hasattr(x, "get") else array for array in self._single)
        return phasors, interpolators


_kept: Cache[_Segments] = Cache(8)


def _check(name: str, values: np.ndarray) -> np.ndarray:
    values = np.asarray(values)
    if values.dtype.kind == "c" or not values.size or not np.isfinite(values).all():
        raise ValueError(f"{name} must be real, finite numbers and not empty; got {values.dtype} of shape {values.shape}")
    return values.astype(np.float64)


def _candidates(turns: float) -> range:
    """Numbers of segments to try: fewer than one per turn between the extremes never do."""
    return range(max(1, int(min(turns, _MOST + 1))), _MOST + 1)


def _histogram(field_map: np.ndarray, duration: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean frequency in each bin that is not empty, and the fraction of pixels in it."""
    # Bins must be finer than what the readout can tell apart, or a wrong phase would fit them.
    bins = _BINS + int(min(4 * np.ptp(field_map) * duration, 4 * _MOST))
    counts, edges = np.histogram(field_map, bins)
    sums, _ = np.histogram(field_map, edges, weights=field_map)
    used = counts > 0
    return sums[used] / counts[used], counts[used] / field_map.size


def _centres(times: np.ndarray, segments: int) -> np.ndarray:
    if segments == 1:
        return np.array([(times.min() + times.max()) / 2])
    return np.linspace(times.min(), times.max(), segments)


def _interpolators(frequencies: np.ndarray, weights: np.ndarray, centres: np.ndarray, times: np.ndarray) -> np.ndarray:
    """b `[segment, time]`, the weighted least-squares solution of sum_l b_l exp(-i 2 pi f t_l) = exp(-i 2 pi f t)."""
    root = np.sqrt(weights)[:, None]
    # Centres closer than the frequencies can tell apart make the system singular: the cut-off keeps b small.
    solution: np.ndarray = np.linalg.pinv(root * _phases(frequencies, centres), 1e-10) @ (root * _phases(frequencies, times))
    return solution


def _error(frequencies: np.ndarray, weights: np.ndarray, centres: np.ndarray, times: np.ndarray) -> float:
    """Largest over time of the rms error over the histogram."""
    solution = _interpolators(frequencies, weights, centres, times)
    difference = _phases(frequencies, centres) @ solution - _phases(frequencies, times)
    return float(np.sqrt((weights[:, None] * np.abs(difference) ** 2).sum(0)).max())


def _phases(frequencies: np.ndarray, times: np.ndarray) -> np.ndarray:
    phases: np.ndarray = np.exp(-2j * np.pi * np.multiply.outer(frequencies, times))
    return phases
