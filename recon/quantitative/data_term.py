"""How far images of all contrasts are from what was measured, said in image space.

|E x - d|^2 = x^H (E^H E) x - 2 Re x^H (E^H d) + |d|^2: solvers need the Gram operator, one right-hand side and one number, so that
k-space of any size is touched once. On fully sampled grids, and for images, the Gram operator is a number for each voxel and
nothing is transformed any more.
"""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from recon import device, nufft
from recon.arrays import complex_dtype, phaseless, real_dtype
from recon.cache import Cache
from recon.fourier import ifftc
from recon.operators.fourier import ToeplitzGram, convolve_tensor
from recon.operators.linear import LinearOperator
from recon.quantitative.graphs import graph
from recon.solvers import conjugate_gradient

POWER_ITERATIONS, MARGIN = 20, 1.1
"""To find the largest eigenvalue of a Gram operator, and the factor for what they leave."""


@dataclass(frozen=True, eq=False)
class SharedGram:
    """E^H E with its data apart, so that a graph made for one scan or slice serves the next.

    Attributes:
        key: equal for equal functions.
        apply: E^H E x, called with x and the operands.
        operands: tensors.
        owner: what operands only name, kept alive.
    """

    key: Hashable
    apply: Callable[..., Any]
    operands: tuple[Any, ...]
    owner: Any = None

    def __call__(self, x: Any) -> Any:
        return self.apply(x, *self.operands)


@dataclass(frozen=True, eq=False)
class DataTerm:
    """|E x - d|^2 of images x `[contrast, *voxels]`; all arrays are tensors.

    Attributes:
        rhs: E^H d, complex `[contrast, *voxels]`.
        gram: applies E^H E; a `SharedGram` where graphs can be shared.
        bound: D, real, broadcast against the images: D - E^H E is positive semidefinite.
        diagonal: about the diagonal of E^H E, of the shape of `bound`: what a voxel's own signal contributes.
        pointwise: E^H E is the product with D.
        energy: |d|^2.
        samples: number of complex samples, or the sum of their weights: |n|^2 of noise n of variance 1 on average. Real ones are half.
        graph: the Gram operator runs within TensorFlow (and XLA), not through Python.
        noise: draws E^H n of such noise, complex `[contrast, *voxels]`; None where it cannot be drawn.
    """

    rhs: Any
    gram: Callable[[Any], Any]
    bound: Any
    diagonal: Any
    pointwise: bool
    energy: float
    samples: float
    graph: bool = True
    noise: Callable[[np.random.Generator], np.ndarray] | None = None

    def images(self, iterations: int = 12) -> Any:
        """Least-squares images `[contrast, *voxels]`: exact where pointwise, else by conjugate gradients (iterative SENSE)."""
        import tensorflow as tf

        if self.pointwise:
            return self.rhs * tf.cast(tf.math.divide_no_nan(tf.ones_like(self.bound), self.bound), self.rhs.dtype)
        gram = as_shared(self.gram)

        def make() -> Any:
            apply = gram.apply
            return graph(lambda rhs, *operands: conjugate_gradient(lambda x: apply(x, *operands), rhs, iterations))

        run = make() if gram.key is None else _least_squares.get((gram.key, iterations, tuple(self.rhs.shape)), make)
        return run(self.rhs, *gram.operands)

    def of(self, images: np.ndarray) -> DataTerm:
        """The same samples of other images `[contrast, *voxels]`, without noise; `energy` stays that of these."""
        import tensorflow as tf

        return replace(self, rhs=self.gram(tf.constant(images.astype(self.rhs.dtype.as_numpy_dtype, copy=False))))

    def cost(self, x: Any) -> Any:
        """|E x - d|^2, a scalar tensor in double precision."""
        import tensorflow as tf

        inner = tf.math.conj(x) * (self.gram(x) - 2 * self.rhs)
        return tf.reduce_sum(tf.cast(tf.math.real(inner), tf.float64)) + self.energy


_least_squares: Cache[Any] = Cache(8)


def as_shared(gram: Callable[[Any], Any]) -> SharedGram:
    """A Gram operator as a function of operands; with the key None where it has none."""
    return gram if isinstance(gram, SharedGram) else SharedGram(None, gram, ())


