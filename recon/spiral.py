"""Spiral arms designed for a gradient system, with uniform or variable density.

Pipe and Zwart, Magn. Reson. Med. 71 (2014) 278: the direction of every step follows from the radial distance wanted
between turns, its length is the largest that the slew rate and the amplitude allow. Where a bend is too sharp for the
speed, the design returns and brakes earlier.
"""

from __future__ import annotations

import cmath
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, get_args

import numpy as np

from recon.trajectory import AngleRange, Ordering, radial_angles, rotate

DensityType = Literal["linear", "quadratic", "hanning"]
LARMOR_1H = 42.577478518  # MHz/T
RASTER_US = 10  # time between two values of a gradient waveform
SUBSTEPS = 10  # steps of the design in one raster time
LONGEST = 20_000  # raster times


@dataclass(frozen=True)
class SpiralDesign:
    """What one arm is designed for; arguments and units as in `spiral_trajectory`."""

    base_resolution: int
    spiral_arms: int
    field_of_view: float
    max_grad_ampl: float
    min_rise_time: float
    dwell_time: float
    readout_os: float = 2.0
    gradient_delay: float = 0.0
    larmor_const: float = LARMOR_1H
    vd_inner_cutoff: float = 1.0
    vd_outer_cutoff: float = 1.0
    vd_outer_density: float = 1.0
    vd_type: DensityType = "linear"

    def __post_init__(self) -> None:
        for name in (
            *("base_resolution", "spiral_arms", "field_of_view", "max_grad_ampl", "min_rise_time", "dwell_time"),
            *("readout_os", "larmor_const", "vd_outer_density"),
        ):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be positive, not {value}")
        if self.readout_os < 1:
            raise ValueError(f"readout_os must be at least 1, not {self.readout_os}")
        if not math.isfinite(self.gradient_delay):
            raise ValueError(f"gradient_delay must be a number of microseconds, not {self.gradient_delay}")
        if not 0 <= self.vd_inner_cutoff <= self.vd_outer_cutoff:
            raise ValueError(f"0 <= vd_inner_cutoff <= vd_outer_cutoff is needed, not {self.vd_inner_cutoff} and {self.vd_outer_cutoff}")
        if self.vd_type not in get_args(DensityType):
            raise ValueError(f"vd_type {self.vd_type!r} is unknown; use one of {', '.join(get_args(DensityType))}")

    @property
    def amplitude(self) -> float:
        """Gradient in mT/m at which the signal of the whole field of view fills the bandwidth of the readout."""
        return 1e6 / (self.dwell_time * self.readout_os) / (self.larmor_const * self.field_of_view)

    @property
    def radians_per_mt_m_us(self) -> float:
        """Path through k-space, in rad/pixel, of 1 mT/m acting for 1 us."""
        return 2 * math.pi * self.larmor_const * 1e-6 * self.field_of_view / self.base_resolution

    def spacing(self, radius: float) -> float:
        """Radial distance between two turns of one arm, relative to Nyquist's, at a fraction of the k-space radius."""
        if radius <= self.vd_inner_cutoff:
            return 1.0
        outer = 1 / self.vd_outer_density
        if radius >= self.vd_outer_cutoff:
            return outer
        u = (radius - self.vd_inner_cutoff) / (self.vd_outer_cutoff - self.vd_inner_cutoff)
        blend = {"linear": u, "quadratic": u * u, "hanning": (1 - math.cos(math.pi * u)) / 2}[self.vd_type]
        return 1 + (outer - 1) * blend


@dataclass(frozen=True)
class SpiralArm:
    """One arm, starting along the first axis.

    trajectory: rad/pixel, float64 `[samples, 2]`, a sample every dwell time.
    gradient: mT/m, float64 `[n, 2]`, a value every 10 us, ramp to zero included.
    readout_us: duration of the readout in us, without the ramp.
    """

    trajectory: np.ndarray
    gradient: np.ndarray
    readout_us: int


