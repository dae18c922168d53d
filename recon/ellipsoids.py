"""Objects made of ellipses and ellipsoids: their density at any position, their image, and their k-space in closed form.

Positions are in half fields of view, `(y, x)` or `(z, y, x)`, y pointing down as rows do: the field of view of an image
of n pixels extends from -1 to 1, and pixel i lies at (i - n // 2) / (n / 2).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import j1


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipse (two axes) or ellipsoid (three) of constant `value`, which adds to what it overlaps.

    Args:
        value: density, real or complex.
        half_axes: half lengths along (z,) y, x before rotation.
        centre: position of the centre.
        angle: of a turn in the plane of the last two axes, in degrees, clockwise as displayed.
    """

    value: complex
    half_axes: tuple[float, ...]
    centre: tuple[float, ...]
    angle: float = 0.0

    def frame(self) -> np.ndarray:
        """Matrix `[axis, axis]` that takes an offset from the centre to the frame in which the object is the unit ball."""
        turn = np.eye(len(self.half_axes))
        cosine, sine = math.cos(math.radians(self.angle)), math.sin(math.radians(self.angle))
        turn[-2:, -2:] = [[cosine, -sine], [sine, cosine]]
        scaled: np.ndarray = turn / np.array(self.half_axes)[:, None]
        return scaled


def density(objects: Iterable[Ellipsoid], positions: np.ndarray) -> np.ndarray:
    """Sum of the values of all `objects` that hold a position, their borders included.

    Args:
        objects: ellipses or ellipsoids.
        positions: `[..., axis]` in half fields of view.

    Returns:
        `[...]`, float64, or complex128 if a value is complex.
    """
    objects = list(objects)
    total = np.zeros(positions.shape[:-1], np.result_type(float, *(item.value for item in objects)))
    for item in objects:
        radius = np.linalg.norm((positions - np.array(item.centre)) @ item.frame().T, axis=-1)
        total[radius <= 1] += item.value
    return total


def rasterise(objects: Iterable[Ellipsoid], shape: Sequence[int], oversampling: int = 1) -> np.ndarray:
    """Image of `objects`.

    Args:
        objects: ellipses for two axes, ellipsoids for three.
        shape: pixels.
        oversampling: points per pixel and axis over whose densities a pixel averages; 1 takes its centre.

    Returns:
        float32 (complex64 for complex values) of `shape`.

    Raises:
        ValueError: the shape does not fit the objects.
    """
    objects = list(objects)
    if any(len(item.half_axes) != len(shape) for item in objects):
        raise ValueError(f"shape {tuple(shape)}: the objects have {len(objects[0].half_axes)} axes")
    within = (np.arange(oversampling) + 0.5) / oversampling - 0.5
    lines = [((np.arange(n) - n // 2)[:, None] + within).ravel() / (n / 2) for n in shape]
    values = density(objects, np.stack(np.meshgrid(*lines, indexing="ij"), axis=-1))
    pairs = values.reshape([length for n in shape for length in (n, oversampling)])
    image: np.ndarray = pairs.mean(axis=tuple(range(1, 2 * len(shape), 2)))
    return image.astype(np.complex64 if np.iscomplexobj(image) else np.float32)


def kspace(objects: Iterable[Ellipsoid], trajectory: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """k-space of `objects` at any points, from the closed form of their Fourier transform.

    Scaled as the orthonormal NUFFT of an image of `shape`, of which it is the limit for infinitely fine pixels: data for
    tests in which simulation and reconstruction do not share a grid. Koay, Sarlls, Özarslan, Magn. Reson. Med. 58 (2007);
    with q the length of k in the frame of the unit ball, the transform is volume * 2 J1(q) / q for an ellipse and
    volume * 3 (sin q - q cos q) / q^3 for an ellipsoid. A coil whose sensitivity is a sum of c_m exp(i p_m r), r in
    pixels, sees the sum of c_m kspace(objects, trajectory - p_m, shape).

    Args:
        objects: ellipses for two axes, ellipsoids for three.
        trajectory: `[..., axis]` in rad/pixel.
        shape: pixels of the field of view.

    Returns:
        `[...]`, complex64, or complex128 for a float64 trajectory.

    Raises:
        ValueError: trajectory or shape do not fit the objects.
    """
    objects, trajectory = list(objects), np.asarray(trajectory)
    axes = len(objects[0].half_axes)
    if trajectory.shape[-1] != axes or len(shape) != axes:
        raise ValueError(f"a trajectory of shape {trajectory.shape} and an image of shape {tuple(shape)} do not fit objects of {axes} axes")
    half = np.array(shape) / 2
    scaled = trajectory * half  # rad per half field of view
    result = np.zeros(trajectory.shape[:-1], np.complex128)
    for item in objects:
        q = np.linalg.norm(scaled @ np.linalg.inv(item.frame()), axis=-1)
        volume = math.prod(item.half_axes) * (math.pi if axes == 2 else 4 / 3 * math.pi)
        result += item.value * volume * _ball(q, axes) * np.exp(-1j * (scaled @ np.array(item.centre)))
    result *= np.prod(half) / math.sqrt(math.prod(shape))
    return result.astype(np.complex128 if trajectory.dtype == np.float64 else np.complex64)


def _ball(q: np.ndarray, axes: int) -> np.ndarray:
    """Fourier transform of the unit disc or ball over its volume."""
    small = q < 1e-2
    safe = np.where(small, 1.0, q)
    if axes == 2:
        return np.where(small, 1 - q**2 / 8, 2 * j1(safe) / safe)
    return np.where(small, 1 - q**2 / 10, 3 * (np.sin(safe) - safe * np.cos(safe)) / safe**3)
