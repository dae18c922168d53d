"""Train a network on data simulated on the fly, by a recipe.

    python scripts/train.py configs/training/fastdvdnet_spiral.yaml -o OUT [--anatomy anatomy.npz] [--minutes M] [--steps N] [--jit]
    python scripts/train.py configs/training/fastdvdnet_spiral.yaml --evaluate NAME.weights.h5 [...] [--anatomy anatomy.npz]

Writes OUT/weights.weights.h5 (single precision), OUT/metrics.json (recipe, time, steps, curve, metrics on held-out data, versions),
OUT/logs (for TensorBoard, where that is installed) and OUT/pictures (held-out examples). Every half minute and at its end
OUT/checkpoint.npz and OUT/history.json; interrupted, it goes on from there with --resume, as if nothing had happened: minutes, steps, curve
and learning rate are those of the whole. It ends by itself when the time is over, and at SIGTERM, with weights and metrics of what it has
learnt until then. The same seed and number of steps give the same data; sums on a GPU may still differ in their last bits.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from recon import device
from recon.metrics import nrmse, psnr, ssim
from recon.networks.losses import SSIMLoss
from recon.networks.training.checkpoint import CheckpointError, restore, save
from recon.networks.training.recipe import Recipe, Training
from recon.networks.training.steps import FlatAdam, Quickest, compile_meanwhile
from recon.networks.training.tasks import Task

VALIDATION_SEED = 10_000_019
"""Held-out data come from seeds that training never uses, and from slices of anatomy of their own."""
VALIDATION_BATCHES = 8
REPORTS_S, CHECKPOINTS_S = 20.0, 30.0
"""Seconds between two reports, and between two checkpoints."""
AHEAD = 4
"""Steps that may be under way on a device while the next ones are prepared."""
WARM_UP = 0.02
"""Share of the time in which the learning rate rises."""


def main() -> None:
    """Train by a recipe."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("recipe", type=Path)
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("-o", "--output", type=Path)
    target.add_argument("--evaluate", type=Path, nargs="+", help="no training: these files of weights on the recipe's held-out data")
    parser.add_argument("--anatomy", type=Path, help="npz with uint8 images `train` and `validation` (scripts/anatomy.py)")
    parser.add_argument("--minutes", type=float, help="instead of the recipe's")
    parser.add_argument("--until", type=float, help="end at this time (seconds since 1970) instead of after some minutes")
    parser.add_argument("--steps", type=int, help="stop after so many steps")
    parser.add_argument("--batch", type=int, help="instead of the recipe's")
    parser.add_argument("--precision", help="instead of the recipe's")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in the output folder")
    parser.add_argument("--jit", action="store_true", help="compile by XLA while the training goes on, and use what is faster")
    arguments = parser.parse_args()
    recipe = Recipe.model_validate(yaml.safe_load(arguments.recipe.read_text()))
    settings = recipe.training.model_copy(
        update={key: value for key in ("minutes", "batch", "precision") if (value := getattr(arguments, key)) is not None}
    )
    if arguments.evaluate:
        for path, found in evaluate(recipe, settings, arguments.evaluate, anatomy_of(arguments.anatomy)[1]):
            print(json.dumps({"weights": str(path), **found}), flush=True)
        return
    arguments.output.mkdir(parents=True, exist_ok=True)
    anatomy = anatomy_of(arguments.anatomy)
    try:
        train(recipe, settings, arguments.output, anatomy, arguments.steps, arguments.resume, arguments.jit, arguments.until)
    except CheckpointError as error:
        raise SystemExit(str(error)) from error
    sys.stdout.flush()
    os._exit(0)  # a compilation that nobody waits for may still be going on


