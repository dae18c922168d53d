"""Masks and densities of Cartesian sampling, against tables and counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from recon.cartesian_sampling import density_grid, random_mask, regular_mask, sampled_centre


@pytest.mark.parametrize(
    ("transition", "rising"),
    [
        ("linear", [0.3, 0.3, 0.34, 0.44, 0.54, 0.64, 0.7, 0.7, 0.7]),
        ("quadratic", [0.3, 0.3, 0.304, 0.349, 0.444, 0.589, 0.7, 0.7, 0.7]),
        ("hann", [0.3, 0.3, 0.30978873, 0.40920186, 0.56180346, 0.6782013, 0.7, 0.7, 0.7]),
    ],
)
def test_densities_of_tensorflow_mri(transition: Any, rising: list[float]) -> None:
    """The table of TensorFlow MRI's own test."""
    density = density_grid([16], 0.7, 0.3, 0.3, 0.8, transition)
    assert np.allclose(density, rising + rising[-2:0:-1])


def test_densities_depend_on_the_radius() -> None:
    density = density_grid((32, 48), 1.0, 0.0, 0.5, 1.0)
    assert density[16, 24] == 1
    assert density[16, 0] == 0
    assert density[4, 24] == pytest.approx(density[16, 6]) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="must rise"):
        density_grid((8,), 1, 0, 0.8, 0.5)
    with pytest.raises(ValueError, match="expected one of linear, quadratic, hann"):
        density_grid((8,), transition="cosine")  # type: ignore[arg-type]


def test_random_masks_have_their_density_and_repeat_by_seed() -> None:
    density = density_grid((400, 300), 1.0, 0.1, 0.1, 0.9)
    mask = random_mask((400, 300), density, seed=1)
    assert mask.mean() == pytest.approx(density.mean(), abs=5e-3)
    assert mask[200, 150]
    assert np.array_equal(mask, random_mask((400, 300), density, seed=1))
    assert not np.array_equal(mask, random_mask((400, 300), density, seed=2))
    lines = random_mask((64, 8), density_grid((64, 1)) * 0.25, seed=3)
    assert 0.15 < lines.mean() < 0.35
    with pytest.raises(ValueError, match="between 0 and 1"):
        random_mask((4,), 1.5)


def test_regular_masks_step_from_the_centre() -> None:
    mask = regular_mask((16, 15), (2, 3))
    assert np.array_equal(np.argwhere(mask.any(1)).ravel() % 2, np.zeros(8))
    assert mask[8, 7]
    assert mask.sum() == 8 * 5
    block = regular_mask((16, 15), (4, 15), calibration=(6, 5))
    assert block[5:11, 5:10].all()
    assert block.sum() == 30 + 3  # lines 0, 4 and 12 of the centre column lie outside the block


def test_caipi_shifts_every_line_on() -> None:
    mask = regular_mask((12, 12), (2, 3), caipi_shift=1)
    assert mask.sum() == 6 * 4
    first = [int(np.argmax(line)) for line in mask[::2]]
    assert np.diff(first).tolist() in ([1, 1, -2, 1, 1], [1, -2, 1, 1, -2], [-2, 1, 1, -2, 1])
    with pytest.raises(ValueError, match="needs two axes"):
        regular_mask((8,), (2,), caipi_shift=1)
    with pytest.raises(ValueError, match="do not fit"):
        regular_mask((8, 8), (2,))


def test_the_sampled_centre_is_the_block_that_masks_were_given() -> None:
    mask = regular_mask((33, 40, 6), (3, 4, 1), calibration=(9, 10, 6))
    mask[16, 15] = mask[20, 20] = True  # samples beside the block
    sizes = sampled_centre(mask)
    assert sizes == (9, 10, 6)
    assert sampled_centre(np.ones((5, 4), bool)) == (5, 4)
    assert sampled_centre(regular_mask((16,), (2,))) == (1,)
    ends_early = np.ones(16, bool)
    ends_early[12:] = False
    assert sampled_centre(ends_early) == (8,)
    ends_early[8] = False
    assert sampled_centre(ends_early) == (0,)
