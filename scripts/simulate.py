"""Simulate scans with known truth and write them as ISMRMRD HDF5 files.

    python scripts/simulate.py radial scan.h5            # moving heart, golden-angle spokes, one repetition a frame
    python scripts/simulate.py spiral scan.h5
    python scripts/simulate.py hyperslice scan.h5        # the same by the protocol of HyperSLICE
    python scripts/simulate.py cartesian scan.h5 --acceleration 3
    python scripts/simulate.py epi scan.h5               # samples on the ramps, delays and phases that make ghosts, navigators
    python scripts/simulate.py relaxation scan.h5        # contrasts for maps: t1_vfa, t1_ll, t2 or t2star, lines or spokes

The truth lies beside the scan in ``scan_truth.npz``. Conventions: ``image[y, x] = sum_k d(k) exp(+2 pi i (kx x + ky y))`` counted from
pixel n // 2. A sample is ``sum image * coil_maps * exp(-2 pi i ...) + noise``, for Cartesian scans divided by the root of the number
of encoded pixels (orthonormal), so that chains give images in the truth's units. Trajectories are (kx, ky) in cycles per pixel of
the encoded matrix; times in ms, lengths in mm, angles in degrees; ``acquisition_time_stamp`` counts ticks of 2.5 ms and
``user_float[0]`` is the exact time in ms since the first readout.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import finufft
import ismrmrd
import numpy as np
import typer
from scipy.ndimage import maximum_filter, minimum_filter

from gadgets.items import Acquisition, Item, Waveform
from gadgets.layout import Flag
from recon.epi import EpiReadout
from recon.fourier import fftc
from recon.phantoms import birdcage_coils, moving_heart, relaxation_vials, shepp_logan
from recon.realtime_spiral import RealtimeSpiral
from recon.trajectory import Ordering, radial_trajectory

TICK_MS = 2.5
START_TICK = 14_400_000  # ten o'clock; noise readouts have earlier times
NOISE_READOUTS = 4
NOISE_SAMPLES = 256
ECG_BLOCK = 40  # samples a waveform message, one sample a tick

xsd = ismrmrd.xsd


@dataclass(frozen=True)
class Scan:
    """A simulated measurement: header XML, items in time order, truth arrays (shapes in the function that made it)."""

    header: bytes
    items: list[Item]
    truth: dict[str, np.ndarray]

    def save(self, path: str | Path) -> Path:
        """Write `path` (ISMRMRD HDF5) and ``<stem>_truth.npz`` beside it; return the latter's path."""
        from service.files import write_measurement

        path = Path(path)
        write_measurement(path, self.header, self.items)
        truth = path.with_name(f"{path.stem}_truth.npz")
        np.savez_compressed(truth, **self.truth)  # type: ignore[arg-type]
        return truth


@dataclass(frozen=True)
class Protocol:
    """What the header says about a scan; matrices and fields of view are (x, y)."""

    name: str
    trajectory: str
    encoded: tuple[int, int]
    recon: tuple[int, int]
    field_of_view_mm: tuple[float, float]
    coils: int
    tr_ms: float
    te_ms: float
    flip_deg: float
    dwell_us: float
    lines: tuple[int, int]
    """Largest number and centre of kspace_encode_step_1."""
    repetitions: int = 1
    slices: int = 1
    acceleration: int = 1
    calibration_lines: int = 0
    separate_calibration: bool = False
    thickness_mm: float = 8.0
    description: dict[str, float] = field(default_factory=dict)
    """User parameters of the trajectoryDescription."""
    echo_times_ms: tuple[float, ...] = ()
    flips_deg: tuple[float, ...] = ()
    """Of the contrasts, where these differ in them; else all have `te_ms` and `flip_deg`."""
    contrasts: int = 1
    user: dict[str, float] = field(default_factory=dict)
    """Further user parameters of the header."""


def radial(
    matrix: int = 128,
    coils: int = 8,
    spokes: int = 13,
    frames: int = 20,
    *,
    moving: bool = True,
    ordering: Ordering = "tiny_half",
    tiny_number: int = 7,
    oversampling: float = 1.5,
    noise: float = 0.02,
    tr_ms: float = 3.2,
    waveforms: bool = False,
    seed: int = 1,
) -> Scan:
    """Radial scan; with `moving`, a beating heart that stands still during each frame of `spokes` readouts.

    Angles count on from frame to frame (golden orderings). The readout is oversampled within the same k-range: `oversampling`
    times `matrix` samples reach from -0.5 to 0.5 cycles per pixel.

    Args:
        noise: standard deviation of the noise of a fully sampled image, in units of the object's maximum, averaged over coils.
        waveforms: interleave an ECG (waveform id 0).

    Returns:
        Scan with truth ``frames`` [frame, y, x], ``coil_maps`` [coil, y, x], ``noise_covariance`` [coil, coil].
    """
    trajectory = radial_trajectory(matrix, spokes, frames, ordering, tiny_number=tiny_number, readout_os=oversampling)
    protocol = Protocol(
        name=f"radial_{'moving' if moving else 'static'}",
        trajectory="goldenangle" if "linear" not in ordering else "radial",
        encoded=(matrix, matrix),
        recon=(matrix, matrix),
        field_of_view_mm=(320.0, 320.0),
        coils=coils,
        tr_ms=tr_ms,
        te_ms=tr_ms / 2,
        flip_deg=50.0,
        dwell_us=3.2,
        lines=(spokes - 1, 0),
        repetitions=frames,
    )
    return _non_cartesian(
        protocol, trajectory, moving=moving, center_sample=trajectory.shape[2] // 2, noise=noise, waveforms=waveforms, seed=seed
    )


