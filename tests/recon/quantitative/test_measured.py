"""What was measured, as terms for fits: slices together, voxels cut and continued, gridding, images in the span of a model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tensorflow as tf

from recon.fourier import fftc
from recon.quantitative.catalogue import model_from
from recon.quantitative.measured import Measured, stacked
from recon.quantitative.pixelwise import fit_pixelwise
from recon.quantitative.subspace import subspace, subspace_images

DTYPE = np.dtype(np.complex128)


def noise(seed: int, *shape: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.standard_normal(shape) + 1j * random.standard_normal(shape)


@pytest.fixture(scope="module")
def maps() -> np.ndarray:
    found = noise(1, 3, 12, 10)
    return found / np.sqrt((np.abs(found) ** 2).sum(0))


def test_slices_together_are_the_slices_one_by_one(maps: np.ndarray) -> None:
    mask = np.random.default_rng(2).random((4, 12, 1)) < 0.6
    slices = [Measured(noise(3 + n, 4, 3, 12, 10) * mask[:, None], maps, mask=mask) for n in range(2)]
    terms = [one.term(DTYPE) for one in slices]
    both = stacked(terms)
    x = tf.constant(noise(8, 4, 2, 12, 10))
    parts = tf.unstack(x, axis=1)
    assert float(both.cost(x)) == pytest.approx(sum(float(term.cost(part)) for term, part in zip(terms, parts, strict=True)))
    np.testing.assert_allclose(both.gram(x)[:, 1], terms[1].gram(parts[1]))
    # D - E^H E stays positive semidefinite.
    weighed = tf.cast(both.bound, x.dtype) * x - both.gram(x)
    assert float(tf.math.real(tf.reduce_sum(tf.math.conj(x) * weighed))) > 0
    assert both.samples == sum(term.samples for term in terms)


def test_whole_slices_together_stay_pointwise(maps: np.ndarray) -> None:
    images = noise(4, 2, 4, 12, 10)
    terms = [Measured(fftc(one[:, None] * maps, (-2, -1)), maps).term(DTYPE) for one in images]
    both = stacked(terms)
    assert both.pointwise
    np.testing.assert_allclose(both.images().numpy(), images.swapaxes(0, 1))
    with pytest.raises(ValueError, match="differ in shape"):
        stacked([terms[0], Measured(noise(5, 4, 6, 6)).term(DTYPE)])


def test_wanted_voxels_are_cut_and_fields_continued(maps: np.ndarray) -> None:
    one = Measured(noise(6, 4, 3, 12, 10), maps, crop=(slice(2, 10), slice(0, 10)))
    assert one.grid == (12, 10)
    assert one.shape == (8, 10)
    field = np.arange(80.0).reshape(8, 10)
    padded = one.padded(field)
    np.testing.assert_array_equal(one.cut(padded), field)
    np.testing.assert_array_equal(padded[0], field[0])


def test_gridded_images_are_the_object_where_sampling_is_full(maps: np.ndarray) -> None:
    images = noise(7, 2, 12, 10)
    kspace = fftc(images[:, None] * maps, (-2, -1))
    np.testing.assert_allclose(Measured(kspace, maps).gridded(), images)
    # The same samples as a trajectory, which are equally dense.
    ky, kx = np.meshgrid((np.arange(12) - 6) / 12, (np.arange(10) - 5) / 10, indexing="ij")
    points = np.broadcast_to(2 * np.pi * np.stack([ky.ravel(), kx.ravel()], -1), (2, 120, 2)).astype(np.float32)
    samples = kspace.reshape(2, 3, 120).astype(np.complex64)
    found = Measured(samples, maps.astype(np.complex64), points).gridded()
    scale = np.vdot(found, images) / np.vdot(found, found)
    assert np.linalg.norm(scale * found - images) < 0.02 * np.linalg.norm(images)


def test_signals_lie_in_the_span_of_the_basis() -> None:
    model = model_from("LookLocker", {"TI": 20 + 8.0 * np.arange(0, 240, 8), "TR": 8, "flip_angle": 7, "readouts": 8})
    basis = subspace(model)
    assert basis is not None
    np.testing.assert_allclose(basis.conj().T @ basis, np.eye(basis.shape[1]), atol=1e-12)
    signals = np.asarray(model(np.array([np.full(5, 2 + 1j), [60.0, 300, 900, 2000, 5000]])))
    rest = signals - basis @ (basis.conj().T @ signals)
    assert (np.linalg.norm(rest, axis=0) < 0.02 * np.linalg.norm(signals, axis=0)).all()


def test_undersampled_contrasts_share_their_samples() -> None:
    times = 20 + 8.0 * np.arange(0, 240, 8)
    model = model_from("LookLocker", {"TI": times, "TR": 8, "flip_angle": 7, "readouts": 8})
    t1 = np.where(np.arange(12)[:, None] < 6, 400.0, 1200.0) * np.ones(10)
    images = np.asarray(model(np.stack([np.exp(0.3j * np.arange(12))[:, None] * np.ones(10), t1])))
    # Half of the lines of each contrast, others in each: single contrasts cannot be told.
    mask = np.random.default_rng(9).random((30, 12)) < 0.5
    term = Measured(fftc(images[:, None], (-2, -1)), np.ones((1, 12, 10)), mask=mask[:, :, None]).term(DTYPE)
    basis = subspace(model)
    assert basis is not None
    found = fit_pixelwise(model, subspace_images(term, basis, 80)).maps()["T1"].values
    assert np.median(np.abs(found / t1 - 1)) < 0.03
    alone = fit_pixelwise(model, term.images(40).numpy()).maps()["T1"].values
    assert np.median(np.abs(alone / t1 - 1)) > 0.1


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("VFA", {"TR": 15, "flip_angle": [3, 6, 10, 16, 24]}),  # too few contrasts to share
        ("R2Star", {"TE": [2, 7, 12, 17, 22, 27, 32, 37]}),  # any frequency
        ("ImageReco", {"contrasts": 6}),  # no model of the contrasts
    ],
)
def test_models_without_a_small_basis_have_none(name: str, parameters: dict[str, object]) -> None:
    assert subspace(model_from(name, parameters)) is None


def test_samples_elsewhere_are_of_the_same_kind(maps: np.ndarray) -> None:
    lines = np.zeros((2, 12, 1), bool)
    lines[:, [1, 2, 5, 6, 7, 9]] = True
    grid = Measured(noise(9, 2, 3, 12, 10) * lines[:, None], maps)
    moved = grid.elsewhere()
    assert moved.mask is not None
    assert np.flatnonzero(moved.mask[0, :, 0]).tolist() == [3, 5, 6, 7, 10, 11]
    assert not moved.data.any()
    assert moved.term(DTYPE).samples == grid.term(DTYPE).samples
    # Lines that are mirrored onto themselves stay, and so do images.
    even = np.isin(np.arange(12), [4, 5, 6, 7, 8])[None, :, None]
    kept = replace(grid, mask=even).elsewhere().mask
    assert kept is not None
    np.testing.assert_array_equal(kept, even)
    images = Measured(noise(10, 2, 6, 6))
    assert images.elsewhere() is images


@pytest.mark.parametrize("spokes", [7, 8, 13, 32])
def test_spokes_elsewhere_lie_between_the_spokes(maps: np.ndarray, spokes: int) -> None:
    angles = np.pi * np.arange(spokes)[:, None] / spokes
    radius = np.linspace(-np.pi, np.pi, 24, endpoint=False)
    points = np.stack([np.sin(angles) * radius, np.cos(angles) * radius], -1).reshape(1, -1, 2)
    moved = Measured(np.zeros((1, 3, points.shape[1])), maps, points).elsewhere().trajectory
    assert moved is not None
    np.testing.assert_allclose(np.linalg.norm(moved, axis=-1), np.linalg.norm(points, axis=-1))
    turned = np.arctan2(*moved.reshape(spokes, -1, 2)[:, -1].T) * spokes / np.pi % 1
    assert np.ptp(turned) < 1e-6
    assert 0.2 < turned[0] < 0.8  # of the distance between two
    # A volume's partitions stay; samples in the corners of k-space, which a turn would move out of it, are mirrored.
    stack = np.concatenate([np.full((1, points.shape[1], 1), 0.3), points], -1)
    again = Measured(np.zeros((1, 3, points.shape[1])), maps[..., None], stack).elsewhere().trajectory
    assert again is not None
    np.testing.assert_allclose(again, np.concatenate([stack[..., :1], moved], -1))


def test_samples_in_the_corners_are_mirrored(maps: np.ndarray) -> None:
    points = np.array([[[-3.1, 3.1], [-3, 2], [0, 0.5], [0.1, -2]]])
    weights = np.array([[1, 1, 1, 0.0]])
    moved = Measured(np.zeros((1, 3, 4)), maps, points, weights).elsewhere().trajectory
    assert moved is not None
    assert (np.abs(moved) == np.abs(points)).all()
    assert (moved != points).any()
