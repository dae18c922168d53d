"""Standard deviation maps against the scatter of repeated fits."""

from __future__ import annotations

import numpy as np
import pytest

from recon.quantitative.deviations import covariance, deviations, noise_variance
from recon.quantitative.model import ModelError, SignalModel
from recon.quantitative.models.exp_decay import ExpDecay
from recon.quantitative.models.r2star import R2Star
from recon.quantitative.models.vfa import VFA
from recon.quantitative.pixelwise import fit_pixelwise

REPEATS = 4000
MODELS: dict[str, tuple[SignalModel, list[complex]]] = {
    "VFA": (VFA(6, [2, 4, 9, 15, 24]), [9 * np.exp(1j), 1200]),
    "R2Star": (R2Star([2, 5, 9, 14, 21, 30]), [-0.9, 40, 30]),
}


@pytest.mark.parametrize("name", MODELS)
def test_deviation_is_the_scatter_of_repeated_fits(name: str) -> None:
    model, truth = MODELS[name]
    parameters = np.array(truth, np.complex128)[:, None]
    signal = model(parameters).numpy()
    sigma = 0.005 * np.abs(signal).max()
    random = np.random.default_rng(1)
    noise = random.normal(size=(2, model.contrasts, REPEATS)) * sigma
    images = signal + noise[0] + 1j * noise[1]
    fit = fit_pixelwise(model, images)
    wanted = deviations(model, parameters, 2 * sigma**2)
    for key, shown in model.maps(fit.parameters).items():
        assert np.std(np.abs(shown.values) if np.iscomplexobj(shown.values) else shown.values) == pytest.approx(
            float(wanted[key].values[0]), rel=0.06
        ), key
        assert wanted[key].unit == shown.unit
    # The residual tells the noise, on average.
    assert noise_variance(model, fit.parameters, images).mean() == pytest.approx(2 * sigma**2, rel=0.03)
    scatter = np.cov(np.stack([np.abs(row) if not u.real else row.real for u, row in zip(model.unknowns, fit.parameters, strict=True)]))
    size = np.sqrt(np.diag(scatter))
    assert covariance(model, parameters, 2 * sigma**2)[..., 0] / np.outer(size, size) == pytest.approx(
        scatter / np.outer(size, size), abs=0.1
    )


def test_agrees_with_the_pixelwise_fit() -> None:
    model, truth = ExpDecay([10, 20, 40, 80, 160]), [1j, 14]
    random = np.random.default_rng(2)
    signal = model(np.array(truth, np.complex128)[:, None]).numpy()
    images = signal + 0.01 * (random.normal(size=(5, 20)) + 1j * random.normal(size=(5, 20)))
    fit = fit_pixelwise(model, images)
    own = covariance(model, fit.parameters, noise_variance(model, fit.parameters, images))
    assert own == pytest.approx(fit.covariance, rel=1e-3, abs=1e-9)


def test_undetermined_unknowns_are_infinitely_uncertain() -> None:
    model = ExpDecay([10, 20, 40])
    found = covariance(model, np.array([[0.0], [14]], complex), 1.0)
    assert np.isinf(found[1, 1, 0])
    assert np.isfinite(found[0, 0, 0])


def test_no_residual_no_variance() -> None:
    model = R2Star([2, 5])
    with pytest.raises(ModelError, match="leave no residual"):
        noise_variance(model, np.ones((3, 4), complex), np.ones((2, 4), complex))
