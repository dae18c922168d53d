"""`reconstream fit`: maps of known objects from every kind of file, what is written, and one line for every error."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from gadgets.items import Acquisition
from gadgets.layout import Flag
from service.cli import app
from service.files import read_measurement
from tests.service import maps_scan as scan

T1, T2 = scan.objects()[1:]


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    level = logging.getLogger("tensorflow").level
    yield
    logging.getLogger("tensorflow").setLevel(level)


def fit(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["fit", *(str(argument) for argument in arguments)])


def done(*arguments: str | Path) -> Result:
    result = fit(*arguments)
    assert result.exit_code == 0, result.output
    return result


def failed(*arguments: str | Path) -> str:
    result = fit(*arguments)
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    return " ".join(result.output.split("error:")[1].split())


def load(path: Path) -> np.ndarray:
    return np.asarray(nibabel.load(path).dataobj)


VFA = scan.elements(TR=scan.TR, flipAngle_deg=scan.FLIPS)


@pytest.fixture(scope="module")
def radial_items() -> list[Acquisition]:
    return scan.radial(scan.vfa_images(), 24, noise=0.05)


@pytest.fixture(scope="module")
def radial(tmp_path_factory: pytest.TempPathFactory, radial_items: list[Acquisition]) -> Path:
    return scan.write(tmp_path_factory.mktemp("fit") / "vfa.h5", scan.header(5, "goldenangle", VFA, lines=24), radial_items)


@pytest.fixture(scope="module")
def cartesian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two slices, twofold undersampled, the readout oversampled."""
    sampled = lambda line: line % 2 == 0  # noqa: E731
    images = scan.t2_images()
    items = scan.lines(images, sampled=sampled, oversampling=2, slice_=0, position=(4, 5, 6))
    items += scan.lines(images * 2, sampled=sampled, oversampling=2, slice_=1, position=(4, 5, 16))
    parallel = (
        "<parallelImaging><accelerationFactor><kspace_encoding_step_1>2</kspace_encoding_step_1><kspace_encoding_step_2>1"
        "</kspace_encoding_step_2></accelerationFactor><calibrationMode>embedded</calibrationMode></parallelImaging>"
    )
    xml = scan.header(4, "cartesian", scan.elements(TR=3000, TE=scan.ECHOES), oversampling=2, parallel=parallel)
    return scan.write(tmp_path_factory.mktemp("fit") / "t2.h5", xml, items)


def test_help_names_the_options() -> None:
    output = CliRunner().invoke(app, ["fit", "--help"], env={"COLUMNS": "200"}).output
    for option in ("--model", "--reg", "--output", "--te", "--reg_type", "--is3Ddata", "--modelname", "--readouts-per-frame"):
        assert option in output


def test_radial_flip_angles_to_a_regularised_t1_map(radial: Path, tmp_path: Path) -> None:
    settings = ("--set", "max_gn_it=2", "--set", "start_iters=20", "--pyqmri-output")
    result = done(radial, "--model", "VFA", "-o", tmp_path, *settings)
    t1 = load(tmp_path / "T1_ms.nii.gz")
    assert t1.shape == (32, 32, 1)
    assert scan.error(t1[:, :, 0], T1) < 0.03
    assert "step 2 of 2: cost" in result.output
    assert "T1 [ms]: median" in result.output
    names = {path.name for path in tmp_path.iterdir()} - {"PyQMRI_out"}
    stems = ("T1_ms", "T1_ms_sd", "M0", "M0_sd")
    assert names == {"maps.h5", *(f"{stem}.{ending}" for stem in stems for ending in ("nii.gz", "png"))}
    with h5py.File(tmp_path / "maps.h5") as file:
        np.testing.assert_allclose(file["maps/T1"][0], t1[:, :, 0])
        assert file["maps/T1"].attrs["unit"] == "ms"
        assert np.iscomplexobj(file["maps/M0"][()])
        assert json.loads(file.attrs["settings"])["max_gn_it"] == 2
        costs = file["costs"][()]
        assert costs["step"].tolist() == [0, 1, 2]
        assert (np.diff(costs["data_cost"] + costs["regularisation_cost"])[1:] < 0).all()
    (layout,) = tmp_path.glob("PyQMRI_out/VFA/vfa/*/output_vfa.h5")
    with h5py.File(layout) as file:
        unknowns = file["tgv_result_iter_001"][()]
        np.testing.assert_allclose(unknowns[1, 0].real[t1[:, :, 0] > 0], t1[:, :, 0][t1[:, :, 0] > 0], rtol=1e-5)
        assert file["images_ifft"].shape == (5, 1, 32, 32)
        assert "datacost_iter_1" in file.attrs


