"""Solvers against closed forms, each other and the results of TensorFlow MRI; gradients against finite differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from recon.functionals.indicators import Box
from recon.functionals.norms import L1, GroupL2, SquaredL2
from recon.functionals.total_variation import TotalVariation
from recon.operators.differences import FiniteDifference
from recon.operators.linear import LinearOperator
from recon.solvers import conjugate_gradient
from recon.solvers.admm import AdmmResult, admm, least_squares_update
from recon.solvers.fista import fista
from recon.solvers.lbfgs import lbfgs
from recon.solvers.power_iteration import power_iteration
from recon.solvers.primal_dual import primal_dual
from tests.recon.conftest import random_complex, relative_error

# The problems of TensorFlow MRI's own tests, and what it finds.
LASSO_MATRIX = np.array([[-0.69651254, 0.05905978, 0.26406853, -1.44617154], [1.69614248, 1.79707178, 0.87167329, -0.70116535]])
TRUTH = np.array([1.16495351, 0.62683908, 0.07508015, 0.35160690])
LASSO = np.array([1.57677657, 0.0, 0.0, 0.0])
TV = np.array([1.0638748, 0.628781, 0.2630071, 0.26281652])
ORACLE_STOP = {"iterations": 100, "absolute_tolerance": 1e-4, "relative_tolerance": 1e-2}


class Matrix(LinearOperator):
    """A matrix, for NumPy vectors and tensors."""

    def __init__(self, matrix: np.ndarray) -> None:
        self.matrix = matrix

    def forward(self, x: Any) -> Any:
        return self._apply(self.matrix, x)

    def adjoint(self, y: Any) -> Any:
        return self._apply(self.matrix.conj().T, y)

    @staticmethod
    def _apply(matrix: np.ndarray, x: Any) -> Any:
        if isinstance(x, np.ndarray):
            return matrix @ x
        import tensorflow as tf

        return tf.linalg.matvec(tf.constant(matrix, x.dtype), x)


def complex_lasso() -> tuple[Matrix, np.ndarray, float]:
    """An underdetermined complex problem with a sparse answer."""
    matrix = random_complex((20, 40), 1, "complex128") / 6
    truth = np.zeros(40, complex)
    truth[[3, 17, 31]] = [2, 1j, -1 + 1j]
    return Matrix(matrix), matrix @ truth, 0.05


def lasso_optimality(operator: Matrix, y: np.ndarray, weight: float, x: np.ndarray) -> float:
    """How far -A^H (A x - y) is from the subgradient of weight |x|_1 at x, relative to the weight."""
    slope = operator.adjoint(y - operator(x))
    support = np.abs(x) > 1e-9
    inside = np.maximum(np.abs(slope[~support]) - weight, 0).max(initial=0)
    return float(max(inside, np.abs(slope[support] - weight * x[support] / np.abs(x[support])).max())) / weight


# --- the problems of TensorFlow MRI -----------------------------------------------------------------------------------


def test_admm_solves_the_oracles_lasso(tf: Any) -> None:
    operator = Matrix(LASSO_MATRIX)
    y = operator(TRUTH)
    norm = L1(0.5)

    def solve(start: Any) -> AdmmResult:
        rhs = operator.adjoint(operator(start * 0 + TRUTH))
        update = least_squares_update(operator.gram, rhs, iterations=20, tolerance=1e-12)
        return admm(update, norm.prox, start, **ORACLE_STOP)

    ours = solve(np.zeros(4))
    assert np.allclose(ours.z, LASSO, atol=2e-6)
    assert ours.iterations == 12
    assert ours.converged
    for run in (solve, tf.function(solve)):
        result = run(tf.zeros(4, tf.float64))
        assert np.allclose(result.z.numpy(), ours.z, atol=1e-9)
        assert int(result.iterations) == 12
    exact = admm(least_squares_update(operator.gram, operator.adjoint(y), None, 20, 1e-12), norm.prox, np.zeros(4), iterations=2000)
    assert lasso_optimality(operator, y, 0.5, exact.z) < 1e-6
    assert not exact.converged  # no tolerance, all iterations done
    assert exact.iterations == 2000


def test_admm_solves_the_oracles_total_variation() -> None:
    difference = FiniteDifference()

    def solve(**options: Any) -> AdmmResult:
        update = least_squares_update(lambda x: x, TRUTH, difference, iterations=20, tolerance=1e-12)
        return admm(update, L1(0.1).prox, np.zeros(4), difference, **options)

    result = solve(**ORACLE_STOP)
    assert np.allclose(result.x, TV, atol=1e-6)
    assert result.iterations == 12
    # Converged, it is the proximal map of total variation, found by its dual.
    assert relative_error(TotalVariation(0.1, (-1,), iterations=2000).prox(TRUTH), solve(iterations=1000).x) < 1e-8


# --- solvers against each other and optimality ------------------------------------------------------------------------


def test_fista_solves_a_complex_lasso_and_restarts_help() -> None:
    operator, y, weight = complex_lasso()
    step = 1 / (1.01 * power_iteration(operator.gram, np.zeros(40, complex), 100))

    def solve(iterations: int, restart: bool = True, tolerance: float = 0.0) -> np.ndarray:
        return fista(
            lambda x: operator.adjoint(operator(x) - y), L1(weight).prox, np.zeros(40, complex), step, iterations, tolerance, restart
        )

    assert lasso_optimality(operator, y, weight, solve(2000)) < 1e-9
    errors = [lasso_optimality(operator, y, weight, solve(300, restart)) for restart in (True, False)]
    assert errors[0] < 0.1 * errors[1]
    assert relative_error(solve(2000), solve(2000, tolerance=1e-10)) < 1e-6


@pytest.mark.parametrize("ratio", [0.03, 0.3])
def test_primal_dual_agrees_without_knowing_the_norm(ratio: float) -> None:
    operator, y, weight = complex_lasso()
    steep = Matrix(30 * operator.matrix)
    result = primal_dual([(steep, SquaredL2(1 / 900, 30 * y))], np.zeros(40, complex), L1(weight).prox, 2000, ratio=ratio)
    assert lasso_optimality(operator, y, weight, result) < 1e-3


def test_primal_dual_with_several_terms_equals_the_proximal_map() -> None:
    image = random_complex((6, 7), 3, "complex128")
    tv = TotalVariation(0.3, iterations=800)
    expected = tv.prox(image)
    fidelity = SquaredL2(1.0, image)
    by_prox = primal_dual([(tv.operator, tv.functional)], 0 * image, fidelity.prox, 500)
    identity = Matrix(np.eye(6))
    by_terms = primal_dual([(tv.operator, tv.functional), (identity, fidelity)], 0 * image, None, 800)
    assert relative_error(expected, by_prox) < 1e-5
    assert relative_error(expected, by_terms) < 1e-4


def test_solvers_give_the_same_for_tensors(tf: Any) -> None:
    operator, y, weight = complex_lasso()
    identity = Matrix(np.eye(40))

    def solve(start: Any) -> list[Any]:
        data = start + operator.adjoint(y)

        def gradient(x: Any) -> Any:
            return operator.gram(x) - data

        return [
            fista(gradient, L1(weight).prox, start, 0.2, 30),
            fista(gradient, L1(weight).prox, start, 0.2, 200, 1e-3, False),
            admm(least_squares_update(operator.gram, data, identity, 20), GroupL2(weight, -1).prox, start, identity, 2.0, 10).x,
            primal_dual([(operator, SquaredL2(1.0, y)), (identity, L1(weight))], start, None, 30),
            primal_dual([(operator, SquaredL2(1.0, y))], start, L1(weight).prox, 200, tolerance=1e-3),
        ]

    expected = solve(np.zeros(40, complex))
    for run in (solve, tf.function(solve), tf.function(solve, jit_compile=True)):
        for ours, tensor in zip(expected, run(tf.zeros(40, tf.complex128)), strict=True):
            assert relative_error(ours, tensor.numpy()) < 1e-9


def test_primal_dual_keeps_constraints() -> None:
    operator = Matrix(random_complex((12, 8), 1, "complex128").real)
    truth = np.linspace(-1, 2, 8)
    result = primal_dual([(operator, SquaredL2(1.0, operator(truth)))], np.zeros(8), Box(0.0, 1.0).prox, 1500)
    assert result.min() >= 0
    assert result.max() <= 1
    # Optimality in a box: the gradient vanishes inside, and points outwards at the bounds.
    gradient = operator.adjoint(operator(result - truth))
    inside = (result > 1e-9) & (result < 1 - 1e-9)
    assert np.abs(gradient[inside]).max(initial=0) < 1e-4
    assert gradient[result <= 1e-9].min(initial=0) > -1e-4
    assert gradient[result >= 1 - 1e-9].max(initial=0) < 1e-4


def test_power_iteration_finds_the_largest_eigenvalue(tf: Any) -> None:
    matrix = Matrix(random_complex((9, 6), 2, "complex128"))
    expected = np.linalg.svd(matrix.matrix, compute_uv=False)[0] ** 2
    assert power_iteration(matrix.gram, np.zeros(6, complex), 200) == pytest.approx(expected, rel=1e-9)
    assert power_iteration(matrix.gram, tf.zeros(6, tf.complex128), 200) == pytest.approx(expected, rel=1e-9)
    assert power_iteration(lambda x: 0 * x, np.zeros(6)) == 0
    with pytest.raises(ValueError, match="NaN"):
        power_iteration(lambda x: x * np.nan, np.ones(3))


def test_lbfgs_minimises_real_and_complex_functions(tf: Any) -> None:
    operator, _, _ = complex_lasso()
    square = Matrix(operator.matrix.conj().T)  # 40 equations, 20 unknowns
    data = random_complex((40,), 5, "complex128")
    expected = np.linalg.lstsq(square.matrix, data, rcond=None)[0]

    def evaluate(x: Any) -> tuple[Any, Any]:
        residual = square(x) - data
        size = abs(residual) ** 2
        return (size.sum() if isinstance(x, np.ndarray) else tf.reduce_sum(size)), 2 * square.adjoint(residual)

    assert relative_error(expected, lbfgs(evaluate, np.zeros(20, complex), 200)) < 1e-6

    def solve(start: Any) -> Any:
        return lbfgs(evaluate, start, 200)

    for run in (solve, tf.function(solve)):
        assert relative_error(expected, run(tf.zeros(20, tf.complex128)).numpy()) < 1e-6

    def rosenbrock(x: np.ndarray) -> tuple[float, np.ndarray]:
        a, b = x
        gradient = np.array([-2 * (1 - a) - 400 * a * (b - a * a), 200 * (b - a * a)])
        return float((1 - a) ** 2 + 100 * (b - a * a) ** 2), gradient

    assert np.allclose(lbfgs(rosenbrock, np.array([-1.2, 1.0]), 200), 1, atol=1e-5)


# --- conjugate gradients: preconditioner, implicit gradient -----------------------------------------------------------


def badly_scaled() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    scale = np.logspace(0, 3, 40)
    core = random.normal(size=(40, 40)) * 0.02
    matrix = np.sqrt(scale)[:, None] * (np.eye(40) + core + core.T) * np.sqrt(scale)
    return matrix + 1j * 0, random.normal(size=40) + 1j * random.normal(size=40)


def test_a_preconditioner_saves_iterations(tf: Any) -> None:
    matrix, rhs = badly_scaled()
    expected = np.linalg.solve(matrix, rhs)
    inverse = 1 / np.diag(matrix)
    operator = Matrix(matrix)

    def solve(b: Any, preconditioned: bool, iterations: int = 12, tolerance: float = 0.0) -> Any:
        return conjugate_gradient(operator, b, iterations, tolerance, preconditioner=(lambda r: inverse * r) if preconditioned else None)

    assert relative_error(expected, solve(rhs, True)) < 1e-3 * relative_error(expected, solve(rhs, False))
    for run in (solve, tf.function(solve)):
        assert relative_error(solve(rhs, True), run(tf.constant(rhs), True).numpy()) < 1e-6
        assert relative_error(solve(rhs, True, 500, 1e-6), run(tf.constant(rhs), True, 500, 1e-6).numpy()) < 1e-9
    assert relative_error(rhs, operator(solve(rhs, True, 500, 1e-6))) < 1e-6


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("graph", [True, False])
def test_gradients_of_conjugate_gradients_match_finite_differences(tf: Any, implicit: bool, graph: bool) -> None:
    """With respect to the right-hand side, and to a weight and a matrix inside the operator, as in an unrolled network."""
    base = random_complex((9, 6), 3, "complex128")
    rhs, target = random_complex((6,), 4, "complex128"), random_complex((6,), 5, "complex128")

    def loss(matrix: Any, b: Any, weight: Any) -> Any:
        def normal(x: Any) -> Any:
            return tf.linalg.matvec(matrix, tf.linalg.matvec(matrix, x), adjoint_a=True) + tf.cast(weight, x.dtype) * x

        solution = conjugate_gradient(normal, b, 30, 1e-13, implicit_gradient=implicit)
        return tf.reduce_sum(tf.abs(solution - target) ** 2)

    def gradients(matrix: Any, b: Any, weight: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch([matrix, b, weight])
            value = loss(matrix, b, weight)
        return tape.gradient(value, [matrix, b, weight])

    inputs = [tf.constant(base), tf.constant(rhs), tf.constant(0.7, tf.float64)]
    found = (tf.function(gradients) if graph else gradients)(*inputs)

    def exact(matrix: np.ndarray, b: np.ndarray, weight: float) -> float:
        solution = np.linalg.solve(matrix.conj().T @ matrix + weight * np.eye(6), b)
        return float(np.sum(np.abs(solution - target) ** 2))

    small = 1e-6
    for position, index in ((0, (2, 3)), (0, (8, 0)), (1, (1,)), (1, (5,)), (2, ())):
        for unit in (1, 1j) if position < 2 else (1,):
            moved = []
            for sign in (1, -1):
                arguments = [np.array(base), np.array(rhs), np.array(0.7)]
                arguments[position][index] += sign * small * unit
                moved.append(exact(*arguments))
            expected = (moved[0] - moved[1]) / (2 * small)
            value = found[position].numpy()[index]
            # TensorFlow's gradient of a real loss is df/d(Re) + i df/d(Im).
            assert (value.imag if unit == 1j else value.real) == pytest.approx(expected, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fista(lambda x: x, L1().prox, np.zeros(2), 0.0), "step"),
        (lambda: admm(lambda v, x, p: v, L1().prox, np.zeros(2), penalty=0.0), "penalty"),
        (lambda: primal_dual([], np.zeros(2)), "term"),
        (lambda: primal_dual([(Matrix(np.eye(2)), L1())], np.zeros(2), ratio=0.0), "ratio"),
    ],
)
def test_bad_arguments_are_explained(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
