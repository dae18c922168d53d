"""Data of volumes whose slices were encoded each by itself, kept on the host: what block streaming works on.

A block of slices then needs nothing of the others' data; only the regulariser couples slices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from recon import device, nufft
from recon.arrays import real_dtype
from recon.operators.fourier import ToeplitzGram, convolve_tensor
from recon.quantitative import data_term
from recon.quantitative.data_term import DataTerm
from recon.quantitative.model import ModelError


@dataclass(frozen=True, eq=False)
class SliceData:
    """|E x - d|^2 of images x `[contrast, slice, y, x]`; arrays of NumPy, whose slices are the third axis from the end.

    Attributes:
        rhs: E^H d, complex `[contrast, slice, y, x]`.
        bound, diagonal: as in `DataTerm`, broadcast against `rhs`.
        gram: E^H E of some slices: called with their images and the same slices of each operand; None where it is the product
            with `bound`.
        operands: arrays that `gram` needs, such as sensitivities `[coil, slice, y, x]`; of size 1 along slices if equal in all.
        energy: |d|^2.
        samples: number of complex samples.
        graph: `gram` runs within TensorFlow (and XLA), not through Python.
        noise: fills an array `[contrast, slice, y, x]` with what `DataTerm.noise` draws; None where it cannot be drawn.
    """

    rhs: np.ndarray
    bound: np.ndarray
    diagonal: np.ndarray
    gram: Callable[..., Any] | None
    operands: tuple[np.ndarray, ...]
    energy: float
    samples: float
    graph: bool = True
    noise: Callable[[np.random.Generator, np.ndarray], None] | None = None

    @property
    def voxels(self) -> tuple[int, ...]:
        """Slices, rows, columns."""
        return tuple(self.rhs.shape[1:])

    @property
    def pointwise(self) -> bool:
        """E^H E is the product with a number for each voxel."""
        return self.gram is None

    def whole(self) -> DataTerm:
        """All slices at once."""
        import tensorflow as tf

        rhs, bound = tf.constant(self.rhs), tf.constant(self.bound)
        operands = [tf.constant(one) for one in self.operands]
        gram = self.gram

        def apply(x: Any) -> Any:
            return x * tf.cast(bound, x.dtype) if gram is None else gram(x, *operands)

        noise = None if self.noise is None else self._drawn
        return DataTerm(rhs, apply, bound, tf.constant(self.diagonal), self.pointwise, self.energy, self.samples, self.graph, noise)

    def _drawn(self, random: np.random.Generator) -> np.ndarray:
        assert self.noise is not None
        drawn = np.empty_like(self.rhs)
        self.noise(random, drawn)
        return drawn


def images(volume: np.ndarray, weights: np.ndarray | None = None) -> SliceData:
    """Images `[contrast, slice, y, x]` as data; see `data_term.from_images`."""
    data = of_term(data_term.from_images(volume, weights))
    return replace(data, noise=partial(_pointwise_noise, data.bound, data.samples < data.rhs.size))


def of_term(term: DataTerm) -> SliceData:
    """A volume's data whose Gram operator is pointwise, on the host.

    Raises:
        ModelError: no volume, or data that couple voxels: which slices belong together cannot be seen from the outside.
    """
    if term.rhs.shape.rank != 4:
        raise ModelError(f"blocks of slices need data [contrast, slice, y, x], not {tuple(term.rhs.shape)}; fit without block_slices")
    if not term.pointwise:
        raise ModelError(
            "the data couple voxels, perhaps across slices as undersampled three-dimensional k-space does: data of separate slices come "
            "from recon.quantitative.slices (cartesian, noncartesian, stacked); fit others without block_slices"
        )
    noise = None if term.noise is None else partial(_whole_noise, term.noise)
    return SliceData(term.rhs.numpy(), term.bound.numpy(), term.diagonal.numpy(), None, (), term.energy, term.samples, noise=noise)


def cartesian(kspace: np.ndarray, maps: np.ndarray, mask: np.ndarray | None = None) -> SliceData:
    """K-space on a grid in the plane, image space across.

    Args:
        kspace: complex `[contrast, coil, slice, y, x]`, centred; of a three-dimensional scan, whose mask does not depend on the
            slice encoding, after the inverse transform along it. Values outside the mask do not count.
        maps: sensitivities `[coil, slice, y, x]`.
        mask: sampled points, broadcast against `[contrast, slice, y, x]`; None takes those where any coil is not zero.

    Raises:
        ValueError: shapes that do not fit, or values that are not finite.
    """
    import tensorflow as tf

    _check(kspace, maps, 5)
    shape = (len(kspace), *kspace.shape[2:])
    sampled = np.abs(kspace).max(1) > 0 if mask is None else np.broadcast_to(np.asarray(mask, bool), shape)
    joined = stacked(data_term.cartesian(kspace[:, :, n], np.asarray(maps)[:, n], sampled[:, n]) for n in range(shape[1]))
    if joined.pointwise:
        return joined
    alike = bool((sampled == sampled[:, :1]).all())
    shifted = np.fft.ifftshift(sampled[:, :1] if alike else sampled, (-2, -1)).astype(real_dtype(joined.rhs.dtype))

    def gram(x: Any, coils: Any, points: Any) -> Any:
        # A circular convolution: for it centred and plain transforms are the same.
        spectrum = tf.signal.fft2d(coils * x[:, None]) * tf.cast(points, x.dtype)[:, None]
        return tf.reduce_sum(tf.math.conj(coils) * tf.signal.ifft2d(spectrum), 1)

    coils = np.ascontiguousarray(maps, joined.rhs.dtype)
    return _with_gram(joined, gram, (coils, shifted), True)


def noncartesian(
    kspace: np.ndarray,
    trajectory: np.ndarray,
    maps: np.ndarray,
    weights: np.ndarray | None = None,
    toeplitz: bool | None = None,
    tolerance: float = nufft.TOLERANCE,
) -> SliceData:
    """Radial, spiral or other k-space in the plane, image space across (stacks of stars or spirals, or separate slices).

    Args:
        kspace: complex `[contrast, coil, slice, sample]`.
        trajectory: rad/pixel `[contrast, sample, axis]`, the same in all slices, or one for all contrasts `[sample, axis]`.
        maps: sensitivities `[coil, slice, y, x]`.
        weights, toeplitz, tolerance: see `data_term.noncartesian`.

    Raises:
        ValueError: shapes that do not fit, or values that are not finite.
    """
    import tensorflow as tf

    _check(kspace, maps, 4)
    maps = np.asarray(maps)
    toeplitz = device.use_gpu() if toeplitz is None else toeplitz
    joined = stacked(
        data_term.noncartesian(kspace[:, :, n], trajectory, maps[:, n], weights, False, tolerance) for n in range(kspace.shape[2])
    )
    if not toeplitz:
        return joined
    contrasts = len(kspace)
    points = np.broadcast_to(trajectory, (contrasts, *np.shape(trajectory)[-2:]))
    real = real_dtype(joined.rhs.dtype)
    density = np.ones(points.shape[:2], real) if weights is None else np.broadcast_to(np.asarray(weights, real), points.shape[:2])
    kernels = [device.get(ToeplitzGram(one, maps.shape[2:], w).kernel) for one, w in zip(points, density, strict=True)]
    kernel = np.stack(kernels).astype(real)[:, None]

    def gram(x: Any, coils: Any, spectra: Any) -> Any:
        # One after another: the doubled grids of all contrasts would fill the memory.
        every = [tf.reduce_sum(tf.math.conj(coils) * convolve_tensor(coils * x[n], spectra[n, 0]), 0) for n in range(contrasts)]
        return tf.stack(every)

    return _with_gram(joined, gram, (np.ascontiguousarray(maps, joined.rhs.dtype), kernel), True)


def stacked(terms: Any) -> SliceData:
    """Slices with any encoding each, one `DataTerm` `[contrast, y, x]` a slice, in an iterable; their Gram operators run on the CPU.

    Raises:
        ValueError: slices of different shapes.
    """
    import tensorflow as tf

    kept: list[DataTerm] = []
    with tf.device("CPU:0"):
        kept.extend(terms)
    if len({tuple(term.rhs.shape) for term in kept}) > 1:
        raise ValueError(f"slices differ in shape: {', '.join(str(tuple(term.rhs.shape)) for term in kept)} ([contrast, y, x])")
    pointwise = all(term.pointwise for term in kept)
    rhs = np.stack([term.rhs.numpy() for term in kept], 1)
    bound, diagonal = _joined([term.bound for term in kept]), _joined([term.diagonal for term in kept])
    energy, samples = sum(term.energy for term in kept), sum(term.samples for term in kept)
    noises = [term.noise for term in kept if term.noise is not None]
    noise = partial(_noise_of_each, noises) if len(noises) == len(kept) else None
    data = SliceData(rhs, bound, diagonal, None, (), energy, samples, noise=noise)
    if pointwise:
        return data
    grams = [term.gram for term in kept]

    def compute(x: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        with tf.device("CPU:0"):
            return np.stack([grams[int(number)](tf.constant(x[:, n])).numpy() for n, number in enumerate(numbers.ravel())], 1)

    def gram(x: Any, numbers: Any) -> Any:
        result = tf.numpy_function(compute, [x, numbers], x.dtype, stateful=False)
        result.set_shape(x.shape)
        return result

    return _with_gram(data, gram, (np.arange(len(kept), dtype=np.int32).reshape(-1, 1, 1),), False)


def _with_gram(data: SliceData, gram: Callable[..., Any], operands: tuple[np.ndarray, ...], graph: bool) -> SliceData:
    return replace(data, gram=gram, operands=operands, graph=graph)


def _pointwise_noise(bound: np.ndarray, real: bool, random: np.random.Generator, drawn: np.ndarray) -> None:
    """As `data_term.pointwise_noise`, of one contrast after another."""
    for part in (drawn.real, drawn.imag):
        for contrast in part:
            contrast[...] = random.standard_normal(contrast.shape, part.dtype)
    if real:
        drawn.imag = 0
    for contrast, size in zip(drawn, np.broadcast_to(bound, drawn.shape), strict=True):
        contrast *= np.sqrt(size / 2)


def _whole_noise(noise: Callable[[np.random.Generator], np.ndarray], random: np.random.Generator, drawn: np.ndarray) -> None:
    drawn[...] = noise(random)


def _noise_of_each(noises: Sequence[Callable[[np.random.Generator], np.ndarray]], random: np.random.Generator, drawn: np.ndarray) -> None:
    """Of each slice by itself."""
    for n, noise in enumerate(noises):
        drawn[:, n] = noise(random)


def _joined(parts: Sequence[Any]) -> np.ndarray:
    """`[1 or contrast, 1 or y, 1 or x]` of each slice to one array with slices second."""
    shape = np.broadcast_shapes(*(tuple(part.shape) for part in parts))
    return np.stack([np.broadcast_to(part.numpy(), shape) for part in parts], 1)


def _check(kspace: np.ndarray, maps: np.ndarray, rank: int) -> None:
    names = {5: "[contrast, coil, slice, y, x]", 4: "[contrast, coil, slice, sample]"}
    if np.ndim(kspace) != rank or np.ndim(maps) != 4 or np.shape(maps)[:2] != np.shape(kspace)[1:3]:
        raise ValueError(f"maps of shape {np.shape(maps)} ([coil, slice, y, x]) do not fit k-space {np.shape(kspace)} ({names[rank]})")
