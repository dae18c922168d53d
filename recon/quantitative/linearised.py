"""One Gauss-Newton step's problem, convex, and its solution by primal-dual iterations with line search.

    min over u in a box and fields v of  |E (s + J (u - u_0)) - d|^2 / 2 + 1/(2 delta) |u - u_0|^2 + gamma R(u, v)

Malitsky and Pock, SIAM J. Optim. 28 (2018), algorithm 1, in the variant of Condat, J. Optim. Theory Appl. 158 (2013), that takes the
data term by its gradient: its bound D >= E^H E makes J^H D J a small matrix for each voxel, which the primal step uses as its metric.
Where E^H E = D (fully sampled grids, images) that step is the data term's proximal map itself, and contrasts are not touched at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from recon.quantitative.graphs import graph
from recon.quantitative.real_unknowns import Components, apply_matrix, gradient
from recon.quantitative.regularisers import Regulariser, Tensors
from recon.quantitative.settings import Settings

SHRINK, SAFETY, TRIALS = 0.7, 0.99, 30
"""The line search's factor for a step that was too long, how close to the limit a step may come, how many may be tried."""
HISTORY = 40
"""Gaps that are compared to tell stagnation, PyQMRI's number."""
_BOX_PASSES = 3


@dataclass(frozen=True, eq=False)
class Linearisation:
    """The signal model around u_0, in scaled real components; tensors.

    Attributes:
        origin: u_0 `[component, *voxels]`.
        columns: of J, complex `[component, contrast, *voxels]`; None where `curvature` says all.
        slope: gradient of the data term at u_0, `[component, *voxels]`.
        curvature: Re J^H D J, `[component, component, *voxels]`.
        lower, upper: bounds of each unknown `[unknown]`, of complex ones on the magnitude.
    """

    origin: Any
    columns: Any
    slope: Any
    curvature: Any
    lower: Any
    upper: Any


@dataclass(frozen=True, eq=False)
class Solution:
    """Where the iterations ended.

    Attributes:
        x: u and the fields.
        y: dual variables.
        first, last: primal-dual gap before the first iteration and after the last.
        iterations: how many.
    """

    x: Tensors
    y: Tensors
    first: float
    last: float
    iterations: int