def test_voxels_alone_and_flip_angles_from_user_parameters(tmp_path: Path, radial_items: list[Acquisition]) -> None:
    user = scan.users(**{f"FlipAngle_{n}_deg": flip for n, flip in enumerate(scan.FLIPS)})
    path = scan.write(tmp_path / "scan.h5", scan.header(5, "goldenangle", scan.elements(TR=scan.TR), user, lines=24), radial_items)
    done(path, "-m", "vfa", "--reg", "none", "-o", tmp_path / "maps", "--no-png", "-q")
    assert scan.error(load(tmp_path / "maps" / "T1_ms.nii.gz")[:, :, 0], T1) < 0.06
    assert not list((tmp_path / "maps").glob("*.png"))


def test_undersampled_slices_with_their_geometry(cartesian: Path, tmp_path: Path) -> None:
    done(cartesian, "--model", "ExpDecay", "--reg", "none", "-o", tmp_path)
    t2, density = load(tmp_path / "T2_ms.nii.gz"), load(tmp_path / "M0.nii.gz")
    assert t2.shape == (32, 32, 2)
    for n in (0, 1):
        assert scan.error(t2[:, :, n], T2) < 0.02
    inside = scan.interior()
    # The scan is a plain sum over the object; images are orthonormal transforms of the encoded matrix.
    np.testing.assert_allclose(np.median(density[inside, 1] / density[inside, 0]), 2, rtol=1e-3)
    np.testing.assert_allclose(np.median(density[inside, 0] / np.abs(scan.objects()[0])[inside]), np.sqrt(64 * 32), rtol=0.02)
    assert nibabel.load(tmp_path / "T2_ms.nii.gz").header["descrip"].item() == b"T2 [ms]"
    assert nibabel.load(tmp_path / "M0_sd.nii.gz").header["descrip"].item() == b"M0_sd"
    affine = nibabel.load(tmp_path / "T2_ms.nii.gz").affine
    # Pixels are 5 mm, slices 10 mm apart; row and column 16 lie at the position, with left and posterior negative.
    np.testing.assert_allclose(affine @ [16, 16, 0, 1], [-4, -5, 6, 1], atol=1e-5)
    np.testing.assert_allclose(affine @ [17, 16, 0, 1], [-4, -10, 6, 1], atol=1e-5)
    np.testing.assert_allclose(affine @ [16, 17, 0, 1], [-9, -5, 6, 1], atol=1e-5)
    np.testing.assert_allclose(affine @ [16, 16, 1, 1], [-4, -5, 16, 1], atol=1e-5)
    picture = np.asarray(Image.open(tmp_path / "T2_ms.png"))
    assert picture.shape[0] > 300
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50


def test_a_train_after_an_inversion_is_cut_into_frames(tmp_path: Path) -> None:
    first, step, count = 10.0, 8.0, 240
    images = scan.train_images(count, first, step, 7.0)
    items = scan.radial(images, 1)
    for number, item in enumerate(items):
        item.header["idx"]["contrast"], item.header["idx"]["kspace_encode_step_1"] = 0, number
        item.header["user_float"][3] = first + step * number
    sequence = scan.elements(TR=step, TI=first, flipAngle_deg=7.0)
    path = scan.write(tmp_path / "ll.h5", scan.header(1, "goldenangle", sequence, lines=count), items)
    found = done(path, "--model", "LookLocker", "--reg", "none", "--readouts-per-frame", "8", "-o", tmp_path / "a", "--no-png")
    assert "30 frames of 8 readouts" in found.output
    one = load(tmp_path / "a" / "T1_ms.nii.gz")
    assert scan.error(one[:, :, 0], T1) < 0.03
    done(path, "--model", "LL", "--reg", "none", "--readouts-per-frame", "8", "-P", "TI=user_float[3]", "-o", tmp_path / "b", "--no-png")
    np.testing.assert_allclose(load(tmp_path / "b" / "T1_ms.nii.gz"), one, rtol=1e-3)


def test_slices_are_regularised_together(cartesian: Path, tmp_path: Path) -> None:
    arguments = ("--set", "max_gn_it=1", "--set", "start_iters=20", "--set", "gamma=1e-4", "--reg", "TV", "--no-png")
    result = done(cartesian, "--model", "ExpDecay", "-o", tmp_path, *arguments)
    assert "slice" not in result.output.split("T2")[0]
    t2 = load(tmp_path / "T2_ms.nii.gz")
    for n in (0, 1):
        assert scan.error(t2[:, :, n], T2) < 0.02
    with h5py.File(tmp_path / "maps.h5") as file:
        # Pixels of 5 mm, slices 10 mm apart.
        assert json.loads(file.attrs["settings"])["dz"] == pytest.approx(0.5)


