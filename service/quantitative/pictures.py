"""Maps as pictures with a colour bar."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from service.pictures import mosaic

_EDGE = 384
"""Maps are enlarged by whole factors up to about so many pixels, so that the numbers of the bar can be read."""
_COLOURS = (
    (68, 1, 84), (71, 44, 122), (59, 81, 139), (44, 113, 142), (33, 144, 141), (39, 173, 129), (92, 200, 99), (170, 220, 50),
    (253, 231, 37),
)  # fmt: skip
"""Viridis at even steps: as bright as the value is large, for eyes that do not tell red from green too."""
_BAR, _MARGIN, _HEAD, _TICKS = 14, 8, 18, 4


def save_map(path: Path, values: np.ndarray, name: str, unit: str, mask: np.ndarray) -> None:
    """Write a map `[z, y, x]`, slices side by side, with name, unit and a bar from 0 (or the lowest value) to the 99th percentile.

    Voxels outside the mask are black.
    """
    inside = values[mask & np.isfinite(values)]
    high = float(np.percentile(inside, 99)) if inside.size else 1.0
    low = min(0.0, float(np.percentile(inside, 1))) if inside.size else 0.0
    high = high if high > low else low + 1.0
    share = np.clip((np.nan_to_num(values) - low) / (high - low), 0, 1)
    pixels = _coloured(mosaic(share))
    pixels[~mosaic(mask)] = 0
    factor = max(1, _EDGE // max(pixels.shape[:2]))
    picture = Image.fromarray(pixels.repeat(factor, 0).repeat(factor, 1))
    font = ImageFont.load_default(12)
    ticks = [low + (high - low) * n / _TICKS for n in range(_TICKS + 1)]
    labels = [f"{tick:.0f}" if 1000 <= abs(tick) < 1e5 else f"{tick:.3g}" for tick in ticks]
    room = max(font.getlength(label) for label in labels)
    height = max(picture.height, 100)
    width = picture.width + 3 * _MARGIN + _BAR + int(room) + 4
    sheet = Image.new("RGB", (width, height + 2 * _MARGIN + _HEAD), "black")
    sheet.paste(picture, (0, _HEAD + _MARGIN))
    draw = ImageDraw.Draw(sheet)
    draw.text((4, 4), f"{name} [{unit}]" if unit else name, fill="white", font=font)
    ramp = _coloured(np.linspace(1, 0, height)[:, None].repeat(_BAR, 1))
    left, top = picture.width + _MARGIN, _HEAD + _MARGIN
    sheet.paste(Image.fromarray(ramp), (left, top))
    for n, label in enumerate(labels):
        y = top + (height - 1) * (1 - n / _TICKS)
        draw.line([(left + _BAR, y), (left + _BAR + 3, y)], fill="white")
        draw.text((left + _BAR + 6, y - 7), label, fill="white", font=font)
    sheet.save(path)


def _coloured(share: np.ndarray) -> np.ndarray:
    """RGB of values 0 to 1, `[y, x, 3]`."""
    anchors = np.linspace(0, 1, len(_COLOURS))
    channels = [np.interp(share, anchors, column) for column in np.array(_COLOURS).T]
    pixels: np.ndarray = np.stack(channels, -1).round().astype(np.uint8)
    return pixels
