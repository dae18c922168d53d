"""Local differences of images: 3 x 3 gradient operators and total variation, for NumPy arrays and tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from recon.arrays import Array
from recon.namespace import namespace

GradientMethod = Literal["prewitt", "sobel", "scharr"]

_SMOOTHING = {"prewitt": (1.0, 1.0), "sobel": (1.0, 2.0), "scharr": (3.0, 10.0)}
"""Weight of the outer samples and of the middle one, across the direction of the difference."""


def image_gradients(image: Array, dims: int = 2, method: GradientMethod = "sobel", normalise: bool = False) -> Array:
    """Central differences along every image axis, smoothed along the others. Borders are mirrored.

    Args:
        image: real or complex `[..., (z,) y, x]`.
        dims: how many trailing axes form the image.
        method: smoothing weights 1 1 1 (``prewitt``), 1 2 1 (``sobel``) or 3 10 3 (``scharr``).
        normalise: divide by the sum of the weights and by 2, so that a slope of 1 per pixel gives 1 per pixel.

    Returns:
        `[..., (z,) y, x, axis]`, one difference an image axis.

    Raises:
        ValueError: unknown method, or too few axes.
    """
    if method not in _SMOOTHING:
        raise ValueError(f"method {method!r}: expected one of {', '.join(_SMOOTHING)}")
    if not 1 <= dims <= len(image.shape):
        raise ValueError(f"dims {dims}: the image of shape {tuple(image.shape)} has {len(image.shape)} axes")
    outer, middle = _SMOOTHING[method]
    weight = 1 / (2 * outer + middle) if normalise else 1.0
    axes = range(len(image.shape) - dims, len(image.shape))
    gradients = []
    for direction in axes:
        result = image
        for axis in axes:
            before, after = _neighbours(result, axis)
            if axis == direction:
                result = (after - before) * (0.5 if normalise else 1.0)
            else:
                result = (before + after) * (outer * weight) + result * (middle * weight)
        gradients.append(result)
    return namespace(image).stack(gradients, axis=-1)


def gradient_magnitude(image: Array, dims: int = 2, method: GradientMethod = "sobel", normalise: bool = False) -> Array:
    """Length of the gradient, real `[..., (z,) y, x]`. See `image_gradients`.

    The derivative of the length at zero is taken as zero, so that flat background does not turn a loss into NaN.
    """
    xp = namespace(image)
    return safe_sqrt(xp.sum(xp.abs(image_gradients(image, dims, method, normalise)) ** 2, axis=-1))


def total_variation(image: Array, axes: int | Sequence[int] | None = None, keepdims: bool = False) -> Array:
    """Anisotropic total variation: the sum of |differences of neighbours|.

    Rudin, Osher, Fatemi, Physica D 60 (1992). For a regulariser with a proximal map see the functionals.

    Args:
        image: real or complex, any shape.
        axes: axes along which to take differences and to sum; all by default.
        keepdims: keep the summed axes with length 1.

    Returns:
        Real array of the remaining axes.

    Raises:
        ValueError: an axis does not exist.
    """
    xp, rank = namespace(image), len(image.shape)
    chosen = tuple(range(rank)) if axes is None else (axes,) if isinstance(axes, int) else tuple(axes)
    if not chosen or any(not -rank <= axis < rank for axis in chosen):
        raise ValueError(f"axes {chosen}: the image of shape {tuple(image.shape)} has the axes {-rank} to {rank - 1}")
    total = 0
    for axis in chosen:
        difference = along(image, axis, slice(1, None)) - along(image, axis, slice(None, -1))
        total = total + xp.sum(xp.abs(difference), axis=chosen, keepdims=keepdims)
    return total


def along(image: Array, axis: int, part: slice) -> Array:
    """`image` with the slice `part` taken along one axis."""
    return image[(slice(None),) * (axis % len(image.shape)) + (part,)]


def safe_sqrt(values: Array) -> Array:
    """Square root of values >= 0 with derivative 0, not infinity, at 0."""
    xp = namespace(values)
    positive = values > 0
    return xp.where(positive, xp.sqrt(xp.where(positive, values, xp.ones_like(values))), xp.zeros_like(values))


def _neighbours(image: Array, axis: int) -> tuple[Array, Array]:
    """For every sample the one before and the one after it; the image is mirrored about its first and last sample."""
    xp = namespace(image)
    before = xp.concatenate([along(image, axis, slice(1, 2)), along(image, axis, slice(None, -1))], axis=axis)
    after = xp.concatenate([along(image, axis, slice(1, None)), along(image, axis, slice(-2, -1))], axis=axis)
    return before, after
