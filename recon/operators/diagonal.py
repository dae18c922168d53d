"""Multiplication pixel by pixel."""

from __future__ import annotations

import numpy as np

from recon.arrays import Array, is_tensor, matched
from recon.operators.linear import LinearOperator
from recon.operators.shapes import check_fit


class Identity(LinearOperator):
    """I; `mu * Identity()` is a multiple of it."""

    def forward(self, x: Array) -> Array:
        return x

    def adjoint(self, y: Array) -> Array:
        return y

    @property
    def gram(self) -> LinearOperator:
        return self


class Diagonal(LinearOperator):
    """diag(d): multiply with `values`, for instance the root of density weights.

    Args:
        values: real or complex array or tensor, broadcast against the last axes of the argument.

    Raises:
        ValueError: an array holds values that are not finite, or does not fit the argument.
    """

    name = "values"

    def __init__(self, values: Array) -> None:
        if not is_tensor(values):
            values = values if hasattr(values, "dtype") else np.asarray(values)
            if not bool(np.isfinite(values).all()):
                raise ValueError("values of a diagonal operator must be finite; some are NaN or Inf")
        self.values = values

    def forward(self, x: Array) -> Array:
        check_fit(self.name, self.values.shape, x)
        return x * matched(self.values, x)

    def adjoint(self, y: Array) -> Array:
        check_fit(self.name, self.values.shape, y)
        if is_tensor(self.values):
            import tensorflow as tf

            return y * matched(tf.math.conj(self.values), y)
        return y * matched(self.values.conj(), y)


class Mask(Diagonal):
    """A sampling mask: keep some values, set the others to zero. It is a projection, M^H M = M.

    Args:
        mask: boolean, or numbers that are all 0 or 1, broadcast against the last axes of the argument.

    Raises:
        ValueError: other numbers, no value is kept, or the mask does not fit the argument.
    """

    name = "mask"

    def __init__(self, mask: np.ndarray) -> None:
        mask = np.asarray(mask)
        if not np.isin(mask, (0, 1)).all():
            raise ValueError("a mask holds only 0 and 1 (or False and True); for other numbers use Diagonal")
        if not mask.any():
            raise ValueError(f"mask of shape {mask.shape} keeps nothing: all of its values are zero")
        super().__init__(mask.astype(np.float32))

    @property
    def gram(self) -> LinearOperator:
        return self
