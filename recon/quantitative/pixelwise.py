"""Pixel-wise fit: nonlinear least squares of every voxel's series, all voxels at once."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from recon import device
from recon.arrays import complex_dtype, phaseless, real_dtype
from recon.cache import Cache
from recon.quantitative.graphs import graph
from recon.quantitative.model import Map, ModelError, SignalModel
from recon.quantitative.real_unknowns import Components, apply_matrix, covariance, dot, gradient, inverse, normal_matrix, unit_diagonal

BATCH = 2**16
"""Voxels fitted at once: bounds the memory to about 8 (contrasts + unknowns) (unknowns + 4) times that many bytes."""
COMPILED = 2**19
"""From so many voxels on it pays to compile the graph."""
_RAISE, _LOWER, _FIRST, _SMALLEST = 8.0, 0.2, 1e-3, 1e-6
"""Factors of the damping after a step that failed and one that helped; the first damping and the smallest."""


@dataclass(frozen=True, eq=False)
class PixelwiseFit:
    """Result of `fit_pixelwise`; NaN in unknowns and covariance outside the mask.

    Attributes:
        model: that was fitted.
        parameters: unknowns, complex `[unknown, *voxels]`; amplitudes in the units of the images.
        covariance: of the unknowns, of complex ones that of the magnitude, real `[unknown, unknown, *voxels]`; infinite where the
            data do not determine one, or leave no residual degree of freedom to tell the noise by.
        residual: root of the mean squared difference of signal and data, `[*voxels]`, in the units of the images.
        converged: bool `[*voxels]`: no step lowered the residual noticeably any more.
    """

    model: SignalModel
    parameters: np.ndarray
    covariance: np.ndarray
    residual: np.ndarray
    converged: np.ndarray

    @property
    def deviation(self) -> np.ndarray:
        """Standard deviations of the unknowns, real `[unknown, *voxels]`."""
        deviation: np.ndarray = np.sqrt(np.einsum("uu...->u...", self.covariance))
        return deviation

    def maps(self) -> dict[str, Map]:
        """The model's maps, each followed by its standard deviation, `<name>_sd`."""
        values = self.model.maps(self.parameters)
        errors = map_deviations(self.model, self.parameters, self.covariance)
        pairs = [(name, one) for name in values for one in ((name, values[name]), (f"{name}_sd", errors[name]))]
        return dict(pair for _, pair in pairs)


