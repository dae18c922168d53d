"""cartesian_varnet.xml: undersampled real-time series through a VarNet, as shipped but for the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gadgets.items import Acquisition, Image, Item
from gadgets.layout import Flag
from scripts import simulate
from service.local import ReconstructionError, reconstruct
from tests.end_to_end import networks_small
from tests.end_to_end.test_noncartesian_chains import error

N, COILS, FRAMES = 64, 6, 10
GROWTH = 0.04
"""By how much the object gets brighter from frame to frame."""


def realtime(n: int = N, frames: int = FRAMES, slices: int = 1, noise: float = 0.01) -> simulate.Scan:
    """Every second line, the others in every other frame, and the middle eight; the object gets brighter."""
    scan = simulate.cartesian((n, n), COILS, 1, noise=noise, repetitions=frames, slices=slices)
    items: list[Item] = []
    for item in scan.items:
        assert isinstance(item, Acquisition)
        idx = item.header["idx"]
        line, frame = int(idx["kspace_encode_step_1"]), int(idx["repetition"])
        if item.is_flag_set(Flag.IS_NOISE_MEASUREMENT):
            items.append(item)
        elif (line + frame) % 2 == 0 or abs(line - n // 2 + 0.5) < 4:
            items.append(item.with_data(item.data * np.float32(1 + GROWTH * frame)))
    return simulate.Scan(scan.header, items, scan.truth)


@pytest.fixture(scope="module")
def scan() -> simulate.Scan:
    return realtime()


@pytest.fixture(scope="module")
def descent(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Gradient descent in the guise of a VarNet."""
    return networks_small.varnet(tmp_path_factory.mktemp("varnet") / "descent.keras", cells=8, regularised=False)


