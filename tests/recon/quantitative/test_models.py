"""All signal models: value, Jacobian, start values, recovery of the truth, precision and compilation."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from recon.quantitative.catalogue import MODELS
from recon.quantitative.model import SignalModel
from recon.quantitative.pixelwise import fit_pixelwise
from tests.recon.conftest import relative_error
from tests.recon.quantitative.model_cases import Case, cases

NAMES = [*MODELS, "IR_magnitude"]
CASES = cases()


@cache
def compiled(name: str) -> Any:
    """The Jacobian as a graph: traced once for all tests."""
    import tensorflow as tf

    return tf.function(CASES[name].model.jacobian)


def evaluate(name: str, parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    signal, jacobian = compiled(name)(parameters)
    return signal.numpy(), jacobian.numpy()


def written_out(one: Case) -> np.ndarray:
    rows = [
        [complex(value) if not unknown.real else value.real for value in row]
        for unknown, row in zip(one.model.unknowns, one.truth, strict=True)
    ]
    return np.stack([one.signal(*values, voxel=n) for n, values in enumerate(zip(*rows, strict=True))], 1).astype(complex)


def test_there_is_a_case_for_every_model() -> None:
    assert set(NAMES) == set(CASES)


@pytest.mark.parametrize("name", NAMES)
def test_value(name: str) -> None:
    one = CASES[name]
    assert relative_error(evaluate(name, one.truth)[0], written_out(one)) < 1e-8


@pytest.mark.parametrize("name", NAMES)
def test_jacobian_is_the_slope_of_the_signal(name: str) -> None:
    one = CASES[name]
    jacobian = evaluate(name, one.truth)[1]
    assert jacobian.shape == (one.model.contrasts, *one.truth.shape)
    for n, unknown in enumerate(one.model.unknowns):
        step = 1e-5 * max(float(np.abs(one.truth[n]).min()), 1e-2)
        for direction in (1,) if unknown.real else (1, 1j):
            up, down = one.truth.copy(), one.truth.copy()
            up[n] += direction * step
            down[n] -= direction * step
            slope = (evaluate(name, up)[0] - evaluate(name, down)[0]) / (2 * step * direction)
            assert relative_error(jacobian[:, n], slope) < 1e-4, unknown.name


@pytest.mark.parametrize("name", NAMES)
def test_derivatives_log_nothing(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """TensorFlow warned of derivatives with respect to complex numbers, and of casts to them, at every scan."""
    import tensorflow as tf

    logger = tf.get_logger()
    logger.addHandler(caplog.handler)
    try:
        CASES[name].model.jacobian(CASES[name].truth.astype(np.complex64))
    finally:
        logger.removeHandler(caplog.handler)
    assert caplog.messages == []


@pytest.mark.parametrize("name", NAMES)
def test_guess_is_near_and_within_bounds(name: str) -> None:
    one = CASES[name]
    images = written_out(one)
    scale = np.abs(images).max()
    model = one.model.scaled(1 / scale)
    start = model.guess(images / scale)
    assert start.shape == one.truth.shape
    for unknown, found, true in zip(model.unknowns, start, one.truth, strict=True):
        assert np.isfinite(found).all()
        size = np.abs(found) if not unknown.real else found.real
        assert (size >= unknown.lower - 1e-9).all()
        if unknown.real:
            assert (size <= unknown.upper + 1e-9).all()
        wanted = np.abs(true) / (scale if unknown.amplitude else 1)
        if np.isfinite(one.guess) and unknown.unit not in ("rad", "Hz"):
            assert (np.abs(found) < wanted * one.guess).all(), (unknown.name, found, wanted)
            assert (np.abs(found) > wanted / one.guess).all(), (unknown.name, found, wanted)


@pytest.mark.parametrize("name", NAMES)
def test_recovers_the_truth(name: str) -> None:
    one = CASES[name]
    images = written_out(one)
    scale = np.abs(images).max()
    units = np.array([scale if unknown.amplitude else 1 for unknown in one.model.unknowns])[:, None]
    found = fit(name, images, one.model.scaled(1 / scale).guess(images / scale) * units)
    wanted = one.model.maps(one.truth)
    for key, shown in one.model.maps(found).items():
        span = np.abs(wanted[key].values).max()
        assert np.abs(shown.values - wanted[key].values) == pytest.approx(0, abs=0.01 * span), key


@pytest.mark.parametrize("name", ["ASL", "IR_magnitude", "Ivim"])
def test_the_pixelwise_fit_finds_it_too(name: str) -> None:
    """Models whose fields carry the data's scale or phases, and magnitudes."""
    one = CASES[name]
    fitted = fit_pixelwise(one.model, written_out(one))
    wanted = one.model.maps(one.truth)
    for key, shown in one.model.maps(fitted.parameters).items():
        assert shown.values == pytest.approx(wanted[key].values, rel=0.01), key


