"""Published files put into our networks compute what the published graphs compute.

Of the publications' SavedModels the graphs and the lists of variables can be had, not the values. The numbers below are what the graphs
themselves (run by TensorFlow, with variables and input as made here) give at some pixels near a corner, where an image of the published
size and its corner alone agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from recon.networks.weights import WeightsError, catalogue, load_file

CORNER = {"FastDVDnet": (1, 96, 96, 5), "UNet": (1, 24, 48, 48, 20)}
FASTDVDNET = {(0, 0): -1.2419894, (0, 7): 3.1545749, (1, 4): 1.444157, (3, 2): 0.36157438, (7, 7): 0.12083257}
UNET = {(0, 0, 0): -0.2479974, (0, 3, 1): -0.2121233, (11, 1, 3): -0.9046865, (23, 2, 2): -0.25555497}


def drawn(shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """Random variables, each of a seed of its own."""
    found = []
    for seed, shape in enumerate(shapes):
        spread = np.sqrt(2 / np.prod(shape[:-1])) if len(shape) > 1 else 0.1
        found.append((np.random.default_rng(seed).standard_normal(shape) * spread).astype(np.float32))
    return found


def saved_model(folder: Path, variables: Sequence[np.ndarray]) -> Path:
    """Variables named as in the publications' checkpoints, with an optimiser's slots and metrics beside them."""
    names, arrays = [], []
    for n, variable in enumerate(variables):
        for name in ("", ".OPTIMIZER_SLOT/optimizer/m/", ".OPTIMIZER_SLOT/optimizer/v/"):
            names.append(f"variables/{n}/{name}.ATTRIBUTES/VARIABLE_VALUE")
            arrays.append(tf.constant(variable if not name else np.ones_like(variable)))
    for n, name in enumerate(("total", "count")):
        names.append(f"keras_api/metrics/{n}/{name}/.ATTRIBUTES/VARIABLE_VALUE")
        arrays.append(tf.constant(0.0))
    prefix = folder / "variables" / "variables"
    prefix.parent.mkdir(parents=True)
    tf.raw_ops.SaveV2(prefix=str(prefix), tensor_names=names, shape_and_slices=[""] * len(names), tensors=arrays)
    return folder


@pytest.mark.parametrize(
    ("name", "expected"),
    [("hyperslice_published", FASTDVDNET), ("inter4k_fastdvdnet_published", FASTDVDNET), ("inter4k_unet_published", UNET)],
)
def test_a_published_file_computes_what_its_graph_does(name: str, expected: dict[tuple[int, ...], float], tmp_path: Path) -> None:
    entry = catalogue()[name]
    shapes = [tuple(variable.shape) for variable in entry.network.build(entry.input_shape).weights]
    network = load_file(saved_model(tmp_path / "saved_model", drawn(shapes)), entry.network, entry.input_shape)
    corner = np.random.default_rng(1000).uniform(0, 1, CORNER[entry.network.kind]).astype(np.float32)
    found = np.asarray(network(corner))[0, ..., 0]
    assert [float(found[pixel]) for pixel in expected] == pytest.approx(list(expected.values()), abs=2e-4)


def test_a_larger_network_is_not_cut_to_size(tmp_path: Path) -> None:
    """The first cells of a VarNet have the variables of a shorter one."""
    entry = catalogue()["varnet_cartesian"]
    shapes = [tuple(variable.shape) for variable in entry.network.build(entry.input_shape).weights]
    longer = saved_model(tmp_path / "longer", drawn([*shapes, *shapes[:23]]))
    with pytest.raises(WeightsError, match="holds 207 variables where VarNet has 184: it is of a larger or smaller network"):
        load_file(longer, entry.network, entry.input_shape)
    shorter = saved_model(tmp_path / "shorter", drawn(shapes[:-1]))
    with pytest.raises(WeightsError, match="holds 183 variables where VarNet has 184"):
        load_file(shorter, entry.network, entry.input_shape)
    counted = saved_model(tmp_path / "counted", [*drawn(shapes), np.float32(7), np.float32(8)])
    assert load_file(counted, entry.network, entry.input_shape).count_params() == 713_240
