"""ESPIRiT against its definition, the true sensitivities, folded objects and real data."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recon.compressed_sensing import compressed_sensing, largest_eigenvalue
from recon.espirit import espirit, espirit_eigen
from recon.fourier import fftc, ifftc
from recon.functionals.tgv import TGV
from recon.functionals.total_variation import TotalVariation
from recon.operators import Encoding
from recon.phantoms import birdcage_coils, shepp_logan
from recon.solvers import conjugate_gradient
from tests.recon.conftest import random_complex, relative_error

SHAPE, COILS = (64, 60), 8


@pytest.fixture(scope="module")
def scan() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Noisy k-space, coil images without noise, true maps."""
    maps = birdcage_coils(COILS, SHAPE)
    images = (maps * shepp_logan(SHAPE)).astype(np.complex64)
    noise = random_complex(images.shape)
    return fftc(images, (-2, -1)) + noise * (0.02 * np.linalg.norm(images) / np.linalg.norm(noise)), images, maps


def projection_error(maps: np.ndarray, images: np.ndarray) -> float:
    """Share of the coil images that the maps `[set, coil, y, x]` cannot explain."""
    shares = (maps.conj() * images).sum(1, keepdims=True)
    return relative_error(images, (maps * shares).sum(0))


def by_definition(centre: np.ndarray, kernel: tuple[int, int], threshold: float, shape: tuple[int, int]) -> np.ndarray:
    """M(r) `[coil, coil, y, x]` from a singular value decomposition and from projecting every patch of a periodic k-space."""
    coils, rows, columns = centre.shape
    corners = itertools.product(range(rows - kernel[0] + 1), range(columns - kernel[1] + 1))
    patches = np.array([centre[:, y : y + kernel[0], x : x + kernel[1]].ravel() for y, x in corners])
    _, strengths, basis = np.linalg.svd(patches)
    kept = basis[: (strengths > threshold * strengths[0]).sum()]
    result = np.empty((coils, coils, *shape), np.complex128)
    for coil in range(coils):
        images = np.zeros((coils, *shape), np.complex128)
        images[coil] = 1
        kspace, projected = fftc(images, (-2, -1)), np.zeros((coils, *shape), np.complex128)
        for y, x in itertools.product(range(shape[0]), range(shape[1])):
            at = np.ix_(range(coils), np.arange(y, y + kernel[0]) % shape[0], np.arange(x, x + kernel[1]) % shape[1])
            projected[at] += ((kept.T @ (kept.conj() @ kspace[at].ravel())) / np.prod(kernel)).reshape(coils, *kernel)
        result[:, coil] = ifftc(projected, (-2, -1))
    return result


def test_the_eigenvectors_are_those_of_the_definition() -> None:
    shape, kernel = (12, 11), (3, 4)
    centre = fftc(birdcage_coils(3, shape).astype(np.complex128) * shepp_logan(shape), (-2, -1))[:, 1:11, 1:10]
    vectors, values = espirit_eigen(centre, shape, (10, 9), kernel, sets=1, threshold=0.05)
    matrices = np.moveaxis(by_definition(centre, kernel, 0.05, shape), (0, 1), (2, 3))
    expected_values, expected_vectors = np.linalg.eigh(matrices)
    apart = expected_values[..., 1] < 0.8 * expected_values[..., 2]
    assert apart.sum() > 10
    assert vectors.dtype == np.complex128
    assert np.abs(values[0] - expected_values[..., 2])[apart].max() < 1e-6
    assert np.abs(values[0] - expected_values[..., 2]).max() < 5e-3
    likeness = np.abs(np.einsum("cyx,yxc->yx", vectors[0].conj(), expected_vectors[..., 2]))
    assert likeness[apart].min() > 1 - 1e-6


def test_maps_agree_with_the_true_ones_and_explain_the_images(scan: tuple[np.ndarray, ...]) -> None:
    kspace, images, truth = scan
    maps = espirit(kspace)
    inside = shepp_logan(SHAPE) > 0.05
    assert maps.shape == truth.shape
    assert maps.dtype == np.complex64
    likeness = np.abs((maps.conj() * truth).sum(0))[inside]
    assert likeness.mean() > 0.9995
    assert likeness.min() > 0.995
    assert projection_error(maps[None], images) < 0.01  # sigpy reaches .009, BART .013, at 256 x 256
    # Smooth in phase too: neighbouring pixels have nearly the same vector.
    step = np.linalg.norm(np.diff(maps, axis=-1), axis=0)[inside[:, 1:] & inside[:, :-1]]
    assert step.max() < 0.3


def test_few_lines_of_the_centre_are_enough(scan: tuple[np.ndarray, ...]) -> None:
    """Nothing outside the calibration region is looked at."""
    kspace = np.zeros_like(scan[0])
    kspace[:, 20:44, 18:42] = scan[0][:, 20:44, 18:42]
    assert np.array_equal(espirit(kspace), espirit(scan[0]))
    assert np.array_equal(espirit(kspace[:, 20:44, 18:42], SHAPE), espirit(scan[0]))


