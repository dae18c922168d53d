"""Gradient delays of radial scans: estimated from opposing spokes, corrected in the trajectory.

A gradient that lags moves every spoke by a constant: its samples lie at k + S n, n being the spoke's direction and S a
symmetric matrix. Its diagonal holds the shift of each axis, the rest what oblique slices and cross terms add
(Peters et al., Magn. Reson. Med. 50 (2003) 1; Block and Uecker, Proc. ISMRM 19 (2011) 2816; the form of S from
Rosenzweig et al., Magn. Reson. Med. 81 (2019) 1898). A delay t of both axes is S = -t / dwell time * spacing * identity.
"""

from __future__ import annotations

import numpy as np

from recon import nufft
from recon.density import pipe_weights

WIDEST = np.deg2rad(6)  # two spokes are opposed if they differ from it by at most this


def estimate_shifts(kspace: np.ndarray, trajectory: np.ndarray, refinements: int = 3) -> np.ndarray:
    """Estimate the shift matrix S of a radial scan from pairs of opposing spokes.

    Along a spoke at angle a, S moves the samples by d(a) = n^T S n; along the opposing spoke it does so the other way. The
    projections (Fourier transforms) of both then differ by the phase -2 d x, whose slope is fitted; the three numbers of S
    are fitted to d of all pairs. S also moves spokes sideways, which biases the slopes (by 0.15 samples for a shift of
    one): the bias is measured on data simulated with the estimate from the coarse image it gives, and taken off.

    Args:
        kspace: `[..., view, sample]`, leading axes (coils, frames) are used together.
        trajectory: nominal, `[view, sample, 2]` in rad/pixel: spokes through the centre, evenly sampled.
        refinements: how often the bias is measured; 0 for none, as for readouts that differ in phase as a whole (the pairs
            do not mind, the coarse image does).

    Returns:
        float64 `[2, 2]`, rad/pixel, axes in the order of the trajectory's: to be given to `shifted`.

    Raises:
        ValueError: shapes do not fit, values are not finite, no signal, or fewer than three directions with an opposing
            spoke (within 6 degrees), as in an acquisition over half a turn.
    """
    kspace, trajectory = np.asarray(kspace), np.asarray(trajectory, np.float64)
    if trajectory.ndim != 3 or trajectory.shape[-1] != 2 or trajectory.shape[1] < 4 or kspace.shape[-2:] != trajectory.shape[:2]:
        raise ValueError(f"kspace [..., view, sample] {kspace.shape} does not fit the trajectory [view, sample, 2] {trajectory.shape}")
    if not (np.isfinite(kspace).all() and np.isfinite(trajectory).all()):
        raise ValueError("kspace or trajectory holds values that are not finite (NaN or Inf)")
    if not kspace.any():
        raise ValueError("kspace holds no signal to estimate delays from")
    spokes, coarse, scale = _central(kspace.reshape(-1, *trajectory.shape[:2]), trajectory)
    measured = shifts = _from_pairs(spokes, coarse)
    for _ in range(refinements):
        shifts = shifts + measured - _from_pairs(_simulated(spokes, shifted(coarse, shifts)), coarse)
    return shifts / scale