def spiral(
    matrix: int = 128,
    coils: int = 8,
    interleaves: int = 12,
    frames: int = 10,
    *,
    moving: bool = True,
    noise: float = 0.02,
    tr_ms: float = 8.0,
    waveforms: bool = False,
    seed: int = 1,
) -> Scan:
    """Archimedean spirals from the centre outwards, full sampling in each frame of `interleaves` readouts. See `radial`."""
    turns = matrix / 2 / interleaves
    samples = int(np.ceil(1.3 * np.pi * turns * matrix / 2))
    angle = 2 * np.pi * turns * np.linspace(0, 1, 16 * samples)
    length = angle * np.hypot(1, angle) + np.arcsinh(angle)  # of the curve, times two: it is sampled at constant speed
    radius = np.interp(np.linspace(0, length[-1], samples), length, angle / angle[-1])
    rotation = 2 * np.pi * np.arange(interleaves)[:, None] / interleaves
    k = np.pi * radius * np.exp(1j * (2 * np.pi * turns * radius + rotation))
    trajectory = np.broadcast_to(np.stack([k.imag, k.real], -1).astype(np.float32), (frames, interleaves, samples, 2))
    protocol = Protocol(
        name="spiral",
        trajectory="spiral",
        encoded=(matrix, matrix),
        recon=(matrix, matrix),
        field_of_view_mm=(320.0, 320.0),
        coils=coils,
        tr_ms=tr_ms,
        te_ms=0.9,
        flip_deg=30.0,
        dwell_us=4.0,
        lines=(interleaves - 1, 0),
        repetitions=frames,
    )
    return _non_cartesian(protocol, trajectory, moving=moving, center_sample=0, noise=noise, waveforms=waveforms, seed=seed)


def hyperslice(
    matrix: int = 240,
    coils: int = 10,
    frames: int = 24,
    *,
    moving: bool = True,
    noise: float = 0.02,
    waveforms: bool = False,
    seed: int = 1,
) -> Scan:
    """Interactive real-time spirals of HyperSLICE's protocol (see `RealtimeSpiral`): 240 x 240, 15 arms, 54.6 ms a frame, 12 rotations."""
    protocol = RealtimeSpiral(base_resolution=matrix)
    phases = np.arange(frames) % protocol.phases
    scan = Protocol(
        name="hyperslice",
        trajectory="spiral",
        encoded=(matrix, matrix),
        recon=(matrix, matrix),
        field_of_view_mm=(protocol.field_of_view, protocol.field_of_view),
        coils=coils,
        tr_ms=protocol.repetition_time,
        te_ms=0.9,
        flip_deg=30.0,
        dwell_us=protocol.dwell_time,
        lines=(protocol.arms - 1, 0),
        repetitions=frames,
    )
    trajectory = protocol.trajectory[phases].astype(np.float32)
    return _non_cartesian(scan, trajectory, moving=moving, center_sample=0, noise=noise, waveforms=waveforms, seed=seed)


