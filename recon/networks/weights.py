"""Trained weights, by name from a catalogue or from a file, put into the network they belong to.

The catalogue (`weights.yaml` beside this module) says of every set of weights where it comes from, under which licence, how it was
trained and what for. Files whose checksum differs are refused.
"""

from __future__ import annotations

import glob
import hashlib
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

CATALOGUE = Path(__file__).with_name("weights.yaml")
Layout = Literal["frames_last", "image", "series", "clip", "unrolled"]
Scaling = Literal["window", "min_max", "none"]
HDF5 = (".h5", ".hdf5")
FORMATS = ".keras, .h5, .onnx, a SavedModel's folder, a TensorFlow checkpoint's prefix or .index file"
ONNX_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
"""Element types of inputs that ONNX models may have."""

logger = logging.getLogger(__name__)


class WeightsError(ValueError):
    """Weights are missing, not licensed, damaged, or of another network."""


class Architecture(BaseModel):
    """A network and its arguments; `kind` is one of `ARCHITECTURES`."""

    model_config = ConfigDict(extra="allow")
    kind: str

    def build(self, shape: Sequence[int | None]) -> Any:
        """The network with random weights, for inputs of this shape (batch included).

        Raises:
            WeightsError: an unknown kind or argument.
        """
        try:
            network = _architectures()[self.kind](**(self.model_extra or {}))
        except KeyError:
            raise WeightsError(f"no network {self.kind!r}; there are {', '.join(sorted(_architectures()))}") from None
        except TypeError as error:
            raise WeightsError(f"{self.kind}: {error}") from None
        network.build(tuple(shape))
        return network


class Entry(BaseModel):
    """One set of weights in the catalogue.

    Attributes:
        network: what they belong to.
        input_shape: of its input, batch first, null where any size goes.
        layout: how images are put into it: `frames_last` ``[batch, y, x, frame]``, `image` ``[batch, y, x, 1]``, `clip`
            ``[batch, frame, y, x, channel]``, `unrolled` start image, k-space, maps and mask.
        scaling: of the input, see `recon.networks.normalization`.
        file: beside the catalogue; null for weights that are not shipped.
        sha256: of the file.
        licence, source: of the weights; licence null when none is stated.
        recipe: file in configs/training, or a description.
        scan: what they are meant for.
        metrics: on held-out data.
    """

    model_config = ConfigDict(extra="forbid")
    network: Architecture
    input_shape: list[int | None]
    layout: Layout
    scaling: Scaling = "none"
    file: str | None = None
    sha256: str | None = None
    licence: str | None = None
    source: str
    recipe: str = ""
    scan: str
    metrics: dict[str, Any] = Field(default_factory=dict)


class _EachKeyOnce(yaml.SafeLoader):
    """YAML whose keys stand once: of two entries of one name, PyYAML silently takes the last."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """As PyYAML's."""
        keys: list[Any] = []
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if name in keys:
                raise yaml.constructor.ConstructorError(None, None, f"{name!r} stands there twice", key.start_mark)
            keys.append(name)
        return super().construct_mapping(node, deep)


@cache
def catalogue(path: Path = CATALOGUE) -> dict[str, Entry]:
    """The entries of a catalogue by name.

    Raises:
        WeightsError: the file is missing or not a catalogue.
    """
    try:
        # As safe as yaml.safe_load, whose loader it is made of.
        return {name: Entry.model_validate(entry) for name, entry in yaml.load(path.read_text(), _EachKeyOnce).items()}
    except (OSError, yaml.YAMLError, ValidationError, AttributeError) as error:
        raise WeightsError(f"{path}: {error}") from None


def load(name: str, path: Path = CATALOGUE) -> Any:
    """The network of a catalogue's entry with its weights.

    Raises:
        WeightsError: no such entry, weights that are not shipped, a missing file, another checksum, other shapes.
    """
    entries = catalogue(path)
    if name not in entries:
        file_there = f"for the file of that name say ./{name}" if Path(name).exists() else "or give the path of a file"
        raise WeightsError(f"no weights {name!r} in {path.name}; there are {', '.join(entries)}; {file_there}")
    entry = entries[name]
    if entry.file is None:
        why = f"its source ({entry.source}) states no licence" if entry.licence is None else f"get it from {entry.source}"
        raise WeightsError(f"the weights {name!r} are not part of this package: {why}; give the path of your own copy instead")
    file = path.parent / entry.file
    if not file.is_file():
        raise WeightsError(f"{file} of the weights {name!r} is missing; install the package again, or train them by {entry.recipe}")
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != entry.sha256:
        raise WeightsError(f"{file} has the checksum {found}, not the catalogue's {entry.sha256}: it is damaged or another version")
    if entry.licence is None:
        logger.warning("the weights %r state no licence (%s): do not pass them on", name, entry.source)
    return load_file(file, entry.network, entry.input_shape)


