"""Start values from the data: search over a grid with the amplitude by least squares, and log-linear fits."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping

import numpy as np

from recon.quantitative.model import SignalModel

_CHUNK = 8192
"""Voxels compared with the grid at once."""
_BINS = 16
"""Groups of voxels by each per-voxel input."""


def match(model: SignalModel, images: np.ndarray, grids: Mapping[str, np.ndarray]) -> np.ndarray:
    """The grid point that fits each voxel best, with the best amplitude for it (variable projection).

    Golub, Pereyra, SIAM J. Numer. Anal. 10 (1973).

    Args:
        model: one of its unknowns must be an amplitude.
        images: ``[contrast, *voxels]``.
        grids: values of some unknowns, by name; all combinations are tried, and the others take their constants.

    Returns:
        Start values ``[unknown, *voxels]`` in the dtype of `images`.
    """
    names = [unknown.name for unknown in model.unknowns]
    amplitude = next(n for n, unknown in enumerate(model.unknowns) if unknown.amplitude)
    points = np.repeat(np.array([[unknown.start for unknown in model.unknowns]], np.complex128), _count(grids), 0)
    points[:, [names.index(name) for name in grids]] = list(itertools.product(*grids.values()))
    points[:, amplitude] = 1
    real = model.unknowns[amplitude].real
    voxels = images.shape[1:]
    best = _search_maps(model, images, points, real) if model.fields else _search(model, images, points, real)
    found, size = (part.reshape(voxels) for part in best)
    start = np.moveaxis(points[found], -1, 0)
    start[amplitude] = size
    return within(model, start).astype(images.dtype)


def within(model: SignalModel, parameters: np.ndarray) -> np.ndarray:
    """Unknowns ``[unknown, *voxels]`` with the real ones clipped to their bounds."""
    kept = np.array(parameters)
    for n, unknown in enumerate(model.unknowns):
        if unknown.real:
            kept[n] = np.clip(kept[n].real, unknown.lower, unknown.upper)
    return kept


def project(model: SignalModel, images: np.ndarray, parameters: np.ndarray) -> np.ndarray:
    """`parameters` ``[unknown, *voxels]`` with the (single) amplitude that fits the images ``[contrast, *voxels]`` best."""
    amplitude = next(n for n, unknown in enumerate(model.unknowns) if unknown.amplitude)
    parameters = within(model, parameters.astype(np.result_type(images, np.complex64)))
    parameters[amplitude] = 1
    signal = np.asarray(model(parameters))
    scale = (signal.conj() * images).sum(0) / np.maximum((np.abs(signal) ** 2).sum(0), np.finfo(signal.real.dtype).tiny)
    parameters[amplitude] = scale.real if model.unknowns[amplitude].real else scale
    return within(model, parameters).astype(images.dtype)


def log_linear(images: np.ndarray, design: np.ndarray) -> np.ndarray:
    """Coefficients c ``[coefficient, *voxels]`` of log|image| = design c, weighted by |image|^2 as the noise of a logarithm asks.

    Salvador et al., Hum. Brain Mapp. 24 (2005).

    Args:
        images: ``[contrast, *voxels]``.
        design: ``[contrast, coefficient]`` of full column rank.
    """
    size = np.abs(images).astype(np.float64).reshape(len(images), -1)
    floor = 1e-6 * max(size.max(initial=0), np.finfo(float).tiny)
    weight = np.maximum(size, floor) ** 2
    weight /= weight.max(0)
    logs = np.log(np.maximum(size, floor))
    normal = np.einsum("cv,ci,cj->vij", weight, design, design)
    normal += 1e-9 * np.trace(normal, axis1=1, axis2=2)[:, None, None] * np.eye(design.shape[1])
    right = np.einsum("cv,ci,cv->vi", weight, design, logs)
    found = np.linalg.solve(normal, right[..., None])[..., 0]
    coefficients: np.ndarray = found.T.reshape(-1, *images.shape[1:])
    return coefficients


def _count(grids: Mapping[str, np.ndarray]) -> int:
    return int(np.prod([len(values) for values in grids.values()]))


def _search(model: SignalModel, images: np.ndarray, points: np.ndarray, real: bool) -> tuple[np.ndarray, np.ndarray]:
    """Without per-voxel inputs the grid's signals are the same everywhere: one matrix product."""
    signals = np.asarray(model(points.T))
    sizes = np.maximum(np.linalg.norm(signals, axis=0), 1e-300)
    atoms = (signals / sizes).astype(images.dtype)
    flat = images.reshape(len(images), -1)
    found, scale = [], []
    for begin in range(0, flat.shape[1], _CHUNK):
        products = atoms.conj().T @ flat[:, begin : begin + _CHUNK]
        at = np.argmax(products.real if real else np.abs(products), 0)
        found.append(at)
        scale.append(products[at, np.arange(len(at))] / sizes[at])
    return np.concatenate(found), np.concatenate(scale)


def _search_maps(model: SignalModel, images: np.ndarray, points: np.ndarray, real: bool) -> tuple[np.ndarray, np.ndarray]:
    """With per-voxel inputs: voxels of like inputs are searched together, at their mean."""
    flat = images.reshape(len(images), -1)
    inputs = {name: np.broadcast_to(values, images.shape[1:]).ravel() for name, values in model.fields.items()}
    label = np.zeros(flat.shape[1], int)
    for values in inputs.values():
        edges = np.unique(np.quantile(values, np.linspace(0, 1, _BINS + 1)[1:-1]))
        label = label * (_BINS + 1) + np.searchsorted(edges, values)
    found, scale = np.zeros(flat.shape[1], int), np.zeros(flat.shape[1], images.dtype)
    for one in np.unique(label):
        chosen = label == one
        like = copy.copy(model)
        like.fields = {name: values[chosen].mean() for name, values in inputs.items()}
        found[chosen], scale[chosen] = _search(like, flat[:, chosen], points, real)
    return found, scale