def test_slices_streamed_through_the_device_give_the_same_maps(cartesian: Path, tmp_path: Path) -> None:
    """And the same standard deviations."""
    arguments = ("--set", "max_gn_it=1", "--set", "start_iters=20", "--set", "replicas=2", "--reg", "TV", "--no-png")
    done(cartesian, "--model", "ExpDecay", "-o", tmp_path / "whole", *arguments)
    done(cartesian, "--model", "ExpDecay", "-o", tmp_path / "blocks", *arguments, "--streamed", "True", "--par_slices", "1")
    for file in ("T2_ms.nii.gz", "T2_ms_sd.nii.gz"):
        whole, blocks = (load(tmp_path / name / file) for name in ("whole", "blocks"))
        np.testing.assert_allclose(blocks, whole, rtol=1e-3)


_TWO_DEVICES = """
import sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from recon.quantitative.lanes import Lanes
from service.cli import main
lane = Lanes._lane
def told(self, number, *rest):
    print("lane", self.devices[number])
    return lane(self, number, *rest)
Lanes._lane = told
main()
"""


def test_blocks_are_spread_over_the_devices_that_are_named(cartesian: Path, tmp_path: Path) -> None:
    """The maps of one device to the bit."""
    settings = [part for setting in ("max_gn_it=1", "start_iters=5", "replicas=0") for part in ("--set", setting)]
    arguments = ("--model", "ExpDecay", *settings, "--reg", "TV", "--no-png", "--streamed", "True")
    done(cartesian, *arguments, "-o", tmp_path / "one", "--devices", "0")
    command = [sys.executable, "-c", _TWO_DEVICES, "fit", cartesian, *arguments, "-o", tmp_path / "two", "--devices", "1,0"]
    two = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert two.returncode == 0, two.stderr[-2000:]
    assert set(re.findall(r"lane \S*CPU:(\d)", two.stdout)) == {"0", "1"}
    one, both = (load(tmp_path / name / "T2_ms.nii.gz") for name in ("one", "two"))
    np.testing.assert_array_equal(both, one)
    wrong = fit(cartesian, *arguments, "-o", tmp_path / "none", "--devices", "0,7")
    assert wrong.exit_code == 2
    assert "there is no device 7: 1 found, counted from 0" in wrong.output


def test_a_volume_and_a_flip_angle_map(tmp_path: Path) -> None:
    actual = 0.9 + 0.2 * np.arange(scan.N)[:, None] / scan.N * np.ones(scan.N)
    density, t1, _ = scan.objects()
    recovery = np.exp(-scan.TR / np.where(t1 > 0, t1, 1))
    angles = np.deg2rad(scan.FLIPS)[:, None, None] * actual
    images = density * np.sin(angles) * (1 - recovery) / (1 - np.cos(angles) * recovery)
    depth, items = 4, []
    for item in scan.lines(images, coils=1):
        for partition, weight in enumerate(np.fft.fftshift(np.fft.fft(np.fft.ifftshift([1.0, 2, 3, 1])))):
            part = item.with_data((item.data * weight).astype(np.complex64))
            part.header["idx"]["kspace_encode_step_2"] = partition
            items.append(part)
    path = scan.write(tmp_path / "scan.h5", scan.header(5, "cartesian", VFA, depth=depth), items)
    nibabel.save(nibabel.Nifti1Image(np.repeat(actual[:, :, None], depth, 2).astype(np.float32), np.eye(4)), tmp_path / "b1.nii.gz")
    arguments = (path, "--model", "VFA", "--reg", "none", "--no-png", "-o", tmp_path / "maps")
    done(*arguments, "--field", f"fa_corr={tmp_path / 'b1.nii.gz'}")
    found, size = load(tmp_path / "maps" / "T1_ms.nii.gz"), load(tmp_path / "maps" / "M0.nii.gz")
    assert found.shape == (32, 32, depth)
    for n in range(depth):
        assert scan.error(found[:, :, n], t1) < 1e-3
    np.testing.assert_allclose(np.median(size[scan.interior()], 0) / np.median(size[scan.interior()][:, 0]), [1, 2, 3, 1], rtol=1e-3)
    assert "no input fa_cor" in failed(*arguments, "--field", f"fa_cor={tmp_path / 'b1.nii.gz'}")
    nibabel.save(nibabel.Nifti1Image(actual.astype(np.float32)[:, :, None], np.eye(4)), tmp_path / "b1.nii.gz")
    assert "the data have (32, 32, 4)" in failed(*arguments, "--field", f"fa_corr={tmp_path / 'b1.nii.gz'}")


def test_a_slice_without_its_last_contrast(tmp_path: Path) -> None:
    items = scan.lines(scan.t2_images()) + scan.lines(scan.t2_images()[:3], slice_=1)
    path = scan.write(tmp_path / "scan.h5", scan.header(4, "cartesian", scan.elements(TE=scan.ECHOES)), items)
    text = failed(path, "--model", "T2", "-o", tmp_path / "maps")
    assert "slice 1 has 3 contrasts, slice 0 has 4" in text