def load_file(path: Path, network: Architecture | None = None, shape: Sequence[int | None] | None = None, inputs: int = 1) -> Any:
    """A network from a file of weights or a whole model.

    Args:
        path: ``.keras``; ``.weights.h5`` or ``.h5`` of Keras; a SavedModel's folder; a TensorFlow checkpoint's prefix or ``.index``
            file; ``.onnx`` (needs onnxruntime).
        network: what to build, for files that hold weights only; a SavedModel, checkpoint or ``.h5`` of the published networks is put
            into it variable by variable, in order.
        shape: of its input, batch first.
        inputs: that it takes; whole models of another number are refused.

    Returns:
        A callable, arrays or tensors in, tensors or arrays out.

    Raises:
        WeightsError: no such file, a format that is not known, weights without a network, other shapes.
    """
    path = Path(path)
    checkpoint = path.with_suffix("") if path.suffix == ".index" else path
    is_checkpoint = Path(f"{checkpoint}.index").exists()
    if not path.exists() and not is_checkpoint:
        raise WeightsError(f"{path} does not exist")
    try:
        if path.suffix == ".onnx":
            return _onnx(path)
        if path.suffix == ".keras" or (network is None and _is_keras_hdf5(path)):
            return _keras_model(path, inputs)
        if path.is_dir() and network is None:
            return _saved_model(path)
        if not (path.is_dir() or path.suffix in HDF5 or is_checkpoint):
            raise WeightsError(f"{path} has no format that is known; there are {FORMATS}")
        if network is None or shape is None:
            raise WeightsError(f"{path} holds weights only: say which network they belong to, and the shape of its input")
        built = network.build(shape)
        if path.is_dir():
            _assign(built, _checkpoint_variables(path / "variables" / "variables"), path)
        elif path.suffix in HDF5:
            _load_hdf5(built, path)
        else:
            _assign(built, _checkpoint_variables(checkpoint), path)
        return built
    except WeightsError:
        raise
    except Exception as error:  # whatever Keras, TensorFlow and HDF5 raise about files that are damaged
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        why = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
        raise WeightsError(f"{path} cannot be loaded: {why}") from error


def written(weights: str | Path) -> int:
    """When the file, folder or checkpoint was last written, ns since 1970; 0 where there is none, as for names of the catalogue.

    What is kept of a file is to be kept by this too: whoever trains on puts the new file in the place of the old one.
    """
    path = Path(weights)
    files = path.rglob("*") if path.is_dir() else path.parent.glob(f"{glob.escape(path.name.removesuffix('.index'))}*")
    return max((file.stat().st_mtime_ns for file in files), default=0)


def _architectures() -> Mapping[str, Callable[..., Any]]:
    from recon.networks.dncnn import DnCNN
    from recon.networks.fast_dvd_net import FastDVDnet
    from recon.networks.modl import MoDL
    from recon.networks.unet import UNet
    from recon.networks.varnet import VarNet

    return {"UNet": UNet, "FastDVDnet": FastDVDnet, "DnCNN": DnCNN, "VarNet": VarNet, "MoDL": MoDL}


def _is_keras_hdf5(path: Path) -> bool:
    """Whether this is an HDF5 file with a whole model, as Keras 2 wrote them."""
    import h5py

    if path.suffix not in HDF5 or not h5py.is_hdf5(path):
        return False
    with h5py.File(path, "r") as file:
        return "model_config" in file.attrs


def _keras_model(path: Path, inputs: int) -> Any:
    import keras

    _architectures()  # registers our layers
    model = keras.saving.load_model(path, compile=False, safe_mode=True)
    # Models that are a class of their own do not tell.
    _check_ends(path, [each.name for each in getattr(model, "inputs", None) or []], "inputs", inputs)
    _check_ends(path, [each.name for each in getattr(model, "outputs", None) or []], "outputs", 1)
    return model


def _check_ends(path: Path, names: Sequence[str], what: str, wanted: int) -> None:
    """Raise WeightsError where a model tells the names of another number of inputs or outputs."""
    if names and len(names) != wanted:
        raise WeightsError(f"{path} has {len(names)} {what} ({', '.join(names)}), not {wanted}")