def cartesian(
    matrix: tuple[int, int] = (128, 128),
    coils: int = 8,
    acceleration: int = 2,
    calibration_lines: int = 24,
    *,
    repetitions: int = 1,
    slices: int = 1,
    oversampling: int = 2,
    noise: float = 0.02,
    tr_ms: float = 6.0,
    noise_readouts: int = NOISE_READOUTS,
    waveforms: bool = False,
    seed: int = 1,
) -> Scan:
    """Cartesian scan of a resting object: every `acceleration`-th line and a fully sampled block of calibration lines.

    Flags as on a scanner: 20 for calibration lines that lie between the imaging lines, 21 for those that belong to both, 19 for
    the noise readouts, which come first.

    Args:
        matrix: image size (x, y) in pixels.
        calibration_lines: size of the block; ignored without acceleration.
        oversampling: readout oversampling; the encoded field of view grows along x.
        noise_readouts: 0 for a scan without its own noise measurement.

    Returns:
        Scan with truth ``images`` [slice, y, x], ``coil_maps`` [coil, y, x], ``noise_covariance`` [coil, coil].
    """
    nx, ny = matrix
    protocol = Protocol(
        name=f"cartesian_r{acceleration}",
        trajectory="cartesian",
        encoded=(nx * oversampling, ny),
        recon=matrix,
        field_of_view_mm=(2.0 * nx, 2.0 * ny),
        coils=coils,
        tr_ms=tr_ms,
        te_ms=tr_ms / 2,
        flip_deg=15.0,
        dwell_us=5.0,
        lines=(ny - 1, ny // 2),
        repetitions=repetitions,
        slices=slices,
        acceleration=acceleration,
        calibration_lines=calibration_lines if acceleration > 1 else 0,
        thickness_mm=5.0,
    )
    rng = np.random.default_rng(seed)
    factor = _noise_factor(coils, noise, rng)
    maps = birdcage_coils(coils, (ny, nx))
    image = shepp_logan((ny, nx)).astype(np.complex64)
    images = np.stack([np.roll(image[:: (-1) ** s], (s % 2, 3 * s), (0, 1)) for s in range(slices)])
    wide = np.zeros((slices, coils, ny, nx * oversampling), np.complex64)
    start = nx * oversampling // 2 - nx // 2
    wide[..., start : start + nx] = images[:, None] * maps
    kspace = fftc(wide, (-2, -1))
    schedule = [(r, s, line) for r in range(repetitions) for s in range(slices) for line in _lines(protocol)]
    items: list[Item] = list(_noise_scan(protocol, factor, rng, noise_readouts))
    for number, (repetition, slice_, line) in enumerate(schedule):
        readout = _readout(protocol, number, kspace[slice_, :, line], factor, rng)
        readout.header["center_sample"] = nx * oversampling // 2
        readout.header["idx"]["kspace_encode_step_1"] = line
        readout.header["idx"]["slice"] = slice_
        readout.header["idx"]["repetition"] = repetition
        readout.header["position"] = (0, 0, slice_ * protocol.thickness_mm)
        _flag_calibration(readout, protocol, line)
        lines = _lines(protocol)
        _flag_ends(readout, first=line == lines[0], last=line == lines[-1], slice_=slice_, slices=slices, final=number == len(schedule) - 1)
        items.append(readout)
    if waveforms:
        items = _with_ecg(items, len(schedule) * tr_ms)
    return Scan(_header(protocol), _numbered(items), {"images": images, "coil_maps": maps, "noise_covariance": factor @ factor.conj().T})


def epi(
    matrix: tuple[int, int] = (64, 64),
    coils: int = 8,
    *,
    shots: int = 1,
    acceleration: int = 1,
    calibration_lines: int = 24,
    first_line: int = 0,
    repetitions: int = 2,
    slices: int = 2,
    navigators: int = 3,
    delay_us: float = 1.5,
    phase: float = 0.4,
    off_resonance_hz: float = 15.0,
    readout: EpiReadout | None = None,
    noise: float = 0.02,
    noise_readouts: int = NOISE_READOUTS,
    seed: int = 1,
) -> Scan:
    """Echo-planar scan of a resting object, read out on the ramps too, with the faults that make ghosts.

    A train is the navigators (flag 24, ky = 0) and then the lines of a slice, or of one of its interleaved `shots`; directions
    alternate (flag 22), from the first navigator on. Samples lie in the order of time. Accelerated scans begin with a train of
    calibration lines (flag 20) for each slice.

    Args:
        matrix: image size (x, y) in pixels; the encoded one is the same.
        first_line: lines before are not acquired (partial Fourier); the counter starts from it, and the centre says so.
        delay_us: of the readout gradient behind the sampling.
        phase: of forward relative to backward lines, rad.
        off_resonance_hz: precession during the train, from the first navigator on.
        readout: gradient and sampling of a line.

    Returns:
        Scan with truth ``images`` [slice, y, x], ``coil_maps`` [coil, y, x], ``noise_covariance`` [coil, coil], ``delay_samples``: the
        delay on the flat top in samples of the even grid, ``phase`` and ``drift`` (rad an echo).
    """
    nx, ny = matrix
    line = readout or EpiReadout(samples=2 * nx, dwell_time=3.0, flat_top_time=3.75 * nx, ramp_up_time=1.25 * nx, ramp_down_time=1.25 * nx)
    imaging = [number for number in range(first_line, ny) if (number - ny // 2) % acceleration == 0]
    if len(imaging) % shots:
        raise ValueError(f"{shots} shots cannot share {len(imaging)} lines evenly")
    if not 0 <= first_line <= ny // 2 - (calibration_lines + 1) // 2:
        raise ValueError(f"first_line {first_line} leaves no room for {calibration_lines} calibration lines before the centre {ny // 2}")
    times = {"rampUpTime": line.ramp_up_time, "flatTopTime": line.flat_top_time, "rampDownTime": line.ramp_down_time}
    protocol = Protocol(
        name=f"epi_r{acceleration}",
        trajectory="epi",
        encoded=matrix,
        recon=matrix,
        field_of_view_mm=(3.0 * nx, 3.0 * ny),
        coils=coils,
        tr_ms=100.0,
        te_ms=10.0,
        flip_deg=70.0,
        dwell_us=line.dwell_time,
        lines=(ny - 1 - first_line, ny // 2 - first_line),
        repetitions=repetitions,
        slices=slices,
        acceleration=acceleration,
        calibration_lines=calibration_lines if acceleration > 1 else 0,
        separate_calibration=True,
        thickness_mm=4.0,
        description={
            **{name: round(time) for name, time in times.items()},
            "acqDelayTime": round(line.start),
            "echoSpacing": round(line.duration),
            "numSamples": line.samples,
            "etl": len(imaging) // shots,
            "numberOfNavigators": navigators,
            "dwellTime": line.dwell_time,
        },
    )
    rng = np.random.default_rng(seed)
    factor = _noise_factor(coils, noise, rng)
    maps = birdcage_coils(coils, (ny, nx))
    image = shepp_logan((ny, nx)).astype(np.complex64)
    images = np.stack([np.roll(image[:: (-1) ** s], (s % 2, 3 * s), (0, 1)) for s in range(slices)])
    hybrid = fftc(images[:, None] * maps, -2)  # [slice, coil, ky, x]
    late = replace(line, delay=line.delay + delay_us).positions()
    pixels = np.arange(nx) - nx // 2
    forward = np.exp(-1j * pixels[:, None] * late) / np.sqrt(nx)
    directions = (forward * np.exp(0.5j * phase), forward.conj() * np.exp(-0.5j * phase))
    drift = 2e-6 * np.pi * off_resonance_hz * line.duration

    trains = [(0, s, lines, True) for s in range(slices) for lines in [[n for n in range(ny) if _in_block(protocol, n, ny // 2)]] if lines]
    trains += [(r, s, imaging[shot::shots], False) for r in range(repetitions) for s in range(slices) for shot in range(shots)]
    items: list[Item] = list(_noise_scan(protocol, factor, rng, noise_readouts))
    for train, (repetition, slice_, lines, calibration) in enumerate(trains):
        for echo, number in enumerate([ny // 2] * navigators + lines):
            samples = hybrid[slice_, :, number] @ directions[echo % 2] * np.exp(1j * drift * echo)
            item = _readout(protocol, train + echo * line.duration * 1e-3 / protocol.tr_ms, samples, factor, rng)
            item.header["idx"]["kspace_encode_step_1"] = number - first_line
            item.header["idx"]["slice"] = slice_
            item.header["idx"]["repetition"] = repetition
            item.header["position"] = (0, 0, slice_ * protocol.thickness_mm)
            if echo % 2:
                item.set_flag(Flag.IS_REVERSE)
            if echo < navigators:
                item.set_flag(Flag.IS_PHASECORR_DATA)
            elif calibration:
                item.set_flag(Flag.IS_PARALLEL_CALIBRATION)
            else:
                last, final = number == imaging[-1], train == len(trains) - 1
                _flag_ends(item, first=number == imaging[0], last=last, slice_=slice_, slices=slices, final=last and final)
            items.append(item)
    truth = {"images": images, "coil_maps": maps, "noise_covariance": factor @ factor.conj().T}
    speed = np.abs(np.diff(line.positions())).max() / line.dwell_time
    known = {"delay_samples": delay_us * speed * nx / (2 * np.pi), "phase": phase, "drift": drift}
    return Scan(_header(protocol), _numbered(items), truth | {name: np.float64(value) for name, value in known.items()})


Relaxation = Literal["t1_vfa", "t1_ll", "t2", "t2star"]
_BODY = (900.0, 70.0, 45.0)


def relaxation(
    kind: Relaxation = "t1_vfa",
    matrix: int = 96,
    coils: int = 6,
    spokes: int = 0,
    *,
    slices: int = 1,
    repetitions: int = 1,
    noise: float = 0.02,
    b0_hz: float = 20.0,
    seed: int = 1,
) -> Scan:
    """Contrasts of vials of known relaxation times in a body: for maps. Signals by their textbook equations.

    t1_vfa: spoiled gradient echoes of six flip angles, one after another; t1_ll: an inversion and one train of spokes (Look-Locker), a
    single contrast; t2: a train of eight spin echoes; t2star: six gradient echoes with an offset of the field. A later slice has its
    vials turned by a quarter.

    Args:
        spokes: golden-angle spokes a contrast, counted on (echoes of a train share theirs); 0: Cartesian lines, all of them.
        b0_hz: field offset at the edge of the image along x, for t2star.

    Returns:
        Scan with truth ``T1_ms``, ``T2_ms``, ``T2star_ms``, ``B0_hz``, ``density`` [slice, y, x], ``mask_interior`` (all neighbours
        within two pixels alike), ``coil_maps`` [coil, y, x], ``noise_covariance`` [coil, coil].
    """
    vials = relaxation_vials((matrix, matrix))
    y, x = (np.mgrid[:matrix, :matrix] - matrix // 2) / (matrix / 2)
    body = np.hypot(y, x) < 0.92
    times = [
        np.where(vials.labels > 0, of_vials, of_body) for of_vials, of_body in zip((vials.t1, vials.t2, vials.t2_star), _BODY, strict=True)
    ]
    inside = body & (minimum_filter(vials.labels, 5) == maximum_filter(vials.labels, 5)) & minimum_filter(body, 5)
    density = body * np.where(vials.labels > 0, 1.0, 0.7)
    maps = birdcage_coils(coils, (matrix, matrix))
    echoes = {"t2": tuple(10.0 * n for n in range(1, 9)), "t2star": tuple(2.5 + 5.0 * n for n in range(6))}.get(kind, (2.0,))
    flips = (2.0, 4.0, 7.0, 11.0, 16.0, 22.0) if kind == "t1_vfa" else ()
    lines, train = spokes or matrix, kind == "t1_ll"
    contrasts = len(flips) or (lines if train else len(echoes))
    protocol = Protocol(
        name=f"relaxation_{kind}",
        trajectory="goldenangle" if spokes else "cartesian",
        encoded=(matrix, matrix),
        recon=(matrix, matrix),
        field_of_view_mm=(256.0, 256.0),
        coils=coils,
        tr_ms={"t1_vfa": 12.0, "t1_ll": 5.0, "t2": 3000.0, "t2star": 40.0}[kind],
        te_ms=echoes[0],
        flip_deg={"t1_vfa": 0.0, "t1_ll": 6.0, "t2": 90.0, "t2star": 15.0}[kind],
        dwell_us=5.0,
        lines=(lines - 1, 0 if spokes else matrix // 2),
        repetitions=repetitions,
        slices=slices,
        thickness_mm=5.0,
        echo_times_ms=echoes,
        flips_deg=flips,
        contrasts=1 if train else contrasts,
        user={"TI_first_ms": 10.0, "TI_increment_ms": 5.0} if train else {},
    )
    rng = np.random.default_rng(seed)
    factor = _noise_factor(coils, noise * (matrix if spokes else 1), rng)
    b0 = b0_hz * x if kind == "t2star" else np.zeros_like(x)
    signals = np.stack([_signal(kind, times, b0, protocol, n) for n in range(contrasts)])
    objects = np.stack([np.rot90(signals * density, turn, (-2, -1)) for turn in range(slices)])
    if train:  # every readout has a signal of its own
        order = [(c, 0) for c in range(contrasts)]
    elif flips:
        order = [(c, n) for c in range(contrasts) for n in range(lines)]
    else:
        order = [(c, n) for n in range(lines) for c in range(contrasts)]
    each = 1 if train else lines
    numbers = np.arange(contrasts * each).reshape(contrasts, each) if train or flips else np.tile(np.arange(lines), (contrasts, 1))
    points = _golden_spokes(matrix, numbers) if spokes else None
    items: list[Item] = list(_noise_scan(protocol, factor, rng, NOISE_READOUTS))
    schedule = [(r, s) for r in range(repetitions) for s in range(slices)]
    kspaces = {(s, c): _sampled(objects[s, c] * maps, points, c) for s in range(slices) for c in range(contrasts)}
    for part, (repetition, slice_) in enumerate(schedule):
        for number, (contrast, line) in enumerate(order):
            path = None if points is None else np.ascontiguousarray(points[contrast, line, :, ::-1] / (2 * np.pi), np.float32)
            readout = _readout(protocol, part * len(order) + number, kspaces[slice_, contrast][:, line], factor, rng, path)
            idx = readout.header["idx"]
            idx["kspace_encode_step_1"], idx["contrast"] = (contrast, 0) if train else (line, contrast)
            idx["slice"], idx["repetition"] = slice_, repetition
            readout.header["center_sample"] = readout.data.shape[1] // 2
            readout.header["position"] = (0, 0, slice_ * protocol.thickness_mm)
            last = number == len(order) - 1
            if line == lines - 1:
                readout.set_flag(Flag.LAST_IN_ENCODE_STEP1)
            _flag_ends(readout, first=number == 0, last=last, slice_=slice_, slices=slices, final=last and part == len(schedule) - 1)
            items.append(readout)
    named = dict(zip(("T1_ms", "T2_ms", "T2star_ms"), times, strict=True)) | {"B0_hz": b0, "density": density, "mask_interior": inside}
    truth = {name: np.stack([np.rot90(values, turn) for turn in range(slices)]) for name, values in named.items()}
    return Scan(_header(protocol), _numbered(items), truth | {"coil_maps": maps, "noise_covariance": factor @ factor.conj().T})


def _signal(kind: Relaxation, times: list[np.ndarray], b0_hz: np.ndarray, protocol: Protocol, contrast: int) -> np.ndarray:
    """Signal [y, x] of a contrast for density 1, from T1, T2, T2* in ms."""
    t1, t2, t2_star = times
    if kind == "t1_vfa":
        angle, recovery = np.deg2rad(protocol.flips_deg[contrast]), np.exp(-protocol.tr_ms / t1)
        steady: np.ndarray = 5 * np.sin(angle) * (1 - recovery) / (1 - recovery * np.cos(angle))
        return steady
    if kind == "t1_ll":  # before the readout n of the train, from the recursion of the longitudinal magnetisation
        cosine, recovery = np.cos(np.deg2rad(protocol.flip_deg)), np.exp(-protocol.tr_ms / t1)
        level = (1 - recovery) / (1 - recovery * cosine)
        train: np.ndarray = level + (1 - 2 * np.exp(-protocol.user["TI_first_ms"] / t1) - level) * (recovery * cosine) ** contrast
        return train
    echo = protocol.echo_times_ms[contrast]
    decay: np.ndarray = np.exp(-echo / t2) if kind == "t2" else np.exp(-echo / t2_star - 2j * np.pi * b0_hz * echo / 1000)
    return decay


def _golden_spokes(matrix: int, numbers: np.ndarray, oversampling: float = 1.5) -> np.ndarray:
    """Spokes `[*numbers, sample, (ky, kx)]` in rad/pixel."""
    samples = round(oversampling * matrix)
    radius = 2 * np.pi * (np.arange(samples) - samples // 2) / samples
    angle = np.deg2rad(111.24611797498108) * numbers[..., None]
    return np.stack([np.sin(angle) * radius, np.cos(angle) * radius], -1)


def _sampled(images: np.ndarray, points: np.ndarray | None, contrast: int) -> np.ndarray:
    """K-space [coil, readout, sample] of coil images [coil, y, x] on the grid or along the spokes of a contrast."""
    if points is None:
        kspace: np.ndarray = fftc(images, (-2, -1))
        return kspace
    _, readouts, samples, _ = points.shape
    flat = points[contrast].reshape(-1, 2)
    y, x = (np.ascontiguousarray(flat[:, axis], np.float64) for axis in (0, 1))
    images = np.ascontiguousarray(images, np.complex128)
    sampled: np.ndarray = finufft.nufft2d2(y, x, images, eps=1e-6, isign=-1, nthreads=1).reshape(-1, readouts, samples)
    return sampled


def _non_cartesian(
    protocol: Protocol, trajectory: np.ndarray, *, moving: bool, center_sample: int, noise: float, waveforms: bool, seed: int
) -> Scan:
    """Scan along `trajectory` [frame, view, sample, (ky, kx)] in rad/pixel, the object at rest during a frame."""
    rng = np.random.default_rng(seed)
    frames, views, samples, _ = trajectory.shape
    shape = protocol.recon[::-1]
    factor = _noise_factor(protocol.coils, noise * np.sqrt(shape[0] * shape[1]), rng)
    maps = birdcage_coils(protocol.coils, shape)
    middle_ms = (np.arange(frames) + 0.5) * views * protocol.tr_ms
    objects = [moving_heart(shape, time) for time in middle_ms] if moving else [shepp_logan(shape)] * frames
    items: list[Item] = list(_noise_scan(protocol, factor, rng, NOISE_READOUTS))
    for frame in range(frames):
        points = trajectory[frame].reshape(-1, 2).astype(np.float32)
        weighted = np.ascontiguousarray(objects[frame] * maps, np.complex64)
        y, x = (np.ascontiguousarray(points[:, axis]) for axis in (0, 1))
        kspace = finufft.nufft2d2(y, x, weighted, eps=1e-5, isign=-1, nthreads=1).reshape(protocol.coils, views, samples)
        for view in range(views):
            cycles = np.ascontiguousarray(trajectory[frame, view, :, ::-1] / (2 * np.pi), np.float32)
            readout = _readout(protocol, frame * views + view, kspace[:, view], factor, rng, cycles)
            readout.header["center_sample"] = center_sample
            readout.header["idx"]["kspace_encode_step_1"] = view
            readout.header["idx"]["repetition"] = frame
            last = view == views - 1
            _flag_ends(readout, first=view == 0, last=last, slice_=0, slices=1, final=last and frame == frames - 1)
            items.append(readout)
    if waveforms:
        items = _with_ecg(items, frames * views * protocol.tr_ms)
    truth = {"frames": np.stack(objects), "frame_time_ms": middle_ms, "coil_maps": maps, "noise_covariance": factor @ factor.conj().T}
    return Scan(_header(protocol), _numbered(items), truth)


def _lines(protocol: Protocol) -> list[int]:
    """The acquired lines: every R-th through the centre, and the calibration block around it."""
    count, center = protocol.lines[0] + 1, protocol.lines[1]
    return [line for line in range(count) if _is_imaging(protocol, line) or _in_block(protocol, line, center)]


def _is_imaging(protocol: Protocol, line: int) -> bool:
    return (line - protocol.lines[1]) % protocol.acceleration == 0


def _in_block(protocol: Protocol, line: int, center: int) -> bool:
    first = center - protocol.calibration_lines // 2
    return first <= line < first + protocol.calibration_lines


def _flag_calibration(readout: Acquisition, protocol: Protocol, line: int) -> None:
    if _in_block(protocol, line, protocol.lines[1]):
        both = _is_imaging(protocol, line)
        readout.set_flag(Flag.IS_PARALLEL_CALIBRATION_AND_IMAGING if both else Flag.IS_PARALLEL_CALIBRATION)


def _flag_ends(readout: Acquisition, *, first: bool, last: bool, slice_: int, slices: int, final: bool) -> None:
    if first:
        for flag in (Flag.FIRST_IN_ENCODE_STEP1, Flag.FIRST_IN_SLICE):
            readout.set_flag(flag)
        if slice_ == 0:
            readout.set_flag(Flag.FIRST_IN_REPETITION)
    if last:
        for flag in (Flag.LAST_IN_ENCODE_STEP1, Flag.LAST_IN_SLICE):
            readout.set_flag(flag)
        if slice_ == slices - 1:
            readout.set_flag(Flag.LAST_IN_REPETITION)
    if final:
        readout.set_flag(Flag.LAST_IN_MEASUREMENT)


def _readout(
    protocol: Protocol,
    number: float,
    samples: np.ndarray,
    factor: np.ndarray,
    rng: np.random.Generator,
    trajectory: np.ndarray | None = None,
) -> Acquisition:
    """Readout at `number` repetition times: noise added, times and geometry set."""
    readout = Acquisition(None, (samples + _noise(factor, samples.shape[1], rng)).astype(np.complex64), trajectory)
    time_ms = number * protocol.tr_ms + protocol.te_ms
    _place(readout, protocol, START_TICK + round(time_ms / TICK_MS))
    readout.header["user_float"][0] = time_ms
    readout.header["user_float"][1] = protocol.te_ms
    return readout


def _noise_scan(protocol: Protocol, factor: np.ndarray, rng: np.random.Generator, count: int) -> Iterator[Acquisition]:
    for number in range(count):
        readout = Acquisition(None, _noise(factor, NOISE_SAMPLES, rng).astype(np.complex64))
        readout.set_flag(Flag.IS_NOISE_MEASUREMENT)
        _place(readout, protocol, START_TICK - 20 * (count - number))
        yield readout


def _place(readout: Acquisition, protocol: Protocol, tick: int) -> None:
    header = readout.header
    header["measurement_uid"] = 1
    header["acquisition_time_stamp"] = tick
    header["sample_time_us"] = protocol.dwell_us
    header["channel_mask"][: (protocol.coils + 63) // 64] = [
        (1 << min(64, protocol.coils - first)) - 1 for first in range(0, protocol.coils, 64)
    ]
    header["read_dir"], header["phase_dir"], header["slice_dir"] = (1, 0, 0), (0, 1, 0), (0, 0, 1)


def _numbered(items: list[Item]) -> list[Item]:
    """Number the readouts, and the waveforms, from 1."""
    for kind in (Acquisition, Waveform):
        for number, item in enumerate((item for item in items if isinstance(item, kind)), 1):
            item.header["scan_counter"] = number  # type: ignore[attr-defined]
    return items


def _with_ecg(items: list[Item], duration_ms: float, beat_ms: float = 800.0) -> list[Item]:
    """Interleave an ECG, one sample a tick, each message at the time of its first sample."""
    ticks = np.arange(int(np.ceil(duration_ms / TICK_MS / ECG_BLOCK)) * ECG_BLOCK)
    phase = (ticks * TICK_MS / beat_ms) % 1
    trace = (2048 + 1500 * np.exp(-(((phase - 0.3) / 0.02) ** 2)) + 250 * np.exp(-(((phase - 0.55) / 0.06) ** 2))).astype(np.uint32)
    waves: list[Item] = []
    for first in range(0, ticks.size, ECG_BLOCK):
        wave = Waveform(None, trace[None, first : first + ECG_BLOCK])
        wave.header["measurement_uid"] = 1
        wave.header["time_stamp"] = START_TICK + first
        wave.header["sample_time_us"] = TICK_MS * 1e3
        waves.append(wave)
    return sorted([*waves, *items], key=_time)


def _time(item: Item) -> int:
    return int(item.header["time_stamp" if isinstance(item, Waveform) else "acquisition_time_stamp"])  # type: ignore[attr-defined]


def _noise_factor(coils: int, noise: float, rng: np.random.Generator) -> np.ndarray:
    """Cholesky factor [coil, coil] of a noise covariance with unequal gains and correlated neighbours."""
    gains = 1 + 0.2 * rng.uniform(-1, 1, coils)
    distance = np.abs(np.subtract.outer(np.arange(coils), np.arange(coils)))
    phases = np.exp(1j * rng.uniform(0, 2 * np.pi, coils))
    correlation = 0.3**distance * np.outer(phases, phases.conj())
    return noise * gains[:, None] * np.linalg.cholesky(correlation)


def _noise(factor: np.ndarray, samples: int, rng: np.random.Generator) -> np.ndarray:
    white = rng.standard_normal((factor.shape[0], samples)) + 1j * rng.standard_normal((factor.shape[0], samples))
    return factor @ white / np.sqrt(2)


def _header(protocol: Protocol) -> bytes:
    """A complete ISMRMRD header without <version>, which a real Gadgetron compares with its own library."""
    (ex, ey), (rx, ry) = protocol.encoded, protocol.recon
    fx, fy = protocol.field_of_view_mm
    z = protocol.thickness_mm
    line_limit = xsd.limitType(minimum=0, maximum=protocol.lines[0], center=protocol.lines[1])

    def limit(count: int) -> xsd.limitType:
        return xsd.limitType(minimum=0, maximum=count - 1, center=0)

    limits = {name: limit(1) for name in ("kspace_encoding_step_2", "average", "phase", "set", "segment")}
    encoding = xsd.encodingType(
        encodedSpace=_space(protocol.encoded, (fx * ex / rx, fy * ey / ry, z)),
        reconSpace=_space(protocol.recon, (fx, fy, z)),
        encodingLimits=xsd.encodingLimitsType(
            kspace_encoding_step_1=line_limit,
            slice=limit(protocol.slices),
            repetition=limit(protocol.repetitions),
            contrast=limit(protocol.contrasts),
            **limits,
        ),
        trajectory=xsd.trajectoryType(protocol.trajectory),
        trajectoryDescription=_description(protocol),
        parallelImaging=_parallel_imaging(protocol),
    )
    header = xsd.ismrmrdHeader(
        subjectInformation=xsd.subjectInformationType(patientID="simulated"),
        studyInformation=xsd.studyInformationType(studyID="1"),
        measurementInformation=xsd.measurementInformationType(
            measurementID=f"simulated_{protocol.name}", patientPosition=xsd.patientPositionType.HFS, protocolName=protocol.name
        ),
        acquisitionSystemInformation=xsd.acquisitionSystemInformationType(
            systemVendor="SIMULATION",
            systemModel="reconstream",
            systemFieldStrength_T=1.5,
            relativeReceiverNoiseBandwidth=0.79,
            receiverChannels=protocol.coils,
            coilLabel=[xsd.coilLabelType(coilNumber=c, coilName=f"Coil{c:02d}") for c in range(protocol.coils)],
        ),
        experimentalConditions=xsd.experimentalConditionsType(H1resonanceFrequency_Hz=63866218),
        encoding=[encoding],
        sequenceParameters=xsd.sequenceParametersType(
            TR=[protocol.tr_ms],
            TE=list(protocol.echo_times_ms or (protocol.te_ms,)),
            flipAngle_deg=list(protocol.flips_deg or (protocol.flip_deg,)),
        ),
        userParameters=xsd.userParametersType(
            userParameterDouble=[
                xsd.userParameterDoubleType(name=name, value=value)
                for name, value in ({"time_stamp_tick_ms": TICK_MS} | protocol.user).items()
            ],
            userParameterLong=[xsd.userParameterLongType(name="readouts_per_frame", value=protocol.lines[0] + 1)],
        ),
    )
    text: str = header.toXML("utf-8")
    return text.encode()


def _description(protocol: Protocol) -> xsd.trajectoryDescriptionType | None:
    if not protocol.description:
        return None
    whole = [name for name, value in protocol.description.items() if isinstance(value, int)]
    return xsd.trajectoryDescriptionType(
        identifier="ConventionalEPI",
        userParameterLong=[xsd.userParameterLongType(name=name, value=protocol.description[name]) for name in whole],
        userParameterDouble=[
            xsd.userParameterDoubleType(name=name, value=value) for name, value in protocol.description.items() if name not in whole
        ],
    )


def _parallel_imaging(protocol: Protocol) -> xsd.parallelImagingType | None:
    if protocol.acceleration == 1:
        return None
    return xsd.parallelImagingType(
        accelerationFactor=xsd.accelerationFactorType(kspace_encoding_step_1=protocol.acceleration, kspace_encoding_step_2=1),
        calibrationMode=xsd.calibrationModeType.SEPARATE if protocol.separate_calibration else xsd.calibrationModeType.EMBEDDED,
    )


def _space(matrix: tuple[int, int], field_of_view_mm: tuple[float, float, float]) -> xsd.encodingSpaceType:
    x, y, z = field_of_view_mm
    return xsd.encodingSpaceType(
        matrixSize=xsd.matrixSizeType(x=matrix[0], y=matrix[1], z=1), fieldOfView_mm=xsd.fieldOfViewMm(x=x, y=y, z=z)
    )


app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)
Out = Annotated[Path, typer.Argument(help="ISMRMRD HDF5 file to write; the truth goes to <stem>_truth.npz beside it")]
Matrix = Annotated[int, typer.Option(help="image size in pixels")]
Coils = Annotated[int, typer.Option(help="receive channels")]
Frames = Annotated[int, typer.Option(help="frames (repetitions)")]
Noise = Annotated[float, typer.Option(help="noise of a fully sampled coil image, in units of the object's maximum")]
Seed = Annotated[int, typer.Option(help="seed of the noise")]
Moving = Annotated[bool, typer.Option(help="beating heart, or the Shepp-Logan phantom at rest")]
Ecg = Annotated[bool, typer.Option("--ecg", help="interleave an ECG waveform")]


@app.command("radial")
def radial_command(
    out: Out,
    matrix: Matrix = 128,
    coils: Coils = 8,
    spokes: Annotated[int, typer.Option(help="spokes per frame")] = 13,
    frames: Frames = 20,
    moving: Moving = True,
    ordering: Annotated[str, typer.Option(help="linear, golden, golden_half, tiny, tiny_half")] = "tiny_half",
    noise: Noise = 0.02,
    ecg: Ecg = False,
    seed: Seed = 1,
) -> None:
    """Golden-angle radial scan, real-time frames."""
    _write(out, radial(matrix, coils, spokes, frames, moving=moving, ordering=ordering, noise=noise, waveforms=ecg, seed=seed))  # type: ignore[arg-type]


@app.command("spiral")
def spiral_command(
    out: Out,
    matrix: Matrix = 128,
    coils: Coils = 8,
    interleaves: Annotated[int, typer.Option(help="interleaves per frame")] = 12,
    frames: Frames = 10,
    moving: Moving = True,
    noise: Noise = 0.02,
    ecg: Ecg = False,
    seed: Seed = 1,
) -> None:
    """Archimedean spirals, real-time frames."""
    _write(out, spiral(matrix, coils, interleaves, frames, moving=moving, noise=noise, waveforms=ecg, seed=seed))


@app.command("hyperslice")
def hyperslice_command(
    out: Out,
    matrix: Matrix = 240,
    coils: Coils = 10,
    frames: Frames = 24,
    moving: Moving = True,
    noise: Noise = 0.02,
    ecg: Ecg = False,
    seed: Seed = 1,
) -> None:
    """Interactive real-time spirals of HyperSLICE's protocol."""
    _write(out, hyperslice(matrix, coils, frames, moving=moving, noise=noise, waveforms=ecg, seed=seed))


@app.command("cartesian")
def cartesian_command(
    out: Out,
    matrix: Annotated[tuple[int, int], typer.Option(help="image size x y in pixels")] = (128, 128),
    coils: Coils = 8,
    acceleration: Annotated[int, typer.Option(help="acceleration along y, 1 to 4", min=1, max=8)] = 2,
    calibration_lines: Annotated[int, typer.Option(help="embedded calibration lines")] = 24,
    repetitions: Annotated[int, typer.Option(help="repetitions")] = 1,
    slices: Annotated[int, typer.Option(help="slices")] = 1,
    oversampling: Annotated[int, typer.Option(help="readout oversampling")] = 2,
    noise: Noise = 0.02,
    ecg: Ecg = False,
    seed: Seed = 1,
) -> None:
    """Cartesian scan with parallel imaging and embedded calibration lines."""
    scan = cartesian(
        matrix,
        coils,
        acceleration,
        calibration_lines,
        repetitions=repetitions,
        slices=slices,
        oversampling=oversampling,
        noise=noise,
        waveforms=ecg,
        seed=seed,
    )
    _write(out, scan)


@app.command("relaxation")
def relaxation_command(
    out: Out,
    kind: Annotated[str, typer.Option(help="t1_vfa, t1_ll, t2 or t2star")] = "t1_vfa",
    matrix: Matrix = 96,
    coils: Coils = 6,
    spokes: Annotated[int, typer.Option(help="spokes a contrast; 0: Cartesian")] = 0,
    slices: Annotated[int, typer.Option(help="slices")] = 1,
    repetitions: Annotated[int, typer.Option(help="repetitions")] = 1,
    noise: Noise = 0.02,
    seed: Seed = 1,
) -> None:
    """Contrasts of vials of known relaxation times."""
    _write(out, relaxation(kind, matrix, coils, spokes, slices=slices, repetitions=repetitions, noise=noise, seed=seed))  # type: ignore[arg-type]


@app.command("epi")
def epi_command(
    out: Out,
    matrix: Annotated[tuple[int, int], typer.Option(help="image size x y in pixels")] = (64, 64),
    coils: Coils = 8,
    shots: Annotated[int, typer.Option(help="interleaved shots")] = 1,
    acceleration: Annotated[int, typer.Option(help="acceleration along y", min=1, max=8)] = 1,
    repetitions: Annotated[int, typer.Option(help="repetitions")] = 2,
    slices: Annotated[int, typer.Option(help="slices")] = 2,
    navigators: Annotated[int, typer.Option(help="lines without phase encoding before each train")] = 3,
    delay: Annotated[float, typer.Option(help="of the readout gradient behind the sampling, us")] = 1.5,
    phase: Annotated[float, typer.Option(help="of forward relative to backward lines, rad")] = 0.4,
    noise: Noise = 0.02,
    seed: Seed = 1,
) -> None:
    """Echo-planar scan with navigators, gradient delay and phase between odd and even lines."""
    scan = epi(
        matrix,
        coils,
        shots=shots,
        acceleration=acceleration,
        repetitions=repetitions,
        slices=slices,
        navigators=navigators,
        delay_us=delay,
        phase=phase,
        noise=noise,
        seed=seed,
    )
    _write(out, scan)


def _write(out: Path, scan: Scan) -> None:
    truth = scan.save(out)
    readouts = sum(isinstance(item, Acquisition) for item in scan.items)
    typer.echo(f"wrote {out}: {readouts} readouts; truth: {truth}")


if __name__ == "__main__":
    app()
