"""A simulated spiral scan in an inhomogeneous field, by direct sums over pixels, with known truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from gadgets.header import Header
from gadgets.items import Acquisition
from gadgets.layout import Flag
from tests.gadgets.scans import asymmetric_object, coil_maps, header_xml, readout, spiral

ECHO_TIMES_MS = (2.0, 4.0)  # of `header_xml`


@dataclass
class FieldScan:
    """`arms` spirals of `duration_ms` for each image; the first `discarded` samples of a readout are noise that belongs to no image."""

    n: int = 40
    coils: int = 6
    arms: int = 4
    samples: int = 640
    duration_ms: float = 12.0
    noise: float = 0.01
    discarded: int = 0
    seed: int = 0

    @property
    def header(self) -> Header:
        return Header(header_xml((self.n, self.n), trajectory="spiral", views=self.arms))

    @cached_property
    def truth(self) -> np.ndarray:
        return asymmetric_object(self.n)

    @cached_property
    def field_hz(self) -> np.ndarray:
        """-150 to 130 Hz: a bump and a slope, as over a sinus and along a shim error."""
        y, x = np.mgrid[: self.n, : self.n] / self.n - 0.5
        field: np.ndarray = 170 * np.exp(-((y + 0.2) ** 2 + (x - 0.1) ** 2) / 0.05) - 160 * x - 70
        return field

    @cached_property
    def trajectory(self) -> np.ndarray:
        return spiral(self.arms, self.n / 2 / self.arms, self.samples)

    def image(
        self,
        contrast: int = 0,
        number: int = 0,
        field: bool = True,
        last: Sequence[Flag] = (Flag.LAST_IN_SLICE,),
        flags: Sequence[Flag] = (),
        **idx: int,
    ) -> list[Acquisition]:
        """The readouts of one image; `field=False` of one in a homogeneous field."""
        rng = np.random.default_rng(self.seed + number + 1000 * contrast)
        step_us = 1000 * self.duration_ms / self.samples
        times = (self.discarded + np.arange(self.samples)) * step_us * 1e-6 + ECHO_TIMES_MS[contrast % 2] * 1e-3
        pixel = np.arange(self.n) - self.n // 2
        coil_images = (coil_maps(self.coils, self.n) * self.truth).reshape(self.coils, -1)
        result = []
        for arm, k in enumerate(self.trajectory):
            waves = np.exp(-2j * np.pi * k[:, 1, None] * pixel)[:, :, None] * np.exp(-2j * np.pi * k[:, 0, None] * pixel)[:, None]
            if field:
                waves *= np.exp(-2j * np.pi * np.multiply.outer(times, self.field_hz))
            data = coil_images @ waves.reshape(self.samples, -1).T
            data += self.n * self.noise * (rng.standard_normal(data.shape) + 1j * rng.standard_normal(data.shape)) / np.sqrt(2)
            junk = 100 * rng.standard_normal((self.coils, self.discarded))
            points = np.concatenate([np.zeros((self.discarded, 2)), k])
            end = last if arm == self.arms - 1 else ()
            one = readout(
                np.concatenate([junk, data], 1), points, number + arm, (*flags, *end), kspace_encode_step_1=arm, contrast=contrast, **idx
            )
            one.header["sample_time_us"], one.header["discard_pre"] = step_us, self.discarded
            result.append(one)
        return result


def nrmse(image: np.ndarray, truth: np.ndarray) -> float:
    """Relative l2 error of the magnitude after one scale."""
    found, true = np.abs(image).astype(float), np.abs(truth)
    factor = (found * true).sum() / (found**2).sum()
    return float(np.linalg.norm(factor * found - true) / np.linalg.norm(true))