class PrimalDual:
    """The solver, compiled once for all Gauss-Newton steps.

    Args:
        components: of the unknowns.
        real: whether each unknown is real.
        regulariser: R.
        gram: applies E^H E to x, with the operands given to `solve`; None where the curvature says all.
        compiled: by XLA: the Gram operator must allow it.
        weights: each component's weight in R, `[component]`.
        settings: see there.
    """

    def __init__(
        self,
        components: Components,
        real: Sequence[bool],
        regulariser: Regulariser,
        gram: Callable[..., Any] | None,
        weights: Sequence[float],
        settings: Settings,
        compiled: bool = True,
    ) -> None:

        self.components, self.real, self.regulariser, self.gram, self.settings = components, real, regulariser, gram, settings
        self.groups = [[row for row, (n, _) in enumerate(components.table) if n == index] for index in range(components.unknowns)]
        self.weights = weights
        self._run = graph(self._iterate, compiled)

    def start(self, u: Any) -> tuple[Tensors, Tensors]:
        """Fields and dual variables of zero beside these unknowns."""
        import tensorflow as tf

        x = (u, *self.regulariser.fields(u))
        return x, tuple(tf.zeros_like(one) for one in self.regulariser.forward(x))

    def regularisation(self, x: Tensors) -> float:
        """R(u, v)."""
        weights = np.reshape(self.weights, [-1, *[1] * (x[0].shape.rank - 1)])
        return float(self.regulariser.value(self.regulariser.forward((x[0] * weights, *x[1:]))))

    def solve(
        self,
        problem: Linearisation,
        x: Tensors,
        y: Tensors,
        gamma: float,
        delta: float,
        iterations: int,
        reference: float | None = None,
        operands: Tensors = (),
    ) -> Solution:
        """Iterate from x and y, at most so often.

        Args:
            problem: around u_0.
            x, y: from `start`, or where another problem's iterations ended.
            gamma, delta: see the head of this module.
            iterations: at most so many.
            reference: the gap to which `rtol` and `atol` relate; None for the first here.
            operands: of the Gram operator.
        """
        import tensorflow as tf

        dtype = problem.origin.dtype
        values, vectors = spectrum(problem.curvature, self.settings)
        beta = tf.constant(self.settings.beta, dtype) if self.settings.beta else tf.cast(ratio(*moments(values)), dtype)
        columns = tf.zeros([0], tf.complex64) if problem.columns is None else problem.columns
        given = (problem.origin, columns, problem.slope, problem.curvature, problem.lower, problem.upper, values, vectors)
        scalars = (tf.constant(gamma, dtype), tf.constant(1 / delta, dtype), beta)
        unit = tf.constant(-1.0 if reference is None else reference, tf.float64)
        x, y, first, last, count = self._run(given, x, y, scalars, tf.constant(iterations), unit, operands)
        return Solution(x, y, float(first), float(last), int(count))

    # -- within the graph --------------------------------------------------------------------------------------------

    def _iterate(
        self, given: Tensors, x: Tensors, y: Tensors, scalars: Tensors, iterations: Any, unit: Any, operands: Tensors
    ) -> tuple[Any, ...]:
        import tensorflow as tf

        settings, apply = self.settings, self.gram
        step = Iteration(self, given, scalars, None if apply is None else lambda image: apply(image, *operands))
        kx, back = step.forward(x), step.adjoint(x, y)
        # 12 bounds the squared norm of TGV's operator in the plane; from three dimensions on the line search takes over.
        # Without a regulariser nothing but the data limits the step.
        tau = tf.math.rsqrt(scalars[2] * 12) if self.regulariser.radii else tf.constant(np.inf, x[0].dtype)
        state = (x, kx, y, back, tau, tf.ones_like(tau))
        gap = step.gap(x, kx, y, back)
        unit = tf.where(unit < 0, gap, unit)
        history = tf.fill([HISTORY], tf.constant(np.inf, tf.float64))

        def block(count: Any, *rest: Any) -> tuple[Any, ...]:
            *state, last, history, _ = rest
            times = tf.minimum(iterations - count, settings.check)
            flat = tf.while_loop(lambda n, *_: n < times, lambda n, *s: (n + 1, *step.advance(s)), (tf.constant(0), *state))[1:]
            now = step.gap(*flat[:4])
            history = tf.concat([history[1:], now[None]], 0)
            half = HISTORY // 2
            older, newer = tf.reduce_mean(history[:half]), tf.reduce_mean(history[half:])
            still = (tf.abs(now - last) < settings.rtol * unit) | (now < settings.atol * unit)
            still |= tf.math.is_finite(older) & (tf.abs(older - newer) < settings.stag * newer)
            return (count + times, *flat, now, history, ~still)

        start = (tf.constant(0), *state, gap, history, tf.constant(True))
        count, x, _, y, _, _, _, last, _, _ = tf.while_loop(lambda *s: s[-1] & (s[0] < iterations), block, start)
        return x, y, gap, last, count