def _saved_model(path: Path) -> Any:
    """A SavedModel as it is: its serving signature, one tensor in and one out."""
    import tensorflow as tf

    model = tf.saved_model.load(str(path))
    signature = model.signatures.get("serving_default")
    if signature is None:
        raise WeightsError(f"{path} has no signature serving_default; export the model with one")
    specs = signature.structured_input_signature[1]
    _check_ends(path, sorted(specs), "inputs", 1)
    _check_ends(path, sorted(signature.structured_outputs), "outputs", 1)
    ((name, spec),) = specs.items()
    if not spec.dtype.is_floating:
        raise WeightsError(f"{path} takes {spec.dtype.name}: export it for real numbers")

    def call(inputs: Any) -> Any:
        return next(iter(signature(**{name: tf.cast(inputs, spec.dtype)}).values()))

    call.model = model  # type: ignore[attr-defined]  # keeps the variables alive
    return call


def _onnx(path: Path) -> Any:
    """A function of one tensor of real numbers: the model's first output."""
    try:
        import onnxruntime
    except ImportError:
        raise WeightsError(f"{path} needs onnxruntime: pip install 'reconstream[onnx]'") from None
    try:
        session = onnxruntime.InferenceSession(str(path), providers=onnxruntime.get_available_providers())
    except Exception as error:
        raise WeightsError(f"{path} cannot be loaded: {str(error).splitlines()[0]}") from error
    _check_ends(path, [each.name for each in session.get_inputs()], "inputs", 1)
    (declared,) = session.get_inputs()
    if declared.type not in ONNX_TYPES:
        raise WeightsError(f"{path} takes {declared.type}, not one of {', '.join(ONNX_TYPES)}: export it for real numbers")
    dtype = ONNX_TYPES[declared.type]

    def call(inputs: Any) -> np.ndarray:
        result: np.ndarray = session.run(None, {declared.name: np.asarray(inputs, dtype)})[0]
        return result

    return call


def _checkpoint_variables(prefix: Path) -> list[np.ndarray]:
    """The variables of a checkpoint that are named by number, ``variables/0`` and so on, in that order; optimiser's ones left out."""
    import tensorflow as tf

    if not Path(f"{prefix}.index").exists():
        raise WeightsError(f"{prefix}.index is missing")
    if not list(prefix.parent.glob(f"{prefix.name}.data-*")):
        raise WeightsError(f"{prefix}.index is there but its data file ({prefix.name}.data-00000-of-00001) is missing")
    reader = tf.train.load_checkpoint(str(prefix))
    pattern = re.compile(r"(?:.*/)?variables/(\d+)/\.ATTRIBUTES/VARIABLE_VALUE$")
    numbered = {int(match[1]): name for name in reader.get_variable_to_shape_map() if (match := pattern.fullmatch(name))}
    if not numbered:
        raise WeightsError(f"{prefix} has no variables named by number, as Keras models save them")
    return [reader.get_tensor(numbered[n]) for n in sorted(numbered)]


def _load_hdf5(network: Any, path: Path) -> None:
    """Weights of Keras 3, or of Keras 2 (groups by layer, as the sodium networks were published)."""
    import h5py

    arrays = None
    with h5py.File(path, "r") as file:
        group = file.get("model_weights", file)
        if "layer_names" in group.attrs:
            arrays = [group[layer][name][()] for layer in _names(group, "layer_names") for name in _names(group[layer], "weight_names")]
    if arrays is None:
        network.load_weights(path)
    else:
        _assign(network, arrays, path)


def _names(group: Any, attribute: str) -> list[str]:
    return [name.decode() if isinstance(name, bytes) else str(name) for name in group.attrs[attribute]]


def _assign(network: Any, arrays: Sequence[np.ndarray], path: Path) -> None:
    published = getattr(network, "published_weights", None)
    variables = list(network.weights) if published is None else published()
    arrays = list(arrays)
    while len(arrays) > len(variables) and not arrays[-1].shape:
        arrays.pop()  # a training's checkpoint goes on with counters
    if [tuple(variable.shape) for variable in variables] != [array.shape for array in arrays]:
        different = [n for n, (variable, array) in enumerate(zip(variables, arrays, strict=False)) if tuple(variable.shape) != array.shape]
        where = f"the first that differs is number {different[0]}" if different else "it is of a larger or smaller network"
        raise WeightsError(f"{path} holds {len(arrays)} variables where {type(network).__name__} has {len(variables)}: {where}")
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)
