"""Weights by name and from files of every kind."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
import yaml

from recon.networks.dncnn import DnCNN
from recon.networks.fast_dvd_net import FastDVDnet
from recon.networks.weights import CATALOGUE, Architecture, WeightsError, catalogue, load, load_file, written

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


def test_weights_that_cannot_be_had_say_why(network: FastDVDnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    monkeypatch.chdir(tmp_path)
    (tmp_path / "saved_model").mkdir()
    with pytest.raises(WeightsError, match=r"no weights 'saved_model' .*; for the file of that name say \./saved_model"):
        load("saved_model", path)


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


def test_a_name_stands_once_in_a_catalogue(network: FastDVDnet, tmp_path: Path) -> None:
    file = tmp_path / "small.weights.h5"
    network.save_weights(file)
    path = write(tmp_path, small=entry(file))
    path.write_text(path.read_text() + yaml.safe_dump({"small": entry(file, source="elsewhere")}))
    with pytest.raises(WeightsError, match="'small' stands there twice"):
        catalogue(path)


def test_weights_without_a_licence_are_warned_of(network: FastDVDnet, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "small.weights.h5"
    network.save_weights(file)
    path = write(tmp_path, free=entry(file), found=entry(file, licence=None))
    load("free", path)
    assert not caplog.records
    load("found", path)
    assert [record.message for record in caplog.records] == ["the weights 'found' state no licence (a test): do not pass them on"]


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


@pytest.mark.parametrize("dtype", [tf.float16, tf.float64])
def test_a_saved_model_of_another_precision(dtype: Any, frames: np.ndarray, tmp_path: Path) -> None:
    tf.saved_model.save(tf.Module(), str(tmp_path), signatures=served(lambda x: {"y": 2 * x}, dtype))
    np.testing.assert_allclose(load_file(tmp_path)(frames), 2 * frames, rtol=1e-3)


def served(function: Any, *dtypes: Any) -> Any:
    """A signature of windows of these element types."""
    return tf.function(
        function, input_signature=[tf.TensorSpec([None, None, None, 5], dtype, name) for dtype, name in zip(dtypes, "xz", strict=False)]
    )


class Plain(tf.Module):
    """Something without a signature: it takes anything."""

    @tf.function
    def __call__(self, x: Any) -> Any:
        return x


def test_saved_models_that_are_no_function_of_one_image(tmp_path: Path) -> None:
    models = {
        "none": None,
        "two": served(lambda x, z: {"y": x + z}, tf.float32, tf.float32),
        "both": served(lambda x: {"image": x, "noise": x}, tf.float32),
        "counts": served(lambda x: {"y": x}, tf.int32),
    }
    for name, signature in models.items():
        tf.saved_model.save(Plain(), str(tmp_path / name), signatures=signature)
    for name, message in (
        ("none", "has no signature serving_default; export the model with one"),
        ("two", r"has 2 inputs \(x, z\), not 1"),
        ("both", r"has 2 outputs \((image, noise|noise, image)\), not 1"),
        ("counts", "takes int32: export it for real numbers"),
    ):
        with pytest.raises(WeightsError, match=f"{name} {message}"):
            load_file(tmp_path / name)


def test_whole_models_of_keras(frames: np.ndarray, tmp_path: Path) -> None:
    window = keras.Input((None, None, 5), name="window")
    other = keras.Input((None, None, 5), name="other")
    newest = keras.layers.Conv2D(1, 3, padding="same")(window)
    model = keras.Model(window, newest)
    for name in ("whole.h5", "whole.keras"):
        model.save(tmp_path / name)
        np.testing.assert_allclose(load_file(tmp_path / name)(frames), model(frames), atol=1e-6)
    keras.Model([window, other], newest + keras.layers.Conv2D(1, 1)(other)).save(tmp_path / "two.keras")
    keras.Model(window, [newest, keras.layers.Conv2D(1, 1)(window)]).save(tmp_path / "both.h5")
    with pytest.raises(WeightsError, match=r"two\.keras has 2 inputs \(window, other\), not 1"):
        load_file(tmp_path / "two.keras")
    assert len(load_file(tmp_path / "two.keras", inputs=2).inputs) == 2
    with pytest.raises(WeightsError, match=r"both\.h5 has 2 outputs"):
        load_file(tmp_path / "both.h5")


def test_what_is_written_anew_is_noticed(network: FastDVDnet, tmp_path: Path) -> None:
    """Files, folders whose files alone change, checkpoints by their prefix; not names."""
    file, folder, prefix = tmp_path / "small.weights.h5", tmp_path / "saved", tmp_path / "checkpoint"
    network.save_weights(file)
    (folder / "variables").mkdir(parents=True)
    published(network, folder / "variables" / "variables")
    published(network, prefix)
    for path, changed in (
        (file, file),
        (folder, folder / "variables" / "variables.data-00000-of-00001"),
        (prefix, tmp_path / "checkpoint.data-00000-of-00001"),
        (Path(f"{prefix}.index"), tmp_path / "checkpoint.data-00000-of-00001"),
    ):
        before = written(path)
        later = time.time_ns() + 10**12 + before
        os.utime(changed, ns=(later, later))
        assert written(str(path)) == later > before > 0
        os.utime(changed, ns=(1, 1))
    assert written("fastdvdnet_spiral") == 0


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="does not exist"):
        load_file(tmp_path / "nothing.keras")
    (tmp_path / "text.keras").write_text("hello")
    with pytest.raises(WeightsError, match=r"text\.keras cannot be loaded"):
        load_file(tmp_path / "text.keras")
    (tmp_path / "only.weights.h5").write_bytes(b"")
    with pytest.raises(WeightsError, match="say which network they belong to"):
        load_file(tmp_path / "only.weights.h5")
    small = Architecture.model_validate(SMALL)
    with pytest.raises(WeightsError, match=r"only\.weights\.h5 cannot be loaded"):
        load_file(tmp_path / "only.weights.h5", small, SHAPE)
    (tmp_path / "network.tflite").write_bytes(b"1234")
    (tmp_path / "empty").mkdir()
    for architecture in (None, small):
        with pytest.raises(WeightsError, match=r"network\.tflite has no format that is known; there are \.keras, \.h5, \.onnx"):
            load_file(tmp_path / "network.tflite", architecture, SHAPE)
    with pytest.raises(WeightsError, match="empty cannot be loaded: SavedModel file does not exist"):
        load_file(tmp_path / "empty")
    with pytest.raises(WeightsError, match=r"variables\.index is missing"):
        load_file(tmp_path / "empty", small, SHAPE)


def test_files_that_are_damaged(network: FastDVDnet, frames: np.ndarray, tmp_path: Path) -> None:
    """Cut in two, or with other bytes: what each format's library raises names the file."""
    network(frames)
    network.save(tmp_path / "cut.keras")
    network.save_weights(tmp_path / "cut.weights.h5")
    network.export(str(tmp_path / "cut"))
    published(network, tmp_path / "other")
    data = next((tmp_path / "cut" / "variables").glob("*.data*"))
    for file in (tmp_path / "cut.keras", tmp_path / "cut.weights.h5", data):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    checkpoint = next(tmp_path.glob("other.data*"))
    checkpoint.write_bytes(bytes(255 - byte for byte in checkpoint.read_bytes()))
    for name in ("cut.keras", "cut.weights.h5", "cut", "other"):
        architecture = None if name in ("cut.keras", "cut") else Architecture.model_validate(SMALL)
        with pytest.raises(WeightsError, match=f"{name} cannot be loaded: .+"):
            load_file(tmp_path / name, architecture, SHAPE)