def from_images(images: np.ndarray, weights: np.ndarray | None = None) -> DataTerm:
    """Images `[contrast, *voxels]` as data.

    Args:
        images: complex or real.
        weights: at least 0, broadcast against the images: one over the noise variance; None for ones.

    Raises:
        ValueError: values that are not finite.
    """
    import tensorflow as tf

    images = _finite(np.asarray(images))
    real = phaseless(images)
    images = images.astype(complex_dtype(images))
    shape = (1,) * images.ndim if weights is None else np.shape(weights)
    bound = tf.constant(np.ones(shape) if weights is None else np.asarray(weights), real_dtype(images.dtype))
    complex_bound = tf.cast(bound, images.dtype)
    energy = float(np.sum(np.abs(images) ** 2 * bound.numpy(), dtype=np.float64))
    noise = partial(pointwise_noise, bound.numpy(), images.shape, images.dtype, real=real)
    samples = images.size / 2 if real else images.size
    return DataTerm(tf.constant(images) * complex_bound, lambda x: x * complex_bound, bound, bound, True, energy, samples, noise=noise)


def cartesian(kspace: np.ndarray, maps: np.ndarray, mask: np.ndarray | None = None) -> DataTerm:
    """K-space on a grid.

    Axes along which everything or nothing is sampled are transformed here, once; F^H M F over the others is a circular
    convolution, for which centred and plain transforms are the same.

    Args:
        kspace: complex `[contrast, coil, *image]`, centred; values outside the mask do not count.
        maps: sensitivities `[coil, *image]`.
        mask: sampled points, broadcast against `[contrast, *image]`; None takes those where any coil is not zero.

    Raises:
        ValueError: shapes that do not fit, or values that are not finite.
    """
    import tensorflow as tf

    kspace = _finite(np.asarray(kspace))
    image = kspace.shape[2:]
    if np.shape(maps) != kspace.shape[1:]:
        raise ValueError(f"maps of shape {np.shape(maps)} do not fit k-space {kspace.shape} ([contrast, coil, *image])")
    sampled = np.abs(kspace).max(1) > 0 if mask is None else np.broadcast_to(np.asarray(mask, bool), (len(kspace), *image))
    dtype = complex_dtype(kspace)
    kspace = kspace * sampled[:, None]
    maps = np.asarray(maps, dtype)
    axes = tuple(range(-len(image), 0))
    rhs = (maps.conj() * ifftc(kspace, axes)).sum(1).astype(dtype)
    power = (np.abs(maps) ** 2).sum(0).astype(real_dtype(dtype))
    share = sampled.mean(axis=axes, keepdims=True).astype(power.dtype)
    energy = float(np.sum(np.abs(kspace) ** 2, dtype=np.float64))
    samples = int(sampled.sum()) * kspace.shape[1]
    # Of a contrast without samples the Gram operator is zero, which is pointwise too.
    whole = bool(((share == 0) | (share == 1)).all())
    bound = tf.constant(power * share if whole else np.broadcast_to(power, (1, *image)))
    diagonal = tf.constant(power * share)
    if whole:
        weights = tf.cast(bound, dtype)
        noise = partial(pointwise_noise, bound.numpy(), rhs.shape, dtype)
        return DataTerm(tf.constant(rhs), lambda x: x * weights, bound, diagonal, True, energy, samples, noise=noise)
    gram = _masked_transform(sampled, maps)

    contrasts = len(rhs)

    def grid_noise(random: np.random.Generator) -> np.ndarray:
        drawn = white((contrasts, *maps.shape), dtype, random) * sampled[:, None]
        back: np.ndarray = (maps.conj() * ifftc(drawn, axes)).sum(1).astype(dtype)
        return back

    return DataTerm(tf.constant(rhs), gram, bound, diagonal, False, energy, samples, noise=grid_noise)