def fit_pixelwise(
    model: SignalModel,
    images: np.ndarray,
    mask: np.ndarray | None = None,
    magnitude: bool = False,
    start: np.ndarray | None = None,
    iterations: int = 40,
    tolerance: float = 1e-6,
    batch: int = BATCH,
    compiled: bool | None = None,
    scale: float | None = None,
) -> PixelwiseFit:
    """Fit a model to every voxel by the method of Levenberg and Marquardt.

    Marquardt, J. Soc. Ind. Appl. Math. 11 (1963), with a damping for each voxel and bounds by projection: unknowns at a bound
    that would leave it rest. Complex data are fitted as complex numbers: real unknowns are real, complex ones two reals.

    Args:
        model: with as many contrasts as the images.
        images: `[contrast, *voxels]`, complex or real.
        mask: voxels to fit, bool `[*voxels]`; None for those that hold any signal.
        magnitude: fit |signal| to |images|: phases are unknown then, and complex unknowns come out real. Noise that magnitudes make
            into signal (Rician) is not modelled.
        start: start values `[unknown, *voxels]` in the units of the result; None for the model's own guess.
        iterations: at most so many.
        tolerance: relative decrease of a voxel's squared residual that counts as none.
        batch: voxels at once.
        compiled: by XLA: a third of the time, after some seconds of compiling; None for that on a GPU and for large volumes.
        scale: largest magnitude of the data, where these images are a part of them; None for that of the images.

    Raises:
        ModelError: another number of contrasts, fewer real data than real unknowns, an empty mask, values that are not finite, no
            signal at all, or shapes that do not fit.
    """
    images = np.asarray(images)
    voxels = images.shape[1:]
    mask = _check(model, images, mask, magnitude)
    dtype = complex_dtype(images)
    if scale is None:
        scale = float(np.abs(images).max())
        if not scale > 0:
            raise ModelError(f"{model.name}: the images are zero everywhere")
    scaled = (images / scale).astype(dtype)
    model = model.adapted(images)
    unscaled, model = model, model.scaled(1 / scale)
    units = np.array([scale if unknown.amplitude else 1.0 for unknown in model.unknowns]).reshape(-1, *[1] * len(voxels))
    wanted = (len(model.unknowns), *voxels)
    if start is not None and np.shape(start) != wanted:
        raise ModelError(f"start values of shape {np.shape(start)} do not fit unknowns of shape {wanted}")
    begin = model.guess(scaled) if start is None else np.asarray(start) / units
    constants = np.array([unknown.start for unknown in model.unknowns]).reshape(units.shape)
    begin = np.where(np.isfinite(begin), begin, constants)  # a guess may divide by the signal of a voxel that has none
    chosen = np.flatnonzero(mask)
    size = min(batch, len(chosen))
    fields = flat_fields(model, voxels)
    run = _program(model, magnitude, phaseless(images), len(chosen) > COMPILED or device.use_gpu() if compiled is None else compiled, size)
    flat_images, flat_begin = scaled.reshape(len(scaled), -1), begin.astype(dtype).reshape(len(begin), -1)
    count = len(model.unknowns)
    parameters = np.full((count, mask.size), np.nan, dtype)
    spread = np.full((count, count, mask.size), np.nan, real_dtype(dtype))
    residual = np.full(mask.size, np.nan, real_dtype(dtype))
    converged = np.zeros(mask.size, bool)
    for first in range(0, len(chosen), size):
        # The last batch overlaps the one before: one shape, one graph.
        index = chosen[max(0, min(first, len(chosen) - size)) :][:size]
        given = {name: field[..., index] for name, field in fields.items()}
        results = run(flat_images[:, index], flat_begin[:, index], given, iterations, tolerance)
        for target, result in zip((parameters, spread, residual, converged), results, strict=True):
            target[..., index] = result.numpy()
    units = units.reshape(-1, 1)
    return PixelwiseFit(
        unscaled,
        (parameters * units.astype(spread.dtype)).reshape(count, *voxels),
        (spread * (units[:, None] * units[None]).astype(spread.dtype)).reshape(count, count, *voxels),
        (residual * scale).reshape(voxels),
        converged.reshape(voxels),
    )


def map_deviations(model: SignalModel, parameters: np.ndarray, covariance: np.ndarray, step: float = 1e-3) -> dict[str, Map]:
    """Standard deviations of the model's maps, by linear error propagation with differences of the maps.

    Args:
        model: whose maps.
        parameters: `[unknown, *voxels]`.
        covariance: `[unknown, unknown, *voxels]`, see `PixelwiseFit`.
        step: of the differences, relative to the unknown or, where that is small, its standard deviation.
    """
    parameters = np.asarray(parameters, np.complex128)
    base = model.maps(parameters)
    slopes: dict[str, list[np.ndarray]] = {name: [] for name in base}
    for n in range(len(parameters)):
        size = np.abs(parameters[n])
        deviation = np.sqrt(covariance[n, n])
        length = (
            step * np.maximum(size, np.where(np.isfinite(deviation), np.minimum(deviation, 1e3 * size + 1), 1)) + np.finfo(np.float32).tiny
        )
        moved = parameters.copy()
        # Along the phase of the unknown: the covariance is that of the magnitude.
        moved[n] += length * np.where(size > 0, parameters[n] / np.where(size > 0, size, 1), 1)
        with np.errstate(all="ignore"):
            for name, one in model.maps(moved).items():
                slopes[name].append((np.abs(one.values) - np.abs(base[name].values)) / length)
    lost = np.isinf(np.einsum("uu...->u...", covariance))
    known = np.where(np.isinf(covariance), 0, covariance)
    found = {}
    with np.errstate(all="ignore"):
        for name, rows in slopes.items():
            deviation = np.sqrt(np.einsum("u...,uw...,w...->...", rows, known, rows))
            # What is undetermined says nothing of the maps that do not depend on it.
            found[name] = Map(np.where((lost & (np.array(rows) != 0)).any(0), np.inf, deviation), base[name].unit)
    return found


