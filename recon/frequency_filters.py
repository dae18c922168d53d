"""k-space filters as functions of the radius |k| in rad/pixel, for Cartesian and other trajectories.

Unlike the windows of `recon.filters`, which are one an axis and keep the noise level, these are isotropic and 1 at the
centre.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from recon.arrays import Array, is_tensor
from recon.namespace import namespace

FilterKind = Literal["hamming", "hann", "atan"]


def hann(k: Array) -> Array:
    """Hann window 0.5 + 0.5 cos k; zero beyond pi. Real array of the shape of `k`."""
    return _raised_cosine(k, 0.5)


def hamming(k: Array) -> Array:
    """Hamming window 0.54 + 0.46 cos k; zero beyond pi. Real array of the shape of `k`."""
    return _raised_cosine(k, 0.54)


def atan_filter(k: Array, cutoff: float = np.pi, beta: float = 100.0) -> Array:
    """Soft step 1/2 + atan(beta (cutoff - |k|) / cutoff) / pi.

    Pruessmann, Weiger, Börnert, Boesiger, Magn. Reson. Med. 46 (2001).

    Args:
        k: frequency or radius in rad/pixel.
        cutoff: where the filter is 1/2, in rad/pixel.
        beta: steepness.

    Returns:
        Real array of the shape of `k`.
    """
    argument = beta * (cutoff - abs(k)) / cutoff
    if is_tensor(k):
        import tensorflow as tf

        return 0.5 + tf.atan(argument) / np.pi
    return 0.5 + np.arctan(argument) / np.pi


_FILTERS: dict[str, Callable[[Array], Array]] = {"hamming": hamming, "hann": hann, "atan": atan_filter}


def filter_kspace(
    kspace: Array,
    trajectory: Array | None = None,
    filter_kind: FilterKind | Callable[[Array], Array] = "hamming",
    dims: int = 2,
) -> Array:
    """Multiply k-space with a function of the radius |k|.

    Args:
        kspace: Cartesian `[..., (z,) y, x]` with the centre at index n // 2, or `[..., (coil,) sample]` with `trajectory`.
        trajectory: `[..., sample, axis]` in rad/pixel; batch axes before `sample` are those of `kspace` without its coil axis.
        filter_kind: name of a filter, or a function of an array of radii in rad/pixel
            (``functools.partial(atan_filter, cutoff=2)``).
        dims: how many trailing axes of Cartesian k-space are frequencies.

    Returns:
        Array of the shape and dtype of `kspace`.

    Raises:
        ValueError: unknown filter, or shapes that do not fit.
    """
    if not callable(filter_kind) and filter_kind not in _FILTERS:
        raise ValueError(f"filter_kind {filter_kind!r}: expected one of {', '.join(_FILTERS)} or a function of |k|")
    function = filter_kind if callable(filter_kind) else _FILTERS[filter_kind]
    if trajectory is None:
        if not 1 <= dims <= len(kspace.shape):
            raise ValueError(f"dims {dims}: k-space of shape {tuple(kspace.shape)} has {len(kspace.shape)} axes")
        radius = _cartesian_radius(tuple(kspace.shape)[len(kspace.shape) - dims :])
    else:
        _check_trajectory(kspace, trajectory)
        radius = _radius(trajectory)
        if len(kspace.shape) >= len(trajectory.shape) > 2:
            radius = radius[..., None, :]  # the coil axis
    weights = function(radius)
    if is_tensor(kspace, weights):
        import tensorflow as tf

        return tf.convert_to_tensor(kspace) * tf.cast(weights, kspace.dtype)
    return kspace * weights.astype(kspace.dtype)


def crop_kspace(
    kspace: Array, trajectory: Array, cutoff: float, mode: Literal["low_pass", "high_pass"] = "low_pass"
) -> tuple[Array, Array]:
    """The samples nearer to the centre than `cutoff`, or farther; for Cartesian k-space see `recon.images.central_crop`.

    Args:
        kspace: `[..., sample]`.
        trajectory: `[sample, axis]` in rad/pixel, views and samples flattened.
        cutoff: radius in rad/pixel.
        mode: keep |k| < cutoff (``low_pass``) or |k| > cutoff (``high_pass``).

    Returns:
        k-space `[..., kept]` and trajectory `[kept, axis]`.

    Raises:
        ValueError: unknown mode, shapes that do not fit, or nothing is kept.
    """
    if mode not in ("low_pass", "high_pass"):
        raise ValueError(f"mode {mode!r}: expected low_pass or high_pass")
    if len(trajectory.shape) != 2:
        raise ValueError(f"crop_kspace needs a trajectory [sample, axis], views and samples flattened, not {tuple(trajectory.shape)}")
    _check_trajectory(kspace, trajectory)
    radius = _radius(trajectory)
    keep = radius < cutoff if mode == "low_pass" else radius > cutoff
    if is_tensor(kspace, trajectory):
        import tensorflow as tf

        return tf.boolean_mask(kspace, keep, axis=len(kspace.shape) - 1), tf.boolean_mask(trajectory, keep)
    if not keep.any():
        raise ValueError(
            f"crop_kspace: {mode} at {cutoff} rad/pixel keeps none of the samples, which lie at {radius.min():g} to {radius.max():g}"
        )
    return kspace[..., keep], trajectory[keep]


def _raised_cosine(k: Array, mean: float) -> Array:
    if is_tensor(k):
        import tensorflow as tf

        return tf.where(abs(k) <= np.pi, mean + (1 - mean) * tf.cos(k), tf.zeros_like(k))
    return np.where(np.abs(k) <= np.pi, mean + (1 - mean) * np.cos(k), 0.0)


def _radius(trajectory: Array) -> Array:
    xp = namespace(trajectory)
    return xp.sqrt(xp.sum(trajectory**2, axis=-1))


def _cartesian_radius(shape: Sequence[int | None]) -> np.ndarray:
    if None in shape:
        raise ValueError(f"filter_kspace: the frequency axes of k-space must have known lengths, not {tuple(shape)}")
    axes = [2 * np.pi / n * (np.arange(n) - n // 2) for n in shape if n is not None]
    squares = [axis**2 for axis in np.meshgrid(*axes, indexing="ij", sparse=True)]
    radius: np.ndarray = np.sqrt(sum(squares))
    return radius


def _check_trajectory(kspace: Array, trajectory: Array) -> None:
    samples, points = kspace.shape[-1], trajectory.shape[-2] if len(trajectory.shape) > 1 else None
    if points is None or (samples is not None and samples != points):
        raise ValueError(
            f"k-space of shape {tuple(kspace.shape)} does not fit a trajectory of shape {tuple(trajectory.shape)}: "
            "expected [..., sample] and [..., sample, axis]"
        )