@pytest.fixture(scope="module")
def random(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A VarNet with random weights."""
    return networks_small.varnet(tmp_path_factory.mktemp("varnet") / "random.keras")


def images(scan: simulate.Scan, network: str, items: list[Item] | None = None, **properties: Any) -> list[Image]:
    chosen = {"weights": network, "frames": 4, "overlap": 2, "coils": 4, **properties}
    return reconstruct(scan.items if items is None else items, "cartesian_varnet", header=scan.header, **chosen)


def test_every_frame_comes_once_as_it_was(scan: simulate.Scan, descent: str) -> None:
    found = images(scan, descent)
    assert [int(image.repetition) for image in found] == list(range(FRAMES))
    assert [int(image.image_index) for image in found] == list(range(1, FRAMES + 1))
    assert {(image.data.dtype.type, image.data.shape) for image in found} == {(np.float32, (1, 1, N, N))}
    assert {tuple(image.field_of_view) for image in found} == {(128.0, 128.0, 5.0)}
    truth = scan.truth["images"][0]
    assert max(error(image, truth) for image in found) < 0.16
    assert all(image.meta["NetworkWeights"] == "descent.keras" for image in found)
    assert all("network" in image.meta["ImageProcessingHistory"] for image in found)
    brightness = np.array([image.data.sum() for image in found])
    np.testing.assert_allclose(brightness / brightness[0], 1 + GROWTH * np.arange(FRAMES), rtol=0.02)


def test_brightness_is_that_of_the_object(scan: simulate.Scan, descent: str) -> None:
    truth = np.abs(scan.truth["images"][0] * np.linalg.norm(scan.truth["coil_maps"], axis=0)).ravel()
    (first, *_) = images(scan, descent, perform_noise_adjust=False)
    assert float(first.data.ravel() @ truth / (truth @ truth)) == pytest.approx(1, abs=0.07)  # 8 steps of descent do not suffice for more


def test_a_network_that_fails_leaves_the_images_to_cg_sense(scan: simulate.Scan, tmp_path: Path) -> None:
    network = networks_small.VarNet(1, (2, 4, 4))
    network.build((None, 4, N, N))
    network.cells[0].step.assign(np.nan)
    zeros = np.zeros((1, 1, 4, 8, 8), np.complex64)
    network((zeros[:, 0], zeros, zeros[:, :, :1], np.zeros(zeros.shape, np.float32)))
    found = images(scan, networks_small.saved(network, tmp_path / "broken.keras"))
    assert [int(image.repetition) for image in found] == list(range(FRAMES))
    assert all("NaN" in str(image.meta["NetworkFailed"]) and "NetworkWeights" not in image.meta for image in found)
    assert max(error(image, scan.truth["images"][0]) for image in found) < 0.2


def test_two_slices_an_odd_size_and_a_series_that_ends_early(random: str) -> None:
    scan = realtime(46, 6, slices=2)
    last = max(n for n, item in enumerate(scan.items) if item.header["idx"]["repetition"] == 4)  # type: ignore[attr-defined]
    found = images(scan, random, scan.items[:last])
    for slice_ in (0, 1):
        chosen = [image for image in found if image.slice == slice_]
        assert [int(image.repetition) for image in chosen] == list(range(5))
        assert {float(image.position[2]) for image in chosen} == {5.0 * slice_}
    assert {image.data.shape for image in found} == {(1, 1, 46, 46)}
    assert not any("NetworkFailed" in image.meta for image in found)


def test_frames_that_are_fewer_than_a_clip(scan: simulate.Scan, descent: str) -> None:
    three = [item for item in scan.items if item.header["idx"]["repetition"] < 3]  # type: ignore[attr-defined]
    found = images(scan, descent, three)
    assert [int(image.repetition) for image in found] == [0, 1, 2]
    assert max(error(image, scan.truth["images"][0]) for image in found) < 0.17


def test_samples_that_are_nan_count_as_missing(scan: simulate.Scan, descent: str) -> None:
    items = [item.with_data(item.data.copy()) for item in scan.items if isinstance(item, Acquisition)]
    chosen = [n for n, item in enumerate(items) if item.header["idx"]["repetition"] == 3]
    for n in chosen[::6]:
        items[n].data[:] = np.nan
    found = images(scan, descent, list(items))
    without = images(scan, descent, [item for n, item in enumerate(items) if n not in chosen[::6]])
    assert [image.data.tobytes() for image in found] == [image.data.tobytes() for image in without]
    assert max(error(image, scan.truth["images"][0]) for n, image in enumerate(found) if n != 3) < 0.17


def test_phases_of_one_repetition_are_frames_too(scan: simulate.Scan, descent: str) -> None:
    items = [item.with_data(item.data) for item in scan.items if isinstance(item, Acquisition)]
    for item in items:
        item.header["idx"]["phase"], item.header["idx"]["repetition"] = item.header["idx"]["repetition"], 0
        item.header["flags"] = int(item.header["flags"]) & Flag.IS_NOISE_MEASUREMENT.mask
    found, expected = images(scan, descent, list(items)), images(scan, descent)
    assert [int(image.phase) for image in found] == list(range(FRAMES))
    assert [image.data.tobytes() for image in found] == [image.data.tobytes() for image in expected]


@pytest.mark.parametrize("properties", [{"map_threshold": 0.05}, {"coil_maps": "espirit"}])
def test_maps_can_be_zero_outside_the_object(scan: simulate.Scan, descent: str, properties: dict[str, object]) -> None:
    truth = scan.truth["images"][0]
    (plain, *_), (cut, *_) = images(scan, descent), images(scan, descent, calibration_size=32, **properties)
    outside = np.hypot(*np.meshgrid(*[np.arange(N) - N // 2] * 2)) > 0.62 * N  # the corners
    assert plain.data[0, 0][outside].all()
    assert not cut.data[0, 0][outside].any()
    assert error(cut, truth) < 0.25


def test_errors_say_what_to_do(scan: simulate.Scan, random: str) -> None:
    for properties, message in (
        ({"weights": "inter4k_varnet_published", "frames": 24}, "VarNetRecon.*states no licence; give the path of your own copy"),
        ({"frames": 6}, "VarNetRecon.*clips of 6 frames do not fit the network; their length must be a multiple of 4"),
        ({"overlap": 4}, "VarNetRecon.*clips of 4 frames cannot overlap by 4; lower the overlap"),
    ):
        with pytest.raises(ReconstructionError, match=message):
            images(scan, random, **properties)
    mask = [item for item in scan.items if item.header["idx"]["kspace_encode_step_1"] % 2 == 0]  # type: ignore[attr-defined]
    with pytest.raises(ReconstructionError, match="centre of k-space is fully sampled"):
        images(scan, random, mask)
