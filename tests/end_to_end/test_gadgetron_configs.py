"""The configs for a real Gadgetron, driven as a Gadgetron drives them: our module started anew, and as a warm worker.

Our own chain stands in for the Gadgetron: it sends config, header and items over the wire and reads the images back.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from defusedxml.ElementTree import parse

import configs
from gadgets.items import Image
from scripts import simulate
from service.local import reconstruct

FOLDER = Path(configs.__file__).parent / "gadgetron"
NAMES = ("cartesian", "radial_cgsense", "radial_realtime", "spiral_cgsense")
DEADLINE = 90.0
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A warm worker."""
    log = tmp_path_factory.mktemp("worker") / "log"
    with log.open("w") as sink:
        command = [sys.executable, "-m", "service.cli", "worker", "--port", "0", "--workers", "1"]
        process = subprocess.Popen(command, stdout=sink, stderr=sink, env=ENVIRONMENT)
    try:
        deadline = time.monotonic() + DEADLINE
        while not (found := re.search(r"listening on \S+ port (\d+)", log.read_text())):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()  # noqa: PT018
            time.sleep(0.02)
        yield int(found[1])
    finally:
        process.terminate()
        process.wait(DEADLINE)


@pytest.fixture(scope="module")
def scans() -> dict[str, simulate.Scan]:
    return {
        "cartesian": simulate.cartesian((40, 32), 4, acceleration=1, repetitions=2, slices=2),
        "radial_cgsense": simulate.radial(32, 4, 21, 2),
        "radial_realtime": simulate.radial(32, 4, 9, 4),
        "spiral_cgsense": simulate.spiral(32, 4, 6, 2),
    }


def images(scan: simulate.Scan, config: bytes) -> list[Image]:
    found = reconstruct(scan.items, config, header=scan.header)
    assert all(isinstance(image, Image) for image in found)
    return found


def without_external(config: bytes) -> bytes:
    """The chain with our gadget in place of the external module."""
    gadget = re.search(rb"<configuration>\s*(<gadget>.*?</gadget>)\s*</configuration>\s*</external>", config, re.DOTALL)
    assert gadget is not None
    return re.sub(rb"<external>.*</external>", gadget[1], config, flags=re.DOTALL)


def assert_same(found: list[Image], expected: list[Image]) -> None:
    assert len(found) == len(expected) > 1
    for one, other in zip(found, expected, strict=True):
        names = set(one.header.dtype.names or ()) - {"attribute_string_len"}  # set by whoever writes them
        assert {name for name in names if not np.array_equal(one.header[name], other.header[name])} == set()
        assert one.meta == other.meta
        assert np.array_equal(one.data, other.data)


@pytest.mark.parametrize("name", NAMES)
def test_a_warm_worker_gives_the_images_of_our_own_chain(name: str, port: int, scans: dict[str, simulate.Scan]) -> None:
    config = (FOLDER / f"{name}_connect.xml").read_bytes()
    assert b'port="18000"' in config
    found = images(scans[name], config.replace(b'port="18000"', f'port="{port}"'.encode()))
    assert_same(found, images(scans[name], without_external(config)))


@pytest.mark.parametrize("name", ["cartesian", "radial_realtime"])
def test_a_module_started_for_the_scan_gives_the_same_images(name: str, scans: dict[str, simulate.Scan]) -> None:
    found = images(scans[name], (FOLDER / f"{name}_execute.xml").read_bytes())
    assert_same(found, images(scans[name], without_external((FOLDER / f"{name}_connect.xml").read_bytes())))


@pytest.mark.parametrize("name", NAMES)
def test_both_forms_ask_for_the_same_reconstruction(name: str) -> None:
    execute, connect = (parse(FOLDER / f"{name}_{form}.xml").getroot() for form in ("execute", "connect"))

    def properties(root: object) -> dict[str, str]:
        return {one.get("name"): one.get("value") for one in root.find(".//external").iter("property")}  # type: ignore[attr-defined]

    def gadgets(root: object) -> list[str]:
        return [one.text for one in root.findall("./stream/gadget/classname")]  # type: ignore[attr-defined]

    assert properties(execute) == properties(connect)
    assert gadgets(execute) == gadgets(connect)
    assert execute.find(".//execute").get("target") == connect.find(".//external/configuration/gadget/classname").text
    assert set(execute.find(".//execute").keys()) == {"name", "target", "type"}
    # A trajectory that keeps its length while the samples shrink makes the stream to an external module lose its place.
    assert name == "cartesian" or "RemoveROOversamplingGadget" not in gadgets(execute)
