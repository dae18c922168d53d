"""Phantoms: known values, the oracle, closed-form k-space against sums over fine grids."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import label

from recon.ellipsoids import Ellipsoid, density, kspace, rasterise
from recon.fourier import fftc
from recon.metrics import nrmse
from recon.nufft import Nufft
from recon.phantoms import birdcage_coils, moving_heart, phantom, phantom_ellipsoids, relaxation_vials, shepp_logan
from tests.recon.conftest import random_trajectory, relative_error


def test_shepp_logan_equals_the_oracle(oracle: Any) -> None:
    # The oracle's grid includes both ends of the field of view; ours has its origin on a pixel.
    axis = np.linspace(-1, 1, 64, dtype=np.float32)
    image = density(phantom_ellipsoids(), np.stack(np.meshgrid(axis, axis, indexing="ij"), -1))
    assert np.abs(image - oracle["phantom64"]).max() < 1e-6
    assert image.sum() == pytest.approx(500.4, abs=1e-3)


def test_birdcage_coils_equal_the_oracle(oracle: Any) -> None:
    maps = birdcage_coils(8, (64, 64))
    assert np.abs(maps - oracle["phantom64_sens"]).max() < 1e-5
    assert np.abs(oracle["phantom64"] * maps - oracle["phantom64_multicoil"]).max() < 1e-5


def test_shepp_logan_has_the_known_values() -> None:
    image = shepp_logan((256, 256))
    assert image.max() == pytest.approx(1)
    assert image[128, 128] == pytest.approx(0.2, abs=1e-6)
    assert image[0].max() == 0
    # Skull: outer minus inner ellipse of the table.
    area = np.pi * (0.69 * 0.92 - 0.6624 * 0.874) / 4
    assert (image > 0.95).mean() == pytest.approx(area, rel=0.05)
    assert image[24:128].sum() != pytest.approx(image[129:233].sum(), rel=1e-3)  # up and down differ
    assert shepp_logan((40, 64)).shape == (40, 64)
    original = phantom("shepp_logan", (256, 256))
    assert sorted({round(float(v), 2) for v in np.unique(original)}) == [0, 0.01, 0.02, 0.03, 0.04, 1.0]
    # The left ventricle leans to the left at its top, the right one to the right.
    assert image[100, 91] == pytest.approx(0, abs=1e-6)
    assert image[100, 165] == pytest.approx(0, abs=1e-6)
    assert image[100, 147] > 0.1


@pytest.mark.parametrize(
    ("kind", "brain"), [("shepp_logan", 1.02), ("kak_roberts", 1.02), ("modified_kak_roberts", 1.2), ("koay_sarlls_ozarslan", 1.2)]
)
def test_phantoms_in_three_dimensions(kind: Any, brain: float) -> None:
    image = phantom(kind, (48, 64, 56))
    assert image.shape == (48, 64, 56)
    assert image.dtype == np.float32
    assert image[24, 32, 28] == pytest.approx(brain)
    assert image.max() == pytest.approx(2)
    volumes = [4 / 3 * math.pi * math.prod(item.half_axes) * item.value / 8 for item in phantom_ellipsoids(kind, 3)]
    assert image.mean() == pytest.approx(sum(volumes), rel=0.01)


def test_unknown_phantoms_are_named() -> None:
    with pytest.raises(ValueError, match=r"'kak_roberts' with 2 axes: expected one of shepp_logan, modified_shepp_logan"):
        phantom("kak_roberts", (32, 32))
    with pytest.raises(ValueError, match="do not fit objects of 2 axes"):
        kspace(phantom_ellipsoids(), np.zeros((4, 3)), (8, 8, 8))
    with pytest.raises(ValueError, match="the objects have 2 axes"):
        rasterise(phantom_ellipsoids(), (8, 8, 8))


@pytest.mark.parametrize("shape", [(40, 52), (12, 15, 17)])
def test_kspace_equals_a_sum_over_a_fine_grid(shape: tuple[int, ...]) -> None:
    """A turned, displaced complex object with the transform summed over many points a pixel, at frequencies up to the edge."""
    ends = [Ellipsoid(1.0, (0.3, 0.5), (0.1, -0.2), 30.0), Ellipsoid(2 - 1j, (0.4, 0.1), (-0.3, 0.3), -75.0)]
    if len(shape) == 3:
        ends = [Ellipsoid(e.value, (0.6, *e.half_axes), (0.1, *e.centre), e.angle) for e in ends]
    trajectory = random_trajectory(10, len(shape), seed=4, dtype="float64")
    trajectory[0] = 0
    fine = 16 if len(shape) == 2 else 8
    lines = [(np.arange(n * fine) + 0.5) / fine - 0.5 - n // 2 for n in shape]  # in pixels
    positions = np.stack(np.meshgrid(*lines, indexing="ij"), -1)
    values = density(ends, positions / (np.array(shape) / 2)).ravel()
    inside = values != 0
    phases = np.exp(-1j * positions.reshape(-1, len(shape))[inside] @ trajectory.T)
    expected = values[inside] @ phases / fine ** len(shape) / math.sqrt(math.prod(shape))
    actual = kspace(ends, trajectory, shape)
    assert actual.dtype == np.complex128
    assert relative_error(expected, actual) < (2e-3 if len(shape) == 2 else 5e-3)


def test_kspace_of_a_circle_is_the_airy_pattern() -> None:
    circle = [Ellipsoid(1.0, (0.5, 0.5), (0.0, 0.0))]
    # In 64 pixels the radius is 16; first zero of J1 at 3.8317.
    values = kspace(circle, np.array([[0, 0], [0, 3.8317 / 16], [1e-9, 0]]), (64, 64))
    assert values[0] == pytest.approx(np.pi * 16**2 / 64)
    assert abs(values[1]) < 1e-4
    assert values[2] == pytest.approx(values[0])


def test_kspace_agrees_with_the_transform_of_the_image() -> None:
    """Low frequencies, which feel pixels least; sign of the exponent, order of the axes and scale of `fftc` and `Nufft`."""
    shape = (96, 128)
    image = phantom("modified_shepp_logan", shape, oversampling=8)
    points = random_trajectory(300, 2, seed=1, dtype="float64") / 8
    exact = kspace(phantom_ellipsoids(), points, shape)
    assert relative_error(exact, Nufft(points, shape, tolerance=1e-6, gpu=False).forward(image.astype(np.complex128))) < 0.01
    centre = fftc(image, (-2, -1))[48 - 4 : 48 + 5, 64 - 4 : 64 + 5]
    grid = np.stack(np.meshgrid(np.arange(-4, 5) * 2 * np.pi / 96, np.arange(-4, 5) * 2 * np.pi / 128, indexing="ij"), -1)
    assert relative_error(kspace(phantom_ellipsoids(), grid.astype(np.float32), shape), centre) < 0.003


def test_oversampled_pixels_hold_the_part_that_is_covered() -> None:
    half = [Ellipsoid(1.0, (0.5, 0.5), (0.0, 0.0))]
    sharp, soft = rasterise(half, (32, 32)), rasterise(half, (32, 32), oversampling=16)
    assert set(np.unique(sharp)) == {0, 1}
    assert np.unique(soft).size > 10
    assert soft.sum() == pytest.approx(np.pi * 8**2, rel=1e-3)


def test_the_heart_beats_and_repeats() -> None:
    still, squeezed = moving_heart((96, 96), 0), moving_heart((96, 96), 400)
    assert still.dtype == np.float32
    assert still.min() >= 0
    assert still.max() <= 1
    assert (still > 0.95).sum() > 2 * (squeezed > 0.95).sum() > 0
    assert np.allclose(still, moving_heart((96, 96), 5 * 800), atol=1e-5)
    assert 0 < nrmse(still, moving_heart((96, 96), 5)) < nrmse(still, moving_heart((96, 96), 50))


def test_vials_lie_apart_and_hold_their_times() -> None:
    vials = relaxation_vials((160, 160))
    blobs, count = label(vials.labels > 0, np.ones((3, 3)))
    assert count == vials.labels.max() == 12
    for number in range(1, 13):
        inside = vials.labels == number
        assert inside.sum() > 60
        assert np.unique(blobs[inside]).size == 1
        for times in (vials.t1, vials.t2, vials.t2_star):
            assert np.unique(times[inside]).size == 1
    assert (vials.t2_star < vials.t2)[vials.labels > 0].all()
    assert (vials.t2 < vials.t1)[vials.labels > 0].all()
    assert vials.t1[vials.labels == 0].max() == 0
    assert np.array_equal(vials.proton_density, vials.labels > 0)
    one = relaxation_vials((4, 32, 40), [(1000.0, 80.0, 40.0)])
    assert one.t2_star.shape == (4, 32, 40)
    assert set(np.unique(one.t2_star)) == {0, 40}
    with pytest.raises(ValueError, match="T1, T2, T2"):
        relaxation_vials((32, 32), [(1000.0, 0.0, 1.0)])


@pytest.mark.parametrize(("coils", "shape"), [(8, (48, 64)), (8, (20, 24, 28)), (6, (20, 24, 28))])
def test_birdcage_coils_surround_the_object(coils: int, shape: tuple[int, ...]) -> None:
    maps = birdcage_coils(coils, shape)
    assert maps.shape == (coils, *shape)
    assert np.allclose((np.abs(maps) ** 2).sum(0), 1, atol=1e-5)
    # Phases vary: the maps span several dimensions, so that SENSE can unfold with them.
    values = np.linalg.svd(maps.reshape(coils, -1), compute_uv=False)
    assert values[3] > 0.05 * values[0]


def test_birdcage_coils_are_numbered_around_the_circle_and_along_z() -> None:
    maps = birdcage_coils(8, (48, 64))
    peaks = [np.unravel_index(np.abs(coil).argmax(), (48, 64)) for coil in maps]
    assert peaks[0][1] == 63  # coil 0 lies on the positive x side
    assert peaks[2][0] == 47  # coil 2, a quarter turn on, on the positive y side
    maps = np.abs(birdcage_coils(8, (20, 24, 28)))
    assert [int(np.argmax(coil[:, 12, 14])) // 10 for coil in maps] == [0, 0, 0, 0, 1, 1, 1, 1]  # four rings of two
