"""Reconstructions and coil maps on a GPU: times, floors, and the CPU's results. Part of `scripts/gpu_check.py`.

python scripts/gpu_reconstructions.py RESULT.json     # what it wrote, as a table of Markdown
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gpu_floor
import numpy as np
from gpu_floor import Work

from recon import compressed_sensing, device, grappa, nufft, series_priors
from recon.b0_sense import b0_sense
from recon.cartesian_sampling import random_mask
from recon.coils import inati, walsh
from recon.espirit import espirit
from recon.fourier import fftc
from recon.grappa_patterns import PatternKernels
from recon.low_rank import low_rank_plus_sparse
from recon.moving_window import MovingWindow
from recon.nlinv import nlinv
from recon.operators.off_resonance import OffResonance
from recon.operators.off_resonance_gram import difference_segments
from recon.phantoms import birdcage_coils, moving_heart, shepp_logan
from recon.spirit import spirit
from recon.trajectory import radial_trajectory

PATIENCE_S = 0.5
"""So long a job is repeated at most."""


@dataclass(frozen=True)
class Job:
    """A reconstruction of arrays; how far the GPU's result may be from the CPU's, relatively; the least work; whether it takes tensors."""

    arrays: tuple[np.ndarray, ...]
    function: Callable[..., Any]
    floor: Work
    bound: float = 1e-2
    tensors: bool = True


@dataclass(frozen=True)
class Sizes:
    """Of the problems: pixels of a Cartesian image and of a frame, and how many coils and frames."""

    pixels: int = 256
    coils: int = 16
    frame: int = 128
    frame_coils: int = 8
    frames: int = 10
    spokes: int = 13
    level: int = 4


TINY = Sizes(pixels=48, coils=4, frame=32, frame_coils=4, frames=3, level=3)
"""For comparisons that are not timed, and to try the script out without a GPU."""


def relative_error(reference: Any, value: Any) -> float:
    """Relative l2 error of an array, CuPy array or tensor."""
    value = value.get() if hasattr(value, "get") else np.asarray(value)
    return float(f"{np.linalg.norm(value - reference) / np.linalg.norm(reference):.2g}")


def synchronize() -> None:
    """Wait for the GPU."""
    import cupy

    cupy.cuda.Device().synchronize()


def median_ms(job: Callable[[], Any]) -> tuple[float, float, Any]:
    """Wall time in ms of the first run, the median of up to seven more, and the result; the GPU idle before and after each."""
    times: list[float] = []
    while len(times) < 2 or (len(times) < 8 and sum(times[1:]) < 1e3 * PATIENCE_S):
        synchronize()
        start = time.perf_counter()
        result = job()
        synchronize()
        times.append(1e3 * (time.perf_counter() - start))
    return round(times[0], 2), round(statistics.median(times[1:]), 3), result


class Grid:
    """A Cartesian scan of the head phantom: random lines and points with a full centre, noise of 0.2 %."""

    def __init__(self, sizes: Sizes) -> None:
        rng = np.random.default_rng(0)
        self.shape = (sizes.pixels,) * 2
        self.maps = birdcage_coils(sizes.coils, self.shape).astype(np.complex64)
        middle, half = sizes.pixels // 2, 12
        self.centre = slice(middle - half, middle + half)
        self.mask = random_mask(self.shape, 0.3, seed=1)
        self.mask[self.centre] = True
        full = fftc(self.maps * shepp_logan(self.shape).astype(np.complex64), (-2, -1))
        self.full = full + (0.002 * np.abs(full).max() * rng.standard_normal(full.shape)).astype(np.complex64)
        self.kspace = np.where(self.mask, self.full, 0)
        self.lines = np.zeros(self.shape, bool)
        self.lines[::4] = True


class Heart:
    """Frames of a beating heart, golden-angle spokes."""

    def __init__(self, sizes: Sizes) -> None:
        n = sizes.frame
        self.shape = (n, n)
        spokes = radial_trajectory(n, sizes.frames * sizes.spokes, ordering="golden")
        self.trajectory = spokes.reshape(sizes.frames, -1, 2).astype(np.float32)
        self.maps = birdcage_coils(sizes.frame_coils, self.shape).astype(np.complex64)
        with device.on_cpu():
            self.kspace = np.stack([self._frame(index, points) for index, points in enumerate(self.trajectory)])

    def _frame(self, index: int, points: np.ndarray) -> np.ndarray:
        image = moving_heart(self.shape, 40.0 * index).astype(np.complex64)
        frame: np.ndarray = nufft.plan(points, self.shape).forward(self.maps * image)
        return frame


def reconstructions(sizes: Sizes, seed: int | None = 0) -> dict[str, Job]:
    """What there is, the most important first; `seed` of the random shifts, which are others for tensors than for arrays."""
    grid, heart = Grid(sizes), Heart(sizes)
    return {
        **_field(sizes),
        **_windows(heart),
        **_maps(grid, heart),
        **_kspace(grid),
        **_cartesian(grid, sizes, seed),
        **_series(heart, seed),
    }


def _cartesian(grid: Grid, sizes: Sizes, seed: int | None) -> dict[str, Job]:
    """Compressed sensing of the Cartesian scan."""
    coils, pixels, mask, level = len(grid.maps), grid.mask.size, grid.mask, sizes.level
    gram, given = gpu_floor.cartesian_gram(coils, pixels), (grid.kspace, grid.maps)
    # Two derivatives and a symmetrised gradient of three components: 4 and 6 arrays to be read and written, there and back.
    duals = gram * 1.5 + gpu_floor.passes(6 * coils, pixels) + gpu_floor.passes(60, pixels)
    return {
        "l1_wavelet_50": Job(
            given,
            lambda k, s: compressed_sensing.l1_wavelet(k, s, mask=mask, level=level, seed=seed),
            gpu_floor.fista(gram, pixels, gpu_floor.wavelet_passes() + 3) * 50,
        ),
        "total_variation_10": Job(
            given,
            lambda k, s: compressed_sensing.total_variation(k, s, mask=mask, iterations=10),
            gpu_floor.admm(gram, pixels, 2) * 10,
        ),
        "total_generalised_variation_30": Job(
            given, lambda k, s: compressed_sensing.total_generalised_variation(k, s, mask=mask, iterations=30), duals * 30
        ),
    }


def _series(heart: Heart, seed: int | None) -> dict[str, Job]:
    """Whole series of frames at once. What is iterated: NUFFTs."""
    frames, coils, pixels = len(heart.kspace), len(heart.maps), int(np.prod(heart.shape))
    points = heart.trajectory
    gram = gpu_floor.nufft_gram(coils, pixels, points.shape[1]) * frames
    unknowns = frames * pixels
    low_rank = gpu_floor.passes(8, unknowns) + Work(0, 4 * (25 * frames**3 * pixels / 64 + 6 * frames * unknowns))
    given = heart.kspace, heart.maps
    return {
        "grasp_5": Job(given, lambda k, s: compressed_sensing.grasp(k, s, points, iterations=5), gpu_floor.admm(gram, unknowns, 1) * 5),
        "locally_low_rank_20": Job(
            given,
            lambda k, s: compressed_sensing.locally_low_rank(k, s, points, iterations=20, seed=seed),
            (gpu_floor.fista(gram, unknowns, 4) + low_rank) * 20,
        ),
        "low_rank_plus_sparse_20": Job(
            given,
            lambda k, s: sum(low_rank_plus_sparse(k, s, points, iterations=20)),
            (gpu_floor.fista(gram, 2 * unknowns, 4) + low_rank) * 20,
        ),
        "total_variation_radial_10": Job(
            (heart.kspace[0], heart.maps),
            lambda k, s: compressed_sensing.total_variation(k, s, points[0], iterations=10),
            gpu_floor.admm(gram * (1 / frames), pixels, 2) * 10,
        ),
    }


def _windows(heart: Heart) -> dict[str, Job]:
    """A frame of `DynamicRecon` as it is set by default: added to a window of the eight before it, four iterations."""
    coils, pixels = len(heart.maps), int(np.prod(heart.shape))
    last = len(heart.kspace) - 1
    window = min(8, last + 1)
    gram = gpu_floor.toeplitz_gram(coils, pixels)
    priors: dict[str, tuple[Callable[[Any], Any], int]] = {
        "grasp": (functools.partial(series_priors.temporal_variation, weight=0.01), 1),
        "locally_low_rank": (series_priors.blockwise_low_rank, 1),
        "low_rank_plus_sparse": (functools.partial(series_priors.low_rank_plus_sparse, sparse=0.012), 2),
    }
    jobs = {}
    for name, (prior, parts) in priors.items():
        # E^H y, two power iterations and four conjugate gradients for the start; then four for all frames.
        work = gram * 7 + gpu_floor.fista(gram * window, parts * window * pixels, 12) * 4
        # The CPU iterates with NUFFTs, of an error of 1e-3, the GPU with convolutions: 0.7 % after eight windows of GRASP on the CPU alone.
        jobs[f"window_{name}_frame"] = Job((), Frames(heart, prior), work, bound=2e-2, tensors=False)
    return jobs


class Frames:
    """The next frame of a window that moves along with the scan; starts again at its end. The first call takes all frames."""

    def __init__(self, heart: Heart, prior: Callable[[Any], Any]) -> None:
        self.heart, self.prior = heart, prior
        self.maps = heart.maps.copy()
        self.maps.setflags(write=False)
        self.window: MovingWindow | None = None

    def __call__(self) -> np.ndarray:
        if self.window is None:
            self.window = MovingWindow(self.prior, 8, 0.01)
            for frame in range(len(self.heart.kspace) - 1):
                self._add(frame)
        self._add(len(self.heart.kspace) - 1)
        return self.window.solve(4)[-1]

    def _add(self, frame: int) -> None:
        assert self.window is not None
        self.window.add(self.heart.kspace[frame], self.heart.trajectory[frame], self.maps)
        if frame < len(self.heart.kspace) - 1:
            self.window.solve(4)


def _field(sizes: Sizes) -> dict[str, Job]:
    """Spiral of 8 arms of 10 ms in a field of -60 to 60 Hz, 12 iterations."""
    n, arms, coils = sizes.frame, 8, sizes.frame_coils
    samples = 2100 * n // 128
    t = np.sqrt(np.linspace(0, 1, samples))
    turn = np.pi * n / arms * t + 2 * np.pi * np.arange(arms)[:, None] / arms
    trajectory = (np.pi * np.stack([t * np.sin(turn), t * np.cos(turn)], -1)).reshape(-1, 2).astype(np.float32)
    times = np.tile(np.linspace(0, 10e-3, samples), arms)
    y, x = np.mgrid[:n, :n] / n - 0.5
    field = 150 * np.exp(-((y + 0.2) ** 2 + (x - 0.1) ** 2) / 0.05) - 160 * x
    field = 60 * (2 * (field - field.min()) / np.ptp(field) - 1)
    maps = birdcage_coils(coils, (n, n)).astype(np.complex64)
    with device.on_cpu():
        exact = nufft_operator(trajectory, (n, n))
        kspace = np.asarray(OffResonance(exact, field, times, tolerance=1e-4)(maps * shepp_logan((n, n)).astype(np.complex64)))
    convolutions = len(difference_segments(field, times, 1e-2)[0])
    segments = OffResonance(exact, field, times, tolerance=1e-2).segments
    start = gpu_floor.nufft_gram(coils, n * n, len(times)) * (segments / 2)

    def job(toeplitz: bool) -> Callable[..., Any]:
        return lambda k, s: b0_sense(k, trajectory, s, field, times, 12, regularisation=0.01, toeplitz=toeplitz)

    one = gpu_floor.toeplitz_gram(coils, n * n) + gpu_floor.passes(6, coils * n * n)
    by_nufft = gpu_floor.nufft_gram(coils, n * n, len(times)) * segments
    return {
        f"b0_sense_12_by_{convolutions}_convolutions": Job((kspace, maps), job(True), start + one * (12 * convolutions), 2e-2),
        f"b0_sense_12_by_nuffts_of_{segments}_segments": Job((kspace, maps), job(False), start + by_nufft * 12, 2e-2),
    }


def nufft_operator(trajectory: np.ndarray, shape: tuple[int, ...]) -> Any:
    """A NUFFT as an operator."""
    from recon.operators.fourier import Nufft

    return Nufft(trajectory, shape, 1e-5)


def _maps(grid: Grid, heart: Heart) -> dict[str, Job]:
    """Sensitivity maps."""
    coils, pixels, mask = len(grid.maps), grid.mask.size, grid.mask
    images = (grid.maps * shepp_logan(grid.shape) + 0.01).astype(np.complex64)
    small, few = int(np.prod(heart.shape)), len(heart.maps)
    steps, degrees = 7 * 30, 51
    eight = min(coils, 8)
    by_grid = gpu_floor.nlinv(gpu_floor.cartesian_gram(eight, pixels), eight, pixels, degrees, steps)
    by_spokes = gpu_floor.nlinv(gpu_floor.toeplitz_gram(few, small), few, small, degrees, steps)
    return {
        "espirit": Job((grid.full,), espirit, gpu_floor.espirit(coils, pixels)),
        "walsh": Job((images,), walsh, gpu_floor.walsh(coils, pixels)),
        "inati": Job((images,), inati, gpu_floor.inati(coils, pixels)),
        "nlinv_8_coils": Job((grid.kspace[:8],), lambda k: nlinv(k, mask=mask)[0], by_grid),
        "nlinv_radial": Job((heart.kspace[0],), lambda k: nlinv(k, heart.trajectory[0], heart.shape)[0], by_spokes),
    }


def _kspace(grid: Grid) -> dict[str, Job]:
    """What fills or unaliases k-space. Calibration and filling of GRAPPA are the CPU's."""
    coils, pixels = len(grid.maps), grid.mask.size
    calibration = np.ascontiguousarray(grid.full[:, grid.centre])
    kernel = grappa.calibrate(calibration[:, None], acceleration=(1, 4))
    weights = grappa.unmixing(kernel, grid.maps[:, None])
    lines = np.where(grid.lines, grid.full, 0)
    few = grid.kspace[:8]
    equations = calibration[0].size
    return {
        "spirit_30_8_coils": Job((few,), lambda k: spirit(k, grid.mask, tolerance=0.0), gpu_floor.spirit(len(few), pixels, 30)),
        "grappa_frame": Job((lines[:, None], weights), grappa.reconstruct, gpu_floor.grappa_frame(coils, pixels), tensors=False),
        "grappa_calibration_and_filling": Job(
            (),
            lambda: PatternKernels(calibration, grid.lines, grid.shape).fill(lines),
            gpu_floor.grappa_calibration(coils, pixels, 4 * 5, min(equations, 8 * coils * 20), 0.75),
            tensors=False,
        ),
    }


