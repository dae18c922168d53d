"""Partial Fourier against a phantom whose missing samples are known."""

import numpy as np
import pytest

from recon.fourier import fftc, ifftc
from recon.metrics import nrmse
from recon.partial_fourier import homodyne, low_resolution_phase, pocs, taper_filter
from recon.phantoms import shepp_logan

N = 96
REGIONS = {"late": [(0, N - 1), (0, 59)], "early": [(0, N - 1), (36, N - 1)], "rows": [(30, N - 1), (0, N - 1)]}


@pytest.fixture(scope="module")
def truth():
    """Real-valued object with a slowly varying phase."""
    y, x = np.meshgrid(np.linspace(-1, 1, N), np.linspace(-1, 1, N), indexing="ij")
    return shepp_logan((N, N)) * np.exp(1j * (0.6 * x - 0.8 * y + 0.5 * x * y))


def sampled(truth, region):
    kspace = fftc(truth, (-2, -1))
    mask = np.zeros(kspace.shape, bool)
    mask[tuple(slice(first, last + 1) for first, last in region)] = True
    return np.where(mask, kspace, 0), mask


@pytest.mark.parametrize("region", REGIONS.values(), ids=REGIONS)
def test_pocs_recovers_what_was_not_sampled(truth, region):
    kspace, mask = sampled(truth, region)
    completed = pocs(kspace, region, iterations=30, tolerance=0, transition=0)
    np.testing.assert_allclose(completed[mask], kspace[mask], rtol=1e-10, atol=1e-10)
    zero_filled, found = ifftc(kspace, (-2, -1)), ifftc(completed, (-2, -1))
    # Complex error: the phase of the object is asked for as well.
    assert nrmse(truth, found) < 0.4 * nrmse(truth, zero_filled)
    assert nrmse(truth, found) < 0.06


def test_pocs_blends_over_the_transition_band(truth):
    region = REGIONS["late"]
    kspace, _ = sampled(truth, region)
    blended, plain = (ifftc(pocs(kspace, region, transition=band), (-2, -1)) for band in (12, 0))
    assert 0 < nrmse(plain, blended) < 0.02


def test_pocs_of_a_volume_with_two_partial_axes(truth):
    volume = np.stack([truth * weight for weight in np.hanning(14)[1:-1]]).astype(np.complex128)
    region = [(0, 8), (30, N - 1), (0, N - 1)]
    kspace = fftc(volume, (-3, -2, -1))
    kspace[9:] = 0
    kspace[:, :30] = 0
    found = ifftc(pocs(kspace, region, iterations=20, tolerance=0, transition=(0, 0, 0)), (-3, -2, -1))
    assert nrmse(volume, found) < 0.6 * nrmse(volume, ifftc(kspace, (-3, -2, -1)))


def test_fully_sampled_data_stay_as_they_are(truth):
    kspace = fftc(truth, (-2, -1))
    region = [(0, N - 1), (0, N - 1)]
    assert pocs(kspace, region) is kspace
    np.testing.assert_array_equal(taper_filter(kspace, region), kspace)
    np.testing.assert_allclose(homodyne(kspace, region), truth, atol=1e-12)


@pytest.mark.parametrize("region", REGIONS.values(), ids=REGIONS)
def test_homodyne_detects_a_real_object(truth, region):
    kspace, _ = sampled(truth, region)
    found = homodyne(kspace, region)
    assert nrmse(np.abs(truth), np.abs(found)) < 0.6 * nrmse(np.abs(truth), np.abs(ifftc(kspace, (-2, -1))))


