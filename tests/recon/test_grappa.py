"""GRAPPA against known truth: exact kernels, simulated coils, Monte Carlo noise."""

import numpy as np
import pytest
from scipy.signal import fftconvolve

from recon.fourier import fftc, ifftc
from recon.grappa import calibrate, gfactor, image_kernel, reconstruct, source_offsets, unmixing
from recon.metrics import nrmse
from recon.phantoms import birdcage_coils, shepp_logan
from tests.recon.conftest import random_complex


def undersampled(kspace, acceleration, start=(0, 0)):
    """Every R-th line of ``[coil, e2, e1, e0]``."""
    out = np.zeros_like(kspace)
    (r2, r1), (s2, s1) = acceleration, start
    out[:, s2::r2, s1::r1] = kspace[:, s2::r2, s1::r1]
    return out


def central(kspace, lines, axis):
    """The central `lines` along an axis."""
    n = kspace.shape[axis]
    return np.take(kspace, range(n // 2 - lines // 2, n // 2 - lines // 2 + lines), axis=axis)


@pytest.fixture(scope="module")
def scan():
    """Twelve coils around a phantom: maps, image, k-space ``[coil, 1, 96, 96]``."""
    n = 96
    maps = birdcage_coils(12, (n, n))[:, None].astype(np.complex128)
    image = shepp_logan((n, n))[None].astype(np.complex128)
    return maps, image, fftc(maps * image, (-2, -1))


# Coil sensitivities that are short trigonometric polynomials: every coil sample is a short combination of samples of the object, the
# kernel's sources determine them all, and the GRAPPA relation holds exactly.


def exact_scan(coils, shape, reach):
    """Multi-coil k-space of a random object, and which part is free of the border."""
    truth = random_complex(shape, 5, "complex128")
    taps = random_complex((coils, *(2 * r + 1 for r in reach)), 6, "complex128")
    kspace = np.stack([fftconvolve(truth, tap, mode="same") for tap in taps])
    inner = (slice(None), *(slice(r, n - r) for r, n in zip(reach, shape, strict=True)))
    return np.ascontiguousarray(kspace[inner])


@pytest.mark.parametrize(
    ("acceleration", "kernel_size", "coils", "shape", "reach"),
    [
        ((1, 2), (1, 4, 3), 6, (1, 40, 30), (0, 1, 1)),
        ((1, 3), (1, 4, 3), 10, (1, 50, 30), (0, 1, 1)),
        ((2, 2), (2, 2, 3), 24, (18, 20, 14), (1, 1, 1)),
        ((2, 1), (4, 1, 3), 24, (24, 14, 14), (1, 1, 1)),
    ],
)
@pytest.mark.parametrize("own_target", [False, True])
def test_kernel_is_exact_where_an_exact_kernel_exists(acceleration, kernel_size, coils, shape, reach, own_target):
    kspace = exact_scan(coils, shape, reach)
    kernel = calibrate(kspace, kspace[:3] if own_target else None, acceleration=acceleration, kernel_size=kernel_size, regularization=0)
    assert np.isfinite(kernel).all()
    zero_filled = undersampled(kspace, acceleration)
    filled = np.stack([sum(fftconvolve(s, w, mode="same") for s, w in zip(zero_filled, weights, strict=True)) for weights in kernel[:3]])
    margin = [k // 2 for k in kernel.shape[2:]]
    inner = (slice(None), *(slice(m, n - m) for m, n in zip(margin, kspace.shape[1:], strict=True)))
    assert nrmse(kspace[:3][inner], filled[inner]) < 1e-7


def test_sampled_points_are_kept_without_a_target(scan):
    _, _, kspace = scan
    kernel = calibrate(central(kspace, 24, 2), acceleration=(1, 3), kernel_size=(1, 4, 5))
    zero_filled = undersampled(kspace, (1, 3))
    coil_images = np.einsum("tczyx,czyx->tzyx", image_kernel(kernel, kspace.shape[1:]), ifftc(zero_filled, (-2, -1)))
    np.testing.assert_allclose(fftc(coil_images, (-2, -1))[:, :, ::3], kspace[:, :, ::3], atol=1e-9)


@pytest.mark.parametrize(("factor", "bound"), [(2, 0.02), (3, 0.04), (4, 0.08)])
def test_aliasing_is_removed(scan, factor, bound):
    maps, image, kspace = scan
    calibration = central(kspace, 24, 2)
    kernel = calibrate(calibration, calibration, acceleration=(1, factor), kernel_size=(1, 4, 5), regularization=1e-5)
    weights = unmixing(kernel, maps)
    found = reconstruct(undersampled(kspace, (1, factor)), weights)
    aliased = reconstruct(undersampled(kspace, (1, factor)), maps.conj()) * factor
    assert nrmse(image, found) < bound
    assert nrmse(image, aliased) > 4 * bound


@pytest.mark.parametrize("start", [1, 2])
def test_the_first_sampled_line_does_not_matter(scan, start):
    maps, image, kspace = scan
    calibration = central(kspace, 24, 2)
    weights = unmixing(calibrate(calibration, calibration, acceleration=(1, 3), kernel_size=(1, 4, 5), regularization=1e-5), maps)
    assert nrmse(image, reconstruct(undersampled(kspace, (1, 3), (0, start)), weights)) < 0.04


def test_volumes_are_unaliased_in_both_directions():
    n2, n1, n0 = 24, 40, 32
    profile = np.exp(1j * np.linspace(-1, 1, n2))[:, None, None] * np.hanning(n2 + 2)[1:-1, None, None]
    around = birdcage_coils(8, (n1, n0))
    # Two rings of coils, one for each half along e2.
    rings = [np.exp(-(((np.arange(n2) - at) / n2) ** 2))[:, None, None] for at in (2, n2 - 3)]
    maps = np.concatenate([around[:, None] * rings[0], around[:, None] * np.exp(0.4j) * rings[1]])
    maps = (maps / np.sqrt((np.abs(maps) ** 2).sum(0))).astype(np.complex64)
    image = (profile * shepp_logan((n1, n0))).astype(np.complex64)
    kspace = fftc(maps * image, (-3, -2, -1))
    calibration = central(central(kspace, 14, 1), 16, 2)
    kernel = calibrate(calibration, calibration, acceleration=(2, 2), kernel_size=(2, 4, 5), regularization=1e-5, over_determination=4)
    found = reconstruct(undersampled(kspace, (2, 2)), unmixing(kernel, maps))
    aliased = reconstruct(undersampled(kspace, (2, 2)), maps.conj()) * 4
    assert nrmse(image, found) < 0.1
    assert nrmse(image, aliased) > 0.5


@pytest.mark.parametrize("shape", [(1, 21, 16), (6, 9, 8)])
def test_unmixing_is_the_kernel_image_combined_with_the_maps(shape):
    kernel = random_complex((3, 4, 3 if shape[0] > 1 else 1, 5, 3), 1, "complex128")
    maps = random_complex((3, *shape), 2, "complex128")
    expected = np.einsum("tczyx,tzyx->czyx", image_kernel(kernel, shape), maps.conj())
    np.testing.assert_allclose(unmixing(kernel, maps), expected, atol=1e-10)
    # And the kernel image is the transform of the zero-filled kernel.
    padded = np.zeros((3, 4, *shape), complex)
    where = tuple(slice(n // 2 - k // 2, n // 2 - k // 2 + k) for n, k in zip(shape, kernel.shape[2:], strict=True))
    padded[(slice(None), slice(None), *where)] = kernel
    scale = np.sqrt(np.prod(shape))
    np.testing.assert_allclose(image_kernel(kernel, shape), ifftc(padded, (-3, -2, -1)) * scale, atol=1e-10)


@pytest.mark.parametrize("acceleration", [(1, 2), (1, 3)])
def test_gfactor_is_the_noise_of_many_replicas(acceleration):
    """Pseudo replicas (Robson et al., Magn Reson Med 2008;60:895): white noise through the same reconstruction."""
    n, coils, replicas = 36, 6, 500
    maps = birdcage_coils(coils, (n, n))[:, None]
    kspace = fftc(maps * shepp_logan((n, n)), (-2, -1))
    calibration = central(kspace, 20, 2)
    weights = unmixing(calibrate(calibration, calibration, acceleration=acceleration, kernel_size=(1, 4, 5)), maps)
    rng = np.random.default_rng(0)
    noise = (rng.standard_normal((replicas, coils, 1, n, n)) + 1j * rng.standard_normal((replicas, coils, 1, n, n))).astype(np.complex64)
    full = reconstruct(noise, maps.conj()).std(axis=0)
    noise[:, :, :, np.arange(n) % acceleration[1] != 0] = 0
    accelerated = reconstruct(noise, weights).std(axis=0)
    measured = accelerated / full / np.sqrt(acceleration[1])
    analytic = gfactor(weights, acceleration)
    ratio = measured / analytic
    assert ratio.mean() == pytest.approx(1, abs=0.01)
    # Either standard deviation is known to 1 / sqrt(4 * replicas) = 2 %.
    assert ratio.std() < 0.04
    assert analytic.max() > 1.05


def test_zero_regularization_of_singular_equations_gives_no_nan(scan):
    """Two coils that are copies of one another: the least-norm solution uses both alike."""
    maps, image, kspace = scan
    doubled = np.concatenate([kspace, kspace[:1]])
    calibration = central(doubled, 24, 2)
    kernel = calibrate(calibration, calibration[:12], acceleration=(1, 2), kernel_size=(1, 2, 3), regularization=0)
    assert np.isfinite(kernel).all()
    assert nrmse(kernel[:, 0], kernel[:, 12]) < 0.01
    found = reconstruct(undersampled(doubled, (1, 2)), unmixing(kernel, maps))
    assert nrmse(image, found) < 0.05


def test_regularization_trades_accuracy_for_noise(scan):
    maps, _, kspace = scan
    calibration = central(kspace, 24, 2)
    noise = [
        gfactor(unmixing(calibrate(calibration, calibration, acceleration=(1, 4), kernel_size=(1, 4, 5), regularization=r), maps), (1, 4))
        for r in (1e-8, 1e-4, 1e-2)
    ]
    assert noise[0].mean() > noise[1].mean() > noise[2].mean()


def test_no_acceleration_needs_no_kernel():
    calibration = random_complex((3, 1, 8, 8))
    np.testing.assert_array_equal(calibrate(calibration, acceleration=(1, 1))[:, :, 0, 0, 0], np.eye(3))


def test_source_lines_surround_the_gap():
    np.testing.assert_array_equal(source_offsets(4, 3), [-3, 0, 3, 6])
    np.testing.assert_array_equal(source_offsets(5, 2), [-4, -2, 0, 2, 4])
    np.testing.assert_array_equal(source_offsets(2, 4), [0, 4])


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6])
def test_any_kernel_size_gives_the_right_image(scan, size):
    maps, image, kspace = scan
    calibration = central(kspace, 32, 2)
    kernel = calibrate(calibration, calibration, acceleration=(1, 2), kernel_size=(1, size, 5), regularization=1e-6)
    bound = {1: 0.4, 2: 0.05}.get(size, 0.03)
    assert nrmse(image, reconstruct(undersampled(kspace, (1, 2)), unmixing(kernel, maps))) < bound


def test_too_few_calibration_lines_are_named():
    with pytest.raises(ValueError, match=r"8 calibration samples along e1 are too few .* spans 13"):
        calibrate(random_complex((2, 1, 8, 16)), acceleration=(1, 4), kernel_size=(1, 4, 5))
    with pytest.raises(ValueError, match="along e0"):
        calibrate(random_complex((2, 1, 24, 4)), acceleration=(1, 2), kernel_size=(1, 4, 5))


@pytest.mark.parametrize("value", [0, np.nan, np.inf])
def test_calibration_without_signal_is_refused(value):
    with pytest.raises(ValueError, match="no signal"), np.errstate(invalid="ignore"):
        calibrate(np.full((2, 1, 24, 16), value, np.complex64), acceleration=(1, 2), kernel_size=(1, 4, 5))


def test_over_determination_uses_the_bright_part_of_the_readout():
    """Outside the middle of the readout the data belong to another kernel: the fit must not see them."""
    good = exact_scan(24, (18, 20, 44), (1, 1, 1))
    spoilt = good.copy()
    spoilt[..., :10] = 1e-3 * random_complex((*good.shape[:-1], 10), 8, "complex128")
    spoilt[..., -10:] = 1e-3 * random_complex((*good.shape[:-1], 10), 9, "complex128")
    options = {"acceleration": (2, 2), "kernel_size": (2, 2, 3), "regularization": 0.0}
    few = calibrate(spoilt, over_determination=1.2, **options)
    exact = calibrate(good, **options)
    spread = calibrate(spoilt, **options)
    zero_filled = undersampled(good, (2, 2))

    def fill(kernel):
        filled = np.stack(
            [sum(fftconvolve(s, w, mode="same") for s, w in zip(zero_filled, weights, strict=True)) for weights in kernel[:1]]
        )
        return filled[:, 4:-4, 4:-4, 4:-4]

    assert nrmse(fill(exact), fill(few)) < 1e-6 < nrmse(fill(exact), fill(spread))
