"""Total generalised variation of second order: smooth ramps cost little, where total variation makes stairs of them."""

from __future__ import annotations

from typing import Any

from recon.arrays import Array
from recon.functionals.base import Functional, positive
from recon.functionals.norms import GroupL2
from recon.namespace import namespace, times
from recon.operators.differences import Gradient, SymmetrisedGradient
from recon.operators.linear import LinearOperator
from recon.solvers.primal_dual import primal_dual


class TGV(Functional):
    """weight min over fields w of |grad x - w| + ratio |E w|, E being the symmetrised gradient, norms summed over pixels.

    Bredies, Kunisch, Pock, SIAM J. Imaging Sci. 3 (2010); Knoll et al., Magn. Reson. Med. 65 (2011), with ratio 2.

    Solvers that split work on image and field at once, `[..., 1 + rank, *image]` (the image first): `terms` are the two
    summands for that array, and `Image` takes the image out of it. Value and proximal map iterate.

    Args:
        weight: at least 0, in the units of x.
        ratio: above 0, in pixels.
        rank: number of image axes, the last ones.
        iterations: of the value and the proximal map.
    """

    def __init__(self, weight: float = 1.0, ratio: float = 2.0, rank: int = 2, iterations: int = 200) -> None:
        self.weight = positive("weight", weight)
        if not ratio > 0:
            raise ValueError(f"ratio must be above 0, not {ratio}")
        self.rank, self.iterations = rank, iterations
        self._first, self._second = GroupL2(weight, -rank - 1), GroupL2(weight * ratio, -rank - 1)
        self._gradient, self._symmetrised = Gradient(rank), SymmetrisedGradient(rank)

    @property
    def terms(self) -> list[tuple[LinearOperator, Functional]]:
        """Pairs of operator and norm for `primal_dual`, on image and field."""
        return [(_Remainder(self.rank), self._first), (_Bending(self.rank), self._second)]

    def __call__(self, x: Array) -> Any:
        gradient = self._gradient(x)

        def prox(field: Array, step: Any) -> Array:
            return gradient + self._first.prox(field - gradient, step)

        field = primal_dual([(self._symmetrised, self._second)], gradient, prox, self.iterations)
        return self._first(gradient - field) + self._second(self._symmetrised(field))

    def prox(self, x: Array, step: Any = 1.0) -> Array:
        image = Image(self.rank)

        def pull(both: Array, size: Any) -> Array:
            """The proximal map of |image - x|^2 / (2 step)."""
            part = image(both)
            strength = size / step
            return both + image.adjoint(times(strength / (1 + strength), x - part))

        return image(primal_dual(self.terms, image.adjoint(x), pull, self.iterations))


class Image(LinearOperator):
    """The image of image and field, `[..., 1 + rank, *image]` to `[..., *image]`; `adjoint` puts zeros for the field."""

    def __init__(self, rank: int = 2) -> None:
        self.rank = rank

    def forward(self, x: Array) -> Array:
        return _component(x, 0, self.rank)

    def adjoint(self, y: Array) -> Array:
        space = namespace(y)
        return space.stack([y, *[space.zeros_like(y)] * self.rank], -self.rank - 1)


class _Field(LinearOperator):
    """The field of image and field, `[..., 1 + rank, *image]` to `[..., rank, *image]`."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def forward(self, x: Array) -> Array:
        return _component(x, slice(1, None), self.rank)

    def adjoint(self, y: Array) -> Array:
        space = namespace(y)
        parts = [_component(y, n, self.rank) for n in range(self.rank)]
        return space.stack([space.zeros_like(parts[0]), *parts], -self.rank - 1)


class _Remainder(LinearOperator):
    """The gradient of the image less the field."""

    def __init__(self, rank: int) -> None:
        self.image, self.field, self.gradient = Image(rank), _Field(rank), Gradient(rank)

    def forward(self, x: Array) -> Array:
        return self.gradient(self.image(x)) - self.field(x)

    def adjoint(self, y: Array) -> Array:
        return self.image.adjoint(self.gradient.adjoint(y)) - self.field.adjoint(y)


class _Bending(LinearOperator):
    """The symmetrised gradient of the field."""

    def __init__(self, rank: int) -> None:
        self.field, self.symmetrised = _Field(rank), SymmetrisedGradient(rank)

    def forward(self, x: Array) -> Array:
        return self.symmetrised(self.field(x))

    def adjoint(self, y: Array) -> Array:
        return self.field.adjoint(self.symmetrised.adjoint(y))


def _component(x: Array, which: int | slice, rank: int) -> Array:
    index: tuple[Any, ...] = (..., which, *[slice(None)] * rank)
    return x[index]