def measured(job: Job) -> dict[str, Any]:
    """Floor, the CPU's time, times and errors from arrays on the GPU and on the host, and the worst error."""
    with device.on_cpu():
        start = time.perf_counter()
        expected = _fresh(job)(*job.arrays)
        result: dict[str, Any] = {**job.floor.report(), "cpu_first_ms": round(1e3 * (time.perf_counter() - start)), "bound": job.bound}
    kinds: dict[str, Callable[[np.ndarray], Any]] = {"numpy": lambda array: array}
    if job.arrays:
        kinds = {"resident": device.put, **kinds}
    for kind, convert in kinds.items():
        run = functools.partial(_fresh(job), *map(convert, job.arrays))
        first, ms, value = median_ms(run)
        if isinstance(job.function, Frames):
            value = _fresh(job)()  # later runs add the last frame once more
        result[kind] = {"ms": ms, "first_ms": first, "difference": relative_error(expected, value)}
    result["worst"] = float(np.max([result[kind]["difference"] for kind in kinds]))
    return result


def _fresh(job: Job) -> Callable[..., Any]:
    """The function, a window without frames."""
    return Frames(job.function.heart, job.function.prior) if isinstance(job.function, Frames) else job.function


def from_tensor(job: Job) -> dict[str, Any]:
    """The error of a job that is given tensors."""
    import tensorflow as tf

    with device.on_cpu():
        expected = job.function(*job.arrays)
    return {"worst": relative_error(expected, job.function(*map(tf.constant, job.arrays))), "bound": job.bound}


def table(found: dict[str, dict[str, Any]]) -> str:
    """The section `reconstructions` as a table for docs/performance.md."""
    lines = ["| task | from the GPU / from NumPy | floor: bytes / operations | difference from the CPU |", "|---|---|---|---|"]
    for name, value in found.items():
        times = " / ".join(f"{value[kind]['ms']:.3g}" for kind in ("resident", "numpy") if kind in value)
        floor = f"{value['MB']:.0f} MB: {value['floor_bytes_ms']:.2g} / {value['GFLOP']:.2g} GFLOP: {value['floor_flops_ms']:.2g}"
        lines.append(f"| {name} | {times} | {floor} | {value['worst']:.1g} |")
    return "\n".join(lines)


if __name__ == "__main__":
    import json
    import sys
    from pathlib import Path

    print(table(json.loads(Path(sys.argv[1]).read_text())["reconstructions"]))