def noncartesian(
    kspace: np.ndarray,
    trajectory: np.ndarray,
    maps: np.ndarray,
    weights: np.ndarray | None = None,
    toeplitz: bool | None = None,
    tolerance: float = nufft.TOLERANCE,
) -> DataTerm:
    """Radial, spiral or any other k-space.

    Args:
        kspace: complex `[contrast, coil, sample]`.
        trajectory: rad/pixel `[contrast, sample, axis]`, or one for all `[sample, axis]`.
        maps: sensitivities `[coil, *image]`.
        weights: of the samples, `[contrast, sample]` or `[sample]`, at least 0; None for ones, which is the least-squares fit.
            Density weights need fewer iterations and let more noise through.
        toeplitz: convolve on a grid of twice the size, in TensorFlow, instead of NUFFTs; None for that on a GPU in the plane.
        tolerance: relative accuracy of the NUFFT.

    Raises:
        ValueError: shapes that do not fit, or values that are not finite.
    """
    import tensorflow as tf

    kspace = _finite(np.asarray(kspace))
    dtype = complex_dtype(kspace)
    image = tuple(np.shape(maps)[1:])
    if kspace.ndim != 3 or len(maps) != kspace.shape[1]:
        raise ValueError(f"maps of shape {np.shape(maps)} do not fit k-space {kspace.shape} ([contrast, coil, sample])")
    points = np.broadcast_to(np.asarray(trajectory), (len(kspace), *np.shape(trajectory)[-2:]))
    if points.shape[1] != kspace.shape[2] or points.shape[2] != len(image):
        raise ValueError(
            f"trajectory {np.shape(trajectory)} fits neither the {kspace.shape[2]} samples of k-space nor an image {image}: give "
            "[contrast, sample, axis] in rad/pixel"
        )
    real = real_dtype(dtype)
    density = np.ones(points.shape[:2], real) if weights is None else np.broadcast_to(np.asarray(weights, real), points.shape[:2])
    maps = np.ascontiguousarray(maps, dtype)

    def planned(one: np.ndarray) -> nufft.Nufft:
        return nufft.plan(np.ascontiguousarray(one), image, tolerance, dtype)

    plans = [planned(one) for one in points]

    def adjoint(data: np.ndarray) -> np.ndarray:
        every = zip(points, data, density, strict=True)
        return np.stack([(maps.conj() * planned(one).adjoint(part * w)).sum(0) for one, part, w in every])

    rhs = adjoint(kspace)
    power = (np.abs(maps) ** 2).sum(0).astype(real)
    pairs = zip(plans, density, strict=True)
    largest = np.array([_largest(partial(plan.gram, weights=one), image, dtype) for plan, one in pairs], real)
    each = (-1, *[1] * len(image))
    diagonal = density.sum(1) / math.prod(image)
    if toeplitz is None:
        toeplitz = device.use_gpu() and len(image) == 2
    gram = _convolutions(points, density, maps) if toeplitz else _Transforms(plans, density, maps).shared()
    energy = float(np.sum(np.abs(kspace) ** 2 * density[:, None], dtype=np.float64))
    bound = tf.constant(power * largest.reshape(each))
    near = tf.constant((power * diagonal.reshape(each)).astype(real))
    samples = float(density.sum(dtype=np.float64)) * len(maps)
    shape = kspace.shape
    return DataTerm(
        tf.constant(rhs), gram, bound, near, False, energy, samples, bool(toeplitz), lambda random: adjoint(white(shape, dtype, random))
    )


def from_operator(operator: LinearOperator, data: np.ndarray) -> DataTerm:
    """Any other encoding, such as simultaneous slices.

    Args:
        operator: images `[contrast, *voxels]` to data, on tensors.
        data: what `operator` gives.

    Raises:
        ValueError: values that are not finite.
    """
    import tensorflow as tf

    data = _finite(np.asarray(data))
    rhs = operator.adjoint(tf.constant(data.astype(complex_dtype(data))))
    gram = operator.gram
    dtype = rhs.dtype.as_numpy_dtype
    largest = _largest(lambda x: gram(tf.constant(x)).numpy(), tuple(rhs.shape), np.dtype(dtype))
    bound = tf.constant(largest, real_dtype(np.dtype(dtype)), [1] * rhs.shape.rank)
    # One probe: a voxel's own share is known on average only.
    probe = _noise(tuple(rhs.shape), np.dtype(dtype))
    mean = float(np.vdot(probe, gram(tf.constant(probe)).numpy()).real / np.vdot(probe, probe).real)
    energy = float(np.sum(np.abs(data) ** 2, dtype=np.float64))

    def noise(random: np.random.Generator) -> np.ndarray:
        back: np.ndarray = operator.adjoint(tf.constant(white(data.shape, np.dtype(dtype), random))).numpy()
        return back

    return DataTerm(rhs, gram, bound, bound * (mean / largest), False, energy, data.size, noise=noise)


def pointwise_noise(bound: np.ndarray, shape: Sequence[int], dtype: Any, random: np.random.Generator, real: bool = False) -> np.ndarray:
    """E^H n where E^H E is the product with `bound`; see `DataTerm.noise`. `real`: of images without imaginary parts."""
    drawn = white(shape, dtype, random)
    result: np.ndarray = np.sqrt(bound) * (drawn.real.astype(dtype) if real else drawn)
    return result


def white(shape: Sequence[int], dtype: Any, random: np.random.Generator) -> np.ndarray:
    """Complex noise of variance 1: 1/2 in each part."""
    real = real_dtype(np.dtype(dtype))
    drawn: np.ndarray = (random.standard_normal(shape, real) + 1j * random.standard_normal(shape, real)) * real.type(np.sqrt(0.5))
    return drawn.astype(dtype, copy=False)


