"""The regularised fit: data terms against their encodings, convergence, constraints, precision, and what it gains over single voxels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from recon.fourier import fftc
from recon.nufft import Nufft
from recon.operators import Encoding
from recon.operators.fourier import Fourier
from recon.operators.frames import Frames
from recon.operators.sensitivity import Sensitivity
from recon.operators.sms import SMS, caipi_phases
from recon.phantoms import birdcage_coils
from recon.quantitative import data_term
from recon.quantitative.irgn import Step, _Fit, fit
from recon.quantitative.measured import Measured
from recon.quantitative.model import ModelError, SignalModel
from recon.quantitative.pixelwise import fit_pixelwise
from recon.quantitative.settings import Settings
from tests.recon.conftest import random_complex, relative_error
from tests.recon.quantitative.small_models import Decay, FlipAngles, LookLocker, Series, add_noise, tubes

SIZE = 32
NOISE = 2e-3


def series(model: SignalModel, size: int = SIZE) -> np.ndarray:
    m0, t1, _ = tubes(size)
    values: np.ndarray = model(np.stack([m0, t1])).numpy()
    return values


def error(parameters: np.ndarray, size: int = SIZE) -> float:
    _, t1, inside = tubes(size)
    return float(np.median(np.abs(parameters[1].real - t1)[inside] / t1[inside]))


def lines(contrasts: int, size: int, step: int = 3, centre: int = 8) -> np.ndarray:
    """Every third line, another one in each contrast, and the centre: `[contrast, y, 1]`."""
    mask = np.zeros((contrasts, size, 1), bool)
    for n in range(contrasts):
        mask[n, n % step :: step] = True
    mask[:, (size - centre) // 2 : (size + centre) // 2] = True
    return mask


def radial(contrasts: int, size: int, spokes: int) -> np.ndarray:
    angles = np.arange(contrasts * spokes) * np.pi * (np.sqrt(5) - 1) / 2
    radius = (np.arange(2 * size) - size) / size * np.pi
    points = np.stack([np.sin(angles)[:, None] * radius, np.cos(angles)[:, None] * radius], -1)
    return points.reshape(contrasts, -1, 2)


@pytest.fixture(scope="module")
def scan() -> tuple[SignalModel, np.ndarray, np.ndarray]:
    """Model, maps of four coils and noisy k-space, fully sampled."""
    model, maps = FlipAngles(), birdcage_coils(4, (SIZE, SIZE))
    return model, maps, add_noise(fftc(maps * series(model)[:, None], (-2, -1)), NOISE).astype(np.complex64)


# -- data terms ------------------------------------------------------------------------------------------------------


def check_term(
    tf: Any, term: data_term.DataTerm, encode: Any, adjoint: Any, data: np.ndarray, limit: float, samples: float | None = None
) -> None:
    """Gram, right-hand side, cost and bound against the encoding itself."""
    x = random_complex(tuple(term.rhs.shape), 5, data.dtype.name)
    image = encode(x)
    assert relative_error(adjoint(image), term.gram(tf.constant(x)).numpy()) < limit
    assert relative_error(adjoint(data), term.rhs.numpy()) < limit
    wanted = np.linalg.norm(image - data) ** 2
    assert float(term.cost(tf.constant(x))) == pytest.approx(wanted, rel=20 * limit)
    quadratic = np.vdot(x, term.gram(tf.constant(x)).numpy()).real
    assert np.sum(term.bound.numpy() * np.abs(x) ** 2) >= quadratic * (1 - 1e-5)
    assert term.samples == pytest.approx(np.count_nonzero(data) if samples is None else samples)


@pytest.mark.parametrize("which", ["all", "lines", "columns", "random"])
def test_cartesian_data(tf: Any, which: str) -> None:
    shape, maps = (12, 10), birdcage_coils(3, (12, 10)).astype(np.complex128)
    picked = {
        "all": np.ones((4, 1, 1), bool),
        "lines": lines(4, 12, centre=2),
        "columns": np.swapaxes(lines(4, 10, centre=2), 1, 2),
        "random": np.random.default_rng(0).random((4, *shape)) < 0.4,
    }[which]
    mask = np.broadcast_to(picked, (4, *shape))
    frames = Frames([Encoding(maps, mask=one) for one in mask])
    data = random_complex((4, 3, *shape), 1, "complex128") * mask[:, None]
    term = data_term.cartesian(data, maps, mask)
    assert term.pointwise == (which == "all")
    check_term(tf, term, frames.forward, frames.adjoint, data, 1e-10)
    guessed = data_term.cartesian(data, maps)
    assert relative_error(term.rhs.numpy(), guessed.rhs.numpy()) < 1e-12


@pytest.mark.parametrize("toeplitz", [False, True])
def test_radial_data(tf: Any, toeplitz: bool) -> None:
    maps, points = birdcage_coils(3, (16, 14)).astype(np.complex128), radial(2, 16, 5)
    weights = np.random.default_rng(0).uniform(0.5, 1, points.shape[:2])
    plans = [Nufft(one, (16, 14), 1e-12, "complex128") for one in points]
    data = random_complex((2, 3, points.shape[1]), 1, "complex128")

    def encode(x: np.ndarray) -> np.ndarray:
        return np.stack([plan.forward(maps * one) * np.sqrt(w) for plan, one, w in zip(plans, x, weights, strict=True)])

    def adjoint(y: np.ndarray) -> np.ndarray:
        back = [plan.adjoint(one * np.sqrt(w)) for plan, one, w in zip(plans, y, weights, strict=True)]
        return (maps.conj() * np.stack(back)).sum(1)

    term = data_term.noncartesian(data, points, maps, weights, toeplitz, tolerance=1e-9)
    check_term(tf, term, encode, adjoint, data * np.sqrt(weights)[:, None], 1e-6, 3 * weights.sum())


def test_simultaneous_slices(tf: Any) -> None:
    """Two slices at once with shifted phases, every other line: slices are voxels like others."""
    shape = (2, 16, 12)
    maps = birdcage_coils(4, shape).astype(np.complex128).swapaxes(0, 1)
    encoding = SMS(caipi_phases(2, 16)) @ Fourier(2) @ Sensitivity(maps, 2)
    frames = Frames([encoding] * 3)
    data = random_complex((3, 4, 16, 12), 1, "complex128")
    term = data_term.from_operator(frames, data)
    check_term(tf, term, frames.forward, frames.adjoint, data, 1e-9)


def test_images_as_data(tf: Any) -> None:
    data = random_complex((3, 6, 5), 1, "complex128")
    weights = np.random.default_rng(0).uniform(0.5, 2, (3, 1, 1))
    root = np.sqrt(weights)
    check_term(tf, data_term.from_images(data, weights), lambda x: root * x, lambda y: root * y, root * data, 1e-12)
    np.testing.assert_allclose(data_term.from_images(data, weights).images().numpy(), data)


def test_values_that_are_not_finite_name_the_contrast() -> None:
    data = np.ones((3, 4, 4), complex)
    data[1, 2, 2] = np.nan
    with pytest.raises(ValueError, match=r"contrast 1 .* not finite"):
        data_term.from_images(data)


# -- the fit ---------------------------------------------------------------------------------------------------------


def test_tgv_beats_single_voxels(scan: Any) -> None:
    model, maps, kspace = scan
    term = data_term.cartesian(kspace, maps)
    single = error(fit_pixelwise(model, term.images().numpy()).parameters)
    told: list[Step] = []
    result = fit(model, term, Settings(max_gn_it=2, start_iters=60), callback=told.append)
    assert error(result.parameters) < 0.6 * single
    assert [step.number for step in told] == list(range(len(told)))
    assert told == list(result.steps)
    assert all(step.gap < 0.05 for step in told[2:])
    # What is left is the noise, of two numbers a sample, in the scale of 2000 for 256 x 256 voxels.
    expected = NOISE**2 * kspace.size * 2000 * SIZE**2 / 256**2 / np.sum(np.abs(kspace) ** 2)
    assert told[-1].data_cost == pytest.approx(expected, rel=0.05)


def test_regularised_fits_of_undersampled_data(scan: Any) -> None:
    model, maps, kspace = scan
    mask = lines(5, SIZE)
    term = data_term.cartesian(kspace * mask[:, None], maps, mask)
    single = error(fit_pixelwise(model, term.images().numpy()).parameters)
    result = fit(model, term, Settings(max_gn_it=1))
    assert error(result.parameters) < 0.75 * single


def test_radial_fit_beats_single_voxels() -> None:
    model, maps, points = FlipAngles(), birdcage_coils(4, (SIZE, SIZE)), radial(5, SIZE, 15)
    images = series(model)
    clean = np.stack([Nufft(one, (SIZE, SIZE), 1e-9, "complex128").forward(maps * x) for one, x in zip(points, images, strict=True)])
    kspace = add_noise(clean, NOISE / 2).astype(np.complex64)
    density = np.linalg.norm(points, axis=-1) + 0.02
    term = data_term.noncartesian(kspace, points, maps, density / density.mean())
    single = error(fit_pixelwise(model, term.images().numpy()).parameters)
    result = fit(model, term, Settings(max_gn_it=1, start_iters=60))
    assert error(result.parameters) < 0.75 * single


def test_few_spokes_against_gridding() -> None:
    """T1 of 6 flip angles with 21 spokes each, noise 1 % of the largest signal: at most half the error of gridded images' fit."""
    size = 64
    model, maps, points = FlipAngles((2, 4, 7, 11, 16, 22)), birdcage_coils(4, (size, size)), radial(6, size, 21)
    images = series(model, size)
    clean = [Nufft(one, (size, size), 1e-9, "complex128").forward(maps * x) for one, x in zip(points, images, strict=True)]
    kspace = add_noise(np.stack(clean), 0.01 * np.abs(images).max()).astype(np.complex64)
    _, t1, inside = tubes(size)

    def deviation(parameters: np.ndarray) -> float:
        return relative_error(t1[inside], parameters[1].real[inside])

    gridded = Measured(kspace, maps.astype(np.complex64), points.astype(np.float32)).gridded().astype(np.complex64)
    density = np.linalg.norm(points, axis=-1) + 0.02
    term = data_term.noncartesian(kspace, points, maps, density / density.mean())
    found = deviation(fit(model, term, Settings(max_gn_it=3, replicas=0)).parameters)
    assert found < 0.05
    assert found < 0.5 * deviation(fit_pixelwise(model, gridded).parameters)


