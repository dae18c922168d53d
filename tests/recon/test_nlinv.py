"""Nonlinear inversion against the true sensitivities and image, on a grid and along spokes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recon.coils import walsh
from recon.density import radial_weights
from recon.fourier import fftc, ifftc
from recon.metrics import nrmse
from recon.nlinv import nlinv
from recon.nufft import Nufft
from recon.operators import Encoding
from recon.phantoms import birdcage_coils, shepp_logan
from recon.solvers import conjugate_gradient
from recon.trajectory import radial_trajectory
from tests.recon.conftest import random_complex, relative_error
from tests.recon.test_espirit import brain

SHAPE, COILS = (64, 64), 4


@pytest.fixture(scope="module")
def scan() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """k-space, image, true maps."""
    image, maps = shepp_logan(SHAPE), birdcage_coils(COILS, SHAPE)
    return fftc((maps * image).astype(np.complex64), (-2, -1)), image, maps


def map_error(found: np.ndarray, truth: np.ndarray, where: np.ndarray) -> float:
    """Relative error of maps inside the object, after the phase of every pixel is aligned."""
    phase = (found.conj() * truth).sum(0)
    return relative_error(truth[:, where], (found * phase / np.abs(phase))[:, where])


def lines(step: int, centre: int, rows: int = SHAPE[0]) -> np.ndarray:
    """Every `step`-th line and so many in the centre."""
    mask = np.arange(rows) % step == 0
    mask[rows // 2 - centre // 2 : rows // 2 + centre // 2] = True
    return mask[:, None]


def test_maps_from_the_24_centre_lines(scan: tuple[np.ndarray, ...]) -> None:
    kspace, image, truth = scan
    mask = lines(100, 24)
    mask[0] = False
    combined, maps = nlinv(kspace * mask, mask=mask, newton_steps=6)
    assert combined.dtype == maps.dtype == np.complex64
    assert map_error(maps, truth, image > 0.05) < 0.02
    assert np.allclose((np.abs(maps) ** 2).sum(0), 1, atol=1e-4)
    inside = image > 0.05
    step = np.linalg.norm(np.diff(maps, axis=-1), axis=0)[inside[:, 1:] & inside[:, :-1]]
    assert step.max() < 0.3  # in phase too


def test_image_and_maps_from_undersampled_data(scan: tuple[np.ndarray, ...]) -> None:
    kspace, image, truth = scan
    mask = lines(2, 12)
    combined, maps = nlinv(kspace * mask, newton_steps=8)
    aliased = np.abs(ifftc(kspace * mask, (-2, -1)) * truth.conj()).sum(0)
    assert map_error(maps, truth, image > 0.05) < 0.02
    assert nrmse(image, np.abs(combined)) < 0.04 < 0.3 < nrmse(image, aliased)
    assert nrmse(image, np.abs(nlinv(kspace, newton_steps=8)[0])) < 0.01


def test_the_equation_is_solved(scan: tuple[np.ndarray, ...]) -> None:
    """Image times maps predict the sampled data better from step to step, in their own scale."""
    mask = lines(2, 12)
    data = 1e-3 * scan[0] * mask

    def misfit(steps: int) -> float:
        image, maps = nlinv(data, mask=mask, newton_steps=steps)
        return relative_error(data, mask * fftc(image * maps, (-2, -1)))

    errors = [misfit(steps) for steps in (2, 4, 6, 8)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01


@pytest.mark.parametrize("given", [True, False])
def test_spokes(scan: tuple[np.ndarray, ...], given: bool) -> None:
    _, image, truth = scan
    spokes = radial_trajectory(64, 34, ordering="golden_half")
    points = spokes.reshape(-1, 2)
    samples = Nufft(points, SHAPE, 1e-6).forward((truth * image).astype(np.complex64))
    combined, maps = nlinv(samples, points, SHAPE, weights=radial_weights(spokes, SHAPE).ravel() if given else None)
    assert map_error(maps, truth, image > 0.05) < 0.02
    assert nrmse(image, np.abs(combined)) < 0.2


def test_a_grid_is_a_trajectory_too(scan: tuple[np.ndarray, ...]) -> None:
    """The same samples give the same maps, whether they come on a grid or as points."""
    shape = (24, 20)
    image, maps = shepp_logan(shape), birdcage_coils(3, shape)
    kspace = fftc((maps * image).astype(np.complex128), (-2, -1))
    mask = lines(2, 8, 24) & np.ones(shape, bool)
    y, x = np.nonzero(mask)
    points = np.stack([(y - 12) / 24, (x - 10) / 20], axis=-1) * 2 * np.pi
    on_grid = nlinv(kspace * mask, mask=mask)
    as_points = nlinv(kspace[:, mask], points, shape, weights=np.ones(len(points)))
    assert on_grid[0].dtype == np.complex128
    assert relative_error(on_grid[0], as_points[0]) < 1e-2
    assert relative_error(on_grid[1], as_points[1]) < 1e-2


def test_batches_and_tensors_give_the_same(tf: Any, scan: tuple[np.ndarray, ...]) -> None:
    slices = np.stack([scan[0], scan[0][::-1], 2 * scan[0]])[:, None, :, 20:44, 16:48]
    expected = [nlinv(one, newton_steps=3) for one in slices[:, 0]]
    for function in (nlinv, tf.function(nlinv, autograph=False)):
        for convert in (np.asarray, tf.constant):
            image, maps = function(convert(slices), newton_steps=3)
            assert np.asarray(maps).shape == (3, 1, COILS, 24, 32)
            assert all(np.array_equal(np.asarray(image)[i, 0], one[0]) for i, one in enumerate(expected))
            assert all(np.array_equal(np.asarray(maps)[i, 0], one[1]) for i, one in enumerate(expected))


def test_three_dimensions() -> None:
    coils, shape = birdcage_coils(3, (16, 14))[:, None], (6, 16, 14)
    tilt = np.exp(1j * np.linspace(0, 1, 6))[:, None, None] ** np.arange(3)[:, None, None, None]
    image = shepp_logan(shape[1:]) * np.hanning(8)[1:-1, None, None]
    maps = nlinv(fftc(coils * tilt * image, (-3, -2, -1)).astype(np.complex64), newton_steps=8, rank=3)[1]
    assert map_error(maps, coils * tilt, image > 0.1) < 0.05


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"newton_steps": 0}, "Newton"),
        ({"reduction": 1.0}, "reduction"),
        ({"weights": np.ones(3)}, "need a trajectory"),
        ({"image_shape": SHAPE}, "need a trajectory"),
        ({"mask": np.ones((5, 7))}, "mask"),
        ({"trajectory": np.zeros((64, 2)), "mask": np.ones(SHAPE)}, "either"),
        ({"trajectory": np.zeros((64, 2))}, "flattened"),
        ({"trajectory": np.zeros((8, 8, 2)), "image_shape": SHAPE}, "flattened"),
        ({"trajectory": np.zeros((64, 2)), "image_shape": SHAPE, "weights": np.ones(3)}, "weights"),
        ({"trajectory": np.zeros((64, 2)), "image_shape": SHAPE, "weights": np.zeros(64)}, "zero"),
        ({"trajectory": np.zeros((9, 2)), "image_shape": SHAPE, "weights": np.ones(9)}, "does not fit"),
        ({"rank": 4}, "k-space of shape"),
    ],
)
def test_arguments_are_checked(scan: tuple[np.ndarray, ...], arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nlinv(scan[0], **arguments)


def test_data_are_checked(scan: tuple[np.ndarray, ...]) -> None:
    with pytest.raises(ValueError, match="zero"):
        nlinv(np.zeros_like(scan[0]))
    with pytest.raises(ValueError, match="finite"):
        nlinv(np.where(scan[0] == scan[0].max(), np.inf, scan[0]))
    noise = nlinv(random_complex((1, 9, 7)))[1]  # one coil, odd sizes, nothing but noise
    assert np.allclose(np.abs(noise), 1, atol=1e-4)


def test_maps_of_a_brain_unfold_it(shared: Path) -> None:
    """Four-fold undersampling (2 x 2): better than Walsh's maps from the same 24 x 24 samples."""
    kspace = brain(shared)
    rows, columns = kspace.shape[1:]
    centre = (slice(rows // 2 - 12, rows // 2 + 12), slice(columns // 2 - 12, columns // 2 + 12))
    mask = np.zeros((rows, columns), bool)
    mask[::2, ::2] = mask[centre] = True
    window = np.zeros((rows, columns), np.float32)
    window[centre] = np.outer(np.hanning(26), np.hanning(26))[1:-1, 1:-1]
    truth = np.linalg.norm(ifftc(kspace, (-2, -1)), axis=0)

    def error(maps: np.ndarray) -> float:
        encoding = Encoding(maps, mask=mask)
        gram = encoding.gram
        image = conjugate_gradient(lambda x: gram(x) + 1e-3 * x, encoding.adjoint(kspace * mask), 20)
        return nrmse(truth, np.abs(image))

    assert error(nlinv(kspace * mask, mask=mask)[1]) < min(0.09, error(walsh(ifftc(kspace * window, (-2, -1)))))
