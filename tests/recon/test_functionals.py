"""Functionals: values by hand, proximal maps against their optimality, Moreau's identity and numerical minimisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from recon.functionals.base import Functional
from recon.functionals.composed import Composed
from recon.functionals.indicators import Box, L1Ball, L2Ball, LinfBall, Simplex
from recon.functionals.low_rank import LocallyLowRank, NuclearNorm
from recon.functionals.norms import L1, L2, GroupL2, Huber, SquaredL2
from recon.functionals.tgv import TGV, Image
from recon.functionals.total_variation import Differences, TotalVariation
from recon.functionals.wavelet import L1Wavelet
from tests.recon.conftest import random_complex, relative_error

SHAPE = (3, 4, 6)
PRIOR = random_complex(SHAPE, 9, "complex128")

# The accuracy of proximal maps that iterate is limited.
NORMS: dict[str, tuple[Functional, float]] = {
    "l1": (L1(0.7), 1e-12),
    "l1_weights": (L1(np.linspace(0, 1, 6)), 1e-12),
    "group_l2": (GroupL2(0.8, (-2, -1)), 1e-12),
    "l2": (L2(2.0), 1e-12),
    "squared_l2": (SquaredL2(0.7), 1e-12),
    "squared_l2_prior": (SquaredL2(0.7, PRIOR), 1e-12),
    "huber": (Huber(0.5, 0.7), 1e-12),
    "nuclear": (NuclearNorm(1.5), 1e-7),
    "nuclear_axis": (NuclearNorm(1.5, axis=-1), 1e-7),
    "locally_low_rank": (LocallyLowRank(0.6, (3, 4)), 1e-7),
    "wavelet": (L1Wavelet((4, 6), 0.5, "haar", 1), 1e-12),
    "wavelet_details": (L1Wavelet((4, 6), 0.5, "haar", 1, approximation=False), 1e-12),
    "tv": (TotalVariation(0.4, iterations=300), 1e-4),
    "tv_anisotropic": (TotalVariation(0.4, isotropic=False, iterations=300), 1e-4),
    "tv_temporal": (TotalVariation(0.4, axes=(-3,), iterations=300), 1e-4),
}
SETS: dict[str, tuple[Functional, float]] = {
    "linf_ball": (LinfBall(0.6), 1e-12),
    "l1_ball": (L1Ball(5.0), 1e-12),
    "l2_ball": (L2Ball(2.0), 1e-12),
    "l2_ball_centre": (L2Ball(2.0, PRIOR), 1e-12),
    "box": (Box(-0.3, 0.8), 1e-12),
    "simplex": (Simplex(2.0), 1e-12),
}
ALL = {**NORMS, **SETS}
# In fewer steps, where the same number of them is compared.
QUICK = {**ALL, "tgv": (TGV(0.4, iterations=8), 1e-9)}
REAL = ("box", "simplex")


def sample(name: str, seed: int) -> np.ndarray:
    values = random_complex(SHAPE, seed, "complex128")
    return values.real.copy() if name in REAL else values


def inner(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.vdot(a, b).real)


# --- properties of every proximal map ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NORMS)
def test_prox_beats_every_point_around_it(name: str) -> None:
    functional, accuracy = NORMS[name]
    step, x = 0.8, sample(name, 1)
    u = functional.prox(x, step)

    def objective(point: np.ndarray) -> float:
        return step * float(functional(point)) + 0.5 * inner(point - x, point - x)

    best = objective(u)
    random = np.random.default_rng(0)
    directions = [sample(name, 10 + n) for n in range(6)] + [x - u, -u, -x]
    for direction in directions:
        for size in 10.0 ** random.uniform(-4, 0, 3):
            assert objective(u + size * direction) >= best - 10 * accuracy * best
    assert objective(x) > best


@pytest.mark.parametrize("name", SETS)
def test_projection_is_the_nearest_point_of_the_set(name: str) -> None:
    functional, _ = SETS[name]
    x = 2 * sample(name, 1)
    u = functional.prox(x)
    assert functional(u) == 0
    assert functional(x) == float("inf")
    assert relative_error(u, functional.prox(u)) < 1e-12
    # No point v of the set lies behind the plane through u across x - u.
    for seed in range(2, 8):
        v = functional.prox(3 * sample(name, seed))
        assert inner(x - u, v - u) <= 1e-12 * inner(x, x)


@pytest.mark.parametrize("name", ALL)
def test_prox_is_firmly_nonexpansive(name: str) -> None:
    functional, accuracy = ALL[name]
    a, b = sample(name, 2), sample(name, 3)
    moved = functional.prox(a, 0.6) - functional.prox(b, 0.6)
    assert inner(moved, moved) <= inner(moved, a - b) + accuracy * inner(a, a)


@pytest.mark.parametrize("name", ALL)
def test_conjugate_prox_follows_from_moreau(name: str) -> None:
    functional, accuracy = ALL[name]
    y, step = sample(name, 4), 0.7
    expected = y - step * functional.prox(y / step, 1 / step)
    assert relative_error(expected, functional.conjugate_prox(y, step)) < 1e-9
    # p = prox(f*)(y) is a subgradient of f at u = (y - p) / step: f grows from u at least as fast as <p, .> does.
    p = functional.conjugate_prox(y, step)
    u = (y - p) / step
    if name in SETS:
        return
    for seed in range(5, 8):
        v = sample(name, seed)
        assert float(functional(v)) >= float(functional(u)) + inner(p, v - u) - 20 * accuracy * inner(y, y)


@pytest.mark.parametrize("name", QUICK)
def test_tensors_give_the_same_eagerly_and_in_a_graph(tf: Any, name: str) -> None:
    functional, accuracy = QUICK[name]
    if isinstance(functional, Composed):
        functional = Composed(functional.functional, functional.operator, functional.norm_squared, 20)
    x = sample(name, 5)
    tensor = tf.constant(x)
    for run in (lambda f: f, tf.function):
        assert relative_error(functional.prox(x, 0.3), run(lambda t: functional.prox(t, 0.3))(tensor).numpy()) < 10 * accuracy
        dual = run(lambda t: functional.conjugate_prox(t, 0.3))(tensor).numpy()
        assert relative_error(functional.conjugate_prox(x, 0.3), dual) < 10 * accuracy
        value = run(functional)(tensor)
        assert value.dtype == tf.float64
        assert float(value) == pytest.approx(float(functional(x)), rel=1e-9)


@pytest.mark.parametrize("name", QUICK)
def test_single_precision_stays_single_and_agrees(name: str) -> None:
    functional, _ = QUICK[name]
    if isinstance(functional, Composed):
        functional = Composed(functional.functional, functional.operator, functional.norm_squared, 20)
    x = sample(name, 5)
    single = x.astype("float32" if name in REAL else "complex64")
    for function in (functional.prox, functional.conjugate_prox):
        result = function(single, 0.3)
        assert result.dtype == (np.result_type(single, PRIOR) if "prior" in name or "centre" in name else single.dtype)
        assert relative_error(function(x, 0.3), result) < 1e-4


# --- against independent numbers --------------------------------------------------------------------------------------

BY_HAND: list[tuple[Functional, Any, float]] = [
    (L1(2.0), [3 + 4j, -1], 12.0),
    (L2(2.0), [3.0, 4.0], 10.0),
    (SquaredL2(2.0), [3 + 4j], 25.0),
    (GroupL2(1.0, -1), [[3.0, 4.0], [0.0, 2.0]], 7.0),
    (Huber(1.0), [0.5, 3.0], 0.125 + 2.5),
    (TotalVariation(2.0), [[0.0, 4.0], [3.0, 0.0]], 2 * (5 + 4 + 3)),
    (TotalVariation(1.0, isotropic=False), [[0.0, 4.0], [3.0, 0.0]], 3 + 4 + 4 + 3),
    (TotalVariation(1.0, axes=(-3,)), [[[1.0, 2.0]], [[1.0, 5.0]], [[0.0, 5.0]]], 4.0),
    (NuclearNorm(0.5), np.diag([3.0, 4.0]), 3.5),
    (L1Wavelet((2, 2), 1.0, "haar", 1), [[1.0, 1.0], [1.0, 1.0]], 2.0),
    (L1Wavelet((2, 2), 1.0, "haar", 1, approximation=False), [[1.0, -1.0], [1.0, 1.0]], 3.0),
]


@pytest.mark.parametrize(("functional", "x", "value"), BY_HAND)
def test_values_by_hand(functional: Functional, x: Any, value: float) -> None:
    assert float(functional(np.asarray(x))) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize("make", [lambda: TotalVariation(0.3, (-1,), iterations=500), lambda: TGV(0.3, 2.0, rank=1, iterations=1500)])
def test_prox_equals_a_numerical_minimum(make: Callable[[], Functional]) -> None:
    """With slack variables these are quadratic programmes, which SciPy's SLSQP solves by other means."""
    functional = make()
    x = np.array([0.0, 0.2, 0.9, 1.1, 2.0, 1.8])
    n = len(x)
    difference = np.eye(n, k=1)[: n - 1] - np.eye(n)[: n - 1]
    if isinstance(functional, TGV):
        # u, w; w at the last pixel meets no gradient but |0 - w|, and E is the backward difference with a zero first.
        gradient = np.vstack([difference, np.zeros(n)])
        rows = np.block([[gradient, -np.eye(n)], [np.zeros((n - 1, n)), 2.0 * difference]])
        extra = n
    else:
        rows, extra = difference, 0
    count = len(rows)
    upper = np.hstack([-rows, np.eye(count)])
    lower = np.hstack([rows, np.eye(count)])
    sides = np.vstack([upper, lower])
    start = np.concatenate([x, np.zeros(extra), np.abs(rows[:, :n] @ x) + 0.1])
    solution = scipy.optimize.minimize(
        lambda v: 0.5 * np.sum((v[:n] - x) ** 2) + 0.3 * np.sum(v[n + extra :]),
        start,
        jac=lambda v: np.concatenate([v[:n] - x, np.zeros(extra), np.full(count, 0.3)]),
        constraints={"type": "ineq", "fun": lambda v: sides @ v, "jac": lambda v: sides},
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-12},
    )
    assert solution.success
    assert np.abs(functional.prox(x) - solution.x[:n]).max() < 2e-4


