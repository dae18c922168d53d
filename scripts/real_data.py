"""Compare reconstructions on public raw data, as tables in Markdown.

    python scripts/real_data.py FOLDER [--pictures FOLDER] [--json OUT.json]

FOLDER holds ISMRMRD files: cartesian_brain_8ch.h5 (fully sampled slice), radial_phantom_4ch.h5 (256 spokes), and
radial_cardiac_12ch_25spokes.h5 and spiral_cardiac_8ch.h5 (undersampled as they are); files that are missing are left out.

Weights are the chains' defaults, not tuned to the truth. Where there is a truth, the fully sampled image, the figure is the NRMSE of
magnitudes within the object. Where there is none, part of the samples is held out, and the figure is the relative error, weighted by
density, at which they are predicted from the image of the others.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recon import device  # before NumPy's OpenMP libraries: sets the waiting policy

import numpy as np  # isort: skip

from gadgets.items import Acquisition
from gadgets.layout import Flag
from recon import grappa
from recon.cartesian_centre import cartesian_centre, dense_edge
from recon.cartesian_sampling import regular_mask
from recon.coarse_maps import coarse_maps
from recon.coils import walsh
from recon.compressed_sensing import l1_wavelet, total_generalised_variation, total_variation
from recon.density import pipe_weights, radial_weights
from recon.espirit import espirit
from recon.filters import reference_window
from recon.fourier import fftc, ifftc
from recon.least_squares import adjoint, least_squares
from recon.operators.encoding import Encoding
from recon.sense import cg_sense, gridding
from recon.spirit import spirit
from service.files import read_measurement

CENTRE = 24
"""Lines of the calibration region."""
WEIGHT = 0.002
"""Of compressed sensing, see `recon.compressed_sensing`."""


@dataclass
class Table:
    """Figures of the methods whose names start with one of `methods`; images to look at, by name."""

    title: str
    columns: list[str]
    methods: Sequence[str] = ("",)
    rows: dict[str, list[float]] = field(default_factory=dict)
    images: dict[str, np.ndarray] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def add(self, name: str, column: int, run: Callable[[], np.ndarray], figure: Callable[[np.ndarray], float]) -> None:
        """Reconstruct, time and judge, if the method is wanted."""
        if not name.startswith(tuple(self.methods)):
            return
        begin = time.process_time()
        image = run()
        self.seconds[name] = time.process_time() - begin
        row = self.rows.setdefault(name, [float("nan")] * len(self.columns))
        row[column] = figure(image)
        self.images[f"{name}, {self.columns[column]}"] = np.abs(image)

    def markdown(self) -> str:
        """The table, and CPU seconds of the last column."""
        lines = [f"{self.title}\n", f"| method | {' | '.join(self.columns)} | CPU s |", "|---" * (len(self.columns) + 2) + "|"]
        for name, row in self.rows.items():
            cells = " | ".join("-" if np.isnan(value) else f"{value:.3f}" for value in row)
            lines.append(f"| {name} | {cells} | {self.seconds[name]:.1f} |")
        return "\n".join(lines)


def brain(path: Path, methods: Sequence[str] = ("",)) -> Table:
    """Three of four lines left out: at random, more of them outside, or regularly with calibration lines (net R = 3)."""
    order = sorted(_readouts(path), key=lambda readout: int(readout.header["idx"]["kspace_encode_step_1"]))
    full = np.stack([readout.data for readout in order], axis=1)
    rows, samples = full.shape[1:]
    maps = _calibrated(full)
    reference = np.abs((maps.conj() * ifftc(full, (-2, -1))).sum(0))
    inside = np.abs(maps).sum(0) > 0
    table = Table(
        "Brain, 8 channels, 230 × 180, retrospectively undersampled: NRMSE", ["random lines, R = 4", "every 4th line + 24, R = 3.0"]
    )
    regular = regular_mask((rows,), (4,), (CENTRE,))
    for column, lines in enumerate((random_lines(rows, rows // 4), regular)):
        _brain(table, column, np.where(lines[:, None], full, 0), lines, lambda image: _magnitude_error(reference, image, inside))
    lattice = regular_mask((rows,), (4,))

    def unaliased() -> np.ndarray:
        centre = full[:, None, rows // 2 - CENTRE // 2 : rows // 2 + CENTRE // 2]
        kernel = grappa.calibrate(centre, acceleration=(1, 4), kernel_size=(1, 4, 5))
        one = np.ones((1, 1, rows, samples), np.complex64)
        folded = np.where(lattice[:, None], full, 0)[:, None]
        coils = np.stack([grappa.reconstruct(folded, grappa.unmixing(part[None], one))[0] for part in kernel])
        kept = np.where(regular[:, None], full, fftc(coils, (-2, -1)))
        image: np.ndarray = (_calibrated(full).conj() * ifftc(kept, (-2, -1))).sum(0)
        return image

    table.add("GRAPPA", 1, unaliased, lambda image: _magnitude_error(reference, image, inside))
    table.images["fully sampled"] = reference
    return table


def _brain(table: Table, column: int, kspace: np.ndarray, lines: np.ndarray, figure: Callable[[np.ndarray], float]) -> None:
    rows, samples = kspace.shape[1:]
    centre = kspace[:, rows // 2 - CENTRE // 2 : rows // 2 + CENTRE // 2]
    mask = np.broadcast_to(lines[:, None], (rows, samples))
    maps, coarse = _calibrated(kspace), _low_resolution_maps(centre, kspace.shape)

    def add(name: str, run: Callable[[], np.ndarray]) -> None:
        table.add(name, column, run, figure)

    def filled() -> np.ndarray:
        result: np.ndarray = (maps.conj() * ifftc(spirit(kspace, mask, (CENTRE, samples)), (-2, -1))).sum(0)
        return result

    add("zero-filled", lambda: adjoint(kspace, maps, mask=mask))
    add("SPIRiT", filled)
    for name, those in (("Walsh", coarse), ("ESPIRiT", maps)):
        add(f"CG-SENSE, {name} maps", lambda those=those: least_squares(kspace, those, mask=mask, iterations=20, regularisation=0.03))
        add(f"L1-wavelet, {name} maps", lambda those=those: l1_wavelet(kspace, those, mask=mask, weight=WEIGHT))
        add(f"TV, {name} maps", lambda those=those: total_variation(kspace, those, mask=mask, weight=WEIGHT))
    add("TGV, ESPIRiT maps", lambda: total_generalised_variation(kspace, maps, mask=mask, weight=WEIGHT))


def _calibrated(kspace: np.ndarray) -> np.ndarray:
    """ESPIRiT's maps from the central lines."""
    maps: np.ndarray = espirit(kspace, calibration=(CENTRE, kspace.shape[-1]))
    return maps


