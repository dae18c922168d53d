"""Iterative SENSE of long readouts in an inhomogeneous field."""

from __future__ import annotations

import math

import numpy as np

from recon import device
from recon.arrays import Array, complex_dtype, is_tensor, matched
from recon.operators.fourier import Nufft
from recon.operators.linear import LinearOperator
from recon.operators.off_resonance import OffResonance
from recon.operators.off_resonance_gram import OffResonanceGram, difference_segments
from recon.operators.sensitivity import Sensitivity
from recon.solvers import conjugate_gradient


def b0_sense(
    kspace: Array,
    trajectory: np.ndarray,
    maps: Array,
    field_map: np.ndarray,
    times: np.ndarray,
    iterations: int = 10,
    tolerance: float = 0.0,
    regularisation: float = 0.0,
    weights: np.ndarray | None = None,
    accuracy: float = 1e-2,
    toeplitz: bool | None = None,
) -> Array:
    """Minimise |W^1/2 (F Q S x - y)|^2 + lambda |x|^2 by conjugate gradients; Q: the phase that B0 gives during the readout.

    Sutton, Noll, Fessler, IEEE Trans. Med. Imaging 22 (2003). As many time segments as `accuracy` needs, see `OffResonance`; the
    iterations are convolutions (`OffResonanceGram`) where that costs less than NUFFTs.

    Args:
        kspace: complex `[coil, sample]`, array or tensor.
        trajectory: `[sample, axis]` in rad/pixel.
        maps: `[coil, *image]`.
        field_map: B0 in Hz `[*image]`, smooth also where there is no signal.
        times: of the samples, in s `[sample]`. The image has the phase that it had at time 0.
        iterations, tolerance, regularisation, weights: see `recon.sense.cg_sense`.
        accuracy: error of the phase factors, rms over the image at the worst time.
        toeplitz: iterate with convolutions; None chooses what costs less.

    Returns:
        Image `[*image]`.

    Raises:
        ValueError: shapes do not fit, or see `OffResonance`.
    """
    shape = tuple(int(n) for n in maps.shape[1:])
    field_map, times, trajectory = np.asarray(field_map), np.asarray(times), np.asarray(trajectory)
    samples = int(kspace.shape[-1])
    if field_map.shape != shape or times.shape != (samples,) or trajectory.shape != (samples, len(shape)):
        raise ValueError(
            f"field_map {field_map.shape}, times {times.shape}, trajectory {trajectory.shape}, maps {tuple(maps.shape)} and k-space "
            f"{tuple(kspace.shape)} do not fit: expected [*image], [sample], [sample, axis], [coil, *image] and [coil, sample]"
        )
    if weights is not None and np.shape(weights) != times.shape:
        raise ValueError(f"weights {np.shape(weights)} do not fit {samples} samples")
    on_host = isinstance(kspace, np.ndarray)
    if not is_tensor(kspace):
        maps = maps.astype(complex_dtype(kspace), copy=False)
        if device.use_gpu():
            kspace, maps = device.put(kspace), device.put(maps)
    measured = OffResonance(Nufft(trajectory, shape), field_map, times, tolerance=accuracy)
    encoding = measured @ Sensitivity(maps, len(shape))
    weigh = None if weights is None else np.asarray(weights)

    def weighted(samples: Array) -> Array:
        return samples if weigh is None else samples * matched(weigh, samples)

    rhs = encoding.adjoint(weighted(kspace))
    if toeplitz is None:
        toeplitz = _toeplitz_pays(measured, field_map, times, accuracy)
    gram: LinearOperator | None = OffResonanceGram(maps, trajectory, field_map, times, weigh, accuracy) if toeplitz else None
    damping = regularisation * float(samples if weigh is None else weigh.sum()) / math.prod(shape)

    def normal(image: Array) -> Array:
        result = encoding.adjoint(weighted(encoding(image))) if gram is None else gram(image)
        return result + damping * image if damping else result

    image = conjugate_gradient(normal, rhs, iterations, tolerance)
    return device.get(image) if on_host and not isinstance(image, np.ndarray) else image


def _toeplitz_pays(encoding: OffResonance, field_map: np.ndarray, times: np.ndarray, accuracy: float) -> bool:
    """Tell whether the convolutions cost less than the NUFFTs; ns a pixel and a sample as in `recon.sense`."""
    if field_map.ndim > 2:
        return False
    convolutions = len(difference_segments(field_map, times, accuracy)[0])
    return convolutions * 32 * field_map.size < encoding.segments * (20 * field_map.size + 45 * times.size)