def _masked_transform(sampled: np.ndarray, maps: np.ndarray) -> SharedGram:
    """S^H F^H M F S over the axes on which the mask depends."""
    import tensorflow as tf

    rank = sampled.ndim - 1
    varying = [axis for axis in range(rank) if (sampled != sampled.take([0], axis + 1)).any()]
    order = [axis for axis in range(rank) if axis not in varying] + varying
    forward = [0, *(1 + axis for axis in order)]
    back = [0, *(1 + order.index(axis) for axis in range(rank))]
    to, inverse = {1: (tf.signal.fft, tf.signal.ifft), 2: (tf.signal.fft2d, tf.signal.ifft2d), 3: (tf.signal.fft3d, tf.signal.ifft3d)}[
        len(varying)
    ]
    shifted = np.fft.ifftshift(sampled, [1 + axis for axis in varying]).transpose(forward)[:, None]
    mask = tf.constant(shifted.astype(maps.dtype))
    coils = tf.constant(np.ascontiguousarray(maps.transpose(forward)))
    turned = order != sorted(order)

    def gram(x: Any, mask: Any, coils: Any) -> Any:
        x = tf.transpose(x, forward) if turned else x
        x = tf.reduce_sum(tf.math.conj(coils) * inverse(mask * to(coils * x[:, None])), 1)
        return tf.transpose(x, back) if turned else x

    return SharedGram(("masked", tuple(order), len(varying)), gram, (mask, coils))


_numbers = itertools.count()
_living: weakref.WeakValueDictionary[int, _Transforms] = weakref.WeakValueDictionary()


class _Transforms:
    """S^H F^H W F S by NUFFTs: through Python, a contrast on one thread. Graphs find it by its number as long as it lives."""

    def __init__(self, plans: Sequence[nufft.Nufft], density: np.ndarray, maps: np.ndarray) -> None:
        self.plans, self.density, self.maps, self.number = plans, density, maps, next(_numbers)
        _living[self.number] = self

    def shared(self) -> SharedGram:
        import tensorflow as tf

        return SharedGram("transforms", _transformed, (tf.constant(self.number, tf.int64),), self)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        result = np.empty_like(x)

        def contrast(n: int) -> None:
            total = np.zeros_like(x[n])
            for coil in self.maps:
                part = self.plans[n].gram((coil * x[n])[None], self.density[n])[0]
                total += coil.conj() * part
            result[n] = total

        nufft.run_each(contrast, len(x))
        return result


def _transformed(x: Any, number: Any) -> Any:
    import tensorflow as tf

    if tf.executing_eagerly():
        return tf.constant(_living[int(number)](x.numpy()))
    result = tf.numpy_function(lambda images, which: _living[int(which)](images), [x, number], x.dtype, stateful=False)
    result.set_shape(x.shape)
    return result


def _convolutions(points: np.ndarray, density: np.ndarray, maps: np.ndarray) -> SharedGram:
    """The same as convolutions, a kernel for each contrast."""
    import tensorflow as tf

    real = real_dtype(maps.dtype)
    kernels = [device.get(ToeplitzGram(one, maps.shape[1:], weights).kernel) for one, weights in zip(points, density, strict=True)]
    kernel, coils = tf.constant(np.stack(kernels).astype(real)), tf.constant(maps)

    def gram(x: Any, kernel: Any, coils: Any) -> Any:
        # One after another: the doubled grids of all contrasts and coils would fill the memory.
        every = [tf.reduce_sum(tf.math.conj(coils) * convolve_tensor(coils * x[n], kernel[n]), 0) for n in range(kernel.shape[0])]
        return tf.stack(every)

    return SharedGram("convolutions", gram, (kernel, coils))


def _largest(gram: Callable[[np.ndarray], np.ndarray], shape: Sequence[int], dtype: np.dtype) -> float:
    """Largest eigenvalue, with a margin, by power iterations from fixed noise."""
    vector, size = _noise(shape, dtype), 1.0
    for _ in range(POWER_ITERATIONS):
        vector = gram((vector / np.linalg.norm(vector)).astype(dtype))
        size = float(np.linalg.norm(vector))
        if size == 0:
            return 1.0
    return MARGIN * size


def _noise(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    return white(shape, dtype, np.random.default_rng(0))


def _finite(data: np.ndarray) -> np.ndarray:
    if not np.isfinite(data).all():
        bad = int(np.flatnonzero(~np.isfinite(data.reshape(len(data), -1)).all(1))[0])
        raise ValueError(f"contrast {bad} (counted from 0) of the data holds values that are not finite (NaN, Inf)")
    return data
