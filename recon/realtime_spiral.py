"""Spirals for interactive real-time imaging: as few arms as a readout time allows, as many arms a frame as a frame time allows.

The protocol of HyperSLICE (Jaubert et al., Magn. Reson. Med. 91 (2024)): the number of arms that a full set would need is raised or
lowered until an arm's readout fits; frames hold less than the full set, and turn from frame to frame.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from recon.density import pipe_weights
from recon.spiral import DensityType, SpiralDesign, spiral_arm, spiral_trajectory

TRIES = 50


@dataclass(frozen=True)
class RealtimeSpiral:
    """A protocol; the defaults are those of HyperSLICE.

    Attributes:
        base_resolution: image size in pixels.
        field_of_view: mm.
        spiral_arms: arms of a full set to start the search with.
        shortest_arm, longest_arm: readout of an arm, ms.
        frame_time: longest time of a frame, ms.
        dead_time: of a repetition outside the readout, ms.
        phases: frames until the angles repeat.
        vd_transition: where the density has reached its outer value, as a fraction of what lies beyond `vd_inner_cutoff` + 0.1.
        max_grad_ampl, min_rise_time, dwell_time, readout_os, gradient_delay, vd_inner_cutoff, vd_outer_density, vd_type: see
            `spiral_trajectory`.
    """

    base_resolution: int = 240
    field_of_view: float = 400.0
    spiral_arms: int = 16
    shortest_arm: float = 0.88
    longest_arm: float = 1.67
    frame_time: float = 55.0
    dead_time: float = 2.0
    phases: int = 12
    max_grad_ampl: float = 22.0
    min_rise_time: float = 10.0
    dwell_time: float = 1.4
    readout_os: float = 2.0
    gradient_delay: float = 0.56
    vd_inner_cutoff: float = 0.15
    vd_transition: float = 0.41288
    vd_outer_density: float = 0.07
    vd_type: DensityType = "hanning"

    @cached_property
    def design(self) -> SpiralDesign:
        """The arm that fits.

        Raises:
            ValueError: none does.
        """
        arms = self.spiral_arms
        for _ in range(TRIES):
            design = self._designed(arms)
            duration = self._duration(design)
            if self.shortest_arm < duration < self.longest_arm:
                return design
            arms += 1 if duration >= self.longest_arm else -1
            if arms < 1:
                break
        raise ValueError(
            f"no spiral of {self.base_resolution} pixels reads out in {self.shortest_arm} to {self.longest_arm} ms; change these limits, "
            "the field of view or the gradient system"
        )

    @property
    def arms(self) -> int:
        """Arms of a frame."""
        arms = int(self.frame_time / self.repetition_time)
        if arms < 1:
            raise ValueError(f"a repetition takes {self.repetition_time:.2f} ms, longer than the frame_time of {self.frame_time} ms")
        return arms

    @property
    def repetition_time(self) -> float:
        """Readout and dead time, ms."""
        return self._duration(self.design) + self.dead_time

    @cached_property
    def trajectory(self) -> np.ndarray:
        """``[phase, arm, sample, 2]`` in rad/pixel, without the first sample, which the gradient delay leaves at the centre."""
        return self._views(self.arms, self.phases)[:, :, 1:]

    @cached_property
    def weights(self) -> np.ndarray:
        """Density weights ``[arm, sample]`` of every frame: those of the full set of arms, as published."""
        design = self.design
        whole = self._views(design.spiral_arms, None)[:, 1:]
        shape = (self.base_resolution, self.base_resolution)
        weights = pipe_weights(whole.reshape(-1, 2), shape).reshape(whole.shape[:2])
        turns = -(-self.arms // len(weights))
        return np.tile(weights, (turns, 1))[: self.arms]

    def _views(self, views: int, phases: int | None) -> np.ndarray:
        return spiral_trajectory(**vars(self.design), views=views, phases=phases)

    def _designed(self, arms: int) -> SpiralDesign:
        start = self.vd_inner_cutoff + 0.1
        return SpiralDesign(
            self.base_resolution,
            arms,
            self.field_of_view,
            self.max_grad_ampl,
            self.min_rise_time,
            self.dwell_time,
            self.readout_os,
            self.gradient_delay,
            vd_inner_cutoff=self.vd_inner_cutoff,
            vd_outer_cutoff=start + self.vd_transition * (1 - start),
            vd_outer_density=self.vd_outer_density,
            vd_type=self.vd_type,
        )

    def _duration(self, design: SpiralDesign) -> float:
        return len(spiral_arm(design).trajectory) * self.dwell_time / 1000
