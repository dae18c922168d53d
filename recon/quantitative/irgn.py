"""Model-based reconstruction: maps fitted to the measured data themselves, by iteratively regularised Gauss-Newton steps.

Maier et al., Magn. Reson. Med. 81 (2019) 2055 and J. Open Source Softw. 5 (2020) 2727 (PyQMRI). Started from a pixel-wise fit of the
least-squares images, a few steps are enough.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from recon import device
from recon.arrays import real_dtype
from recon.cache import Cache
from recon.quantitative import replicas
from recon.quantitative.data_term import DataTerm, as_shared
from recon.quantitative.graphs import graph
from recon.quantitative.lanes import Blocks, Times
from recon.quantitative.linearised import Linearisation, PrimalDual, total
from recon.quantitative.model import Map, ModelError, SignalModel
from recon.quantitative.pixelwise import BATCH, COMPILED, fit_pixelwise, flat_fields, map_deviations, with_fields
from recon.quantitative.real_unknowns import Components, covariance, gradient, normal_matrix
from recon.quantitative.regularisers import build
from recon.quantitative.replicas import Solved
from recon.quantitative.settings import Settings
from recon.quantitative.slices import SliceData, of_term

ENERGY, DERIVATIVE, SLICE = 2000.0, 100.0, 256**2
"""Energy of the scaled data of a slice, and norm of the partial derivatives together: PyQMRI's numbers, which it uses for slices of
any size; here they are those of so many voxels, so that the weights of the regularisation mean the same for all matrices."""

_SIGNAL = 4.0
"""Amplitudes of fewer standard deviations are taken for noise."""


@dataclass(frozen=True, eq=False)
class Step:
    """A Gauss-Newton step, for progress bars.

    Attributes:
        number: of the step, from 1; of `total` at most. 0 for the start values.
        data_cost: |A(u) - d|^2 / 2 of the scaled data.
        regularisation_cost: gamma / lambda R(u).
        gap: primal-dual gap of the convex problem after its last inner iteration, as a fraction of the very first.
        iterations: inner ones.
        seconds: wall time of the step.
        parameters: unknowns after it, complex `[unknown, *voxels]`, amplitudes in the units of the data.
        times: of a fit in blocks, where the time of the inner iterations went: copies between host and device, computation, waiting.
    """

    number: int
    total: int
    data_cost: float
    regularisation_cost: float
    gap: float
    iterations: int
    seconds: float
    parameters: np.ndarray
    times: Times | None = None

    @property
    def cost(self) -> float:
        """Data and regularisation together."""
        return self.data_cost + self.regularisation_cost


@dataclass(frozen=True, eq=False)
class RegularisedFit:
    """Result of `fit`.

    Attributes:
        model: that was fitted.
        parameters: unknowns, complex `[unknown, *voxels]`; amplitudes in the units of the data.
        covariance: as in `PixelwiseFit`: what noise of the residual's level does to the maps (`recon.quantitative.replicas`), not how
            far regularisation leads them from the truth. Without replicas (`Settings.replicas` 0, no regularisation, data whose
            noise cannot be drawn), from each voxel's own Jacobian: what the noise would do without regularisation and aliasing,
            several times as much.
        steps: what was reported, the start values first.
    """

    model: SignalModel
    parameters: np.ndarray
    covariance: np.ndarray
    steps: tuple[Step, ...]

    @property
    def deviation(self) -> np.ndarray:
        """Standard deviations of the unknowns, real `[unknown, *voxels]`."""
        deviation: np.ndarray = np.sqrt(np.einsum("uu...->u...", self.covariance))
        return deviation

    def maps(self) -> dict[str, Map]:
        """The model's maps, each followed by its standard deviation, `<name>_sd`."""
        values, errors = self.model.maps(self.parameters), map_deviations(self.model, self.parameters, self.covariance)
        return {key: one for name in values for key, one in ((name, values[name]), (f"{name}_sd", errors[name]))}