def test_generalised_variation_does_not_punish_ramps() -> None:
    y, x = np.mgrid[:12, :10]
    ramp = 0.3 * y + 0.5 * x - 2.0
    tgv, tv = TGV(iterations=300), TotalVariation()
    # At the border the gradient of `Gradient` ends in zero, which costs a little; a step costs as much as with TV.
    step = (x >= 5).astype(float)
    assert float(tgv(ramp)) < 0.35 * float(tv(ramp))
    assert float(tgv(step)) == pytest.approx(float(tv(step)), rel=0.02)
    assert float(TGV(2.0, iterations=300)(ramp)) == pytest.approx(2 * float(tgv(ramp)), rel=2e-2)


def test_locally_low_rank_is_the_nuclear_norm_block_by_block() -> None:
    x = random_complex((5, 7, 9), 1, "complex128")
    functional, norm = LocallyLowRank(0.7, (4, 5)), NuclearNorm(0.7)
    blocks = [(slice(None), rows, columns) for rows in (slice(4), slice(4, 7)) for columns in (slice(5), slice(5, 9))]
    expected = np.empty_like(x)
    for block in blocks:
        expected[block] = norm.prox(x[block], 0.8)
    assert relative_error(expected, functional.prox(x, 0.8)) < 1e-10
    assert float(functional(x)) == pytest.approx(sum(float(norm(x[block])) for block in blocks), rel=1e-12)
    both = functional.prox(np.stack([x, 2 * x]), 0.8)
    assert relative_error(expected, both[0]) < 1e-10