# -- other files -----------------------------------------------------------------------------------------------------------------------


def nifti(folder: Path, images: np.ndarray, affine: np.ndarray, **sidecar: object) -> Path:
    path = folder / "series.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.abs(images).astype(np.float32), affine), path)
    if sidecar:
        (folder / "series.json").write_text(json.dumps(sidecar))
    return path


def test_nifti_series_goes_back_where_it_came_from(tmp_path: Path) -> None:
    affine = np.array([[0, 3, 0, 7], [-2, 0, 0, 8], [0, 0, 4, 9], [0, 0, 0, 1.0]])
    # [i, j, k, contrast], three slices; one voxel is not a number.
    images = np.abs(scan.t2_images()).transpose(1, 2, 0)[:, :, None].repeat(3, 2)
    images[5, 6, 1, 2] = np.nan
    path = nifti(tmp_path, images, affine, EchoTime=[echo / 1000 for echo in scan.ECHOES])
    result = done(path, "--model", "T2", "--reg", "none", "-o", tmp_path / "maps", "--no-png")
    assert "TE = 10, 25, 45, 70 ms" in result.output
    assert "1 voxels that are not finite" in result.output
    found = nibabel.load(tmp_path / "maps" / "T2_ms.nii.gz")
    np.testing.assert_allclose(found.affine, affine)
    for n in range(3):
        np.testing.assert_allclose(np.asarray(found.dataobj)[:, :, n][scan.interior()], T2[scan.interior()], rtol=1e-3)


def test_a_file_for_each_inversion_time_and_a_mask(tmp_path: Path) -> None:
    density, t1, _ = scan.objects()
    times = (50.0, 300.0, 700.0, 1500.0, 4000.0)
    files = []
    for number, time in enumerate(times):
        signal = np.abs(density * (1 - 2 * np.exp(-time / np.where(t1 > 0, t1, 1))))
        files.append(tmp_path / f"{number}.nii")
        nibabel.save(nibabel.Nifti1Image(signal[:, :, None].astype(np.float32), np.eye(4)), files[-1])
    chosen = np.zeros((32, 32, 1), np.float32)
    chosen[10:20, 8:16] = 1
    nibabel.save(nibabel.Nifti1Image(chosen, np.eye(4)), tmp_path / "mask.nii.gz")
    arguments = (*files, "--model", "IR", "--ti", "50,300,700,1500,4000", "--reg", "none", "--mask", tmp_path / "mask.nii.gz", "--no-png")
    done(*arguments, "-o", tmp_path / "maps")
    t1_map = load(tmp_path / "maps" / "T1_ms.nii.gz")[:, :, 0]
    inside = scan.interior() & (chosen[:, :, 0] > 0)
    np.testing.assert_allclose(t1_map[inside], t1[inside], rtol=1e-3)
    assert not t1_map[chosen[:, :, 0] == 0].any()
    nibabel.save(nibabel.Nifti1Image(chosen * 0, np.eye(4)), tmp_path / "mask.nii.gz")
    assert "the mask is empty" in failed(*arguments, "-o", tmp_path / "maps")


@pytest.mark.parametrize("views", [0, 24])
def test_pyqmri_files_are_read_and_left_alone(tmp_path: Path, views: int) -> None:
    attributes = {"TR": scan.TR, "flip_angle(s)": scan.FLIPS}
    path = scan.write_pyqmri(tmp_path / "data.h5", scan.vfa_images(), attributes, views, maps=views == 0)
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    arguments = ("--data", path, "--reg_type", "none", "--trafo", str(views > 0), "--slices", "1", "--no-png")
    done(*arguments, "--model", "VFA", "--out", tmp_path / "maps")
    t1 = load(tmp_path / "maps" / "T1_ms.nii.gz")
    assert t1.shape == (32, 32, 1)
    assert scan.error(t1[:, :, 0], T1) < (0.03 if views else 0.001)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before


def test_pyqmri_command_line_without_a_display(tmp_path: Path) -> None:
    """As PyQMRI is called; nothing of what it needs is loaded."""
    attributes = {"TR": scan.TR, "flip_angle(s)": scan.FLIPS}
    path = scan.write_pyqmri(tmp_path / "x.h5", scan.vfa_images(), attributes, 24)
    lines = ("max_iters = 40", "start_iters = 20", "max_gn_it = 2", "lambd = 1", "gamma = 1e-5", "gamma_min = 1e-6", "beta = 15")
    (tmp_path / "mine.ini").write_text("\n".join(["[TGV]", *lines]))
    flags = ["--data", path, "--model", "VFA", "--reg_type", "TGV", "--trafo", "1", "--config", tmp_path / "mine", "--out", tmp_path]
    code = (
        "import sys\nfrom service.cli import main\ntry:\n    main()\nfinally:\n"
        "    print('loaded', {'tkinter', 'pyopencl', 'ipyparallel', 'matplotlib', 'PyQt5'} & set(sys.modules))"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    command = [sys.executable, "-c", code, "fit", *map(str, flags)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], env=environment)
    assert run.returncode == 0, run.stderr[-2000:]
    assert "loaded set()" in run.stdout
    assert scan.error(load(tmp_path / "T1_ms.nii.gz")[:, :, 0], T1) < 0.03


