"""The base of all linear operators."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import reduce
from operator import add
from typing import Any

from recon.arrays import Array, is_tensor


class LinearOperator(ABC):
    """A linear map between arrays, with leading batch axes; subclasses give `forward` and `adjoint`.

    `operator(x)` applies it, `operator.H` is its adjoint, `operator.gram` is A^H A, `a @ b` applies `b` first, and
    `a + b`, `a - b`, `-a` and `2 * a` are what they say. The adjoint is the conjugate transpose: <A x, y> = <x, A^H y>.
    """

    # Without this a NumPy number on the left of `*` would try to multiply element by element.
    __array_ufunc__ = None

    @abstractmethod
    def forward(self, x: Array) -> Array:
        """Apply the operator."""

    @abstractmethod
    def adjoint(self, y: Array) -> Array:
        """Apply the conjugate transpose."""

    def __call__(self, x: Array) -> Array:
        return self.forward(x)

    def __matmul__(self, inner: LinearOperator) -> LinearOperator:
        return Composition(self, inner)

    def __add__(self, other: LinearOperator) -> LinearOperator:
        return Sum(self, other)

    def __sub__(self, other: LinearOperator) -> LinearOperator:
        return Sum(self, -other)

    def __neg__(self) -> LinearOperator:
        return Scaled(self, -1.0)

    def __mul__(self, scale: Any) -> LinearOperator:
        return Scaled(self, scale)

    __rmul__ = __mul__

    @property
    def H(self) -> LinearOperator:
        """The adjoint as an operator."""
        return Adjoint(self)

    @property
    def gram(self) -> LinearOperator:
        """A^H A, self-adjoint; subclasses may know a faster way than both in turn."""
        return Gram(self)


class Adjoint(LinearOperator):
    """A^H."""

    def __init__(self, operator: LinearOperator) -> None:
        self.operator = operator

    def forward(self, x: Array) -> Array:
        return self.operator.adjoint(x)

    def adjoint(self, y: Array) -> Array:
        return self.operator.forward(y)

    @property
    def H(self) -> LinearOperator:
        return self.operator


class Composition(LinearOperator):
    """A B: first `inner`, then `outer`."""

    def __init__(self, outer: LinearOperator, inner: LinearOperator) -> None:
        self.outer, self.inner = outer, inner

    def forward(self, x: Array) -> Array:
        return self.outer.forward(self.inner.forward(x))

    def adjoint(self, y: Array) -> Array:
        return self.inner.adjoint(self.outer.adjoint(y))

    @property
    def gram(self) -> LinearOperator:
        """B^H (A^H A) B, with the Gram operator that A knows."""
        return Composition(self.inner.H, Composition(self.outer.gram, self.inner))


class Sum(LinearOperator):
    """A + B + ..., of operators with the same domain and range.

    Raises:
        ValueError: no operator is given.
    """

    def __init__(self, *operators: LinearOperator) -> None:
        if not operators:
            raise ValueError("a sum of operators needs at least one operator")
        self.operators = operators

    def forward(self, x: Array) -> Array:
        return reduce(add, [operator.forward(x) for operator in self.operators])

    def adjoint(self, y: Array) -> Array:
        return reduce(add, [operator.adjoint(y) for operator in self.operators])


class Scaled(LinearOperator):
    """s A, with a real or complex number s: Python's, NumPy's or a scalar tensor (which may be trained).

    Raises:
        ValueError: `scale` is not a single number.
    """

    def __init__(self, operator: LinearOperator, scale: Any) -> None:
        if not is_tensor(scale):
            # As a Python number it leaves the precision of what it multiplies alone.
            scale = complex(scale) if _is_complex(scale) else float(scale)
        elif scale.shape.rank != 0:
            raise ValueError(f"operators are scaled by a number, not by a tensor of shape {scale.shape}; use Diagonal for that")
        self.operator, self.scale = operator, scale

    def forward(self, x: Array) -> Array:
        return self._times(self.operator.forward(x), self.scale)

    def adjoint(self, y: Array) -> Array:
        return self._times(self.operator.adjoint(y), _conjugate(self.scale))

    @staticmethod
    def _times(x: Array, scale: Any) -> Array:
        if is_tensor(x, scale):
            import tensorflow as tf

            return x * tf.cast(scale, x.dtype)
        return x * scale


def _is_complex(scale: Any) -> bool:
    if getattr(scale, "shape", ()) != ():
        raise ValueError(f"operators are scaled by a number, not by an array of shape {scale.shape}; use Diagonal for that")
    return isinstance(scale, complex) or getattr(getattr(scale, "dtype", None), "kind", "") == "c"


def _conjugate(scale: Any) -> Any:
    if is_tensor(scale):
        import tensorflow as tf

        return tf.math.conj(scale)
    return scale.conjugate()


class Gram(LinearOperator):
    """A^H A."""

    def __init__(self, operator: LinearOperator) -> None:
        self.operator = operator

    def forward(self, x: Array) -> Array:
        return self.operator.adjoint(self.operator.forward(x))

    def adjoint(self, y: Array) -> Array:
        return self.forward(y)
