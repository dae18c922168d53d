"""Trajectories to train on: those of protocols, and random ones around them."""

from __future__ import annotations

from typing import Any

import numpy as np

from recon.density import pipe_weights, radial_weights
from recon.realtime_spiral import RealtimeSpiral
from recon.spiral import spiral_trajectory
from recon.trajectory import rotate, spoke

Frame = tuple[np.ndarray, np.ndarray]
"""Points ``[sample, 2]`` in rad/pixel and density weights ``[sample]``."""
SEVENTH_TINY_ANGLE = np.pi / ((1 + np.sqrt(5)) / 2 + 6)
"""23.6281 degrees."""


def radial(shape: tuple[int, int], frames: int, spokes: int = 13, samples: int | None = None) -> list[Frame]:
    """Consecutive frames of tiny golden angle spokes, `samples` each (twice the matrix)."""
    samples = samples or 2 * shape[0]
    line = np.stack([spoke(shape[0], samples / shape[0]), np.zeros(samples)], -1)
    views = [rotate(line, SEVENTH_TINY_ANGLE * (spokes * n + np.arange(spokes))).astype(np.float32) for n in range(frames)]
    return [(view.reshape(-1, 2), radial_weights(view, shape).reshape(-1)) for view in views]


def sodium(shape: tuple[int, int], frames: int) -> list[Frame]:
    """The published spiral of sodium imaging, 20 arms, every frame the same."""
    hardware = {"readout_os": 2.0, "gradient_delay": -4.0, "larmor_const": 11.261972}
    points = spiral_trajectory(shape[0], 20, 180.0, 24.0, 8.125, 14.8, views=20, **hardware).reshape(-1, 2)  # type: ignore[arg-type]
    return [(points, pipe_weights(points, shape))] * frames


def spiral(shape: tuple[int, int], frames: int, turn: float | None = None, **protocol: Any) -> list[Frame]:
    """A real-time spiral, turned by `turn` degrees a frame (None: as published). Other arguments: see `RealtimeSpiral`."""
    designed = RealtimeSpiral(**{"base_resolution": shape[0], **protocol})
    turn = 360 / designed.arms / designed.phases if turn is None else turn
    return turning(designed.trajectory[0].reshape(-1, 2), shape, frames, 0.0, turn)


def random_spiral(shape: tuple[int, int], frames: int, random: np.random.Generator) -> list[Frame]:
    """A spiral of random arms, density and turn: half of them designed for a gradient system, half by a formula."""
    points = _designed(random) if random.random() < 0.5 else _by_formula(random)
    if random.random() < 0.5:
        points = points[:, ::-1]
    arm = 360 / random.integers(10, 25)
    turn = (2.0, arm / 12, arm * 0.618, random.uniform(-180, 180))[random.integers(4)]
    return turning(points, shape, frames, random.uniform(0, 360), turn)


def turning(points: np.ndarray, shape: tuple[int, int], frames: int, start: float, turn: float) -> list[Frame]:
    """Frames of one trajectory that turns from frame to frame; angles in degrees. Turning does not change its weights."""
    weights = pipe_weights(np.ascontiguousarray(points, np.float32), shape)
    return [(_turned(points, np.deg2rad(start + turn * n)), weights) for n in range(frames)]


def _designed(random: np.random.Generator) -> np.ndarray:
    while True:
        protocol = RealtimeSpiral(
            base_resolution=int(random.choice([192, 208, 224, 240])),
            field_of_view=random.uniform(320, 440),
            spiral_arms=int(random.integers(12, 30)),
            shortest_arm=0.7,
            longest_arm=random.uniform(1.2, 2.6),
            vd_inner_cutoff=random.uniform(0.03, 0.25),
            vd_transition=random.uniform(0.15, 0.8),
            vd_outer_density=random.uniform(0.05, 0.3),
            vd_type=str(random.choice(["linear", "quadratic", "hanning"])),  # type: ignore[arg-type]
        )
        try:
            points: np.ndarray = protocol.trajectory[0].reshape(-1, 2)
            return points
        except ValueError:  # no such spiral fits the readout
            continue


def _by_formula(random: np.random.Generator) -> np.ndarray:
    """Radius = angle to a power, some turns, sampled faster and faster up to a constant speed."""
    arms, turns = int(random.integers(10, 22)), random.uniform(0.7, 3.0)
    fine = np.linspace(0, 1, 4000)
    line = fine ** random.uniform(0.8, 1.8) * np.exp(2j * np.pi * turns * fine)
    length = np.concatenate([[0], np.cumsum(np.abs(np.diff(line)))])
    time = np.linspace(0, 1, int(random.integers(200, 500)))
    ramp = random.uniform(0.05, 0.5)
    travelled = np.where(time < ramp, time**2 / (2 * ramp), time - ramp / 2) / (1 - ramp / 2)
    arm = np.interp(travelled * length[-1], length, line) * np.pi * random.uniform(0.9, 1.0)
    whole = (arm * np.exp(2j * np.pi * np.arange(arms)[:, None] / arms)).reshape(-1)
    return np.stack([whole.real, whole.imag], -1)


def _turned(points: np.ndarray, angle: float) -> np.ndarray:
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turned: np.ndarray = (points @ matrix.T).astype(np.float32)
    return turned