def test_pyqmri_flip_angle_maps_are_turned_as_pyqmri_turns_them(tmp_path: Path) -> None:
    actual = 0.9 + 0.2 * np.arange(scan.N)[:, None] / scan.N * np.ones(scan.N)
    recovery = np.exp(-scan.TR / np.where(T1 > 0, T1, 1))
    angles = np.deg2rad(scan.FLIPS)[:, None, None] * actual
    images = scan.objects()[0] * np.sin(angles) * (1 - recovery) / (1 - np.cos(angles) * recovery)
    path = scan.write_pyqmri(tmp_path / "data.h5", images, {"TR": scan.TR, "flip_angle(s)": scan.FLIPS})
    with h5py.File(path, "a") as file:
        # Slices from behind, rows for columns; b0 is nothing that the model takes.
        file["fa_corr"] = np.stack([np.ones((scan.N, scan.N)), actual.T])
        file["b0"] = np.ones((2, scan.N, scan.N))
    done(path, "--model", "VFA", "--reg", "none", "-o", tmp_path / "maps", "--no-png", "--pyqmri-output")
    assert scan.error(load(tmp_path / "maps" / "T1_ms.nii.gz")[:, :, 0], T1) < 1e-3
    (layout,) = (tmp_path / "maps").glob("PyQMRI_out/VFA/data/*/output_data.h5")
    with h5py.File(path) as given, h5py.File(layout) as written:
        # Scans without noise: the model's signals are the images, of both slices, each with its own flip angles.
        inside = scan.interior()
        np.testing.assert_allclose(written["model_res_iter_000"][:, 0][:, inside], images[:, inside], rtol=2e-3)
        np.testing.assert_allclose(written["model_res_iter_000"][:, 1][:, inside], written["images_ifft"][:, 1][:, inside], rtol=0.05)
        energy = np.sum(given["real_dat"][()].astype(float) ** 2 + given["imag_dat"][()].astype(float) ** 2)
        assert written.attrs["data_norm"] == pytest.approx(2 * np.sqrt(2000 / energy), rel=1e-5)


def test_pyqmri_train_without_an_axis_of_contrasts(tmp_path: Path) -> None:
    """13 spokes a frame, as PyQMRI cuts it; the inversions are so far apart that the train begins in equilibrium."""
    views, tau, delay = 13 * 12 + 5, 12.0, 15.0
    images = scan.train_images(views, delay, tau, 8.0)
    angles = scan.GOLDEN * np.arange(views)
    maps = scan.coil_maps(4, scan.N)
    points = scan.spokes(angles, scan.N)
    data = np.stack([scan.measure(image, maps, one) for image, one in zip(images, points, strict=True)], 1)[:, None] / scan.N
    path = tmp_path / "irll.h5"
    with h5py.File(path, "w") as file:
        file["real_dat"], file["imag_dat"] = data.real.astype(np.float32), data.imag.astype(np.float32)
        file["real_traj"], file["imag_traj"] = points[..., 0].astype(np.float32), points[..., 1].astype(np.float32)
        file.attrs["image_dimensions"], file.attrs["data_normalized_with_dcf"] = (scan.N, scan.N, 1), False
        attributes = {"time_per_slice": 60000.0, "tau": tau, "gradient_delay": delay, "flip_angle(s)": 8.0, "Nproj_measured": views}
        for name, value in attributes.items():
            file.attrs[name] = value
    result = done(path, "--model", "IRLL", "--reg", "none", "-o", tmp_path / "maps", "--no-png")
    assert "12 frames of 13 of the 161 projections" in result.output
    assert scan.error(load(tmp_path / "maps" / "T1_ms.nii.gz")[:, :, 0], T1) < 0.05
    with h5py.File(path, "a") as file:
        del file.attrs["data_normalized_with_dcf"]
    assert "data_normalized_with_dcf" in failed(path, "--model", "IRLL", "--reg", "none", "-o", tmp_path / "maps")


