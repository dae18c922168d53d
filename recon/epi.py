"""Echo-planar trajectories: lines read in alternating directions under trapezoidal or sinusoidal gradients, ramps included."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from recon.fourier import fftc


@dataclass(frozen=True)
class EpiReadout:
    """One readout of an echo train; times in us.

    samples, dwell_time: sampling of a line.
    ramp_up_time, flat_top_time, ramp_down_time: the trapezoid.
    acquisition_delay: start of sampling after the start of the ramp; None for sampling centred on the trapezoid.
    sample_at: moment within its dwell time for which a sample stands: 0.5 the middle, 1 the end (as Gadgetron's
        EPIReconXGadget has it), 0 the start (so that full flat tops give -pi, -pi + 2 pi / samples, ...).
    ramps: straight, or quarter periods of a sine (a wholly sinusoidal gradient has a flat top of 0).
    delay: of the gradient behind the sampling.
    """

    samples: int
    dwell_time: float
    flat_top_time: float
    ramp_up_time: float = 0.0
    ramp_down_time: float = 0.0
    acquisition_delay: float | None = None
    sample_at: float = 0.5
    ramps: Literal["linear", "sinusoidal"] = "linear"
    delay: float = 0.0

    def __post_init__(self) -> None:
        if self.samples < 1 or not self.dwell_time > 0:
            raise ValueError(f"samples {self.samples} must be at least 1 and dwell_time {self.dwell_time} positive")
        if not min(self.ramp_up_time, self.flat_top_time, self.ramp_down_time) >= 0 or not self.duration > 0:
            raise ValueError(
                f"a trapezoid of ramp_up_time {self.ramp_up_time}, flat_top_time {self.flat_top_time} and ramp_down_time "
                f"{self.ramp_down_time} us is not possible"
            )
        if not 0 <= self.sample_at <= 1:
            raise ValueError(f"sample_at {self.sample_at} must lie between 0 (start) and 1 (end of the dwell time)")
        if not abs(self.delay) < self.duration / 2:
            raise ValueError(f"a delay of {self.delay:g} us does not suit a gradient of {self.duration:g} us")
        slack = 1e-6 * self.duration
        if self.start < -slack or self.start + self.sampling_time > self.duration + slack:
            raise ValueError(
                f"{self.samples} samples of {self.dwell_time:g} us from {self.start:g} us on do not fit into a trapezoid of "
                f"{self.duration:g} us: check dwell_time (us), the ramps and acquisition_delay"
            )

    @property
    def duration(self) -> float:
        """Duration of the trapezoid."""
        return self.ramp_up_time + self.flat_top_time + self.ramp_down_time

    @property
    def sampling_time(self) -> float:
        """Duration of sampling."""
        return self.samples * self.dwell_time

    @property
    def start(self) -> float:
        """Start of sampling after the start of the trapezoid."""
        return (self.duration - self.sampling_time) / 2 if self.acquisition_delay is None else self.acquisition_delay

    def area(self, time: np.ndarray | float) -> np.ndarray:
        """Area under the gradient, of height 1, until `time`, us."""
        time = np.clip(np.asarray(time, float), 0, self.duration)
        up = np.minimum(time, self.ramp_up_time)
        flat = np.clip(time - self.ramp_up_time, 0, self.flat_top_time)
        left = np.clip(self.duration - time, 0, self.ramp_down_time)
        whole = self._ramp_area(np.asarray(self.ramp_down_time), self.ramp_down_time)
        return np.asarray(self._ramp_area(up, self.ramp_up_time) + flat + whole - self._ramp_area(left, self.ramp_down_time))

    def _ramp_area(self, time: np.ndarray, ramp_time: float) -> np.ndarray:
        """Area under the first `time` of a ramp from 0 to 1."""
        if not ramp_time:
            return np.zeros_like(time)
        if self.ramps == "linear":
            return np.asarray(time**2 / (2 * ramp_time))
        return np.asarray((1 - np.cos(np.pi / 2 * time / ramp_time)) * (2 / np.pi * ramp_time))

    def positions(self, extent: float = 2 * np.pi) -> np.ndarray:
        """Positions kx of the samples of a forward line, float64 `[samples]`, rad/pixel.

        The centre of k-space lies at half the trapezoid's area; `extent` is what sampling without delay covers, 2 pi for all of it.
        """
        times = self.start + (np.arange(self.samples) + self.sample_at) * self.dwell_time
        covered = self.area(self.start + self.sampling_time) - self.area(self.start)
        return np.asarray((self.area(times - self.delay) - self.area(self.duration) / 2) * (extent / covered))


def epi_trajectory(
    readout: EpiReadout,
    lines: int,
    shots: int = 1,
    acceleration: int = 1,
    first_line: int = 0,
    extent: float = 2 * np.pi,
) -> np.ndarray:
    """Blipped echo-planar trajectory, every second line of a shot backwards.

    A backward line is the mirror image of a forward one. The blips are taken to happen between the samples.

    Args:
        readout: timing of a line.
        lines: lines of full k-space (image size along y).
        shots: interleaved shots; shot s takes every `shots`-th of the acquired lines, from the s-th on.
        acceleration: distance of acquired lines.
        first_line: first acquired line (partial Fourier).
        extent: what the readout covers along x, rad/pixel.

    Returns:
        float32 `[shots, lines of a shot, samples, 2]`, (ky, kx) in rad/pixel. Line n has ky = (n - lines // 2) 2 pi / lines.

    Raises:
        ValueError: no line is acquired, or the shots cannot share the lines evenly.
    """
    if min(lines, shots, acceleration) < 1 or not 0 <= first_line < lines:
        raise ValueError(
            f"lines {lines}, shots {shots} and acceleration {acceleration} must be at least 1, and first_line {first_line} one of the lines"
        )
    acquired = np.arange(first_line, lines, acceleration)
    if len(acquired) % shots:
        raise ValueError(f"{shots} shots cannot share {len(acquired)} acquired lines evenly: change shots, acceleration or first_line")
    ky = ((acquired - lines // 2) * (2 * np.pi / lines)).reshape(-1, shots).T
    sign = np.where(np.arange(ky.shape[1]) % 2, -1.0, 1.0)[:, None]
    kx = sign * readout.positions(extent)
    shape = (*ky.shape, readout.samples)
    return np.stack([np.broadcast_to(ky[..., None], shape), np.broadcast_to(kx, shape)], axis=-1).astype(np.float32)


def resampling_matrix(positions: np.ndarray, size: int, tolerance: float = 1e-3) -> np.ndarray:
    """Matrix that takes a line sampled at `positions` to the even grid -pi, -pi + 2 pi / size, ... (sample size // 2 in the centre).

    It fits an object of `size` pixels to the samples by least squares (pseudo-inverse of the Fourier matrix) and
    samples it anew: exact where the samples determine the object.

    Args:
        positions: kx of the samples, `[samples]`, rad/pixel.
        size: pixels of the object and samples of the new line.
        tolerance: singular values below this fraction of the largest are left out.

    Returns:
        complex128 `[size, samples]`; a line `[..., samples]` becomes `line @ matrix.T`.

    Raises:
        ValueError: fewer samples than pixels, or positions that are not finite.
    """
    positions = np.asarray(positions, float)
    if positions.ndim != 1 or not np.isfinite(positions).all():
        raise ValueError(f"positions must be finite numbers [samples], not an array of shape {positions.shape}")
    if size < 1 or len(positions) < size:
        raise ValueError(f"{len(positions)} samples do not determine {size} pixels: sample at least as many, or use a smaller size")
    pixels = np.arange(size) - size // 2
    fourier = np.exp(-1j * positions[:, None] * pixels) / np.sqrt(size)
    return np.asarray(fftc(np.linalg.pinv(fourier, rcond=tolerance), 0))


def pixel_matrix(positions: np.ndarray, size: int, pixels: int, spacing: float = 1.0, tolerance: float = 0.1) -> np.ndarray:
    """Matrix that takes a line sampled at `positions` to image pixels.

    Args:
        positions: kx of the samples, `[samples]`, rad/pixel.
        size: pixels of the encoded object, as in `resampling_matrix`.
        pixels: how many pixels to compute, number pixels // 2 in the centre.
        spacing: their distance in encoded pixels.
        tolerance: see `resampling_matrix`. The default keeps noise down where flat tops are sampled more coarsely than 2 pi / size (the
            edge of the image is lost then); lines that determine the image well do not depend on it.

    Returns:
        complex128 `[pixels, samples]`. With the encoded pixels it inverts the orthonormal transform; brightness does not depend on
        `spacing`.

    Raises:
        ValueError: see `resampling_matrix`.
    """
    even = (np.arange(size) - size // 2) * (2 * np.pi / size)
    places = (np.arange(pixels) - pixels // 2) * spacing
    return np.asarray(np.exp(1j * places[:, None] * even) / np.sqrt(size) @ resampling_matrix(positions, size, tolerance))


def receiver_phase(positions: np.ndarray, offset: float) -> np.ndarray:
    """Factors that undo what a receiver of constant frequency does to a line of an off-centre field of view.

    To move the field of view, a scanner shifts the receiver's frequency: a phase that grows evenly with time, while on the ramps k
    does not. The factors turn it into one that is even in k, `exp(-i offset (k - k_receiver))` with k_receiver running at the speed
    of the flat top through the same centre (sign as in Gadgetron's EPIReconXGadget).

    Args:
        positions: kx of the samples in the order of time, `[samples]`, rad/pixel.
        offset: of the field of view along the readout direction, in encoded pixels.

    Returns:
        complex128 `[samples]`.
    """
    steps = np.diff(positions)
    fastest = steps[np.argmax(np.abs(steps))]
    centre = np.interp(0.0, positions * np.sign(fastest), np.arange(len(positions)))
    return np.asarray(np.exp(-1j * offset * (positions - fastest * (np.arange(len(positions)) - centre))))