class Iteration:
    """One iteration on the tensors of one graph: of a volume, or of a block of its slices.

    Args:
        solver: whose problem it is.
        given: origin, columns, slope, curvature, lower, upper as in `Linearisation`; values, vectors of `spectrum`.
        scalars: gamma, 1 / delta, beta.
        gram: applies E^H E; None where the curvature says all.
    """

    def __init__(self, solver: PrimalDual, given: Tensors, scalars: Tensors, gram: Callable[[Any], Any] | None) -> None:
        import tensorflow as tf

        self.origin, self.columns, self.slope, self.curvature, self.lower, self.upper, self.values, self.vectors = given
        self.gamma, self.damping, self.beta = scalars
        self.regulariser, self.gram, self.solver = solver.regulariser, gram, solver
        self.none = not solver.regulariser.radii
        shape = [-1, *[1] * (self.origin.shape.rank - 1)]
        self.weights = tf.reshape(tf.constant(solver.weights, self.origin.dtype), shape)

    def forward(self, x: Tensors) -> Tensors:
        return self.regulariser.forward((self.weights * x[0], *x[1:]))

    def adjoint(self, x: Tensors, y: Tensors) -> Tensors:
        import tensorflow as tf

        if self.none:
            return tuple(tf.zeros_like(one) for one in x)
        first, *others = self.regulariser.adjoint(y)
        return self.weights * first, *others

    def slope_at(self, u: Any) -> Any:
        """Gradient of the data term and of the distance to u_0."""
        moved = u - self.origin
        if self.gram is None:
            bent = apply_matrix(self.curvature, moved)
        else:
            forward, back = _products()
            bent = back(self.columns, self.gram(forward(self.columns, moved)))
        return self.slope + bent + self.damping * moved

    def advance(self, state: Tensors) -> tuple[Any, ...]:
        import tensorflow as tf

        x, kx, y, back, tau, theta = state
        moved = self.primal(x, back, tau)
        image = self.forward(moved)
        if self.none:
            return moved, image, y, back, tau, theta

        def attempt(_: Any, __: Any, trial: Any, ___: Any) -> tuple[Any, ...]:
            dual = self.dual(extrapolated(image, kx, trial / tau), y, trial)
            pulled = self.adjoint(moved, dual)
            limit = tf.cast(SAFETY / (tf.sqrt(self.beta) * trial), tf.float64)
            too_long = tf.sqrt(distance(pulled, back)) > limit * tf.sqrt(distance(dual, y))
            return dual, pulled, tf.where(too_long, SHRINK * trial, trial), too_long

        first = (y, back, tau * tf.sqrt(1 + theta), tf.constant(True))
        dual, pulled, taken, _ = tf.while_loop(lambda *s: s[-1], attempt, first, maximum_iterations=TRIALS)
        return moved, image, dual, pulled, taken, taken / tau

    def primal(self, x: Tensors, back: Tensors, tau: Any) -> Tensors:
        """The next unknowns and fields, voxel by voxel from K^T y but for the data term."""
        metric = 1 / tau + self.damping
        pull = self.slope_at(x[0]) + back[0]
        step = apply_matrix(self.vectors, _rotated(self.vectors, pull) / (self.values + metric))
        u = self._boxed(x[0] - step, metric)
        return (u, *(field - tau * pulled for field, pulled in zip(x[1:], back[1:], strict=True)))

    def dual(self, ahead: Tensors, y: Tensors, trial: Any) -> Tensors:
        """The next dual variables, for a step of `trial`, from K of the extrapolated x."""
        moved = tuple(one + self.beta * trial * image for one, image in zip(y, ahead, strict=True))
        return self.regulariser.dual(moved, self.gamma, self.beta * trial)

    def gap(self, x: Tensors, kx: Tensors, y: Tensors, back: Tensors) -> Any:
        """An upper bound of primal minus dual cost, 0 at the solution."""
        import tensorflow as tf

        sums, sizes = self.gap_terms(x, kx, y, back)
        return total_gap(sums, sizes, tf.cast(self.gamma, tf.float64))

    def gap_terms(self, x: Tensors, kx: Tensors, y: Tensors, back: Tensors) -> tuple[Any, Any]:
        """What `total_gap` adds up, of double precision: sums over voxels, and each field's largest magnitude.

        By convexity the unknowns can gain no more from the pull q than min over the box of q (u - u'), and where E^H E = D no more
        than q A^-1 q / 2; fields, which are free, are taken to stay within twice their present size.
        """
        import tensorflow as tf

        pull = self.slope_at(x[0]) + back[0]
        rotated = _rotated(self.vectors, pull)
        local = 0.5 * tf.reduce_sum(rotated**2 / (self.values + self.damping), 0)
        gain = total(tf.minimum(local, self._reach(x[0], pull))) + self.regulariser.conjugate(y, self.gamma)
        fields = list(zip(x[1:], back[1:], strict=True))
        gain += sum(total(pulled * field) for field, pulled in fields)
        gain -= sum(total(one * image) for one, image in zip(y, kx, strict=True))
        sizes = [tf.cast(tf.reduce_max(tf.abs(field)), tf.float64) for field, _ in fields]
        sums = tf.stack([gain, self.regulariser.value(kx), *(total(tf.abs(pulled)) for _, pulled in fields)])
        return sums, tf.stack(sizes) if sizes else tf.zeros([0], tf.float64)

    def _reach(self, u: Any, pull: Any) -> Any:
        """Largest q (u - u') of u' in the box, `[*voxels]`."""
        import tensorflow as tf

        total = tf.reduce_sum(pull * u, 0)
        for index, rows in enumerate(self.solver.groups):
            if self.solver.real[index]:
                q = pull[rows[0]]
                total -= tf.minimum(q * self.lower[index], q * self.upper[index])
            else:
                total += self.upper[index] * tf.sqrt(sum(pull[row] ** 2 for row in rows))
        return total

    def _boxed(self, centre: Any, metric: Any) -> Any:
        """The point of the box nearest to `centre` in the metric of the step, by coordinate descent: at once where it lies inside."""
        import tensorflow as tf

        rows = [self._project(index, [centre[row] for row in group]) for index, group in enumerate(self.solver.groups)]
        flat = [part for group in rows for part in group]
        for _ in range(_BOX_PASSES if len(flat) > 1 else 0):
            for index, group in enumerate(self.solver.groups):
                size = sum(self.curvature[row, row] for row in group) / len(group) + metric
                pulls = [
                    sum(self.curvature[row, n] * (flat[n] - centre[n]) for n in range(len(flat))) + metric * (flat[row] - centre[row])
                    for row in group
                ]
                moved = self._project(index, [flat[row] - pull / size for row, pull in zip(group, pulls, strict=True)])
                for row, part in zip(group, moved, strict=True):
                    flat[row] = part
        return tf.stack(flat)

    def _project(self, index: int, parts: list[Any]) -> list[Any]:
        import tensorflow as tf

        lower, upper = self.lower[index], self.upper[index]
        if self.solver.real[index]:
            return [tf.clip_by_value(parts[0], lower, upper)]
        size = tf.sqrt(sum(part**2 for part in parts))
        factor = tf.math.divide_no_nan(tf.clip_by_value(size, lower, upper), size)
        return [factor * part for part in parts]