def test_pyqmri_formula_and_image_space(tmp_path: Path) -> None:
    attributes = {"TR": scan.TR, "fa": np.deg2rad(scan.FLIPS), "flip_angle(s)": scan.FLIPS}
    path = scan.write_pyqmri(tmp_path / "data.h5", scan.vfa_images(), attributes)
    done(path, "--model", "GeneralModel", "--reg", "none", "--imagespace", "True", "--slices", "1", "-o", tmp_path / "maps", "--no-png")
    assert scan.error(load(tmp_path / "maps" / "E_1.nii.gz")[:, :, 0], T1) < 0.01


# -- errors ----------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sequence", "arguments", "words"),
    [
        (scan.elements(flipAngle_deg=scan.FLIPS), (), ("TR", "ms", "sequenceParameters/TR", "-P TR=")),
        (scan.elements(TR=scan.TR / 1000, flipAngle_deg=scan.FLIPS), (), ("TR", "seconds", "ms")),
        (scan.elements(TR=scan.TR, flipAngle_deg=np.deg2rad(np.array(scan.FLIPS) / 4)), (), ("flip_angle", "radians", "deg")),
        (scan.elements(TR=scan.TR, flipAngle_deg=scan.FLIPS[:4]), (), ("5 contrasts", "describe 4", "flip_angle has 4")),
        (VFA, ("--fa", "5,5,5,5,5"), ("flip_angle", "1 different values", "at least 2")),
        (VFA, ("--model", "VFB"), ("VFB", "did you mean VFA")),
        (VFA, ("--reg", "TVG"), ("TVG", "TGV")),
        (VFA, ("--set", "gama=1"), ("gama", "did you mean gamma")),
        (VFA, ("--config", "nowhere"), ("nowhere.ini", "no such")),
        (VFA, ("--initial_guess", "1,2,3"), ("3 values", "M0, T1")),
        (VFA, ("--sms", "True"), ("cartesian_sms.xml",)),
        (VFA, ("-P", "flip_angel=3,6,10,16,24"), ("no parameter flip_angel", "did you mean flip_angle")),
        (VFA, ("--te", "3,6,10,16,24"), ("no parameter TE", "TR, flip_angle")),
        (VFA, ("--weights", "nan,1"), ("weights", "nan")),
        (VFA, ("--weights=-1,1",), ("weights", "-1")),
        (VFA, ("--weights", "1"), ("1 values", "M0, T1")),
        (VFA, ("--initial_guess", "1,nan"), ("T1 = nan", "50 to 5500 ms")),
        (VFA, ("--initial_guess", "1,1.5"), ("T1 = 1.5", "50 to 5500 ms")),
        (VFA, ("--set", "max_gn_it=1.5"), ("max_gn_it", "whole number")),
    ],
)
def test_errors_say_what_and_where(
    tmp_path: Path, radial_items: list[Acquisition], sequence: str, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    path = scan.write(tmp_path / "scan.h5", scan.header(5, "goldenangle", sequence, lines=24), radial_items)
    text = failed(path, "--model", "VFA", "-o", tmp_path / "maps", "--coil-maps", "image", *arguments)
    for word in words:
        assert word in text


def test_readouts_that_are_not_numbers_are_left_out_and_told(tmp_path: Path) -> None:
    items = scan.lines(scan.t2_images())
    items[3].data[:] = np.nan
    xml = scan.header(4, "cartesian", scan.elements(TE=scan.ECHOES))
    path = scan.write(tmp_path / "scan.h5", xml, items)
    result = done(path, "--model", "T2", "--reg", "none", "-o", tmp_path / "maps", "--no-png")
    assert "readouts with NaN or infinite samples left out: 1" in result.output
    assert scan.error(load(tmp_path / "maps" / "T2_ms.nii.gz")[:, :, 0], T2) < 0.02
    for item in items:
        item.data[:] = np.nan
    scan.write(path, xml, items)
    assert "every imaging readout holds NaN" in failed(path, "--model", "T2", "-o", tmp_path / "maps")


def test_contrasts_that_are_short_or_silent(tmp_path: Path) -> None:
    """Of the last echo only a half, or nothing but zeros, came."""
    xml = scan.header(4, "cartesian", scan.elements(TE=scan.ECHOES))
    items = scan.lines(scan.t2_images())
    arguments = ("--model", "T2", "--reg", "none", "-o", tmp_path / "maps", "--no-png")
    cut = scan.write(tmp_path / "cut.h5", xml, items[: 3 * 32 + 20])
    assert "contrast 3 of slice 0 (counted from 0) has 62 % of the others' samples" in done(cut, *arguments).output
    cut = scan.write(tmp_path / "cut.h5", xml, items[: 3 * 32 + 10])
    assert "none in the middle of k-space" in failed(cut, *arguments)
    spokes = scan.radial(scan.t2_images(), 24)
    radial = scan.write(
        tmp_path / "radial.h5", scan.header(4, "goldenangle", scan.elements(TE=scan.ECHOES), lines=24), spokes[: 3 * 24 + 12]
    )
    assert "has 50 % of the others' samples" in done(radial, *arguments).output
    images = np.abs(scan.t2_images()).transpose(1, 2, 0)[:, :, None]
    images[..., 1] = 0
    assert "contrast 1 (counted from 0) holds nothing but zeros" in failed(
        nifti(tmp_path, images, np.eye(4)), *arguments, "--te", "10,25,45,70"
    )


def test_magnitudes_say_how_certain_they_are(tmp_path: Path) -> None:
    """T2* of magnitudes, whose B0 nothing tells: deviations are the scatter, and NaN where voxels have none."""
    random = np.random.default_rng(5)
    times = np.array([3.0, 9, 18, 30])
    noise = 0.01 * (random.standard_normal((24, 24, 1, 4)) + 1j * random.standard_normal((24, 24, 1, 4)))
    path = nifti(tmp_path, np.abs(np.exp(-times / 30) + noise), np.diag([2, 2, 3, 1.0]), EchoTime=(times / 1000).tolist())
    result = done(path, "--model", "T2star", "--reg", "none", "-o", tmp_path / "maps", "--no-png")
    assert "do not tell how certain B0 is" in result.output
    values, deviations = load(tmp_path / "maps" / "T2star_ms.nii.gz"), load(tmp_path / "maps" / "T2star_ms_sd.nii.gz")
    assert np.sqrt(np.mean(deviations**2)) == pytest.approx(np.std(values), rel=0.15)
    two = nifti(tmp_path, np.abs(np.exp(-times / 30) + noise)[..., :2], np.eye(4), EchoTime=(times[:2] / 1000).tolist())
    done(two, "--model", "T2", "--reg", "none", "-o", tmp_path / "two", "--no-png")
    assert not list((tmp_path / "two").glob("*_sd*"))  # two echoes leave nothing to tell the noise by


def test_a_model_that_fits_nowhere_is_told(tmp_path: Path) -> None:
    noise = np.abs(np.random.default_rng(6).standard_normal((12, 12, 1, 6)))
    arguments = (nifti(tmp_path, noise, np.eye(4)), "--model", "T2", "--te", "10,20,30,40,50,60", "--reg", "none", "--no-png")
    done(*arguments, "--mask", "none", "-o", tmp_path / "all")
    images = np.abs(scan.t2_images()).transpose(1, 2, 0)[:, :, None]
    other = (nifti(tmp_path, images, np.eye(4)), "--model", "MOLLI", "--ti", "100,180,1000,3000", "--reg", "none", "--no-png")
    assert "the mask is empty" in failed(*other, "-o", tmp_path / "none")


def test_maps_and_masks_must_lie_where_the_data_do(tmp_path: Path) -> None:
    affine = np.array([[0, 3, 0, 7], [-2, 0, 0, 8], [0, 0, 4, 9], [0, 0, 0, 1.0]])
    path = nifti(tmp_path, np.abs(scan.t2_images()).transpose(1, 2, 0)[:, :, None], affine)
    arguments = (path, "--model", "T2", "--te", "10,25,45,70", "--reg", "none", "--no-png", "-o", tmp_path / "maps")
    ones = np.ones((32, 32, 1), np.float32)
    for place, words in ((affine, None), (affine + np.eye(4)[:, 3:] * 0.4, None), (affine * [-1, 1, 1, 1], "run the other way")):
        nibabel.save(nibabel.Nifti1Image(ones, place), tmp_path / "mask.nii.gz")
        if words is None:
            done(*arguments, "--mask", tmp_path / "mask.nii.gz")
        else:
            assert words in failed(*arguments, "--mask", tmp_path / "mask.nii.gz")
    nibabel.save(nibabel.Nifti1Image(ones.repeat(3, 2)[..., None], affine), tmp_path / "mask.nii.gz")
    assert "voxels (32, 32, 3)" in failed(*arguments, "--mask", tmp_path / "mask.nii.gz")
    nibabel.save(nibabel.Nifti1Image(ones[..., None].repeat(2, 3), affine), tmp_path / "mask.nii.gz")
    wrong = fit(*arguments, "--mask", tmp_path / "mask.nii.gz")
    assert wrong.exit_code == 2
    assert "a mask is one" in wrong.output
    colours = np.zeros((4, 4, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(colours, affine), tmp_path / "rgb.nii.gz")
    assert "are no numbers" in failed(tmp_path / "rgb.nii.gz", *arguments[1:])


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("Coils", np.nan, "Coils holds NaN"),
        ("dcf", -1.0, "dcf holds values that are negative"),
        ("fa_corr", np.full((2, scan.N, scan.N), 100.0), "not percent or degrees"),
        ("fa_corr", np.ones((2, 8, 8)), "fa_corr (2, 8, 8) does not fit the data"),
    ],
)
def test_pyqmri_files_with_faults(tmp_path: Path, name: str, value: float | np.ndarray, words: str) -> None:
    path = scan.write_pyqmri(tmp_path / "data.h5", scan.vfa_images(), {"TR": scan.TR, "flip_angle(s)": scan.FLIPS}, views=24)
    with h5py.File(path, "a") as file:
        if name in file:
            file[name][0, 0] = value
        else:
            file[name] = value
    assert words in failed(path, "--model", "VFA", "--reg", "none", "-o", tmp_path / "maps")
    path.write_bytes(path.read_bytes()[:5000])
    assert "damaged or cut short" in failed(path, "--model", "VFA", "-o", tmp_path / "maps")


