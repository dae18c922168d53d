"""Standard deviations of regularised maps: how far they move when the noise is drawn anew.

The covariance of each voxel's own data says what noise does to a map without regularisation, which takes most of it away; how much
depends on the map. So the last linearised problem is solved again for data of the fitted maps with fresh noise (parametric bootstrap,
Efron and Tibshirani, An Introduction to the Bootstrap, 1993). Few iterations are not enough to get there: those that start from the
fitted maps, which have none of the fresh noise, end with too little of it, those that start from the noisy maps of an unregularised
fit with too much, by about the same factor. The geometric mean of both is taken. As few replicas say little of one voxel, their
scatter is taken relative to the covariance without regularisation and averaged over the neighbourhood.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

from recon.quantitative.data_term import DataTerm
from recon.quantitative.linearised import Linearisation, PrimalDual, Solution
from recon.quantitative.real_unknowns import apply_matrix, gradient, inverse, normal_matrix, unit_diagonal
from recon.quantitative.regularisers import Tensors

NEIGHBOURHOOD = 1.5
"""Standard deviation in voxels of the weights with which neighbours count."""
_CUT = 4.0
REACH = int(_CUT * NEIGHBOURHOOD + 0.5)
"""How many voxels away they count at all."""
_SHARE = 3
"""All replicas together take this part of the fit's iterations, but for"""
_LEAST = 40
"""each so many."""
_SIGNAL = 4.0
"""Voxels whose amplitudes are fewer standard deviations count little for their neighbours."""
ABOVE = 0.7
"""Part of the unregularised noise with which the others start: with all of it they end farther above than the first do below."""
_RIDGE = 1e-6


def iterations(fitted: int, replicas: int) -> int:
    """Inner iterations of each of so many replicas, which are solved from both sides, of a fit that took so many."""
    return max(_LEAST, math.ceil(fitted / (_SHARE * 2 * replicas)))


@dataclass(frozen=True, eq=False)
class Solved:
    """A linearised problem that was solved.

    Attributes:
        solver: that did it.
        operands: of its Gram operator.
        problem, gamma, delta, reference: what it was given.
        solution: what it found.
    """

    solver: PrimalDual
    operands: Tensors
    problem: Linearisation
    gamma: float
    delta: float
    reference: float
    solution: Solution

    def again(self, slope: Any, start: Any, iterations: int) -> Any:
        """Unknowns `[component, *voxels]` of the problem with another gradient, from these unknowns on and as many iterations."""
        x, problem = (start, *self.solution.x[1:]), replace(self.problem, slope=slope)
        return self.solver.solve(problem, x, self.solution.y, self.gamma, self.delta, iterations, self.reference, self.operands).x[0]


def redrawn(solved: Solved, term: DataTerm, columns: list[Any], factor: float, level: float, vague: Any, count: int, each: int) -> Any:
    """Solutions for data of the solution with other noise, from below and from above, `[replica, component, *voxels]` each.

    Args:
        solved: the last problem of a fit.
        term: its data.
        columns: derivatives of the signal by each component at the solution, complex `[contrast, *voxels]`, in the units of the data.
        factor: squared residuals of the problem over those of the data.
        level: standard deviation of the noise, in the units of the data.
        vague: bool `[component, *voxels]`: what a fit would not start with at unregularised values.
        count: draws of the noise.
        each: iterations.
    """
    import tensorflow as tf

    assert term.noise is not None
    problem, found = solved.problem, solved.solution.x[0]
    moved = found - problem.origin
    if problem.columns is None:
        bent = apply_matrix(problem.curvature, moved)
    else:
        image = tf.reduce_sum(problem.columns * tf.cast(moved, problem.columns.dtype)[:, None], 0)
        bent = gradient(tf.unstack(problem.columns), term.gram(image))
    random = np.random.default_rng(0)
    below, above = [], []
    for _ in range(count):
        noise = tf.constant(term.noise(random)) * tf.cast(level, columns[0].dtype)
        slope = -bent - factor * gradient(columns, noise)
        shift = tf.where(vague, tf.zeros_like(moved), least_squares(columns, replace(term, rhs=noise).images()))
        below.append(solved.again(slope, found, each))
        above.append(solved.again(slope, found + ABOVE * shift, each))
    return tf.stack(below), tf.stack(above)


