"""Contrasts of slices or of a volume with known T1, T2 and B1, sampled along any path by sums that are independent of `recon`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import finufft
import numpy as np
from scipy.ndimage import minimum_filter

from gadgets.items import Acquisition
from gadgets.layout import Flag
from tests.gadgets.readouts import make_header, noise_like, readout

FLIPS = (3.0, 6.0, 10.0, 16.0, 24.0)
ECHOES = (10.0, 25.0, 45.0, 70.0)
TR = 15.0
_GOLDEN = 111.246117975


@dataclass(eq=False)
class ContrastScan:
    """T1 (flip angles) or T2 (echoes), contrast after contrast, slice by slice.

    kind: t1 or t2; sampling: Cartesian lines, or spokes or spirals with their trajectory; shape: slices or partitions, rows, columns;
    volume: the first axis is encoded (lines: phases, else a stack); readouts: of a contrast and partition, for trajectories;
    oversampling: of the readout, whose field of view grows; noise: of a fully sampled image; varying: how much slices differ;
    relative: largest deviation of the flip angle from the nominal one, up in the middle and down at the edge; pair: nominal flip angle
    of a double-angle pair (set 1) before the contrasts of each slice, 0 for none; bands: slices excited together, each line turning
    the m-th slice of a group by m / bands, after calibration lines of each slice alone.
    """

    kind: Literal["t1", "t2"] = "t1"
    sampling: Literal["lines", "spokes", "spirals"] = "lines"
    shape: tuple[int, int, int] = (1, 32, 32)
    volume: bool = False
    readouts: int = 24
    coils: int = 4
    oversampling: int = 1
    repetitions: int = 1
    noise: float = 0.002
    varying: float = 1.0
    relative: float = 0.0
    pair: float = 0.0
    bands: int = 1

    @property
    def contrasts(self) -> int:
        return len(FLIPS if self.kind == "t1" else ECHOES)

    @cached_property
    def coordinates(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the voxels, -0.5 to 0.5."""
        z, y, x = np.mgrid[tuple(slice(n) for n in self.shape)]
        nz, ny, nx = self.shape
        return self.varying * (z - nz // 2) / max(nz, 2), y / ny - 0.5, x / nx - 0.5

    @cached_property
    def truth(self) -> np.ndarray:
        """T1 or T2 in ms `[z, y, x]`, another in every slice; 0 outside the object."""
        z, y, x = self.coordinates
        body = (y / 0.42) ** 2 + (x / 0.36) ** 2 < 1
        spot = (y + 0.14) ** 2 + (x - 0.12 + 0.2 * z) ** 2 < 0.12**2
        bar = (np.abs(y - 0.15) < 0.08) & (np.abs(x + 0.05 + 0.2 * z) < 0.16)
        values = (900.0, 1600.0, 400.0) if self.kind == "t1" else (70.0, 110.0, 35.0)
        times: np.ndarray = np.where(spot, values[1], np.where(bar, values[2], values[0])) * (1 + 0.3 * z) * body
        return times

    @cached_property
    def interior(self) -> np.ndarray:
        """Voxels among others of the same time in their plane `[z, y, x]`."""
        size = (1, 3, 3)
        inside: np.ndarray = (minimum_filter(self.truth, size) == self.truth) & (-minimum_filter(-self.truth, size) == self.truth)
        return inside & (self.truth > 0)

    @cached_property
    def b1(self) -> np.ndarray:
        """Actual over nominal flip angle `[z, y, x]`."""
        _, y, x = self.coordinates
        relative: np.ndarray = 1 + self.relative * np.cos(2.2 * np.pi * np.hypot(y, x))
        return relative

    @cached_property
    def density(self) -> np.ndarray:
        """`[z, y, x]`."""
        z, y, x = self.coordinates
        density: np.ndarray = (self.truth > 0) * (1 + 0.3 * x - 0.2 * y) * np.exp(1j * (0.5 * x - 0.8 * y + z))
        return density

    @cached_property
    def pair_images(self) -> np.ndarray:
        """Of the double-angle pair, fully relaxed, `[2, z, y, x]`."""
        return np.stack([self.density * np.sin(np.deg2rad(n * self.pair) * self.b1) for n in (1, 2)])

    @cached_property
    def images(self) -> np.ndarray:
        """`[contrast, z, y, x]`."""
        times, density = np.where(self.truth > 0, self.truth, 1), self.density
        if self.kind == "t2":
            return np.stack([density * np.exp(-echo / times) for echo in ECHOES])
        recovery = np.exp(-TR / times)
        angles = [np.deg2rad(flip) * self.b1 for flip in FLIPS]
        return np.stack([10 * density * np.sin(angle) * (1 - recovery) / (1 - np.cos(angle) * recovery) for angle in angles])

    @cached_property
    def maps(self) -> np.ndarray:
        """`[coil, z, y, x]`, unit norm."""
        z, y, x = (one[None] for one in self.coordinates)
        angle = (2 * np.pi * np.arange(self.coils) / self.coils).reshape(-1, 1, 1, 1)
        height = (np.arange(self.coils) % 2 - 0.5).reshape(-1, 1, 1, 1)
        distance = (y - 0.7 * np.sin(angle)) ** 2 + (x - 0.7 * np.cos(angle)) ** 2 + (z - height) ** 2
        maps = np.exp(-1.5 * distance + 1j * (angle + 0.5 * y - 0.4 * x + 0.3 * height * z))
        unit: np.ndarray = maps / np.sqrt((np.abs(maps) ** 2).sum(0))
        return unit

    @property
    def header(self) -> bytes:
        nz, ny, nx = self.shape
        depth = nz if self.volume else 1
        wide = nx * self.oversampling
        millimetres = (4.0 * wide, 4.0 * ny, 5.0 * depth)
        lines = ny if self.sampling == "lines" else self.readouts
        limits = {
            "kspace_encoding_step_1": (0, lines - 1, lines // 2),
            "kspace_encoding_step_2": (0, depth - 1, depth // 2),
            "contrast": (0, self.contrasts - 1, 0),
            "slice": (0, 0 if self.volume else nz - 1, 0),
            "set": (0, int(self.pair > 0), 0),
            "repetition": (0, self.repetitions - 1, 0),
        }
        across = self.sampling == "lines"
        made = make_header(
            (wide, ny if across else ny * self.oversampling, depth),
            (nx, ny, depth),
            encoded_mm=millimetres if across else (millimetres[0], 4.0 * ny * self.oversampling, millimetres[2]),
            recon_mm=(4.0 * nx, 4.0 * ny, 5.0 * depth),
            trajectory={"lines": "cartesian", "spokes": "goldenangle", "spirals": "spiral"}[self.sampling],
            limits=limits,
            te=ECHOES if self.kind == "t2" else (),
            calibration="separate" if self.bands > 1 else "",
        )
        flips = "".join(f"<flipAngle_deg>{flip}</flipAngle_deg>" for flip in FLIPS) if self.kind == "t1" else ""
        xml = made.xml.decode().replace("<sequenceParameters>", f"<sequenceParameters><TR>{TR}</TR>")
        xml = xml.replace("</sequenceParameters>", flips + "</sequenceParameters>")
        if self.pair:
            value = f"<userParameterDouble><name>double_angle_deg</name><value>{self.pair}</value></userParameterDouble>"
            xml = xml.replace("</ismrmrdHeader>", f"<userParameters>{value}</userParameters></ismrmrdHeader>")
        if self.bands > 1:
            distance = 5.0 * nz / self.bands
            multiband = (
                f"<multiband><spacing><dZ>{distance}</dZ></spacing><deltaKz>{1 / self.bands / distance!r}</deltaKz>"
                f"<multiband_factor>{self.bands}</multiband_factor></multiband></parallelImaging>"
            )
            xml = xml.replace("</parallelImaging>", multiband)
        return xml.encode()

    def paths(self, number: int) -> np.ndarray:
        """Path `[sample, (kx, ky)]` of a readout, cycles per pixel of the image."""
        _, ny, nx = self.shape
        if self.sampling == "lines":
            samples = nx * self.oversampling
            kx = (np.arange(samples) - samples // 2) / samples
            return np.stack([kx, np.full(samples, (number % ny - ny // 2) / ny)], -1)
        angle = np.deg2rad(_GOLDEN) * number
        if self.sampling == "spokes":
            samples = nx * self.oversampling
            radius = (np.arange(samples) - samples // 2) / samples
            return np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1)
        turns = nx / 2 / 8  # of eight arms that would do
        share = np.sqrt(np.linspace(0, 1, round(1.5 * self.oversampling * np.pi * turns * nx / 2)))
        k = 0.5 * share * np.exp(1j * (2 * np.pi * turns * share + angle))
        return np.stack([k.real, k.imag], -1)

    def items(self) -> list[Acquisition]:
        """All readouts, numbered from 1."""
        made = list(self._readouts())
        for number, item in enumerate(made, 1):
            item.header["scan_counter"] = number
        return made

    def _readouts(self) -> Iterator[Acquisition]:
        random = np.random.default_rng(5)
        nz, ny, _ = self.shape
        groups = 1 if self.volume else nz // self.bands
        if self.bands > 1:
            for number in range(nz):
                kspace = self._kspace(self.images[0], [number], 0)
                for line in range(ny // 2 - 8, ny // 2 + 8):
                    yield self._readout(kspace[:, 0, line], random, [Flag.IS_PARALLEL_CALIBRATION], None, number, line=line, slice=number)
        for repetition in range(self.repetitions):
            for group in range(groups):
                numbers = [group + m * groups for m in range(self.bands)]
                if self.pair:
                    for contrast, image in enumerate(self.pair_images):
                        yield from self._contrast(image, numbers, random, (), contrast=contrast, repetition=repetition, set=1)
                for contrast, image in enumerate(self.images):
                    last = [Flag.LAST_IN_SLICE] * (contrast == self.contrasts - 1 or self.volume)
                    if contrast == self.contrasts - 1 and group == groups - 1:
                        last += [Flag.LAST_IN_REPETITION]
                    yield from self._contrast(image, numbers, random, last, contrast=contrast, repetition=repetition)

    def _contrast(
        self, image: np.ndarray, numbers: list[int], random: np.random.Generator, last: Iterable[Flag], **counters: int
    ) -> Iterator[Acquisition]:
        """Of one slice, of those of a group, or of the volume. last: flags of the last readout."""
        offset = 0 if self.sampling == "lines" else counters["contrast"] * self.readouts
        kspace = self._kspace(image, numbers, offset)
        _, partitions, lines, _ = kspace.shape
        for partition, line in np.ndindex(partitions, lines):
            ends = line == lines - 1
            flags = [Flag.LAST_IN_ENCODE_STEP1] * ends + (list(last) if ends and partition == partitions - 1 else [])
            path = None if self.sampling == "lines" else self.paths(line + offset).astype(np.float32)
            where = {"line": line, "partition": partition, "slice": numbers[0]}
            yield self._readout(kspace[:, partition, line], random, flags, path, numbers[0], **where, **counters)

    def _readout(
        self, data: np.ndarray, random: np.random.Generator, flags: list[Flag], path: np.ndarray | None, number: int, **counters: int
    ) -> Acquisition:
        voxels = np.prod(self.shape[0 if self.volume else 1 :])
        noise = self.noise * (1 if path is None else np.sqrt(voxels)) * noise_like(random, *data.shape) / np.sqrt(2)
        directions = {"read_dir": (1, 0, 0), "phase_dir": (0, 1, 0), "slice_dir": (0, 0, 1)}
        fields = {"position": (0, 0, 5.0 * number), "center_sample": data.shape[1] // 2, **directions}
        return readout(data + noise, flags, trajectory=path, fields=fields, **counters)

    def _kspace(self, image: np.ndarray, numbers: list[int], offset: int) -> np.ndarray:
        """`[coil, partition, line, sample]` of an image `[z, y, x]`: orthonormal for lines, else plain sums."""
        nz, ny, _ = self.shape
        lines = ny if self.sampling == "lines" else self.readouts
        points = np.stack([self.paths(line + offset) for line in range(lines)])
        scale = 1 / np.sqrt(self.oversampling * np.prod(self.shape[0 if self.volume else 1 :])) if self.sampling == "lines" else 1.0
        weighted = image * self.maps
        parts = [weighted] if self.volume else [weighted[:, number : number + 1] for number in numbers]
        kspaces = [self._sampled(part, points.reshape(-1, 2), nz if self.volume else 1) for part in parts]
        turns = np.exp(-2j * np.pi / self.bands * np.outer(np.arange(len(parts)), np.arange(lines) - lines // 2))[:, :, None]
        shape = (self.coils, kspaces[0].shape[1], lines, -1)
        total: np.ndarray = sum(scale * one.reshape(shape) * turn for one, turn in zip(kspaces, turns, strict=True))
        return total

    def _sampled(self, images: np.ndarray, points: np.ndarray, partitions: int) -> np.ndarray:
        """`[coil, partition, sample]` of coil images `[coil, z, y, x]`, plain sums, at (kx, ky) in cycles per pixel."""
        planes = np.arange(partitions) - partitions // 2
        turned = np.exp(-2j * np.pi * np.outer(planes, planes) / partitions)
        hybrid = np.ascontiguousarray(np.einsum("kz,czyx->ckyx", turned, images)).reshape(-1, *images.shape[2:])
        kx, ky = (np.ascontiguousarray(2 * np.pi * points[:, axis]) for axis in (0, 1))
        sampled: np.ndarray = finufft.nufft2d2(ky, kx, hybrid, eps=1e-7, isign=-1, nthreads=1)
        return sampled.reshape(len(images), partitions, -1)

    def error(self, values: np.ndarray, part: int | slice = slice(None)) -> float:
        """Median absolute error in percent of a map `[y, x]` of one slice or `[z, y, x]`."""
        inside = self.interior[part]
        return float(100 * np.median(np.abs(values[inside] / self.truth[part][inside] - 1)))