def test_sidecars_in_milliseconds_are_refused(tmp_path: Path) -> None:
    images = np.abs(scan.t2_images()).transpose(1, 2, 0)[:, :, None]
    path = nifti(tmp_path, images, np.eye(4), EchoTime=scan.ECHOES)
    assert "cannot be seconds" in failed(path, "--model", "T2", "-o", tmp_path / "maps")


def test_data_are_never_written_over(tmp_path: Path, radial_items: list[Acquisition]) -> None:
    path = scan.write(tmp_path / "maps.h5", scan.header(5, "goldenangle", VFA, lines=24), radial_items)
    before = path.read_bytes()
    assert "never written to" in failed(path, "--model", "VFA", "-o", tmp_path)
    assert path.read_bytes() == before


def test_a_train_without_inversion_time(tmp_path: Path) -> None:
    items = scan.radial(scan.t2_images()[:1], 24)
    path = scan.write(tmp_path / "scan.h5", scan.header(1, "goldenangle", scan.elements(TR=5, flipAngle_deg=6), lines=24), items)
    text = failed(path, "--model", "LookLocker", "-o", tmp_path / "maps")
    assert "TI" in text
    assert "-P" in text


def test_wrong_usage(tmp_path: Path, radial: Path) -> None:
    for arguments in ([], [radial], [radial, "--model", "VFA"], [tmp_path / "none.h5", "--model", "VFA", "-o", tmp_path]):
        assert fit(*arguments).exit_code == 2
    for flag in ("--trafo", "--imagespace", "--is3Ddata", "--streamed", "--double_precision", "--useCGguess", "--use_GPU"):
        assert fit(radial, "--model", "VFA", "-o", tmp_path, flag, "perhaps").exit_code == 2, flag