def _central(spokes: np.ndarray, trajectory: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """The up to 64 central samples of every spoke, their trajectory in rad per pixel of a coarse image, and its scale."""
    centre = int(np.linalg.norm(trajectory, axis=-1).mean(axis=0).argmin())
    half = min(32, centre, trajectory.shape[1] - centre)
    if half < 2:
        raise ValueError("the spokes do not run through the centre of k-space: its sample is at their end")
    inner = slice(centre - half, centre + half)
    spacing = np.linalg.norm(np.diff(trajectory, axis=1), axis=-1).mean()
    if spacing == 0:
        raise ValueError("the trajectory holds views that are no spokes: all their samples coincide")
    scale = float(np.pi / (half * spacing))
    return spokes[..., inner], trajectory[:, inner] * scale, scale


def _simulated(spokes: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """The measurement of the image that `spokes` `[channel, view, sample]` at `positions` give."""
    size = (positions.shape[1], positions.shape[1])
    points = positions.reshape(-1, 2).astype(np.float32)
    transform = nufft.Nufft(points, size, 1e-4)
    weighted = spokes.reshape(len(spokes), -1) * pipe_weights(points, size)
    simulated: np.ndarray = transform.forward(transform.adjoint(weighted.astype(np.complex64))).reshape(spokes.shape)
    return simulated


def _from_pairs(spokes: np.ndarray, trajectory: np.ndarray) -> np.ndarray:
    """S from the phases of opposing spokes alone; arguments as in `_central`."""
    directions = _directions(trajectory)
    pairs = _opposing(directions)
    fits = [_shift(spokes[:, [one, other]].swapaxes(0, 1), trajectory[[one, other]] @ directions[one]) for one, other in pairs]
    along, signal = np.array(fits, float).reshape(-1, 2).T
    y, x = directions[pairs[:, 0]].T
    model = np.stack([y * y, 2 * y * x, x * x], axis=-1)
    if np.linalg.matrix_rank(model, tol=1e-3) < 3:
        raise ValueError(
            f"{len(pairs)} pairs of opposing spokes do not determine the delays of both axes: at least three directions with an "
            "opposing spoke are needed (views over a full turn, angle_range='full')"
        )
    weight = np.sqrt(signal)
    yy, yx, xx = np.linalg.lstsq(model * weight[:, None], along * weight, rcond=None)[0]
    return np.array([[yy, yx], [yx, xx]])


def shifted(trajectory: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Where the samples of a radial scan lie: every spoke moved by S n, n being its direction.

    Args:
        trajectory: nominal, `[..., view, sample, 2]` in rad/pixel.
        shifts: S, `[2, 2]`, rad/pixel, as from `estimate_shifts`.

    Returns:
        Array of the trajectory's shape and precision.

    Raises:
        ValueError: shapes do not fit.
    """
    trajectory, shifts = np.asarray(trajectory), np.asarray(shifts, np.float64)
    if trajectory.ndim < 3 or trajectory.shape[-1] != 2 or shifts.shape != (2, 2):
        raise ValueError(f"shifted needs a trajectory [..., view, sample, 2] and shifts [2, 2], not {trajectory.shape} and {shifts.shape}")
    moved: np.ndarray = (trajectory + (_directions(trajectory) @ shifts.T)[..., None, :]).astype(trajectory.dtype)
    return moved


def _directions(trajectory: np.ndarray) -> np.ndarray:
    """Unit vectors from the first sample to the last, `[..., view, 2]`."""
    span = (trajectory[..., -1, :] - trajectory[..., 0, :]).astype(np.float64)
    length = np.linalg.norm(span, axis=-1, keepdims=True)
    if not (length > 0).all():
        raise ValueError("the trajectory holds views that are no spokes: first and last sample coincide")
    return np.asarray(span / length)


def _opposing(directions: np.ndarray) -> np.ndarray:
    """Pairs of views `[pair, 2]`: to every view the one that comes closest to the opposite direction, if close enough."""
    cosine = directions @ directions.T
    nearest = cosine.argmin(axis=1)
    close = cosine[np.arange(len(nearest)), nearest] <= -np.cos(WIDEST)
    pairs = np.stack([np.arange(len(nearest)), nearest], axis=-1)[close]
    return np.unique(np.sort(pairs, axis=-1), axis=0).reshape(-1, 2)


def _shift(spokes: np.ndarray, position: np.ndarray) -> tuple[float, float]:
    """Shift along the first of two opposing spokes, and the signal it rests on.

    spokes `[2, channel, sample]`; position `[2, sample]`: nominal, along the first spoke.
    """
    spacing = np.abs(np.diff(position[0])).mean()
    reach = int(np.pi / spacing)
    pixels = np.arange(-reach, reach)
    one, other = (s @ np.exp(1j * np.outer(p, pixels)) for s, p in zip(spokes, position, strict=True))
    product = (one * other.conj()).sum(axis=0)
    # First from the phase between neighbouring pixels, which cannot wrap; then a straight line through the phase that is left.
    slope = float(np.angle(np.vdot(product[:-1], product[1:])))
    left = product * np.exp(-1j * slope * pixels)
    phase = np.angle(left * left.sum().conj())
    weight = np.abs(product)
    signal = float(weight.sum())
    if signal == 0:
        return 0.0, 0.0
    centred = pixels - (weight * pixels).sum() / signal
    slope += float((weight * centred * phase).sum() / (weight * centred**2).sum())
    return -slope / 2, signal
