"""The base of all linear operators."""

from __future__ import annotations

from abc import ABC, abstractmethod

from recon.arrays import Array


class LinearOperator(ABC):
    """A linear map between arrays, with leading batch axes; subclasses give `forward` and `adjoint`.

    `operator(x)` applies it, `operator.H` is its adjoint, `operator.gram` is A^H A, `a @ b` applies `b` first.
    The adjoint is the conjugate transpose: <A x, y> = <x, A^H y>.
    """

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


class Gram(LinearOperator):
    """A^H A."""

    def __init__(self, operator: LinearOperator) -> None:
        self.operator = operator

    def forward(self, x: Array) -> Array:
        return self.operator.adjoint(self.operator.forward(x))

    def adjoint(self, y: Array) -> Array:
        return self.forward(y)