# -- scans of others -------------------------------------------------------------------------------------------------------------------


def test_simulated_spin_echoes_of_the_shared_data(shared: Path, tmp_path: Path) -> None:
    path = shared / "data" / "t2_mese_cartesian.h5"
    done(path, "--model", "ExpDecay", "--reg", "none", "-o", tmp_path, "--no-png")
    with np.load(shared / "data" / "t2_mese_cartesian_truth.npz") as truth:
        inside, t2 = truth["mask_interior"].astype(bool), truth["T2_ms"]
    relative = load(tmp_path / "T2_ms.nii.gz")[inside][:, 0] / t2[inside] - 1
    # A plain fit with the true sensitivities has 2.5 %.
    assert np.median(np.abs(relative)) < 0.028
    assert abs(np.median(relative)) < 0.005


def test_a_third_of_the_spokes_of_the_shared_gradient_echoes(shared: Path, tmp_path: Path) -> None:
    """TGV has at most half the error of single voxels; far fewer iterations than by default."""
    measurement = read_measurement(shared / "data" / "t2star_megre_radial.h5", "dataset")
    kept: list[Acquisition] = []
    counts = dict.fromkeys(range(7), 0)
    for item in measurement.items():
        assert isinstance(item, Acquisition)
        if not item.is_flag_set(Flag.IS_NOISE_MEASUREMENT):
            counts[int(item.header["idx"]["contrast"])] += 1
            if counts[int(item.header["idx"]["contrast"])] > 18:
                continue
        kept.append(item)
    path = scan.write(tmp_path / "third.h5", measurement.header_xml, kept)
    with np.load(shared / "data" / "t2star_megre_radial_truth.npz") as truth:
        inside, t2star = truth["mask_interior"].astype(bool), truth["T2star_ms"]
    settings = ("--set", "max_gn_it=2", "--set", "start_iters=60", "--set", "replicas=0", "--no-png")
    errors = []
    for reg in ("none", "TGV"):
        done(path, "--model", "R2Star", "--reg", reg, "-o", tmp_path / reg, *settings)
        relative = load(tmp_path / reg / "T2star_ms.nii.gz")[inside][:, 0] / t2star[inside] - 1
        errors.append(np.median(np.abs(relative)))
        assert abs(np.median(relative)) < 0.01
    assert errors[1] < 0.5 * errors[0]