def fit(
    model: SignalModel,
    term: DataTerm | SliceData,
    settings: Settings | None = None,
    weights: np.ndarray | None = None,
    start: np.ndarray | None = None,
    callback: Callable[[Step], None] | None = None,
    block_slices: int | Blocks | None = None,
) -> RegularisedFit:
    """Fit maps to data, regularised.

    Args:
        model: with as many contrasts as the data.
        term: the data, see `recon.quantitative.data_term`, or on the host `recon.quantitative.slices`; their precision is that of the fit.
        settings: None for the defaults.
        weights: of the unknowns' regularisation, `[unknown]`; None for those of the model.
        start: start values, complex `[unknown, *voxels]`, amplitudes in the units of the data; None for a pixel-wise fit of the
            least-squares images.
        callback: called with the start values and after each step.
        block_slices: slices that a device holds at a time, for volumes `[slice, y, x]` larger than its memory; None for all.

    Raises:
        ModelError: the model does not fit the data; with blocks, data or a regularisation that cannot be cut into slices.
        ValueError: weights of another length.
    """
    if block_slices is not None:
        from recon.quantitative.block_fit import fit_blocks

        blocks = block_slices if isinstance(block_slices, Blocks) else Blocks(block_slices)
        data = of_term(term) if isinstance(term, DataTerm) else term
        return fit_blocks(model, data, settings or Settings(), blocks, weights, start, callback or (lambda step: None))
    term = term if isinstance(term, DataTerm) else term.whole()
    return _Fit(model, term, settings or Settings(), weights, start).run(callback or (lambda step: None))


