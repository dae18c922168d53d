"""The command line: help, usage, one line for every error, exit status."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from scripts import simulate
from service.cli import app
from service.files import read_images

COMMANDS = ("serve", "worker", "replay", "stream", "check", "list", "health", "fit")


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """Commands send the log to the stderr of the moment, which is gone after a test."""
    root, ours = logging.getLogger(), logging.getLogger("reconstream")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "scan.h5"
    simulate.cartesian((24, 16), 2, acceleration=1, repetitions=2).save(path)
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    result = invoke(command, "--help")
    assert result.exit_code == 0
    assert len(result.output) > 200


def test_help_imports_nothing_heavy() -> None:
    """`serve` must listen within a second of its start, and help must be instant."""
    program = "import sys, service.cli; print([m for m in ('numpy', 'tensorflow', 'h5py', 'ismrmrd', 'scipy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip() == "[]"


@pytest.mark.parametrize(
    "arguments",
    [
        ("replay",),
        ("replay", "no_such_file.h5", "-c", "default"),
        ("replay", __file__, "-c", "default", "--port", "99999"),
        ("replay", __file__, "-c", "default", "--parameter", "iterations"),
        ("stream", "--colour", "red"),
        ("check",),
        ("no_such_command",),
    ],
)
def test_wrong_usage_is_status_2(arguments: tuple[str, ...]) -> None:
    assert invoke(*arguments).exit_code == 2


def one_line(result: Result) -> str:
    """The error of a failed command: its last line, with no traceback before it."""
    assert result.exit_code == 1, result.output
    assert "Traceback" not in result.output
    line = result.output.strip().splitlines()[-1]
    assert line.startswith("error: ")
    return line


def test_errors_are_one_line(scan: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.h5"
    text.write_text("this is no HDF5 file")
    assert "default_short.xml" in one_line(invoke("check", "default_shrot"))
    assert "default_short.xml" in one_line(invoke("replay", scan, "--local", "-c", "default_shrot"))
    assert "name one with -c" in one_line(invoke("replay", scan, "--local"))
    assert "neither an HDF5 file nor" in one_line(invoke("replay", text, "--local", "-c", "default"))
    assert "dataset" in one_line(invoke("replay", scan, "--local", "-c", "default", "-g", "elsewhere"))
    assert "No such file" in one_line(invoke("stream", "-c", "default", "-i", tmp_path / "none"))
    assert "nothing listens on localhost:1 " in one_line(invoke("health", "--port", "1"))
    assert "nothing listens on localhost:1 " in one_line(invoke("health", "--port", "1", "--connect-only"))
    assert "nothing listens on localhost:1 " in one_line(invoke("replay", scan, "-c", "default", "-p", "1", "--wait", "0"))


def test_debug_shows_where(scan: Path) -> None:
    result = invoke("--debug", "check", "default_shrot")
    assert result.exit_code == 1
    assert "Traceback" in result.output
    assert invoke("check", "default_shrot").output.count("Traceback") == 0


# -- check and list ----------------------------------------------------------------------------------------------------


def test_check_prints_the_chain() -> None:
    result = invoke("check", "default_short", "--parameter", "max_value@AutoScale=4095")
    assert result.exit_code == 0
    order = [result.output.index(name) for name in ("AccTrig", "SimpleRecon", "AutoScale")]
    assert order == sorted(order)
    assert "4095" in result.output


def test_check_names_line_gadget_and_remedy(tmp_path: Path) -> None:
    config = tmp_path / "bad.xml"
    config.write_text(
        "<configuration><version>2</version>\n<stream>\n"
        "<gadget><dll>reconstream</dll><classname>AutoScal</classname></gadget>\n"
        '<gadget><dll>reconstream</dll><classname>AutoScale</classname><property name="max_valeu" value="1"/></gadget>\n'
        "</stream></configuration>"
    )
    result = invoke("check", config)
    assert result.exit_code == 1
    assert "Traceback" not in result.output
    for part in ("bad.xml:3", "AutoScal'", "'AutoScale'", "bad.xml:4", "max_valeu", "'max_value'"):
        assert part in result.output, part


def test_list_has_every_gadget_with_its_parameters_and_every_config() -> None:
    from gadgets.stock import gadgets

    listed = json.loads(invoke("list", "--json").output)
    assert [gadget["name"] for gadget in listed["gadgets"]] == sorted(gadgets())
    by_name = {gadget["name"]: gadget for gadget in listed["gadgets"]}
    assert "gadgetron_mricore/AutoScaleGadget" in by_name["AutoScale"]["stock"]
    (parameter,) = [p for p in by_name["AutoScale"]["parameters"] if p["name"] == "max_value"]
    assert (parameter["type"], parameter["default"], parameter["required"]) == ("float", 2048.0, False)
    assert parameter["help"]
    configs = {config["name"]: config for config in listed["configs"]}
    assert {"default.xml", "cartesian.xml", "cartesian_grappa.xml"} <= set(configs)
    assert all(config["help"] for config in configs.values()), "every config says what it is for"


def test_list_finds_by_our_name_and_by_gadgetrons() -> None:
    result = invoke("list", "floattoushort")
    assert result.exit_code == 0
    assert "FloatToUShort" in result.output
    assert "AutoScale" not in result.output
    assert "NoiseAdjust" in invoke("list", "noiseadjustgadget").output
    assert "called 'zebra'" in one_line(invoke("list", "zebra"))


# -- replay --local ----------------------------------------------------------------------------------------------------


def test_replay_local_writes_images_pictures_and_a_report(scan: Path, tmp_path: Path) -> None:
    out, png, report = tmp_path / "out.h5", tmp_path / "png", tmp_path / "report.json"
    result = invoke(
        "replay", scan, "-c", "default_short", "--local", "-o", out, "-G", "mine", "--png", png, "--gif", "--report", report, "--expect", 2
    )
    assert result.exit_code == 0, result.output
    assert "2 images" in result.output
    ((headers, _, data),) = read_images(out, "mine").values()
    assert data.shape == (2, 1, 1, 16, 24)
    assert list(headers["repetition"]) == [0, 1]
    assert [path.suffix for path in sorted(png.glob("series_*"))].count(".png") == 3  # two images and their mosaic
    assert len(list(png.glob("*.gif"))) == 1
    content = json.loads(report.read_text())
    assert content["ok"] is True
    (one,) = content["scans"]
    assert (one["images"], one["readouts"], one["door"]) == (2, 2 * 16 + simulate.NOISE_READOUTS, "local")
    assert one["latency_ms"]["images"] == 2
    assert one["latency_ms"]["median"] > 0


def test_several_files_go_into_groups_of_their_names(scan: Path, tmp_path: Path) -> None:
    second = tmp_path / "second.h5"
    simulate.cartesian((24, 16), 2, acceleration=1, seed=2).save(second)
    out = tmp_path / "out.h5"
    result = invoke("replay", scan, second, "-c", "default_short", "--local", "-o", out, "-q")
    assert result.exit_code == 0, result.output
    assert result.output == ""
    assert len(next(iter(read_images(out, "scan").values()))[2]) == 2
    assert len(next(iter(read_images(out, "second").values()))[2]) == 1


def test_missing_images_are_status_1(scan: Path) -> None:
    result = invoke("replay", scan, "-c", "default_short", "--local", "--expect", 3)
    assert result.exit_code == 1
    assert "2 images came, 3 were expected" in result.output


def test_parameters_reach_the_chain(scan: Path, tmp_path: Path) -> None:
    brightest = []
    for value in ("1000", "2000"):
        out = tmp_path / f"{value}.h5"
        assert invoke("replay", scan, "-c", "default_short", "--local", "-o", out, "-P", f"max_value@AutoScale={value}").exit_code == 0
        ((_, _, data),) = read_images(out).values()
        brightest.append(float(np.percentile(data, 99)))
    assert brightest[1] == pytest.approx(2 * brightest[0], rel=0.02)
    result = invoke("replay", scan, "-c", "default_short", "--local", "-P", "max_valeu@AutoScale=1")
    assert result.exit_code == 1
    assert "max_valeu" in result.output
    assert "Traceback" not in result.output


def test_a_port_in_use_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-m", "service.cli", "serve", "--host", "127.0.0.1", "--port", port],
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert port in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
