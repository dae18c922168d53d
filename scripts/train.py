"""Train a network on data simulated on the fly, by a recipe.

    python scripts/train.py configs/training/fastdvdnet_spiral.yaml -o OUT [--anatomy anatomy.npz] [--minutes M] [--steps N]

Writes OUT/weights.weights.h5 (single precision), OUT/metrics.json (recipe, time, steps, curve, metrics on held-out data, versions),
OUT/logs (for TensorBoard, where that is installed) and OUT/pictures (held-out examples). Interrupted, it goes on from
OUT/checkpoint.weights.h5 with --resume. The same seed and number of steps give the same data; sums on a GPU may still differ in their
last bits.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf
import yaml
from pydantic import BaseModel, ConfigDict, Field

from recon.density import pipe_weights, radial_weights
from recon.metrics import nrmse, psnr, ssim
from recon.networks.dncnn import DnCNN
from recon.networks.fast_dvd_net import FastDVDnet
from recon.networks.losses import SSIMLoss
from recon.networks.training.gridded_frames import GriddedFrames
from recon.networks.training.tasks import AveragedImage, CartesianSeries, CoilClip, NewestFrame, Task
from recon.networks.unet import UNet
from recon.networks.varnet import VarNet
from recon.realtime_spiral import RealtimeSpiral
from recon.spiral import spiral_trajectory
from recon.trajectory import rotate, spoke

VALIDATION_SEED = 10_000_019
"""Held-out data come from seeds that training never uses, and from slices of anatomy of their own."""
VALIDATION_BATCHES = 8
CYCLE = 24
"""Frames of simulated trajectories before they repeat."""


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
    """One way to scan: `spiral` takes the arguments of RealtimeSpiral and `turn`, degrees a frame; `radial` spokes and samples."""

    model_config = ConfigDict(extra="allow")
    kind: Literal["spiral", "radial", "sodium"]

    def frames(self, shape: tuple[int, int]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Trajectory and density weights of `CYCLE` frames."""
        options: dict[str, Any] = dict(self.model_extra or {})
        if self.kind == "sodium":
            hardware = {"readout_os": 2.0, "gradient_delay": -4.0, "larmor_const": 11.261972}
            points = spiral_trajectory(shape[0], 20, 180.0, 24.0, 8.125, 14.8, views=20, **hardware).reshape(-1, 2)
            return [(points, pipe_weights(points, shape))] * CYCLE
        if self.kind == "radial":
            spokes, samples = options.get("spokes", 13), options.get("samples", 2 * shape[0])
            line = np.stack([spoke(shape[0], samples / shape[0]), np.zeros(samples)], -1)
            step = np.pi / ((1 + np.sqrt(5)) / 2 + 6)  # the seventh tiny golden angle, 23.6281 degrees
            views = [rotate(line, step * (spokes * frame + np.arange(spokes))).astype(np.float32) for frame in range(CYCLE)]
            return [(view.reshape(-1, 2), radial_weights(view, shape).reshape(-1)) for view in views]
        turn = options.pop("turn", None)
        protocol = RealtimeSpiral(base_resolution=shape[0], **options)
        first = protocol.trajectory[0]
        turn = 360 / protocol.arms / protocol.phases if turn is None else turn
        turned = [_turned(first, np.deg2rad(turn * frame)).reshape(-1, 2) for frame in range(CYCLE)]
        weights = pipe_weights(turned[0], shape)  # turning does not change them
        return [(points, weights) for points in turned]


class TaskRecipe(BaseModel):
    """What to simulate; see `recon.networks.training.tasks`."""

    model_config = ConfigDict(extra="forbid")
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
        gridded = GriddedFrames([trajectory.frames(self.shape) for trajectory in self.trajectories], self.shape)
        if self.kind == "averaged_image":
            return [AveragedImage(gridded, self.noise, each) for each in anatomies]
        kind = CoilClip if self.kind == "coil_clip" else NewestFrame
        return [kind(gridded, self.noise, each, self.frames, self.coils) for each in anatomies]


