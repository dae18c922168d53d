"""Objects with known truth: Shepp-Logan, a moving heart, birdcage coils."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Modified Shepp-Logan (Toft 1996): value, half axes x and y, centre x and y, angle in degrees; y points up.
_ELLIPSES = (
    (1.0, 0.69, 0.92, 0.0, 0.0, 0.0),
    (-0.8, 0.6624, 0.874, 0.0, -0.0184, 0.0),
    (-0.2, 0.11, 0.31, 0.22, 0.0, -18.0),
    (-0.2, 0.16, 0.41, -0.22, 0.0, 18.0),
    (0.1, 0.21, 0.25, 0.0, 0.35, 0.0),
    (0.1, 0.046, 0.046, 0.0, 0.1, 0.0),
    (0.1, 0.046, 0.046, 0.0, -0.1, 0.0),
    (0.1, 0.046, 0.023, -0.08, -0.605, 0.0),
    (0.1, 0.023, 0.023, 0.0, -0.606, 0.0),
    (0.1, 0.023, 0.046, 0.06, -0.605, 0.0),
)


def shepp_logan(shape: Sequence[int] = (256, 256)) -> np.ndarray:
    """Modified Shepp-Logan head phantom, float32 `[y, x]`, values 0 to 1."""
    y, x = _grid(shape)
    image = np.zeros(tuple(shape), np.float32)
    for value, width, height, centre_x, centre_y, angle in _ELLIPSES:
        image[_ellipse(-y, x, centre_y, centre_x, height, width, np.deg2rad(angle))] += value
    return image.clip(0)


def moving_heart(shape: Sequence[int] = (128, 128), time: float = 0.0, period: float = 800.0) -> np.ndarray:
    """A slice through a chest with a beating, shifting heart, float32 `[y, x]`, values 0 to 1.

    The left ventricle contracts once per `period`, its wall thickens, the heart and the front of the chest move with
    breathing (five periods). The edges move continuously, so frames at any times differ.

    Args:
        shape: pixels (y, x).
        time: in ms.
        period: of the heartbeat, in ms.
    """
    y, x = _grid(shape)
    beat = 0.5 - 0.5 * np.cos(2 * np.pi * time / period)
    breath = np.sin(2 * np.pi * time / (5 * period))
    edge = 2 / min(shape)

    def disc(centre_y: float, centre_x: float, height: float, width: float) -> np.ndarray:
        # A ramp of one pixel instead of a step, so that slow motion shows.
        distance = 1 - np.hypot((y - centre_y) / height, (x - centre_x) / width)
        covered: np.ndarray = np.clip(0.5 + distance * min(height, width) / edge, 0, 1)
        return covered

    image = np.zeros(tuple(shape))

    def paint(cover: np.ndarray, value: float) -> None:
        image[:] = (1 - cover) * image + cover * value

    heart_y, heart_x = -0.1 + 0.04 * breath, 0.15
    paint(disc(0, 0, 0.70 + 0.02 * breath, 0.88), 0.45)
    paint(disc(-0.02, -0.42, 0.46, 0.32), 0.08)
    paint(disc(-0.02, 0.46, 0.46, 0.30), 0.08)
    paint(disc(0.52, 0.0, 0.12, 0.12), 0.25)
    paint(disc(heart_y, heart_x - 0.2, 0.22 - 0.04 * beat, 0.16 - 0.04 * beat), 0.85)
    paint(disc(heart_y, heart_x, 0.30 - 0.03 * beat, 0.27 - 0.03 * beat), 0.4)
    paint(disc(heart_y, heart_x, 0.21 - 0.09 * beat, 0.18 - 0.08 * beat), 1.0)
    paint(disc(heart_y + 0.06, heart_x + 0.10 - 0.05 * beat, 0.035, 0.035), 0.4)
    return image.astype(np.float32)


def birdcage_coils(coils: int, shape: Sequence[int], radius: float = 1.5) -> np.ndarray:
    """Sensitivities of straight wires on a cylinder around the object.

    The field of coil c at `(y, x)` falls with the distance from its place at angle 2 pi c / `coils` on a circle of
    `radius` half fields of view; the phase turns around the coil and from coil to coil.

    Returns:
        complex64 `[coil, y, x]` with sum |s|^2 = 1 over the coils.
    """
    y, x = _grid(shape)
    angle = (2 * np.pi / coils * np.arange(coils))[:, None, None]
    dy, dx = y - radius * np.sin(angle), x - radius * np.cos(angle)
    # Cylindrical symmetry: the phase in the coil's own frame is measured from the axis towards the centre.
    along, across = dx * np.cos(angle) + dy * np.sin(angle), -dx * np.sin(angle) + dy * np.cos(angle)
    maps = np.exp(1j * (np.arctan2(across, -along) - angle)) / np.hypot(dx, dy)
    normalised: np.ndarray = (maps / np.sqrt((np.abs(maps) ** 2).sum(0))).astype(np.complex64)
    return normalised


def _grid(shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates y and x from -1 to 1, zero at index n // 2."""
    rows, columns = shape
    y = (np.arange(rows) - rows // 2) / (rows / 2)
    x = (np.arange(columns) - columns // 2) / (columns / 2)
    return y[:, None], x[None, :]


def _ellipse(y: np.ndarray, x: np.ndarray, centre_y: float, centre_x: float, height: float, width: float, angle: float) -> np.ndarray:
    cosine, sine = np.cos(angle), np.sin(angle)
    along = (x - centre_x) * cosine + (y - centre_y) * sine
    across = -(x - centre_x) * sine + (y - centre_y) * cosine
    inside: np.ndarray = (along / width) ** 2 + (across / height) ** 2 <= 1
    return inside
