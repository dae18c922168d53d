"""Compressed sensing: least squares with a convex regularisation.

Data may be Cartesian with a mask or non-Cartesian with a trajectory, NumPy arrays or tensors. The thin functions take
their weight as a fraction of the largest magnitude of E^H y (for low rank: of its largest singular value), above which
the image would be zero: it does not depend on the scale of the data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from recon import device
from recon.arrays import Array, is_tensor
from recon.functionals.base import Functional
from recon.functionals.composed import Composed
from recon.functionals.low_rank import LocallyLowRank, largest_singular_value
from recon.functionals.norms import SquaredL2
from recon.functionals.tgv import TGV, Image
from recon.functionals.total_variation import TotalVariation
from recon.functionals.wavelet import L1Wavelet
from recon.namespace import namespace
from recon.operators.batched_gram import fast_gram
from recon.operators.encoding import Encoding
from recon.operators.fourier import Fourier
from recon.operators.frames import Frames
from recon.operators.linear import LinearOperator
from recon.resident import resident
from recon.solvers.admm import admm, least_squares_update
from recon.solvers.fista import fista
from recon.solvers.power_iteration import power_iteration
from recon.solvers.primal_dual import primal_dual

RATIO = 0.01
"""Dual over primal step: measured best for undersampled images whose encoding has a norm near 1."""
Solver = Literal["fista", "admm", "primal_dual"]
MARGIN = 1.05
"""Power iteration finds the largest eigenvalue from below; a step must not be too long."""


def encode(
    maps: Array,
    trajectory: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    toeplitz: bool = False,
    sets: bool = False,
) -> LinearOperator:
    """The encoding operator of one image, or of a series where trajectory or mask have a leading axis of frames.

    Args:
        maps: complex `[coil, *image]`, the same for all frames.
        trajectory: `[sample, axis]` or `[frame, sample, axis]` in rad/pixel.
        mask: `[*image]` or `[frame, *image]` for Cartesian data.
        weights: density weights `[sample]` or `[frame, sample]`.
        toeplitz: see `Encoding`.
        sets: several sets of maps `[set, coil, *image]` for images `[set, *image]`: soft-SENSE.

    Raises:
        ValueError: see `Encoding`.
    """
    rank = len(maps.shape) - (2 if sets else 1)
    frames = [len(part) for part, n in ((trajectory, 3), (mask, rank + 1)) if part is not None and np.ndim(part) == n]
    if not frames:
        return Encoding(maps, trajectory, mask, weights, toeplitz, sets=sets)

    def of(part: Any, n: int, rank: int) -> Any:
        return part[n] if np.ndim(part) > rank else part

    return Frames(
        [Encoding(maps, of(trajectory, n, 2), of(mask, n, rank), of(weights, n, 1), toeplitz, sets=sets) for n in range(frames[0])]
    )


def compressed_sensing(
    encoding: LinearOperator,
    kspace: Array,
    functional: Functional,
    iterations: int = 50,
    solver: Solver | None = None,
    inner_iterations: int = 10,
    penalty: float | None = None,
    tolerance: float = 0.0,
    lipschitz: float | None = None,
) -> Array:
    """Minimise |E x - y|^2 / 2 + R(x).

    Lustig, Donoho, Pauly, Magn. Reson. Med. 58 (2007); Block, Uecker, Frahm, Magn. Reson. Med. 57 (2007).

    Args:
        encoding: E, from `encode` or any operator; density weights are part of it.
        kspace: y, in the range of E (of an `Encoding` without its root of the weights, which is applied here).
        functional: R; its weight is in the units of the data, as in TensorFlow MRI's "admm".
        iterations: at most so many.
        solver: None takes "fista" where the proximal map is in closed form, "admm" for norms of a linear operator's result
            (total variation) and "primal_dual" for TGV.
        inner_iterations: conjugate gradients of an ADMM iteration.
        penalty: of ADMM; None for 0.03 times the largest eigenvalue of E^H E. It changes the speed only.
        tolerance: stop when the relative change of the image (ADMM: Boyd's relative residuals) falls below it.
        lipschitz: largest eigenvalue of E^H E; None finds it.

    Returns:
        The image, of the kind of `kspace`.

    Raises:
        ValueError: the solver cannot treat the functional.
    """
    rhs = encoding.adjoint(_weigh(encoding, kspace))
    gram = fast_gram(encoding, rhs)
    chosen = solver or _solver(functional)
    if chosen == "primal_dual":
        return _primal_dual(encoding, _weigh(encoding, kspace), rhs, functional, iterations, tolerance)
    if chosen not in ("fista", "admm"):
        raise ValueError(f"solver must be 'fista', 'admm' or 'primal_dual', not {chosen!r}")
    bound = lipschitz if lipschitz is not None else largest_eigenvalue(encoding, gram, rhs)
    if chosen == "fista":
        return fista(lambda x: gram(x) - rhs, functional.prox, namespace(rhs).zeros_like(rhs), 1 / bound, iterations, tolerance)
    operator = functional.operator if isinstance(functional, Composed) else None
    prox = functional.functional.prox if isinstance(functional, Composed) else functional.prox
    update = least_squares_update(gram, rhs, operator, inner_iterations)
    result = admm(
        update,
        prox,
        namespace(rhs).zeros_like(rhs),
        operator,
        0.03 * bound if penalty is None else penalty,
        iterations,
        relative_tolerance=tolerance,
    )
    return result.x


@resident
def l1_wavelet(
    kspace: Array,
    maps: Array,
    trajectory: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    weight: float = 0.0015,
    wavelet: str = "db2",
    level: int | None = 4,
    iterations: int = 50,
    seed: int | None = 0,
    tolerance: float = 0.0,
    sets: bool = False,
) -> Array:
    """Minimise |E x - y|^2 / 2 + lambda |W x|_1, W an orthogonal wavelet transform with random shifts.

    Lustig, Donoho, Pauly, Magn. Reson. Med. 58 (2007). Where the image is not divisible by 2^level, it lies inside a larger
    one of which the data see the middle.

    Args:
        kspace: `[coil, sample]`, or `[coil, *image]` with zeros where nothing was sampled; leading frames as `encode` has them.
        maps, trajectory, mask, weights: see `encode`. For Cartesian data without a mask, samples that are 0 in all coils are missing.
        weight: lambda as a fraction of max |E^H y|.
        wavelet, seed: see `L1Wavelet`.
        level: None for at most 4, so many that the shortest axis keeps four coefficients.
        iterations, tolerance: see `compressed_sensing`.
        sets: see `encode`; the object may be larger than the field of view then, and what folds onto it gets an image of its own
            (Uecker et al., Magn. Reson. Med. 71 (2014)).
    """
    encoding, rhs = _prepare(kspace, maps, trajectory, mask, weights, sets)
    image_shape = tuple(int(n) for n in maps.shape[2 if sets else 1 :])
    if level is None:
        level = max(1, min(4, (min(image_shape) // 4).bit_length() - 1))
    larger = tuple(-(-n // 2**level) * 2**level for n in image_shape)
    functional = L1Wavelet(larger, _fraction(weight, rhs), wavelet, level, seed=seed)
    if larger == image_shape:
        return compressed_sensing(encoding, kspace, functional, iterations, tolerance=tolerance)
    crop = _Crop(image_shape, larger)
    gram = fast_gram(encoding, rhs)
    bound, target = largest_eigenvalue(encoding, gram, rhs), crop.adjoint(rhs)

    def gradient(x: Array) -> Array:
        return crop.adjoint(gram(crop(x))) - target

    start = namespace(target).zeros_like(target)
    return crop(fista(gradient, functional.prox, start, 1 / bound, iterations, tolerance))


@resident
def total_variation(
    kspace: Array,
    maps: Array,
    trajectory: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    weight: float = 0.002,
    axes: Sequence[int] = (-2, -1),
    isotropic: bool = True,
    iterations: int = 30,
    tolerance: float = 0.0,
    sets: bool = False,
) -> Array:
    """Minimise |E x - y|^2 / 2 + lambda TV(x), by ADMM. Block, Uecker, Frahm, Magn. Reson. Med. 57 (2007).

    Args: see `l1_wavelet`; `axes` and `isotropic`: see `TotalVariation`.
    """
    encoding, rhs = _prepare(kspace, maps, trajectory, mask, weights, sets)
    functional = TotalVariation(_fraction(weight, rhs), axes, isotropic)
    return compressed_sensing(encoding, kspace, functional, iterations, tolerance=tolerance)


@resident
def total_generalised_variation(
    kspace: Array,
    maps: Array,
    trajectory: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    weight: float = 0.002,
    iterations: int = 100,
    tolerance: float = 0.0,
    sets: bool = False,
) -> Array:
    """Minimise |E x - y|^2 / 2 + lambda TGV(x), by the primal-dual method. Knoll et al., Magn. Reson. Med. 65 (2011).

    Args: see `l1_wavelet`; of one image.
    """
    encoding, rhs = _prepare(kspace, maps, trajectory, mask, weights, sets)
    functional = TGV(_fraction(weight, rhs), rank=len(maps.shape) - (2 if sets else 1))
    return compressed_sensing(encoding, kspace, functional, iterations, tolerance=tolerance)


def grasp(
    kspace: Array,
    maps: Array,
    trajectory: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    weight: float = 0.003,
    iterations: int = 30,
    tolerance: float = 0.0,
) -> Array:
    """Minimise |E x - y|^2 / 2 + lambda sum |x[t + 1] - x[t]| over a series: temporal total variation.

    Feng et al., Magn. Reson. Med. 72 (2014).

    Args: see `l1_wavelet`, all with leading frames but the maps.

    Returns:
        Images `[frame, *image]`.
    """
    axis = -len(maps.shape)
    return total_variation(kspace, maps, trajectory, mask, weights, weight, (axis,), True, iterations, tolerance)


@resident
def locally_low_rank(
    kspace: Array,
    maps: Array,
    trajectory: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    weight: float = 0.002,
    block: int = 8,
    iterations: int = 50,
    seed: int | None = 0,
    tolerance: float = 0.0,
) -> Array:
    """Minimise |E x - y|^2 / 2 + lambda times the nuclear norms of the blocks of a series `[frame, *image]`.

    Zhang, Pauly, Levesque, Magn. Reson. Med. 73 (2015).

    Args: see `grasp`; `block` and `seed`: see `LocallyLowRank`; `weight` is a fraction of the largest singular value of the
    blocks of E^H y.
    """
    encoding, rhs = _prepare(kspace, maps, trajectory, mask, weights)
    rank = len(maps.shape) - 1
    largest = largest_singular_value(LocallyLowRank(1.0, block, rank)._blocks(rhs)[0])
    functional = LocallyLowRank(weight * _number(largest), block, rank, seed)
    return compressed_sensing(encoding, kspace, functional, iterations, tolerance=tolerance)


def largest_eigenvalue(encoding: LinearOperator, gram: Callable[[Array], Array], like: Array) -> float:
    """A bound of the largest eigenvalue of E^H E: by the maps for Cartesian data, else by power iteration."""
    parts = encoding.operators if isinstance(encoding, Frames) else (encoding,)
    bounds = [_cartesian_bound(part) for part in parts if isinstance(part, Encoding) and isinstance(part.fourier, Fourier)]
    if len(bounds) == len(parts):
        return max(bounds)
    return MARGIN * power_iteration(gram, like, 15)


def _cartesian_bound(encoding: Encoding) -> float:
    space = namespace(encoding.maps)
    mask = getattr(encoding.fourier, "mask", None)
    gain = 1.0 if mask is None else float(np.abs(np.asarray(mask)).max()) ** 2
    # Of several sets of maps, that need not be orthogonal, too.
    leading = tuple(range(encoding.maps.ndim - len(encoding.image_shape)))
    return gain * float(space.max(space.sum(space.abs(encoding.maps) ** 2, leading)))


def _prepare(kspace: Array, maps: Array, trajectory: Any, mask: Any, weights: Any, sets: bool = False) -> tuple[LinearOperator, Array]:
    """The encoding and E^H y."""
    if trajectory is None and mask is None:
        if is_tensor(kspace):
            raise ValueError("compressed sensing of Cartesian tensors needs the mask: give mask=[*image] or [frame, *image]")
        mask = device.get((kspace != 0).any(-len(maps.shape[1 if sets else 0 :])))
    if mask is not None and not np.any(mask):
        raise ValueError("the mask is empty: no sample was measured")
    encoding = encode(maps, trajectory, mask, weights, sets=sets)
    return encoding, encoding.adjoint(_weigh(encoding, kspace))


def _weigh(encoding: LinearOperator, kspace: Array) -> Array:
    if isinstance(encoding, Encoding):
        return encoding.weigh(kspace)
    if isinstance(encoding, Frames):
        return namespace(kspace).stack([_weigh(part, kspace[n]) for n, part in enumerate(encoding.operators)], 0)
    return kspace


def _fraction(weight: float, rhs: Array) -> float:
    space = namespace(rhs)
    return weight * _number(space.max(space.abs(rhs)))


def _number(value: Any) -> float:
    try:
        result = float(value)
    except TypeError as error:
        raise ValueError(
            "inside tf.function build the functional yourself and call compressed_sensing: the weight must be a number"
        ) from error
    if not math.isfinite(result):
        raise ValueError("k-space, maps or weights hold NaN or infinite values")
    return result


def _solver(functional: Functional) -> Solver:
    if isinstance(functional, TGV):
        return "primal_dual"
    return "admm" if isinstance(functional, Composed) else "fista"


def _primal_dual(encoding: LinearOperator, data: Array, rhs: Array, functional: Functional, iterations: int, tolerance: float) -> Array:
    fidelity = SquaredL2(1.0, data)
    if isinstance(functional, TGV):
        image = Image(functional.rank)
        terms = [(encoding @ image, fidelity), *functional.terms]
        return image(primal_dual(terms, image.adjoint(namespace(rhs).zeros_like(rhs)), None, iterations, ratio=RATIO, tolerance=tolerance))
    start = namespace(rhs).zeros_like(rhs)
    if isinstance(functional, Composed):
        return primal_dual(
            [(encoding, fidelity), (functional.operator, functional.functional)], start, None, iterations, ratio=RATIO, tolerance=tolerance
        )
    return primal_dual([(encoding, fidelity)], start, functional.prox, iterations, ratio=RATIO, tolerance=tolerance)


class _Crop(LinearOperator):
    """The middle of a larger image."""

    def __init__(self, shape: tuple[int, ...], larger: tuple[int, ...]) -> None:
        starts = [(big - small) // 2 for small, big in zip(shape, larger, strict=True)]
        self.inside: tuple[Any, ...] = (..., *(slice(a, a + n) for a, n in zip(starts, shape, strict=True)))
        self.margins = [(a, big - a - n) for a, n, big in zip(starts, shape, larger, strict=True)]

    def forward(self, x: Array) -> Array:
        return x[self.inside]

    def adjoint(self, y: Array) -> Array:
        return namespace(y).pad(y, [(0, 0)] * (len(y.shape) - len(self.margins)) + self.margins)