class Training(Strict):
    """How to train."""

    batch: int = 8
    minutes: float = 20.0
    learning_rate: float = 5e-4
    l1: float = 1.0
    seed: int = 0
    mixed_precision: bool = True


class Recipe(Strict):
    """The file."""

    network: Network
    task: TaskRecipe
    training: Training = Training()


def _turned(points: np.ndarray, angle: float) -> np.ndarray:
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turned: np.ndarray = (points @ matrix.T).astype(np.float32)
    return turned


def main() -> None:
    """Train by a recipe."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--anatomy", type=Path, help="npz with uint8 images `train` and `validation` (scripts/anatomy.py)")
    parser.add_argument("--minutes", type=float, help="instead of the recipe's")
    parser.add_argument("--steps", type=int, help="stop after so many steps")
    parser.add_argument("--batch", type=int, help="instead of the recipe's")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in the output folder")
    parser.add_argument("--jit", action="store_true", help="compile the network's step by XLA: a minute or more, then faster")
    arguments = parser.parse_args()
    recipe = Recipe.model_validate(yaml.safe_load(arguments.recipe.read_text()))
    settings = recipe.training.model_copy(
        update={key: value for key in ("minutes", "batch") if (value := getattr(arguments, key)) is not None}
    )
    arguments.output.mkdir(parents=True, exist_ok=True)
    train(recipe, settings, arguments.output, anatomy_of(arguments.anatomy), arguments.steps, arguments.resume, arguments.jit)


def anatomy_of(path: Path | None) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Slices for training and for validation, 0 to 1."""
    if path is None:
        return None, None
    with np.load(path) as file:
        return file["train"].astype(np.float32) / 255, file["validation"].astype(np.float32) / 255


