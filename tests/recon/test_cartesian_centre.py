"""The Cartesian centre of radial k-space, against the transform of the object."""

from __future__ import annotations

import numpy as np
import pytest

from recon.cartesian_centre import cartesian_centre, dense_edge
from recon.espirit import espirit
from recon.fourier import fftc
from recon.images import central_crop
from recon.operators import Encoding
from recon.phantoms import birdcage_coils, shepp_logan
from recon.trajectory import radial_trajectory
from tests.recon.conftest import relative_error

SHAPE = (64, 60)


@pytest.fixture(scope="module")
def scan() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Truth, maps, trajectory and samples."""
    truth, maps = shepp_logan(SHAPE).astype(np.complex64), birdcage_coils(5, SHAPE)
    trajectory = radial_trajectory(64, 40, ordering="linear").reshape(-1, 2).astype(np.float32)
    return truth, maps, trajectory, Encoding(maps, trajectory, tolerance=1e-5)(truth)


def test_it_equals_the_transform_of_the_object(scan) -> None:
    truth, maps, trajectory, samples = scan
    expected = central_crop(fftc(maps * truth, (-2, -1)), (16, 16))
    assert relative_error(expected, cartesian_centre(samples, trajectory, SHAPE, 16)) < 0.06
    assert cartesian_centre(samples, trajectory, SHAPE, 100).shape == (5, *SHAPE)


def test_espirit_finds_the_sensitivities_in_it(scan) -> None:
    truth, maps, trajectory, samples = scan
    size = dense_edge(40)
    found = espirit(cartesian_centre(samples, trajectory, SHAPE, size), SHAPE, size)
    unit = maps / np.linalg.norm(maps, axis=0)
    agreement = np.abs((found.conj() * unit).sum(0))[truth > 0.05]
    assert np.median(agreement) > 0.995
    assert np.mean(agreement > 0.97) > 0.95


def test_blocks_are_no_wider_than_spokes_are_dense() -> None:
    assert [dense_edge(spokes) for spokes in (5, 20, 25, 64)] == [12, 14, 18, 24]
    assert dense_edge(None) == 14


def test_samples_far_out_are_refused(scan) -> None:
    _, _, trajectory, samples = scan
    far = np.linalg.norm(trajectory, axis=1) > 2.5
    with pytest.raises(ValueError, match="centre of k-space"):
        cartesian_centre(samples[:, far], trajectory[far], SHAPE, 12)