def spiral_trajectory(
    base_resolution: int,
    spiral_arms: int,
    field_of_view: float,
    max_grad_ampl: float,
    min_rise_time: float,
    dwell_time: float,
    views: int = 1,
    phases: int | None = None,
    ordering: Ordering = "linear",
    angle_range: AngleRange = "full",
    tiny_number: int = 7,
    readout_os: float = 2.0,
    gradient_delay: float = 0.0,
    larmor_const: float = LARMOR_1H,
    vd_inner_cutoff: float = 1.0,
    vd_outer_cutoff: float = 1.0,
    vd_outer_density: float = 1.0,
    vd_type: DensityType = "linear",
) -> np.ndarray:
    """Spiral-out trajectory: one arm (`spiral_arm`), rotated by the angles of `radial_angles`.

    The radial distance of two turns is that of Nyquist, spiral_arms / field of view, up to `vd_inner_cutoff`, and
    1 / `vd_outer_density` times as much from `vd_outer_cutoff` on: a density below 1 makes the edge sparser and the
    readout shorter. Between the two it changes as u, u^2 or (1 - cos(pi u)) / 2, u running from 0 to 1.

    Args:
        base_resolution: image size in pixels.
        spiral_arms: arms that together sample k-space fully.
        field_of_view: mm.
        max_grad_ampl: largest gradient, mT/m. (The readout's bandwidth may ask for less: `SpiralDesign.amplitude`.)
        min_rise_time: us/(mT/m); the slew rate is 1000 / min_rise_time T/m/s.
        dwell_time: time between samples, us, readout oversampling included.
        views, phases, ordering, angle_range, tiny_number: angles of the arms, see `radial_angles`.
        readout_os: readout oversampling.
        gradient_delay: time by which the gradients lag behind the samples, us.
        larmor_const: MHz/T.
        vd_inner_cutoff, vd_outer_cutoff: fractions of the k-space radius between which the density changes.
        vd_outer_density: density at the edge, relative to the centre.
        vd_type: course of the change: linear, quadratic or hanning.

    Returns:
        float32 `[views, samples, 2]` or `[phases, views, samples, 2]`, rad/pixel.

    Raises:
        ValueError: an argument out of its bounds, or limits that no spiral can meet.
    """
    design = SpiralDesign(
        *(base_resolution, spiral_arms, field_of_view, max_grad_ampl, min_rise_time, dwell_time, readout_os, gradient_delay),
        *(larmor_const, vd_inner_cutoff, vd_outer_cutoff, vd_outer_density, vd_type),
    )
    angles = radial_angles(views, phases, ordering, angle_range, tiny_number)
    return rotate(spiral_arm(design).trajectory, angles).astype(np.float32)


