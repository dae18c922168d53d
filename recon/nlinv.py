"""Nonlinear inversion: image and sensitivity maps found together, from any sampling, without a calibration region.

Uecker, Hohage, Block, Frahm, Magn. Reson. Med. 60 (2008) 674. The signal F(rho c_j) is bilinear in the image rho and the maps
c_j. The maps are smooth: their Fourier coefficients are penalised by (1 + |k / k_0|^2)^16, which leaves so few of them that a
map is a product of small matrices. The paper's k_0 grows with the matrix (0.067 cycles per pixel); here it belongs to the field
of view, because maps do not change when pixels become smaller.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import scipy.fft

from recon import device, nufft
from recon.arrays import Array, complex_dtype, is_tensor, like, real_dtype
from recon.blas import one_blas_thread
from recon.density import pipe_weights
from recon.fourier import fft_module
from recon.namespace import namespace
from recon.operators import ToeplitzGram
from recon.resident import call_resident
from recon.solvers import conjugate_gradient
from recon.waves import along_axes, waves

_CYCLES, _POWER = 12.0, 16
"""k_0 in cycles per field of view (the paper's at 180 pixels), and the power."""
_SMALLEST = 1e-5
"""Fourier coefficients of the maps whose weight lies below are left out."""

Coils = int | slice
_TOLERANCE = 1e-5
"""Of the NUFFT: errors grow by 1 / alpha in what the data do not determine."""


def nlinv(
    kspace: Array,
    trajectory: np.ndarray | None = None,
    image_shape: Sequence[int] | None = None,
    mask: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    newton_steps: int = 7,
    reduction: float = 1 / 3,
    cg_iterations: int = 30,
    rank: int = 2,
) -> tuple[Array, Array]:
    """Image and maps by the iteratively regularised Gauss-Newton method.

    Step n minimises |F(x_n) + DF(x_n) dx - y|^2 + alpha_n |x_n + dx - x_0|^2 over dx by conjugate gradients, for the image and the
    weighted Fourier coefficients of the maps x = (rho, w^-1 F c_j), with x_0 = (1, 0) and alpha_n = reduction^n, and data
    scaled so that their gridding image has a root mean square of 1.

    Args:
        kspace: complex `[..., coil, y, x]` (or `z, y, x`) on a grid, or with a trajectory `[..., coil, sample]`.
        trajectory: `[sample, axis]` in rad/pixel.
        image_shape: pixels per axis, with a trajectory.
        mask: sampled points of the grid, `[y, x]`; None takes those where any coil of a slice is not zero.
        weights: density weights `[sample]`, with a trajectory; None finds them by `pipe_weights`.
        newton_steps: more of them sharpen image and maps, and in the end amplify noise.
        reduction: factor of alpha from step to step.
        cg_iterations: at most so many a step.
        rank: number of image axes of data on a grid.

    Returns:
        Image `[..., *image_shape]` and maps `[..., coil, *image_shape]` with sum |s|^2 = 1 over the coils (far from the object they
        are what is left of nothing, and rough); arrays or tensors as given.

    Raises:
        ValueError: shapes do not fit, values that are not finite, or no signal.
    """

    coil_axis = -1 - (rank if image_shape is None else len(image_shape))
    options = trajectory, image_shape, mask, weights, newton_steps, reduction, cg_iterations, rank

    @one_blas_thread()
    def solve(values: Array) -> Array:
        """Image and maps side by side."""
        image, maps = _nlinv(values, *options)
        space = namespace(maps)
        return space.concatenate([space.expand_dims(image, coil_axis), maps], coil_axis)

    def run(values: Array) -> tuple[Array, Array]:
        both = call_resident("nlinv", solve, values)
        first: tuple[Any, ...] = (slice(None),) * (both.ndim + coil_axis)
        at_image, at_maps = (first + (part,) for part in (0, slice(1, None)))  # noqa: RUF005
        return both[at_image], both[at_maps]

    if not is_tensor(kspace):
        return run(kspace if hasattr(kspace, "get") else np.asarray(kspace))
    import tensorflow as tf

    image, maps = tf.numpy_function(run, [kspace], [kspace.dtype] * 2)
    return image, maps


def _nlinv(
    kspace: Array,
    trajectory: np.ndarray | None,
    image_shape: Sequence[int] | None,
    mask: np.ndarray | None,
    weights: np.ndarray | None,
    newton_steps: int,
    reduction: float,
    cg_iterations: int,
    rank: int,
) -> tuple[Array, Array]:
    if newton_steps < 1 or cg_iterations < 1 or not 0 < reduction < 1:
        raise ValueError(
            f"nlinv: {newton_steps} Newton steps, {cg_iterations} CG iterations, reduction {reduction}; expected at least 1, 1 and "
            "a factor between 0 and 1"
        )
    kspace = kspace.astype(complex_dtype(kspace), copy=False)
    space = namespace(kspace)
    if not bool(space.isfinite(kspace).all()):
        raise ValueError("nlinv: k-space holds values that are not finite")
    problem: Callable[[Array], Problem]
    if trajectory is None:
        if weights is not None or image_shape is not None:
            raise ValueError("nlinv: weights and an image shape need a trajectory")
        outer, problem = rank + 1, partial(_on_grid, mask=mask)
    else:
        if mask is not None:
            raise ValueError("nlinv: give either a trajectory or a mask")
        outer, problem = 2, _off_grid(np.asarray(trajectory), image_shape, weights, kspace.dtype)
    if kspace.ndim < outer:
        raise ValueError(f"nlinv: k-space of shape {kspace.shape}, expected [..., coil, *{outer - 1} axes]")
    batch = kspace.shape[: kspace.ndim - outer]
    solved = [_Inversion(*problem(kspace[index])).solve(newton_steps, reduction, cg_iterations) for index in np.ndindex(*batch)]
    images, maps = (space.stack(values) for values in zip(*solved, strict=True))
    return images.reshape(*batch, *images.shape[1:]), maps.reshape(*batch, *maps.shape[1:])


Problem = tuple[Array, Callable[[Array], Array]]
"""F^H y `[coil, *shape]` and the map of an image to F^H F of it, both over the mean diagonal of F^H F."""


def _on_grid(kspace: Array, mask: np.ndarray | None) -> Problem:
    shape = kspace.shape[1:]
    axes = tuple(range(-len(shape), 0))
    sampled = device.get((kspace != 0).any(axis=0)) if mask is None else np.asarray(mask) != 0
    try:
        sampled = np.broadcast_to(sampled, shape)
    except ValueError:
        raise ValueError(f"nlinv: a mask of shape {sampled.shape} does not fit k-space of shape {kspace.shape}") from None
    unit = float(sampled.mean()) or 1.0
    real, (fft, options) = real_dtype(kspace.dtype), fft_module(kspace)
    # Centring shifts image and k-space alike, and a shift passes through a convolution.
    kernel = like(scipy.fft.ifftshift(sampled / unit).astype(real), kspace)
    images = fft.ifftn(fft.ifftshift(kspace * like(sampled, kspace), axes), axes=axes, norm="ortho")

    def gram(image: Array) -> Array:
        return fft.ifftn(kernel * fft.fftn(image, axes=axes), axes=axes, **options)

    return fft.fftshift(images, axes) / real.type(unit), gram


def _off_grid(
    trajectory: np.ndarray, image_shape: Sequence[int] | None, weights: np.ndarray | None, dtype: np.dtype
) -> Callable[[Array], Problem]:
    if image_shape is None or trajectory.ndim != 2 or trajectory.shape[1] != len(image_shape):
        raise ValueError(
            f"nlinv: trajectory of shape {trajectory.shape} and image shape {image_shape}; expected [sample, axis], views and samples "
            "flattened, and as many pixels as axes"
        )
    shape = tuple(int(n) for n in image_shape)
    density = pipe_weights(trajectory, shape) if weights is None else np.asarray(weights)
    if density.shape != trajectory.shape[:1]:
        raise ValueError(f"nlinv: weights of shape {density.shape} do not fit a trajectory of shape {trajectory.shape}")
    if not density.sum() > 0:
        raise ValueError("nlinv: the weights are zero")
    density = density * (math.prod(shape) / density.sum())
    convolve = ToeplitzGram(trajectory, shape, density)

    def problem(kspace: Array) -> Problem:
        if kspace.shape[-1] != len(trajectory):
            raise ValueError(f"nlinv: k-space of shape {kspace.shape} does not fit a trajectory of shape {trajectory.shape}")
        plan = nufft.plan(trajectory, shape, _TOLERANCE, dtype)
        return plan.adjoint(kspace * like(density.astype(real_dtype(dtype)), kspace)), convolve

    return problem


class _Inversion:
    """One slice: the state is the image and, coil by coil, the weighted Fourier coefficients of its map, in one vector."""

    def __init__(self, images: Array, gram: Callable[[Array], Array]) -> None:
        self.space = namespace(images)
        power = float(self.space.linalg.norm(images))
        if power == 0:
            raise ValueError("nlinv: the data are zero")
        self.shape = images.shape[1:]
        self.scale = math.sqrt(math.prod(self.shape)) / power
        self.images = images * real_dtype(images.dtype).type(self.scale)
        self.gram = gram
        degrees = [min(math.floor(_reach()), (n - 1) // 2) for n in self.shape]
        smooth = [waves(n, d, images.dtype) / real_dtype(images.dtype).type(math.sqrt(n)) for n, d in zip(self.shape, degrees, strict=True)]
        self.waves = [like(wave, images) for wave in smooth]
        self.back = [like(wave.conj().T.copy(), images) for wave in smooth]
        squares = np.meshgrid(*((np.arange(-d, d + 1) / _CYCLES) ** 2 for d in degrees), indexing="ij")
        self.weights = like(((1 + np.sum(squares, axis=0)) ** -_POWER).astype(real_dtype(images.dtype)), images)

    def solve(self, steps: int, reduction: float, cg_iterations: int) -> tuple[Array, Array]:
        start = self.space.zeros(math.prod(self.shape) + len(self.images) * self.weights.size, self.images.dtype)
        start[: math.prod(self.shape)] = 1
        state, alpha = start.copy(), 1.0
        for _ in range(steps):
            state += self._step(state, start, alpha, cg_iterations)
            alpha *= reduction
        image, coefficients = self._split(state)
        maps = self._maps(coefficients)
        norm = self.space.sqrt((maps.real**2 + maps.imag**2).sum(0))
        return image * norm / norm.dtype.type(self.scale), maps / self.space.maximum(norm, np.finfo(norm.dtype).tiny)

    def _step(self, state: Array, start: Array, alpha: float, cg_iterations: int) -> Array:
        """(DF^H DF + alpha)^-1 (DF^H (y - F(x)) + alpha (x_0 - x))."""
        image, coefficients = self._split(state)
        maps = self._maps(coefficients)

        def normal(change: Array) -> Array:
            d_image, d_coefficients = self._split(change)

            def some(coils: Coils) -> Array:
                return self.gram(d_image * maps[coils] + image * self._maps(d_coefficients[coils]))

            return self._derivative_adjoint(image, maps, some) + alpha * change

        def residual(coils: Coils) -> Array:
            return self.images[coils] - self.gram(image * maps[coils])

        right = self._derivative_adjoint(image, maps, residual) + alpha * (start - state)
        return conjugate_gradient(normal, right, cg_iterations, 1e-2)

    def _derivative_adjoint(self, image: Array, maps: Array, coil_images: Callable[[Coils], Array]) -> Array:
        """The adjoint of the derivative, without F^H, of coil images that are computed here, coils side by side."""
        result = self.space.empty(image.size + len(maps) * self.weights.size, image.dtype)
        parts = self.space.empty_like(maps)
        total, coefficients = self._split(result)
        conjugate = image.conj()

        def some(coils: Coils) -> None:
            values = coil_images(coils)
            parts[coils] = maps[coils].conj() * values
            coefficients[coils] = self.weights * along_axes(self.back, conjugate * values)

        if self.space is np:
            nufft.run_each(some, len(maps))
        else:
            some(slice(None))  # many small kernels would take longer to queue than to run
        total[...] = parts.sum(0)
        return result

    def _maps(self, coefficients: Array) -> Array:
        """Maps `[..., *shape]` of their coefficients."""
        return along_axes(self.waves, self.weights * coefficients)

    def _split(self, vector: Array) -> tuple[Array, Array]:
        """Image `[*shape]` and coefficients `[coil, *degrees]` as views of a state."""
        pixels = math.prod(self.shape)
        return vector[:pixels].reshape(self.shape), vector[pixels:].reshape(-1, *self.weights.shape)


def _reach() -> float:
    """Largest |k| in cycles per field of view whose weight counts."""
    return _CYCLES * math.sqrt(_SMALLEST ** (-1 / _POWER) - 1)