class _Fit:
    """State and scales of one fit. Data are scaled to a largest image magnitude of 1, in which models state their bounds."""

    def __init__(
        self, model: SignalModel, term: DataTerm, settings: Settings, weights: np.ndarray | None, start: np.ndarray | None
    ) -> None:
        if term.rhs.shape[0] != model.contrasts:
            raise ModelError(f"{model.name} has {model.contrasts} contrasts, the data {term.rhs.shape[0]}")
        self.settings, self.term = settings, term
        images = term.images().numpy()
        self.scale = float(np.abs(images).max())
        if not self.scale > 0:
            raise ModelError(f"{model.name}: the data are zero everywhere")
        self.physical = model.adapted(images)
        self.model = self.physical.scaled(1 / self.scale)
        self.units = np.array([self.scale if u.amplitude else 1.0 for u in model.unknowns]).reshape(-1, *[1] * (images.ndim - 1))
        if start is None:
            start = start_values(self.physical, images)
        self.start = (start / self.units).astype(images.dtype)
        self.components = Components(model)
        self.real = [unknown.real for unknown in model.unknowns]
        own = np.array([unknown.weight for unknown in model.unknowns]) if weights is None else np.asarray(weights, float)
        if own.shape != (len(model.unknowns),):
            raise ValueError(f"weights of shape {own.shape} for {len(model.unknowns)} unknowns")
        self.operands = () if term.pointwise else as_shared(term.gram).operands
        self.solver = _solver(self.components, self.real, tuple(own[n] for n, _ in self.components.table), term, images, settings)
        slices = images[0].size / SLICE
        self.energy = ENERGY * slices / term.energy
        self.norm = DERIVATIVE * np.sqrt(slices / len(model.unknowns))

    def run(self, callback: Callable[[Step], None]) -> RegularisedFit:
        import tensorflow as tf

        settings, clock = self.settings, time.perf_counter()
        parameters = self.model.constrain(tf.constant(self.start))
        steps = [Step(0, settings.max_gn_it, self._data_cost(parameters), 0.0, 1.0, 0, 0.0, self._physical(parameters))]
        callback(steps[0])
        reference: float | None = None
        x: tuple[Any, ...] = ()
        y: tuple[Any, ...] = ()
        for number in range(settings.max_gn_it):
            clock = time.perf_counter()
            gamma, delta, iterations = settings.at(number)
            problem, scales = self._linearise(parameters)
            # Fields and dual variables go on from step to step: the scales change little.
            x, y = ((problem.origin, *x[1:]), y) if number else self.solver.start(problem.origin)
            solution = self.solver.solve(problem, x, y, gamma, delta, iterations, reference, self.operands)
            reference = solution.first if reference is None else reference
            x, y = solution.x, solution.y
            parameters = self.model.constrain(self.components.join(x[0] * self._rows(scales)))
            cost = gamma * self.solver.regularisation(x)
            step = Step(
                number + 1,
                settings.max_gn_it,
                self._data_cost(parameters),
                cost,
                solution.last / reference if reference else 0.0,
                solution.iterations,
                time.perf_counter() - clock,
                self._physical(parameters),
            )
            steps.append(step)
            callback(step)
            if number and abs(steps[-2].cost - step.cost) < settings.rtol * steps[0].cost:
                break
        spread = self._covariance(parameters)
        if settings.replicas and self.solver.regulariser.radii and self.term.noise is not None:
            solved = Solved(self.solver, self.operands, problem, gamma, delta, reference or 0.0, solution)
            spread = self._scattered(solved, parameters, scales, spread, sum(step.iterations for step in steps))
        return RegularisedFit(self.physical, steps[-1].parameters, spread, tuple(steps))

    def _scattered(self, solved: Solved, parameters: Any, scales: np.ndarray, bound: np.ndarray, iterations: int) -> np.ndarray:
        """The covariance of `replicas.scattered`, of a fit that took so many iterations."""
        import tensorflow as tf

        rows, found = self._rows(scales), self._physical(parameters)
        unsure = vague(self.model, found, np.sqrt(np.einsum("uu...->u...", bound)))
        chosen = tf.constant(np.stack([unsure[n] for n, _ in self.components.table]))
        level = float(np.sqrt(2 * self._data_cost(parameters) / self.energy / self.term.samples))
        columns = [column * self.scale for column in self._columns(self._derivatives(parameters)[1], rows)]
        count = self.settings.replicas
        each = replicas.iterations(iterations, count)
        both = replicas.redrawn(solved, self.term, columns, self.energy, level, chosen, count, each)
        below, above = (
            np.stack([self._physical(self.model.constrain(self.components.join(one * rows))) for one in tf.unstack(every)])
            for every in both
        )
        amplitudes = [n for n, unknown in enumerate(self.model.unknowns) if unknown.amplitude]
        return replicas.scattered(found, below, above, bound, amplitudes)

    def _columns(self, jacobian: Any, rows: Any) -> list[Any]:
        """Of the scaled components, see `Components.columns`."""
        import tensorflow as tf

        return [column * tf.cast(row, column.dtype) for column, row in zip(self.components.columns(jacobian), rows, strict=True)]

    def _linearise(self, parameters: Any) -> tuple[Linearisation, np.ndarray]:
        """The problem around these unknowns, and the scale of each: how much of it is 1."""
        import tensorflow as tf

        signal, jacobian, norms = self._derivatives(parameters)
        norms = norms.numpy()
        scales = np.where(norms > 0, self.norm / np.where(norms > 0, norms, 1) / np.sqrt(self.energy) / self.scale, 1.0)
        pulled = self.scale * (self.scale * self.term.gram(signal) - self.term.rhs)
        rows = self._rows(scales)
        columns = self._columns(jacobian, rows)
        factor = tf.constant(self.energy, rows.dtype)
        slope = factor * gradient(columns, pulled)
        curvature = factor * self.scale**2 * normal_matrix(columns, self.term.bound)
        real = rows.dtype
        root = tf.cast(tf.sqrt(tf.constant(self.energy * self.scale**2, real)), columns[0].dtype)
        return (
            Linearisation(
                self.components.split(parameters) / rows,
                None if self.term.pointwise else tf.stack(columns) * root,
                slope,
                curvature,
                tf.constant([u.lower for u in self.model.unknowns] / scales, real),
                tf.constant([u.upper for u in self.model.unknowns] / scales, real),
            ),
            scales,
        )

    @cached_property
    def _derivatives(self) -> Callable[[Any], tuple[Any, Any, Any]]:
        import tensorflow as tf

        model = with_fields(self.model, {})

        def run(parameters: Any, fields: dict[str, Any]) -> tuple[Any, Any, Any]:
            signal, jacobian = with_fields(model, fields).jacobian(parameters)
            return signal, jacobian, tf.sqrt(squares(jacobian))

        fields = {name: tf.constant(field) for name, field in self.model.fields.items()}
        program = _programs.get((self.model.structure(), self.start.shape), lambda: graph(run))
        return lambda parameters: program(parameters, fields)

    def _rows(self, scales: np.ndarray) -> Any:
        return self._column(np.array([scales[n] for n, _ in self.components.table]))

    def _column(self, values: np.ndarray) -> Any:
        """One number a component, to multiply `[component, *voxels]` with."""
        import tensorflow as tf

        return tf.constant(values.reshape(-1, *[1] * (self.start.ndim - 1)), real_dtype(self.start.dtype))

    def _data_cost(self, parameters: Any) -> float:
        signal = self._derivatives(parameters)[0] * self.scale
        cost: float = 0.5 * self.energy * float(self.term.cost(signal))
        return cost

    def _physical(self, parameters: Any) -> np.ndarray:
        values: np.ndarray = parameters.numpy() * self.units.astype(real_dtype(self.start.dtype))
        return values

    def _covariance(self, parameters: Any) -> np.ndarray:
        """Of the unknowns in the units of the data, `[unknown, unknown, *voxels]`."""
        columns = self.components.columns(self._derivatives(parameters)[1])
        squares = 2 * self._data_cost(parameters) / self.energy / self.scale**2
        # The data are so many that the unknowns cost them hardly a degree of freedom.
        variance = squares / (2 * self.term.samples)
        spread = covariance(self.components, self.components.split(parameters), normal_matrix(columns, self.term.diagonal), variance)
        units = self.units.astype(real_dtype(self.start.dtype))
        result: np.ndarray = spread.numpy() * units[:, None] * units[None]
        return result