def test_singular_values_are_shrunk() -> None:
    matrix = random_complex((4, 30), 2, "complex128")
    left, values, right = np.linalg.svd(matrix, full_matrices=False)
    expected = (left * np.maximum(values - 5.0, 0)) @ right
    for x, axis in ((matrix.reshape(4, 5, 6), 0), (matrix.T.reshape(5, 6, 4), -1)):
        shrunk = NuclearNorm(2.5, axis).prox(x, 2.0)
        ours = shrunk.reshape(4, 30) if axis == 0 else shrunk.reshape(30, 4).T
        assert relative_error(expected, ours) < 1e-10


def test_random_shifts_move_the_grid_and_repeat_with_the_seed(tf: Any) -> None:
    x = random_complex((4, 8, 8), 3)
    fixed = LocallyLowRank(1.0, 4).prox(x)

    def sequence(seed: int) -> list[np.ndarray]:
        functional = LocallyLowRank(1.0, 4, seed=seed)
        return [functional.prox(x) for _ in range(3)]

    first = sequence(1)
    assert all(np.array_equal(a, b) for a, b in zip(first, sequence(1), strict=True))
    assert any(relative_error(first[0], other) > 1e-3 for other in first[1:])
    assert any(relative_error(fixed, other) > 1e-3 for other in first)
    # In a graph the shift is drawn at every call, not once at tracing.
    functional = L1Wavelet((8, 8), 1.0, "haar", 2, seed=1)
    traced = tf.function(lambda t: functional.prox(t))
    results = [traced(tf.constant(x)).numpy() for _ in range(6)]
    assert any(relative_error(results[0], other) > 1e-3 for other in results[1:])