@lru_cache(maxsize=64)
def spiral_arm(design: SpiralDesign) -> SpiralArm:
    """Design one arm. The arrays of the result are shared by all callers and cannot be written to.

    The gradient follows the design with the mean of every raster time; the trajectory is its integral by the
    trapezoidal rule, as a gradient amplifier that joins raster points by lines would play it.

    Raises:
        ValueError: the readout's bandwidth asks for more than `max_grad_ampl`; the slew rate cannot follow the first
            bend; the readout exceeds 200 ms.
    """
    if design.amplitude > design.max_grad_ampl:
        needed = design.dwell_time * design.amplitude / design.max_grad_ampl
        raise ValueError(
            f"a dwell_time of {design.dwell_time:g} us with readout_os {design.readout_os:g} needs a gradient of "
            f"{design.amplitude:.4g} mT/m, more than max_grad_ampl {design.max_grad_ampl:g}: use a dwell_time of at least "
            f"{needed:.4g} us, or a larger field_of_view"
        )
    path = _path(design)[::SUBSTEPS]
    scale = design.radians_per_mt_m_us * RASTER_US
    gradient = np.concatenate([[0], np.diff(path)]) / scale
    readout_us = len(gradient) * RASTER_US
    gradient = np.concatenate([gradient, _ramp_down(gradient[-1], design)])
    played = np.concatenate([[0], np.cumsum((gradient[1:] + gradient[:-1]) / 2)]) * scale
    raw_dwell_ns = math.floor(design.dwell_time * design.readout_os * 1000 + 0.5)
    samples = round(-(-readout_us * 1000 // raw_dwell_ns) * design.readout_os)
    times = np.arange(samples) * design.dwell_time - design.gradient_delay
    sampled = np.interp(times, np.arange(len(played)) * RASTER_US, played)
    return SpiralArm(_columns(sampled), _columns(gradient), readout_us)


def _path(design: SpiralDesign) -> np.ndarray:
    """Complex path through k-space in rad/pixel, a point every RASTER_US / SUBSTEPS, up to the edge of k-space."""
    step_us = RASTER_US / SUBSTEPS
    per_step = design.radians_per_mt_m_us * step_us
    fastest = design.amplitude * per_step
    change = (step_us / design.min_rise_time) * per_step
    if 2 * change > fastest:
        raise ValueError(
            f"min_rise_time {design.min_rise_time:g} us/(mT/m) reaches the gradient of {design.amplitude:.4g} mT/m within "
            f"{2 * step_us:g} us, too fast to design a spiral for: use a larger min_rise_time"
        )
    edge = math.pi * (1 - 1 / design.base_resolution)
    k = [0j, complex(change), complex(3 * change)]  # straight out at full slew rate
    # For every point: does the step from there use the slew rate that bending leaves to speed up, or to brake?
    speeds_up = [True] * len(k)
    while abs(k[-1]) <= edge:
        step = _step(k[-2], k[-1], speeds_up[len(k) - 1], fastest, change, design)
        if step is None:
            _brake_earlier(k, speeds_up)
            continue
        k.append(k[-1] + step)
        speeds_up.extend([True] * (len(k) - len(speeds_up)))
        if len(k) > LONGEST * SUBSTEPS:
            raise ValueError(
                f"the spiral would last longer than {LONGEST * RASTER_US // 1000} ms: "
                "use more spiral_arms, a shorter dwell_time or a smaller base_resolution"
            )
    return np.array(k)


def _step(before: complex, here: complex, speeds_up: bool, fastest: float, change: float, design: SpiralDesign) -> complex | None:
    """The next step in the direction that keeps the distance between turns; None if that bend exceeds the slew rate.

    Solves |step - last step| = `change` for the step's length, given its direction.
    """
    last = here - before
    middle = here + last / 2
    radius = abs(middle)
    nyquist = 2 * math.pi * design.spiral_arms / design.base_resolution
    turn = math.atan(2 * math.pi * radius / (design.spacing(radius / math.pi) * nyquist))
    direction = cmath.rect(1, cmath.phase(middle) + turn)
    along = (last * direction.conjugate()).real
    room = change * change - abs(last) ** 2 + along * along
    if room < 0:
        return None
    return direction * min(along + math.copysign(math.sqrt(room), 1 if speeds_up else -1), fastest)


def _brake_earlier(k: list[complex], speeds_up: list[bool]) -> None:
    """Return to the last point that still sped up and brake there."""
    point = len(k) - 2
    while point > 2 and not speeds_up[point]:
        point -= 1
    if point < 2 or not speeds_up[point]:
        raise ValueError("the slew rate cannot follow the first turn even from rest: use more spiral_arms or another min_rise_time")
    speeds_up[point] = False
    del k[point:]


def _ramp_down(last: complex, design: SpiralDesign) -> np.ndarray:
    """Gradient values from `last` (excluded) to zero within the slew rate."""
    values = math.ceil(abs(last) * design.min_rise_time / RASTER_US)
    return np.asarray(last * np.arange(values - 1, -1, -1) / max(values, 1))


def _columns(values: np.ndarray) -> np.ndarray:
    columns = np.stack([values.real, values.imag], axis=-1)
    columns.flags.writeable = False
    return columns
