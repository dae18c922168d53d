"""Image quality measures against a reference: NRMSE, PSNR, SSIM, multiscale SSIM, GMSD.

All take NumPy arrays and give NumPy values of double precision, or take tensors and give tensors that can be
differentiated, in eager mode and in graphs: `1 - ssim(reference, image, 1.0, dims=2)` is a loss. The last `dims` axes
form an image, all others are batch axes of the result; without `dims` all axes form one image. Complex images are
compared as they are by `nrmse`, by their magnitudes otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from recon.arrays import Array, is_tensor
from recon.image_gradients import along, gradient_magnitude, safe_sqrt
from recon.namespace import namespace

DataRange: TypeAlias = Any
"""Difference between the largest and the smallest possible value, a number or one an image; None takes it from each reference image."""

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Exponents of the five scales of `ms_ssim`, finest first."""

_WINDOW = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
_WINDOW /= _WINDOW.sum()
_LUMINANCE, _CONTRAST = 0.01, 0.03
_GRADIENT_CONSTANT = 170 / 255**2


def nrmse(reference: Array, image: Array, dims: int | None = None) -> Array:
    """|image - reference| / |reference| (l2 over the image), real or complex.

    Args:
        reference: `[..., (z,) y, x]`.
        image: of the same shape.
        dims: how many trailing axes form an image; all by default.

    Returns:
        Real `[...]`.

    Raises:
        ValueError: shapes differ.
    """
    reference, image, axes = _prepare(reference, image, dims, magnitude=False)
    xp = namespace(image)
    error, scale = xp.sum(xp.abs(image - reference) ** 2, axis=axes), xp.sum(xp.abs(reference) ** 2, axis=axes)
    return safe_sqrt(error) / xp.sqrt(scale)


def psnr(reference: Array, image: Array, data_range: DataRange = None, dims: int | None = None) -> Array:
    """Peak signal-to-noise ratio of the magnitudes in dB: 10 log10(range^2 / mean squared error); infinite for equal images.

    Args:
        reference: `[..., (z,) y, x]`.
        image: of the same shape.
        data_range: see `DataRange`.
        dims: how many trailing axes form an image; all by default.

    Returns:
        Real `[...]`.

    Raises:
        ValueError: shapes differ.
    """
    reference, image, axes = _prepare(reference, image, dims)
    xp = namespace(image)
    with np.errstate(divide="ignore"):
        return -10 / np.log(10) * xp.log(xp.mean((image - reference) ** 2, axis=axes) / _squared_range(reference, data_range, axes))


def ssim(reference: Array, image: Array, data_range: DataRange = None, dims: int | None = None) -> Array:
    """Mean structural similarity of magnitude images in two or three dimensions; 1 for equal images.

    Wang, Bovik, Sheikh, Simoncelli, IEEE Trans. Image Process. 13 (2004): Gaussian window of 11 samples an axis and
    width 1.5, constants 0.01 and 0.03; windows that cross the border are left out.

    Args:
        reference: `[..., (z,) y, x]`.
        image: of the same shape.
        data_range: see `DataRange`.
        dims: how many trailing axes form an image, 2 or 3; all by default.

    Returns:
        Real `[...]`.

    Raises:
        ValueError: shapes differ, or the image is smaller than the window.
    """
    reference, image, axes = _prepare(reference, image, dims)
    _check_size("ssim", reference, axes, 11)
    return _similarity(reference, image, _squared_range(reference, data_range, axes, keepdims=True), axes)[0]


