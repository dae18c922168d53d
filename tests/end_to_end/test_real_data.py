"""The packaged chains on public raw data and on simulations with known truth (not part of the repository)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from gadgets.items import Image
from gadgets.layout import Flag
from service.files import read_measurement
from service.local import reconstruct

LOW = 48
"""Pixels of the coarse images made here by plain Fourier sums, against which orientation is checked."""


@pytest.fixture(scope="module")
def images(shared: Path) -> Callable[..., list[Image]]:
    """Images of a data set through a packaged chain."""

    def run(name: str, config: str, **properties: object) -> list[Image]:
        return reconstruct(shared / "data" / f"{name}.h5", config, **properties)

    return run


def plane(image: Image) -> np.ndarray:
    return np.abs(image.data[0, 0]).astype(np.float64)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def coarse(image: np.ndarray) -> np.ndarray:
    """The image at `LOW` pixels over the same field of view, origin at n // 2."""
    kspace = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(image)))
    rows, columns = (slice(n // 2 - LOW // 2, n // 2 + LOW // 2) for n in image.shape)
    return np.abs(np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace[rows, columns]))))


def plain_sum(file: Path, power: float) -> np.ndarray:
    """image[y, x] = sum |k|^power d(k) exp(2 pi i (kx x + ky y)) of the inner samples, root sum of squares over the channels."""
    measurement = read_measurement(file)
    total: np.ndarray | None = None
    for item in measurement.items():
        if item.is_flag_set(Flag.IS_NOISE_MEASUREMENT):  # type: ignore[union-attr]
            continue
        matrix = 256 if "radial" in file.name else 320
        k = item.trajectory * matrix / LOW  # type: ignore[union-attr]
        inner = (np.abs(k) < 0.5).all(1)
        k, data = k[inner], item.data[:, inner] * np.linalg.norm(k[inner], axis=1) ** power  # type: ignore[union-attr]
        pixels = np.arange(LOW) - LOW // 2
        along_y, along_x = (np.exp(2j * np.pi * np.outer(pixels, k[:, axis])) for axis in (1, 0))
        part = np.stack([(along_y * channel) @ along_x.T for channel in data])
        total = part if total is None else total + part
    assert total is not None
    return np.sqrt((np.abs(total) ** 2).sum(0))


@pytest.mark.parametrize(
    ("name", "config", "bound"),
    [
        ("radial_phantom_4ch", "radial_gridding", 0.97),
        ("radial_phantom_4ch", "radial_cgsense", 0.97),
        ("radial_cardiac_12ch_25spokes", "radial_cgsense", 0.85),
        ("spiral_cardiac_8ch", "spiral_cgsense", 0.85),
    ],
)
def test_real_scans_lie_as_their_samples_say(
    images: Callable[..., list[Image]], shared: Path, name: str, config: str, bound: float
) -> None:
    (image,) = images(name, config)
    assert image.data.dtype == np.uint16
    expected = plain_sum(shared / "data" / f"{name}.h5", power=1.0)
    found = coarse(plane(image))
    assert correlation(found, expected) > bound
    others = [
        expected[::-1],
        expected[:, ::-1],
        expected[::-1, ::-1],
        expected.T,
        *(np.roll(expected, s, a) for s in (-2, 2) for a in (0, 1)),
    ]
    assert max(correlation(found, other) for other in others) < correlation(found, expected) - 0.02


def test_a_well_sampled_phantom_does_not_depend_on_the_method(images: Callable[..., list[Image]]) -> None:
    gridded, sense = (plane(images("radial_phantom_4ch", config)[0]) for config in ("radial_gridding", "radial_cgsense"))
    assert correlation(gridded, sense) > 0.99
    inside, outside = sense[110:180, 60:200], sense[5:40, 100:150]
    assert inside.mean() > 15 * outside.mean()


def test_cg_sense_takes_the_streaks_out_of_25_spokes(images: Callable[..., list[Image]]) -> None:
    """Air beside the chest against the liver."""

    def streaks(config: str) -> float:
        image = plane(images("radial_cardiac_12ch_25spokes", config)[0])
        return float(image[:, 190:].mean() / image[150:190, 60:110].mean())

    assert streaks("radial_cgsense") < 0.6 * streaks("radial_gridding")