@pytest.mark.parametrize("edge", [6, 7, 8])
def test_a_centre_hardly_larger_than_a_patch_gives_unit_maps_or_none(edge: int) -> None:
    """Far from the object their eigenvalues are so small that powers of them underflow."""
    shape = (128, 128)
    kspace = fftc(birdcage_coils(COILS, shape) * shepp_logan(shape), (-2, -1)).astype(np.complex64)
    vectors, values = espirit_eigen(kspace, calibration=edge)
    length = np.linalg.norm(vectors[0], axis=0)
    assert np.abs(length - 1).max() < 1e-3
    exact = espirit_eigen(kspace.astype(np.complex128), calibration=edge)[1]
    assert np.abs(values - exact).max() < 0.01
    maps = np.linalg.norm(espirit(kspace, calibration=edge), axis=0)
    assert np.abs(maps * (maps - 1)).max() < 1e-3


def test_the_maps_of_a_finer_grid_hold_those_of_the_coarse_one(scan: tuple[np.ndarray, ...]) -> None:
    coarse, fine = espirit_eigen(scan[0]), espirit_eigen(scan[0], (128, 120))
    assert relative_error(coarse[1], fine[1][..., ::2, ::2]) < 1e-5
    assert relative_error(coarse[0], fine[0][..., ::2, ::2]) < 1e-2


def test_batches_and_tensors_give_the_same(tf: Any, scan: tuple[np.ndarray, ...]) -> None:
    slices = np.stack([np.roll(scan[0][:, 20:44, 18:42], shift, axis=0) for shift in range(6)]).reshape(2, 3, COILS, 24, 24)
    expected = np.stack([espirit(one, (32, 30), 20, 5, 2) for one in slices.reshape(6, COILS, 24, 24)])
    expected = expected.reshape(2, 3, 2, COILS, 32, 30)
    assert np.array_equal(espirit(slices, (32, 30), 20, 5, 2), expected)
    assert np.array_equal(espirit(tf.constant(slices), (32, 30), 20, 5, 2).numpy(), expected)
    assert np.array_equal(tf.function(lambda x: espirit(x, (32, 30), 20, 5, 2))(tf.constant(slices)).numpy(), expected)


def test_crop_and_soft_weights_follow_the_eigenvalues(scan: tuple[np.ndarray, ...]) -> None:
    vectors, values = espirit_eigen(scan[0], sets=2)
    hard = espirit(scan[0], sets=2, crop=0.9)
    assert np.array_equal(hard, vectors * (values >= 0.9)[:, None])
    assert not hard.all()
    weight = np.linalg.norm(espirit(scan[0], sets=2, crop=0.9, soft=True), axis=1)
    assert not weight[values < 0.8].any()
    assert weight[values > 0.999].min() > 0.99
    order = np.argsort(values.ravel())
    assert (np.diff(weight.ravel()[order]) > -1e-5).all()
    assert np.abs(weight[np.abs(values - 0.9) < 1e-3] - 0.5).max(initial=0) < 0.02


def folded_object() -> np.ndarray:
    """Coil images of a field of view two thirds as wide as the object's: at the edges two places with different sensitivities meet."""
    wide = (48, 72)
    images = (birdcage_coils(COILS, wide) * shepp_logan(wide[::-1]).T).astype(np.complex64)
    folded = np.zeros((COILS, 48, 48), np.complex64)
    for column in range(72):
        folded[:, :, (column - 36 + 24) % 48] += images[:, :, column]
    return folded


def test_two_sets_reconstruct_a_folded_object_from_half_the_lines() -> None:
    """Soft-SENSE: one set leaves errors where the object folds."""
    images = folded_object()
    mask = (np.arange(48) % 2 == 0)[:, None] & np.ones(48, bool)
    mask[12:36, 12:36] = True
    kspace = fftc(images, (-2, -1)) * mask

    def error(sets: int) -> float:
        encoding = Encoding(espirit(kspace, sets=sets, crop=0.7), mask=mask, sets=True)
        image = conjugate_gradient(encoding.gram, encoding.adjoint(kspace), 20)
        assert image.shape == (sets, 48, 48)
        return relative_error(images, encoding.sensitivity(image))

    assert error(2) < 0.05 < 0.15 < error(1)


