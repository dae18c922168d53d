"""Readouts sorted by slice and contrast, with sensitivities, against images that were transformed directly."""

from __future__ import annotations

import numpy as np
import pytest

from gadgets.base import Context
from gadgets.contrasts import CoilMaps, contrast_series
from gadgets.header import Header
from gadgets.items import Acquisition
from gadgets.layout import Flag
from recon.quantitative.measured import Measured
from tests.gadgets.scans import coil_maps, nrmse
from tests.service import maps_scan as scan


def context(contrasts: int, trajectory: str = "goldenangle", **more: object) -> Context:
    return Context(header=Header(scan.header(contrasts, trajectory, **more)))  # type: ignore[arg-type]


def images(measured: Measured, iterations: int = 30) -> np.ndarray:
    found: np.ndarray = measured.cut(measured.term(np.dtype(np.complex64)).images(iterations).numpy())
    return found


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    return scan.t2_images()[:3]


def body() -> np.ndarray:
    return np.abs(scan.objects()[0]) > 0


@pytest.mark.parametrize("method", ["espirit", "image"])
def test_radial_contrasts(truth: np.ndarray, method: CoilMaps) -> None:
    series = contrast_series(scan.radial(truth, 40), context(3), method)
    assert series.contrasts == [(0, 0, 0, 0), (1, 0, 0, 0), (2, 0, 0, 0)]
    assert series.readouts == 40
    (one,) = series.slices
    assert one.measured.weights is None
    # A plain sum over the object is sqrt(32 * 32) times an orthonormal transform, which the amplitude takes as the object's.
    for found, image in zip(images(one.measured), truth, strict=True):
        assert nrmse(found[body()], image[body()]) < 0.06


def test_contrasts_of_different_length_and_readouts_with_nan(truth: np.ndarray) -> None:
    items = scan.radial(truth, 40)
    items[45].data[:, 5:9] = np.nan
    del items[-6:]
    told = context(3)
    (one,) = contrast_series(items, told).slices
    assert one.measured.weights is not None
    assert (one.measured.weights == 0).sum(1).tolist() == [0, 4, 6 * scan.N]
    for found, image in zip(images(one.measured), truth, strict=True):
        assert nrmse(found[body()], image[body()]) < 0.07


def test_several_slices_and_counters(truth: np.ndarray) -> None:
    items = []
    for slice_ in (2, 0):
        for repetition in (0, 1):
            for item in scan.lines(truth[:2] * (1 + slice_), slice_=slice_):
                item.header["idx"]["repetition"] = repetition
                items.append(item)
    series = contrast_series(items, context(2, "cartesian"))
    assert series.contrasts == [(0, 0, 0, 0), (0, 0, 0, 1), (1, 0, 0, 0), (1, 0, 0, 1)]
    assert [int(one.header["idx"]["slice"]) for one in series.slices] == [0, 2]
    first, last = (images(one.measured) for one in series.slices)
    np.testing.assert_allclose(last[:, scan.interior()], 3 * first[:, scan.interior()], rtol=1e-4)


def test_frames_of_a_train_and_what_is_left_of_it(truth: np.ndarray) -> None:
    items = scan.radial(np.repeat(truth[:1], 50, 0), 1)
    for number, item in enumerate(items):
        item.header["idx"]["contrast"], item.header["idx"]["segment"] = 0, number // 25
    told = context(1)
    series = contrast_series(items, told, readouts_per_frame=10)
    # Two trains of 25: their frames of 10 are joined, 5 of each are left.
    assert (series.contrasts, series.order, series.readouts) == ([(0,), (1,)], [0, 10], 20)
    assert told.counts == {"readouts after the last frame of 10": 10}


def test_undersampled_without_calibration_finds_its_maps(truth: np.ndarray) -> None:
    """Interleaved: other lines in each contrast. Together they are all, though not of one contrast."""
    items = [
        item
        for item in scan.lines(np.repeat(truth[:1], 2, 0))
        if item.header["idx"]["kspace_encode_step_1"] % 2 == item.header["idx"]["contrast"]
    ]
    (one,) = contrast_series(items, context(2, "cartesian")).slices
    expected = coil_maps(4, scan.N)
    found = one.measured.maps
    assert found is not None
    alike = np.abs((found.conj() * expected).sum(0))[scan.interior()]
    assert np.median(alike) > 0.98
    for image in images(one.measured):
        assert nrmse(image[scan.interior()] / scan.N, truth[0][scan.interior()]) < 0.1


@pytest.mark.parametrize("method", ["espirit", "image", "nlinv"])
def test_every_way_to_cartesian_maps(truth: np.ndarray, method: CoilMaps) -> None:
    (one,) = contrast_series(scan.lines(truth), context(3, "cartesian"), method).slices
    found = one.measured.maps
    assert found is not None
    alike = np.abs((found.conj() * coil_maps(4, scan.N)).sum(0))[scan.interior()]
    assert np.median(alike) > 0.99


def test_a_larger_reconstructed_matrix_is_filled(truth: np.ndarray) -> None:
    xml = scan.header(3, "cartesian").replace(b"<reconSpace><matrixSize><x>32</x><y>32</y>", b"<reconSpace><matrixSize><x>48</x><y>48</y>")
    (one,) = contrast_series(scan.lines(truth), Context(header=Header(xml))).slices
    assert one.measured.grid == (48, 48)
    found = images(one.measured)
    # The values of the object do not change with the pixels.
    assert np.median(np.abs(found[0][20:28, 20:28])) == pytest.approx(scan.N * np.median(np.abs(truth[0][13:19, 13:19])), rel=0.05)


def test_faults(truth: np.ndarray) -> None:
    noise = scan.lines(truth[:1])[:2]
    for item in noise:
        item.set_flag(Flag.IS_NOISE_MEASUREMENT)
    with pytest.raises(ValueError, match="no imaging readouts"):
        contrast_series(noise, context(1, "cartesian"))
    with pytest.raises(ValueError, match="epi_grappa"):
        contrast_series(scan.lines(truth[:1]), context(1, "epi"))
    with pytest.raises(ValueError, match="Cartesian"):
        contrast_series(scan.radial(truth, 20), context(3), "nlinv")
    with pytest.raises(ValueError, match="contrast counter"):
        contrast_series(scan.lines(truth[:1]), context(1, "cartesian"), readouts_per_frame=8)
    other: list[Acquisition] = scan.radial(truth, 20)[:30]
    other += [item for item in scan.radial(truth, 20)]
    for item in other[30:]:
        item.header["idx"]["slice"] = 1
    with pytest.raises(ValueError, match="slice 1 has 3 contrasts, slice 0 has 2"):
        contrast_series(other, context(3))
