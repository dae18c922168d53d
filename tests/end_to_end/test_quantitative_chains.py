"""The packaged chains for maps of tissue parameters, on simulated scans with known truth."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import configs
from gadgets.items import Acquisition, Image, meta_from_xml
from gadgets.layout import Flag
from scripts import map_errors, simulate
from service.client import replay
from service.files import read_images
from service.local import ReconstructionError, reconstruct, replay_local

FOLDER = Path(configs.__file__).parent
DEADLINE = 90.0
Fitted = tuple[simulate.Scan, list[Image]]


def shortened(**properties: object) -> dict[str, object]:
    """Fewer iterations than shipped: enough to see what the fit gains."""
    return {"steps": 1, "inner_iterations": 60} | properties


def without_fit(config: str) -> bytes:
    """The chain without QuantitativeFit."""
    xml = (FOLDER / config).read_text()
    plain = re.sub(r"<gadget>\s*<dll>reconstream</dll><classname>QuantitativeFit</classname>.*?</gadget>", "", xml, flags=re.DOTALL)
    assert plain != xml
    return plain.encode()


def split(images: list[Image]) -> tuple[list[Image], list[Image]]:
    """Ordinary images, and maps by series and number."""
    maps = [image for image in images if "QuantityName" in image.meta]
    maps.sort(key=lambda image: (int(image.header["image_series_index"]), int(image.header["image_index"])))
    return [image for image in images if "QuantityName" not in image.meta], maps


def content(image: Image) -> tuple[object, ...]:
    header = image.header.copy()
    header["attribute_string_len"] = 0
    return header.tobytes(), meta_from_xml(image.attribute_string), image.data.dtype, image.data.tobytes()


def errors(scan: simulate.Scan, maps: list[Image], name: str) -> dict[str, tuple[float, float]]:
    """Median absolute and signed error in percent of the last map of each method."""
    found = {}
    for image in maps:
        if image.meta["QuantityName"] == name:
            place = int(image.header["slice"])
            inside = scan.truth["mask_interior"][place]
            true = scan.truth[f"{name}_ms"][place][inside]
            relative = 100 * (image.data[0, 0][inside] - true) / true
            found[str(image.meta["ImageComment"]).partition(", map, ")[2]] = (float(np.median(abs(relative))), float(np.median(relative)))
    return found


@pytest.fixture(scope="module")
def flip_angles() -> Fitted:
    scan = simulate.relaxation("t1_vfa", 48, 4, 21)
    images = reconstruct(scan.items, "t1_vfa_radial", header=scan.header, **shortened(steps=2))
    return scan, images


def test_flip_angles_become_t1(flip_angles: Fitted) -> None:
    scan, images = flip_angles
    ordinary, maps = split(images)
    assert [int(image.header["contrast"]) for image in ordinary] == list(range(6))
    assert [str(image.meta["QuantityName"]) for image in maps] == ["M0", "M0_sd", "T1", "T1_sd"] + [
        name for name in ("M0", "M0_sd", "T1", "T1_sd") for _ in range(2)
    ]
    found = errors(scan, maps, "T1")
    assert set(found) == {"pixel-wise, 4 of 6 contrasts", "pixel-wise", "TGV"}
    assert found["pixel-wise"][0] < 9
    assert found["pixel-wise"][0] < found["pixel-wise, 4 of 6 contrasts"][0] < 20
    assert found["TGV"][0] < 0.6 * found["pixel-wise"][0]
    assert abs(found["TGV"][1]) < 1


def test_ordinary_images_are_those_of_the_chain_without_maps(flip_angles: Fitted) -> None:
    scan, images = flip_angles
    plain = reconstruct(scan.items, without_fit("t1_vfa_radial.xml"), header=scan.header)
    assert [content(image) for image in split(images)[0]] == [content(image) for image in plain]


def test_a_look_locker_train_becomes_t1() -> None:
    scan = simulate.relaxation("t1_ll", 48, 4, 200)
    images = reconstruct(scan.items, "t1_look_locker_radial", header=scan.header, **shortened(inner_iterations=30, readouts_per_frame=25))
    ordinary, maps = split(images)
    assert len(ordinary) == 3  # of 60 spokes
    found = errors(scan, maps, "T1")
    assert found["TGV"][0] < min(1.8, found["pixel-wise"][0])
    assert abs(found["TGV"][1]) < 1


def test_gradient_echoes_of_slices_and_repetitions_become_t2star_and_b0() -> None:
    scan = simulate.relaxation("t2star", 64, 4, slices=2, repetitions=2)
    images = reconstruct(scan.items, "t2star_multi_echo", header=scan.header, regularization="none")
    ordinary, maps = split(images)
    assert len(ordinary) == 6 * 4
    t2star = [image for image in maps if image.meta["QuantityName"] == "T2star"]
    assert [(int(one.header["repetition"]), int(one.header["slice"])) for one in t2star] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for image in t2star:
        assert image.header["position"].tolist() == [0, 0, 5.0 * int(image.header["slice"])]
        found = errors(scan, [image], "T2star")["pixel-wise"]
        assert found[0] < 6
        assert abs(found[1]) < 1.5
        _check_deviation(scan, image, next(one for one in maps if map_errors.belongs(one, image)))
    inside = scan.truth["mask_interior"][1]
    field = next(image.data[0, 0] for image in maps if image.meta["QuantityName"] == "B0" and image.header["slice"] == 1)
    assert np.median(np.abs(field - scan.truth["B0_hz"][1])[inside]) < 0.5
    assert field.min() < -10


def _check_deviation(scan: simulate.Scan, image: Image, deviation: Image) -> None:
    """The errors are as large as their standard deviations say."""
    place = int(image.header["slice"])
    inside = scan.truth["mask_interior"][place]
    normal = ((image.data[0, 0] - scan.truth["T2star_ms"][place])[inside]) / deviation.data[0, 0][inside]
    assert 1.4826 * np.median(np.abs(normal)) == pytest.approx(1, abs=0.2)


def test_a_scan_that_ends_early_gives_its_images_and_says_what_is_missing(tmp_path: Path) -> None:
    scan = simulate.relaxation("t1_vfa", 32, 4, 12)
    imaging = [item for item in scan.items if isinstance(item, Acquisition)]
    path = tmp_path / "scan.h5"
    simulate.Scan(scan.header, list(imaging[: -12 - 3]), {}).save(path)
    parameters = {"minimum_contrasts": "0", "regularization@QuantitativeFit": "none", "maps": "T1", "deviations": "false"}
    report = replay_local(path, "t1_vfa_radial", output=tmp_path / "images.h5", parameters=parameters)
    assert report.images == 5 + 1
    (told,) = report.errors
    assert "QuantitativeFit" in told
    assert "contrast 5 never came and contrast 4 ended after 9 of 12 readouts" in told
    assert "values of flip_angle 6" in told
    assert "maps are made from contrast 0, 1, 2, 3 only" in told
    (made,) = split(_stored(tmp_path / "images.h5"))[1]
    assert errors(scan, [made], "T1")["pixel-wise, 4 of 6 contrasts"][0] < 25


def test_a_silent_receiver_is_told() -> None:
    scan = simulate.relaxation("t2", 24, 2)
    for item in scan.items:
        if isinstance(item, Acquisition) and not item.is_flag_set(Flag.IS_NOISE_MEASUREMENT):
            item.data[:] = 0
    with pytest.raises(ReconstructionError, match=r"QuantitativeFit.*slice 0: there is no signal anywhere, the mask is empty"):
        reconstruct(scan.items, "t2_multi_echo", header=scan.header)


def test_a_header_without_what_the_model_needs_costs_no_image(tmp_path: Path) -> None:
    scan = simulate.relaxation("t2", 32, 2)
    header = re.sub(rb"<TE>.*?</TE>", b"", scan.header)
    with pytest.raises(ReconstructionError, match=r"ExpDecay needs TE.*sequenceParameters/TE"):
        reconstruct(scan.items, "t2_multi_echo", header=header)
    path = tmp_path / "scan.h5"
    simulate.Scan(header, scan.items, {}).save(path)
    assert replay_local(path, "t2_multi_echo").images == 8
    found = split(reconstruct(scan.items, "t2_multi_echo", header=header, regularization="none", sequence=_echoes()))[1]
    assert errors(scan, found, "T2")["pixel-wise"][0] < 4


def _echoes() -> str:
    return "TE=" + ",".join(str(10 * n) for n in range(1, 9))


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """Of a server."""
    log = tmp_path / "server.log"
    with log.open("w") as sink:
        command = [sys.executable, "-m", "service.cli", "serve", "--port", "0", "--workers", "1"]
        process = subprocess.Popen(command, stdout=sink, stderr=sink)
    try:
        yield int(_wait(lambda: re.search(r"listening on \S+ port (\d+)", log.read_text()), process)[1])
    finally:
        process.terminate()
        process.wait(DEADLINE)


def _wait(find: Callable[[], re.Match[str] | None], process: subprocess.Popen[bytes]) -> re.Match[str]:
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline and process.poll() is None:
        if found := find():
            return found
        time.sleep(0.02)
    raise AssertionError("the server did not start")


def test_the_same_maps_from_the_server_as_in_this_process(port: int, tmp_path: Path) -> None:
    scan = simulate.relaxation("t2", 48, 4)
    path = tmp_path / "scan.h5"
    scan.save(path)
    parameters = {"steps": "2", "inner_iterations": "60"}
    report = replay(path, "t2_multi_echo.xml", port=port, output=tmp_path / "server.h5", parameters=parameters)
    assert not report.errors
    replay_local(path, "t2_multi_echo.xml", output=tmp_path / "local.h5", parameters=parameters)
    images = [_stored(tmp_path / name) for name in ("server.h5", "local.h5")]
    assert len(images[0]) == 8 + 4 + 4
    assert [content(image) for image in images[0]] == [content(image) for image in images[1]]
    found = errors(scan, split(images[0])[1], "T2")
    assert found["pixel-wise"][0] < 3.5
    assert found["TGV"][0] < 0.8 * found["pixel-wise"][0]
    assert abs(found["TGV"][1]) < 1


def _stored(path: Path) -> list[Image]:
    return [
        Image(header.copy(), pixels, bytes(attributes))
        for _, series in sorted(read_images(path).items())
        for header, attributes, pixels in zip(*series, strict=True)
    ]


@pytest.mark.parametrize(
    ("name", "properties", "limit"),
    [
        ("t1_vfa_radial", {"inner_iterations": 30, "minimum_contrasts": 0}, 2.5),
        ("t1_irll_radial", {"inner_iterations": 30, "readouts_per_frame": 60}, 1.2),
        ("t2_mese_cartesian", {"steps": 3, "inner_iterations": 100}, 1.5),
        ("t2star_megre_radial", {"inner_iterations": 30, "minimum_contrasts": 0}, 3.5),
    ],
)
def test_bloch_simulations_become_maps(shared: Path, name: str, properties: dict[str, object], limit: float) -> None:
    """Far fewer iterations than shipped (scripts/map_errors.py has the figures of the shipped chains)."""
    found = map_errors.errors(shared / "data", name, **shortened(**properties))
    assert found["TGV"]["median_absolute_error_percent"] < limit
    assert abs(found["TGV"]["bias_percent"]) < 1
    assert found["TGV"]["median_absolute_error_percent"] < found["pixel-wise"]["median_absolute_error_percent"]


def test_a_phantom_in_a_scanner_has_plausible_t2star(shared: Path) -> None:
    images = reconstruct(shared / "data" / "gre_3echo_phantom.h5", "t2star_multi_echo", regularization="none", maps="T2star,B0")
    ordinary, maps = split(images)
    assert len(ordinary) == 3
    t2star = next(image.data[0, 0] for image in maps if image.meta["QuantityName"] == "T2star")
    inside = (slice(96, 128), slice(96, 160))  # water between the structures
    assert 50 < np.median(t2star[inside][t2star[inside] > 0]) < 400
    assert (t2star > 0).mean() == pytest.approx(0.4, abs=0.12)
    assert not t2star[:24].any(axis=1).all()