def test_derivatives_are_balanced_whatever_the_unit_of_an_unknown(scan: Any) -> None:
    """The norm of each derivative is 100 / sqrt(2) for 256 x 256 voxels; with T1 in another unit the fit is the same."""

    class Seconds(FlipAngles):
        def __init__(self) -> None:
            super().__init__()
            self.unknowns = (self.unknowns[0], replace(self.unknowns[1], unit="s", lower=0.05, upper=5.5, start=1.5))

        def signal(self, unknowns: Any) -> Any:
            return super().signal([unknowns[0], unknowns[1] * 1000])

    _, maps, kspace = scan
    term, settings = data_term.cartesian(kspace.astype(np.complex128), maps), Settings(max_gn_it=2, start_iters=30, replicas=0)
    milliseconds, seconds = (_Fit(model, term, settings, None, None) for model in (FlipAngles(), Seconds()))
    for one in (milliseconds, seconds):
        parameters = one.model.constrain(np.asarray(one.start))
        _, scales = one._linearise(parameters)
        jacobian = np.asarray(one.model.jacobian(parameters)[1]) * one.scale * np.sqrt(one.energy) * scales[None, :, None, None]
        norms = np.sqrt((np.abs(jacobian) ** 2).sum((0, 2, 3)))
        np.testing.assert_allclose(norms, 100 / np.sqrt(2) * SIZE / 256, rtol=1e-6)
    results = [fit(one, term, settings).parameters for one in (FlipAngles(), Seconds())]
    np.testing.assert_allclose(1000 * results[1][1].real, results[0][1].real, rtol=1e-6)