def ms_ssim(
    reference: Array,
    image: Array,
    data_range: DataRange = None,
    dims: int | None = None,
    weights: Sequence[float] = SCALE_WEIGHTS,
) -> Array:
    """Structural similarity over several scales, each half the resolution of the one before.

    Wang, Simoncelli, Bovik, Asilomar Conf. Signals Syst. Comput. (2003): the product of the contrast and structure term
    of every scale and the luminance of the last, to the power of `weights`. Negative terms count as zero; axes of odd
    length are continued by their last sample before halving.

    Args:
        reference: `[..., (z,) y, x]`, at least 161 samples an axis with five scales.
        image: of the same shape.
        data_range: see `DataRange`.
        dims: how many trailing axes form an image, 2 or 3; all by default.
        weights: exponent of each scale, finest first.

    Returns:
        Real `[...]`.

    Raises:
        ValueError: shapes differ, or the image is too small for the number of scales.
    """
    reference, image, axes = _prepare(reference, image, dims)
    _check_size("ms_ssim", reference, axes, 10 * 2 ** (len(weights) - 1) + 1)
    squared_range = _squared_range(reference, data_range, axes, keepdims=True)
    product: Any = 1
    for scale, weight in enumerate(weights):
        if scale:
            reference, image = _halve(reference, axes), _halve(image, axes)
        whole, contrast = _similarity(reference, image, squared_range, axes)
        product = product * _power(whole if scale == len(weights) - 1 else contrast, weight)
    return product


def gmsd(reference: Array, image: Array, data_range: DataRange = None, dims: int | None = None) -> Array:
    """Gradient magnitude similarity deviation of magnitude images in two or three dimensions; 0 for equal images.

    Xue, Zhang, Mou, Bovik, IEEE Trans. Image Process. 23 (2014): standard deviation of the similarity of Prewitt
    gradients at half the resolution, with the constant 170 for a range of 255.

    Args:
        reference: `[..., (z,) y, x]`, at least 3 samples an axis.
        image: of the same shape.
        data_range: see `DataRange`.
        dims: how many trailing axes form an image, 2 or 3; all by default.

    Returns:
        Real `[...]`.

    Raises:
        ValueError: shapes differ, or the image is too small.
    """
    reference, image, axes = _prepare(reference, image, dims)
    _check_size("gmsd", reference, axes, 3)
    xp = namespace(image)
    constant = _GRADIENT_CONSTANT * _squared_range(reference, data_range, axes, keepdims=True)
    # The paper's Prewitt kernels difference samples two pixels apart without halving: twice the slope per pixel.
    a, b = (2 * gradient_magnitude(_halve(x, axes), len(axes), "prewitt", normalise=True) for x in (reference, image))
    similarity = (2 * a * b + constant) / (a**2 + b**2 + constant)
    mean = xp.mean(similarity, axis=axes, keepdims=True)
    return safe_sqrt(xp.mean((similarity - mean) ** 2, axis=axes))


def _prepare(reference: Array, image: Array, dims: int | None, magnitude: bool = True) -> tuple[Array, Array, tuple[int, ...]]:
    """Both images as real (unless not `magnitude`) arrays of one kind and precision, and the axes of an image."""
    if is_tensor(reference, image):
        kind = (image if is_tensor(image) else reference).dtype
        reference, image = _tensor(reference, kind), _tensor(image, kind)
        if reference.dtype != image.dtype:
            raise ValueError(f"images of types {reference.dtype.name} and {image.dtype.name} cannot be compared; cast one of them")
        fits = reference.shape.rank is not None and reference.shape.is_compatible_with(image.shape)
    else:
        reference, image = _double(reference), _double(image)
        fits = reference.shape == image.shape
    if not fits:
        raise ValueError(f"images of shapes {reference.shape} and {image.shape} cannot be compared")
    rank = len(reference.shape)
    count = rank if dims is None else dims
    if not 1 <= count <= rank:
        raise ValueError(f"dims {dims}: images of shape {tuple(reference.shape)} have {rank} axes")
    if magnitude:
        reference, image = _magnitude(reference), _magnitude(image)
    return reference, image, tuple(range(rank - count, rank))


def _double(values: Any) -> np.ndarray:
    array = np.asarray(values)
    return array.astype(np.complex128 if np.iscomplexobj(array) else np.float64, copy=False)


def _tensor(values: Any, dtype: Any) -> Any:
    """`values` as a tensor that can be differentiated; constants take the `dtype` of the tensor they are compared with."""
    import tensorflow as tf

    tensor = values if is_tensor(values) else tf.cast(np.asarray(values), dtype)
    return tf.cast(tensor, tf.float32) if tensor.dtype.is_integer else tf.convert_to_tensor(tensor)


