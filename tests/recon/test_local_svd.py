"""Local maps against a pixel by pixel computation, and against the coils that made the images."""

import numpy as np
import pytest

from recon.local_svd import local_svd_maps
from recon.phantoms import birdcage_coils, shepp_logan
from tests.recon.conftest import random_complex


def pixelwise(images, size, iterations):
    """The definition: neighbourhood matrix, power iterations, phase of the mean object."""
    maps = np.zeros_like(images)
    shape = images.shape[1:]
    for where in np.ndindex(*shape):
        index = np.ix_(*[np.arange(w - k // 2, w + k // 2 + 1) % n for w, k, n in zip(where, size, shape, strict=True)])
        neighbourhood = np.stack([coil[index].ravel() for coil in images], axis=1)
        vector = neighbourhood.sum(axis=0)
        vector /= np.linalg.norm(vector)
        for _ in range(iterations):
            vector = neighbourhood.conj().T @ (neighbourhood @ vector)
            vector /= np.linalg.norm(vector)
        phase = (neighbourhood @ vector).sum()
        maps[(slice(None), *where)] = vector.conj() * phase / abs(phase)
    return maps


@pytest.mark.parametrize(("shape", "size"), [((3, 13, 18), (7, 7)), ((2, 5, 9, 11), (5, 7, 7)), ((3, 12, 4), (3, 5))])
def test_maps_are_those_of_every_neighbourhood(shape, size):
    images = random_complex(shape, 1, "complex128")
    np.testing.assert_allclose(local_svd_maps(images, size), pixelwise(images, size, 3), atol=1e-10)


def test_blocks_fit_together(monkeypatch):
    images = random_complex((4, 40, 33))
    whole = local_svd_maps(images)
    monkeypatch.setattr("recon.local_svd._BLOCK_BYTES", 20_000)
    np.testing.assert_allclose(local_svd_maps(images), whole, atol=1e-5)


def test_maps_recover_the_coils_inside_the_object():
    coils = birdcage_coils(8, (64, 64))
    phantom = shepp_logan((64, 64)) + 0.1 * (shepp_logan((64, 64)) > 0)
    maps = local_svd_maps((coils * phantom).astype(np.complex64), (5, 5))
    np.testing.assert_allclose((np.abs(maps) ** 2).sum(0)[phantom > 0], 1, atol=1e-5)
    alignment = np.abs((maps.conj() * coils).sum(0))
    assert alignment[phantom > 0].min() > 0.98
    # The mean phase of the object goes into the maps: combined images are nearly real and positive.
    combined = (maps.conj() * coils * (phantom * np.exp(0.7j))).sum(0)
    turned = local_svd_maps((coils * (phantom * np.exp(0.7j))).astype(np.complex64), (5, 5))
    np.testing.assert_allclose(turned, maps * np.exp(0.7j), atol=1e-4)
    np.testing.assert_allclose(np.angle(combined[phantom > 0.1]), 0.7, atol=0.1)


def test_a_rotation_of_the_coils_changes_nothing_in_the_combined_image():
    images = random_complex((4, 24, 24), 3, "complex128") * 0.05 + birdcage_coils(4, (24, 24))
    rotation = np.linalg.qr(random_complex((4, 4), 4, "complex128"))[0]
    rotated = np.tensordot(rotation, images, 1)
    plain = (local_svd_maps(images, (7, 7), 200).conj() * images).sum(0)
    other = (local_svd_maps(rotated, (7, 7), 200).conj() * rotated).sum(0)
    np.testing.assert_allclose(other, plain, atol=1e-6)


def test_nothing_gives_nothing_and_no_nan():
    images = random_complex((3, 30, 30))
    images[:, :, :15] = 0
    maps = local_svd_maps(images)
    assert np.isfinite(maps).all()
    assert not maps[:, 5:25, 5:10].any()
    faint = local_svd_maps(images * np.float32(1e-18))
    np.testing.assert_allclose(faint[:, :, 20:], maps[:, :, 20:], atol=1e-3)


def test_axes_must_fit():
    with pytest.raises(ValueError, match="2 image axes"):
        local_svd_maps(np.ones((2, 3, 4, 5), complex), (7, 7))