def anatomy_of(path: Path | None) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Slices for training and for validation, 0 to 1."""
    if path is None:
        return None, None
    with np.load(path) as file:
        return file["train"].astype(np.float32) / 255, file["validation"].astype(np.float32) / 255


class Clock:
    """How much of a training is over: of its time, or of its steps; all of it at SIGTERM.

    before: seconds of an earlier run that this one goes on from.
    """

    def __init__(self, seconds: float, steps: int | None) -> None:
        self._begun, self._seconds, self._steps = time.perf_counter(), seconds, steps
        self._start = self.before = 0.0
        self._stopped = False
        signal.signal(signal.SIGTERM, self._stop)

    def _stop(self, *_: Any) -> None:
        self._stopped = True

    @property
    def elapsed(self) -> float:
        """Seconds since the start of the process' work, and those before."""
        return self.before + time.perf_counter() - self._begun

    def until(self, time_of_day: float) -> None:
        """End at this time, seconds since 1970."""
        self._seconds = self.elapsed + time_of_day - time.time()

    def first_step(self) -> None:
        """Now the first step begins."""
        self._start = self.elapsed - self.before

    def share(self, step: int) -> float:
        """0 at the first step, 1 at the end."""
        if self._stopped:
            return 1.0
        by_time = (self.elapsed - self._start) / max(self._seconds - self._start, 1e-3)
        return max(by_time, step / self._steps if self._steps else 0.0)


