"""A functional of a linear operator's result: f(K x)."""

from __future__ import annotations

from typing import Any

from recon.arrays import Array, is_tensor
from recon.functionals.base import Functional
from recon.namespace import iterate, number, root, times
from recon.operators.linear import LinearOperator


class Composed(Functional):
    """f(K x), for example total variation: a norm of finite differences.

    The proximal map minimises step f(K u) + |u - x|^2 / 2 through its dual, min over p of |x - K^H p|^2 / 2 + (step f)*(p)
    with u = x - K^H p, by fast projected gradients: Beck and Teboulle, IEEE Trans. Image Process. 18 (2009).

    Args:
        functional: f.
        operator: K.
        norm_squared: at least the largest eigenvalue of K^H K.
        iterations: of the proximal map. Solvers that split (ADMM, primal-dual) do not need it.
    """

    def __init__(self, functional: Functional, operator: LinearOperator, norm_squared: float, iterations: int = 50) -> None:
        if not norm_squared > 0:
            raise ValueError(f"norm_squared must be above 0, not {norm_squared}; recon.solvers.power_iteration finds it")
        self.functional, self.operator = functional, operator
        self.norm_squared, self.iterations = float(norm_squared), int(iterations)

    def __call__(self, x: Array) -> Any:
        return self.functional(self.operator(x))

    def prox(self, x: Array, step: Any = 1.0) -> Array:
        operator, rate = self.operator, 1 / self.norm_squared

        def descend(point: Array) -> Array:
            # (step f)*(p) = step f*(p / step): its proximal map is that of f*, scaled.
            point = point + times(rate, operator(x - operator.adjoint(point)))
            return times(step, self.functional.conjugate_prox(times(1 / step, point), rate / step))

        def advance(dual: Array, point: Array, momentum: Any) -> tuple[Array, Array, Any]:
            updated = descend(point)
            longer = 0.5 + root(0.25 + momentum * momentum)
            return updated, updated + times((momentum - 1) / longer, updated - dual), longer

        start = times(0.0, operator(x))
        dual = iterate(lambda *_: True, advance, (start, start, number(1.0, x)), self.iterations, is_tensor(x))[0]
        return x - operator.adjoint(dual)
