"""How certain maps are: covariance of the unknowns for a known noise, and standard deviations of what users see."""

from __future__ import annotations

import numpy as np

from recon.arrays import phaseless
from recon.quantitative.model import Map, ModelError, SignalModel
from recon.quantitative.pixelwise import map_deviations

_SINGULAR = 1e-12
"""Smallest eigenvalue of the correlation-like normal matrix that counts as determined."""


def noise_variance(model: SignalModel, parameters: np.ndarray, images: np.ndarray) -> np.ndarray:
    """E|n|^2 of complex noise in each voxel, from the residual of a fit, ``[*voxels]``; of real images twice that of their noise.

    Args:
        parameters: fitted unknowns ``[unknown, *voxels]``.
        images: ``[contrast, *voxels]`` that were fitted.

    Raises:
        ModelError: as many real unknowns as real data; the residual says nothing then.
    """
    model = model.adapted(images)
    parts = 1 if phaseless(images) else 2
    freedom = parts * model.contrasts - sum(1 if unknown.real else parts for unknown in model.unknowns)
    if freedom <= 0:
        raise ModelError(f"{model.name}: {model.contrasts} contrasts leave no residual to tell the noise by; give its variance")
    residual = np.asarray(model(parameters)) - images
    variance: np.ndarray = 2 * (np.abs(residual) ** 2).sum(0) / freedom
    return variance


def covariance(model: SignalModel, parameters: np.ndarray, variance: np.ndarray | float) -> np.ndarray:
    """Covariance of fitted unknowns, real ``[unknown, unknown, *voxels]``: variance / 2 times (Re J^H J)^-1 (Cramer-Rao bound).

    Complex unknowns stand with their magnitude. Where the data do not determine an unknown its variance is infinite.

    Args:
        parameters: ``[unknown, *voxels]``.
        variance: E|n|^2 of the complex noise of the images, a number or ``[*voxels]``.
    """
    _, jacobian = model.jacobian(np.asarray(parameters, np.complex128))
    jacobian = np.moveaxis(np.asarray(jacobian), (0, 1), (-2, -1))
    columns: list[np.ndarray] = []
    at: list[int] = []
    for n, unknown in enumerate(model.unknowns):
        value = parameters[n]
        # Along the phase of a complex unknown, its magnitude; across it, in units of the magnitude.
        phase = np.ones(value.shape, complex) if unknown.real else np.where(np.abs(value) > 0, np.exp(1j * np.angle(value)), 1)
        at.append(len(columns))
        columns.append(jacobian[..., n] * phase[..., None])
        if not unknown.real:
            columns.append(1j * columns[-1])
    J = np.stack(columns, -1)
    J = np.concatenate([J.real, J.imag], -2)
    size = np.linalg.norm(J, axis=-2)
    blind = size == 0
    unit = J / np.where(blind, 1, size)[..., None, :]
    values, vectors = np.linalg.eigh(np.swapaxes(unit, -1, -2) @ unit)
    known = values > _SINGULAR
    spread = np.einsum("...ik,...k,...jk->...ij", vectors, np.where(known, 1 / np.where(known, values, 1), 0), vectors)
    spread = spread / np.where(blind, 1, size)[..., :, None] / np.where(blind, 1, size)[..., None, :]
    # An unknown with a part in an undetermined direction is undetermined.
    lost = ((vectors**2) * ~known[..., None, :]).sum(-1) > 1e-6
    diagonal = np.arange(spread.shape[-1])
    spread[..., diagonal, diagonal] = np.where(lost, np.inf, spread[..., diagonal, diagonal])
    chosen = spread[..., at, :][..., at]
    result: np.ndarray = np.moveaxis(chosen, (-2, -1), (0, 1)) * np.asarray(variance) / 2
    return result


def deviations(model: SignalModel, parameters: np.ndarray, variance: np.ndarray | float) -> dict[str, Map]:
    """Standard deviations of the maps, by name: the covariance carried over to what `maps` shows (delta method).

    Args:
        parameters: ``[unknown, *voxels]``.
        variance: E|n|^2 of the complex noise of the images, a number or ``[*voxels]``; see `noise_variance`.
    """
    return map_deviations(model, parameters, covariance(model, parameters, variance))
