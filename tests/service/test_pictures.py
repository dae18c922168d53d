"""Pictures: windows, mosaics, series, animations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

from gadgets.items import Image
from gadgets.layout import ImageType
from service.pictures import mosaic, save_pictures


def image(data: np.ndarray, series: int = 1) -> Image:
    made = Image(None, data)
    made.header["image_series_index"] = series
    return made


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Picture.open(path))


def test_magnitudes_run_from_zero_to_the_bright_end_of_the_whole_series(tmp_path: Path) -> None:
    dark = np.full((1, 1, 20, 20), 50, np.float32)
    bright = np.full((1, 1, 20, 20), -100j, np.complex64)
    bright[0, 0, 0, 0] = 1e6  # one hot pixel must not darken the rest
    written = save_pictures([image(dark), image(np.abs(bright))], tmp_path)
    assert [path.name for path in written] == ["series_001_image_0001.png", "series_001_image_0002.png", "series_001_mosaic.png"]
    assert np.all(pixels(written[0]) == 128)
    assert np.all(pixels(written[1]) == 255)


def test_phase_images_run_from_minus_pi_to_pi(tmp_path: Path) -> None:
    phase = image(np.array([-np.pi, 0, np.pi], np.float32).reshape(1, 1, 1, 3))
    phase.header["image_type"] = ImageType.PHASE
    (path,) = save_pictures([phase], tmp_path)
    assert pixels(path).tolist() == [[0, 128, 255]]


def test_complex_integer_and_not_finite_pixels_are_shown(tmp_path: Path) -> None:
    values = np.array([3 + 4j, np.nan, np.inf, 0], np.complex64).reshape(1, 1, 2, 2)
    counts = np.array([0, 4095, 4095, 4095], np.uint16).reshape(1, 1, 2, 2)
    first, second = save_pictures([image(values, 1), image(counts, 2)], tmp_path)
    assert pixels(first).tolist() == [[255, 0], [0, 0]]
    assert pixels(second).tolist() == [[0, 255], [255, 255]]


def test_channels_and_partitions_lie_side_by_side(tmp_path: Path) -> None:
    volume = np.arange(1, 5, dtype=np.float32).reshape(2, 2, 1, 1) * np.ones((2, 2, 3, 3), np.float32)
    (path,) = save_pictures([image(volume)], tmp_path)
    shown = pixels(path)
    assert shown.shape == (6, 6)
    assert shown[0, 0] < shown[0, 5] < shown[5, 0] < shown[5, 5]


def test_images_of_different_size_get_no_mosaic(tmp_path: Path) -> None:
    written = save_pictures([image(np.ones((1, 1, n, n), np.float32)) for n in (2, 3)], tmp_path, animate=True)
    assert len(written) == 2


def test_the_animation_has_every_frame(tmp_path: Path) -> None:
    frames = [image(np.full((1, 1, 8, 8), value, np.float32)) for value in (1, 2, 3)]
    (path,) = [path for path in save_pictures(frames, tmp_path, animate=True) if path.suffix == ".gif"]
    animation = Picture.open(path)
    assert animation.n_frames == 3  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("count", "shape", "expected"), [(1, (4, 4), (4, 4)), (5, (4, 4), (12, 8)), (6, (2, 8), (12, 8)), (16, (4, 4), (16, 16))]
)
def test_mosaics_are_about_square_and_keep_the_order(count: int, shape: tuple[int, int], expected: tuple[int, int]) -> None:
    tiles = np.arange(1, count + 1)[:, None, None] * np.ones(shape, int)
    made = mosaic(tiles)
    assert made.shape == expected
    # Read tile by tile, row by row, the numbers come in order; empty places are 0.
    order = made[:: shape[0], :: shape[1]].ravel().tolist()
    assert order[:count] == list(range(1, count + 1))
    assert not any(order[count:])