def _low_resolution_maps(centre: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Walsh's maps from the calibration lines, tapered."""
    rows = shape[1]
    low = np.zeros(shape, centre.dtype)
    low[:, rows // 2 - CENTRE // 2 : rows // 2 + CENTRE // 2] = centre * reference_window(CENTRE, 0, CENTRE - 1)[:, None]
    maps: np.ndarray = walsh(ifftc(low, (-2, -1)), 7)
    return maps


def random_lines(rows: int, count: int) -> np.ndarray:
    """The central lines, and others, fewer towards the border."""
    lines = np.zeros(rows, bool)
    lines[rows // 2 - CENTRE // 2 : rows // 2 + CENTRE // 2] = True
    odds = np.exp(-((np.arange(rows) - rows / 2) ** 2) / (2 * (rows / 5) ** 2)) * ~lines
    lines[np.random.default_rng(3).choice(rows, count - CENTRE, replace=False, p=odds / odds.sum())] = True
    return lines


def phantom(path: Path, methods: Sequence[str] = ("",), counts: Sequence[int] = (64, 43)) -> Table:
    """Every n-th spoke against all of them, each coil by least squares and the root of their sum of squares."""
    data, spokes = _non_cartesian(path)
    shape = (256, 256)
    each = cg_sense(data.reshape(len(data), 1, -1), spokes.reshape(-1, 2), np.ones((1, *shape), np.complex64), 15, 0, 0.01)
    reference = np.sqrt((np.abs(each) ** 2).sum(0))
    inside = reference > 0.05 * reference.max()
    table = Table("Bottle phantom, 4 channels, 256 × 256, of 256 spokes: NRMSE", [f"{count} spokes" for count in counts], methods)
    for column, count in enumerate(counts):
        chosen = np.round(np.arange(count) * len(spokes) / count).astype(int)
        samples = data[:, chosen].reshape(len(data), -1), spokes[chosen].reshape(-1, 2)
        weights = radial_weights(spokes[chosen], shape).reshape(-1)
        for name, run in _methods(*samples, weights, shape, count).items():
            table.add(name, column, run, lambda image: _magnitude_error(reference, image, inside, scale=True))
    table.images["256 spokes"] = reference
    return table


def radial_cardiac(path: Path, methods: Sequence[str] = ("",)) -> Table:
    """Every 5th of 25 spokes held out."""
    data, spokes = _non_cartesian(path)
    held = np.zeros(spokes.shape[:2], bool)
    held[2::5] = True
    return _held_out("Heart, 12 channels, 25 spokes: 5 predicted by the other 20, relative error", data, spokes, held, (256, 256), methods)


def spiral_cardiac(path: Path, methods: Sequence[str] = ("",), length: int = 40, share: float = 0.2) -> Table:
    """Pieces of the interleaves held out, `length` samples each, outside the centre."""
    data, spiral = _non_cartesian(path)
    random = np.random.default_rng(0)
    radius = np.linalg.norm(spiral, axis=-1)
    pieces = random.uniform(size=(len(spiral), -(-spiral.shape[1] // length))) < share
    held = np.repeat(pieces, length, axis=1)[:, : spiral.shape[1]] & (radius > 0.1 * np.pi)
    return _held_out("Heart, 8 channels, 3 spirals: a fifth predicted by the rest, relative error", data, spiral, held, (320, 320), methods)


def _held_out(
    title: str, data: np.ndarray, trajectory: np.ndarray, held: np.ndarray, shape: tuple[int, int], methods: Sequence[str]
) -> Table:
    straight = bool(held.all(axis=1).any())
    kept = ~held.all(axis=1)
    spokes = int(kept.sum()) if straight else None
    if straight:
        weights = radial_weights(trajectory[kept], shape).reshape(-1)
        truth = radial_weights(trajectory, shape)[held]
    else:
        weights = pipe_weights(trajectory[~held], shape)
        truth = pipe_weights(trajectory.reshape(-1, 2), shape).reshape(held.shape)[held]
    judge = Encoding(np.ones((1, *shape), np.complex64), trajectory[held], weights=truth)
    measured = judge.weigh(data[:, held])
    table = Table(title, ["held out"], methods)
    for name, run in _methods(data[:, ~held], trajectory[~held], weights, shape, spokes).items():
        maps = _maps(data[:, ~held], trajectory[~held], weights, shape, spokes, espirit_maps="ESPIRiT" in name)

        def figure(image: np.ndarray, maps: np.ndarray = maps) -> float:
            predicted = np.stack([judge(one * image)[0] for one in maps])
            scale = np.vdot(predicted, measured) / np.vdot(predicted, predicted)
            return float(np.linalg.norm(scale * predicted - measured) / np.linalg.norm(measured))

        table.add(name, 0, run, figure)
    return table


def _methods(
    data: np.ndarray, trajectory: np.ndarray, weights: np.ndarray, shape: tuple[int, int], spokes: int | None
) -> dict[str, Callable[[], np.ndarray]]:
    """Reconstructions of ``[coil, sample]``; spokes: how many there are, None of another trajectory."""
    maps, sharp = (_maps(data, trajectory, weights, shape, spokes, espirit_maps=chosen) for chosen in (False, True))
    methods: dict[str, Callable[[], np.ndarray]] = {"gridding": lambda: gridding(data, trajectory, weights, shape, maps)}
    for name, those in (("Inati", maps), ("ESPIRiT", sharp)):
        methods[f"CG-SENSE, {name} maps"] = lambda those=those: cg_sense(data, trajectory, those, 15, regularisation=0.01)
        methods[f"L1-wavelet, {name} maps"] = lambda those=those: l1_wavelet(data, those, trajectory, weight=WEIGHT)
        methods[f"TV, {name} maps"] = lambda those=those: total_variation(data, those, trajectory, weight=WEIGHT)
    return methods


def _maps(
    data: np.ndarray, trajectory: np.ndarray, weights: np.ndarray, shape: tuple[int, int], spokes: int | None, *, espirit_maps: bool
) -> np.ndarray:
    if not espirit_maps:
        bandwidth = 0.2 if spokes is None else min(0.2, max(3 * spokes / (np.pi * min(shape)), 0.06))
        return coarse_maps(data, trajectory, shape, weights, bandwidth)
    block = cartesian_centre(data, trajectory, shape, dense_edge(spokes))
    maps: np.ndarray = espirit(block, shape, block.shape[1:])
    return maps


def _magnitude_error(reference: np.ndarray, image: np.ndarray, inside: np.ndarray, scale: bool = False) -> float:
    found, true = np.abs(image)[inside], reference[inside]
    factor = found @ true / (found @ found) if scale else 1.0
    return float(np.linalg.norm(factor * found - true) / np.linalg.norm(true))


def _readouts(path: Path) -> list[Acquisition]:
    items = read_measurement(path).items()
    return [item for item in items if isinstance(item, Acquisition) and not item.is_flag_set(Flag.IS_NOISE_MEASUREMENT)]


def _non_cartesian(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Data ``[coil, readout, sample]`` and trajectory ``[readout, sample, (y, x)]`` in rad per pixel."""
    readouts = _readouts(path)
    cycles = np.stack([readout.trajectory for readout in readouts if readout.trajectory is not None])
    trajectory = np.ascontiguousarray(2 * np.pi * cycles[..., 1::-1], np.float32)
    return np.stack([readout.data for readout in readouts], axis=1), trajectory


SCANS: dict[str, Callable[[Path], Table]] = {
    "cartesian_brain_8ch.h5": brain,
    "radial_phantom_4ch.h5": phantom,
    "radial_cardiac_12ch_25spokes.h5": radial_cardiac,
    "spiral_cardiac_8ch.h5": spiral_cardiac,
}


def save_pictures(table: Table, folder: Path, stem: str) -> None:
    """One PNG an image, each from black to its 99.5th percentile."""
    from PIL import Image as Picture

    folder.mkdir(parents=True, exist_ok=True)
    for name, image in table.images.items():
        top = float(np.percentile(image, 99.5)) or 1.0
        words = "".join(letter if letter.isalnum() else "_" for letter in name)
        Picture.fromarray(np.clip(255 * image / top, 0, 255).astype(np.uint8)).save(folder / f"{stem}_{words}.png")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the ISMRMRD files")
    parser.add_argument("--pictures", type=Path, help="also write the images here, each scaled on its own")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {"threads": device.threads()}
    for name, make in SCANS.items():
        if not (arguments.folder / name).is_file():
            print(f"{name}: not in {arguments.folder}, left out\n")
            continue
        table = make(arguments.folder / name)
        print(table.markdown() + "\n", flush=True)
        figures[name] = {"columns": table.columns, "rows": table.rows, "cpu_s": table.seconds}
        if arguments.pictures:
            save_pictures(table, arguments.pictures, Path(name).stem)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