def fit(name: str, images: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Levenberg-Marquardt for each voxel, in real components."""
    model = CASES[name].model
    parts = [(n, unit) for n, unknown in enumerate(model.unknowns) for unit in ((1,) if unknown.real else (1, 1j))]
    found, damping = np.asarray(model.constrain(start.astype(np.complex128))), np.full(images.shape[1], 1e-2)
    signal, jacobian = evaluate(name, found)
    for _ in range(150):
        columns = np.stack([jacobian[:, n] * unit for n, unit in parts], 1).transpose(2, 0, 1)
        left = np.concatenate([columns.real, columns.imag], 1)
        right = (images - signal).T
        residual = np.concatenate([right.real, right.imag], 1)
        size = np.maximum(np.linalg.norm(left, axis=1, keepdims=True), 1e-30)
        left = left / size
        normal = left.transpose(0, 2, 1) @ left + damping[:, None, None] * np.eye(len(parts))
        step = np.linalg.solve(normal, (left.transpose(0, 2, 1) @ residual[..., None]))[..., 0] / size[:, 0]
        trial = found.copy()
        for (n, unit), change in zip(parts, step.T, strict=True):
            trial[n] += unit * change
        trial = np.asarray(model.constrain(trial))
        new_signal, new_jacobian = evaluate(name, trial)
        better = (np.abs(new_signal - images) ** 2).sum(0) < (np.abs(signal - images) ** 2).sum(0)
        found = np.where(better, trial, found)
        signal, jacobian = np.where(better, new_signal, signal), np.where(better, new_jacobian, jacobian)
        damping = np.where(better, np.maximum(damping / 5, 1e-12), np.minimum(damping * 4, 1e6))
        if relative_error(signal, images) < 1e-10:
            break
    return found


@pytest.mark.parametrize("name", NAMES)
def test_single_precision(name: str) -> None:
    """complex64 loses no more than its own rounding amplified a little: no cancellation in E1, no overflow."""
    one = CASES[name]
    signal = one.model(one.truth.astype(np.complex64))
    assert signal.dtype == np.complex64
    assert relative_error(signal.numpy(), evaluate(name, one.truth)[0]) < 2e-5


@pytest.mark.parametrize("name", ["VFA", "DESPOT2", "LookLocker", "R2Star"])
def test_jacobian_in_single_precision(name: str) -> None:
    one = CASES[name]
    jacobian, exact = one.model.jacobian(one.truth.astype(np.complex64))[1].numpy(), evaluate(name, one.truth)[1]
    for n in range(len(one.truth)):
        assert relative_error(jacobian[:, n], exact[:, n]) < 2e-4


@pytest.mark.parametrize("name", ["VFA", "R2Star"])
def test_eager_graph_and_xla_agree(name: str) -> None:
    import tensorflow as tf

    one = CASES[name]
    eager = one.model.jacobian(one.truth)
    graph = compiled(name)(one.truth)
    xla = tf.function(one.model.jacobian, jit_compile=True)(one.truth)
    for values in (graph, xla):
        for a, b in zip(eager, values, strict=True):
            assert relative_error(b.numpy(), a.numpy()) < 1e-10


def test_voxels_may_have_any_shape_and_models_be_cut() -> None:
    one = CASES["VFA"]
    model: SignalModel = one.model
    truth = np.stack([one.truth, one.truth[:, ::-1]], 1)
    model.fields["fa_corr"], kept = np.stack([model.fields["fa_corr"], model.fields["fa_corr"][::-1]]), model.fields["fa_corr"]
    try:
        whole = model(truth).numpy()
        assert relative_error(model.part(2, slice(1, 2))(truth[:, 1:2]).numpy(), whole[:, 1:2]) < 1e-12
        assert relative_error(whole[:, 0], evaluate("VFA", one.truth)[0]) < 1e-12
    finally:
        model.fields["fa_corr"] = kept