def with_fields(model: SignalModel, fields: dict[str, Any]) -> SignalModel:
    """The same model on other voxels, `fields` being what belongs to them."""
    other = copy.copy(model)
    other.fields = fields
    return other


def _check(model: SignalModel, images: np.ndarray, mask: np.ndarray | None, magnitude: bool) -> np.ndarray:
    if images.ndim < 2 or len(images) != model.contrasts:
        raise ModelError(f"{model.name} has {model.contrasts} contrasts, the images {images.shape} must be [contrast, *voxels] of as many")
    components = len(Components(model, not magnitude))
    data = model.contrasts * (1 if magnitude else 2)
    if data < components:
        raise ModelError(f"{model.name}: {model.contrasts} contrasts are too few for {components} real unknowns; measure more")
    if not np.isfinite(images).all():
        bad = int(np.flatnonzero(~np.isfinite(images.reshape(len(images), -1)).all(1))[0])
        raise ModelError(f"{model.name}: contrast {bad} (counted from 0) of the images holds values that are not finite")
    if mask is None:
        mask = np.abs(images).max(0) > 0
        if not mask.any():
            raise ModelError(f"{model.name}: the images are zero everywhere")
    mask = np.asarray(mask, bool)
    if mask.shape != images.shape[1:]:
        raise ModelError(f"a mask of shape {mask.shape} does not fit voxels of shape {images.shape[1:]}")
    if not mask.any():
        raise ModelError(f"{model.name}: the mask is empty; no voxel to fit")
    return mask


def flat_fields(model: SignalModel, voxels: tuple[int, ...]) -> dict[str, np.ndarray]:
    """The model's fields with one voxel axis."""
    rank, size = len(voxels), math.prod(voxels)
    flat = {}
    for name, field in model.fields.items():
        field = np.asarray(field)
        leading = field.shape[: max(0, field.ndim - rank)]
        flat[name] = np.broadcast_to(field, (*leading, *voxels)).reshape(*leading, size)
    return flat


_programs: Cache[Any] = Cache(16)


def _program(model: SignalModel, magnitude: bool, real: bool, compiled: bool, size: int) -> Callable[..., Any]:
    """The fit of one batch as a graph, kept for models of the same structure and as many voxels: other shapes round otherwise."""
    import tensorflow as tf

    def make() -> Any:
        # Without fields, so that the graph does not keep them alive.
        twin = with_fields(model, {})

        def run(images: Any, begin: Any, fields: dict[str, Any], iterations: Any, tolerance: Any) -> tuple[Any, ...]:
            return _fit(with_fields(twin, fields), images, begin, magnitude, real, iterations, tolerance)

        return graph(run, compiled)

    program = _programs.get((model.structure(), magnitude, real, compiled, size), make)

    def call(images: np.ndarray, begin: np.ndarray, fields: dict[str, np.ndarray], iterations: int, tolerance: float) -> Any:
        tensors = {name: tf.constant(field) for name, field in fields.items()}
        return program(tf.constant(images), tf.constant(begin), tensors, tf.constant(iterations), tf.constant(tolerance, images.real.dtype))

    return call


