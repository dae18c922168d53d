"""Networks in ONNX files: any size, both layouts, half precision, and what goes wrong."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from recon.networks.denoiser import denoiser
from recon.networks.weights import WeightsError, load_file

Shape = Sequence[int | str]


def write(
    path: Path, nodes: Sequence[Any], inputs: Shape, output: Shape, kind: int = TensorProto.FLOAT, constants: Sequence[Any] = ()
) -> Path:
    """A model of these nodes, x to y."""
    ends = [[helper.make_tensor_value_info(name, kind, shape)] for name, shape in (("x", inputs), ("y", output))]
    graph = helper.make_graph(nodes, "small", *ends, initializer=constants)
    # Versions that every onnxruntime of the last years reads.
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def twice(path: Path, kind: int = TensorProto.FLOAT, inputs: int = 1) -> Path:
    """y = x + x, of images ``[batch, row, column, 5]`` of any size; or the sum of two inputs."""
    shape = ["batch", "row", "column", 5]
    node = helper.make_node("Add", ["x", "x" if inputs == 1 else "x1"], ["y"])
    ends = [helper.make_tensor_value_info(name, kind, shape) for name in ("x", "x1")[:inputs]]
    graph = helper.make_graph([node], "sum", ends, [helper.make_tensor_value_info("y", kind, shape)])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def mixture(path: Path, frames_first: bool) -> Path:
    """0.75 of the newest and 0.25 of the oldest of three frames, in either layout."""
    factors = np.array([0.25, 0, 0.75], np.float32)
    if frames_first:
        kernel = helper.make_tensor("w", TensorProto.FLOAT, [1, 3, 1, 1], factors)
        return write(path, [helper.make_node("Conv", ["x", "w"], ["y"])], ["b", 3, "r", "c"], ["b", 1, "r", "c"], constants=[kernel])
    matrix = helper.make_tensor("w", TensorProto.FLOAT, [3, 1], factors)
    return write(path, [helper.make_node("MatMul", ["x", "w"], ["y"])], ["b", "r", "c", 3], ["b", "r", "c", 1], constants=[matrix])


@pytest.mark.parametrize("size", [(8, 8), (4, 12)])
def test_images_of_any_size(size: tuple[int, int], tmp_path: Path) -> None:
    images = np.random.default_rng(0).uniform(size=(2, *size, 5)).astype(np.float32)
    np.testing.assert_array_equal(load_file(twice(tmp_path / "twice.onnx"))(images), 2 * images)


@pytest.mark.parametrize(("kind", "dtype"), [(TensorProto.FLOAT16, np.float16), (TensorProto.DOUBLE, np.float64)])
def test_other_precisions(kind: int, dtype: type, tmp_path: Path) -> None:
    images = np.random.default_rng(0).uniform(size=(1, 4, 4, 5)).astype(np.float32)
    found = load_file(twice(tmp_path / "twice.onnx", kind))(images)
    assert found.dtype == dtype
    np.testing.assert_allclose(found, 2 * images, rtol=1e-3)


@pytest.mark.parametrize("layout", ["frames_last", "frames_first"])
def test_windows_in_both_layouts(layout: str, tmp_path: Path) -> None:
    path = mixture(tmp_path / "mixture.onnx", layout == "frames_first")
    window = np.random.default_rng(1).uniform(0, 50, (3, 2, 8, 12)).astype(np.float32)
    found = denoiser(str(path), frames=3, layout=layout)(window)
    np.testing.assert_allclose(found, 0.75 * window[2] + 0.25 * window[0], rtol=1e-5)


def test_a_fixed_size_is_held_to(tmp_path: Path) -> None:
    path = write(tmp_path / "fixed.onnx", [helper.make_node("Identity", ["x"], ["y"])], [1, 8, 8, 1], [1, 8, 8, 1])
    network = load_file(path)
    assert network(np.ones((1, 8, 8, 1))).shape == (1, 8, 8, 1)
    with pytest.raises(Exception, match="Expected: 8"):
        network(np.ones((1, 8, 12, 1)))


def test_what_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(WeightsError, match=r"text\.onnx cannot be loaded"):
        load_file(tmp_path / "text.onnx")
    with pytest.raises(WeightsError, match=r"two\.onnx has 2 inputs \(x, x1\), not 1"):
        load_file(twice(tmp_path / "two.onnx", inputs=2))
    with pytest.raises(WeightsError, match=r"takes tensor\(int64\), not one of tensor\(float\)"):
        load_file(twice(tmp_path / "integers.onnx", TensorProto.INT64))


def test_without_onnxruntime_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = twice(tmp_path / "twice.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(WeightsError, match=r"needs onnxruntime: pip install 'reconstream\[onnx\]'"):
        load_file(path)
