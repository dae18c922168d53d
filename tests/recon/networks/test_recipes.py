"""Recipes: what the shipped files ask for, what is refused, and a whole small training."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
import yaml
from pydantic import ValidationError

from recon.networks.training.checkpoint import CheckpointError, restore, save
from recon.networks.training.draws import Draws
from recon.networks.training.recipe import CYCLE, Recipe, TaskRecipe, Trajectory
from recon.networks.training.tasks import CartesianSeries, Task
from recon.networks.weights import catalogue, load
from scripts import ship_weights, train

ROOT = Path(__file__).parents[3]
FILES = sorted((ROOT / "configs" / "training").glob("*.yaml"))
RADIAL = {"kind": "radial", "spokes": 5}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_shipped_weights_are_those_of_their_recipes(file: Path) -> None:
    recipe, entry = Recipe.model_validate(yaml.safe_load(file.read_text())), catalogue()[file.stem]
    assert entry.recipe == str(file.relative_to(ROOT))
    assert recipe.network.model_dump() == entry.network.model_dump()
    network = recipe.network.build()
    network.build(tuple(entry.input_shape))
    counts = {"fastdvdnet_spiral": 1_589_506, "fastdvdnet_radial": 1_589_506, "dncnn_sodium": 633_345}
    counts |= {"varnet_cartesian": 713_240, "unet_radial": 2_450_753}
    assert network.count_params() == counts[file.stem]
    trained = entry.metrics["training"]
    assert trained["series"] == trained["steps"] * recipe.training.batch


def test_there_are_weights_of_every_recipe() -> None:
    assert {file.stem for file in FILES} == {name for name, entry in catalogue().items() if entry.file}


def test_what_a_recipe_does_not_know_is_refused() -> None:
    recipe = {"network": {"kind": "DnCNN"}, "task": {"kind": "averaged_image", "shape": [16, 16], "noise": [0.1, 0.2]}}
    assert Recipe.model_validate(recipe).training.learning_rate == 5e-4
    for where, change in (("training", {"epochs": 3}), ("task", {**recipe["task"], "kind": "denoise"}), ("network", {"kind": "GAN"})):
        with pytest.raises(ValidationError, match=where):
            Recipe.model_validate({**recipe, where: change})


def test_trajectories_of_a_recipe() -> None:
    many = Trajectory(kind="random_spiral", count=3, seed=11)  # type: ignore[call-arg]
    cycles = many.cycles((24, 24), 2)
    assert [len(cycle) for cycle in cycles] == [2, 2, 2]
    np.testing.assert_array_equal(cycles[2][1][0], many.cycles((24, 24), 2)[2][1][0])
    (radial,) = Trajectory(**RADIAL, samples=30).cycles((24, 24), 4)
    assert [points.shape for points, _ in radial] == [(150, 2)] * 4


def test_newest_frames_and_clips_from_a_recipe() -> None:
    task = TaskRecipe(kind="newest_frame", shape=(16, 16), noise=(0.01, 0.02), coils=3, trajectories=[Trajectory(**RADIAL)])
    built, held_out = task.build([None, np.ones((2, 8, 8), np.float32)])
    assert built.frames is held_out.frames  # kernels are made once
    assert built.frames.cycle == CYCLE
    inputs, target, start = (array.numpy() for array in built(tf.constant([1, 2]), 2))
    assert (inputs.shape, target.shape, start.shape) == ((2, 16, 16, 5), (2, 16, 16, 1), (2, 16, 16, 1))
    np.testing.assert_array_equal(start[..., 0], inputs[..., -1])
    assert np.abs(held_out(tf.constant([1, 2]), 2)[1] - target).max() > 0.01
    clip = task.model_copy(update={"kind": "coil_clip", "frames": CYCLE + 2})
    (built,) = clip.build([None])
    assert built.frames.cycle == CYCLE + 2
    assert built(tf.constant([1, 2]), 1)[0].shape == (1, CYCLE + 2, 16, 16, 6)


def test_cartesian_series_have_as_many_lines_as_the_recipe_says() -> None:
    (task,) = TaskRecipe(kind="cartesian_series", shape=(32, 16), noise=(1e-3, 2e-3), frames=4, coils=2, acceleration=4, centre=4).build(
        [None]
    )
    (start, kspace, maps, mask), target, _ = task(tf.constant([1, 2]), 2)
    lines = mask.numpy()[:, 0, :, :, 0]
    np.testing.assert_array_equal(lines.sum(-1), 32 / 4)
    assert lines[..., 14:18].all()
    assert len({tuple(frame) for frame in lines[0]}) > 1
    np.testing.assert_allclose((np.abs(maps) ** 2).sum(1), 1, rtol=1e-4)
    assert not kspace.numpy()[np.broadcast_to(lines[:, None, :, :, None] == 0, kspace.shape)].any()
    assert start.shape == target.shape == (2, 4, 32, 16)
    with pytest.raises(ValueError, match="leaves 4 of 32 lines, none beside the 4 central ones; lower acceleration or centre"):
        CartesianSeries((32, 16), (1e-3, 2e-3), None, acceleration=8, centre=4)


@pytest.fixture
def policy() -> Iterator[None]:
    """A training sets Keras' precision for the whole process."""
    before = keras.mixed_precision.global_policy()
    yield
    keras.mixed_precision.set_global_policy(before)