def _fit(model: SignalModel, images: Any, begin: Any, magnitude: bool, real: bool, iterations: Any, tolerance: Any) -> tuple[Any, ...]:
    """Unknowns `[unknown, voxel]`, covariance, residual and convergence of voxels `[contrast, voxel]`."""
    import tensorflow as tf

    problem = _Problem(model, images, magnitude, real)

    def advance(x: Any, cost: Any, damping: Any, done: Any, matrix: Any, slope: Any) -> tuple[Any, ...]:
        step = problem.step(x, matrix, slope, damping)
        moved = problem.constrain(x - step)
        lower, trial_matrix, trial_slope = problem.linearise(moved)
        better = (lower < cost) & ~done
        # What the linearised problem promises; a damping that keeps rising makes it small too, so this ends.
        done |= tf.reduce_sum(step * slope, 0) <= tolerance * cost + floor
        x, cost = tf.where(better, moved, x), tf.where(better, lower, cost)
        matrix, slope = tf.where(better, trial_matrix, matrix), tf.where(better, trial_slope, slope)
        damping *= tf.where(better, tf.constant(_LOWER, cost.dtype), tf.constant(_RAISE, cost.dtype))
        return x, cost, tf.maximum(damping, _SMALLEST), done, matrix, slope

    # Squared residuals below are rounding errors.
    floor = (8 * np.finfo(images.dtype.as_numpy_dtype).eps) ** 2 * dot(images, images)
    x = problem.constrain(problem.components.split(begin))
    cost, matrix, slope = problem.linearise(x)
    # A start without a finite signal cannot be improved on.
    done = ~tf.math.is_finite(cost)
    state = (x, cost, tf.fill(tf.shape(cost), tf.constant(_FIRST, cost.dtype)), done, matrix, slope)
    x, cost, _, done, matrix, slope = tf.while_loop(lambda *state: ~tf.reduce_all(state[3]), advance, state, maximum_iterations=iterations)
    freedom = problem.freedom(matrix)
    variance = tf.where(freedom > 0, cost / tf.maximum(freedom, 1), tf.constant(np.inf, cost.dtype))
    spread = covariance(problem.components, x, matrix, variance)
    count = tf.cast(tf.shape(images)[0], cost.dtype)
    return problem.components.join(x), spread, tf.sqrt(cost / count), done & tf.math.is_finite(cost)


class _Problem:
    """Least squares of one batch of voxels in real components `[component, voxel]`."""

    def __init__(self, model: SignalModel, images: Any, magnitude: bool, real: bool) -> None:
        self.model, self.magnitude, self.real = model, magnitude, real or magnitude
        self.components = Components(model, imaginary=not magnitude)
        self.images = abs(images) if magnitude else images

    def freedom(self, matrix: Any) -> Any:
        """Degrees of freedom that are left of the data, given the normal matrices: unknowns that show in no voxel take none.

        Of real data, the imaginary parts of unknowns only say that there is nothing in that of the signal.
        """
        import tensorflow as tf

        rows = [row for row, (_, part) in enumerate(self.components.table) if not (part and self.real)]
        taken = sum(tf.cast(tf.reduce_any(matrix[row, row] > 0), matrix.dtype) for row in rows)
        return self.images.shape[0] * (1 if self.real else 2) - taken

    def linearise(self, x: Any) -> tuple[Any, Any, Any]:
        """Squared residual `[voxel]`, normal matrix and gradient."""
        import tensorflow as tf

        signal, jacobian = self.model.jacobian(self.components.join(x))
        columns = self.components.columns(jacobian)
        if self.magnitude:
            size = tf.abs(signal)
            direction = tf.math.divide_no_nan(tf.math.conj(signal), tf.cast(size, signal.dtype))
            columns = [tf.math.real(direction * column) for column in columns]
            signal = size
        difference = signal - self.images
        return dot(difference, difference), normal_matrix(columns), gradient(columns, difference)

    def constrain(self, x: Any) -> Any:
        """Within the bounds, as components."""
        return self.components.split(self.model.constrain(self.components.join(x)))

    def step(self, x: Any, matrix: Any, slope: Any, damping: Any) -> Any:
        """The damped step to subtract; 0 for unknowns that would leave their bound."""
        import tensorflow as tf

        rests = self._resting(x, slope)
        matrix, scale = unit_diagonal(matrix, rests, damping)
        return tf.where(rests, tf.zeros_like(slope), scale * apply_matrix(inverse(matrix), scale * slope))

    def _resting(self, x: Any, slope: Any) -> Any:
        """Components at a bound that a step downhill would leave."""
        import tensorflow as tf

        rests = []
        for row, (index, _) in enumerate(self.components.table):
            unknown = self.model.unknowns[index]
            if not unknown.real:
                rests.append(tf.zeros_like(x[row], tf.bool))
                continue
            low, high = (tf.constant(bound, x.dtype) for bound in (unknown.lower, unknown.upper))
            rests.append(((x[row] <= low) & (slope[row] > 0)) | ((x[row] >= high) & (slope[row] < 0)))
        return tf.stack(rests)
