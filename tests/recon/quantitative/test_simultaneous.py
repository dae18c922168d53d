"""The common k-space of simultaneous slices as data, against the sum written out with matrices."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from recon.quantitative.simultaneous import SimultaneousMeasured, simultaneous
from tests.gadgets.readouts import dft

CONTRASTS, COILS, SLICES, N = 2, 6, 3, 8
RANDOM = np.random.default_rng(4)


def noise(*shape: int) -> np.ndarray:
    values: np.ndarray = RANDOM.standard_normal(shape) + 1j * RANDOM.standard_normal(shape)
    return values


MAPS, IMAGES = noise(COILS, SLICES, N, N), noise(CONTRASTS, SLICES, N, N)
PHASES = RANDOM.uniform(-np.pi, np.pi, (SLICES, N))


def forward(images: np.ndarray) -> np.ndarray:
    """K-space `[contrast, coil, ky, kx]` of images `[contrast, slice, y, x]`."""
    spectra = dft(N) @ (MAPS * images[:, None]) @ dft(N).T
    total: np.ndarray = (spectra * np.exp(1j * PHASES)[:, :, None]).sum(2)
    return total


@pytest.mark.parametrize("undersampled", [False, True])
def test_adjoint_gram_and_cost(undersampled: bool) -> None:
    mask = np.ones((CONTRASTS, N, N), bool)
    if undersampled:
        mask[0, ::2], mask[1, 1::3] = False, False
    data = forward(IMAGES) * mask[:, None]
    term = simultaneous(data, MAPS, PHASES, mask if undersampled else None)
    x = noise(CONTRASTS, SLICES, N, N)
    sampled = forward(x) * mask[:, None]
    assert np.vdot(x, term.rhs.numpy()) == pytest.approx(np.vdot(sampled, data))
    assert np.vdot(x, term.gram(tf.constant(x)).numpy()).real == pytest.approx(np.vdot(sampled, sampled).real)
    assert float(term.cost(tf.constant(x))) == pytest.approx(np.linalg.norm(sampled - data) ** 2)
    bounded = (term.bound.numpy() * np.abs(x) ** 2).sum()
    assert bounded >= np.vdot(sampled, sampled).real
    assert term.samples == mask.sum() * COILS


def test_least_squares_images_are_the_slices() -> None:
    measured = SimultaneousMeasured(forward(IMAGES), MAPS, phases=PHASES, crop=(slice(0, SLICES), slice(1, N), slice(0, N)))
    assert measured.grid == (SLICES, N, N)
    assert measured.shape == (SLICES, N - 1, N)
    found = measured.term(np.dtype(np.complex128)).images(200).numpy()
    np.testing.assert_allclose(found, IMAGES, atol=1e-6)
    with pytest.raises(ValueError, match="without iterations"):
        measured.gridded()


def test_faults() -> None:
    with pytest.raises(ValueError, match=r"expected \[contrast, coil, y, x\]"):
        simultaneous(forward(IMAGES), MAPS, PHASES[:2])
    with pytest.raises(ValueError, match="not finite"):
        simultaneous(np.full((CONTRASTS, COILS, N, N), np.nan + 0j), MAPS, PHASES)
