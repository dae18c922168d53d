"""Images of all contrasts in the span of a signal model: start values for scans whose single contrasts are undersampled.

Linear, so without local minima: a few basis signals hold almost all that a model can say, and their coefficient images share the
samples of all contrasts. Tamir et al., Magn. Reson. Med. 77 (2017) 180 (T2 shuffling); Zhao et al., Magn. Reson. Med. 79 (2018) 933.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np

from recon.cache import Cache
from recon.quantitative.data_term import DataTerm, as_shared
from recon.quantitative.graphs import graph
from recon.quantitative.magnitude import Magnitude
from recon.quantitative.model import SignalModel
from recon.quantitative.pixelwise import PixelwiseFit
from recon.solvers import conjugate_gradient

_SIGNALS, _FIELD_VALUES = 600, 5
"""Signals that the basis is made from, and values of each per-voxel input among them."""
_SHARED = 4
"""Contrasts for each basis signal, at least."""
_programs: Cache[Any] = Cache(4)


def subspace(model: SignalModel, tolerance: float = 3e-3) -> np.ndarray | None:
    """Orthonormal basis `[contrast, component]`, complex, that leaves out at most `tolerance` of the signals' root mean square.

    Signals of unknowns drawn over their bounds (fixed seed), of unit length; None for models without one amplitude, with a phase or
    image of their own in each voxel, or when the basis would have more than a quarter of the contrasts: sharing gains little then.
    """
    if sum(unknown.amplitude for unknown in model.unknowns) != 1 or model.contrasts < 3:
        return None
    if any(values.ndim and values.dtype.kind == "c" for values in model.fields.values()) or "phase" in model.fields:
        return None
    random = np.random.default_rng(0)
    signals = np.concatenate([np.asarray(one(_drawn(one, random))) for one in _variants(model)], 1)
    size = np.linalg.norm(signals, axis=0)
    signals = signals[:, (size > 0) & np.isfinite(size)] / size[(size > 0) & np.isfinite(size)]
    if not signals.size:
        return None
    left, singular, _ = np.linalg.svd(signals, full_matrices=False)
    rest = np.sqrt(np.maximum(1 - np.cumsum(singular**2) / np.sum(singular**2), 0))
    rank = int(np.argmax(rest <= tolerance)) + 1
    return left[:, :rank] if _SHARED * rank <= model.contrasts else None


def subspace_images(term: DataTerm, basis: np.ndarray, iterations: int = 12) -> np.ndarray:
    """Least-squares images `[contrast, *voxels]` among combinations of the basis `[contrast, component]`, by conjugate gradients."""
    import tensorflow as tf

    gram = as_shared(term.gram)

    def make() -> Any:
        apply = gram.apply

        def solve(rhs: tf.Tensor, columns: tf.Tensor, *operands: tf.Tensor) -> tf.Tensor:
            def expand(x: tf.Tensor) -> tf.Tensor:
                return tf.tensordot(columns, x, 1)

            def project(x: tf.Tensor) -> tf.Tensor:
                return tf.tensordot(tf.math.conj(columns), x, [[0], [0]])

            return expand(conjugate_gradient(lambda x: project(apply(expand(x), *operands)), project(rhs), iterations))

        return graph(solve)

    run = make() if gram.key is None else _programs.get((gram.key, iterations, basis.shape, tuple(term.rhs.shape)), make)
    images: np.ndarray = run(term.rhs, tf.constant(basis.astype(term.rhs.dtype.as_numpy_dtype)), *gram.operands).numpy()
    return images


def freedom(model: SignalModel, contrasts: int) -> int:
    """Degrees of freedom that a fit leaves of so many contrasts: complex ones, or magnitudes where the model is one of magnitudes."""
    data = contrasts if isinstance(model, Magnitude) else 2 * contrasts
    return data - sum(1 if unknown.real else 2 for unknown in model.unknowns)


def widened(found: PixelwiseFit, rank: int) -> PixelwiseFit:
    """A fit to images that are combinations of `rank` basis signals: their noise, and with it the residual, has so many dimensions only."""
    contrasts = found.model.contrasts
    if rank == contrasts:
        return found
    left = freedom(found.model, rank)
    factor = found.covariance.dtype.type(freedom(found.model, contrasts) / left if left > 0 else np.inf)
    return replace(found, covariance=found.covariance * factor)


def _variants(model: SignalModel) -> list[SignalModel]:
    """The model with numbers instead of per-voxel inputs: some quantiles of theirs."""
    if not model.fields:
        return [model]
    variants = []
    for level in np.linspace(0, 1, _FIELD_VALUES):
        one = copy.copy(model)
        one.fields = {name: np.quantile(values, level) for name, values in model.fields.items()}
        variants.append(one)
    return variants


def _drawn(model: SignalModel, random: np.random.Generator) -> np.ndarray:
    """Unknowns `[unknown, signal]`: amplitudes 1; logarithmic between positive bounds, else even."""
    values = np.ones((len(model.unknowns), _SIGNALS), np.complex128)
    for n, unknown in enumerate(model.unknowns):
        if unknown.amplitude or not np.isfinite([unknown.lower, unknown.upper]).all():
            continue
        share = random.random(_SIGNALS)
        if unknown.lower > 0:
            values[n] = unknown.lower * (unknown.upper / unknown.lower) ** share
        else:
            values[n] = unknown.lower + (unknown.upper - unknown.lower) * share
    return values
