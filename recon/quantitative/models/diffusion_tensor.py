"""The diffusion tensor by its Cholesky factor: what DTI and IVIM-DTI share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from recon.quantitative.model import Map, ModelError, Unknown
from recon.quantitative.tensors import column

FACTORS = ("L_xx", "L_xy", "L_yy", "L_xz", "L_yz", "L_zz")
"""Entries of the lower triangular L, D = L L^T, in the order of the unknowns."""
_UNIT = "sqrt(1e-3 mm2/s)"


def unknowns() -> list[Unknown]:
    """The six factors; D is positive semi-definite whatever they are."""
    return [Unknown(name, _UNIT, -5, 5, 1 if name in ("L_xx", "L_yy", "L_zz") else 0) for name in FACTORS]


def directions(model: str, values: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Unit vectors ``[contrast, 3]``; zero vectors are fine where b is 0.

    Raises:
        ModelError: a weighted contrast has no direction, a direction is no unit vector, or they do not determine a tensor.
    """
    length = np.linalg.norm(values, axis=1)
    if (bare := (length < 1e-6) & (b > 0)).any():
        raise ModelError(f"{model}: contrasts {np.flatnonzero(bare).tolist()} are weighted (b above 0) but have no direction in DWI_dir")
    if (off := (length > 1e-6) & (np.abs(length - 1) > 0.05)).any():
        raise ModelError(
            f"{model}: DWI_dir of contrasts {np.flatnonzero(off).tolist()} are no unit vectors; normalise them, and scale b_value "
            "where their length was meant to"
        )
    g = values / np.where(length > 1e-6, length, 1)[:, None]
    if np.linalg.matrix_rank(np.concatenate([np.ones((len(b), 1)), design(g, b)], 1), 1e-6) < 7:
        raise ModelError(
            f"{model}: b-values and directions do not determine M0 and a tensor: "
            "six directions that are in no plane or cone are needed, and two b-values"
        )
    return g


def design(g: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``[contrast, 6]``: b g^T D g = design (D_xx, D_xy, D_yy, D_xz, D_yz, D_zz)."""
    x, y, z = g.T
    products: np.ndarray = b[:, None] * np.stack([x * x, 2 * x * y, y * y, 2 * x * z, 2 * y * z, z * z], 1)
    return products


def weighted(factors: Sequence[Any], g: np.ndarray, b: np.ndarray) -> Any:
    """b g^T L L^T g = b |L^T g|^2, ``[contrast, *voxels]``."""
    xx, xy, yy, xz, yz, zz = factors
    x, y, z = (column(part, xx) for part in g.T)
    first, second, third = xx * x + xy * y + xz * z, yy * y + yz * z, zz * z
    return column(b, xx) * (first**2 + second**2 + third**2)


def factorised(tensor: np.ndarray) -> np.ndarray:
    """Factors ``[6, *voxels]`` of the entries ``[6, *voxels]`` of D, made positive definite first."""
    xx, xy, yy, xz, yz, zz = tensor
    D = np.stack([np.stack([xx, xy, xz], -1), np.stack([xy, yy, yz], -1), np.stack([xz, yz, zz], -1)], -2)
    values, vectors = np.linalg.eigh(D)
    values = np.clip(values, 0.02, 8)
    L = np.linalg.cholesky(np.einsum("...ij,...j,...kj->...ik", vectors, values, vectors))
    return np.stack([L[..., 0, 0], L[..., 1, 0], L[..., 1, 1], L[..., 2, 0], L[..., 2, 1], L[..., 2, 2]])


def tensor_maps(factors: np.ndarray) -> dict[str, Map]:
    """ADC_x, ADC_xy, ADC_y, ADC_xz, ADC_z, ADC_yz (entries of D, PyQMRI's order), MD, AD, RD in 1e-3 mm2/s and FA."""
    xx, xy, yy, xz, yz, zz = np.real(factors).astype(np.float64)
    L = np.zeros((*xx.shape, 3, 3))
    L[..., 0, 0], L[..., 1, 0], L[..., 1, 1], L[..., 2, 0], L[..., 2, 1], L[..., 2, 2] = xx, xy, yy, xz, yz, zz
    D = L @ np.swapaxes(L, -1, -2)
    values = np.linalg.eigvalsh(D)
    mean = values.mean(-1)
    power = np.maximum((values**2).sum(-1), np.finfo(float).tiny)
    anisotropy = np.sqrt(1.5 * ((values - mean[..., None]) ** 2).sum(-1) / power)
    entries = {"ADC_x": (0, 0), "ADC_xy": (0, 1), "ADC_y": (1, 1), "ADC_xz": (0, 2), "ADC_z": (2, 2), "ADC_yz": (1, 2)}
    unit = "1e-3 mm2/s"
    return {
        **{name: Map(D[..., i, j], unit) for name, (i, j) in entries.items()},
        "MD": Map(mean, unit),
        "AD": Map(values[..., 2], unit),
        "RD": Map(values[..., :2].mean(-1), unit),
        "FA": Map(anisotropy, ""),
    }
