"""Discrete wavelet transforms of arrays and tensors, over any axes and levels; filters and boundaries are PyWavelets'.

The transform of an axis of n samples is a matrix [2 m, n] with one short filter in each row: approximations above,
details below. The matrix is made once per size by giving PyWavelets the unit vectors, so that every mode of it is exact
here; its transpose is the true adjoint. Arrays use it in sparse form, tensors in dense form: matrix products work in graphs
and in XLA and have gradients.

Mallat, IEEE Trans. Pattern Anal. Mach. Intell. 11 (1989); PyWavelets: Lee et al., J. Open Source Softw. 4 (2019).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import product
from typing import Any, TypeAlias

import numpy as np
import pywt
import scipy.sparse

from recon.arrays import Array, complex_dtype, concatenate, is_tensor, real_dtype

Coefficients: TypeAlias = list[Any]
"""[approximation, coarsest details, ..., finest details]; details are dictionaries with the keys of PyWavelets: one letter
for each axis, 'a' or 'd', for two axes 'ad', 'da' and 'dd'."""


class AxisMatrix:
    """A real, sparse matrix to apply along one axis of an array or a tensor.

    Args:
        dense: float64 `[rows, columns]`.
    """

    def __init__(self, dense: np.ndarray) -> None:
        self.dense = dense
        self._kept: dict[Any, Any] = {}

    def apply(self, x: Array, axis: int) -> Array:
        """Replace the axis, of `columns` samples, by one of `rows` samples; integers become float32."""
        if is_tensor(x):
            return self._apply_tensor(x, axis)
        dtype = complex_dtype(x)
        real = real_dtype(dtype)
        x = x.astype(dtype if x.dtype.kind == "c" else real, copy=False)
        if not isinstance(x, np.ndarray) and axis in (-1, -2) and x.ndim > 1:
            # On a GPU twice the multiplications of a complex matrix cost less than the copies that spare them.
            matrix = self._like(x, x.dtype)
            return matrix @ x if axis == -2 else x @ matrix.T
        moved = np.moveaxis(x, axis, 0)
        flat = moved.reshape(len(moved), -1)
        flat = flat if flat.flags.c_contiguous else flat.copy()
        # Real and imaginary parts are columns like any other.
        result = (self._like(x, real) @ flat.view(real)).view(flat.dtype)
        return np.moveaxis(result.reshape(-1, *moved.shape[1:]), 0, axis)

    def _like(self, x: Array, dtype: Any) -> Any:
        """The matrix for the processor and precision of `x`."""
        key = (type(x), dtype)
        if key not in self._kept:
            dense = self.dense.astype(dtype)
            if isinstance(x, np.ndarray):
                self._kept[key] = scipy.sparse.csr_array(dense)
            else:
                import cupy

                self._kept[key] = cupy.asarray(dense)
        return self._kept[key]

    def _apply_tensor(self, x: Any, axis: int) -> Any:
        import tensorflow as tf

        if x.dtype.is_complex:
            return tf.complex(self._apply_tensor(tf.math.real(x), axis), self._apply_tensor(tf.math.imag(x), axis))
        x = tf.cast(x, real_dtype(complex_dtype(x)))
        axis %= x.shape.rank
        first = tf.tensordot(tf.constant(self.dense, x.dtype), x, [[1], [axis]])
        order = [*range(1, axis + 1), 0, *range(axis + 1, x.shape.rank)]
        return tf.transpose(first, order) if axis else first


@lru_cache(256)
def analysis(size: int, wavelet: str, mode: str) -> AxisMatrix:
    """Matrix of the transform of `size` samples."""
    return AxisMatrix(np.concatenate(pywt.dwt(np.eye(size), wavelet, mode, axis=0)))


@lru_cache(256)
def analysis_transposed(size: int, wavelet: str, mode: str) -> AxisMatrix:
    """Matrix of the adjoint transform to `size` samples."""
    return AxisMatrix(np.ascontiguousarray(analysis(size, wavelet, mode).dense.T))


@lru_cache(256)
def synthesis(size: int, wavelet: str, mode: str) -> AxisMatrix:
    """Matrix of the inverse transform to `size` samples."""
    rows = len(analysis(size, wavelet, mode).dense)
    unit = np.eye(rows)
    return AxisMatrix(pywt.idwt(unit[: rows // 2], unit[rows // 2 :], wavelet, mode, axis=0)[:size])


def max_level(size: int, wavelet: str) -> int:
    """Levels until the filter is longer than what it filters.

    Args:
        size: samples of the shortest axis.
        wavelet: name of a discrete wavelet of PyWavelets.

    Raises:
        ValueError: the wavelet is unknown.
    """
    return int(pywt.dwt_max_level(size, _filter_length(wavelet)))


def dwt(x: Array, wavelet: str, mode: str = "symmetric", axes: Sequence[int] | None = None) -> dict[str, Array]:
    """One level of the wavelet transform.

    Args:
        x: real or complex array or tensor.
        wavelet: name of a discrete wavelet, such as 'haar', 'db4', 'sym4' or 'bior4.4' (`pywt.wavelist(kind="discrete")`).
        mode: what lies beyond the ends: 'symmetric', 'reflect', 'zero', 'periodization' or another of `pywt.Modes.modes`.
        axes: axes to transform; None for all.

    Returns:
        Subbands by key (see `Coefficients`), 'aa...' included. An axis of n samples becomes (n + length of filter - 1) // 2,
        or (n + 1) // 2 with periodization.

    Raises:
        ValueError: unknown wavelet or mode, no axis, an axis twice, an axis whose size is not known in a graph, or one of
            a single sample, which cannot be reflected.
    """
    axes = _check(x, wavelet, mode, axes)
    for axis in axes:
        if x.shape[axis] == 1 and mode in ("reflect", "antireflect"):
            raise ValueError(f"a single sample (axis {axis}) cannot be reflected; take fewer levels or another mode than {mode}")
        x = analysis(x.shape[axis], wavelet, mode).apply(x, axis)
    return _split(x, axes)


def idwt(
    subbands: dict[str, Array],
    wavelet: str,
    mode: str = "symmetric",
    axes: Sequence[int] | None = None,
    shape: Sequence[int] | None = None,
) -> Array:
    """Invert `dwt`.

    Args:
        subbands: all of them, as from `dwt`.
        wavelet, mode, axes: as for `dwt`.
        shape: sizes of the transformed axes in the result, which may be odd; None for the larger, even ones.

    Raises:
        ValueError: as `dwt`, or subbands are missing or do not fit the shape.
    """
    some = next(iter(subbands.values()))
    axes = _check(some, wavelet, mode, axes)
    sizes = _sizes(some, wavelet, mode, axes) if shape is None else tuple(shape)
    return _compose(subbands, sizes, axes, wavelet, mode, synthesis)


def wavedec(x: Array, wavelet: str, mode: str = "symmetric", level: int | None = None, axes: Sequence[int] | None = None) -> Coefficients:
    """Wavelet transform of several levels, as `pywt.wavedecn`.

    Args:
        x, wavelet, mode, axes: as for `dwt`.
        level: how many; None for `max_level` of the shortest axis.

    Returns:
        Approximation and details, see `Coefficients`.

    Raises:
        ValueError: as `dwt`, or a level below 0.
    """
    axes = _check(x, wavelet, mode, axes)
    details: list[dict[str, Array]] = []
    for _ in range(check_level([x.shape[axis] for axis in axes], wavelet, level)):
        subbands = dwt(x, wavelet, mode, axes)
        x = subbands.pop("a" * len(axes))
        details.append(subbands)
    return [x, *reversed(details)]


def waverec(
    coefficients: Coefficients,
    wavelet: str,
    mode: str = "symmetric",
    axes: Sequence[int] | None = None,
    shape: Sequence[int] | None = None,
) -> Array:
    """Invert `wavedec`, also in a graph.

    Args:
        coefficients: as from `wavedec`.
        wavelet, mode, axes, shape: as for `idwt`.

    Raises:
        ValueError: as `idwt`.
    """
    return _recompose(coefficients, wavelet, mode, axes, shape, synthesis)


def wavedec_adjoint(
    coefficients: Coefficients,
    wavelet: str,
    mode: str = "symmetric",
    axes: Sequence[int] | None = None,
    shape: Sequence[int] | None = None,
) -> Array:
    """Conjugate transpose of `wavedec`: the inverse only for orthogonal wavelets, periodization and even sizes.

    Args and errors: see `waverec`.
    """
    return _recompose(coefficients, wavelet, mode, axes, shape, analysis_transposed)


def check_level(sizes: Sequence[int], wavelet: str, level: int | None) -> int:
    """Number of levels: that given, or as many as make sense for axes of these sizes."""
    if level is None:
        return max_level(min(sizes), wavelet)
    if level < 0:
        raise ValueError(f"level must be 0 or more, not {level}")
    return level


Matrices = Callable[[int, str, str], AxisMatrix]


def _recompose(
    coefficients: Coefficients, wavelet: str, mode: str, axes: Sequence[int] | None, shape: Sequence[int] | None, matrices: Matrices
) -> Array:
    x, levels = coefficients[0], coefficients[1:]
    axes = _check(x, wavelet, mode, axes)
    for i, details in enumerate(levels):
        some = next(iter(details.values()))
        if i + 1 < len(levels):
            finer = next(iter(levels[i + 1].values()))
            sizes = tuple(finer.shape[axis] for axis in axes)
        else:
            sizes = _sizes(some, wavelet, mode, axes) if shape is None else tuple(shape)
        x = _compose({"a" * len(axes): x, **details}, sizes, axes, wavelet, mode, matrices)
    return x


def _compose(subbands: dict[str, Array], sizes: Sequence[int], axes: tuple[int, ...], wavelet: str, mode: str, matrices: Matrices) -> Array:
    """Join the subbands and apply a matrix along every axis."""
    x = _join(subbands, axes)
    for axis, size in zip(axes, sizes, strict=True):
        matrix = matrices(size, wavelet, mode)
        if matrix.dense.shape[1] != x.shape[axis]:
            raise ValueError(
                f"wavelet coefficients of {x.shape[axis] // 2} samples along axis {axis} do not fit {size} samples; "
                f"{wavelet} with mode {mode} has {matrix.dense.shape[1] // 2} for them"
            )
        x = matrix.apply(x, axis)
    return x


def _sizes(subband: Array, wavelet: str, mode: str, axes: tuple[int, ...]) -> tuple[int, ...]:
    """Even sizes whose transform has the size of `subband`."""
    trim = 0 if mode == "periodization" else _filter_length(wavelet) - 2
    return tuple(2 * subband.shape[axis] - trim for axis in axes)


def _split(x: Array, axes: tuple[int, ...]) -> dict[str, Array]:
    """Halves along all axes, by key."""
    subbands = {}
    for letters in product("ad", repeat=len(axes)):
        index: list[Any] = [slice(None)] * len(x.shape)
        for axis, letter in zip(axes, letters, strict=True):
            half = x.shape[axis] // 2
            index[axis] = slice(half) if letter == "a" else slice(half, None)
        subbands["".join(letters)] = x[tuple(index)]
    return subbands


def _join(subbands: dict[str, Array], axes: tuple[int, ...]) -> Array:
    """Invert `_split`, the last axis first."""
    for axis in reversed(axes):
        keys = sorted({key[:-1] for key in subbands})
        missing = [key + letter for key in keys for letter in "ad" if key + letter not in subbands]
        if missing:
            raise ValueError(f"wavelet subbands {missing} are missing; there are {sorted(subbands)}")
        subbands = {key: concatenate([subbands[key + "a"], subbands[key + "d"]], axis) for key in keys}
    return subbands[""]


@lru_cache
def _filter_length(wavelet: str) -> int:
    if wavelet not in pywt.wavelist(kind="discrete"):
        raise ValueError(f"no discrete wavelet is named {wavelet!r}; names are haar, db1-db38, sym2-sym20, coif1-coif17, bior2.2, ...")
    return int(pywt.Wavelet(wavelet).dec_len)


def _check(x: Array, wavelet: str, mode: str, axes: Sequence[int] | None) -> tuple[int, ...]:
    """Axes as negative numbers."""
    _filter_length(wavelet)
    if mode not in pywt.Modes.modes:
        raise ValueError(f"mode must be one of {', '.join(pywt.Modes.modes)}, not {mode!r}")
    rank = len(x.shape)
    chosen = range(-rank, 0) if axes is None else axes
    if any(not -rank <= axis < rank for axis in chosen):
        raise ValueError(f"axes {list(chosen)} do not exist in an array of shape {tuple(x.shape)}")
    result = tuple(axis - rank if axis >= 0 else axis for axis in chosen)
    if not result or len(set(result)) != len(result):
        raise ValueError(f"axes must be at least one, and each only once, not {list(chosen)}")
    if any(x.shape[axis] is None for axis in result):
        raise ValueError(f"the sizes of axes {list(result)} must be known, but the tensor has shape {x.shape}; set its shape")
    return result