def test_schedule() -> None:
    """PyQMRI's: gamma from 1e-3 halves down to 3e-4, delta and the inner iterations grow, the latter up to a limit."""
    settings = Settings(gamma=1e-3, gamma_dec=0.5, gamma_min=3e-4, delta=1, delta_inc=10, start_iters=10, inc=2, max_iters=1000)
    for k in range(10):
        gamma, delta, iterations = settings.at(k)
        assert gamma == pytest.approx(max(1e-3 * 0.5**k, 3e-4))
        assert delta == pytest.approx(10.0**k)
        assert iterations == min(10 * 2**k, 1000)
    gamma, delta, _ = replace(settings, lambd=4.0, delta_max=100).at(3)
    assert (gamma, delta) == pytest.approx((3e-4 / 4, 400))


@pytest.mark.parametrize("kind", ["TV", "H1", "wavelet"])
def test_other_regularisers(scan: Any, kind: Any) -> None:
    model, maps, kspace = scan
    term = data_term.cartesian(kspace, maps)
    single = error(fit_pixelwise(model, term.images().numpy()).parameters)
    gamma = {"TV": 6e-4, "H1": 2e-3, "wavelet": 3e-4}[kind]
    result = fit(model, term, Settings(kind, max_gn_it=1, start_iters=60, gamma=gamma, wavelet="haar"))
    assert error(result.parameters) < 0.85 * single