SMALL: dict[str, Any] = {
    "network": {"kind": "DnCNN", "blocks": 1, "filters": 8},
    "task": {"kind": "averaged_image", "shape": [16, 16], "noise": [0.2, 0.3], "trajectories": [{"kind": "radial", "spokes": 25}]},
    "training": {"batch": 8, "learning_rate": 3e-3, "precision": "float32"},
}


class Noisy(Task):
    """Noise to be taken off noise: quickly simulated."""

    def __call__(self, seed: Any, batch: int) -> tuple[Any, Any, Any]:
        draws = Draws(seed)
        target = draws.uniform([batch, 16, 16, 1])
        image = target + 0.3 * draws.normal([batch, 16, 16, 1])
        return image, target, image


@pytest.mark.usefixtures("policy")
def test_a_training_that_was_interrupted_goes_on_as_if_it_had_not_been(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, learning rate, data and curve are those of the training that was not."""
    monkeypatch.setattr(TaskRecipe, "build", lambda self, anatomies: [Noisy(self.noise, each) for each in anatomies])
    changed = {**SMALL, "training": {**SMALL["training"], "minutes": 1e6}}
    recipe = Recipe.model_validate(changed)

    def trained(folder: str, **options: Any) -> tuple[dict[str, Any], list[np.ndarray]]:
        (tmp_path / folder).mkdir(exist_ok=True)
        result = train.train(recipe, recipe.training, tmp_path / folder, (None, None), steps=6, **options)
        with h5py.File(tmp_path / folder / "weights.weights.h5") as file:
            arrays: list[np.ndarray] = []
            file.visititems(lambda _, item: arrays.append(item[()]) if isinstance(item, h5py.Dataset) else None)
        return result, arrays

    whole, expected = trained("whole")
    with monkeypatch.context() as patch:
        original = train.Clock.share
        patch.setattr(train.Clock, "share", lambda self, step: 1.0 if step == 4 else original(self, step))
        half, unfinished = trained("parts")
    assert half["steps"] == 4
    assert any(not np.allclose(one, other, atol=1e-6) for one, other in zip(unfinished, expected, strict=True))
    result, found = trained("parts", resume=True)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert (result["steps"], result["series_seen"], result["held_out"]) == (6, 48, whole["held_out"])
    assert [entry["step"] for entry in result["curve"]] == [4, 6]
    assert result["curve"][0]["seconds"] < result["curve"][1]["seconds"]


def test_checkpoints_of_another_training_are_refused(tmp_path: Path) -> None:
    path, variables = tmp_path / "checkpoint.npz", [tf.Variable([1.0, 2.0]), tf.Variable(3.0)]
    save(path, variables, {"seed": 1, "task": {"shape": (8, 8)}, "step": 9})
    others = [tf.Variable([0.0, 0.0]), tf.Variable(0.0)]
    assert restore(path, others, {"seed": 1, "task": {"shape": (8, 8)}})["step"] == 9
    assert [other.numpy().tolist() for other in others] == [[1, 2], 3]
    for same, target, message in (
        ({"seed": 2}, others, "is of another training: its seed differs; give another output folder"),
        ({"seed": 1}, others[:1], "is of another training: the network differs"),
        ({"seed": 1}, [*others[:1], tf.Variable([1.0])], "is of another training: the network differs"),
    ):
        with pytest.raises(CheckpointError, match=message):
            restore(path, target, same)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(CheckpointError, match=r"checkpoint\.npz cannot be read"):
        restore(path, others, {})
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.npz"]


@pytest.mark.usefixtures("policy")
def test_a_small_training_leaves_weights_that_reach_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = Recipe.model_validate(SMALL)
    result = train.train(recipe, recipe.training, tmp_path, (None, None), steps=150)
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["held_out"] == result["held_out"]
    assert Recipe.model_validate(written["recipe"]) == recipe
    assert (result["steps"], result["series_seen"]) == (150, 1200)
    assert result["held_out"]["network"]["nrmse"] < 0.9 * result["held_out"]["input"]["nrmse"]
    assert len(list((tmp_path / "pictures").glob("*.png"))) == 4
    ((path, found),) = train.evaluate(recipe, recipe.training, [tmp_path / "weights.weights.h5"], None)
    assert path == tmp_path / "weights.weights.h5"
    for who in ("network", "input"):
        assert found[who] == pytest.approx(result["held_out"][who], abs=2e-4)
    shipped = shipped_from(tmp_path, monkeypatch, capsys)
    assert shipped["metrics"]["training"]["series"] == 1200
    assert shipped["metrics"]["held-out simulated"] == result["held_out"]
    catalogue_file = tmp_path / "weights.yaml"
    entry = {"network": SMALL["network"], "input_shape": [None, None, None, 1], "layout": "image", "source": "a test", "scan": "none"}
    catalogue_file.write_text(yaml.safe_dump({"small": {**entry, "licence": "Apache-2.0", **shipped}}))
    images = np.random.default_rng(0).uniform(size=(2, 16, 16, 1)).astype(np.float32)
    trained = recipe.network.build()
    trained(images)
    trained.load_weights(tmp_path / "weights.weights.h5")
    np.testing.assert_allclose(load("small", catalogue_file)(images), trained(images), atol=5e-3)  # of weights in half precision


def shipped_from(trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What is to be entered in the catalogue beside the weights in half precision."""
    monkeypatch.setattr(ship_weights, "FOLDER", trained)
    monkeypatch.setattr("sys.argv", ["ship_weights.py", str(trained), "small"])
    capsys.readouterr()
    ship_weights.main()
    found: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)["small"]
    return found