def _magnitude(values: Array) -> Array:
    is_complex = values.dtype.is_complex if is_tensor(values) else np.iscomplexobj(values)
    return namespace(values).abs(values) if is_complex else values


def _check_size(name: str, image: Array, axes: tuple[int, ...], least: int) -> None:
    sizes = [image.shape[axis] for axis in axes]
    if len(axes) not in (2, 3) or any(n is not None and n < least for n in sizes):
        smallest = " x ".join([str(least)] * (len(axes) if len(axes) in (2, 3) else 2))
        raise ValueError(f"{name} compares images of two or three axes and at least {smallest} pixels, not {tuple(sizes)}; see dims")


def _squared_range(reference: Array, data_range: DataRange, axes: tuple[int, ...], keepdims: bool = False) -> Array:
    """Squared data range, scalar or one an image (with `keepdims` to be combined with images)."""
    xp = namespace(reference)
    if data_range is None:
        data_range = xp.max(reference, axis=axes, keepdims=keepdims) - xp.min(reference, axis=axes, keepdims=keepdims)
    elif keepdims and len(getattr(data_range, "shape", ())):
        for _ in axes:
            data_range = data_range[..., None]
    return data_range**2


def _similarity(a: Array, b: Array, squared_range: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Mean over the image of the structural similarity, and of its contrast and structure term alone."""
    low, high = _LUMINANCE**2 * squared_range, _CONTRAST**2 * squared_range
    mean_a, mean_b = _window_mean(a, axes), _window_mean(b, axes)
    product, squares = mean_a * mean_b, mean_a**2 + mean_b**2
    contrast = (2 * (_window_mean(a * b, axes) - product) + high) / (_window_mean(a**2 + b**2, axes) - squares + high)
    xp = namespace(a)
    return xp.mean((2 * product + low) / (squares + low) * contrast, axis=axes), xp.mean(contrast, axis=axes)


def _window_mean(image: Array, axes: tuple[int, ...]) -> Array:
    """Gaussian average over windows of 11 samples an axis that lie inside the image."""
    if not is_tensor(image):
        return _window_sum(image, axes)
    import tensorflow as tf

    margins = [(10, 10) if axis in axes else (0, 0) for axis in range(len(image.shape))]

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def mean(values: Any) -> Any:
        # The window is symmetric: the transpose of the average is the average of the padded array, a third of the work
        # of differentiating slice by slice.
        return _window_sum(values, axes), lambda upstream: _window_mean(tf.pad(upstream, margins), axes)

    return mean(image)


def _window_sum(image: Array, axes: tuple[int, ...]) -> Array:
    """See `_window_mean`.

    A sum of shifted slices: unlike convolutions and matrix products on a GPU it never runs at reduced precision, which
    the differences of large numbers that follow would not survive.
    """
    for axis in axes:
        total = _WINDOW[5] * along(image, axis, slice(5, -5))
        for shift in range(5):
            before, after = along(image, axis, slice(shift, shift - 10)), along(image, axis, slice(10 - shift, -shift or None))
            total = total + _WINDOW[shift] * (before + after)
        image = total
    return image


def _halve(image: Array, axes: tuple[int, ...]) -> Array:
    """Mean of neighbouring pairs along each axis; the last sample of an odd axis is its own neighbour."""
    xp = namespace(image)
    for axis in axes:
        continued = xp.concatenate([image, along(image, axis, slice(-1, None))], axis=axis)
        image = (along(image, axis, slice(None, None, 2)) + along(continued, axis, slice(1, None, 2))) / 2
    return image


def _power(values: Array, exponent: float) -> Array:
    """max(values, 0) ^ exponent with derivative 0, not infinity, at and below 0."""
    xp = namespace(values)
    positive = values > 0
    return xp.where(positive, xp.where(positive, values, xp.ones_like(values)) ** exponent, xp.zeros_like(values))