def train(
    recipe: Recipe,
    settings: Training,
    output: Path,
    anatomy: tuple[np.ndarray | None, np.ndarray | None],
    steps: int | None = None,
    resume: bool = False,
    jit: bool = False,
) -> dict[str, Any]:
    """Train until the time or the steps are over; returns what metrics.json holds."""
    begun = time.perf_counter()
    keras.utils.set_random_seed(settings.seed)
    keras.mixed_precision.set_global_policy("mixed_bfloat16" if settings.mixed_precision else "float32")
    task, held_out = recipe.task.build(anatomy)
    print("devices:", ", ".join(device.name for device in tf.config.list_physical_devices()), flush=True)
    network = recipe.network.build()
    example = task(tf.constant([settings.seed, 0]), 1)[0]
    network(example)
    if resume and (output / "checkpoint.weights.h5").exists():
        network.load_weights(output / "checkpoint.weights.h5")
    loss_of = SSIMLoss(l1=settings.l1)
    optimizer = keras.optimizers.Adam(settings.learning_rate, clipnorm=1.0)
    optimizer.build(network.trainable_variables)
    networks_step = compiled_step(network, task, loss_of, optimizer, settings.batch, jit)
    validate = compiled_validation(network, held_out, max(1, settings.batch // 2))
    has_board = importlib.util.find_spec("tensorboard") is not None
    writer = tf.summary.create_file_writer(str(output / "logs")) if has_board else None
    budget, curve, losses, step = settings.minutes * 60, [], [], 0
    next_report = 0.0
    while True:
        elapsed = time.perf_counter() - begun
        share = max(elapsed / budget, step / steps if steps else 0.0)
        if share >= 1:
            break
        # Warm up over the first percent, then a cosine down to a hundredth.
        rate = settings.learning_rate * min(1.0, share / 0.01 + 0.05) * (0.505 + 0.495 * np.cos(np.pi * share))
        optimizer.learning_rate.assign(rate)
        losses.append(networks_step(tf.constant([settings.seed, step + 1])))
        step += 1
        if share >= next_report or step == 1:
            next_report = share + 0.05
            entry = report(step, elapsed, [float(value) for value in losses[-200:]], validate, writer)
            curve.append(entry)
            network.save_weights(output / "checkpoint.weights.h5")
    final = report(step, time.perf_counter() - begun, [float(value) for value in losses[-200:]], validate, writer)
    curve.append(final)
    network.save_weights(output / "weights.weights.h5")
    pictures(network, held_out, output / "pictures")
    result = {
        "recipe": recipe.model_dump(),
        "steps": step,
        "series_seen": step * settings.batch,
        "seconds": round(time.perf_counter() - begun, 1),
        "parameters": int(network.count_params()),
        "held_out": {"network": final["network"], "input": final["input"]},
        "curve": curve,
        "anatomy": anatomy[0] is not None,
        "versions": {
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
        "device": [device.device_type for device in tf.config.list_physical_devices()],
    }
    (output / "metrics.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def compiled_step(
    network: keras.Model, task: Task, loss_of: keras.losses.Loss, optimizer: keras.optimizers.Optimizer, batch: int, jit: bool
) -> Callable[[Any], Any]:
    """A function of the seed that simulates a batch, takes one step and returns the loss.

    XLA compiles the network's step only: it takes minutes over the many small operations of the simulation.
    """

    @tf.function(jit_compile=jit)  # type: ignore[untyped-decorator]
    def step(inputs: Any, target: Any) -> Any:
        with tf.GradientTape() as tape:
            found = network(inputs, training=True)
            loss = loss_of(task.loss_views(target), task.loss_views(_single(found)))
        gradients = tape.gradient(loss, network.trainable_variables)
        optimizer.apply(gradients, network.trainable_variables)
        return loss

    simulate = tf.function(lambda seed: task(seed, batch)[:2])
    return lambda seed: step(*simulate(seed))


def compiled_validation(network: keras.Model, task: Task, batch: int) -> Callable[[], dict[str, dict[str, float]]]:
    """A function that compares network and input on held-out data."""

    @tf.function  # type: ignore[untyped-decorator]
    def measure(seed: Any) -> Any:
        inputs, target, start = task(seed, batch)
        truth = tf.transpose(task.loss_views(target), [0, 3, 1, 2])
        rows = []
        for image in (_single(network(inputs, training=False)), start):
            candidate = tf.transpose(task.loss_views(image), [0, 3, 1, 2])
            rows.append([tf.reduce_mean(value) for value in (ssim(truth, candidate, 1.0, 2), psnr(truth, candidate, 1.0, 2))])
            rows[-1].append(tf.reduce_mean(nrmse(truth, candidate, 2)))
        return tf.stack([tf.stack(row) for row in rows])

    def run() -> dict[str, dict[str, float]]:
        mean = np.mean([measure(tf.constant([VALIDATION_SEED, n])).numpy() for n in range(VALIDATION_BATCHES)], 0)
        names = ("ssim", "psnr", "nrmse")
        rounded = [[round(float(x), 4) for x in row] for row in mean]
        return {who: dict(zip(names, row, strict=True)) for who, row in zip(("network", "input"), rounded, strict=True)}

    return run


def _single(image: Any) -> Any:
    return image if image.dtype.is_complex else tf.cast(image, tf.float32)


def report(step: int, elapsed: float, losses: Sequence[float], validate: Callable[[], dict[str, Any]], writer: Any) -> dict[str, Any]:
    """Validate, log, print."""
    entry = {"step": step, "seconds": round(elapsed, 1), "loss": round(float(np.mean(losses)), 5), **validate()}
    if writer is not None:
        with writer.as_default():
            tf.summary.scalar("loss", entry["loss"], step)
            for who in ("network", "input"):
                for name, value in entry[who].items():
                    tf.summary.scalar(f"{who}/{name}", value, step)
    print(json.dumps(entry), flush=True)
    return entry


def pictures(network: keras.Model, task: Task, folder: Path, count: int = 4) -> None:
    """Held-out examples: input, output, truth side by side."""
    from PIL import Image

    folder.mkdir(exist_ok=True)
    inputs, target, start = task(tf.constant([VALIDATION_SEED, 99]), count)
    found = network(inputs, training=False)
    for n in range(count):
        row = [np.asarray(task.loss_views(_single(image)))[n, ..., -1] for image in (start, found, target)]
        Image.fromarray((255 * np.clip(np.concatenate(row, 1), 0, 1)).astype(np.uint8)).save(folder / f"{n}.png")


if __name__ == "__main__":
    main()