@given(st.integers(1, 30), st.floats(0.1, 5.0), st.integers(0, 1000))
@settings(deadline=None, max_examples=40)
def test_simplex_and_l1_ball_meet_their_conditions(size: int, radius: float, seed: int) -> None:
    x = np.random.default_rng(seed).normal(0, 2, size)
    u = Simplex(radius).prox(x)
    assert u.min() >= 0
    assert u.sum() == pytest.approx(radius)
    level = (x - u)[u > 0]
    # One level for all elements above zero, and the others below it.
    assert np.ptp(level) < 1e-9
    assert np.all(x[u == 0] <= level[0] + 1e-9)
    inside = L1Ball(radius).prox(x)
    assert np.abs(inside).sum() <= radius * (1 + 1e-9)
    if np.abs(x).sum() > radius:
        assert np.allclose(np.abs(inside), Simplex(radius).prox(np.abs(x)))
    else:
        assert np.array_equal(inside, x)


@pytest.mark.parametrize("operator", [Differences((-1, -2)), Image(2), TGV().terms[0][0], TGV().terms[1][0]])
@pytest.mark.parametrize(("dtype", "bound"), [("complex64", 1e-5), ("complex128", 1e-12)])
def test_operators_of_functionals_pass_the_dot_test(operator: Any, dtype: str, bound: float) -> None:
    x = random_complex((3, 5, 6), 1, dtype)
    image = operator(x)
    y = random_complex(image.shape, 2, dtype)
    back = operator.adjoint(y)
    assert back.shape == x.shape
    assert abs(np.vdot(y, image) - np.vdot(back, x)) / (np.linalg.norm(image) * np.linalg.norm(y)) < bound


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: L1(-1.0), "weight"),
        (lambda: GroupL2(float("nan")), "weight"),
        (lambda: Huber(0.0), "L1"),
        (lambda: L2Ball(0.0), "radius"),
        (lambda: Box(1.0, 0.0), "low"),
        (lambda: Simplex(-1.0), "sum_"),
        (lambda: Simplex().prox(np.ones(3, "complex64")), "real"),
        (lambda: TotalVariation(1.0, ()), "axis"),
        (lambda: TGV(1.0, 0.0), "ratio"),
        (lambda: LocallyLowRank(1.0, (4, 4, 4)), "block"),
        (lambda: LocallyLowRank(1.0, 4).prox(np.ones((8, 8), "complex64")), "frame"),
        (lambda: L1Wavelet((9, 12), 1.0, "db2", 1), "divisible"),
        (lambda: L1Wavelet((8, 8), 1.0, "bior2.2", 1), "orthogonal"),
        (lambda: Composed(L1(), Differences((-1,)), 0.0), "power_iteration"),
    ],
)
def test_bad_arguments_are_explained(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
