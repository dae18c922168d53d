"""The packaged radial and spiral chains on simulated noisy scans, as shipped: names, properties, gadgets in between."""

from __future__ import annotations

import numpy as np
import pytest

from gadgets.items import Image
from scripts import simulate
from service.local import reconstruct

FRAMES = 6


@pytest.fixture(scope="module")
def radial() -> simulate.Scan:
    return simulate.radial(64, 6, 21, FRAMES, noise=0.03)


@pytest.fixture(scope="module")
def dense() -> simulate.Scan:
    return simulate.radial(64, 6, 101, 2, ordering="linear", noise=0.03)


@pytest.fixture(scope="module")
def spiral() -> simulate.Scan:
    return simulate.spiral(64, 6, 8, FRAMES, noise=0.03)


def images(scan: simulate.Scan, config: str, **properties: object) -> list[Image]:
    return reconstruct(scan.items, config, header=scan.header, **properties)


def error(image: Image, truth: np.ndarray) -> float:
    """Relative l2 error of the magnitude after one scale: the chains whiten, and some scale to integers."""
    found, true = np.abs(image.data[0, 0]).astype(float), np.abs(truth)
    factor = (found * true).sum() / (found**2).sum()
    return float(np.linalg.norm(factor * found - true) / np.linalg.norm(true))


@pytest.mark.parametrize(
    ("scan", "config", "dtype", "bound"),
    [
        ("dense", "radial_gridding", np.uint16, 0.09),
        ("dense", "radial_cgsense", np.uint16, 0.12),
        ("radial", "radial_cgsense", np.uint16, 0.2),
        ("radial", "radial_realtime", np.float32, 0.2),
        ("radial", "radial_grasp", np.float32, 0.2),
        ("radial", "radial_llr", np.float32, 0.2),
        ("spiral", "spiral_cgsense", np.uint16, 0.17),
        ("spiral", "spiral_realtime", np.float32, 0.15),
        ("spiral", "radial_grasp", np.float32, 0.15),
    ],
)
def test_chains_show_every_frame_as_it_was(scan: str, config: str, dtype: type, bound: float, request: pytest.FixtureRequest) -> None:
    simulated: simulate.Scan = request.getfixturevalue(scan)
    truth = simulated.truth["frames"]
    found = images(simulated, config)
    assert [int(image.repetition) for image in found] == list(range(len(truth)))
    assert {image.data.dtype.type for image in found} == {dtype}
    errors = [error(image, frame) for image, frame in zip(found, truth, strict=True)]
    assert max(errors) < bound
    flips = [truth[0][::-1], truth[0][:, ::-1], truth[0].T, np.roll(truth[0], 1, 0), np.roll(truth[0], -1, 1)]
    assert min(error(found[0], flip) for flip in flips) > 1.4 * errors[0]


def test_unwhitened_images_have_the_brightness_of_the_object(radial: simulate.Scan) -> None:
    found = images(radial, "radial_realtime", perform_noise_adjust=False)
    for image, truth in zip(found, radial.truth["frames"], strict=True):
        true = np.abs(truth).ravel()
        assert float(image.data.ravel() @ true / (true @ true)) == pytest.approx(1, abs=0.04)


def test_frames_by_number_and_by_flag_are_the_same(radial: simulate.Scan) -> None:
    by_flag, by_number = (images(radial, "radial_realtime", **properties) for properties in ({}, {"frame_readouts": 21}))
    assert [image.data.tobytes() for image in by_flag] == [image.data.tobytes() for image in by_number]


@pytest.mark.parametrize("config", ["radial_grasp", "radial_llr"])
def test_frames_together_show_a_beating_heart_better_than_each_alone(config: str) -> None:
    scan = simulate.radial(64, 6, 9, 10, noise=0.02)

    def errors(config: str, **properties: object) -> np.ndarray:
        found = images(scan, config, **properties)
        assert [int(image.repetition) for image in found] == list(range(10))
        return np.array([error(image, truth) for image, truth in zip(found, scan.truth["frames"], strict=True)])

    alone, newest, later = errors("radial_realtime"), errors(config), errors(config, delay_frames=3)
    assert (newest < alone).all()
    assert np.median(newest[3:]) < 0.7 * np.median(alone[3:])
    assert np.median(later) < np.median(newest)
