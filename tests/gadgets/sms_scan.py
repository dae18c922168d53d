"""A simulated scan of simultaneous slices with known truth, as readouts, by matrices written out."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from gadgets.header import Header
from gadgets.items import Acquisition
from gadgets.layout import Flag
from recon.phantoms import shepp_logan
from tests.gadgets.readouts import dft, make_header, noise_like, readout


@dataclass
class SMSScan:
    """`groups` times `factor` slices, 4 mm apart; `shift` in turns a line between neighbours of a group; `first` drops lines before it."""

    n: int = 48
    coils: int = 12
    factor: int = 2
    groups: int = 2
    acceleration: int = 1
    shift: float = 0.5
    noise: float = 0.01
    calibration_lines: int = 24
    repetitions: int = 1
    first: int = 0
    mode: str = "separate"
    in_header: bool = True

    @property
    def slices(self) -> int:
        return self.factor * self.groups

    @property
    def header(self) -> Header:
        n = self.n
        limits = {
            "kspace_encoding_step_1": (0, n - 1, n // 2),
            "slice": (0, self.slices - 1, 0),
            "repetition": (0, self.repetitions - 1, 0),
        }
        made = make_header(
            (n, n, 1), encoded_mm=(240.0, 240.0, 4.0), limits=limits, acceleration=self.acceleration, calibration=self.mode, te=(30.0,)
        )
        distance = 4.0 * self.groups
        multiband = (
            f"<multiband><spacing><dZ>{distance}</dZ></spacing><deltaKz>{self.shift / distance!r}</deltaKz>"
            f"<multiband_factor>{self.factor}</multiband_factor><calibration>separable2D</calibration>"
            "<calibration_encoding>0</calibration_encoding></multiband></parallelImaging>"
        )
        xml = made.xml.decode()
        return Header(xml.replace("</parallelImaging>", multiband) if self.in_header else xml)

    @cached_property
    def maps(self) -> np.ndarray:
        """`[slice, coil, y, x]`: coils around the object in three rings along z, unit norm."""
        y, x = np.mgrid[: self.n, : self.n] / self.n - 0.5
        z = (np.arange(self.slices) - (self.slices - 1) / 2)[:, None, None, None] / max(self.slices - 1, 1) * 0.8
        coil = np.arange(self.coils)
        angle = (2 * np.pi * coil / self.coils * 3 + 0.35 * (coil * 3 // self.coils))[:, None, None]
        height = ((coil * 3 // self.coils) - 1)[:, None, None] * 0.5
        distance = (y - 0.65 * np.sin(angle)) ** 2 + (x - 0.65 * np.cos(angle)) ** 2 + (z - height) ** 2
        maps = np.exp(1j * (angle + 1.5 * y * np.cos(angle) - 1.2 * x * np.sin(angle))) / (0.05 + distance)
        unit: np.ndarray = maps / np.sqrt((np.abs(maps) ** 2).sum(1, keepdims=True))
        return unit

    @cached_property
    def truth(self) -> np.ndarray:
        """`[slice, y, x]`, all different."""
        y, x = np.mgrid[: self.n, : self.n] / self.n - 0.5
        base = np.maximum(shepp_logan((self.n, self.n)), 0) ** 0.5
        turned = [base, base.T, base[::-1], base[:, ::-1], base.T[::-1], base.T[:, ::-1]]
        return np.stack([turned[s % 6] * (1 + 0.3 * np.cos(9 * x + s) * np.cos(7 * y - 2 * s)) for s in range(self.slices)])

    @cached_property
    def kspace(self) -> np.ndarray:
        """Of each slice alone `[slice, coil, ky, kx]`, without noise."""
        transform = dft(self.n)
        spectrum: np.ndarray = transform @ (self.maps * self.truth[:, None]) @ transform.T
        return spectrum

    def calibration(self, slices: range | None = None) -> list[Acquisition]:
        rng = np.random.default_rng(1)
        first = (self.n - self.calibration_lines) // 2
        return [
            self._readout(self.kspace[s, :, line], rng, s, line, [Flag.IS_PARALLEL_CALIBRATION], position=s)
            for s in (slices or range(self.slices))
            for line in range(first, first + self.calibration_lines)
        ]

    def images(self, repetition: int = 0, only: int | None = None) -> list[Acquisition]:
        """The readouts of a repetition: every `acceleration`-th line of each group, of all its slices or only of its m-th."""
        rng = np.random.default_rng(100 + repetition)
        center = self.n // 2
        lines = [line for line in range(self.first, self.n) if (line - center) % self.acceleration == 0]
        result = []
        for group in range(self.groups):
            for line in lines:
                turns = self.shift * (line - center) / self.acceleration
                data = sum(
                    np.exp(-2j * np.pi * m * turns) * self.kspace[group + m * self.groups, :, line]
                    for m in range(self.factor)
                    if only in (None, m)
                )
                flags = [Flag.LAST_IN_SLICE] if line == lines[-1] else []
                if line == lines[-1] and group == self.groups - 1:
                    flags += [Flag.LAST_IN_REPETITION]
                result.append(self._readout(data, rng, group, line, flags, position=group, repetition=repetition))
        return result

    def items(self) -> list[Acquisition]:
        return self.calibration() + [one for repetition in range(self.repetitions) for one in self.images(repetition)]

    def _readout(
        self, data: np.ndarray, rng: np.random.Generator, number: int, line: int, flags: list[Flag], position: int, repetition: int = 0
    ) -> Acquisition:
        noisy = data + self.noise * noise_like(rng, *data.shape) / np.sqrt(2)
        fields = {"position": (1.0, 2.0, 4.0 * position), "slice_dir": (0, 0, 1), "acquisition_time_stamp": 500 + repetition}
        return readout(noisy, flags, fields=fields, line=line, slice=number, repetition=repetition)
