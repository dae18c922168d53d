"""Size and scale of images: crop and pad about the centre, scale to a range. NumPy arrays and tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from recon.arrays import Array, is_tensor
from recon.namespace import namespace

PaddingMode = Literal["constant", "reflect", "symmetric"]


def resize_with_crop_or_pad(array: Array, shape: Sequence[int], mode: PaddingMode = "constant") -> Array:
    """Crop or pad the last axes to `shape` so that index n // 2 stays the origin.

    Images keep their place and k-space its centre, also between odd and even lengths. (TensorFlow MRI shifts by one
    sample where it crops an even to an odd length or pads an odd to an even one.)

    Args:
        array: `[..., *axes]`, real or complex.
        shape: new lengths of the last axes; -1 leaves an axis as it is.
        mode: what to pad with: zeros (``constant``), the mirrored image without (``reflect``) or with its last sample
            (``symmetric``).

    Returns:
        `[..., *shape]` of the dtype of `array`.

    Raises:
        ValueError: more lengths than axes, lengths below 1, a mirrored image larger than the original, or a tensor
            whose length along a resized axis is not known.
    """
    if mode not in ("constant", "reflect", "symmetric"):
        raise ValueError(f"mode {mode!r}: expected constant, reflect or symmetric")
    sizes = _sizes("resize_with_crop_or_pad", array, shape)
    margins = [(0, 0)] * (len(array.shape) - len(sizes))
    for size in sizes:
        length, wanted = size or (0, 0)
        before, after = max(wanted // 2 - length // 2, 0), max(wanted - wanted // 2 - (length - length // 2), 0)
        margins.append((before, after))
        most = {"constant": wanted, "reflect": length - 1, "symmetric": length}[mode]
        if size and max(before, after) > most:
            raise ValueError(
                f"resize_with_crop_or_pad: {mode} padding from {length} to {wanted} samples needs more than the mirrored image"
            )
    if any(sum(margin) for margin in margins):
        array = namespace(array).pad(array, margins, mode=mode)
    return central_crop(array, shape)


def central_crop(array: Array, shape: Sequence[int]) -> Array:
    """The centre of the last axes; index n // 2 stays the origin. See `resize_with_crop_or_pad`.

    Raises:
        ValueError: a length exceeds that of the array.
    """
    cuts: list[Any] = [...]
    for size in _sizes("central_crop", array, shape):
        length, wanted = size or (0, 0)
        if wanted > length:
            raise ValueError(f"central_crop: {wanted} samples wanted from {length}; resize_with_crop_or_pad pads")
        first = length // 2 - wanted // 2
        cuts.append(slice(first, first + wanted) if wanted < length else slice(None))
    return array[tuple(cuts)]


def scale_by_min_max(array: Array, minimum: float = 0.0, maximum: float = 1.0, dims: int | None = None) -> Array:
    """Scale linearly so that values run from `minimum` to `maximum`; of complex values the magnitude, keeping the phase.

    Args:
        array: `[..., *image]`, real or complex.
        minimum: smallest value of the result, at least 0 for complex values.
        maximum: largest value of the result.
        dims: how many trailing axes share one scale; all by default.

    Returns:
        Array of the shape and dtype of `array`; a constant image becomes `minimum`. Complex zeros get the phase 0.

    Raises:
        ValueError: the range is empty or, for complex values, negative, or there are fewer axes than `dims`.
    """
    xp = namespace(array)
    dtype = np.dtype(array.dtype.as_numpy_dtype if is_tensor(array) else array.dtype)
    if dtype.kind not in "fc":
        raise ValueError(f"scale_by_min_max: values of type {dtype}, expected floating point")
    if not minimum < maximum or (dtype.kind == "c" and minimum < 0):
        raise ValueError(f"scale_by_min_max: range {minimum} to {maximum}, expected rising values (and magnitudes of at least 0)")
    rank = len(array.shape)
    count = rank if dims is None else dims
    if not 0 < count <= rank:
        raise ValueError(f"scale_by_min_max: dims {dims}, the array has {rank} axes")
    axes = tuple(range(rank - count, rank))
    size = xp.abs(array) if dtype.kind == "c" else array
    low, high = xp.min(size, axis=axes, keepdims=True), xp.max(size, axis=axes, keepdims=True)
    span = xp.where(high > low, high - low, xp.ones_like(high))
    scaled = (size - low) / span * (maximum - minimum) + minimum
    if dtype.kind != "c":
        return scaled
    return _complex(scaled, dtype, array) * _phase(array, size, dtype)


def _phase(array: Array, size: Array, dtype: np.dtype) -> Array:
    """array / |array|, 1 where the array is zero."""
    xp = namespace(array)
    nonzero = size > 0
    return xp.where(nonzero, array / _complex(xp.where(nonzero, size, xp.ones_like(size)), dtype, array), xp.ones_like(array))


def _complex(values: Array, dtype: np.dtype, like: Array) -> Array:
    if is_tensor(like):
        import tensorflow as tf

        return tf.cast(values, like.dtype)
    return values.astype(dtype)


def _sizes(name: str, array: Array, shape: Sequence[int]) -> list[tuple[int, int] | None]:
    """(length, wanted length) of the last axes, None for those that stay."""
    rank = len(array.shape)
    if len(shape) > rank or any(n < 1 and n != -1 for n in shape):
        raise ValueError(f"{name}: shape {tuple(shape)} for an array of shape {tuple(array.shape)}; expected lengths of at least 1, or -1")
    pairs = list(zip(tuple(array.shape)[rank - len(shape) :], shape, strict=True))
    if any(length is None and wanted != -1 for length, wanted in pairs):
        raise ValueError(f"{name}: the length of an axis to resize is not known, shape {tuple(array.shape)}")
    return [None if wanted == -1 else (int(length), int(wanted)) for length, wanted in pairs]
