"""Standard deviations of maps that were fitted in blocks of slices: `recon.quantitative.replicas`, with the volume on the host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from recon.quantitative import replicas
from recon.quantitative.blocks import HostProblem
from recon.quantitative.irgn import vague
from recon.quantitative.lanes import Span

if TYPE_CHECKING:
    from recon.quantitative.block_fit import BlockFit


@dataclass(frozen=True, eq=False)
class Ended:
    """The last linearised problem of a fit, as it was given to `BlockPrimalDual.solve`, and the scale of each unknown in it."""

    problem: HostProblem
    gamma: float
    delta: float
    reference: float
    scales: np.ndarray


class BlockReplicas:
    """The last problem of a fit, solved again for other noise.

    Args:
        fit: where it ended.
        ended: its last problem.
        bound: covariance without regularisation, `[unknown, unknown, *voxels]`.
        level: standard deviation of the noise, in the units of the data.
    """

    def __init__(self, fit: BlockFit, ended: Ended, bound: np.ndarray, level: float) -> None:
        self.fit, self.ended, self.bound, self.level = fit, ended, bound, level
        self.rows = np.array([ended.scales[n] for n, _ in fit.components.table], fit.real).reshape(-1, 1, 1, 1)
        state = fit.iterations
        zeros = fit.volumes.zeros
        self.kept = [[zeros(one.shape, one.dtype) for one in part] for part in (state.x, state.y, state.back)]
        for span in fit.spans:
            for part, ours in zip((state.x, state.y, state.back), self.kept, strict=True):
                self._copy(span, part, ours)
        found = self.kept[0][0]
        self.slope, self.shift = zeros(found.shape, fit.real), zeros(found.shape, fit.real)
        self.noise = zeros(fit.data.rhs.shape, fit.dtype)
        # From below and from above.
        self.solutions = zeros((2, fit.settings.replicas, *found.shape), fit.real)

    def covariance(self, iterations: int) -> np.ndarray:
        """The covariance of `replicas.scattered`, of a fit that took so many inner iterations."""
        fit, ended = self.fit, self.ended
        each = replicas.iterations(iterations, fit.settings.replicas)
        origin, _, *others = ended.problem.arrays
        problem = replace(ended.problem, arrays=[origin, self.slope, *others])
        random = np.random.default_rng(0)
        for number in range(fit.settings.replicas):
            self._draw(random)
            for solutions, share in zip(self.solutions, (0.0, replicas.ABOVE), strict=True):
                self._restart(share)
                fit.iterations.solve(problem, ended.gamma, ended.delta, each, ended.reference)
                for span in fit.spans:
                    self._copy(span, fit.iterations.x[:1], [solutions[number]])
        return self._scattered()

    def _draw(self, random: np.random.Generator) -> None:
        """Noise, the problem's gradient with it, and how far it moves an unregularised fit."""
        fit, data = self.fit, self.fit.data
        assert data.noise is not None
        data.noise(random, self.noise)
        for contrast in self.noise:
            contrast *= fit.real.type(self.level)
        drawn = [self.noise] if data.pointwise else [self.noise, fit.images(self.noise)]
        origin, _, curvature, _, _, *columns = self.ended.problem.arrays

        def gather(span: Span) -> Any:
            arrays = [span.own(one) for one in (origin, curvature, self.kept[0][0], fit.parameters, data.bound)]
            fields = {name: span.own(values) for name, values in fit.fields.items()}
            parts = ([span.own(one) for one in part] for part in (columns, drawn, data.operands))
            return arrays, self._vague(span), fields, *parts

        def store(span: Span, results: list[np.ndarray]) -> None:
            self.slope[:, span.first : span.last], self.shift[:, span.first : span.last] = results
            fit.volumes.release()

        fit.lanes.sweep(fit.spans, gather, lambda span, given: (fit.passes.redraw(given, self.rows, *fit.numbers), ()), store)

    def _vague(self, span: Span) -> np.ndarray:
        """Components that an unregularised fit of a block would leave undetermined, bool `[component, *voxels]`."""
        fit = self.fit
        with np.errstate(invalid="ignore"):
            deviation = np.sqrt(np.einsum("uu...->u...", span.own(self.bound)))
        unsure = vague(fit.model, span.own(fit.parameters) * fit.units, deviation)
        return np.stack([unsure[n] for n, _ in fit.components.table])

    def _restart(self, share: float) -> None:
        """Where the fit ended, its unknowns moved by a share of the shift."""
        fit, state = self.fit, self.fit.iterations
        for span in fit.spans:
            for part, ours in zip((state.x, state.y, state.back), self.kept, strict=True):
                self._copy(span, ours, part)
            if share:
                state.x[0][:, span.first : span.last] += fit.real.type(share) * span.own(self.shift)
                fit.volumes.release()

    def _copy(self, span: Span, source: Sequence[np.ndarray], target: Sequence[np.ndarray]) -> None:
        for one, other in zip(source, target, strict=True):
            other[..., span.first : span.last, :, :] = span.own(one)
        self.fit.volumes.release()

    def _scattered(self) -> np.ndarray:
        """Of the solutions, a block with as many neighbours as the average over the neighbourhood reaches."""
        fit = self.fit
        result = np.empty_like(self.bound)
        amplitudes = [n for n, unknown in enumerate(fit.model.unknowns) if unknown.amplitude]
        for span in fit.spans:
            first, last = max(span.first - replicas.REACH, 0), span.last + replicas.REACH
            below, above = (np.stack([self._physical(one[:, first:last]) for one in side]) for side in self.solutions)
            found = fit.parameters[:, first:last] * fit.units
            part = replicas.scattered(found, below, above, self.bound[:, :, first:last], amplitudes)
            result[:, :, span.first : span.last] = part[:, :, span.first - first : span.last - first]
            fit.volumes.release()
        return result

    def _physical(self, components: np.ndarray) -> np.ndarray:
        """Unknowns in the units of the data, from scaled components."""
        import tensorflow as tf

        with tf.device("CPU:0"):
            parameters = self.fit.model.constrain(self.fit.components.join(tf.constant(components * self.rows)))
        values: np.ndarray = parameters.numpy() * self.fit.units
        return values
