"""Accelerated proximal gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from recon.arrays import Array, is_tensor
from recon.namespace import choose, inner, iterate, number, root, times


def fista(
    gradient: Callable[[Array], Array],
    prox: Callable[[Array, Any], Array],
    initial: Array,
    step: float,
    iterations: int = 50,
    tolerance: float = 0.0,
    restart: bool = True,
) -> Array:
    """Minimise f(x) + g(x), f smooth and g with a proximal map.

    Beck and Teboulle, SIAM J. Imaging Sci. 2 (2009); the momentum restarts where it points uphill: O'Donoghue and Candès,
    Found. Comput. Math. 15 (2015), gradient scheme.

    Args:
        gradient: x to the gradient of f, A^H (A x - y) for f = |A x - y|^2 / 2.
        prox: (x, step) to the u that minimises step g(u) + |u - x|^2 / 2, for example a functional's `prox`.
        initial: start; array or tensor (also inside `tf.function`).
        step: at most 1 / L with L the Lipschitz constant of the gradient (`power_iteration`).
        iterations: at most so many applications of `gradient`.
        tolerance: stop when |x_new - x| <= tolerance |x_new|.
        restart: adaptive restart of the momentum.

    Raises:
        ValueError: the step is not positive.
    """
    if not is_tensor(step) and not step > 0:
        raise ValueError(f"step must be above 0, not {step}")

    def go_on(_: Array, __: Array, ___: Any, moving: Any) -> Any:
        return moving

    def advance(x: Array, point: Array, momentum: Any, _: Any) -> tuple[Array, Array, Any, Any]:
        updated = prox(point - times(step, gradient(point)), step)
        change = updated - x
        if restart:
            momentum = choose(inner(point - updated, change) > 0, number(1.0, x), momentum)
        longer = 0.5 + root(0.25 + momentum * momentum)
        moving = inner(change, change) > tolerance**2 * inner(updated, updated) if tolerance else number(1.0, x) > 0
        return updated, updated + times((momentum - 1) / longer, change), longer, moving

    state = (initial, initial, number(1.0, initial), number(1.0, initial) > 0)
    result: Array = iterate(go_on, advance, state, iterations, is_tensor(initial))[0]
    return result
