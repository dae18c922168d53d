"""Odd-even phase of echo-planar lines without navigators: the one that leaves the least entropy in the image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.optimize

from recon.epi_correction import LinePhase, polynomial
from recon.fourier import ifftc

CHANNELS = 4
"""The strongest eigen channels, which decide."""
_CONSTANTS = np.linspace(-np.pi / 2, np.pi / 2, 8, endpoint=False)
_SHIFTS = np.linspace(-1.5, 1.5, 25)


def least_entropy_phase(lines: np.ndarray, reverse: Sequence[bool], rows: Sequence[int], count: int) -> LinePhase:
    """Constant and linear odd-even phase that minimise the entropy of the image (Clare, ISMRM 2003, 1041).

    A ghost spreads the signal over more pixels: the entropy -sum p log p of p = |image| / ||image|| grows with it. Search on a grid
    for shifts of up to 1.5 samples, then Nelder-Mead. Another pi in the constant moves the image by half a field of view and leaves
    its entropy: the constant is taken within pi / 2, unless the image moved has far less energy at the edges of the field of view.
    Objects that fill the field of view hide their ghost and may be mistaken.

    Args:
        lines: `[line, coil, pixel]` of an image, in image space along the readout.
        reverse: `[line]`, which ones were read backwards.
        rows: `[line]`, number of the line in k-space, from 0.
        count: lines of k-space, centre at count // 2.

    Returns:
        `LinePhase` without drift.

    Raises:
        ValueError: shapes do not fit, lines of one direction only, rows outside, or samples that are not finite.
    """
    lines = np.asarray(lines, np.complex64)
    if lines.ndim != 3 or not len(lines) == len(reverse) == len(rows):
        raise ValueError(
            f"lines must be [line, coil, pixel] with a direction and a row each, not {lines.shape}, {len(reverse)}, {len(rows)}"
        )
    if len(set(reverse)) < 2:
        raise ValueError("all lines have one direction: there is no odd-even phase to find")
    if not 0 <= min(rows) <= max(rows) < count:
        raise ValueError(f"rows {min(rows)} to {max(rows)} lie outside the {count} lines of k-space")
    if not np.isfinite(lines).all():
        raise ValueError("lines hold samples that are not finite")
    pixels = lines.shape[2]
    kspace = np.zeros((min(CHANNELS, lines.shape[1]), count, pixels), np.complex64)
    kspace[:, list(rows)] = _strongest(lines).swapaxes(0, 1)
    half = np.zeros((count, 1))
    half[list(rows), 0] = np.where(reverse, 0.5, -0.5)

    def power(coefficients: np.ndarray) -> np.ndarray:
        factors = np.exp(1j * half * polynomial(coefficients, pixels)).astype(np.complex64)
        return np.asarray((np.abs(ifftc(kspace * factors, 1)) ** 2).sum(0), float)

    whole = power(np.zeros(2)).sum()
    if not whole:
        return LinePhase(np.zeros(1), np.zeros(2), np.zeros(pixels))

    def entropy(coefficients: np.ndarray) -> float:
        share = power(coefficients) / whole
        return float(-(np.sqrt(share) * np.log(share + 1e-30)).sum() / 2)

    grid = [np.array([constant, 4 * np.pi * shift]) for shift in _SHIFTS for constant in _CONSTANTS]
    start = min(grid, key=entropy)
    simplex = start + np.array([[0, 0], [0.2, 0], [0, 0.5]])
    options = {"initial_simplex": simplex, "xatol": 1e-4, "fatol": 1e-9 * pixels * count, "maxiter": 200}
    found = scipy.optimize.minimize(entropy, start, method="Nelder-Mead", options=options).x
    found[0] = (found[0] + np.pi / 2) % np.pi - np.pi / 2
    other = found + np.array([np.pi if found[0] < 0 else -np.pi, 0])
    rows_at_edge = np.r_[: max(count // 16, 1), count - max(count // 16, 1) : count]
    best = other if power(other)[rows_at_edge].sum() < power(found)[rows_at_edge].sum() / 2 else found
    return LinePhase(np.zeros(1), np.asarray(best), np.zeros(pixels))


def _strongest(lines: np.ndarray) -> np.ndarray:
    """The lines in their strongest eigen channels."""
    covariance = np.einsum("lcx,ldx->cd", lines, lines.conj())
    _, vectors = np.linalg.eigh(covariance)
    return np.asarray(np.einsum("ck,lcx->lkx", vectors[:, ::-1][:, :CHANNELS].conj(), lines))
