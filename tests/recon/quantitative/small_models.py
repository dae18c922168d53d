"""Signal models written out for the tests of the solvers, and a phantom of piecewise constant maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from recon.quantitative.model import SignalModel, Unknown


class FlipAngles(SignalModel):
    """Spoiled gradient echoes of several flip angles: M0 sin a (1 - E1) / (1 - E1 cos a)."""

    name = "flips"

    def __init__(self, flips: Sequence[float] = (2, 4, 8, 14, 20), tr: float = 10.0) -> None:
        unknowns = [Unknown("M0", "", 0, 100, 1, real=False, amplitude=True), Unknown("T1", "ms", 50, 5500, 1500)]
        super().__init__(unknowns, len(flips))
        self.flips, self.tr = np.deg2rad(np.asarray(flips, float)), tr

    def signal(self, unknowns: Sequence[Any]) -> Any:
        import tensorflow as tf

        m0, t1 = unknowns
        angles = self.flips.reshape(-1, *[1] * t1.shape.rank)
        recovered = tf.exp(-self.tr / t1)
        steady = tf.constant(np.sin(angles), t1.dtype) * (1 - recovered) / (1 - recovered * tf.constant(np.cos(angles), t1.dtype))
        return m0 * tf.cast(steady, m0.dtype)


class Decay(SignalModel):
    """Exponential decay M0 exp(-t R), t in ms, R in 1/ms; `offset` multiplies the signal per voxel, where given."""

    name = "decay"

    def __init__(self, times: Sequence[float] = (5, 15, 30, 50, 80), gain: np.ndarray | None = None) -> None:
        unknowns = [Unknown("M0", "", 0, 100, 1, real=False, amplitude=True), Unknown("R", "1/ms", 1e-4, 0.5, 0.02)]
        super().__init__(unknowns, len(times), {} if gain is None else {"gain": gain})
        self.times = np.asarray(times, float)

    def signal(self, unknowns: Sequence[Any]) -> Any:
        import tensorflow as tf

        m0, rate = unknowns
        size = tf.exp(-tf.constant(self.times.reshape(-1, *[1] * rate.shape.rank), rate.dtype) * rate)
        if "gain" in self.fields:
            size *= tf.cast(self.fields["gain"], rate.dtype)
        return m0 * tf.cast(size, m0.dtype)


class LookLocker(SignalModel):
    """Inversion recovery read by small flips: A - (A + B) exp(-t / T1*), all real in magnitude, A and B complex."""

    name = "looklocker"

    def __init__(self, times: Sequence[float] = (20, 120, 300, 600, 1000, 1600, 2500)) -> None:
        unknowns = [
            Unknown("A", "", 0, 100, 0.8, real=False, amplitude=True),
            Unknown("B", "", 0, 100, 0.8, real=False, amplitude=True),
            Unknown("T1star", "ms", 20, 5000, 600),
        ]
        super().__init__(unknowns, len(times))
        self.times = np.asarray(times, float)

    def signal(self, unknowns: Sequence[Any]) -> Any:
        import tensorflow as tf

        steady, inverted, t1 = unknowns
        decay = tf.exp(-tf.constant(self.times.reshape(-1, *[1] * t1.shape.rank), t1.dtype) / t1)
        return steady - (steady + inverted) * tf.cast(decay, steady.dtype)


class Series(SignalModel):
    """Each contrast is its own unknown."""

    name = "series"

    def __init__(self, frames: int) -> None:
        super().__init__([Unknown(f"x{n}", "", 0, 10, 0.5, real=False, amplitude=True) for n in range(frames)], frames)

    def signal(self, unknowns: Sequence[Any]) -> Any:
        import tensorflow as tf

        return tf.stack(list(unknowns))


def tubes(size: int = 48) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Complex M0 and T1 in ms `[y, x]` of a body with four tubes, and a mask of pixels away from edges."""
    y, x = np.mgrid[:size, :size] / (size / 2) - 1
    label = np.where(np.hypot(y, x) < 0.85, 1, 0)
    for n, (row, column) in enumerate([(-0.35, -0.35), (-0.35, 0.35), (0.35, -0.35), (0.35, 0.35)]):
        label[np.hypot(y - row, x - column) < 0.24] = 2 + n
    t1 = np.array([1000.0, 1000, 300, 600, 1600, 2600])[label]
    m0 = np.array([0.0, 1, 0.8, 0.9, 0.7, 0.95])[label] * np.exp(1j * (0.5 + 0.8 * x - 0.4 * y))
    inside = label > 0
    for axis in (0, 1):
        for shift in (-1, 1):
            inside &= np.roll(label, shift, axis) == label
    return m0, t1, inside


def add_noise(data: np.ndarray, deviation: float, seed: int = 0) -> np.ndarray:
    """Complex normal noise of this standard deviation in each of real and imaginary part."""
    random = np.random.default_rng(seed)
    return data + deviation * (random.standard_normal(data.shape) + 1j * random.standard_normal(data.shape))