@pytest.mark.parametrize("kind", ["ICTV", "ICTGV"])
def test_series_of_images(kind: Any) -> None:
    """Frames whose unknowns are the images themselves: a still body with one flickering tube, noisier than what comes out."""
    m0, t1, _ = tubes(20)
    frames = np.repeat(np.abs(m0)[None], 4, 0).astype(complex)
    frames[:, t1 == 300] *= np.linspace(0.5, 1.5, 4)[:, None]
    noisy = add_noise(frames, 0.1)
    model = Series(4)
    result = fit(model, data_term.from_images(noisy), Settings(kind, max_gn_it=1, start_iters=40, gamma=3e-3), start=noisy)
    assert relative_error(frames, result.parameters) < 0.7 * relative_error(frames, noisy)


def test_none_is_the_pixel_wise_fit() -> None:
    """For each model; started from the constants, so that the steps have something to do."""
    for model, t1 in ((FlipAngles(), 800.0), (Decay(), 1 / 40), (LookLocker(), 500.0)):
        amplitudes = np.random.default_rng(0).uniform(0.6, 1, (len(model.unknowns) - 1, 5, 6)) * np.exp(0.4j)
        truth = np.stack([*amplitudes, np.full((5, 6), t1)])
        images = add_noise(model(truth).numpy(), 1e-3)
        single = fit_pixelwise(model, images, tolerance=1e-12)
        start = single.parameters * 1.2
        settings = Settings("none", max_gn_it=5, delta=1e6, delta_max=1e12, rtol=0, atol=0, stag=0, start_iters=2)
        result = fit(model, data_term.from_images(images), settings, start=start)
        np.testing.assert_allclose(result.parameters, single.parameters, rtol=1e-5)
        # Its error bars are those of the single voxels on average: there the noise is each voxel's own.
        np.testing.assert_allclose(result.deviation.mean((1, 2)), single.deviation.mean((1, 2)), rtol=0.25)


