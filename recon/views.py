"""Views and samples as two axes or as one: a NUFFT takes the samples of all views together."""

from __future__ import annotations

from recon.arrays import Array, reshape


def flatten_trajectory(trajectory: Array) -> Array:
    """Join views and samples of a trajectory: `[..., view, sample, axis]` to `[..., view * sample, axis]`.

    Raises:
        ValueError: fewer than three axes.
    """
    if len(trajectory.shape) < 3:
        raise ValueError(f"a trajectory with views has axes [..., view, sample, axis], not the shape {tuple(trajectory.shape)}")
    *leading, views, samples, axes = trajectory.shape
    return reshape(trajectory, (*leading, _product(views, samples), axes))


def expand_trajectory(trajectory: Array, samples: int) -> Array:
    """Undo `flatten_trajectory`: `[..., view * sample, axis]` to `[..., view, samples, axis]`.

    Raises:
        ValueError: fewer than two axes, or a length that `samples` does not divide.
    """
    if len(trajectory.shape) < 2:
        raise ValueError(f"a trajectory has axes [..., sample, axis], not the shape {tuple(trajectory.shape)}")
    *leading, length, axes = trajectory.shape
    return reshape(trajectory, (*leading, _views(length, samples), samples, axes))


def flatten_samples(values: Array) -> Array:
    """Join views and samples of weights or data: `[..., view, sample]` to `[..., view * sample]`.

    Raises:
        ValueError: fewer than two axes.
    """
    if len(values.shape) < 2:
        raise ValueError(f"values with views have axes [..., view, sample], not the shape {tuple(values.shape)}")
    *leading, views, samples = values.shape
    return reshape(values, (*leading, _product(views, samples)))


def expand_samples(values: Array, samples: int) -> Array:
    """Undo `flatten_samples`: `[..., view * sample]` to `[..., view, samples]`.

    Raises:
        ValueError: no axis, or a length that `samples` does not divide.
    """
    if len(values.shape) < 1:
        raise ValueError("values have axes [..., sample], not a single number")
    *leading, length = values.shape
    return reshape(values, (*leading, _views(length, samples), samples))


def _product(views: int | None, samples: int | None) -> int | None:
    return None if views is None or samples is None else views * samples


def _views(length: int | None, samples: int) -> int | None:
    if samples < 1 or (length is not None and length % samples):
        raise ValueError(f"{length} samples cannot be divided into views of {samples} samples")
    return None if length is None else length // samples
