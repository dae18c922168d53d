"""What a file of configs/training says: a network, a task, how to train."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import keras
import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from recon.networks.dncnn import DnCNN
from recon.networks.fast_dvd_net import FastDVDnet
from recon.networks.training import trajectories
from recon.networks.training.gridded_frames import GriddedFrames
from recon.networks.training.tasks import AveragedImage, CartesianSeries, CoilClip, NewestFrame, Task
from recon.networks.training.trajectories import Frame
from recon.networks.unet import UNet
from recon.networks.varnet import VarNet

CYCLE = 12
"""Frames of simulated trajectories before they repeat, if a series is not longer."""


class Strict(BaseModel):
    """No unknown keys."""

    model_config = ConfigDict(extra="forbid")


class Network(BaseModel):
    """A network and its arguments."""

    model_config = ConfigDict(extra="allow")
    kind: Literal["FastDVDnet", "DnCNN", "VarNet", "UNet"]

    def build(self) -> keras.Model:
        """With random weights."""
        kinds = {"FastDVDnet": FastDVDnet, "DnCNN": DnCNN, "VarNet": VarNet, "UNet": UNet}
        return kinds[self.kind](**(self.model_extra or {}))


class Trajectory(BaseModel):
    """A way to scan, a function of `trajectories` with its arguments; `random_spiral` takes a `count` and a `seed`."""

    model_config = ConfigDict(extra="allow")
    kind: Literal["spiral", "radial", "sodium", "random_spiral"]

    def cycles(self, shape: tuple[int, int], frames: int) -> list[list[Frame]]:
        """Consecutive frames, of as many trajectories as this stands for."""
        options: dict[str, Any] = dict(self.model_extra or {})
        if self.kind == "random_spiral":
            random = np.random.default_rng(options["seed"])
            return [trajectories.random_spiral(shape, frames, random) for _ in range(options["count"])]
        return [getattr(trajectories, self.kind)(shape, frames, **options)]


class TaskRecipe(Strict):
    """What to simulate; see `recon.networks.training.tasks`."""

    kind: Literal["newest_frame", "averaged_image", "cartesian_series", "coil_clip"]
    shape: tuple[int, int]
    noise: tuple[float, float]
    frames: int = 5
    coils: int = 10
    trajectories: list[Trajectory] = Field(default_factory=list)
    acceleration: float = 8.0
    centre: int = 8

    def build(self, anatomies: Sequence[np.ndarray | None]) -> list[Task]:
        """The source of pairs, for each set of slices."""
        if self.kind == "cartesian_series":
            shape, frames, coils = self.shape, self.frames, self.coils
            return [CartesianSeries(shape, self.noise, each, frames, coils, self.acceleration, self.centre) for each in anatomies]
        cycle = 1 if self.kind == "averaged_image" else max(CYCLE, self.frames)
        gridded = GriddedFrames([each for trajectory in self.trajectories for each in trajectory.cycles(self.shape, cycle)], self.shape)
        if self.kind == "averaged_image":
            return [AveragedImage(gridded, self.noise, each) for each in anatomies]
        kind = CoilClip if self.kind == "coil_clip" else NewestFrame
        return [kind(gridded, self.noise, each, self.frames, self.coils) for each in anatomies]


class Training(Strict):
    """How to train.

    Attributes:
        batch: series a step.
        minutes: of a whole run, start and evaluation included.
        learning_rate: the largest; it rises for a fiftieth of the time and falls to zero as a cosine.
        l1: weight of the mean absolute error beside 1 - SSIM.
        seed: of weights and data.
        precision: of the network.
        compile_simulation: by XLA as well; it takes minutes, and draws other numbers from the same seed.
    """

    batch: int = 8
    minutes: float = 8.0
    learning_rate: float = 5e-4
    l1: float = 1.0
    seed: int = 0
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "mixed_bfloat16"
    compile_simulation: bool = False


class Recipe(Strict):
    """The file."""

    network: Network
    task: TaskRecipe
    training: Training = Training()