def scale_to(found: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Relative l2 error after one global scale, and the scale found / true."""
    factor = (found * truth).sum() / (found * found).sum()
    return float(np.linalg.norm(factor * found - truth) / np.linalg.norm(truth)), float(1 / factor)


@pytest.mark.parametrize(
    ("name", "config", "median", "worst"),
    [("realtime_radial_golden", "radial_realtime", 0.22, 0.25), ("realtime_spiral", "spiral_realtime", 0.25, 0.35)],
)
def test_every_frame_of_a_moving_heart(
    images: Callable[..., list[Image]], shared: Path, name: str, config: str, median: float, worst: float
) -> None:
    """Plain SENSE with the true maps reaches 0.286 to 0.309 (radial) and 0.238 to 0.264 (spiral)."""
    with np.load(shared / "data" / f"{name}_truth.npz") as file:
        truth = file["frames"].astype(np.float64) * file["frame_scale"]
        sensitivity = np.sqrt((np.abs(file["coil_maps"]) ** 2).sum(0))
    found = images(name, config, perform_noise_adjust=False)
    assert [int(image.repetition) for image in found] == list(range(len(truth)))
    errors, scales = zip(*(scale_to(plane(image), frame * sensitivity) for image, frame in zip(found, truth, strict=True)), strict=True)
    assert np.median(errors) < median
    assert max(errors) < worst
    assert np.median(scales) == pytest.approx(1, abs=0.04)
    still = [scale_to(plane(image), truth[0] * sensitivity)[0] for image in found]
    assert np.mean(still) > np.mean(errors) + 0.02  # the frames follow the motion


@pytest.mark.parametrize(("config", "bound"), [("radial_grasp", 0.12), ("radial_llr", 0.105)])
def test_frames_together_show_a_moving_heart_at_half_the_error(shared: Path, config: str, bound: float) -> None:
    """CG-SENSE of each frame reaches 0.216. The first seven frames come from shorter windows."""
    name, frames = "realtime_radial_golden", 13
    measurement = read_measurement(shared / "data" / f"{name}.h5")
    items = [item for item in measurement.items() if int(item.header["idx"]["repetition"]) < frames]  # type: ignore[attr-defined]
    with np.load(shared / "data" / f"{name}_truth.npz") as file:
        truth = file["frames"][:frames].astype(np.float64) * file["frame_scale"] * np.sqrt((np.abs(file["coil_maps"]) ** 2).sum(0))
    found = reconstruct(items, config, header=measurement.header_xml, perform_noise_adjust=False)
    assert [int(image.repetition) for image in found] == list(range(frames))
    errors = [scale_to(plane(image), frame)[0] for image, frame in zip(found, truth, strict=True)]
    assert max(errors[7:]) < bound
    still = [scale_to(plane(image), truth[4])[0] for image in found[9:]]
    assert min(still) > max(errors[9:]) + 0.02  # the frames follow the motion


def test_a_brain_by_an_ordinary_fourier_transform(images: Callable[..., list[Image]], shared: Path) -> None:
    (image,) = images("cartesian_brain_8ch", "cartesian")
    lines = list(read_measurement(shared / "data" / "cartesian_brain_8ch.h5").items())
    kspace = np.stack([line.data for line in lines], axis=1)
    coils = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace, (1, 2))), (1, 2))
    assert image.data.shape == (1, 1, 230, 180)
    assert scale_to(plane(image), np.sqrt((np.abs(coils) ** 2).sum(0)))[0] < 0.08


def test_an_accelerated_scanner_file_agrees_with_a_real_gadgetron(images: Callable[..., list[Image]], shared: Path) -> None:
    (image,) = images("cartesian_grappa_r3", "cartesian_grappa")
    with h5py.File(shared / "reference/gadgetron/outputs.h5") as file:
        expected = file["siemens_r3/Generic_Cartesian_Grappa/image_1/data"][0, 0, 0].astype(np.float64)
    assert scale_to(plane(image), expected)[0] < 0.02