@pytest.mark.parametrize("kind", ["TV", "TGV"])
def test_two_sets_with_regularisation(kind: str) -> None:
    """Noisy half of the lines of a folded object: better than one set, and than two without regularisation."""
    images, random = folded_object(), np.random.default_rng(0)
    noise = random.standard_normal((2, *images.shape)) * 0.01 * np.abs(images).max()
    mask = (np.arange(48) % 2 == 0)[:, None] & np.ones(48, bool)
    mask[12:36, 12:36] = True
    kspace = ((fftc(images, (-2, -1)) + noise[0] + 1j * noise[1]) * mask).astype(np.complex64)

    def errors(sets: int) -> tuple[float, float]:
        encoding = Encoding(espirit(kspace, sets=sets, crop=0.7), mask=mask, sets=True)
        rhs = encoding.adjoint(kspace)
        weight = 3e-3 * float(np.abs(rhs).max())
        functional = TotalVariation(weight, (-2, -1)) if kind == "TV" else TGV(weight, rank=2)
        image = compressed_sensing(encoding, kspace, functional, 200)
        plain = conjugate_gradient(encoding.gram, rhs, 20)
        return relative_error(images, encoding.sensitivity(image)), relative_error(images, encoding.sensitivity(plain))

    (one, _), (two, plain) = errors(1), errors(2)
    assert two < 0.6 * one
    assert two < 0.85 * plain


def test_a_bound_for_sets_of_maps_that_are_alike() -> None:
    maps = np.stack([birdcage_coils(COILS, (16, 16))] * 2)
    encoding = Encoding(maps, mask=np.ones((16, 16)), sets=True)
    image = np.ones((2, 16, 16), complex)
    largest = np.vdot(image, encoding.gram(image)).real / np.vdot(image, image).real
    assert largest <= largest_eigenvalue(encoding, encoding.gram, image) * (1 + 1e-6)


def test_a_folded_object_needs_two_sets() -> None:
    folded = folded_object()
    kspace = fftc(folded, (-2, -1))
    two = espirit(kspace, sets=2, crop=0.7)
    assert two.shape == (2, COILS, 48, 48)
    assert projection_error(two[:1], folded) > 0.1
    assert projection_error(two, folded) < 0.02
    values = espirit_eigen(kspace, sets=2)[1]
    assert values[1][:, 18:30].mean() < 0.7 < values[1][18:30, [1, 2, -3, -2]].min()
    inner = np.abs((two[0].conj() * two[1]).sum(0))
    assert inner.max() < 1e-4


def test_three_dimensions() -> None:
    shape = (14, 20, 18)
    depth = np.exp(-1j * np.linspace(0, 2, 4))[:, None] * (1 + 0.5 * np.cos(np.linspace(0, 2, 14) + np.arange(4)[:, None]))
    coils = birdcage_coils(4, shape[1:])[:, None] * depth[:, :, None, None]
    truth = coils / np.sqrt((np.abs(coils) ** 2).sum(0))
    profile = np.clip(np.minimum(np.arange(14) - 1, 12 - np.arange(14)), 0, 3) / 3
    image = shepp_logan(shape[1:]) * profile[:, None, None]
    maps = espirit(fftc(truth * image, (-3, -2, -1)).astype(np.complex64), calibration=14, kernel_size=4, rank=3)
    assert maps.shape == truth.shape
    likeness = np.abs((maps.conj() * truth).sum(0))
    assert likeness[image > 0.1].mean() > 0.99


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel_size": 25}, "do not fit together"),
        ({"image_shape": (64,)}, "do not fit together"),
        ({"image_shape": (0, 64)}, "do not fit together"),
        ({"kernel_size": (6, 6, 6)}, "kernel_size"),
        ({"calibration": 0}, "calibration"),
        ({"sets": 9}, "sets"),
        ({"threshold": 0.0}, "threshold"),
        ({"crop": 1.5}, "crop"),
        ({"rank": 3}, "image axes"),
    ],
)
def test_arguments_are_checked(scan: tuple[np.ndarray, ...], arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        espirit(scan[0], **arguments)


def test_data_are_checked(scan: tuple[np.ndarray, ...]) -> None:
    faulty = scan[0].copy()
    faulty[3, 32, 30] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        espirit(faulty)
    with pytest.raises(ValueError, match="centre of k-space must be sampled"):
        espirit(np.zeros_like(faulty))
    assert np.allclose(np.abs(espirit(scan[0][:1], crop=0)), 1, atol=1e-4)  # one coil


def test_maps_of_a_brain_explain_its_images(shared: Path) -> None:
    kspace = brain(shared)
    images = ifftc(kspace, (-2, -1))
    assert projection_error(espirit(kspace, sets=2), images) < projection_error(espirit(kspace, sets=1), images) < 0.12


def brain(shared: Path) -> np.ndarray:
    """Fully sampled k-space `[coil, y, x]` of a brain."""
    import ismrmrd

    data = ismrmrd.Dataset(str(shared / "data" / "cartesian_brain_8ch.h5"), "dataset", create_if_needed=False)
    lines = [data.read_acquisition(index) for index in range(data.number_of_acquisitions())]
    data.close()
    kspace = np.zeros((lines[0].data.shape[0], len(lines), lines[0].data.shape[1]), np.complex64)
    for line in lines:
        kspace[:, line.idx.kspace_encode_step_1] = line.data
    return kspace
