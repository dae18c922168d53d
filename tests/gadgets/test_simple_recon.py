"""SimpleRecon and CartesianRecon against transforms written out and objects whose signal is known."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from gadgets.accumulate import AcquisitionAccumulateTrigger
from gadgets.base import Context, Gadget, GadgetError, run
from gadgets.buffer import BucketToBuffer
from gadgets.cartesian import CartesianRecon, SimpleRecon, centered, to_image
from gadgets.grappa import CartesianGrappa
from gadgets.header import Header
from gadgets.items import Acquisition, AcquisitionBucket, Waveform
from gadgets.layout import Flag
from gadgets.oversampling import RemoveROOversampling
from tests.gadgets.readouts import dft, make_header, noise_like, readout, through

RNG = np.random.default_rng(6)


def lines_of(kspace: np.ndarray, **counters: int) -> list[Acquisition]:
    """Readouts of k-space [channel, E2, E1, E0]."""
    return [
        readout(kspace[:, e2, e1], line=e1, partition=e2, fields={"position": (1, 2, 3), "acquisition_time_stamp": 100 + e1}, **counters)
        for e2 in range(kspace.shape[1])
        for e1 in range(kspace.shape[2])
    ]


def full_limits(kspace: np.ndarray) -> dict[str, tuple[int, int, int]]:
    _, e2, e1, _ = kspace.shape
    return {"kspace_encoding_step_1": (0, e1 - 1, e1 // 2), "kspace_encoding_step_2": (0, e2 - 1, e2 // 2)}


def test_root_sum_of_squares_of_the_transform():
    kspace = noise_like(RNG, 3, 4, 6, 8)
    header = make_header((8, 6, 4), limits=full_limits(kspace))
    (out,) = through([BucketToBuffer(), SimpleRecon()], [AcquisitionBucket(lines_of(kspace))], header)
    back = [dft(n).conj().T for n in (4, 6, 8)]
    image = np.einsum("za,yb,xc,nabc->nzyx", *back, kspace)
    np.testing.assert_allclose(out.data[0, 0, 0, 0], np.sqrt(np.sum(np.abs(image) ** 2, axis=0)), rtol=1e-4)
    assert out.data.shape == (1, 1, 1, 1, 4, 6, 8)


def test_headers_indices_series_and_attributes():
    kspace = noise_like(RNG, 1, 1, 8, 8)
    items = [line for number in range(3) for line in lines_of(kspace, slice=number, repetition=5)]
    header = make_header((8, 8, 1), limits=full_limits(kspace), encoded_mm=(16, 16, 5))
    waveform = Waveform(None, np.zeros((1, 2), np.uint32))
    (out,) = through([BucketToBuffer(), SimpleRecon()], [AcquisitionBucket(items, waveforms=[waveform])], header)
    headers = out.headers[:, 0, 0]
    assert headers["slice"].tolist() == [0, 1, 2]
    assert headers["image_index"].tolist() == [1, 2, 3]
    assert headers["image_series_index"].tolist() == [0, 0, 0]
    assert headers["repetition"].tolist() == [5, 5, 5]
    assert headers["acquisition_time_stamp"].tolist() == [104] * 3
    assert headers["position"].tolist() == [[1, 2, 3]] * 3
    assert headers["field_of_view"][0].tolist() == [16, 16, 5]
    assert out.meta[2]["GADGETRON_ImageNumber"] == "3"
    assert out.meta[0]["DataRole"] == out.meta[0]["GADGETRON_DataRole"] == "Image"
    assert out.waveforms == [waveform]


def test_a_missing_central_line_does_not_lose_the_geometry():
    kspace = noise_like(RNG, 1, 1, 8, 8)
    items = [line for line in lines_of(kspace) if line.header["idx"]["kspace_encode_step_1"] % 3 == 0]
    (out,) = through([BucketToBuffer(), SimpleRecon()], [AcquisitionBucket(items)], make_header((8, 8, 1), limits=full_limits(kspace)))
    assert out.headers[0, 0, 0]["acquisition_time_stamp"] == 103
    assert out.headers[0, 0, 0]["position"].tolist() == [1, 2, 3]


# -- CartesianRecon ----------------------------------------------------------------------------------------------------


def blobs(
    matrix: tuple[int, int, int], field_of_view: tuple[float, float, float], places_mm: np.ndarray, width_mm: float = 9.0
) -> np.ndarray:
    """K-space [E2, E1, E0] of Gaussian blobs at `places_mm` (x, y, z from the middle), each worth 1 at its peak over the voxels
    of a matrix where 1 voxel = 1 mm: the continuous Fourier transform, sampled in steps of 1 / field of view."""
    axes = [(np.arange(n) - n // 2) / fov for n, fov in zip(matrix, field_of_view, strict=True)]
    total = np.zeros(matrix[::-1], complex)
    for x, y, z in places_mm:
        factors = []
        for k, place, n in zip(axes, (x, y, z), matrix, strict=True):
            shape = np.exp(-((np.pi * k * width_mm) ** 2)) * width_mm * np.sqrt(np.pi) * np.exp(-2j * np.pi * k * place)
            factors.append(shape if n > 1 else np.ones(1))
        total += np.einsum("z,y,x->zyx", factors[2], factors[1], factors[0])
    return total


def expected_blobs(matrix, field_of_view, places_mm, width_mm: float = 9.0) -> np.ndarray:
    z, y, x = np.meshgrid(
        *((np.arange(n) - n // 2) * fov / n for n, fov in zip(matrix[::-1], field_of_view[::-1], strict=True)), indexing="ij"
    )
    total = np.zeros(matrix[::-1])
    for px, py, pz in places_mm:
        total += np.exp(-((x - px) ** 2 + (y - py) ** 2 + (z - pz) ** 2 * (matrix[2] > 1)) / width_mm**2)
    return total


CASES = {
    "as it is": ((64, 48, 1), (128.0, 96.0, 5.0), (64, 48, 1), (128.0, 96.0, 5.0)),
    "readout and phase oversampling": ((128, 72, 1), (256.0, 144.0, 5.0), (64, 48, 1), (128.0, 96.0, 5.0)),
    "zero-filled": ((64, 48, 1), (128.0, 96.0, 5.0), (128, 128, 1), (128.0, 96.0, 5.0)),
    "zero-filled and cropped, odd": ((65, 51, 1), (130.0, 102.0, 5.0), (99, 68, 1), (90.0, 68.0, 5.0)),
    "wider than encoded": ((64, 48, 1), (128.0, 96.0, 5.0), (70, 50, 1), (140.0, 100.0, 5.0)),
    "three dimensions": ((32, 24, 20), (96.0, 72.0, 60.0), (32, 24, 16), (96.0, 72.0, 48.0)),
}


@pytest.mark.parametrize("case", CASES)
def test_object_appears_where_and_as_bright_as_it_is(case):
    encoded, encoded_mm, recon, recon_mm = CASES[case]
    places = np.array([[12.0, -8.0, 5.0 if recon[2] > 1 else 0], [-20.0, 15.0, 0.0]])
    kspace = blobs(encoded, encoded_mm, places)
    header = make_header(encoded, recon, encoded_mm=encoded_mm, recon_mm=recon_mm, limits=full_limits(kspace[None]))
    (out,) = through(CartesianRecon(), [AcquisitionBucket(lines_of(kspace[None]))], header)
    assert out.data.shape == (1, *recon[::-1])
    assert out.header["field_of_view"].tolist() == list(recon_mm)
    # ifftc divides by sqrt(count) where the inverse of the continuous transform is a sum in steps of 1 / field of view
    volume = np.prod([fov for n, fov in zip(encoded, encoded_mm, strict=True) if n > 1])
    brightness = np.sqrt(np.prod(encoded)) / volume
    np.testing.assert_allclose(out.data[0] * brightness, expected_blobs(recon, recon_mm, places), atol=0.01)


def test_cropping_the_readout_first_gives_the_same_image():
    encoded, encoded_mm, recon, recon_mm = CASES["readout and phase oversampling"]
    kspace = blobs(encoded, encoded_mm, np.array([[12.0, -8.0, 0.0]]))[None]
    header = make_header(encoded, recon, encoded_mm=encoded_mm, recon_mm=recon_mm, limits=full_limits(kspace))
    trigger = AcquisitionAccumulateTrigger()
    (late,) = through([trigger, CartesianRecon()], lines_of(kspace), header)
    (early,) = through([RemoveROOversampling(), trigger, CartesianRecon()], lines_of(kspace), header)
    np.testing.assert_allclose(early.data, late.data, atol=1e-4 * np.abs(late.data).max())


def coil_scan(coils: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """An object with phase and smooth coils: object [1, y, x], k-space [coil, 1, y, x]."""
    y, x = np.mgrid[-24:24, -24:24]
    disc = (x**2 + y**2 < 300) * (1 + 0.5 * (x > 5)) * np.exp(1j * 0.05 * x)
    angles = 2 * np.pi * np.arange(coils) / coils
    maps = np.stack([np.exp(-((x - 40 * np.cos(a)) ** 2 + (y - 40 * np.sin(a)) ** 2) / 2000 + 1j * a) for a in angles])
    maps /= np.sqrt(np.sum(np.abs(maps) ** 2, axis=0))
    f = dft(48)
    return disc, np.einsum("ya,xb,nab->nyx", f, f, maps * disc)[:, None]


def test_adaptive_combination_keeps_magnitude_and_rss_agrees():
    disc, kspace = coil_scan()
    header = make_header((48, 48, 1), limits=full_limits(kspace))
    (adaptive,), (rss,) = (
        through(CartesianRecon(combination=how), [AcquisitionBucket(lines_of(kspace))], header) for how in ("adaptive", "rss")
    )
    np.testing.assert_allclose(rss.data[0, 0], np.abs(disc), atol=1e-4)
    inside = np.abs(disc) > 0
    error = np.linalg.norm(np.abs(adaptive.data[0, 0])[inside] - np.abs(disc)[inside]) / np.linalg.norm(disc)
    assert error < 0.02
    assert np.iscomplexobj(adaptive.data)
    assert np.abs(np.angle(adaptive.data[0, 0][inside])).max() > 0.1
    assert rss.data.dtype == np.complex64


def test_one_channel_is_not_combined():
    kspace = noise_like(RNG, 1, 1, 8, 8)
    (out,) = through(CartesianRecon(), [AcquisitionBucket(lines_of(kspace))], make_header((8, 8, 1), limits=full_limits(kspace)))
    back = dft(8).conj().T
    np.testing.assert_allclose(out.data[0, 0], back @ kspace[0, 0] @ back.T, rtol=1e-4, atol=1e-5)


def test_averages_are_averaged_over_what_was_sampled():
    kspace = noise_like(RNG, 1, 1, 8, 8)
    first, second = lines_of(kspace * 3, average=0), lines_of(kspace, average=1)[:5]
    header = make_header((8, 8, 1), limits=full_limits(kspace))
    (out,) = through(CartesianRecon(combination="rss"), [AcquisitionBucket(first + second)], header)
    mixed = kspace * np.where(np.arange(8) < 5, 2, 3)[:, None]
    (expected,) = through(CartesianRecon(combination="rss"), [AcquisitionBucket(lines_of(mixed))], header)
    np.testing.assert_allclose(out.data, expected.data, rtol=1e-4)
    assert len(through(CartesianRecon(average="false"), [AcquisitionBucket(first + second)], header)) == 2


def test_an_image_for_each_slice_contrast_and_repetition():
    kspace = noise_like(RNG, 2, 1, 8, 8)
    items = [
        line
        for r in range(2)
        for s in (1, 0)
        for c in range(2)
        for line in lines_of(kspace * (1 + s + 10 * c), repetition=r, slice=s, contrast=c)
    ]
    header = make_header((8, 8, 1), limits={**full_limits(kspace), "repetition": (0, 1, 0)}, te=[5, 9])
    chain = [AcquisitionAccumulateTrigger(trigger_dimension="repetition"), CartesianRecon(image_series="4", combination="rss")]
    out = through(chain, items, header)
    found = [tuple(int(one.header[name]) for name in ("repetition", "slice", "contrast")) for one in out]
    assert sorted(found) == [(r, s, c) for r in range(2) for s in range(2) for c in range(2)]
    assert [int(one.header["image_index"]) for one in out] == list(range(1, 9))
    assert {int(one.header["image_series_index"]) for one in out} == {4}
    assert {one.meta["EchoTime"] for one in out if one.header["contrast"] == 1} == {"9"}
    scale = {key: float(np.linalg.norm(one.data)) for key, one in zip(found, out, strict=True)}
    assert scale[0, 1, 1] / scale[0, 0, 0] == pytest.approx(12, rel=1e-4)


def test_buffers_give_the_same_images_as_their_bucket():
    _, kspace = coil_scan()
    header = make_header((48, 48, 1), limits=full_limits(kspace))
    (from_bucket,) = through(CartesianRecon(), [AcquisitionBucket(lines_of(kspace))], header)
    (from_buffer,) = through([BucketToBuffer(), CartesianRecon()], [AcquisitionBucket(lines_of(kspace))], header)
    np.testing.assert_array_equal(from_bucket.data, from_buffer.data)


def test_times_of_the_readouts_reach_the_image():
    kspace = noise_like(RNG, 1, 1, 8, 8)
    items = lines_of(kspace)
    for number, item in enumerate(items):
        item.received = 50.0 + number
    items[-1].set_flag(Flag.LAST_IN_MEASUREMENT)
    header = make_header((8, 8, 1), limits=full_limits(kspace))
    (out,) = through([AcquisitionAccumulateTrigger(), CartesianRecon()], items, header)
    assert out.received == 57.0
    assert out.triggered > 0


def test_an_accelerated_scan_is_warned_of(caplog):
    header = make_header((8, 8, 1), acceleration=3, calibration="embedded")
    with caplog.at_level(logging.WARNING, "reconstream"):
        through(CartesianRecon(), [], Context(header=header))
    assert "cartesian_grappa.xml" in caplog.text


@pytest.mark.parametrize(("length", "size"), [(8, 4), (8, 5), (7, 4), (7, 5), (4, 8), (5, 8), (4, 7), (5, 7), (6, 6)])
def test_the_middle_stays_the_middle(length, size):
    array = np.zeros((2, length, 2))
    array[:, length // 2] = 1
    resized = centered(array, 1, size)
    assert resized.shape == (2, size, 2)
    assert (resized[:, size // 2] == 1).all()
    assert resized.sum() == 4


def test_resizing_does_not_change_a_constant():
    kspace = np.zeros((1, 1, 8, 8), np.complex64)
    kspace[0, 0, 4, 4] = 8
    for recon in ((8, 8, 1), (16, 12, 1), (6, 4, 1)):
        encoding = make_header((8, 8, 1), recon, recon_mm=(8.0, 8.0, 1.0)).encoding()
        np.testing.assert_allclose(to_image(kspace, (8.0, 8.0, 1.0), encoding), np.ones((1, 1, *recon[1::-1])), rtol=1e-5)


@pytest.mark.parametrize("trajectory", ["radial", "goldenangle", "spiral"])
@pytest.mark.parametrize("gadget", [CartesianRecon, CartesianGrappa])
def test_a_scan_along_another_trajectory_is_refused(gadget: type[Gadget], trajectory: str):
    header = make_header((8, 8, 1))
    xml = header.xml.replace(b"<trajectory>cartesian<", f"<trajectory>{trajectory}<".encode())
    assert xml != header.xml
    with pytest.raises(GadgetError, match=rf"'{trajectory}'.*radial_gridding\.xml"):
        list(run([gadget()], [], Context(header=Header(xml))))
