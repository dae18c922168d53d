"""What a fit in blocks does to each block beside the iterations: signals, derivatives, covariances, data with other noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from recon.cache import Cache
from recon.quantitative import replicas
from recon.quantitative.graphs import graph
from recon.quantitative.irgn import squares
from recon.quantitative.linearised import moments, spectrum
from recon.quantitative.model import SignalModel
from recon.quantitative.pixelwise import with_fields
from recon.quantitative.real_unknowns import Components, apply_matrix, covariance, gradient, normal_matrix
from recon.quantitative.settings import Settings
from recon.quantitative.slices import SliceData


class Passes:
    """Graphs of one block, which hold no data, so that fits share them. Eigenvalues are the CPU's work: none is compiled.

    A block is given as nested tensors, see each. Numbers are tensors, too: `scale` of the data, in whose units the model is, and
    `energy`, squared residuals of the problem over those of the data.

    Args:
        model: scaled to data of a largest magnitude of 1.
        apply: see `SliceData.gram`.
        settings: of the metric.
    """

    def __init__(self, model: SignalModel, apply: Callable[..., Any] | None, settings: Settings) -> None:
        self._model, self._components, self._apply, self._settings = with_fields(model, {}), Components(model), apply, settings
        self.evaluate, self.linearise, self.covariance, self.redraw = (
            graph(one) for one in (self._evaluate, self._linearise, self._covariance, self._redraw)
        )

    def _evaluate(self, given: Any, scale: Any) -> Any:
        """Unknowns within their bounds; squared norms of their derivatives, and |E x|^2 - 2 Re x^H E^H d.

        Args:
            given: unknowns, right-hand side, bound, diagonal; fields; operands.
            scale: see above.
        """
        import tensorflow as tf

        (parameters, rhs, bound, _), fields, operands = given
        parameters = self._model.constrain(parameters)
        signal, jacobian = with_fields(self._model, fields).jacobian(parameters)
        signal *= tf.cast(scale, signal.dtype)
        inner = tf.math.conj(signal) * (self._gram(signal, bound, operands) - 2 * rhs)
        return [parameters], (squares(jacobian), tf.reduce_sum(tf.cast(tf.math.real(inner), tf.float64)))

    def _linearise(self, given: Any, rows: Any, scale: Any, energy: Any) -> Any:
        """`HostProblem.arrays`; the moments of the eigenvalues and the largest one.

        Args:
            given: see `_evaluate`.
            rows: how much of each component is 1, `[component, 1, 1, 1]`.
            scale, energy: see above.
        """
        import tensorflow as tf

        (parameters, rhs, bound, _), fields, operands = given
        signal, jacobian = with_fields(self._model, fields).jacobian(parameters)
        large = tf.cast(scale, signal.dtype)
        pulled = large * (large * self._gram(signal, bound, operands) - rhs)
        columns = self._columns(jacobian, rows)
        curvature = energy * scale**2 * normal_matrix(columns, bound)
        values, vectors = spectrum(curvature, self._settings)
        results = [self._components.split(parameters) / rows, energy * gradient(columns, pulled), curvature, values, vectors]
        if self._apply is not None:
            results.append(tf.stack(columns) * tf.cast(tf.sqrt(energy * scale**2), signal.dtype))
        numbers = [tf.cast(one, tf.float64) for one in (*moments(values), tf.reduce_max(values))]
        return results, tf.stack(numbers)

    def _covariance(self, given: Any, variance: Any) -> Any:
        """Covariance `[unknown, unknown, *voxels]` of scaled unknowns for noise of this variance, without regularisation.

        Args:
            given: see `_evaluate`.
            variance: of a real number of the data.
        """
        (parameters, _, _, diagonal), fields, _ = given
        columns = self._components.columns(with_fields(self._model, fields).jacobian(parameters)[1])
        return covariance(self._components, self._components.split(parameters), normal_matrix(columns, diagonal), variance)

    def _redraw(self, given: Any, rows: Any, scale: Any, energy: Any) -> list[Any]:
        """Gradient of the last problem with the data of its solution and other noise, and how far that moves an unregularised fit.

        Args:
            given: origin, curvature, solution, all `[component, *voxels]`, unknowns, bound; where an unregularised fit says nothing
                `[component, *voxels]`; fields; columns where the data are not pointwise; E^H n and, where the data are not pointwise,
                its least-squares images; operands.
            rows, scale, energy: see `_linearise`.
        """
        import tensorflow as tf

        (origin, curvature, found, parameters, bound), unsure, fields, columns, (noise, *images), operands = given
        moved = found - origin
        if columns:
            image = tf.reduce_sum(columns[0] * tf.cast(moved, noise.dtype)[:, None], 0)
            bent = gradient(tf.unstack(columns[0]), self._gram(image, bound, operands))
        else:
            bent = apply_matrix(curvature, moved)
            images = [noise * tf.cast(tf.math.divide_no_nan(tf.ones_like(bound), bound), noise.dtype)]
        own = self._columns(with_fields(self._model, fields).jacobian(parameters)[1], scale * rows)
        shift = replicas.least_squares(own, images[0])
        return [-bent - energy * gradient(own, noise), tf.where(unsure, tf.zeros_like(shift), shift)]

    def _gram(self, x: Any, bound: Any, operands: Any) -> Any:
        """E^H E x."""
        import tensorflow as tf

        return x * tf.cast(bound, x.dtype) if self._apply is None else self._apply(x, *operands)

    def _columns(self, jacobian: Any, rows: Any) -> list[Any]:
        import tensorflow as tf

        pairs = zip(self._components.columns(jacobian), tf.unstack(rows), strict=True)
        return [column * tf.cast(row, column.dtype) for column, row in pairs]


_kept: Cache[Passes] = Cache(4)


def passes(model: SignalModel, data: SliceData, settings: Settings) -> Passes:
    """Those for such models and data, kept unless they hold on to what `data` holds: Gram operators outside TensorFlow do."""

    def make() -> Passes:
        return Passes(model, data.gram, settings)

    return _kept.get((model.structure(), data.gram, settings.without_schedule()), make) if data.graph else make()