def test_homodyne_is_exact_without_phase():
    """A real object and symmetric weights: what is missing is the conjugate of what is there."""
    truth = shepp_logan((N - 1, N - 1)).astype(np.complex128)
    kspace = fftc(truth, (-2, -1))
    kspace[:, : (N - 1) // 2] = 0
    kspace[:, (N - 1) // 2 - 20 : (N - 1) // 2] = fftc(truth, (-2, -1))[:, (N - 1) // 2 - 20 : (N - 1) // 2]
    region = [(0, N - 2), ((N - 1) // 2 - 20, N - 2)]
    phase = low_resolution_phase(kspace, region)
    found = homodyne(kspace, region)
    np.testing.assert_allclose(found[phase.real > 0.999].real, truth[phase.real > 0.999].real, atol=1e-6)


def test_homodyne_takes_one_partial_axis():
    with pytest.raises(ValueError, match="use pocs"):
        homodyne(np.ones((16, 16), complex), [(0, 11), (3, 15)])


@pytest.mark.parametrize("method", [pocs, homodyne])
def test_the_centre_must_be_sampled(method):
    with pytest.raises(ValueError, match="centre"):
        method(np.ones((16, 16), complex), [(0, 15), (9, 15)])


@pytest.mark.parametrize("region", REGIONS.values(), ids=REGIONS)
def test_taper_reduces_ringing(region):
    """The point spread function far from the point."""
    point = np.zeros((N, N))
    point[N // 2, N // 2] = 1
    kspace, mask = sampled(point, region)
    filtered = taper_filter(kspace, region, width=0.2)
    assert not filtered[~mask].any()
    partial = next(axis for axis, (first, last) in enumerate(region) if last - first + 1 < N)
    plain, tapered = (np.abs(ifftc(k, (-2, -1))).sum(axis=1 - partial) for k in (kspace, filtered))
    far = np.abs(np.arange(N) - N // 2) > 20
    # The other border, the edge of k-space, is not tapered and rings on.
    assert np.sum(tapered[far] ** 2) < 0.75 * np.sum(plain[far] ** 2)


@pytest.mark.parametrize(("first", "last"), [(10, 50), (14, 60)])
def test_taper_of_a_block_inside_stays_in_it_and_keeps_the_noise(first, last):
    filtered = np.abs(taper_filter(np.ones((1, 64), complex), [(0, 0), (first, last)], width=(0.1, 0.15))[0])
    assert not filtered[:first].any()
    assert not filtered[last + 1 :].any()
    assert filtered[first] > 0
    assert filtered[last] > 0
    assert np.sum(filtered**2) == pytest.approx(last - first + 1)


SIZE = 64
ENDS = {"late": [(0, 47), (0, SIZE - 1)], "early": [(16, SIZE - 1), (0, SIZE - 1)]}
"""Three quarters of the lines, as in the oracle; the first of an even number of lines has no mirror image."""


def relative(truth, found):
    return np.linalg.norm(np.abs(found) - truth) / np.linalg.norm(truth)


def test_agrees_with_tensorflow_mri(oracle):
    """Whose images are smaller by the number of pixels of an axis."""
    truth = oracle["phantom64"].real.astype(float)
    kspace, _ = sampled(truth, ENDS["late"])
    ours = {
        "zerofill": ifftc(kspace, (-2, -1)),
        "homodyne": homodyne(kspace, ENDS["late"]),
        "pocs": ifftc(pocs(kspace, ENDS["late"], iterations=10, tolerance=1e-5, transition=0), (-2, -1)),
    }
    for (name, found), bound in zip(ours.items(), (1e-5, 1e-4, 1e-3), strict=True):
        assert relative(SIZE * oracle[f"pf_0.75_{name}"], found) < bound, name


@pytest.mark.parametrize("region", ENDS.values(), ids=ENDS)
def test_either_end_may_be_missing_from_a_real_object(region):
    kspace = fftc(shepp_logan((SIZE, SIZE)).astype(complex), (-2, -1))
    kspace[0] = 0  # what no other end can tell
    truth = ifftc(kspace, (-2, -1))
    kspace = sampled(truth, region)[0]
    assert relative(np.abs(truth), ifftc(kspace, (-2, -1))) > 0.1
    assert relative(np.abs(truth), homodyne(kspace, region)) < 1e-4


@pytest.mark.parametrize("region", ENDS.values(), ids=ENDS)
def test_either_end_may_be_missing_from_a_positive_object(region):
    truth = shepp_logan((SIZE, SIZE))
    kspace = sampled(truth, region)[0]
    found = ifftc(pocs(kspace, region, iterations=100, tolerance=1e-6, transition=0), (-2, -1))
    assert relative(truth, ifftc(kspace, (-2, -1))) > 0.1
    assert relative(truth, found) < 1e-3
