"""The pixel-wise fit against truths, against SciPy, and its error bars against the spread of many fits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.optimize import least_squares

from recon.quantitative.deviations import noise_variance
from recon.quantitative.magnitude import Magnitude
from recon.quantitative.model import Map, ModelError, SignalModel
from recon.quantitative.models.exp_decay import ExpDecay
from recon.quantitative.models.r2star import R2Star
from recon.quantitative.pixelwise import fit_pixelwise
from recon.quantitative.real_unknowns import inverse
from tests.recon.quantitative.small_models import Decay, FlipAngles, LookLocker, add_noise, tubes

MODELS = [FlipAngles(), Decay(), LookLocker()]


def truth(model: SignalModel, voxels: int = 300, seed: int = 1) -> np.ndarray:
    """Random unknowns well within their bounds, amplitudes about 1 with any phase."""
    random = np.random.default_rng(seed)
    amplitude = random.uniform(0.5, 1, (2, voxels)) * np.exp(1j * random.uniform(-3, 3, voxels))
    rows = {"T1": random.uniform(250, 3000, voxels), "T1star": random.uniform(150, 1500, voxels), "R": 1 / random.uniform(15, 150, voxels)}
    return np.stack([rows[u.name] if u.real else amplitude[n] for n, u in enumerate(model.unknowns)])


def signal(model: SignalModel, parameters: np.ndarray) -> np.ndarray:
    values: np.ndarray = model(parameters.astype(np.complex128)).numpy()
    return values


@pytest.mark.parametrize(
    ("model", "dtype", "limit"),
    [(MODELS[0], "complex64", 1e-3), *((model, "complex128", 1e-7) for model in MODELS)],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_noiseless_data_give_the_unknowns_back(model: SignalModel, dtype: str, limit: float) -> None:
    wanted = truth(model)
    fit = fit_pixelwise(model, (7.5 * signal(model, wanted)).astype(dtype))
    scale = np.array([7.5 if unknown.amplitude else 1 for unknown in model.unknowns])[:, None]
    assert np.abs(fit.parameters / (scale * wanted) - 1).max() < limit
    assert fit.converged.all()
    assert fit.parameters.dtype == np.dtype(dtype)


def test_the_minimum_is_scipys() -> None:
    model = Decay()
    images = add_noise(signal(model, truth(model, 20)), 0.03)

    def residual(x: np.ndarray, data: np.ndarray) -> np.ndarray:
        difference = (x[0] + 1j * x[1]) * np.exp(-model.times * x[2]) - data
        return np.concatenate([difference.real, difference.imag])

    fit = fit_pixelwise(model, images, tolerance=1e-12)
    for voxel in range(20):
        data = images[:, voxel]
        reference = least_squares(
            residual, [data[0].real, data[0].imag, 0.02], args=(data,), xtol=1e-14, ftol=1e-14, gtol=1e-14, x_scale="jac"
        )
        found = fit.parameters[:, voxel]
        np.testing.assert_allclose([found[0].real, found[0].imag, found[1].real], reference.x, rtol=1e-5)
        assert fit.residual[voxel] ** 2 * model.contrasts == pytest.approx(2 * reference.cost, rel=1e-8)


def test_deviations_are_those_of_many_fits() -> None:
    """Both of the unknowns and, propagated, of the maps."""

    class WithTime(Decay):
        def maps(self, parameters: np.ndarray) -> dict[str, Map]:
            return {"T": Map(1 / parameters[1].real, "ms"), "M0": Map(parameters[0], "")}

    model = WithTime()
    clean = signal(model, np.repeat([[0.9 * np.exp(0.7j)], [1 / 60]], 4000, 1))
    fit = fit_pixelwise(model, add_noise(clean, 0.02))
    spread = [np.abs(fit.parameters[0]).std(), fit.parameters[1].real.std()]
    np.testing.assert_allclose(fit.deviation.mean(1), spread, rtol=0.05)
    maps = fit.maps()
    assert list(maps) == ["T", "T_sd", "M0", "M0_sd"]
    assert maps["T_sd"].unit == "ms"
    assert np.median(maps["T_sd"].values) == pytest.approx(maps["T"].values.std(), rel=0.07)
    assert np.median(maps["M0_sd"].values) == pytest.approx(spread[0], rel=0.05)


@pytest.mark.parametrize("kind", ["magnitudes", "signed", "magnitudes as complex", "magnitude option"])
def test_deviations_of_images_without_phases(kind: str) -> None:
    """Half as many numbers hold noise: four echoes leave two degrees of freedom, not five."""
    model = ExpDecay([10, 25, 45, 70])
    noisy = add_noise(signal(model, np.repeat([[0.9], [1000 / 60]], 4000, 1)), 0.01)
    images = noisy.real if kind == "signed" else np.abs(noisy).astype(complex if "complex" in kind else float)
    fit = fit_pixelwise(Magnitude(model) if kind.startswith("magnitudes") else model, images, magnitude=kind == "magnitude option")
    for name, shown in fit.maps().items():
        if not name.endswith("_sd"):
            spread = np.abs(shown.values).std()
            assert np.sqrt(np.mean(fit.maps()[f"{name}_sd"].values ** 2)) == pytest.approx(spread, rel=0.08), name
    variance = noise_variance(fit.model, fit.parameters, images)
    assert variance.mean() == pytest.approx(2e-4, rel=0.05)


def test_what_magnitudes_do_not_show_leaves_the_rest_determined() -> None:
    """T2* has a deviation though B0 has none, and B0 takes no degree of freedom: three echoes leave one."""
    model = R2Star([3, 9, 20])
    noisy = np.abs(add_noise(signal(model, np.repeat([[0.9], [1000 / 30], [12]], 4000, 1)), 0.002))
    maps = fit_pixelwise(Magnitude(model), noisy).maps()
    assert np.isinf(maps["B0_sd"].values).all()
    assert np.sqrt(np.mean(maps["T2star_sd"].values ** 2)) == pytest.approx(maps["T2star"].values.std(), rel=0.08)


def test_bounds_hold_and_a_start_at_one_is_left_again() -> None:
    model = FlipAngles()
    wanted = truth(model, 50)
    wanted[1, :10] = 9000  # beyond the bound
    images = signal(model, wanted)
    fit = fit_pixelwise(model, images, start=np.stack([wanted[0], np.full(50, 5500.0)]))
    assert fit.parameters[1].real.max() <= 5500
    np.testing.assert_allclose(fit.parameters[1, :10].real, 5500)
    np.testing.assert_allclose(fit.parameters[1, 10:].real, wanted[1, 10:].real, rtol=1e-5)


def test_magnitudes_are_enough_where_phases_are_lost() -> None:
    model = LookLocker()
    wanted = truth(model)
    wanted[1] = np.abs(wanted[1]) * np.exp(1j * np.angle(wanted[0]))
    start = np.stack([np.abs(wanted[0]) * 1.1, np.abs(wanted[1]) * 0.9, wanted[2] * 1.15])
    fit = fit_pixelwise(model, np.abs(signal(model, wanted)), magnitude=True, start=start)
    assert np.median(np.abs(fit.parameters[2].real / wanted[2].real - 1)) < 1e-4
    assert np.abs(fit.parameters.imag).max() == 0


def test_voxels_outside_the_mask_are_nan_and_batches_change_nothing() -> None:
    gain = np.random.default_rng(0).uniform(0.5, 1.5, (6, 9))
    model = Decay(gain=gain)
    images = add_noise(signal(model, truth(model, 54).reshape(2, 6, 9)), 0.01)
    mask = np.zeros((6, 9), bool)
    mask[1:5, 2:] = True
    whole, pieces = fit_pixelwise(model, images, mask), fit_pixelwise(model, images, mask, batch=11)
    np.testing.assert_array_equal(np.isnan(whole.parameters[0]), ~mask)
    np.testing.assert_allclose(pieces.parameters, whole.parameters, rtol=1e-6)
    assert not whole.converged[~mask].any()


def test_one_compiled_program_gives_the_same() -> None:
    model = Decay()
    images = add_noise(signal(model, truth(model, 40)), 0.01)
    np.testing.assert_allclose(
        fit_pixelwise(model, images, compiled=True).parameters, fit_pixelwise(model, images, compiled=False).parameters, rtol=1e-5
    )


def test_no_noise_estimate_without_a_degree_of_freedom() -> None:
    model = Decay(times=(5, 20))
    fit = fit_pixelwise(model, np.abs(signal(model, truth(model, 5))), magnitude=True)
    assert np.isinf(fit.deviation[1]).all()


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (np.ones((4, 3)), {}, "5 contrasts"),
        (np.ones((5, 3)), {"mask": np.zeros(3, bool)}, "mask is empty"),
        (np.ones((5, 3)), {"mask": np.ones(4, bool)}, r"mask of shape \(4,\)"),
        (np.full((5, 3), np.nan), {}, "contrast 0 .* not finite"),
        (np.zeros((5, 3)), {}, "zero everywhere"),
        (np.ones((5, 3)), {"start": np.ones((1, 3))}, "start values of shape"),
    ],
)
def test_what_cannot_be_fitted_is_named(images: np.ndarray, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        fit_pixelwise(Decay(), images, **options)


def test_too_few_contrasts() -> None:
    with pytest.raises(ModelError, match="1 contrasts are too few for 3"):
        fit_pixelwise(Decay(times=(5,)), np.ones((1, 3)))


def test_the_tubes_with_noise() -> None:
    m0, t1, inside = tubes()
    model = FlipAngles()
    images = add_noise(signal(model, np.stack([m0, t1])), 5e-4).astype(np.complex64)
    fit = fit_pixelwise(model, images)
    assert np.median(np.abs(fit.parameters[1].real - t1)[inside] / t1[inside]) < 0.03


def test_inverses_of_small_matrices(tf: Any) -> None:
    random = np.random.default_rng(0)
    factors = random.standard_normal((30, 5, 7))
    matrices = factors @ np.swapaxes(factors, 1, 2)
    found = inverse(tf.constant(np.moveaxis(matrices, 0, -1))).numpy()
    np.testing.assert_allclose(np.moveaxis(found, -1, 0), np.linalg.inv(matrices), rtol=1e-8, atol=1e-8)
