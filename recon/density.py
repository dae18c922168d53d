"""Density compensation: weights w that make gridding an approximate inverse, A^H W A ~ I.

With A the orthonormal NUFFT of N pixels, the weight of a sample is the area of k-space it stands for, in units of the
area (2 pi)^d / N of one Cartesian sample: a full Cartesian grid has weights 1. Gridding then returns an object at its
true amplitude. (TensorFlow MRI and others speak of density, the reciprocal, with other scales: multiply our weights by
4 / pi for its radial densities, by 1.26 for Jackson's and Pipe's.) Weights of Voronoi cells: voronoi.py.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.fft import next_fast_len

from recon.cache import Cache

_cache: Cache[np.ndarray] = Cache(32)
_KEPT_FRAMES = 4
"""Frames of which rotations are looked for."""
_SAME_PLACE = 1e-4
"""Distance in rad/pixel below which two samples count as one; single precision has errors of 1e-6."""


def pipe_weights(trajectory: np.ndarray, grid_shape: Sequence[int], iterations: int = 30) -> np.ndarray:
    """Iterative density compensation of any trajectory: repeat w <- w / (K w) with the kernel matrix K.

    Pipe and Menon, Magn. Reson. Med. 41 (1999). K spreads to a grid of twice the size and interpolates back. The last
    32 results are kept, so that the second call with the same trajectory costs only its hash.

    Args:
        trajectory: `[..., sample, axis]` in rad/pixel; leading axes are separate trajectories.
        grid_shape: image shape in pixels.
        iterations: number of repetitions.

    Returns:
        float32 (float64 for a float64 trajectory) `[..., sample]`.

    Raises:
        ValueError: shapes do not fit, the trajectory is not finite, or it still has an axis of views (spokes).
    """
    trajectory = np.ascontiguousarray(trajectory)
    shape = tuple(int(n) for n in grid_shape)
    if trajectory.ndim < 2 or trajectory.shape[-1] != len(shape):
        raise ValueError(f"trajectory of shape {trajectory.shape} does not fit a grid of {len(shape)} axes")
    if not np.isfinite(trajectory).all():
        raise ValueError("the trajectory holds values that are not finite (NaN or Inf)")
    if trajectory.ndim > 2 and trajectory.shape[-2] > 2 and _on_lines(trajectory):
        raise ValueError(
            f"every one of the separate trajectories in the shape {trajectory.shape} lies on a line: these are views of one "
            "trajectory, join them with recon.views.flatten_trajectory"
        )
    digest = hashlib.blake2b(trajectory.data, digest_size=16).digest()
    key = (digest, trajectory.shape, trajectory.dtype.str, shape, iterations)
    weights: np.ndarray = _cache.get(key, lambda: _pipe(trajectory, shape, iterations))
    copy: np.ndarray = weights.copy()
    return copy


def _on_lines(trajectory: np.ndarray) -> bool:
    """Whether each of the trajectories `[..., sample, axis]` is straight."""
    centred = trajectory.astype(np.float64) - trajectory.mean(axis=-2, keepdims=True, dtype=np.float64)
    spread = np.linalg.eigvalsh(np.swapaxes(centred, -1, -2) @ centred)  # ascending; sums of squares
    return trajectory.shape[-1] > 1 and bool((spread[..., -2] <= 1e-9 * spread[..., -1]).all())


class RotatedWeights:
    """`pipe_weights` of one frame after another, computed once for frames that are rotations of each other.

    A rotated trajectory has the weights of the unrotated one, but for the kernel of the gridding, whose square does not rotate. For spirals
    of 192 x 192 that changes weights by 0.2 to 1.2 % and gridded images by 0.05 to 0.3 %, and their errors not. The first frame
    decides: results depend on the order of the frames, so keep one of these for each measurement.
    """

    def __init__(self) -> None:
        self._known: deque[tuple[tuple[int, ...], np.ndarray, np.ndarray]] = deque(maxlen=_KEPT_FRAMES)

    def of(self, trajectory: np.ndarray, grid_shape: Sequence[int]) -> np.ndarray:
        """Arguments, result and errors of `pipe_weights`.

        Rotations are looked for in square images of two axes, and where samples keep half a pixel of k-space from its edge: those at the
        edge have neighbours beyond it, on the other side, which a rotation changes (by 5 % of the weights, 1.6 % of an image).
        """
        shape = tuple(int(n) for n in grid_shape)
        if trajectory.ndim != 2 or trajectory.shape[1] != 2 or len(shape) != 2 or shape[0] != shape[1]:
            return pipe_weights(trajectory, shape)
        points = trajectory[:, 0] + 1j * trajectory[:, 1]
        if np.abs(points).max(initial=0) > np.pi * (1 - 1 / shape[0]):
            return pipe_weights(trajectory, shape)
        for known, reference, weights in self._known:
            if known == shape and len(reference) == len(points) and _is_rotation(reference, points):
                copy: np.ndarray = weights.copy()
                return copy
        own = pipe_weights(trajectory, shape)
        self._known.append((shape, points, own.copy()))
        return own


def _is_rotation(reference: np.ndarray, points: np.ndarray) -> bool:
    """Whether `points` `[sample]`, kx + i ky in rad/pixel, are the reference turned about the origin."""
    turn = (points * reference.conj()).sum()  # not by BLAS, whose sums depend on its threads
    if not abs(turn) > 0:
        return False
    return float(np.abs(points - reference * (turn / abs(turn))).max()) < _SAME_PLACE


def jackson_weights(trajectory: np.ndarray, grid_shape: Sequence[int]) -> np.ndarray:
    """Density compensation of any trajectory in one step: the reciprocal of the density of samples under the kernel.

    Jackson et al., IEEE Trans. Med. Imaging 10 (1991) 473. It is the first step of `pipe_weights`, the kernel that of the
    gridding there; arguments, result and errors as there. Where samples lie closer than the kernel is wide (the centre of
    radial k-space) it smooths the density; `pipe_weights` is more accurate.
    """
    return pipe_weights(trajectory, grid_shape, iterations=1)


def _pipe(trajectory: np.ndarray, shape: tuple[int, ...], iterations: int) -> np.ndarray:
    dtype = np.float64 if trajectory.dtype == np.float64 else np.float32
    batch = trajectory.reshape(-1, *trajectory.shape[-2:])
    weights = np.stack([_pipe_one(points.astype(dtype), shape, iterations) for points in batch])
    return weights.reshape(trajectory.shape[:-1])


def _pipe_one(points: np.ndarray, shape: tuple[int, ...], iterations: int) -> np.ndarray:
    import finufft

    grid = tuple(next_fast_len(2 * n) for n in shape)
    kind = "complex128" if points.dtype == np.float64 else "complex64"
    # 7 points wide, but no wider than half of the grid of a thin slab.
    eps = 10.0 ** (1 - min(7, min(grid) // 2))
    options: dict[str, Any] = {"eps": eps, "upsampfac": 2.0, "nthreads": 1, "spreadinterponly": 1, "dtype": kind, "showwarn": 0}
    kernel = finufft.Plan(1, grid, 1, **options)
    # The sum of the kernel over the grid turns K into a local average of unit area.
    kernel.setpts(*np.zeros((len(shape), 1), points.dtype))
    area = float(kernel.execute(np.ones(1, kind)).sum().real)
    spread, interpolate = kernel, finufft.Plan(2, grid, 1, **options)
    axes = np.ascontiguousarray(points.T)
    spread.setpts(*axes)
    interpolate.setpts(*axes)
    weights = np.ones(len(points), kind)
    for _ in range(iterations):
        weights /= interpolate.execute(spread.execute(weights)).real
    fine_per_coarse = math.prod(grid) / math.prod(shape)
    return np.ascontiguousarray(weights.real * (area**2 / fine_per_coarse))


def radial_weights(trajectory: np.ndarray, grid_shape: Sequence[int]) -> np.ndarray:
    """Exact weights of a two-dimensional radial trajectory with any angles: radius times the angle a spoke stands for.

    A sample at radius r has the area r dr da, with da half the gap to both neighbouring spokes (modulo pi). The central
    samples share pi dr^2 / 6: by the Euler-Maclaurin formula this, not the disc of radius dr / 2 (pi dr^2 / 4), makes
    the sum over the rings equal the integral, so that large objects keep their amplitude without readout oversampling.

    Args:
        trajectory: `[..., view, sample, 2]` in rad/pixel; spokes through the centre, evenly spaced samples.
        grid_shape: image shape in pixels.

    Returns:
        Array `[..., view, sample]` of the trajectory's precision.

    Raises:
        ValueError: not a set of spokes.
    """
    trajectory = np.asarray(trajectory)
    if trajectory.ndim < 3 or trajectory.shape[-1] != 2 or trajectory.shape[-2] < 2:
        raise ValueError(f"radial_weights needs a trajectory [..., view, sample, 2], not {trajectory.shape}")
    points = trajectory.astype(np.float64)
    span = points[..., -1, :] - points[..., 0, :]
    spacing = np.linalg.norm(span, axis=-1, keepdims=True) / (trajectory.shape[-2] - 1)
    gaps = _angular_gaps(np.mod(np.arctan2(span[..., 1], span[..., 0]), np.pi))[..., None]
    radius = np.linalg.norm(points, axis=-1)
    area = np.where(radius < spacing / 2, spacing**2 / 6, radius * spacing) * gaps
    weights: np.ndarray = (area * (math.prod(grid_shape) / (2 * np.pi) ** 2)).astype(trajectory.dtype)
    return weights


def uniform_radial_weights(base_resolution: int, views: int, readout_os: float = 2.0, axes: int = 2) -> np.ndarray:
    """Weights of `views` evenly spread spokes by formula, in a plane (then `radial_weights`) or in three dimensions.

    In three dimensions the m-th sample from the centre has the area of its sphere, and the centre has none: by the
    Euler-Maclaurin formula the sum over spheres then equals the integral to fourth order. (Volumes of shells, m^2 + 1/12,
    as TensorFlow MRI takes them, make the centre of k-space too heavy.)

    Args:
        base_resolution: image size in pixels, the same along all axes.
        views: spokes through the centre, evenly spread over the half circle or sphere.
        readout_os: readout oversampling.
        axes: 2 or 3.

    Returns:
        float32 `[sample]`, the same for every view, m being the number of steps from the centre. In a plane
        pi m / (views readout_os^2), for the centre pi / (6 views readout_os^2); in three dimensions
        2 pi m^2 / (views readout_os^3).

    Raises:
        ValueError: another number of axes.
    """
    if axes not in (2, 3):
        raise ValueError(f"axes must be 2 or 3, not {axes}")
    samples = round(base_resolution * readout_os)
    steps = np.abs(np.arange(samples) - samples / 2)
    area = np.pi * np.where(steps < 0.5, 1 / 6, steps) if axes == 2 else 2 * np.pi * steps**2
    weights: np.ndarray = (area / (views * readout_os**axes)).astype(np.float32)
    return weights


def _angular_gaps(angles: np.ndarray) -> np.ndarray:
    """Half the distance to both neighbours on the half circle, `[..., view]`; coincident spokes share theirs."""
    if angles.shape[-1] == 1:
        return np.full_like(angles, np.pi)
    order = np.argsort(angles, axis=-1)
    ordered = np.take_along_axis(angles, order, axis=-1)
    after = np.diff(ordered, axis=-1, append=ordered[..., :1] + np.pi)
    gaps = (after + np.roll(after, 1, axis=-1)) / 2
    result = np.empty_like(gaps)
    np.put_along_axis(result, order, gaps, axis=-1)
    return result
