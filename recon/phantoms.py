"""Objects with known truth: Shepp-Logan and its variants, a moving heart, relaxation vials; birdcage coils."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from recon.ellipsoids import Ellipsoid, rasterise

PhantomKind = Literal["shepp_logan", "modified_shepp_logan", "kak_roberts", "modified_kak_roberts", "koay_sarlls_ozarslan"]

# Columns: values of the original and of the contrast-enhanced variant, half axes, centre, angle in degrees.
_ELLIPSES = (
    (1.0, 1.0, (0.92, 0.69), (0.0, 0.0), 0.0),
    (-0.98, -0.8, (0.874, 0.6624), (0.0184, 0.0), 0.0),
    (-0.02, -0.2, (0.31, 0.11), (0.0, 0.22), 18.0),
    (-0.02, -0.2, (0.41, 0.16), (0.0, -0.22), -18.0),
    (0.01, 0.1, (0.25, 0.21), (-0.35, 0.0), 0.0),
    (0.01, 0.1, (0.046, 0.046), (-0.1, 0.0), 0.0),
    (0.01, 0.1, (0.046, 0.046), (0.1, 0.0), 0.0),
    (0.01, 0.1, (0.023, 0.046), (0.605, -0.08), 0.0),
    (0.01, 0.1, (0.023, 0.023), (0.606, 0.0), 0.0),
    (0.01, 0.1, (0.046, 0.023), (0.605, 0.06), 0.0),
)
_ELLIPSOIDS = (
    (2.0, 2.0, (0.9, 0.92, 0.69), (0.0, 0.0, 0.0), 0.0),
    (-0.98, -0.8, (0.88, 0.874, 0.6624), (0.0, 0.0, 0.0), 0.0),
    (-0.02, -0.2, (0.21, 0.16, 0.41), (-0.25, 0.0, -0.22), -108.0),
    (-0.02, -0.2, (0.22, 0.11, 0.31), (-0.25, 0.0, 0.22), -72.0),
    (0.02, 0.2, (0.5, 0.25, 0.21), (-0.25, -0.35, 0.0), 0.0),
    (0.02, 0.2, (0.046, 0.046, 0.046), (-0.25, -0.1, 0.0), 0.0),
    (0.01, 0.1, (0.02, 0.023, 0.046), (-0.25, 0.65, -0.08), 0.0),
    (0.01, 0.1, (0.02, 0.023, 0.046), (-0.25, 0.65, 0.06), -90.0),
    (0.02, 0.2, (0.1, 0.04, 0.056), (0.625, 0.105, 0.06), -90.0),
    (-0.02, -0.2, (0.1, 0.056, 0.056), (0.625, -0.1, 0.0), 0.0),
)
_TABLES = {
    ("shepp_logan", 2): (_ELLIPSES, 0),
    ("modified_shepp_logan", 2): (_ELLIPSES, 1),
    ("shepp_logan", 3): (_ELLIPSOIDS, 0),
    ("modified_shepp_logan", 3): (_ELLIPSOIDS, 1),
    ("kak_roberts", 3): (_ELLIPSOIDS, 0),
    ("modified_kak_roberts", 3): (_ELLIPSOIDS, 1),
    ("koay_sarlls_ozarslan", 3): (_ELLIPSOIDS, 1),
}

# T1, T2, T2* in ms of the vials, about those of tissues from fat to fluid at 3 T.
_VIALS = (
    (350.0, 50.0, 25.0),
    (500.0, 40.0, 20.0),
    (650.0, 60.0, 35.0),
    (800.0, 35.0, 22.0),
    (850.0, 75.0, 50.0),
    (1050.0, 45.0, 28.0),
    (1200.0, 55.0, 33.0),
    (1350.0, 95.0, 60.0),
    (1600.0, 110.0, 70.0),
    (1900.0, 160.0, 90.0),
    (2400.0, 250.0, 130.0),
    (3000.0, 500.0, 200.0),
)


def phantom_ellipsoids(kind: PhantomKind = "modified_shepp_logan", axes: int = 2) -> list[Ellipsoid]:
    """The ellipses or ellipsoids of a head phantom, for `recon.ellipsoids`.

    ``shepp_logan``: Shepp and Logan, IEEE Trans. Nucl. Sci. 21 (1974); ``modified_shepp_logan``: its variant of higher
    contrast, Toft (1996). In three dimensions ``kak_roberts`` (Kak and Slaney 1988) and ``modified_kak_roberts``, also
    called ``koay_sarlls_ozarslan`` (Koay, Sarlls, Özarslan, Magn. Reson. Med. 58 (2007)); the first two names then mean these.

    Args:
        kind: see above.
        axes: 2 or 3.

    Raises:
        ValueError: there is no such phantom.
    """
    if (kind, axes) not in _TABLES:
        known = ", ".join(name for name, count in _TABLES if count == axes) or "none"
        raise ValueError(f"phantom {kind!r} with {axes} axes: expected one of {known}")
    rows, column = _TABLES[kind, axes]
    return [Ellipsoid(row[column], half_axes, centre, angle) for *row, half_axes, centre, angle in rows]  # type: ignore[misc]


def phantom(kind: PhantomKind = "modified_shepp_logan", shape: Sequence[int] = (256, 256), oversampling: int = 1) -> np.ndarray:
    """Image of a head phantom, float32 `[(z,) y, x]`. See `phantom_ellipsoids` for the kinds, `rasterise` for the grid.

    Raises:
        ValueError: there is no such phantom for the number of axes.
    """
    return rasterise(phantom_ellipsoids(kind, len(shape)), shape, oversampling)


def shepp_logan(shape: Sequence[int] = (256, 256)) -> np.ndarray:
    """Modified Shepp-Logan head phantom, float32 `[y, x]`, values 0 to 1."""
    return phantom("modified_shepp_logan", shape).clip(0)


@dataclass(frozen=True)
class RelaxationVials:
    """Truth of a phantom of vials; all maps have the shape of the image and are 0 outside the vials.

    Args:
        labels: 0 outside, then the number of the vial from 1.
        proton_density: 1 inside.
        t1: in ms.
        t2: in ms.
        t2_star: in ms, shorter than `t2`.
    """

    labels: np.ndarray
    proton_density: np.ndarray
    t1: np.ndarray
    t2: np.ndarray
    t2_star: np.ndarray


def relaxation_vials(shape: Sequence[int] = (128, 128), times: Sequence[tuple[float, float, float]] = _VIALS) -> RelaxationVials:
    """Round vials of known relaxation times: the first third of them on an inner ring, the others on an outer ring.

    Args:
        shape: pixels ([z,] y, x); in three dimensions the vials are tubes along z.
        times: (T1, T2, T2*) in ms of each vial; by default twelve, T1 from 350 to 3000 ms and T2 from 35 to 500 ms.

    Returns:
        Maps of `shape`, float32 (labels uint8).

    Raises:
        ValueError: not two or three axes, no vials or too many, or times that are not positive.
    """
    if len(shape) not in (2, 3):
        raise ValueError(f"shape {tuple(shape)}: expected ([z,] y, x)")
    if not 1 <= len(times) <= 255 or not np.all(np.asarray(times, float) > 0) or np.shape(times)[1:] != (3,):
        raise ValueError(f"times: expected 1 to 255 triples of T1, T2, T2* > 0 ms, got {times}")
    inner = len(times) // 3
    labels = np.zeros(tuple(shape), np.uint8)
    y, x = _grid(shape[-2:])
    for first, last, ring in ((0, inner, 0.33), (inner, len(times), 0.72)):
        count = last - first
        # Neighbours keep a third of their distance free.
        radius = min(0.14, 0.65 * ring * math.sin(math.pi / max(count, 2)))
        for index in range(count):
            angle = 2 * math.pi * index / count
            vial = np.hypot(y - ring * math.sin(angle), x - ring * math.cos(angle)) <= radius
            labels[..., vial] = first + index + 1
    values = np.vstack([np.zeros(3), times]).astype(np.float32)
    t1, t2, t2_star = (values[:, column][labels] for column in range(3))
    return RelaxationVials(labels, (labels > 0).astype(np.float32), t1, t2, t2_star)


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


def birdcage_coils(coils: int, shape: Sequence[int], radius: float = 1.5, rings: int = 4) -> np.ndarray:
    """Sensitivities of straight wires on a cylinder around the object, as in sigpy and TensorFlow MRI.

    The field of coil c at `(y, x)` falls with the distance from its place at angle 2 pi c / `coils` on a circle of
    `radius` half fields of view; the phase turns around the coil and from coil to coil. In three dimensions the coils
    form up to `rings` such circles, one half field of view apart along z.

    Args:
        coils: how many.
        shape: pixels ([z,] y, x).
        radius: of the circle, in half fields of view.
        rings: circles of coils along z, in three dimensions.

    Returns:
        complex64 `[coil, (z,) y, x]` with sum |s|^2 = 1 over the coils.

    Raises:
        ValueError: not two or three axes, or fewer than one coil or ring.
    """
    if len(shape) not in (2, 3) or coils < 1 or rings < 1:
        raise ValueError(f"birdcage_coils: {coils} coils in {rings} rings for the shape {tuple(shape)}, expected ([z,] y, x)")
    a_ring = coils if len(shape) == 2 else math.ceil(coils / rings)
    index = np.arange(coils).reshape(-1, *[1] * len(shape))
    ring = index // a_ring
    angle = 2 * np.pi / a_ring * index
    *depth, y, x = _grid(shape)
    dy, dx = y - radius * np.sin(angle), x - radius * np.cos(angle)
    dz = depth[0] - (ring - (math.ceil(coils / a_ring) - 1) / 2) if depth else 0.0
    maps = np.exp(1j * (np.arctan2(dx, -dy) - angle - 2 * np.pi / a_ring * ring)) / np.sqrt(dx**2 + dy**2 + dz**2)
    normalised: np.ndarray = (maps / np.sqrt((np.abs(maps) ** 2).sum(0))).astype(np.complex64)
    return normalised


def _grid(shape: Sequence[int]) -> list[np.ndarray]:
    """Coordinates of each axis from -1 to 1, zero at index n // 2, shaped to be combined."""
    return list(np.meshgrid(*((np.arange(n) - n // 2) / (n / 2) for n in shape), indexing="ij", sparse=True))
