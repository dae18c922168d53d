"""The primal-dual iterations of a linearised step on volumes that no device holds: blocks of slices, one after another.

Arrays of the volume stay on the host. Each half of an iteration passes over all blocks: the primal one needs nothing of the
neighbours; the dual one sees what they were before it, two slices to either side, and computes what it needs of them anew. Norms and
costs are summed over each block's own slices, in double precision. So the iterations are those of `linearised.PrimalDual`, to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

from recon.quantitative.graphs import graph
from recon.quantitative.lanes import Lanes, Span, Volumes
from recon.quantitative.linearised import HISTORY, SAFETY, SHRINK, TRIALS, Iteration, PrimalDual, distance, extrapolated, ratio, total_gap
from recon.quantitative.regularisers import Tensors
from recon.quantitative.slices import SliceData


@dataclass(frozen=True, eq=False)
class HostProblem:
    """A `Linearisation` on the host, with its metric.

    Attributes:
        arrays: origin `[component, *voxels]`, slope, curvature, eigenvalues and vectors (`linearised.spectrum`), and where the data
            are not pointwise the columns of J.
        lower, upper: bounds of each unknown `[unknown]`.
        strongest, squares: `linearised.moments` of the eigenvalues.
    """

    arrays: list[np.ndarray]
    lower: np.ndarray
    upper: np.ndarray
    strongest: float
    squares: float


@dataclass(frozen=True)
class BlockSolution:
    """Primal-dual gap before the first iteration and after the last, their number, and R of the solution."""

    first: float
    last: float
    iterations: int
    regularisation: float


class Halves:
    """The two halves of an iteration and the gap, as graphs of one block: all that does not depend on the data, so that fits share it.

    Args:
        solver: whose iterations they are.
        gram: see `SliceData`.
        compiled: by XLA.
    """

    def __init__(self, solver: PrimalDual, gram: Callable[..., Any] | None, compiled: bool) -> None:

        self.solver, self.gram = solver, gram
        self.primal, self.dual, self.gap = (graph(one, compiled) for one in (self._primal, self._dual, self._gap))

    def _iteration(self, arrays: Tensors, operands: Tensors, scalars: tuple[Any, ...]) -> Iteration:
        origin, slope, curvature, values, vectors, *columns = arrays
        *three, lower, upper = scalars
        given = (origin, columns[0] if columns else None, slope, curvature, lower, upper, values, vectors)
        gram = self.gram
        bound: Callable[[Any], Any] | None = None if gram is None else (lambda x: gram(x, *operands))
        return Iteration(self.solver, given, tuple(three), bound)

    def _primal(self, given: Any, scalars: tuple[Any, ...], tau: Any) -> Tensors:
        arrays, operands, x, back = given
        return self._iteration(arrays, operands, scalars).primal(tuple(x), tuple(back), tau)

    def _dual(self, given: Any, scalars: tuple[Any, ...], tau: Any, trial: Any, offset: Any) -> Any:
        """Dual variables and K^T of them on the block's own slices, and the squared norms of their changes there.

        At a cut the outermost slices lack a neighbour: of K x one is wrong, which makes K^T y wrong in one more.
        """
        import tensorflow as tf

        moved, x, y, back = (tuple(part) for part in given)
        step = Iteration(self.solver, (moved[0], *[None] * 7), scalars, None)
        # K of the extrapolation instead of the extrapolation of two K: less memory.
        dual = step.dual(step.forward(extrapolated(moved, x, trial / tau)), y, trial)
        pulled = step.adjoint(moved, dual)
        width = back[0].shape[-3]
        own, before, pulled = (tuple(_cut(one, offset, width) for one in part) for part in (dual, y, pulled))
        return own, pulled, tf.stack([distance(pulled, back), distance(own, before)])

    def _gap(self, given: Any, scalars: tuple[Any, ...], offset: Any, width: int) -> Any:
        arrays, operands, y, back, x = given
        step = self._iteration(arrays, operands, scalars)
        image = step.forward(tuple(x))
        own, kx = (tuple(_cut(one, offset, width) for one in part) for part in (x, image))
        return step.gap_terms(own, kx, tuple(y), tuple(back))


class BlockPrimalDual:
    """State of the iterations, and their passes over the volume.

    Args:
        halves: of an iteration.
        data: on the host.
        lanes: that move blocks.
        spans: the blocks.
        volumes: makes the arrays.

    Attributes:
        x, y: unknowns and fields, dual variables `[..., slice, y, x]`, as in `linearised.Solution`.
    """

    def __init__(self, halves: Halves, data: SliceData, lanes: Lanes, spans: Sequence[Span], volumes: Volumes) -> None:
        import tensorflow as tf

        solver = halves.solver
        self.solver, self.halves, self.data, self.lanes, self.spans, self.volumes = solver, halves, data, lanes, spans, volumes
        self.real = data.rhs.real.dtype
        slices, *plane = data.voxels
        u = tf.zeros([len(solver.components), 1, *plane], self.real)
        x = (u, *solver.regulariser.fields(u))

        def zeros(parts: Tensors) -> list[np.ndarray]:
            return [volumes.zeros([*part.shape[:-3], slices, *plane], self.real) for part in parts]

        self.x, self.back, self._moved, self._pulled = zeros(x), zeros(x), zeros(x), zeros(x)
        image = solver.regulariser.forward(x)
        self.y, self._ahead = zeros(image), zeros(image)

    def solve(self, problem: HostProblem, gamma: float, delta: float, iterations: int, reference: float | None = None) -> BlockSolution:
        """Iterate from x and y; see `PrimalDual.solve`."""
        import tensorflow as tf

        settings, real = self.solver.settings, self.real.type
        beta = real(settings.beta or ratio(*(tf.constant(one, tf.float64) for one in (problem.strongest, problem.squares))).numpy())
        scalars = (real(gamma), real(1 / delta), beta)
        # As in `PrimalDual`.
        tau = real(1 / np.sqrt(beta * 12)) if self.y else real(np.inf)
        theta = real(1)
        first, value = self._gap_of(problem, scalars)
        unit = first if reference is None else reference
        last, count, history = first, 0, [np.inf] * HISTORY
        moving = True
        while moving and count < iterations:
            for _ in range(min(iterations - count, settings.check)):
                tau, theta = self._advance(problem, scalars, tau, theta)
                count += 1
            now, value = self._gap_of(problem, scalars)
            history = [*history[1:], now]
            older, newer = np.mean(history[: HISTORY // 2]), np.mean(history[HISTORY // 2 :])
            still = abs(now - last) < settings.rtol * unit or now < settings.atol * unit
            moving = not (still or (np.isfinite(older) and abs(older - newer) < settings.stag * newer))
            last = now
        return BlockSolution(first, last, count, value)

    def _advance(self, problem: HostProblem, scalars: tuple[Any, ...], tau: Any, theta: Any) -> tuple[Any, Any]:
        """One iteration; the step it took, and its quotient to the one before."""
        self._primal_pass(problem, (*scalars, problem.lower, problem.upper), tau)
        if not self.y:
            self.x, self._moved = self._moved, self.x
            return tau, theta
        trial = self.real.type(tau * np.sqrt(1 + theta))
        for _ in range(TRIALS):
            pulled, change = self._dual_pass(scalars, tau, trial)
            if not np.sqrt(scalars[2]) * trial * np.sqrt(pulled) > SAFETY * np.sqrt(change):
                break
            trial = self.real.type(SHRINK * trial)
        self.x, self._moved = self._moved, self.x
        self.y, self._ahead = self._ahead, self.y
        self.back, self._pulled = self._pulled, self.back
        return trial, self.real.type(trial / tau)

    # -- passes over the volume --------------------------------------------------------------------------------------

    def _primal_pass(self, problem: HostProblem, scalars: tuple[Any, ...], tau: Any) -> None:
        def gather(span: Span) -> Any:
            return [[span.own(one) for one in part] for part in (problem.arrays, self.data.operands, self.x, self.back)]

        def compute(span: Span, given: Any) -> Any:
            return list(self.halves.primal(given, scalars, tau)), ()

        self.lanes.sweep(self.spans, gather, compute, self._release, lambda span: [span.own(one) for one in self._moved])

    def _dual_pass(self, scalars: tuple[Any, ...], tau: Any, trial: Any) -> tuple[float, float]:
        """|K^T (y' - y)|^2 and |y' - y|^2."""

        def gather(span: Span) -> Any:
            return [*([span.wide(one) for one in part] for part in (self._moved, self.x, self.y)), [span.own(one) for one in self.back]]

        def compute(span: Span, given: Any) -> Any:
            dual, pulled, norms = self.halves.dual(given, scalars, tau, trial, np.int32(span.first - span.start))
            return [*dual, *pulled], norms

        kept = [*self._ahead, *self._pulled]
        pulled, change = sum(self.lanes.sweep(self.spans, gather, compute, self._release, lambda span: [span.own(one) for one in kept]))
        return pulled, change

    def _gap_of(self, problem: HostProblem, scalars: tuple[Any, ...]) -> tuple[float, float]:
        """The gap, and R."""

        def gather(span: Span) -> Any:
            own = [[span.own(one) for one in part] for part in (problem.arrays, self.data.operands, self.y, self.back)]
            return [*own, [span.wide(one) for one in self.x]]

        def compute(span: Span, given: Any) -> Any:
            limits = (*scalars, problem.lower, problem.upper)
            return [], self.halves.gap(given, limits, np.int32(span.first - span.start), span.width)

        parts = self.lanes.sweep(self.spans, gather, compute, self._release)
        sums = sum(one for one, _ in parts)
        sizes = reduce(np.maximum, (one for _, one in parts))
        return float(total_gap(sums, sizes, float(scalars[0]))), float(sums[1])

    def _release(self, _: Span, __: list[np.ndarray]) -> None:
        self.volumes.release()


def _cut(tensor: Any, offset: Any, width: int) -> Any:
    """Slices `[..., offset : offset + width, y, x]`."""
    import tensorflow as tf

    # XLA would compile `tf.slice` anew for each offset.
    return tf.gather(tensor, offset + tf.range(width), axis=-3)
