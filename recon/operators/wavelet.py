"""The wavelet transform as an operator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from recon.arrays import Array, concatenate, reshape
from recon.operators.linear import LinearOperator
from recon.wavelets import Coefficients, analysis, analysis_transposed, check_level, wavedec, wavedec_adjoint, waverec


class Wavelet(LinearOperator):
    """Images `[..., *image_shape]` to wavelet coefficients `[..., count]`, the approximation first.

    `adjoint` is the conjugate transpose; `inverse` undoes `forward`. They are the same where `orthonormal` is true.

    Args:
        image_shape: size of the axes to transform, the last ones of an image.
        wavelet: name of an orthogonal or biorthogonal wavelet, see `recon.wavelets.dwt`.
        mode: what lies beyond the edges. Periodization has as many coefficients as (even) samples and is orthonormal for
            orthogonal wavelets; the other modes have more.
        level: how many; None for as many as the shortest axis allows.

    Raises:
        ValueError: unknown wavelet or mode, a level below 0, or an argument of another shape.
    """

    def __init__(self, image_shape: Sequence[int], wavelet: str = "db4", mode: str = "periodization", level: int | None = None) -> None:
        self.image_shape = tuple(int(n) for n in image_shape)
        if not self.image_shape or min(self.image_shape) < 1:
            raise ValueError(f"image_shape must be one or more positive sizes, not {self.image_shape}")
        self.axes = tuple(range(-len(self.image_shape), 0))
        self.wavelet, self.mode = wavelet, mode
        self.level = check_level(self.image_shape, wavelet, level)
        probe = wavedec(np.empty(self.image_shape, np.float32), wavelet, mode, self.level)
        self._approximation = probe[0].shape
        self._details = [{key: part.shape for key, part in details.items()} for details in probe[1:]]
        self.count = math.prod(self._approximation) + sum(math.prod(shape) for d in self._details for shape in d.values())

    @property
    def approximations(self) -> int:
        """How many coefficients, the first ones, are the approximation."""
        return math.prod(self._approximation)

    @property
    def orthonormal(self) -> bool:
        """Tell whether the adjoint is the inverse."""
        finer = [shape for details in self._details[1:] for shape in details.values()]
        sizes = {size for shape in [self.image_shape, *finer] for size in shape} if self.level else set()
        return all(_is_orthogonal(analysis(size, self.wavelet, self.mode).dense) for size in sizes)

    def forward(self, x: Array) -> Array:
        self._check(x, self.image_shape)
        return self.pack(wavedec(x, self.wavelet, self.mode, self.level, self.axes))

    def adjoint(self, y: Array) -> Array:
        return wavedec_adjoint(self.unpack(y), self.wavelet, self.mode, self.axes, self.image_shape)

    def inverse(self, y: Array) -> Array:
        """The image `[..., *image_shape]` with these coefficients `[..., count]`."""
        return waverec(self.unpack(y), self.wavelet, self.mode, self.axes, self.image_shape)

    def nested(self, x: Array, inverse: bool = False) -> Array:
        """`forward` of an array, or its adjoint, with the coefficients in the place of pixels (Mallat's order) instead of side by side.

        Of transforms that are `orthonormal` only. On a GPU the copies of `pack` and `unpack` would take longer than the transform.
        """
        result = x.copy()
        for level in reversed(range(self.level)) if inverse else range(self.level):
            sizes = [n >> level for n in self.image_shape]
            inside: tuple[Any, ...] = (..., *map(slice, sizes))
            block = result[inside]
            for axis, n in zip(self.axes, sizes, strict=True):
                matrix = (analysis_transposed if inverse else analysis)(n, self.wavelet, self.mode)
                block = matrix.apply(block, axis)
            result[inside] = block
        return result

    def pack(self, coefficients: Coefficients) -> Array:
        """Put coefficients as from `recon.wavelets.wavedec` side by side, `[..., count]`."""
        parts = [coefficients[0], *(part for details in coefficients[1:] for part in details.values())]
        batch = list(parts[0].shape)[: -len(self.axes)]
        return concatenate([reshape(part, [*batch, math.prod(part.shape[-len(self.axes) :])]) for part in parts], -1)

    def unpack(self, y: Array) -> Coefficients:
        """Undo `pack`."""
        self._check(y, (self.count,))
        batch, start = list(y.shape)[:-1], 0

        def take(shape: tuple[int, ...]) -> Array:
            nonlocal start
            start, begin = start + math.prod(shape), start
            return reshape(y[..., begin:start], [*batch, *shape])

        approximation = take(self._approximation)
        return [approximation, *({key: take(shape) for key, shape in details.items()} for details in self._details)]

    def _check(self, x: Array, inner: tuple[int, ...]) -> None:
        if tuple(x.shape)[-len(inner) :] != inner:
            raise ValueError(f"the wavelet operator expects the last axes {inner}, not an argument of shape {tuple(x.shape)}")


def _is_orthogonal(matrix: np.ndarray) -> bool:
    rows, columns = matrix.shape
    return rows == columns and np.allclose(matrix.T @ matrix, np.eye(columns), atol=1e-8)
