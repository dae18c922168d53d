"""Off-resonance in CG-SENSE: convolutions against the matrix written out, images against the object."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from recon.b0_sense import b0_sense
from recon.operators import Nufft
from recon.operators.off_resonance import OffResonance
from recon.operators.off_resonance_gram import OffResonanceGram, difference_segments
from recon.phantoms import birdcage_coils, shepp_logan
from recon.sense import cg_sense
from tests.gadgets.scans import spiral
from tests.recon.conftest import random_complex, random_trajectory, relative_error

SHAPE, SAMPLES = (12, 11), 300
POINTS = random_trajectory(SAMPLES, 2, dtype="float64")
TIMES = np.tile(np.linspace(1e-3, 11e-3, SAMPLES // 3), 3)
Y, X = np.mgrid[:12, :11] - np.array([6, 5])[:, None, None]
FIELD = 80 * np.exp(-(Y**2 + X**2) / 12) + 6.0 * X
MAPS = random_complex((3, *SHAPE), 2, "complex128")
WEIGHTS = np.random.default_rng(3).uniform(0.1, 1, SAMPLES)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_convolutions_are_the_gram_matrix(weights: np.ndarray | None) -> None:
    positions = np.stack([Y.ravel(), X.ravel()])
    matrix = np.exp(-1j * POINTS @ positions) * np.exp(-2j * np.pi * np.outer(TIMES, FIELD.ravel())) / np.sqrt(132)
    gram = matrix.conj().T @ (matrix if weights is None else weights[:, None] * matrix)
    image = random_complex(SHAPE, 4, "complex128")
    expected = sum(m.conj() * (gram @ (m * image).ravel()).reshape(SHAPE) for m in MAPS)
    for tolerance in (1e-2, 1e-4):
        operator = OffResonanceGram(MAPS, POINTS, FIELD, TIMES, weights, tolerance)
        assert relative_error(expected, operator(image)) < 2 * tolerance
        assert relative_error(expected, operator(np.stack([image, image]))[1]) < 2 * tolerance


def test_segments_of_differences_are_real_and_about_twice_as_many() -> None:
    centres, interpolators = difference_segments(FIELD, TIMES, 1e-3)
    assert interpolators.dtype == np.float64
    single = OffResonance(Nufft(POINTS, SHAPE), FIELD, TIMES, tolerance=1e-3).segments
    assert single < len(centres) <= 2 * single
    # Exact at pairs of pixels that were never asked for one by one.
    difference = np.subtract.outer(FIELD.ravel(), FIELD.ravel())[::7].ravel()
    fitted = np.exp(2j * np.pi * np.outer(difference, centres)) @ interpolators
    error = np.abs(fitted - np.exp(2j * np.pi * np.outer(difference, TIMES)))
    assert np.sqrt((error**2).mean(0)).max() < 3e-3


@pytest.fixture(scope="module")
def scan() -> dict[str, Any]:
    """Six spiral arms of 15 ms, eight coils, -135 ... 90 Hz, 1 % noise."""
    n, arms, samples = 64, 6, 1500
    y, x = np.mgrid[:n, :n] / n - 0.5
    field = 150 * np.exp(-((y + 0.2) ** 2 + (x - 0.1) ** 2) / 0.05) - 160 * x - 60
    trajectory = (2 * np.pi * spiral(arms, n / 2 / arms, samples)[..., ::-1]).reshape(-1, 2)
    times = np.tile(np.linspace(0, 15e-3, samples), arms)
    maps, truth = birdcage_coils(8, (n, n)), shepp_logan((n, n))
    exact = OffResonance(Nufft(trajectory, (n, n), 1e-9), field, times, tolerance=1e-7)
    kspace = exact(maps.astype(complex) * truth)
    noise = 0.01 * random_complex(kspace.shape, 7)
    undisturbed = Nufft(trajectory, (n, n), 1e-9)(maps.astype(complex) * truth) + noise
    return {
        "kspace": (kspace + noise).astype(np.complex64),
        "trajectory": trajectory.astype(np.float32),
        "maps": maps,
        "field_map": field,
        "times": times,
        "truth": truth,
        "undisturbed": undisturbed.astype(np.complex64),
    }


def given(scan: dict[str, Any], *without: str) -> dict[str, Any]:
    return {name: values for name, values in scan.items() if name not in ("truth", "undisturbed", *without)}


def error(image: np.ndarray, truth: np.ndarray) -> float:
    return float(np.linalg.norm(np.abs(image) - np.abs(truth)) / np.linalg.norm(truth))


def test_the_blur_of_a_spiral_goes(scan: dict[str, Any]) -> None:
    data = given(scan)
    blurred = cg_sense(scan["kspace"], scan["trajectory"], scan["maps"], 15)
    sharp = {toeplitz: b0_sense(**data, iterations=15, toeplitz=toeplitz) for toeplitz in (True, False)}
    best = error(cg_sense(scan["undisturbed"], scan["trajectory"], scan["maps"], 15), scan["truth"])
    assert error(blurred, scan["truth"]) > 0.4 > 2 * best
    assert error(sharp[True], scan["truth"]) < 1.1 * best
    assert relative_error(sharp[False], sharp[True]) < 0.03
    assert sharp[True].tobytes() == b0_sense(**data, iterations=15, toeplitz=True).tobytes()


def test_without_a_field_it_is_cg_sense(scan: dict[str, Any]) -> None:
    data = given(scan, "field_map")
    zero = np.zeros((64, 64))
    for toeplitz in (True, False):
        plain = cg_sense(scan["kspace"], scan["trajectory"], scan["maps"], 8, regularisation=0.01, toeplitz=toeplitz)
        image = b0_sense(**data, field_map=zero, iterations=8, regularisation=0.01, toeplitz=toeplitz)
        assert relative_error(plain, image) < 1e-3


def test_a_volume() -> None:
    shape = (3, 8, 6)
    points, times = random_trajectory(900, 3, dtype="float64"), np.tile(np.linspace(0, 8e-3, 90), 10)
    z, y, x = np.meshgrid(*(np.arange(n) - n // 2 for n in shape), indexing="ij")
    field = 30.0 * z + 12.0 * y - 9.0 * x
    maps, image = random_complex((4, *shape), 1, "complex128"), random_complex(shape, 2, "complex128")
    positions = np.stack([z.ravel(), y.ravel(), x.ravel()])
    matrix = np.exp(-1j * points @ positions - 2j * np.pi * np.outer(times, field.ravel())) / np.sqrt(image.size)
    kspace = (maps * image).reshape(4, -1) @ matrix.T
    assert relative_error(image, b0_sense(kspace, points, maps, field, times, 100, 1e-6, accuracy=1e-4)) < 5e-3


def test_tensors_give_the_same(scan: dict[str, Any], tf: Any) -> None:
    data = given(scan)
    for toeplitz in (True, False):
        array = b0_sense(**data, iterations=3, toeplitz=toeplitz)
        tensor = b0_sense(**{**data, "kspace": tf.constant(scan["kspace"])}, iterations=3, toeplitz=toeplitz)
        assert relative_error(array, tensor.numpy()) < 1e-4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"field_map": np.zeros((3, 3))}, "do not fit: expected"),
        ({"times": np.zeros(5)}, "do not fit: expected"),
        ({"weights": np.ones(5)}, r"weights \(5,\) do not fit"),
        ({"times": np.linspace(0, 1e4, 9000)}, "are they in s"),
        ({"field_map": np.full((64, 64), np.nan)}, "finite"),
    ],
)
def test_errors_name_the_argument(scan: dict[str, Any], change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        b0_sense(**{**given(scan), **change})
