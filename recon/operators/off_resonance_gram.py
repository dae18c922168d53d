"""The Gram operator of coils, off-resonance and a NUFFT as a few convolutions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from recon import device
from recon.arrays import Array, complex_dtype, is_tensor, matched
from recon.cache import ArrayKey, Cache
from recon.namespace import namespace
from recon.operators.batched_gram import WORKSPACE
from recon.operators.encoding import _coil_by_coil
from recon.operators.fourier import ToeplitzGram, convolve
from recon.operators.linear import LinearOperator
from recon.operators.off_resonance import _BINS, _MOST, _PROBES, _candidates, _centres, _check, _error, _interpolators
from recon.operators.sensitivity import Sensitivity

_kept: Cache[TimeSegments] = Cache(8)


class TimeSegments:
    """exp(i 2 pi (B0(r) - B0(s)) t) for all pairs of pixels as sum_l b_l(t) exp(i 2 pi (B0(r) - B0(s)) t_l), and its convolutions.

    The b_l are fitted over the histogram of differences. That is symmetric, so they are real, and with them the transforms of the
    convolution kernels. Differences span twice the range of B0, which takes up to twice the segments of `OffResonance`.
    """

    def __init__(
        self, trajectory: np.ndarray, field_map: np.ndarray, times: np.ndarray, weights: np.ndarray | None, tolerance: float
    ) -> None:
        self.centres, interpolators = difference_segments(field_map, times, tolerance)
        scale = 1.0 if weights is None else np.asarray(weights, np.float64)
        shape = field_map.shape
        self.convolutions = [ToeplitzGram(trajectory, shape, scale * interpolator) for interpolator in interpolators]
        self._phasors: np.ndarray = np.exp(-2j * np.pi * np.multiply.outer(self.centres, field_map))
        self._single: np.ndarray = self._phasors.astype(np.complex64)
        for phasors in (self._phasors, self._single):
            phasors.setflags(write=False)

    def phasors(self, x: Array) -> np.ndarray:
        """exp(-i 2 pi B0 t_l) `[segment, *image]` in the precision of `x`."""
        return self._single if complex_dtype(x) == np.complex64 else self._phasors


def difference_segments(field_map: np.ndarray, times: np.ndarray, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """Centres t_l in s `[segment]` and real interpolators b_l `[segment, sample]`, see `TimeSegments`.

    Raises:
        ValueError: field map or times are not real and finite, or no number of segments up to 100 reaches the tolerance.
    """
    field_map, times = _check("field_map", field_map), _check("times", times)
    turns = 2 * np.ptp(field_map) * np.ptp(times)
    counts, edges = np.histogram(field_map, _BINS + int(min(2 * turns, 4 * _MOST)))
    pairs = np.convolve(counts.astype(np.float64), counts[::-1])
    frequencies = (np.arange(len(pairs)) - (len(counts) - 1)) * (edges[1] - edges[0])
    used = pairs > 0
    frequencies, pairs = frequencies[used], pairs[used] / pairs.sum()
    probes = np.linspace(times.min(), times.max(), _PROBES)
    for count in _candidates(float(turns)):
        centres = _centres(times, count)
        if _error(frequencies, pairs, centres, probes) <= tolerance:
            unique, inverse = np.unique(times, return_inverse=True)
            return centres, _interpolators(frequencies, pairs, centres, unique).real[:, inverse.reshape(times.shape)]
    raise ValueError(
        f"{_MOST} segments do not reach the tolerance of {tolerance:.1e}: B0 spans {np.ptp(field_map):.3g} Hz (is it in Hz?) "
        f"and the times {np.ptp(times):.3g} s (are they in s?)"
    )


class OffResonanceGram(LinearOperator):
    """S^H Q^H F^H W F Q S as sum_l S^H conj(P_l) T_l P_l S: phases P_l, convolutions T_l. Q: what B0 does during the readout.

    Fessler et al., IEEE Trans. Signal Process. 53 (2005). The phases and convolutions of the last few trajectories and field maps
    are kept.

    Args:
        maps: complex `[coil, *image]`.
        trajectory: `[sample, axis]` in rad/pixel.
        field_map: B0 in Hz `[*image]`.
        times: in s `[sample]`.
        weights: real `[sample]`; None for ones.
        tolerance: of the phase factors, rms over all pairs of pixels at the worst time.

    Raises:
        ValueError: see `difference_segments`.
    """

    def __init__(
        self,
        maps: Array,
        trajectory: np.ndarray,
        field_map: np.ndarray,
        times: np.ndarray,
        weights: np.ndarray | None = None,
        tolerance: float = 1e-3,
    ) -> None:
        arrays = [ArrayKey(np.asarray(array)) for array in (trajectory, field_map, times)]
        key = (*arrays, None if weights is None else ArrayKey(np.asarray(weights)), tolerance, device.use_gpu())
        self.segments = _kept.get(key, lambda: TimeSegments(trajectory, field_map, times, weights, tolerance))
        self.maps = maps
        self.sensitivity = Sensitivity(maps, field_map.ndim)

    def forward(self, x: Array) -> Array:
        phasors = self.segments.phasors(x)
        if hasattr(x, "get"):
            return self._on_gpu(x, device.put(phasors))  # read-only: copied there once
        if is_tensor(x):
            return self.sensitivity.adjoint(self._convolve([matched(phasor, x) for phasor in phasors])(self.sensitivity(x)))
        shape = phasors.shape[1:]
        images = x.reshape(-1, *shape)
        convolve = self._convolve(list(phasors))
        return np.stack([_coil_by_coil(convolve, image, self.maps) for image in images]).reshape(x.shape)

    def _on_gpu(self, x: Array, phasors: Array) -> Array:
        """The same for CuPy images, as many segments at once as fit: queueing many small kernels takes longer than they do."""
        rank = phasors.ndim - 1
        kernels = [convolution.kernel_like(x) for convolution in self.segments.convolutions]
        coil_images = self.sensitivity(x)
        at_once = max(1, WORKSPACE // (2**rank * coil_images.nbytes))
        total = None
        for start in range(0, len(kernels), at_once):
            kernel = namespace(x).stack(kernels[start : start + at_once])
            lead = (slice(None), *[None] * (coil_images.ndim - rank))
            phasor = phasors[start : start + at_once][lead]
            part = (convolve(coil_images * phasor, kernel[lead], rank) * phasor.conj()).sum(0)
            total = part if total is None else total + part
        return self.sensitivity.adjoint(total)

    def _convolve(self, phasors: list[Array]) -> Callable[[Array], Array]:
        def conjugated(phasor: Array) -> Array:
            if is_tensor(phasor):
                import tensorflow as tf

                return tf.math.conj(phasor)
            return phasor.conj()

        def convolve(coil_images: Array) -> Array:
            parts = (
                convolution(coil_images * phasor) * conjugated(phasor)
                for phasor, convolution in zip(phasors, self.segments.convolutions, strict=True)
            )
            return sum(parts, next(parts))

        return convolve

    def adjoint(self, y: Array) -> Array:
        return self.forward(y)
