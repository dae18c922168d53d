"""Weights by name and from files of every kind."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tensorflow as tf
import yaml

from recon.networks.dncnn import DnCNN
from recon.networks.fast_dvd_net import FastDVDnet
from recon.networks.weights import CATALOGUE, Architecture, WeightsError, catalogue, load, load_file

SMALL = {"kind": "FastDVDnet", "filters": [2, 4]}
SHAPE = [None, None, None, 5]


@pytest.fixture(scope="module")
def network() -> FastDVDnet:
    """A small one with random weights."""
    built = FastDVDnet((2, 4))
    built.build((None, 8, 8, 5))
    return built


@pytest.fixture
def frames() -> np.ndarray:
    """One window."""
    return np.random.default_rng(0).uniform(size=(1, 8, 8, 5)).astype(np.float32)


def published(network: Any, prefix: Path) -> None:
    """A checkpoint as Keras 2 wrote SavedModels' variables: by number, with other things beside them."""
    checkpoint = tf.train.Checkpoint(
        variables=[tf.Variable(variable.numpy()) for variable in network.weights],
        keras_api=tf.train.Checkpoint(metrics=[tf.Variable(0.0)]),
    )
    checkpoint.write(str(prefix))


def entry(weights: Path, **changes: Any) -> dict[str, Any]:
    """A catalogue's entry for a file."""
    found = {
        "network": SMALL,
        "input_shape": SHAPE,
        "layout": "frames_last",
        "file": weights.name,
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "licence": "Apache-2.0",
        "source": "a test",
        "recipe": "none.yaml",
        "scan": "none",
    }
    return {**found, **changes}


def write(folder: Path, **entries: Any) -> Path:
    """A catalogue."""
    path = folder / "weights.yaml"
    path.write_text(yaml.safe_dump(entries))
    return path


def test_by_name(network: FastDVDnet, frames: np.ndarray, tmp_path: Path) -> None:
    file = tmp_path / "small.weights.h5"
    network.save_weights(file)
    path = write(tmp_path, small=entry(file))
    np.testing.assert_array_equal(load("small", path)(frames), network(frames))


def test_weights_that_cannot_be_had_say_why(network: FastDVDnet, tmp_path: Path) -> None:
    file = tmp_path / "small.weights.h5"
    network.save_weights(file)
    path = write(
        tmp_path,
        damaged=entry(file, sha256="0" * 64),
        lost=entry(file, file="lost.weights.h5"),
        unlicensed=entry(file, file=None, licence=None),
        other=entry(file, network={"kind": "FastDVDnet", "filters": [2, 6]}),
        unknown=entry(file, network={"kind": "Perceptron"}),
    )
    for name, message in (
        ("damaged", "damaged or another version"),
        ("lost", "is missing; install the package again"),
        ("unlicensed", "states no licence; give the path of your own copy"),
        ("other", "cannot be loaded"),
        ("unknown", "no network 'Perceptron'; there are"),
        ("absent", "no weights 'absent' in weights.yaml; there are damaged"),
    ):
        with pytest.raises(WeightsError, match=message):
            load(name, path)
    with pytest.raises(WeightsError, match="nothing"):
        catalogue(tmp_path / "nothing.yaml")


def test_every_shipped_entry_loads_or_says_why() -> None:
    for name, found in catalogue().items():
        if found.file is None:
            with pytest.raises(WeightsError, match="path of your own copy"):
                load(name)
        else:
            assert load(name).count_params() > 0
            assert (CATALOGUE.parent / found.file).stat().st_size < 8e6
            assert found.licence
            assert found.metrics


def test_published_saved_model_and_checkpoint(network: FastDVDnet, frames: np.ndarray, tmp_path: Path) -> None:
    folder = tmp_path / "saved_model"
    (folder / "variables").mkdir(parents=True)
    published(network, folder / "variables" / "variables")
    architecture = Architecture.model_validate(SMALL)
    for path in (folder, folder / "variables" / "variables", folder / "variables" / "variables.index"):
        np.testing.assert_array_equal(load_file(path, architecture, SHAPE)(frames), network(frames))
    with pytest.raises(WeightsError, match="holds 32 variables where FastDVDnet has 32: the first that differs is number"):
        load_file(folder, Architecture(kind="FastDVDnet", filters=[2, 6]), SHAPE)
    (folder / "variables" / "variables.data-00000-of-00001").unlink()
    with pytest.raises(WeightsError, match="its data file"):
        load_file(folder, architecture, SHAPE)


def test_published_sodium_file(tmp_path: Path) -> None:
    """Groups by layer, with a residual block's running statistics at its end, as Keras 2 wrote them."""
    random = np.random.default_rng(1)
    source = DnCNN(2, 3)
    source.build((None, 8, 8, 1))
    for variable in source.weights:
        variable.assign(random.uniform(0.5, 1, variable.shape))
    first, *blocks = source.published_weights()[:2], *[source.published_weights()[2 + 12 * n : 14 + 12 * n] for n in range(2)]
    rest = source.published_weights()[26:]
    layers = {"conv2d": first, "residual_block": blocks[0], "residual_block_1": blocks[1], "batch": rest[:-2], "residual_output": rest[-2:]}
    with h5py.File(tmp_path / "sodium.h5", "w") as file:
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = [name.encode() for name in ("image_input", *layers)]
        group.create_group("image_input").attrs["weight_names"] = []
        for name, variables in layers.items():
            layer = group.create_group(name)
            layer.attrs["weight_names"] = [f"{name}/{n}:0".encode() for n in range(len(variables))]
            for n, variable in enumerate(variables):
                layer[f"{name}/{n}:0"] = variable.numpy()
    image = random.uniform(size=(1, 9, 9, 1)).astype(np.float32)
    found = load_file(tmp_path / "sodium.h5", Architecture(kind="DnCNN", blocks=2, filters=3), [None, None, None, 1])
    np.testing.assert_array_equal(found(image), source(image))


def test_whole_models(network: FastDVDnet, frames: np.ndarray, tmp_path: Path) -> None:
    network(frames)
    network.save(tmp_path / "small.keras")
    np.testing.assert_allclose(load_file(tmp_path / "small.keras")(frames), network(frames), atol=1e-6)
    module = tf.Module()
    module.factor = tf.Variable(3.0)
    serve = tf.function(lambda x: {"y": module.factor * x}, input_signature=[tf.TensorSpec([None, None, None, 5], tf.float32, "x")])
    tf.saved_model.save(module, str(tmp_path / "served"), signatures=serve)
    np.testing.assert_allclose(load_file(tmp_path / "served")(frames), 3 * frames)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="does not exist"):
        load_file(tmp_path / "nothing.keras")
    (tmp_path / "text.keras").write_text("hello")
    with pytest.raises(WeightsError, match=r"text\.keras cannot be loaded"):
        load_file(tmp_path / "text.keras")
    (tmp_path / "only.weights.h5").write_bytes(b"")
    with pytest.raises(WeightsError, match="say which network they belong to"):
        load_file(tmp_path / "only.weights.h5")
    with pytest.raises(WeightsError, match=r"only\.weights\.h5 cannot be loaded"):
        load_file(tmp_path / "only.weights.h5", Architecture.model_validate(SMALL), SHAPE)