def spectrum(curvature: Any, settings: Settings) -> tuple[Any, Any]:
    """Eigenvalues `[component, *voxels]` and vectors `[component, value, *voxels]` of the metric."""
    import tensorflow as tf

    rank = curvature.shape.rank
    count = curvature.shape[0]
    if not settings.precond:
        largest = tf.reduce_max(tf.reduce_sum(tf.abs(curvature), 1))
        values = tf.fill([count, *curvature.shape[2:]], largest)
        vectors = tf.reshape(tf.eye(count, dtype=curvature.dtype), [count, count, *[1] * (rank - 2)])
        return values, tf.broadcast_to(vectors, curvature.shape)
    with tf.device("CPU:0"):  # a GPU takes such small matrices one by one
        values, vectors = tf.linalg.eigh(tf.transpose(curvature, [*range(2, rank), 0, 1]))
    values = tf.maximum(tf.transpose(values, [rank - 2, *range(rank - 2)]), 0)
    vectors = tf.transpose(vectors, [rank - 2, rank - 1, *range(rank - 2)])
    return tf.maximum(values, settings.cutoffPre * values[-1:]), vectors


def moments(values: Any) -> tuple[Any, Any]:
    """Sums over voxels of the largest eigenvalue and of its square, of double precision."""
    return total(values[-1]), total(values[-1] ** 2)


def ratio(strongest: Any, squares: Any) -> Any:
    """Dual over primal step: the primal step then matches the curvature of voxels with signal."""
    import tensorflow as tf

    return tf.maximum(tf.math.divide_no_nan(squares, strongest) ** 2 / 12, tf.constant(1e-12, tf.float64))


def total_gap(sums: Any, sizes: Any, gamma: Any) -> Any:
    """The gap from `Iteration.gap_terms`; NumPy or tensors, of double precision."""
    gap = sums[0] + gamma * sums[1]
    for n in range(sizes.shape[0]):
        gap += 2 * sizes[n] * sums[2 + n]
    return gap


def extrapolated(new: Tensors, old: Tensors, factor: Any) -> Tensors:
    """From old to new and on by so much of the way."""
    return tuple(one + factor * (one - other) for one, other in zip(new, old, strict=True))


def distance(one: Tensors, other: Tensors) -> Any:
    """|one - other|^2, of double precision."""
    return sum(total((a - b) ** 2) for a, b in zip(one, other, strict=True))


def total(values: Any) -> Any:
    """Sum in double precision, of single rows in that of the values: plain sums of millions of numbers lose four digits."""
    import tensorflow as tf

    return tf.reduce_sum(tf.cast(tf.reduce_sum(values, -1), tf.float64))


@cache
def _products() -> tuple[Callable[[Any, Any], Any], Callable[[Any, Any], Any]]:
    """J u and Re J^H x: one pass over the columns each, which plain graphs do not manage."""
    import tensorflow as tf

    def forward(columns: Any, u: Any) -> Any:
        return tf.reduce_sum(columns * tf.cast(u, columns.dtype)[:, None], 0)

    def back(columns: Any, x: Any) -> Any:
        return gradient(tf.unstack(columns), x)

    return graph(forward, True), graph(back, True)


def _rotated(vectors: Any, x: Any) -> Any:
    import tensorflow as tf

    return tf.reduce_sum(vectors * x[:, None], 0)