def least_squares(columns: list[Any], images: Any) -> Any:
    """Components `[component, *voxels]` whose signal is nearest to the images."""
    import tensorflow as tf

    matrix, slope = normal_matrix(columns), gradient(columns, images)
    unit, scale = unit_diagonal(matrix, tf.zeros_like(slope, tf.bool), tf.constant(_RIDGE, slope.dtype))
    return scale * apply_matrix(inverse(unit), scale * slope)


def scattered(
    parameters: np.ndarray, below: np.ndarray, above: np.ndarray, bound: np.ndarray, amplitudes: Sequence[int] = ()
) -> np.ndarray:
    """Covariance of the unknowns, of complex ones that of the magnitude, real `[unknown, unknown, *voxels]`.

    Args:
        parameters: unknowns of the fit, complex `[unknown, *voxels]`.
        below, above: those with other noise `[replica, unknown, *voxels]`, iterated from without it and from with all of it.
        bound: covariance without regularisation, of the shape of the result; where it is infinite, so is the result.
        amplitudes: unknowns that say whether there is signal.

    Raises:
        ValueError: fewer than 2 replicas.
    """
    # In double precision: where there is no signal, numbers are so large and small that their squares would not fit.
    size = np.abs(parameters).astype(np.float64)
    with np.errstate(invalid="ignore"):
        deviation = np.sqrt(np.einsum("uu...->u...", bound)).astype(np.float64)
    tiny = np.finfo(np.float64).tiny
    unit = np.where(np.isfinite(deviation) & (deviation > 0), deviation, np.where(size > 0, size, 1))
    clear = np.ones(size.shape[1:], size.dtype)
    if amplitudes:
        shares = [size[n] ** 2 / (size[n] ** 2 + (_SIGNAL * unit[n]) ** 2 + tiny) for n in amplitudes]
        clear = np.maximum(np.max(shares, 0), np.finfo(size.dtype).eps)
    directions = np.where(size > 0, parameters.conj() / np.where(size > 0, size, 1), 1) / unit
    low, high = (_pooled(directions, every, clear) for every in (below, above))
    sizes = [np.sqrt(np.maximum(np.einsum("uu...->u...", one), tiny)) for one in (low, high)]
    correlation = sum(one / (root[:, None] * root[None]) for one, root in zip((low, high), sizes, strict=True)) / 2
    found = np.sqrt(sizes[0] * sizes[1]) * unit
    with np.errstate(over="ignore"):  # infinite is what it is then
        result: np.ndarray = (correlation * found[:, None] * found[None]).astype(bound.dtype)
    unknown = np.einsum("uu...->u...", bound) == np.inf
    np.einsum("uu...->u...", result)[unknown] = np.inf  # what only the neighbours tell stays undetermined
    return result


def _pooled(directions: np.ndarray, replicas: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Covariance of the replicas along `directions`, averaged over each voxel's neighbourhood with a weight for each voxel."""
    if len(replicas) < 2:
        raise ValueError(f"{len(replicas)} replicas say nothing of their scatter: at least 2")
    # What they have in common is what regularisation does once more, not noise.
    moved = (directions * (replicas - replicas.mean(0))).real
    products = np.einsum("ku...,kw...->uw...", moved, moved) / (len(replicas) - 1)
    smoothing = (0, 0, *[NEIGHBOURHOOD] * weight.ndim)
    pooled: np.ndarray = gaussian_filter(weight * products, smoothing, mode="constant", truncate=_CUT)
    pooled /= gaussian_filter(weight, NEIGHBOURHOOD, mode="constant", truncate=_CUT)
    return pooled
