"""The packaged chains for irregularly undersampled scans, raw data to integer images, against truth and against CG-SENSE."""

from __future__ import annotations

import numpy as np
import pytest

from gadgets.items import Acquisition, Image
from gadgets.layout import Flag
from recon.cartesian_sampling import density_grid, random_mask
from recon.coils import whitening_matrix
from recon.espirit import espirit
from recon.fourier import fftc, ifftc
from recon.least_squares import least_squares
from scripts import simulate
from service.local import ReconstructionError, reconstruct
from tests.end_to_end.test_noncartesian_chains import error

N, COILS = 64, 6


def undersampled(scan: simulate.Scan, mask: np.ndarray) -> list[Acquisition]:
    """The noise readouts, and those whose line is sampled."""
    readouts = [item for item in scan.items if isinstance(item, Acquisition)]
    return [one for one in readouts if one.is_flag_set(Flag.IS_NOISE_MEASUREMENT) or mask[int(one.header["idx"]["kspace_encode_step_1"])]]


def images(scan: simulate.Scan, config: str, items: list[Acquisition] | None = None, **properties: object) -> list[Image]:
    return reconstruct(scan.items if items is None else items, config, header=scan.header, **properties)


@pytest.fixture(scope="module")
def lines() -> np.ndarray:
    mask = random_mask((N,), density_grid((N,), 0.6, 0.1), 1)
    mask[N // 2 - 8 : N // 2 + 8] = True
    return mask


@pytest.fixture(scope="module")
def cartesian() -> simulate.Scan:
    return simulate.cartesian((N, N), COILS, 1, noise=0.03, slices=2)


def best_least_squares(scan: simulate.Scan, items: list[Acquisition], mask: np.ndarray) -> list[float]:
    """CG-SENSE of the same samples, whitened, at the best of some numbers of iterations for each slice."""
    whiten = whitening_matrix(scan.truth["noise_covariance"])
    errors = []
    for slice_, truth in enumerate(scan.truth["images"]):
        kspace = np.zeros((COILS, N, N), np.complex64)
        for one in items:
            if not one.is_flag_set(Flag.IS_NOISE_MEASUREMENT) and int(one.header["idx"]["slice"]) == slice_:
                wide = ifftc(whiten @ one.data, -1)[:, N // 2 : N // 2 + N]
                kspace[:, int(one.header["idx"]["kspace_encode_step_1"])] = fftc(wide, -1)
        maps = espirit(kspace, calibration=(16, 32))
        rows = np.broadcast_to(mask[:, None], (N, N))
        found = [least_squares(kspace, maps, mask=rows, iterations=n, regularisation=0.01) for n in (3, 6, 10, 20)]
        errors.append(min(error(Image(None, one[None, None]), truth) for one in found))
    return errors


def test_random_lines_are_better_than_by_cg_sense(cartesian: simulate.Scan, lines: np.ndarray) -> None:
    items = undersampled(cartesian, lines)
    linear = best_least_squares(cartesian, items, lines)
    bounds = {"l1_wavelet": 0.9, "total_variation": 0.8, "tgv": 0.8}
    for method, bound in bounds.items():
        found = images(cartesian, "cartesian_compressed_sensing", items, method=method)
        assert [int(image.slice) for image in found] == [0, 1]
        assert {image.data.dtype.type for image in found} == {np.uint16}
        errors = [error(image, truth) for image, truth in zip(found, cartesian.truth["images"], strict=True)]
        assert all(one < bound * other for one, other in zip(errors, linear, strict=True)), (method, errors, linear)
    again = images(cartesian, "cartesian_compressed_sensing", items, method="tgv")
    assert [image.data.tobytes() for image in again] == [image.data.tobytes() for image in found]


@pytest.mark.parametrize("config", ["cartesian_compressed_sensing", "cartesian_spirit"])
def test_complete_scans_come_out_as_by_the_fourier_transform(cartesian: simulate.Scan, config: str) -> None:
    plain = images(cartesian, "cartesian_grappa", filterRO="None", filterE1="None")
    for image, other in zip(images(cartesian, config, filterRO="None", filterE1="None"), plain, strict=True):
        inside = cartesian.truth["images"][int(image.slice)] > 0.05
        one, two = (each.data[0, 0].astype(float)[inside] for each in (image, other))
        assert np.linalg.norm(one * (one @ two) / (one @ one) - two) < 0.08 * np.linalg.norm(two)


def test_spirit_fills_the_lines_that_a_regular_scan_leaves_out() -> None:
    scan = simulate.cartesian((N, N), COILS, 2, 20, noise=0.01, repetitions=2)
    found, grappa = (images(scan, config) for config in ("cartesian_spirit", "cartesian_grappa"))
    assert [int(image.repetition) for image in found] == [0, 1]
    truth = scan.truth["images"][0]
    assert all(error(one, truth) < 1.05 * error(other, truth) for one, other in zip(found, grappa, strict=True))
    mask = np.ones(N, bool)
    mask[[3, 10, 11, 19, 45, 50, 58]] = False
    whole = simulate.cartesian((N, N), COILS, 1, noise=0.01)
    holes = images(whole, "cartesian_spirit", undersampled(whole, mask))[0]
    zeros = images(whole, "cartesian_grappa", undersampled(whole, mask))[0]
    complete = images(whole, "cartesian_grappa")[0]
    truth = whole.truth["images"][0]
    assert error(holes, truth) - error(complete, truth) < 0.3 * (error(zeros, truth) - error(complete, truth))


@pytest.mark.parametrize(
    ("kind", "method", "bound"), [("radial", "l1_wavelet", 0.8), ("radial", "total_variation", 0.5), ("spiral", "l1_wavelet", 0.97)]
)
def test_few_spokes_or_interleaves_are_better_than_by_cg_sense(kind: str, method: str, bound: float) -> None:
    scan = simulate.radial(N, COILS, 13, 2, noise=0.03) if kind == "radial" else simulate.spiral(N, COILS, 6, 2, noise=0.03)
    items = scan.items if kind == "radial" else undersampled(scan, np.array([True, True, False] * 2))  # type: ignore[assignment]
    linear, found = (
        images(scan, config, items, **extra)
        for config, extra in ((f"{kind}_cgsense", {}), ("radial_compressed_sensing", {"method": method}))
    )  # type: ignore[arg-type]
    truth = scan.truth["frames"]
    assert [int(image.repetition) for image in found] == [0, 1]
    assert all(error(one, frame) < bound * error(other, frame) for one, other, frame in zip(found, linear, truth, strict=True))


def test_maps_by_espirit_help_few_spokes() -> None:
    scan = simulate.radial(N, COILS, 17, 1, moving=False, ordering="linear", noise=0.03)
    (plain,), (sharp,) = (images(scan, "radial_compressed_sensing", coil_maps=kind) for kind in ("image", "espirit"))
    assert error(sharp, scan.truth["frames"][0]) < 0.95 * error(plain, scan.truth["frames"][0])


def test_a_scan_without_a_centre_is_refused_with_the_remedy(cartesian: simulate.Scan) -> None:
    mask = np.arange(N) % 2 == 0
    for config, name in (("cartesian_compressed_sensing", "CompressedSensing"), ("cartesian_spirit", "CartesianSpirit")):
        with pytest.raises(ReconstructionError, match=rf"{name}.*centre of k-space.*IS_PARALLEL_CALIBRATION"):
            images(cartesian, config, undersampled(cartesian, mask))
