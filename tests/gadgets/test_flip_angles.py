"""Flip-angle maps from files and pairs: what is read, where it lies, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pytest

from gadgets.base import Context, GadgetError, ParameterError, run
from gadgets.flip_angles import FlipAngleError, double_angle, measured_angles, read_angles
from gadgets.header import Header
from gadgets.items import Acquisition, Item
from gadgets.layout import ACQUISITION_HEADER, IMAGE_HEADER, blank
from gadgets.parameter_maps import Place
from gadgets.quantitative import QuantitativeFit
from tests.gadgets.contrast_scan import ContrastScan
from tests.gadgets.readouts import make_header

VALUES = np.linspace(0.7, 1.3, 2 * 6 * 5).reshape(2, 6, 5).astype(np.float32)
"""`[slice, y, x]`"""


def header(slices: int = 2) -> Header:
    return make_header((5, 6, 1), limits={"slice": (0, slices - 1, 0)})


def place(slice_: int = 0, field: tuple[float, float, float] = (50.0, 60.0, 5.0), **fields: Any) -> Place:
    head = blank(ACQUISITION_HEADER)
    head["idx"]["slice"] = slice_
    head["read_dir"], head["phase_dir"], head["slice_dir"] = (1, 0, 0), (0, 1, 0), (0, 0, 1)
    for name, value in fields.items():
        head[name] = value
    return Place(head, field)


def written(folder: Path, kind: str, values: np.ndarray = VALUES) -> Path:
    """A file of that kind."""
    path = folder / {"ismrmrd": "images.h5", "named": "b1.h5", "only": "b1.h5"}.get(kind, f"b1{kind}")
    if kind == ".npy":
        np.save(path, values)
    elif kind.startswith(".nii"):
        nibabel.save(nibabel.Nifti1Image(np.moveaxis(values, 0, 2), np.eye(4)), path)
    elif kind == "ismrmrd":  # as this service writes images, here not in the order of the slices
        heads = np.zeros(2, IMAGE_HEADER)
        heads["slice"] = (1, 0)
        with h5py.File(path, "w") as file:
            file["dataset/image_1/data"], file["dataset/image_1/header"] = values[::-1, None, None], heads
            file["dataset/image_1/attributes"] = [b"", b""]
    else:
        with h5py.File(path, "w") as file:
            file["maps/B1" if kind == "named" else "something"] = values
            if kind == "named":
                file["maps/T1"] = 1000 * values
    return path


@pytest.mark.parametrize("kind", [".npy", ".nii", ".nii.gz", "ismrmrd", "named", "only"])
def test_every_kind_of_file(kind: str, tmp_path: Path) -> None:
    angles = read_angles(str(written(tmp_path, kind)), None, header())
    for number in (0, 1):
        np.testing.assert_array_equal(angles.relative(place(number), (6, 5)), VALUES[number])


def test_paths_start_from_the_storage_and_zeros_take_the_nearest_value(tmp_path: Path) -> None:
    holed = VALUES[0].copy()
    holed[:2], holed[2] = 0, 0.9
    written(tmp_path, ".npy", holed)
    angles = read_angles("b1.npy", tmp_path, header(1))
    found = angles.relative(place(), (6, 5))
    assert (found[:2] == np.float32(0.9)).all()
    np.testing.assert_array_equal(found[2:], holed[2:])


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (100 * VALUES, "percent"),
        (np.where(VALUES > 1.2, 5, VALUES), "from 0.7 to 5; relative flip angles lie between 0.2 and 2.0"),
        (np.where(VALUES > 1.2, np.nan, VALUES), "10 values that are NaN or infinite; write 0"),
        (0 * VALUES, "0 everywhere"),
        (VALUES + 0j, "complex"),
        (VALUES[None, None], "shape (1, 1, 2, 6, 5)"),
        (VALUES[:, :, :4], "has the matrix (6, 4), the images (6, 5) ([y, x])"),
        (VALUES[0], "has 1 slices, the scan 2"),
    ],
)
def test_values_that_do_not_do(values: np.ndarray, words: str, tmp_path: Path) -> None:
    path = written(tmp_path, ".npy", values)
    with pytest.raises(FlipAngleError) as caught:
        read_angles(str(path), None, header()).relative(place(1), (6, 5))
    assert words in str(caught.value)
    assert str(path) in str(caught.value)


def test_files_that_do_not_do(tmp_path: Path) -> None:
    def told(name: str) -> str:
        with pytest.raises(FlipAngleError) as caught:
            read_angles(name, tmp_path, header())
        return str(caught.value)

    assert f"no file b1.npy (looked for in {tmp_path}" in told("b1.npy")
    (tmp_path / "b1.txt").write_text("1 1")
    assert "expected a file .npy, .nii" in told("b1.txt")
    (tmp_path / "b1.nii").write_bytes(b"nothing")
    assert "cannot be read" in told("b1.nii")
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    assert "cannot be read" in told("objects.npy")
    with h5py.File(tmp_path / "two.h5", "w") as file:
        file["one"], file["two"] = VALUES, VALUES
    assert "has the datasets one, two; name the one of the map b1_map" in told("two.h5")


def test_a_volume_has_its_own_matrix(tmp_path: Path) -> None:
    angles = read_angles(str(written(tmp_path, ".npy")), None, header(1))
    np.testing.assert_array_equal(angles.relative(place(), (2, 6, 5)), VALUES)


def pair(shape: tuple[int, ...], nominal: float, relative: np.ndarray) -> np.ndarray:
    return np.stack([np.sin(n * np.deg2rad(nominal) * relative) * np.ones(shape) for n in (1, 2)])


def test_a_coarser_pair_that_is_shifted_lies_where_it_was_measured() -> None:
    """Both maps are the same function of the place in mm."""

    def function(y_mm: np.ndarray, x_mm: np.ndarray) -> np.ndarray:
        found: np.ndarray = 1 + 0.003 * x_mm - 0.002 * y_mm
        return found

    def grid(n: int, field: float, shift: float) -> np.ndarray:
        found: np.ndarray = (np.arange(n) - n // 2) * field / n + shift
        return found

    y, x = np.meshgrid(grid(12, 120, 6.0), grid(16, 160, -4.0), indexing="ij")
    coarse = place(field=(160.0, 120.0, 5.0), position=(-4, 6, 0))
    angles = measured_angles(pair((12, 16), 50, function(y, x)), coarse, 50, 0.0)
    fine = angles.relative(place(field=(60.0, 50.0, 5.0), position=(3, -2, 0)), (25, 20))
    y, x = np.meshgrid(grid(25, 50, -2.0), grid(20, 60, 3.0), indexing="ij")
    np.testing.assert_allclose(fine, function(y, x), atol=1e-5)
    with pytest.raises(FlipAngleError, match="another orientation"):
        angles.relative(place(read_dir=(0, 1, 0)), (25, 20))
    with pytest.raises(FlipAngleError, match="both must be slices, or volumes"):
        angles.relative(place(), (4, 25, 20))


def test_a_pair_in_the_wrong_order_is_told() -> None:
    images = pair((8, 8), 20, np.ones((8, 8)))
    with pytest.raises(FlipAngleError, match=r"times the nominal flip angle of 20 degrees: contrast 0 of its set must have that angle"):
        measured_angles(images[::-1], place(), 20, 0.0)


def test_what_header_and_properties_say_of_a_pair() -> None:
    def user(name: str, value: float, kind: str = "Double") -> str:
        return f"<userParameter{kind}><name>{name}</name><value>{value}</value></userParameter{kind}>"

    def head(*parameters: str) -> Header:
        return Header(f"<ismrmrdHeader><userParameters>{''.join(parameters)}</userParameters></ismrmrdHeader>")

    assert double_angle(head(), 0, None) is None
    assert double_angle(head(user("double_angle_deg", 60)), 0, None) == (60, 1)
    assert double_angle(head(user("double_angle_deg", 60), user("double_angle_set", 3, "Long")), 0, None) == (60, 3)
    assert double_angle(head(user("double_angle_deg", 60)), 45, 2) == (45, 2)
    with pytest.raises(FlipAngleError, match="between 10 and 90 degrees"):
        double_angle(head(user("double_angle_deg", 1.05)), 0, None)


def test_the_gadget_tells_before_or_after_the_images(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"ExpDecay takes no flip-angle map"):
        QuantitativeFit(model="ExpDecay", b1_map="b1.npy")
    scan = ContrastScan(shape=(1, 12, 12))
    items, left = scan.items(), list[Item]()

    def collect() -> None:
        for item in run([QuantitativeFit("maps", model="VFA", b1_map="b1.npy")], items, Context(Header(scan.header), storage=tmp_path)):
            left.append(item)

    with pytest.raises(GadgetError, match=r"maps.*b1_map: there is no file b1.npy"):
        collect()
    assert [one for one in left if isinstance(one, Acquisition)] == items
