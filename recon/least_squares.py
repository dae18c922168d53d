"""Linear reconstructions: adjoint, regularised least squares by conjugate gradients, Cartesian SENSE by unfolding."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np

from recon import device
from recon.arrays import Array, is_tensor, through_numpy
from recon.cache import Cache
from recon.compressed_sensing import encode
from recon.fourier import ifftc
from recon.namespace import namespace, times
from recon.operators.cartesian_gram import CartesianGram
from recon.operators.encoding import Encoding
from recon.operators.frames import Frames
from recon.sense import _toeplitz_pays
from recon.solvers.conjugate_gradient import conjugate_gradient

_choices: Cache[bool] = Cache(64)


def adjoint(
    kspace: Array,
    maps: Array,
    trajectory: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    weights: np.ndarray | None = None,
) -> Array:
    """S^H F^H W y: zero-filled, or with density weights gridded, and combined.

    Args:
        kspace: `[coil, sample]` or Cartesian `[coil, *image]`; with leading frames where trajectory or mask have them.
        maps, trajectory, mask, weights: see `recon.compressed_sensing.encode`.

    Returns:
        `[*image]` or `[frame, *image]`.

    Raises:
        ValueError: shapes do not fit.
    """
    encoding = encode(maps, trajectory, mask, weights)
    if isinstance(encoding, Frames):
        return namespace(kspace).stack([_adjoint(part, kspace[n]) for n, part in enumerate(encoding.operators)], 0)
    return _adjoint(encoding, kspace)


def least_squares(
    kspace: Array,
    maps: Array,
    trajectory: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    iterations: int = 10,
    tolerance: float = 0.0,
    regularisation: float = 0.0,
    prior: Array | None = None,
    toeplitz: bool | None = None,
) -> Array:
    """Minimise |W^1/2 (F S x - y)|^2 + lambda |x - prior|^2 by conjugate gradients.

    Pruessmann et al., Magn. Reson. Med. 46 (2001); with a prior as in k-t SENSE and MoDL.

    Args:
        kspace, maps, trajectory, mask, weights: see `adjoint`.
        iterations: at most so many.
        tolerance: stop when the normal equation's residual falls below this fraction of its right-hand side.
        regularisation: lambda in units of the mean diagonal of F^H W F.
        prior: `[*image]` or `[frame, *image]`; None for zero.
        toeplitz: iterate with a convolution instead of NUFFTs. None measures both once for each kind of problem and keeps
            the answer; results differ by the NUFFT's tolerance, so that True or False is for bit-identical repetition.

    Returns:
        `[*image]` or `[frame, *image]`.

    Raises:
        ValueError: shapes do not fit, the mask is empty, or lambda is negative.
    """
    if not regularisation >= 0:
        raise ValueError(f"regularisation must be at least 0, not {regularisation}")
    if mask is not None and not np.any(mask):
        raise ValueError("the mask is empty: no sample was measured")
    if trajectory is None:
        toeplitz = False
    elif toeplitz is None:
        first = trajectory[0] if np.ndim(trajectory) == 3 else trajectory
        toeplitz = _toeplitz_is_faster(maps, first, iterations)
    encoding = encode(maps, trajectory, mask, weights, toeplitz)
    if not isinstance(encoding, Frames):
        assert isinstance(encoding, Encoding)
        return _solve(encoding, kspace, iterations, tolerance, regularisation, prior)
    images = []
    for n, part in enumerate(encoding.operators):
        assert isinstance(part, Encoding)
        images.append(_solve(part, kspace[n], iterations, tolerance, regularisation, None if prior is None else prior[n]))
    return namespace(kspace).stack(images, 0)


def _solve(encoding: Encoding, kspace: Array, iterations: int, tolerance: float, regularisation: float, prior: Array | None) -> Array:
    damping = regularisation * encoding.mean_diagonal
    rhs = _adjoint(encoding, kspace)
    gram = CartesianGram.of(encoding, rhs)

    def normal(image: Array) -> Array:
        return gram(image) + times(damping, image) if damping else gram(image)

    if prior is not None and damping:
        rhs = rhs + times(damping, prior)
    return conjugate_gradient(normal, rhs, iterations, tolerance)


def _adjoint(encoding: Any, kspace: Array) -> Array:
    return encoding.adjoint(encoding.weigh(kspace))


def _toeplitz_is_faster(maps: Array, trajectory: np.ndarray, iterations: int) -> bool:
    """Measure both on this machine, once for each kind of problem; tensors take the rule of `cg_sense`."""
    shape = tuple(int(n) for n in maps.shape[1:])
    if is_tensor(maps) or len(shape) > 2:
        return _toeplitz_pays(trajectory, shape)

    def measure() -> bool:
        image = maps[0].astype(maps.dtype)

        def cost(toeplitz: bool) -> tuple[float, float]:
            begin = time.perf_counter()
            gram = Encoding(maps, trajectory, toeplitz=toeplitz).gram
            gram(image)
            middle = time.perf_counter()
            gram(image)
            return middle - begin, time.perf_counter() - middle

        (first, each), (first_convolution, each_convolution) = cost(False), cost(True)
        return first_convolution + iterations * each_convolution < first + iterations * each

    key = (len(trajectory), shape, int(maps.shape[0]), str(maps.dtype), iterations, device.threads(), device.use_gpu())
    return _choices.get(key, measure)


def sense(
    kspace: Array, maps: np.ndarray, acceleration: Sequence[int], first: Sequence[int] | None = None, regularisation: float = 0.0
) -> Array:
    """Cartesian SENSE by unfolding: for every set of pixels that fold onto each other, min |A x - a|^2 + lambda |x|^2.

    Pruessmann et al., Magn. Reson. Med. 42 (1999). Exact in one step for regular undersampling; `least_squares` takes any mask.

    Args:
        kspace: complex `[..., coil, *image]`, whitened, zero where nothing was sampled.
        maps: `[coil, *image]`.
        acceleration: for each image axis; must divide its size. 1 for a fully sampled axis.
        first: index of a sampled line of each axis; None for 0.
        regularisation: lambda in units of the mean of the diagonal of A^H A.

    Returns:
        `[..., *image]`; 0 where all maps are 0.

    Raises:
        ValueError: shapes do not fit, an axis is not divisible, or more pixels fold than there are coils.
    """
    shape = tuple(maps.shape[1:])
    factors = tuple(int(n) for n in acceleration)
    if tuple(kspace.shape[-len(shape) - 1 :]) != tuple(maps.shape):
        raise ValueError(f"k-space {tuple(kspace.shape)} does not fit maps {tuple(maps.shape)}: expected [..., coil, *image]")
    if len(factors) != len(shape) or any(r < 1 or n % r for r, n in zip(factors, shape, strict=True)):
        raise ValueError(f"acceleration {factors} must divide the image {shape}; use least_squares with a mask otherwise")
    if math.prod(factors) > maps.shape[0]:
        raise ValueError(f"{math.prod(factors)} pixels fold onto each other, but there are only {maps.shape[0]} coils")
    starts = tuple(0 for _ in factors) if first is None else tuple(int(n) for n in first)
    unfold: Array = through_numpy(_unfold)(kspace, np.asarray(maps), factors, starts, regularisation)
    if is_tensor(unfold):
        unfold.set_shape([*kspace.shape[: -len(shape) - 1], *shape])
    return unfold


def _unfold(kspace: np.ndarray, maps: np.ndarray, factors: tuple[int, ...], starts: tuple[int, ...], regularisation: float) -> np.ndarray:
    shape = maps.shape[1:]
    axes = tuple(range(-len(shape), 0))
    folded_shape = tuple(n // r for n, r in zip(shape, factors, strict=True))
    corner: tuple[Any, ...] = (..., *(slice(n) for n in folded_shape))
    folded = ifftc(kspace, axes)[corner]
    # A line first off the centre turns the phase of every image that folds in.
    places = list(product(*(range(r) for r in factors)))
    columns = []
    for place in places:
        turn = sum((s - n // 2) * -j / r for s, n, j, r in zip(starts, shape, place, factors, strict=True))
        part: tuple[Any, ...] = (..., *(slice(j * n, (j + 1) * n) for j, n in zip(place, folded_shape, strict=True)))
        columns.append(maps[part] * np.exp(2j * np.pi * turn) / len(places))
    matrix = np.moveaxis(np.stack(columns, -1), 0, -2)
    adjoint = matrix.conj().swapaxes(-1, -2)
    gram = adjoint @ matrix
    diagonal = np.einsum("...ii->...i", gram).real
    inside = diagonal > 0
    damping = regularisation * (diagonal[inside].mean() if inside.any() else 1.0)
    # Pixels without signal get an equation of their own, x = 0; a trace of damping keeps equal columns solvable.
    scale = float(diagonal.max(initial=0)) or 1.0
    tiny = damping + 4 * np.finfo(kspace.real.dtype).eps * scale
    gram = gram + np.where(inside, tiny, scale)[..., None] * np.eye(len(places))
    right = adjoint @ np.moveaxis(folded, -len(shape) - 1, -1)[..., None]
    solved = np.linalg.solve(gram, right)[..., 0]
    image = np.empty((*kspace.shape[: -len(shape) - 1], *shape), kspace.dtype)
    for n, place in enumerate(places):
        part = (..., *(slice(j * m, (j + 1) * m) for j, m in zip(place, folded_shape, strict=True)))
        image[part] = solved[..., n]
    return image