def test_gap_falls_and_both_precisions_agree(scan: Any) -> None:
    model, maps, kspace = scan
    settings = Settings(max_gn_it=1, rtol=0, atol=0, stag=0)
    term = data_term.cartesian(kspace.astype(np.complex128), maps)
    gaps = [fit(model, term, replace(settings, start_iters=n, max_iters=n)).steps[1].gap for n in (10, 50, 150)]
    assert gaps[0] < 1
    assert 0 <= gaps[2] < 0.1 * gaps[1] < 0.1 * gaps[0]
    settings = replace(settings, max_gn_it=2, start_iters=40)
    double, single = fit(model, term, settings), fit(model, data_term.cartesian(kspace, maps), settings)
    assert single.parameters.dtype == np.complex64
    inside = tubes(SIZE)[2]
    for n in range(2):
        assert relative_error(double.parameters[n][inside], single.parameters[n][inside]) < 1e-3


def test_constraints_hold_after_every_step(scan: Any) -> None:
    _, maps, kspace = scan
    narrow = FlipAngles()
    amplitude, t1 = narrow.unknowns
    narrow.unknowns = (replace(amplitude, upper=11.0, lower=1.0), replace(t1, lower=500.0, upper=1200.0, start=900.0))

    def check(step: Step) -> None:
        size = np.abs(step.parameters[0]) / scale
        assert step.parameters[1].imag.max() == 0
        assert step.parameters[1].real.min() >= 500 * (1 - 1e-6)
        assert step.parameters[1].real.max() <= 1200 * (1 + 1e-6)
        assert size.min() >= 1 - 1e-5
        assert size.max() <= 11 + 1e-4

    term = data_term.cartesian(kspace, maps)
    scale = np.abs(term.images().numpy()).max()
    result = fit(narrow, term, Settings(max_gn_it=2, start_iters=60), callback=check)
    _, true, inside = tubes(SIZE)
    assert np.median(result.parameters[1].real[inside & (true > 1200)]) == pytest.approx(1200)
    assert np.median(result.parameters[1].real[inside & (true < 500)]) == pytest.approx(500)


def test_the_plain_metric_finds_the_same(scan: Any) -> None:
    model, maps, kspace = scan
    term = data_term.cartesian(kspace.astype(np.complex128), maps)
    settings = Settings(max_gn_it=1, start_iters=250, max_iters=250, rtol=0, atol=0, stag=0, delta=10.0)
    results = [fit(model, term, replace(settings, precond=metric)).parameters for metric in (True, False)]
    inside = tubes(SIZE)[2]
    assert relative_error(results[0][1][inside], results[1][1][inside]) < 5e-3


def test_a_volume_whose_slices_are_alike_helps_itself() -> None:
    """Three equal slices with noise of their own: regularised across slices the error falls below that of one slice."""
    model, size = FlipAngles(), 20
    clean = np.repeat(series(model, size)[:, None], 3, 1)
    volume = add_noise(clean, NOISE).astype(np.complex64)
    settings = Settings("TV", max_gn_it=1, start_iters=60)
    together = fit(model, data_term.from_images(volume), settings).parameters[:, 1]
    alone = fit(model, data_term.from_images(volume[:, 1]), settings).parameters
    assert error(together, size) < error(alone, size)


def test_where_no_coil_sees_anything_maps_stay_finite(scan: Any) -> None:
    model, maps, kspace = scan
    blind = maps.copy()
    blind[:, :10] = 0
    result = fit(model, data_term.cartesian(kspace, blind), Settings(max_gn_it=1, start_iters=20))
    assert np.isfinite(result.parameters).all()
    assert np.isinf(result.deviation[1, :10]).all()
    assert np.isfinite(result.deviation[1][tubes(SIZE)[2] & (np.arange(SIZE) >= 10)[:, None]]).all()


def test_what_does_not_fit_is_named(scan: Any) -> None:
    model, maps, kspace = scan
    with pytest.raises(ModelError, match="5 contrasts, the data 4"):
        fit(model, data_term.cartesian(kspace[:4], maps))
    with pytest.raises(ValueError, match="weights of shape"):
        fit(model, data_term.cartesian(kspace, maps), weights=np.ones(3))
    with pytest.raises(ModelError, match="zero everywhere"):
        fit(model, data_term.from_images(np.zeros((5, 4, 4), complex)))
