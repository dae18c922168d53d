"""Images as PNG files and animations, to be looked at; measured values stay in the HDF5 file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image as Picture

from gadgets.items import Image
from gadgets.layout import ImageType

PERCENTILE = 99.5
MOSAIC_WIDTH = 2048
FRAME_MS = 80


def save_pictures(images: Iterable[Image], folder: str | Path, *, animate: bool = False) -> list[Path]:
    """Write one PNG an image and, for a series of several, a mosaic and (`animate`) a looping GIF.

    Magnitudes are shown from 0 to the series' 99.5th percentile, phase images from -pi to pi, NaN and Inf as black. Channels and
    partitions of an image lie side by side.

    Returns the files written: ``series_001_image_0001.png``, ``series_001_mosaic.png``, ``series_001.gif``, ... in ISMRMRD's
    numbering of series; images are counted from 1 in the order they came.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    series: dict[int, list[Image]] = {}
    for image in images:
        series.setdefault(int(image.image_series_index), []).append(image)
    written: list[Path] = []
    for number, members in sorted(series.items()):
        written += _save_series(members, folder, f"series_{number:03d}", animate)
    return written


def mosaic(tiles: np.ndarray) -> np.ndarray:
    """Tiles ``[n, y, x]`` -> one picture about as wide as high, rows filled from the left; empty places are 0."""
    count, ny, nx = tiles.shape
    columns = max(1, min(count, round(np.sqrt(count * ny / nx))))
    rows = -(-count // columns)
    filled = np.zeros((rows * columns, ny, nx), tiles.dtype)
    filled[:count] = tiles
    picture: np.ndarray = filled.reshape(rows, columns, ny, nx).swapaxes(1, 2).reshape(rows * ny, columns * nx)
    return picture


def _save_series(images: list[Image], folder: Path, stem: str, animate: bool) -> list[Path]:
    flat = [_flat(image) for image in images]
    low, high = _window(images, flat)
    frames = [_grey(values, low, high) for values in flat]
    written = []
    for number, frame in enumerate(frames, 1):
        written.append(_save(frame, folder / f"{stem}_image_{number:04d}.png"))
    if len(frames) > 1 and len({frame.shape for frame in frames}) == 1:
        written.append(_save(mosaic(np.stack(frames)), folder / f"{stem}_mosaic.png", MOSAIC_WIDTH))
        if animate:
            path = folder / f"{stem}.gif"
            first, *others = [Picture.fromarray(frame) for frame in frames]
            first.save(path, save_all=True, append_images=others, duration=FRAME_MS, loop=0)
            written.append(path)
    return written


def _flat(image: Image) -> np.ndarray:
    """Real values [y, x], channels and partitions side by side."""
    data = np.abs(image.data) if np.iscomplexobj(image.data) else image.data
    channels, nz, ny, nx = data.shape
    values = data.reshape(channels * nz, ny, nx).astype(np.float32)
    return mosaic(np.nan_to_num(values, nan=0, posinf=0, neginf=0))


def _window(images: list[Image], flat: list[np.ndarray]) -> tuple[float, float]:
    floating = images[0].data.dtype.kind == "f"
    if int(images[0].image_type) == ImageType.PHASE and floating:
        return -np.pi, np.pi
    high = float(np.percentile(np.concatenate([values.ravel() for values in flat]), PERCENTILE))
    return 0.0, high if high > 0 else 1.0


def _grey(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.clip((values - low) * (255 / (high - low)) + 0.5, 0, 255).astype(np.uint8)


def _save(grey: np.ndarray, path: Path, width: int | None = None) -> Path:
    picture = Picture.fromarray(grey)
    if width is not None and picture.width > width:
        picture = picture.resize((width, max(1, round(picture.height * width / picture.width))))
    picture.save(path)
    return path
