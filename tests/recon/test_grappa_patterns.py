"""GRAPPA for any mask, against a loop over every missing sample, exact relations, known truth and TensorFlow MRI."""

import numpy as np
import pytest

from recon.cartesian_sampling import regular_mask
from recon.fourier import fftc, ifftc
from recon.grappa_patterns import PatternKernels, calibration_region, grappa
from recon.metrics import nrmse
from recon.phantoms import birdcage_coils, shepp_logan
from tests.recon.conftest import random_complex
from tests.recon.test_espirit import brain
from tests.recon.test_grappa import exact_scan


def naive(kspace, mask, calibration, size, regularization, periodic=None):
    """GRAPPA sample by sample, each with its own least-squares problem; `periodic`: the axis that wraps around."""
    box = list(np.ndindex(*size))
    half = [n // 2 for n in size]
    places = list(np.ndindex(*(n - k + 1 for n, k in zip(calibration.shape[1:], size, strict=True))))
    filled = np.where(mask, kspace, 0)
    for point in map(tuple, np.argwhere(~mask).tolist()):
        near = []
        for offset in box:
            at = [p + o - h for p, o, h in zip(point, offset, half, strict=True)]
            if periodic is not None:
                at[periodic] %= mask.shape[periodic]
            if all(0 <= a < n for a, n in zip(at, mask.shape, strict=True)) and mask[tuple(at)]:
                near.append((offset, tuple(at)))

        def around(array, offset, places=((0,) * mask.ndim,)):
            return np.array([array[(slice(None), *(p + o for p, o in zip(w, offset, strict=True)))] for w in places])

        equations = np.concatenate([around(calibration, offset, places) for offset, _ in near], axis=1)
        own = around(calibration, half, places)
        gram = equations.conj().T @ equations
        gram += regularization * np.trace(gram).real / len(gram) * np.eye(len(gram))
        weights = np.linalg.solve(gram, equations.conj().T @ own)
        filled[(slice(None), *point)] = np.concatenate([kspace[(slice(None), *at)] for _, at in near]) @ weights
    return filled


def ragged_mask(shape):
    """Every other line along the first axis, every third in its second half, one odd point out: no lattice."""
    mask = np.zeros(shape, bool)
    mask[: shape[0] // 2 : 2] = mask[shape[0] // 2 :: 3] = True
    mask[shape[0] // 2 + 1, 2] = True
    return mask


@pytest.mark.parametrize(
    ("mask", "size", "periodic"),
    [
        (np.broadcast_to(regular_mask((11,), (3,), (4,))[:, None], (11, 7)), (5, 3), 1),
        (np.broadcast_to(regular_mask((8,), (2,))[:, None], (7, 8, 1)).swapaxes(0, 1), (3, 3, 1), 1),
        (ragged_mask((9, 8)), (5, 3), None),
        (np.broadcast_to(regular_mask((7, 6), (2, 2), caipi_shift=1)[..., None], (7, 6, 5)), (3, 5, 3), 2),
        (regular_mask((5, 7), (2, 2))[:, None] & np.ones((1, 5, 1), bool), (3, 3, 3), 1),
        (np.broadcast_to(regular_mask((9,), (2,)), (6, 9)), (3, 5), 0),
    ],
    ids=["R=3, odd", "z constant", "ragged", "caipi", "readout in the middle", "undersampled along x"],
)
def test_every_sample_is_what_a_loop_over_the_missing_ones_gives(mask, size, periodic):
    kspace, calibration = random_complex((3, *mask.shape), 1, "complex128"), random_complex((3, *(8, 9, 7)[: mask.ndim]), 2, "complex128")
    if mask.shape[-1] == 1:
        calibration = calibration[..., :1]
    found = grappa(kspace, mask, calibration, kernel_size=size, regularization=0.05, over_determination=0)
    np.testing.assert_allclose(found, naive(kspace, mask, calibration, size, 0.05, periodic), atol=1e-10)


@pytest.mark.parametrize(
    ("mask", "size", "reach"),
    [
        (np.broadcast_to(regular_mask((44,), (3,), (14,))[:, None], (44, 31)), (5, 3), (1, 1)),
        (np.broadcast_to(regular_mask((14, 15), (2, 2), (9, 9), caipi_shift=1)[..., None], (14, 15, 12)), (3, 5, 3), (1, 1, 1)),
    ],
    ids=["2D", "caipi"],
)
def test_exact_where_an_exact_kernel_exists(mask, size, reach):
    """Coils whose samples are short combinations of samples of the object (see `exact_scan`): away from the ends nothing is lost."""
    kspace = exact_scan(24, tuple(n + 2 * r for n, r in zip(mask.shape, reach, strict=True)), reach)
    filled = grappa(np.where(mask, kspace, np.nan), mask, kernel_size=size, regularization=0)
    inner = (slice(None), *(slice(n // 2, -(n // 2)) for n in size))
    assert nrmse(kspace[inner], filled[inner]) < 1e-6
    np.testing.assert_array_equal(filled[:, mask], kspace[:, mask])


@pytest.fixture(scope="module")
def scan():
    """Twelve coils around a phantom: maps, image, k-space `[coil, 66, 63]`."""
    shape = (66, 63)
    maps = birdcage_coils(12, shape).astype(np.complex64)
    image = shepp_logan(shape).astype(np.complex64)
    return maps, image, fftc(maps * image, (-2, -1))


def combined(kspace, maps):
    return np.sum(maps.conj() * ifftc(kspace, (-2, -1)), axis=-3) / np.sum(np.abs(maps) ** 2, axis=0)


VARIABLE = np.isin(np.arange(66), [*range(0, 66, 4), *range(14, 52, 3), *range(22, 44)])


@pytest.mark.parametrize(
    ("mask", "bound"),
    [
        (regular_mask((66,), (2,), (20,))[:, None], 0.02),
        (regular_mask((66,), (4,), (20,))[:, None], 0.08),  # 66 is no multiple of 4
        (VARIABLE[:, None], 0.05),
        (regular_mask((66, 63), (2, 2), (20, 20)), 0.08),
        (regular_mask((66, 63), (2, 2), (20, 20), caipi_shift=1), 0.05),
        (regular_mask((66, 63), (1, 3), (20, 20)), 0.04),
        (regular_mask((66, 63), (2, 3), (20, 20), caipi_shift=1), 0.13),
    ],
    ids=["2", "4", "variable density", "2x2", "caipi 2x2", "1x3", "caipi 2x3"],
)
def test_missing_samples_are_found(scan, mask, bound):
    maps, image, kspace = scan
    sampled = np.where(mask, kspace, 0)
    filled = grappa(sampled, mask, regularization=1e-5)
    assert filled.dtype == np.complex64
    assert nrmse(image, combined(filled, maps)) < bound
    assert nrmse(image, combined(sampled, maps)) > 3 * bound
    np.testing.assert_array_equal(filled, grappa(sampled, regularization=1e-5))  # the mask is found in the zeros


def test_volume_with_a_shifted_lattice():
    n2, n1, n0 = 20, 32, 24
    around, along = birdcage_coils(6, (n1, n0)), np.linspace(-1, 1, n2)[:, None, None]
    maps = np.concatenate([around[:, None] * np.exp(-((along - at) ** 2) + 1j * at) for at in (-0.8, 0.8)]).astype(np.complex64)
    image = (np.hanning(n2 + 2)[1:-1, None, None] * shepp_logan((n1, n0))).astype(np.complex64)
    kspace = fftc(maps * image, (-3, -2, -1))
    mask = regular_mask((n2, n1), (2, 2), (10, 12), caipi_shift=1)[..., None]
    filled = grappa(np.where(mask, kspace, 0), mask, regularization=1e-4)
    assert nrmse(kspace, filled) < 0.1
    assert nrmse(kspace, np.where(mask, kspace, 0)) > 0.3


def test_agrees_with_tensorflow_mri(oracle):
    kspace = oracle["cartesian_kspace"]
    mask = regular_mask((64,), (2,), (24,))[:, None]
    theirs = oracle["grappa_r2_kspace_l2_0.01"]
    filled = grappa(np.where(mask, kspace, 0), mask, kernel_size=5, regularization=1e-4)
    assert nrmse(kspace, filled) < 1.05 * nrmse(kspace, theirs)
    assert nrmse(theirs, filled) < 0.02
    assert np.isfinite(grappa(np.where(mask, kspace, 0), mask, regularization=0)).all()  # theirs: NaN


@pytest.mark.parametrize(
    ("acceleration", "block", "shift", "bound"),
    [((2, 1), (24, 180), 0, 0.0355), ((4, 1), (24, 180), 0, 0.123), ((2, 2), (24, 24), 0, 0.075), ((2, 2), (24, 24), 1, 0.07)],
    ids=["R=2", "R=4", "2x2", "caipi"],
)
def test_a_brain_is_restored_at_least_as_well_as_by_pygrappa(shared, acceleration, block, shift, bound):
    """The first two bounds are the errors of pygrappa 0.26 (kernel 5 x 5, its own regularisation) on the same samples."""
    kspace = brain(shared)
    mask = regular_mask(kspace.shape[1:], acceleration, block, caipi_shift=shift)
    truth, found = (np.linalg.norm(ifftc(k, (-2, -1)), axis=0) for k in (kspace, grappa(np.where(mask, kspace, 0), mask)))
    assert nrmse(truth, found) < bound


def test_leading_axes_with_one_calibration_or_their_own(scan):
    _, _, kspace = scan
    mask = regular_mask((66,), (3,), (20,))[:, None]
    frames = np.stack([[kspace, 2 * kspace], [kspace[::-1], kspace.conj()], [1j * kspace, kspace]])
    own = grappa(np.where(mask, frames, 0), mask)
    shared = grappa(np.where(mask, frames, 0), mask, kspace[:, 23:43])
    for where in np.ndindex(3, 2):
        np.testing.assert_allclose(own[where], grappa(np.where(mask, frames[where], 0), mask), atol=1e-5)
        np.testing.assert_allclose(shared[where], grappa(frames[where], mask, kspace[:, 23:43]), atol=1e-5)
    assert nrmse(own[1, 0], shared[1, 0]) > 1e-3  # coils in another order need other kernels


def test_one_coil(scan):
    """Without coils to tell apart a kernel only interpolates; it must be finite and better than zeros."""
    _, image, _ = scan
    kspace = fftc(image * np.hanning(66)[:, None].astype(np.float32) ** 8, (-2, -1))[None]  # a narrow object: smooth k-space
    mask = regular_mask((66,), (2,), (20,))[:, None]
    filled = grappa(np.where(mask, kspace, 0), mask, regularization=1e-6)
    assert nrmse(kspace, filled) < 0.25 * nrmse(kspace, np.where(mask, kspace, 0))


def test_zero_regularization_of_copied_coils_gives_no_nan(scan):
    maps, image, kspace = scan
    doubled = np.concatenate([kspace, kspace])
    mask = regular_mask((66, 63), (2, 2), (20, 20), caipi_shift=1)
    filled = grappa(np.where(mask, doubled, 0), mask, regularization=0)
    assert np.isfinite(filled).all()
    np.testing.assert_allclose(filled[:12], filled[12:], atol=1e-3 * np.abs(kspace).max())
    assert nrmse(image, combined(filled[:12], maps)) < 0.1


def test_nothing_missing(scan):
    _, _, kspace = scan
    np.testing.assert_array_equal(grappa(kspace, np.ones((66, 1), bool)), kspace)


def test_gaps_are_left_on_request(scan):
    _, _, kspace = scan
    mask = regular_mask((66,), (2,), (20,))
    mask[50:] = False
    filled = grappa(kspace, mask[:, None], leave_gaps=True)
    assert not filled[:, 53:].any()
    np.testing.assert_allclose(filled[:, :40], grappa(kspace, regular_mask((66,), (2,), (20,))[:, None])[:, :40], atol=1e-5)
    with pytest.raises(ValueError, match=r"mask has \d+ missing points .*leave_gaps"):
        grappa(kspace, mask[:, None], kernel_size=5)


def test_equations_come_from_the_bright_part_of_the_readout(scan):
    """A calibration whose dim ends obey another relation: few equations leave them out."""
    kspace = exact_scan(24, (22, 62), (1, 1))
    spoilt = kspace.copy()
    spoilt[..., :10], spoilt[..., -10:] = 1e-2 * random_complex((24, 20, 10), 3), 1e-2 * random_complex((24, 20, 10), 4)
    mask = regular_mask((20,), (3,))[:, None]
    inner = (slice(None), slice(2, -2), slice(2, -2))
    few, every = (
        grappa(kspace, mask, spoilt, kernel_size=(5, 3), regularization=0, over_determination=ratio, leave_gaps=True)
        for ratio in (1.1, 0.0)
    )
    assert nrmse(kspace[inner], few[inner]) < 1e-6 < nrmse(kspace[inner], every[inner])


def test_only_the_nearest_sources(scan):
    """Of two sampled lines on either side the nearer ones are left: as if the others had not been sampled."""
    _, _, kspace = scan
    dense, two = np.arange(66)[:, None] % 3 != 2, np.isin(np.arange(66), (31, 33))[:, None]
    nearest, every = (grappa(kspace, dense, kspace[:, 23:43], kernel_size=5, most_sources=most) for most in (2, None))
    alone = grappa(kspace, two, kspace[:, 23:43], kernel_size=5, leave_gaps=True)
    np.testing.assert_allclose(nearest[:, 32], alone[:, 32], atol=1e-5)
    assert nrmse(every[:, 32], nearest[:, 32]) > 1e-4


def test_the_largest_sampled_block():
    mask = regular_mask((30, 31), (2, 3), (8, 11))
    assert calibration_region(mask) == [slice(11, 19), slice(10, 21)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask": np.zeros((66, 63), bool)}, "mask is empty"),
        ({"mask": regular_mask((66,), (4,), (3,))[:, None]}, "calibration has .* too few for kernel_size .* acquire more"),
        ({"mask": regular_mask((66,), (12,), (20,))[:, None], "kernel_size": 5}, "mask has .* missing points .* enlarge kernel_size"),
        ({"mask": np.arange(66)[:, None] % 2 == 1}, "calibration has .* too few"),
        ({"mask": np.arange(66)[:, None] % 2 == 0}, "mask leaves out the centre .* calibration"),
        ({"mask": np.ones((65, 63), bool)}, "mask .* does not fit kspace"),
        ({"mask": np.ones((2, 12, 66, 63), bool)}, "kspace .* must end in a coil axis"),
        ({"kernel_size": 4}, "kernel_size must be odd"),
        ({"kernel_size": (5, 5, 5)}, "kernel_size must be odd, one number or 2"),
        ({"calibration": np.full((12, 20, 20), np.nan, np.complex64)}, "calibration holds values that are not finite"),
        ({"calibration": np.zeros((12, 20, 20), np.complex64)}, "no signal"),
        ({"calibration": np.ones((11, 20, 20), np.complex64)}, "calibration .* does not fit kspace"),
    ],
)
def test_what_does_not_fit_is_named(scan, arguments, message):
    arguments = {"mask": regular_mask((66,), (2,), (20,))[:, None], **arguments}
    with pytest.raises(ValueError, match=message):
        grappa(scan[2], **arguments)


def test_values_that_are_not_finite_are_refused_where_they_were_sampled(scan):
    mask = regular_mask((66,), (2,), (20,))[:, None]
    kernels = PatternKernels(scan[2][:, 23:43], mask, (66, 63))
    spoilt = scan[2].copy()
    spoilt[0, 34, 3] = np.nan
    with pytest.raises(ValueError, match="kspace holds values that are not finite"):
        kernels.fill(spoilt)
    with pytest.raises(ValueError, match="does not end in"):
        kernels.fill(scan[2][:, :-1])
