"""Lines on the ramps against sums written out; phases of navigators that are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recon.epi import EpiReadout, pixel_matrix, receiver_phase
from recon.epi_correction import LinePhase, estimate_line_phase, fit_phase, ghost_level, polynomial, smooth_line_phase
from recon.epi_entropy import least_entropy_phase
from recon.fourier import fftc, ifftc
from tests.recon.conftest import random_complex, relative_error

TRAPEZOID = EpiReadout(128, 3.0, 240, 80, 80)
SINE = EpiReadout(128, 3.0, 0, 200, 200, ramps="sinusoidal")
SIZE = 64
PIXELS = np.arange(SIZE) - SIZE // 2


def sampled(image: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """`sum_x image(x) exp(-i k x) / sqrt(pixels)`, written out."""
    return image @ np.exp(-1j * PIXELS[:, None] * positions) / np.sqrt(SIZE)


def profile(coils: int = 4, seed: int = 0, pixels: int = SIZE) -> np.ndarray:
    """Complex coil images of a line: something with edges in the middle of the field of view."""
    x = (np.arange(pixels) - pixels // 2) / pixels
    shape = np.where(np.abs(x) < 0.35, 1 + 0.5 * np.cos(9 * x), 0)
    return random_complex((coils, 1), seed, "complex128") * shape * np.exp(2j * x * np.arange(1, coils + 1)[:, None])


# -- readouts -------------------------------------------------------------------------------------------------------------


def test_sinusoidal_ramps_are_the_integral_of_the_gradient() -> None:
    line = EpiReadout(100, 3.0, 200, 60, 100, acquisition_delay=20, ramps="sinusoidal")
    times = np.linspace(0, 360, 360_001)
    gradient = np.ones_like(times)
    gradient[times < 60] = np.sin(np.pi / 2 * times[times < 60] / 60)
    gradient[times > 260] = np.sin(np.pi / 2 * (360 - times[times > 260]) / 100)
    integral = np.concatenate([[0], np.cumsum((gradient[1:] + gradient[:-1]) / 2) * (times[1] - times[0])])
    at = np.interp(20 + 3 * (np.arange(100) + 0.5), times, integral)
    covered = np.interp(320, times, integral) - np.interp(20, times, integral)
    assert line.positions() == pytest.approx((at - integral[-1] / 2) * 2 * np.pi / covered, abs=1e-6)


def test_a_delay_shifts_the_gradient_in_time() -> None:
    late = EpiReadout(128, 3.0, 240, 80, 80, delay=6.0).positions()
    assert late[2:] == pytest.approx(TRAPEZOID.positions()[:-2])  # two dwell times
    with pytest.raises(ValueError, match="delay"):
        EpiReadout(128, 3.0, 240, 80, 80, delay=300.0)


@pytest.mark.parametrize("line", [TRAPEZOID, SINE, EpiReadout(64, 5.0, 320), EpiReadout(100, 3.9, 250, 60, 100, sample_at=1)])
@pytest.mark.parametrize("reverse", [False, True])
def test_pixels_are_those_of_the_sampled_object(line: EpiReadout, reverse: bool) -> None:
    positions = line.positions() * (-1 if reverse else 1)
    image = random_complex((3, SIZE), dtype="complex128")
    assert relative_error(image, sampled(image, positions) @ pixel_matrix(positions, SIZE, SIZE).T) < 1e-12


@pytest.mark.parametrize(("pixels", "spacing"), [(32, 1.0), (128, 0.5), (80, 0.8), (33, 1.0)])
def test_pixels_elsewhere_are_interpolated_by_zero_filling(pixels: int, spacing: float) -> None:
    image = random_complex((3, SIZE), dtype="complex128")
    places = (np.arange(pixels) - pixels // 2) * spacing
    kspace = fftc(image, -1)
    expected = kspace @ np.exp(2j * np.pi / SIZE * PIXELS[:, None] * places) / np.sqrt(SIZE)
    positions = TRAPEZOID.positions()
    assert relative_error(expected, sampled(image, positions) @ pixel_matrix(positions, SIZE, pixels, spacing).T) < 1e-12


def test_coarse_flat_tops_cost_the_edge_and_not_the_noise() -> None:
    positions = EpiReadout(64, 6.0, 240, 80, 80).positions()
    assert np.abs(np.diff(positions)).max() > 1.1 * 2 * np.pi / SIZE
    matrix = pixel_matrix(positions, SIZE, SIZE)
    assert np.sqrt((np.abs(matrix) ** 2).sum(1)).max() < 2  # 24 with a tolerance of 1e-3
    inner = random_complex((2, SIZE), dtype="complex128") * (np.abs(PIXELS) < SIZE / 4)
    found = sampled(inner, positions) @ matrix.T
    assert relative_error(inner[:, 16:48], found[:, 16:48]) < 0.02


@pytest.mark.parametrize("line", [TRAPEZOID, SINE])
@pytest.mark.parametrize("reverse", [False, True])
def test_the_phase_of_a_steady_receiver_is_undone(line: EpiReadout, reverse: bool) -> None:
    sign, offset = (-1 if reverse else 1), 7.3
    positions = sign * line.positions()
    flat_top = 2 * np.pi / (line.area(line.start + line.sampling_time) - line.area(line.start))  # rad/pixel and us, gradient 1
    times = line.start + (np.arange(line.samples) + 0.5) * line.dwell_time - line.duration / 2
    receiver = sign * flat_top * times
    image = random_complex((2, SIZE), dtype="complex128")
    measured = sampled(image, positions) * np.exp(1j * offset * (positions - receiver))
    matrix = pixel_matrix(positions, SIZE, SIZE)
    assert relative_error(image, measured @ matrix.T) > 0.3
    assert relative_error(image, measured * receiver_phase(positions, offset) @ matrix.T) < 2e-3


# -- phases ---------------------------------------------------------------------------------------------------------------


def navigators(phase: LinePhase, reverse: list[bool], noise: float = 0.0, seed: int = 0, coils: int = 4) -> np.ndarray:
    """Lines of successive echoes with that phase."""
    pixels = len(phase.further)
    lines = np.stack([profile(coils, pixels=pixels) / phase.correction(echo, back) for echo, back in enumerate(reverse)])
    return np.asarray(lines + noise * random_complex(lines.shape, seed + 1, "complex128") / np.sqrt(2))


def line_phase(drift: list[float], odd_even: list[float], further: np.ndarray | None = None) -> LinePhase:
    return LinePhase(np.array(drift), np.array(odd_even), np.zeros(SIZE) if further is None else further)


@given(
    st.lists(st.floats(-200, 200), min_size=2, max_size=2),
    st.lists(st.floats(-0.8, 0.8), min_size=3, max_size=3),
    st.floats(-3, 3),
)
def test_a_polynomial_is_found_however_often_the_phase_wraps(steep: list[float], bent: list[float], constant: float) -> None:
    slope = steep[0] * 0.9  # up to pi a pixel
    coefficients = np.array([constant, slope, *bent])
    product = np.abs(profile(1)[0]) ** 2 * np.exp(1j * polynomial(coefficients, SIZE))
    found = polynomial(fit_phase(product, 4), SIZE)
    assert np.abs(np.angle(np.exp(1j * (found - polynomial(coefficients, SIZE)))))[product != 0] == pytest.approx(0, abs=1e-6)


def test_the_fit_follows_the_strong_pixels() -> None:
    strong = np.abs(PIXELS) < SIZE / 4
    product = np.where(strong, 1, 1e-4) * np.exp(1j * polynomial(np.array([0.3, 4.0]), SIZE))
    product[~strong] *= np.exp(2j)
    assert fit_phase(product, 1) == pytest.approx([0.3, 4.0], abs=2e-3)
    assert fit_phase(product, -1) == pytest.approx([0])
    assert fit_phase(np.zeros(SIZE, complex), 3) == pytest.approx([0, 0, 0, 0])


@given(
    st.integers(3, 6),
    st.booleans(),
    st.floats(-3, 3),
    st.floats(-3, 3),
    st.floats(-30, 30),
)
def test_corrected_lines_are_alike(count: int, start: bool, drift: float, constant: float, slope: float) -> None:
    """Whatever the phases: a drift of more than a quarter turn is taken for another one that suits alternating lines as well."""
    reverse = [start ^ bool(echo % 2) for echo in range(count + 4)]
    lines = navigators(line_phase([drift], [constant, slope]), reverse)
    found = estimate_line_phase(lines[:count], reverse[:count])
    corrected = np.stack([line * found.correction(echo, back) for echo, (line, back) in enumerate(zip(lines, reverse, strict=True))])
    scale = np.vdot(corrected[0], corrected[1]) / np.vdot(corrected[0], corrected[0])
    assert abs(scale - 1) < 1e-4
    assert relative_error(corrected[:1].repeat(len(reverse), 0), corrected) < 1e-4


def test_drift_along_x() -> None:
    true = line_phase([0.2, 0.5], [0.3, 2.0])
    found = estimate_line_phase(navigators(true, [False, True, False]), [False, True, False], drift_order=1)
    assert found.drift == pytest.approx(true.drift, abs=1e-6)
    assert found.odd_even == pytest.approx(true.odd_even, abs=1e-6)


def test_two_navigators_give_the_odd_even_phase_and_one_gives_nothing() -> None:
    lines = navigators(line_phase([0.0], [0.3, 2.0]), [False, True])
    pair = estimate_line_phase(lines, [False, True])
    assert pair.odd_even == pytest.approx([0.3, 2.0], abs=1e-6)
    assert pair.drift == pytest.approx([0])
    for single in (estimate_line_phase(lines[:1], [False]), estimate_line_phase(lines, [True, True])):
        assert single.odd_even == pytest.approx([0, 0])
        assert np.abs(single.correction(7, True) - 1).max() == 0


def test_the_delay_is_the_shift_of_the_echo() -> None:
    """A line whose echo comes 0.3 samples late, and its mirror image."""
    coils = profile()
    late, early = (sampled(coils, (PIXELS - shift) * 2 * np.pi / SIZE) for shift in (0.3, -0.3))
    lines = ifftc(np.stack([late, early, late]), -1)
    assert estimate_line_phase(lines, [False, True, False]).delay == pytest.approx(0.3, abs=1e-3)


@pytest.mark.parametrize("order", [1, 4])
def test_the_delay_in_noise(order: int) -> None:
    """8 coils, each at a signal-to-noise ratio of 10: standard error well below a hundredth of a sample."""
    true = line_phase([0.1], [0.4, 4 * np.pi * 0.3])
    reverse = [False, True, False]
    found = [
        estimate_line_phase(navigators(true, reverse, 0.1, seed, coils=8), reverse, odd_even_order=order).odd_even for seed in range(40)
    ]
    x = np.linspace(-0.3, 0.3, 50)
    slopes = [np.polyfit(x, np.polynomial.polynomial.polyval(x, one), 1)[0] / (4 * np.pi) for one in found]
    assert np.std(slopes) < 0.01
    assert np.mean(slopes) == pytest.approx(0.3, abs=0.003)


def test_pointwise_follows_what_no_polynomial_does() -> None:
    x = (np.arange(SIZE) - SIZE // 2) / SIZE
    bump = 0.6 * np.exp(-(((x - 0.1) / 0.06) ** 2))
    lines = navigators(line_phase([0.0], [0.3, 2.0], bump), [False, True, False])
    inside = np.abs(x) < 0.3
    true = polynomial(np.array([0.3, 2.0]), SIZE) + bump
    errors = []
    for pointwise in (False, True):
        found = estimate_line_phase(lines, [False, True, False], odd_even_order=4, pointwise=pointwise)
        errors.append(np.abs(polynomial(found.odd_even, SIZE) + found.further - true)[inside].max())
    assert errors[0] > 0.15
    assert errors[1] < errors[0] / 2
    assert np.abs(found.further[np.abs(x) > 0.45]).max() < 1e-6  # no signal: the fit stays


def test_smoothing_keeps_a_trend_and_lowers_the_noise() -> None:
    def series(noise: float, seed: int) -> list[LinePhase]:
        rng = np.random.default_rng(seed)
        constants = 3.0 + 0.05 * np.arange(10) + noise * rng.standard_normal(10)  # passes pi
        wrapped = np.angle(np.exp(1j * constants))
        return [line_phase([0.01 * n], [wrapped[n], 2 + 0.1 * n]) for n in range(10)]

    exact = smooth_line_phase(series(0, 0), [1.0] * 10)
    assert exact.odd_even[1] == pytest.approx(2.9)
    assert exact.drift == pytest.approx([0.09], abs=1e-3)
    assert np.angle(np.exp(1j * (exact.odd_even[0] - 3.45))) == pytest.approx(0, abs=0.02)
    errors = [
        np.angle(np.exp(1j * (smooth_line_phase(series(0.1, seed), [1.0] * 10).odd_even[0] - exact.odd_even[0]))) for seed in range(60)
    ]
    assert np.std(errors) == pytest.approx(0.1 * np.sqrt(34 / 110), rel=0.3)  # end of a straight line through ten points
    assert smooth_line_phase(series(0.1, 1)[:2], [1, 1]) is not None
    weak = series(0, 0)
    weak[4] = line_phase([1.0], [0.0, 50.0])
    assert smooth_line_phase(weak, [1.0] * 4 + [0.0] + [1.0] * 5).odd_even[1] == pytest.approx(2.9)


def test_ghost_level() -> None:
    image = np.zeros((3, 16, 8))
    mask = np.zeros((16, 8), bool)
    mask[6:10] = True
    image[:, mask] = 2.0
    image += 0.1 * np.roll(image, 8, 1)
    assert ghost_level(image, mask) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="mask"):
        ghost_level(image, np.ones((16, 8), bool))
    with pytest.raises(ValueError, match="mask"):
        ghost_level(image, np.zeros((16, 8), bool))


# -- without navigators ---------------------------------------------------------------------------------------------------


def echo_planar_lines(phase: LinePhase) -> tuple[np.ndarray, list[bool]]:
    """Lines `[line, coil, x]` of an ellipse, every second one backwards."""
    y, x = (np.arange(SIZE)[:, None] - SIZE // 2) / SIZE, PIXELS / SIZE
    image = ((y / 0.8) ** 2 + (x / 0.7) ** 2 < 0.25) * (1 + 0.3 * np.cos(20 * x) * np.cos(15 * y))
    coils = np.exp(-2 * ((x - np.array([0.5, -0.5, 0, 0, 0.2, 0.1])[:, None, None]) ** 2)) * np.exp(1j * np.arange(6)[:, None, None] * y)
    lines = fftc(image * coils, 1).swapaxes(0, 1)
    reverse = [bool(row % 2) for row in range(SIZE)]
    return np.stack([line / phase.correction(0, back) for line, back in zip(lines, reverse, strict=True)]), reverse


@pytest.mark.parametrize(("constant", "shift"), [(0.4, 0.3), (-1.2, -0.8), (2.6, 0.1), (-2.0, 1.2)])
def test_least_entropy_finds_the_phase_of_a_small_object(constant: float, shift: float) -> None:
    lines, reverse = echo_planar_lines(line_phase([0.0], [constant, 4 * np.pi * shift]))
    lines += 0.02 * random_complex(lines.shape, 4, "complex128")
    found = least_entropy_phase(lines, reverse, range(SIZE), SIZE)
    assert found.delay == pytest.approx(shift, abs=0.01)
    assert np.angle(np.exp(1j * (found.odd_even[0] - constant))) == pytest.approx(0, abs=0.02)


def test_least_entropy_of_nothing_and_of_what_does_not_serve() -> None:
    nothing = least_entropy_phase(np.zeros((4, 2, 8)), [False, True] * 2, range(4), 4)
    assert np.abs(nothing.correction(0, True) - 1).max() == 0
    for lines, reverse, rows, message in [
        (np.ones((4, 8)), [False, True] * 2, range(4), "coil"),
        (np.ones((4, 2, 8)), [True] * 4, range(4), "direction"),
        (np.ones((4, 2, 8)), [False, True] * 2, range(1, 5), "outside"),
        (np.full((4, 2, 8), np.inf), [False, True] * 2, range(4), "finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            least_entropy_phase(lines, reverse, rows, 4)


def test_bad_navigators_are_refused() -> None:
    with pytest.raises(ValueError, match="direction"):
        estimate_line_phase(np.ones((3, 2, 8)), [True, False])
    with pytest.raises(ValueError, match="finite"):
        estimate_line_phase(np.full((3, 2, 8), np.nan), [True, False, True])