def squares(jacobian: Any) -> Any:
    """Of each unknown's derivatives `[contrast, unknown, *voxels]`, `[unknown]` of double precision."""
    import tensorflow as tf

    return tf.stack([total(tf.math.abs(column) ** 2) for column in tf.unstack(jacobian, axis=1)])


_solvers: Cache[PrimalDual] = Cache(8)
_programs: Cache[Any] = Cache(8)


def _solver(
    components: Components, real: Sequence[bool], weights: tuple[float, ...], term: DataTerm, images: np.ndarray, settings: Settings
) -> PrimalDual:
    """The solver for such data, kept with its graph unless that holds data."""
    gram = None if term.pointwise else as_shared(term.gram)

    def make() -> PrimalDual:
        # Compiling takes seconds and then saves half of the time of an iteration.
        compiled = term.graph and (device.use_gpu() or images[0].size > COMPILED)
        return PrimalDual(components, real, build(settings, images.shape[1:], real), gram and gram.apply, weights, settings, compiled)

    if gram is not None and gram.key is None:
        return make()
    kind = (gram and gram.key, tuple(components.table), tuple(real), weights)
    key = (*kind, images.shape[1:], images.dtype, settings.without_schedule())
    return _solvers.get(key, make)


def start_values(model: SignalModel, images: np.ndarray) -> np.ndarray:
    """Unknowns of a pixel-wise fit; where noise leaves one undetermined, as in air, its median elsewhere.

    Iterations would take long to level noise that the data do not hold on to.
    """
    fit = fit_pixelwise(model, images, np.ones(images.shape[1:], bool))
    return settled(fit.model, images, fit.parameters.copy(), fit.deviation)


def settled(model: SignalModel, images: np.ndarray, parameters: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Unknowns `[unknown, *voxels]`, changed in place: real ones whose deviation leaves them undetermined become their median.

    A single amplitude is then fitted anew to the images: beside a short T2, that of noise is thousands of times the signal.
    """
    changed = np.zeros(parameters.shape[1:], bool)
    amplitudes = [n for n, unknown in enumerate(model.unknowns) if unknown.amplitude]
    for row, unsure in zip(parameters, vague(model, parameters, deviation), strict=True):
        if unsure.any() and not unsure.all():
            row[unsure] = np.median(row[~unsure].real)
            changed |= unsure
    if len(amplitudes) == 1:
        _fit_amplitude(model, images, parameters, np.flatnonzero(changed), amplitudes[0])
    return parameters


def vague(model: SignalModel, parameters: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Which real unknowns the noise leaves undetermined, bool `[unknown, *voxels]`.

    Args:
        model: whose unknowns.
        parameters, deviation: of a fit without regularisation, `[unknown, *voxels]`.
    """
    size = np.abs(parameters)
    amplitudes = [n for n, unknown in enumerate(model.unknowns) if unknown.amplitude]
    unsure = np.zeros(size.shape, bool)
    with np.errstate(invalid="ignore"):
        silent = (size[amplitudes] < _SIGNAL * deviation[amplitudes]).all(0) if amplitudes else unsure[0]
        for n, unknown in enumerate(model.unknowns):
            # Unknowns of either sign, such as frequencies, may be near 0 and well known.
            if unknown.real:
                unsure[n] = silent | (deviation[n] > size[n] / 2) if unknown.lower >= 0 else silent
    return unsure


def _fit_amplitude(model: SignalModel, images: np.ndarray, parameters: np.ndarray, voxels: np.ndarray, row: int) -> None:
    """The amplitude that fits the images best beside the other unknowns, in some voxels."""
    flat, pixels, fields = parameters.reshape(len(parameters), -1), images.reshape(len(images), -1), flat_fields(model, images.shape[1:])
    for first in range(0, len(voxels), BATCH):
        index = voxels[first : first + BATCH]
        unit = flat[:, index].copy()
        unit[row] = 1
        signal = np.asarray(with_fields(model, {name: field[..., index] for name, field in fields.items()})(unit))
        power = np.maximum((np.abs(signal) ** 2).sum(0), np.finfo(signal.real.dtype).tiny)
        best = (signal.conj() * pixels[:, index]).sum(0) / power
        flat[row, index] = np.maximum(best.real, 0) if model.unknowns[row].real else best
    parameters[row] = flat[row].reshape(parameters.shape[1:])
