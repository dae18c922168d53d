"""Every linear operator: dot test, Gram operator, NumPy equals tensors eagerly and in a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from recon.operators import Encoding, Fourier, LinearOperator, Nufft, Sensitivity, ToeplitzGram
from recon.operators.diagonal import Diagonal, Identity, Mask
from recon.operators.differences import FiniteDifference, Gradient, SymmetrisedGradient
from recon.operators.off_resonance import OffResonance
from recon.operators.off_resonance_gram import OffResonanceGram
from recon.operators.phase import PhaseConstrained
from recon.operators.sms import SMS, caipi_phases
from recon.operators.stack import Stack
from recon.operators.temporal import TemporalFourier
from recon.operators.wavelet import Wavelet
from recon.phantoms import birdcage_coils
from recon.spirit import SpiritConsistency
from tests.recon.conftest import random_complex, random_trajectory, relative_error

SHAPE, VOLUME, COILS, SAMPLES = (12, 10), (6, 5, 4), 3, 150
POINTS, POINTS_3D = random_trajectory(SAMPLES, 2), random_trajectory(SAMPLES, 3)
WEIGHTS = np.random.default_rng(3).uniform(0.1, 1, SAMPLES).astype(np.float32)
MASK = np.random.default_rng(4).uniform(size=SHAPE) < 0.4
SETS = random_complex((2, COILS, *SHAPE), 7, "complex128")
MAPS, MAPS_3D = random_complex((COILS, *SHAPE), 5, "complex128"), random_complex((COILS, *VOLUME), 6, "complex128")
SLICE_MAPS = random_complex((2, COILS, *SHAPE), 7, "complex128")
FIELD_MAP = np.linspace(-60, 80, SHAPE[0] * SHAPE[1]).reshape(SHAPE)
PHASE = np.angle(random_complex(SHAPE, 8))
PHASES = np.random.default_rng(10).uniform(-3, 3, (2, SAMPLES))
TIMES = np.linspace(0, 8e-3, SAMPLES)
VALUES = random_complex(SHAPE, 9, "complex128")

Make = Callable[[str], LinearOperator]
OPERATORS: dict[str, tuple[Make, tuple[int, ...], tuple[int, ...]]] = {
    "fourier": (lambda d: Fourier(2), SHAPE, SHAPE),
    "spirit": (lambda d: SpiritConsistency(random_complex((COILS, COILS, 3, 5), 7, d), SHAPE), (COILS, *SHAPE), (COILS, *SHAPE)),
    "fourier_mask": (lambda d: Fourier(2, MASK), SHAPE, SHAPE),
    "nufft": (lambda d: Nufft(POINTS, SHAPE), SHAPE, (SAMPLES,)),
    "nufft_3d": (lambda d: Nufft(POINTS_3D, VOLUME), VOLUME, (SAMPLES,)),
    "toeplitz": (lambda d: ToeplitzGram(POINTS, SHAPE, WEIGHTS), SHAPE, SHAPE),
    "toeplitz_3d": (lambda d: ToeplitzGram(POINTS_3D, VOLUME), VOLUME, VOLUME),
    "sensitivity": (lambda d: Sensitivity(MAPS.astype(d)), SHAPE, (COILS, *SHAPE)),
    "sensitivity_sets": (lambda d: Sensitivity(SETS.astype(d), sets=True), (2, *SHAPE), (COILS, *SHAPE)),
    "composition": (lambda d: Fourier(2, MASK) @ Sensitivity(MAPS.astype(d)), SHAPE, (COILS, *SHAPE)),
    "encoding_cartesian": (lambda d: Encoding(MAPS.astype(d), mask=MASK), SHAPE, (COILS, *SHAPE)),
    "encoding": (lambda d: Encoding(MAPS.astype(d), POINTS), SHAPE, (COILS, SAMPLES)),
    "encoding_weighted": (lambda d: Encoding(MAPS.astype(d), POINTS, weights=WEIGHTS), SHAPE, (COILS, SAMPLES)),
    "encoding_3d": (lambda d: Encoding(MAPS_3D.astype(d), POINTS_3D), VOLUME, (COILS, SAMPLES)),
    "encoding_sets_cartesian": (lambda d: Encoding(SETS.astype(d), mask=MASK, sets=True), (2, *SHAPE), (COILS, *SHAPE)),
    "encoding_sets": (lambda d: Encoding(SETS.astype(d), POINTS, weights=WEIGHTS, sets=True), (2, *SHAPE), (COILS, SAMPLES)),
    "encoding_sets_toeplitz": (lambda d: Encoding(SETS.astype(d), POINTS, toeplitz=True, sets=True), (2, *SHAPE), (COILS, SAMPLES)),
    "encoding_toeplitz": (lambda d: Encoding(MAPS.astype(d), POINTS, weights=WEIGHTS, toeplitz=True), SHAPE, (COILS, SAMPLES)),
    "identity": (lambda d: Identity(), SHAPE, SHAPE),
    "diagonal": (lambda d: Diagonal(VALUES), SHAPE, SHAPE),
    "mask": (lambda d: Mask(MASK), SHAPE, SHAPE),
    "sum": (lambda d: Fourier(2, MASK) + Diagonal(VALUES) - Identity(), SHAPE, SHAPE),
    "scaled": (lambda d: (0.5 - 2j) * Fourier(2), SHAPE, SHAPE),
    "negative": (lambda d: -Diagonal(VALUES), SHAPE, SHAPE),
    "stack": (lambda d: Stack([Sensitivity(MAPS.astype(d)), 3 * FiniteDifference()], SHAPE), SHAPE, (COILS * 120 + 108,)),
    "difference": (lambda d: FiniteDifference(-2), SHAPE, (11, 10)),
    "difference_backward": (lambda d: FiniteDifference(-2, backward=True), SHAPE, (11, 10)),
    "difference_neumann": (lambda d: FiniteDifference(-1, "neumann"), SHAPE, SHAPE),
    "difference_neumann_backward": (lambda d: FiniteDifference(-1, "neumann", backward=True), SHAPE, SHAPE),
    "difference_periodic": (lambda d: FiniteDifference(-1, "periodic"), SHAPE, SHAPE),
    "difference_periodic_backward": (lambda d: FiniteDifference(-2, "periodic", backward=True), SHAPE, SHAPE),
    "gradient": (lambda d: Gradient(2), SHAPE, (2, *SHAPE)),
    "gradient_3d": (lambda d: Gradient(3, "periodic", (5, 1, 2)), VOLUME, (3, *VOLUME)),
    "symmetrised_gradient": (lambda d: SymmetrisedGradient(2), (2, *SHAPE), (3, *SHAPE)),
    "symmetrised_gradient_3d": (lambda d: SymmetrisedGradient(3, "periodic", (5, 1, 2)), (3, *VOLUME), (6, *VOLUME)),
    "wavelet": (lambda d: Wavelet(SHAPE, "db2", level=2), SHAPE, (126,)),
    "wavelet_symmetric": (lambda d: Wavelet((13, 10), "db4", "symmetric", 2), (13, 10), (464,)),
    "wavelet_biorthogonal_3d": (lambda d: Wavelet(VOLUME, "bior2.2", "zero", 1), VOLUME, (10 * 10 * 8,)),
    "temporal_fourier": (lambda d: TemporalFourier(), (5, *SHAPE), (5, *SHAPE)),
    "phase_constrained": (lambda d: PhaseConstrained(PHASE), SHAPE, SHAPE),
    "phase_constrained_encoding": (lambda d: Encoding(MAPS.astype(d), POINTS) @ PhaseConstrained(PHASE), SHAPE, (COILS, SAMPLES)),
    "off_resonance": (lambda d: OffResonance(Nufft(POINTS, SHAPE), FIELD_MAP, TIMES), SHAPE, (SAMPLES,)),
    "off_resonance_cartesian": (lambda d: OffResonance(Fourier(2, MASK), FIELD_MAP, TIMES[: SHAPE[1]], 4), SHAPE, SHAPE),
    "off_resonance_coils": (
        lambda d: OffResonance(Nufft(POINTS, SHAPE), FIELD_MAP, TIMES, 3) @ Sensitivity(MAPS.astype(d)),
        SHAPE,
        (COILS, SAMPLES),
    ),
    "off_resonance_gram": (lambda d: OffResonanceGram(MAPS.astype(d), POINTS, FIELD_MAP, TIMES, WEIGHTS), SHAPE, SHAPE),
    "sms": (
        lambda d: Mask(MASK) @ SMS(caipi_phases(2, SHAPE[0])) @ Fourier(2) @ Sensitivity(SLICE_MAPS.astype(d)),
        (2, *SHAPE),
        (COILS, *SHAPE),
    ),
    "sms_nufft": (lambda d: SMS(PHASES) @ Nufft(POINTS, SHAPE) @ Sensitivity(SLICE_MAPS.astype(d)), (2, *SHAPE), (COILS, SAMPLES)),
}
REAL_DOMAIN = {"phase_constrained", "phase_constrained_encoding"}
# finufft is called through `py_function`, which XLA cannot compile.
USES_NUFFT = {name for name in OPERATORS if "nufft" in name or "encoding" in name or name in ("off_resonance", "off_resonance_coils")}
USES_NUFFT -= {"encoding_cartesian"}


def random_input(name: str, shape: tuple[int, ...], seed: int, dtype: str = "complex64") -> np.ndarray:
    """Complex numbers, or real ones for operators of real images."""
    values = random_complex(shape, seed, dtype)
    return values.real.copy() if name in REAL_DOMAIN else values


@pytest.mark.parametrize(("dtype", "bound"), [("complex64", 1e-5), ("complex128", 1e-12)])
@pytest.mark.parametrize("name", OPERATORS)
def test_adjoint_is_the_conjugate_transpose(name: str, dtype: str, bound: float) -> None:
    make, domain, range_ = OPERATORS[name]
    operator = make(dtype)
    x, y = random_input(name, (2, *domain), 1, dtype), random_complex((2, *range_), 2, dtype)
    image, back = operator(x), operator.H(y)
    assert image.shape == y.shape
    assert back.shape == x.shape
    assert image.dtype == dtype
    assert back.dtype == x.dtype
    difference = np.vdot(y, image) - np.vdot(back, x)
    difference = difference.real if name in REAL_DOMAIN else difference
    assert abs(difference) / (np.linalg.norm(image) * np.linalg.norm(y)) < bound
    assert operator.H.H is operator


@pytest.mark.parametrize("name", OPERATORS)
def test_gram_is_adjoint_after_forward(name: str) -> None:
    make, domain, _ = OPERATORS[name]
    operator = make("complex64")
    x = random_input(name, (2, *domain), 1)
    # The convolution is exact where the NUFFT has its tolerance of 1e-3.
    assert relative_error(operator.adjoint(operator(x)), operator.gram(x)) < (3e-3 if "toeplitz" in name else 1e-5)
    assert relative_error(operator.gram(x), operator.gram.H(x)) == 0


@pytest.mark.parametrize("name", OPERATORS)
def test_tensors_give_the_same_eagerly_and_in_a_graph(tf: Any, name: str) -> None:
    make, domain, range_ = OPERATORS[name]
    operator = make("complex64")
    x, y = random_input(name, (2, *domain), 1), random_complex((2, *range_), 2)
    for function, source in ((operator, x), (operator.H, y), (operator.gram, x)):
        expected = function(source)
        assert relative_error(expected, function(tf.constant(source)).numpy()) < 1e-5
        assert relative_error(expected, tf.function(function)(tf.constant(source)).numpy()) < 1e-5


@pytest.mark.parametrize("name", sorted(set(OPERATORS) - USES_NUFFT))
def test_xla_gives_the_same(tf: Any, name: str) -> None:
    make, domain, range_ = OPERATORS[name]
    operator = make("complex64")
    x, y = random_input(name, (2, *domain), 1), random_complex((2, *range_), 2)
    both = tf.function(lambda a, b: (operator(a), operator.H(b)), jit_compile=True)
    forward, adjoint = both(tf.constant(x), tf.constant(y))
    assert relative_error(operator(x), forward.numpy()) < 1e-5
    assert relative_error(operator.H(y), adjoint.numpy()) < 1e-5


@pytest.mark.parametrize("name", OPERATORS)
def test_gradients_equal_finite_differences(tf: Any, name: str) -> None:
    """|A x - y|^2 and |A^H y - x|^2 are quadratic: central differences of them have no error but rounding."""
    make, domain, range_ = OPERATORS[name]
    operator = make("complex128")
    for seed, function, real, shape in ((1, operator, name in REAL_DOMAIN, domain), (2, operator.H, False, range_)):
        x, direction = (random_complex(shape, s, "complex128") for s in (seed, seed + 10))
        x, direction = (x.real, direction.real) if real else (x, direction)
        target = random_complex(function(x).shape, 5, "complex128")
        target = target if np.iscomplexobj(function(x)) else target.real

        def loss(x: Any, function: Any = function, target: Any = target) -> float:
            return float(np.sum(np.abs(function(x) - target) ** 2))

        point = tf.constant(x)
        with tf.GradientTape() as tape:
            tape.watch(point)
            value = tf.reduce_sum(tf.abs(function(point) - target) ** 2)
        gradient = tape.gradient(value, point).numpy()
        expected = (loss(x + direction) - loss(x - direction)) / 2
        assert np.vdot(gradient, direction).real == pytest.approx(expected, rel=1e-8, abs=1e-8 * loss(x))


def test_toeplitz_equals_the_nufft_in_double_precision() -> None:
    x = random_complex(SHAPE, 1, "complex128")
    exact = Nufft(POINTS, SHAPE, 1e-11)
    expected = exact.adjoint(WEIGHTS * exact(x))
    assert relative_error(expected, ToeplitzGram(POINTS, SHAPE, WEIGHTS, 1e-11)(x)) < 1e-9


def test_gradients_flow_through_the_encoding(tf: Any) -> None:
    encoding = Encoding(tf.constant(MAPS.astype("complex64")), POINTS, weights=WEIGHTS)
    x, y = tf.constant(random_complex(SHAPE, 1)), random_complex((COILS, SAMPLES), 2)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_sum(tf.abs(encoding(x) - y) ** 2)
    # d|Ex - y|^2 = 2 E^H (Ex - y)
    expected = 2 * encoding.adjoint(encoding(x) - y)
    assert relative_error(expected.numpy(), tape.gradient(loss, x).numpy()) < 1e-5


def test_mean_diagonal_is_that_of_the_gram_matrix() -> None:
    maps = birdcage_coils(4, SHAPE).astype("complex128")
    for encoding in (
        Encoding(maps, POINTS, tolerance=1e-9),
        Encoding(maps, POINTS, weights=WEIGHTS, tolerance=1e-9),
        Encoding(maps, mask=MASK),
        Encoding(maps),
    ):
        unit = np.eye(SHAPE[0] * SHAPE[1], dtype="complex128").reshape(-1, *SHAPE)
        matrix = encoding.gram(unit).reshape(len(unit), -1)
        assert np.trace(matrix).real / len(unit) == pytest.approx(encoding.mean_diagonal, rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"trajectory": POINTS, "mask": MASK}, "either"),
        ({"weights": WEIGHTS}, "need a trajectory"),
        ({"toeplitz": True}, "need a trajectory"),
        ({"trajectory": POINTS, "weights": WEIGHTS[1:]}, "do not fit"),
    ],
)
def test_contradictory_encodings_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Encoding(MAPS, **arguments)