def train(
    recipe: Recipe,
    settings: Training,
    output: Path,
    anatomy: tuple[np.ndarray | None, np.ndarray | None],
    steps: int | None = None,
    resume: bool = False,
    jit: bool = False,
    until: float | None = None,
) -> dict[str, Any]:
    """Train until the time or the steps are over; returns what metrics.json holds.

    Raises:
        CheckpointError: the checkpoint to go on from is of another training.
    """
    clock = Clock(settings.minutes * 60, steps)
    keras.utils.set_random_seed(settings.seed)
    keras.mixed_precision.set_global_policy(settings.precision)
    device.configure(gpu=False)  # kernels of trajectories are a matter of seconds; TensorFlow uses the GPU all the same
    task, held_out = recipe.task.build(anatomy)
    print(f"{clock.elapsed:.1f} s: data; devices:", ", ".join(each.name for each in tf.config.list_physical_devices()), flush=True)
    network = recipe.network.build()
    simulate = Quickest("simulation", lambda seed: task(seed, settings.batch)[:2])
    seed_of = lambda step: tf.constant([settings.seed, step])  # noqa: E731
    example = simulate(seed_of(0))
    network(tf.nest.map_structure(lambda x: x[:1], example[0]))
    adam = FlatAdam(network.trainable_variables, 1024.0 if settings.precision == "mixed_float16" else 1.0)
    checkpoint, variables = output / "checkpoint.npz", [*network.weights, *adam.state]
    identity = {"network": recipe.network.model_dump(), "task": recipe.task.model_dump(), "seed": settings.seed, "batch": settings.batch}
    gradients = Quickest("gradients", gradients_of(network, task, SSIMLoss(l1=settings.l1), adam))
    validate = compiled_validation(network, held_out, max(1, settings.batch // 2))
    writer = tf.summary.create_file_writer(str(output / "logs")) if importlib.util.find_spec("tensorboard") is not None else None
    curve: list[dict[str, Any]] = []
    losses: list[float] = []
    pending: deque[Any] = deque()
    step = 0
    if resume and checkpoint.exists():
        progress = restore(checkpoint, variables, identity)
        step, curve, losses, clock.before = progress["step"], progress["curve"], progress["losses"], progress["seconds"]
        print(f"going on from step {step}", flush=True)
    if until is not None:
        clock.until(until)
    next_report, next_checkpoint = 0.0, clock.elapsed + CHECKPOINTS_S
    begun_at = step
    clock.first_step()

    def keep() -> None:
        losses.extend(float(pending.popleft()) for _ in range(len(pending)))
        save(checkpoint, variables, {**identity, "step": step, "seconds": clock.elapsed, "curve": curve, "losses": losses[-200:]})
        (output / "history.json").write_text(json.dumps(curve, indent=1) + "\n")

    while (share := clock.share(step)) < 1:
        batch = simulate(seed_of(step + 1))
        loss, gradient = gradients(*batch)
        adam.apply(gradient, tf.constant(rate(settings.learning_rate, share)))
        pending.append(loss)
        step += 1
        if step == begun_at + 1:
            print(f"{clock.elapsed:.1f} s: first step, loss {float(loss):.4f}", flush=True)
            next_report = clock.elapsed + REPORTS_S / 2
            if jit:
                todo = [(gradients, batch)]
                compile_meanwhile(*todo, *([(simulate, [seed_of(1)])] if settings.compile_simulation else []))
        if len(pending) > AHEAD:
            losses.append(float(pending.popleft()))
        gradients.choose(*batch)
        simulate.choose(seed_of(step))
        if clock.elapsed >= next_report:
            curve.append(report(step, clock.elapsed, losses, validate, writer))
            next_report = clock.elapsed + REPORTS_S
        if clock.elapsed >= next_checkpoint:
            keep()
            next_checkpoint = clock.elapsed + CHECKPOINTS_S
    seconds = clock.elapsed
    network.save_weights(output / "weights.weights.h5")
    losses.extend(map(float, pending))
    pending.clear()
    curve.append(final := report(step, seconds, losses, validate, writer))
    keep()
    result = {
        "recipe": recipe.model_dump(),
        "steps": step,
        "series_seen": step * settings.batch,
        "seconds": round(seconds, 1),
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
        "device": [each.device_type for each in tf.config.list_physical_devices()],
    }
    (output / "metrics.json").write_text(json.dumps(result, indent=1) + "\n")
    pictures(network, held_out, output / "pictures")
    return result


def evaluate(
    recipe: Recipe, settings: Training, weights: Sequence[Path], anatomy: np.ndarray | None
) -> Iterator[tuple[Path, dict[str, dict[str, float]]]]:
    """Each file, and what its network and the network's input reach on held-out data; in single precision."""
    (task,) = recipe.task.build([anatomy])
    network = recipe.network.build()
    network(tf.nest.map_structure(lambda x: x[:1], task(tf.constant([VALIDATION_SEED, 0]), 1)[0]))
    validate = compiled_validation(network, task, max(1, settings.batch // 2))
    for path in weights:
        network.load_weights(path)
        yield path, validate()


def rate(largest: float, share: float) -> float:
    """Learning rate at a share of the time."""
    return largest * min(1.0, share / WARM_UP + 0.02) * (0.5 + 0.5 * float(np.cos(np.pi * share)))


def gradients_of(network: keras.Model, task: Task, loss_of: keras.losses.Loss, adam: FlatAdam) -> Callable[[Any, Any], Any]:
    """A function of a batch: its loss, and the gradient of the scaled loss as one vector."""

    def gradients(inputs: Any, target: Any) -> Any:
        with tf.GradientTape() as tape:
            found = network(inputs, training=True)
            loss = loss_of(task.loss_views(target), task.loss_views(_single(found)))
            scaled = loss * adam.scale
        return loss, adam.flat(tape.gradient(scaled, network.trainable_variables))

    return gradients


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
    loss = round(float(np.mean(losses[-200:])), 5) if losses else None
    entry = {"step": step, "seconds": round(elapsed, 1), "loss": loss, **validate()}
    if writer is not None:
        with writer.as_default():
            for name, value in {
                "loss": loss,
                **{f"{who}/{name}": entry[who][name] for who in ("network", "input") for name in entry[who]},
            }.items():
                if value is not None:
                    tf.summary.scalar(name, value, step)
    print(json.dumps(entry), flush=True)
    return entry


def pictures(network: keras.Model, task: Task, folder: Path, count: int = 4) -> None:
    """Held-out examples: input, output, truth side by side."""
    from PIL import Image

    folder.mkdir(exist_ok=True)
    inputs, target, start = tf.function(lambda seed: task(seed, count))(tf.constant([VALIDATION_SEED, 99]))
    found = network(inputs, training=False)
    for n in range(count):
        row = [np.asarray(task.loss_views(_single(image)))[n, ..., -1] for image in (start, found, target)]
        Image.fromarray((255 * np.clip(np.concatenate(row, 1), 0, 1)).astype(np.uint8)).save(folder / f"{n}.png")


if __name__ == "__main__":
    main()
