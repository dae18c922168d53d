"""The fit of `recon.quantitative.irgn` to volumes in blocks of slices, for what does not fit into a device's memory.

The same Gauss-Newton steps: scales, norms and costs are those of the whole volume, only the arrays travel.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from recon import device
from recon.arrays import real_dtype
from recon.cache import Cache
from recon.quantitative.block_passes import passes
from recon.quantitative.block_replicas import BlockReplicas, Ended
from recon.quantitative.blocks import BlockPrimalDual, Halves, HostProblem
from recon.quantitative.graphs import graph
from recon.quantitative.irgn import DERIVATIVE, ENERGY, SLICE, RegularisedFit, Step, settled, start_values
from recon.quantitative.lanes import Blocks, Lanes, Span, Volumes
from recon.quantitative.linearised import PrimalDual
from recon.quantitative.model import ModelError, SignalModel
from recon.quantitative.pixelwise import COMPILED, fit_pixelwise
from recon.quantitative.real_unknowns import Components
from recon.quantitative.regularisers import JointWavelet, build
from recon.quantitative.settings import Settings
from recon.quantitative.slices import SliceData
from recon.solvers import conjugate_gradient

_IMAGE_ITERATIONS = 12
"""Of conjugate gradients for the start images, as `DataTerm.images` does."""
_halves: Cache[Halves] = Cache(4)
"""Graphs outlive a fit."""


def fit_blocks(
    model: SignalModel,
    data: SliceData,
    settings: Settings,
    blocks: Blocks,
    weights: np.ndarray | None = None,
    start: np.ndarray | None = None,
    callback: Callable[[Step], None] = lambda step: None,
) -> RegularisedFit:
    """Fit maps to data, regularised, a block of slices after another: `irgn.fit` to rounding.

    Args:
        model: with as many contrasts as the data.
        data: of slices that were encoded each by itself.
        settings: see there; regularisation by wavelets, which span the volume, is not possible.
        blocks: how to cut the volume.
        weights, start, callback: see `irgn.fit`.

    Raises:
        ModelError: the model does not fit the data, or the regularisation the blocks.
        ValueError: weights of another length.
    """
    with blocks.lanes() as lanes:
        return BlockFit(model, data, settings, blocks, lanes, weights, start).run(callback)


class BlockFit:
    """State and scales of one fit; see `irgn._Fit`."""

    def __init__(
        self,
        model: SignalModel,
        data: SliceData,
        settings: Settings,
        blocks: Blocks,
        lanes: Lanes,
        weights: np.ndarray | None,
        start: np.ndarray | None,
    ) -> None:
        if len(data.rhs) != model.contrasts:
            raise ModelError(f"{model.name} has {model.contrasts} contrasts, the data {len(data.rhs)}")
        self.settings, self.data, self.lanes = settings, data, lanes
        self.volumes, self.spans = Volumes(blocks.folder), blocks.spans(data.voxels[0])
        self.dtype, self.real = data.rhs.dtype, real_dtype(data.rhs.dtype)
        images = self.images(data.rhs)
        self.scale = float(np.abs(images).max())
        if not self.scale > 0:
            raise ModelError(f"{model.name}: the data are zero everywhere")
        self.physical = model.adapted(images)
        self.model = self.physical.scaled(1 / self.scale)
        self.units = np.array([self.scale if u.amplitude else 1.0 for u in model.unknowns], self.real).reshape(-1, 1, 1, 1)
        self.parameters = ((self._start(images) if start is None else start) / self.units).astype(self.dtype)
        del images
        self.components = Components(model)
        flags = [unknown.real for unknown in model.unknowns]
        own = np.array([unknown.weight for unknown in model.unknowns]) if weights is None else np.asarray(weights, float)
        if own.shape != (len(model.unknowns),):
            raise ValueError(f"weights of shape {own.shape} for {len(model.unknowns)} unknowns")
        regulariser = build(settings, data.voxels, flags)
        if isinstance(regulariser, JointWavelet):
            raise ModelError("wavelet coefficients belong to the whole volume: choose TV or TGV, or fit without block_slices")
        rows = tuple(own[n] for n, _ in self.components.table)
        large = blocks.slices * int(np.prod(data.voxels[1:])) > COMPILED
        compiled = data.graph and (device.use_gpu() or large if blocks.compiled is None else blocks.compiled)

        def make() -> Halves:
            return Halves(PrimalDual(self.components, flags, regulariser, None, rows, settings, compiled), data.gram, compiled)

        # Gram operators outside TensorFlow hold on to their plans: nothing to be kept after the fit.
        key = (tuple(self.components.table), tuple(flags), rows, data.voxels, data.gram, compiled, settings.without_schedule())
        halves = _halves.get(key, make) if data.graph else make()
        self.iterations = BlockPrimalDual(halves, data, lanes, self.spans, self.volumes)
        shares = data.rhs[0].size / SLICE
        self.energy = ENERGY * shares / data.energy
        self.norm = DERIVATIVE * np.sqrt(shares / len(model.unknowns))
        self.fields = {name: _spread(values, data.voxels) for name, values in self.model.fields.items()}
        self.arrays: list[np.ndarray] = []
        self.passes = passes(self.model, data, settings)
        self.numbers = self.real.type(self.scale), self.real.type(self.energy)

    def run(self, callback: Callable[[Step], None]) -> RegularisedFit:
        settings = self.settings
        cost, norms = self._evaluate()
        steps = [Step(0, settings.max_gn_it, cost, 0.0, 1.0, 0, 0.0, self._physical())]
        callback(steps[0])
        reference: float | None = None
        for number in range(settings.max_gn_it):
            clock = time.perf_counter()
            gamma, delta, iterations = settings.at(number)
            problem, scales = self._linearise(norms)
            self.lanes.reset()
            self.iterations.x[0][...] = problem.arrays[0]
            solution = self.iterations.solve(problem, gamma, delta, iterations, reference)
            reference = solution.first if reference is None else reference
            times = replace(self.lanes.times)
            self._join(scales)
            cost, norms = self._evaluate()
            step = Step(
                number + 1,
                settings.max_gn_it,
                cost,
                gamma * solution.regularisation,
                solution.last / reference if reference else 0.0,
                solution.iterations,
                time.perf_counter() - clock,
                self._physical(),
                times,
            )
            steps.append(step)
            callback(step)
            if number and abs(steps[-2].cost - step.cost) < settings.rtol * steps[0].cost:
                break
        spread = self._covariance(cost)
        if settings.replicas and self.iterations.y and self.data.noise is not None:
            level = float(np.sqrt(2 * cost / self.energy / self.data.samples))
            replicas = BlockReplicas(self, Ended(problem, gamma, delta, reference or 0.0, scales), spread, level)
            spread = replicas.covariance(sum(step.iterations for step in steps))
        return RegularisedFit(self.physical, steps[-1].parameters, spread, tuple(steps))

    # -- passes over the volume --------------------------------------------------------------------------------------

    def images(self, rhs: np.ndarray) -> np.ndarray:
        """Least-squares images of data `rhs`, as `DataTerm.images`."""
        data = self.data
        if data.pointwise:
            images = self.volumes.zeros(rhs.shape, self.dtype)
            bound = np.broadcast_to(data.bound, rhs.shape)
            np.divide(rhs, bound, out=images, where=bound > 0)
            return images

        def apply(x: np.ndarray) -> np.ndarray:
            result = np.empty_like(x)

            def store(span: Span, parts: list[np.ndarray]) -> None:
                result[:, span.first : span.last] = parts[0]

            def gather(span: Span) -> Any:
                return span.own(x), [span.own(one) for one in data.operands]

            self.lanes.sweep(self.spans, gather, lambda span, given: ([self._gram(*given)], ()), store)
            return result

        images = conjugate_gradient(apply, rhs, _IMAGE_ITERATIONS)
        return np.asarray(images, self.dtype)

    @cached_property
    def _gram(self) -> Any:
        gram = self.data.gram
        assert gram is not None
        return graph(lambda x, operands: gram(x, *operands))

    def _start(self, images: np.ndarray) -> np.ndarray:
        """`irgn.start_values`, by blocks."""
        if self.physical.fields:
            # Each part of a model with inputs of its own would be a graph of its own.
            return start_values(self.physical, images)
        parameters = np.empty((len(self.units), *self.data.voxels), self.dtype)
        deviation = np.empty(parameters.shape, self.real)
        for span in self.spans:
            part = span.own(images)
            found = fit_pixelwise(self.physical, part, np.ones(part.shape[1:], bool), scale=self.scale)
            parameters[:, span.first : span.last], deviation[:, span.first : span.last] = found.parameters, found.deviation
            self.volumes.release()
        return settled(self.physical, images, parameters, deviation)

    def _evaluate(self) -> tuple[float, np.ndarray]:
        """Moves the parameters within their bounds; cost of the data there, and the norms of the derivatives `[unknown]`."""

        def store(span: Span, results: list[np.ndarray]) -> None:
            self.parameters[:, span.first : span.last] = results[0]
            self.volumes.release()

        def compute(span: Span, given: Any) -> Any:
            return self.passes.evaluate(given, self.numbers[0])

        totals: list[Any] = self.lanes.sweep(self.spans, self._gather, compute, store)
        norms = np.sqrt(np.sum([one for one, _ in totals], 0))
        cost = 0.5 * self.energy * (float(sum(one for _, one in totals)) + self.data.energy)
        return cost, norms

    def _linearise(self, norms: np.ndarray) -> tuple[HostProblem, np.ndarray]:
        """The problem around the parameters, and the scale of each unknown."""
        scales = np.where(norms > 0, self.norm / np.where(norms > 0, norms, 1) / np.sqrt(self.energy) / self.scale, 1.0)
        rows = np.array([scales[n] for n, _ in self.components.table], self.real).reshape(-1, 1, 1, 1)

        def store(span: Span, results: list[np.ndarray]) -> None:
            if not self.arrays:
                shapes = [(*one.shape[:-3], *self.data.voxels) for one in results]
                self.arrays = [self.volumes.zeros(shape, one.dtype) for shape, one in zip(shapes, results, strict=True)]
            for array, result in zip(self.arrays, results, strict=True):
                array[..., span.first : span.last, :, :] = result
            self.volumes.release()

        totals = self.lanes.sweep(self.spans, self._gather, lambda span, given: self.passes.linearise(given, rows, *self.numbers), store)
        strongest, energies, largest = np.transpose(totals)
        if not self.settings.precond:
            # One number for all voxels: each block knew only its own.
            self.arrays[3][...] = largest.max()
            strongest, energies = largest.max() * self.data.rhs[0].size, largest.max() ** 2 * self.data.rhs[0].size
        lower, upper = (np.array([getattr(u, name) for u in self.model.unknowns] / scales, self.real) for name in ("lower", "upper"))
        return HostProblem(self.arrays, lower, upper, float(np.sum(strongest)), float(np.sum(energies))), scales

    def _covariance(self, cost: float) -> np.ndarray:
        """As in `irgn.fit`: `[unknown, unknown, *voxels]`, in the units of the data."""
        count = len(self.units)
        result = np.empty((count, count, *self.data.voxels), self.real)
        variance = self.real.type(2 * cost / self.energy / self.scale**2 / (2 * self.data.samples))

        def store(span: Span, results: list[np.ndarray]) -> None:
            result[:, :, span.first : span.last] = results[0] * self.units[:, None] * self.units[None]

        self.lanes.sweep(self.spans, self._gather, lambda span, given: ([self.passes.covariance(given, variance)], ()), store)
        return result

    def _gather(self, span: Span) -> Any:
        data = self.data
        fields = {name: span.own(values) for name, values in self.fields.items()}
        arrays = [span.own(one) for one in (self.parameters, data.rhs, data.bound, data.diagonal)]
        return arrays, fields, [span.own(one) for one in data.operands]

    # -- the rest ----------------------------------------------------------------------------------------------------

    def _join(self, scales: np.ndarray) -> None:
        """The parameters from scaled components, see `Components.join`."""
        for row, (n, part) in enumerate(self.components.table):
            target = self.parameters[n].imag if part else self.parameters[n].real
            np.multiply(self.iterations.x[0][row], self.real.type(scales[n]), out=target)

    def _physical(self) -> np.ndarray:
        values: np.ndarray = self.parameters * self.units
        return values


def _spread(values: np.ndarray, voxels: tuple[int, ...]) -> np.ndarray:
    """A per-voxel input, or one that is alike in some direction, on all voxels: `[..., *voxels]`."""
    values = np.asarray(values)
    leading = values.shape[: max(0, values.ndim - len(voxels))]
    return np.broadcast_to(values, (*leading, *voxels))
