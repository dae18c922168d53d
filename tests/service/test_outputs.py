"""Places to write to are tried before a scan is sent, and raw data are never written to."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from scripts import simulate
from service.cli import app
from service.client import replay
from service.files import FileError, read_measurement
from service.folders import OutputError, own_folder
from service.outputs import check_outputs
from service.report import write_reports
from service.server import _why
from service.settings import Settings, SettingsError
from service.wire import Close, HeaderXml, encode
from tests.service.peer import ROOT

CONFIG = "default_short"


@pytest.fixture(scope="module")
def scan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("outputs") / "scan.h5"
    simulate.cartesian((24, 16), 2, acceleration=1).save(path)
    return path


@pytest.fixture
def blocked(tmp_path: Path) -> Path:
    """A file where a folder would have to be: nothing can be written below it, whoever runs the test."""
    path = tmp_path / "file"
    path.write_text("not a folder")
    return path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def refused(*arguments: str | Path) -> str:
    """The one line of a command that fails."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 1, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    (line,) = result.output.strip().splitlines()
    assert line.startswith("error: ")
    return line


# -- where images go -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["-o", "--png", "--report"])
def test_an_output_that_cannot_be_written_is_found_before_anything_is_sent(scan: Path, blocked: Path, option: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        port = str(listener.getsockname()[1])
        line = refused("replay", scan, "-c", CONFIG, "-a", "127.0.0.1", "-p", port, option, blocked / "sub" / "out.h5")
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert str(blocked / "sub" / "out.h5") in line
    assert option in line


def test_a_file_that_is_no_hdf5_file_is_kept(scan: Path, blocked: Path, tmp_path: Path) -> None:
    assert "choose another HDF5 file" in refused("replay", scan, "-c", CONFIG, "--local", "-o", blocked)
    assert "choose another HDF5 file" in refused("stream", "-c", CONFIG, "-i", scan, "-o", _renamed(blocked))
    assert "it is a folder" in refused("replay", scan, "-c", CONFIG, "--local", "-o", tmp_path)


def _renamed(path: Path) -> Path:
    return path.rename(path.with_suffix(".h5"))


def test_the_raw_data_are_never_written_to(scan: Path, tmp_path: Path) -> None:
    raw, link = tmp_path / "scan.h5", tmp_path / "link.h5"
    raw.write_bytes(scan.read_bytes())
    link.symlink_to(raw)
    measurement = read_measurement(scan)
    stream = tmp_path / "scan.mrd"
    messages = (HeaderXml(measurement.header_xml), *measurement.items(), Close())
    stream.write_bytes(b"".join(bytes(buffer) for message in messages for buffer in encode(message)))
    before = digest(raw), digest(stream)
    for output in (raw, link):
        assert "raw data" in refused("replay", raw, "-c", CONFIG, "--local", "-o", output)
        assert "raw data" in refused("stream", "-c", CONFIG, "-i", raw, "-o", output)
    assert "raw data" in refused("stream", "-c", CONFIG, "-i", stream, "-o", stream)
    with pytest.raises(OutputError, match="raw data"):
        replay(raw, CONFIG, "127.0.0.1", 1, output=link)
    assert (digest(raw), digest(stream)) == before


def test_missing_folders_are_made_and_trying_leaves_nothing(scan: Path, tmp_path: Path) -> None:
    output, report = tmp_path / "a" / "b.h5", tmp_path / "c" / "d.json"
    check_outputs(scan, output, tmp_path / "e" / "f", report)
    assert not list(tmp_path.iterdir())
    result = CliRunner().invoke(app, ["replay", str(scan), "-c", CONFIG, "--local", "-o", str(output), "--report", str(report)])
    assert result.exit_code == 0, result.output
    assert output.is_file()
    assert report.is_file()


def test_a_disk_that_fills_up_is_named(tmp_path: Path) -> None:
    (tmp_path / "full.json").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"cannot be written: No space left on device.*full\.json"):
        write_reports([], tmp_path / "full.json")


# -- what is read --------------------------------------------------------------------------------------------------------


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3000])


def _no_header(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["dataset/xml"]
        file.create_dataset("dataset/xml", (0,), dtype=h5py.string_dtype())


def _other_rows(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["dataset/data"]
        file["dataset/data"] = np.zeros(4)


def _a_group(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["dataset/data"]
        file.create_group("dataset/data").create_dataset("head", data=1)


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (_cut, "cut short.*copy it again"),
        (_no_header, "no header"),
        (_other_rows, "no ISMRMRD data set"),
        (_a_group, "no ISMRMRD data set"),
    ],
)
def test_a_damaged_file_is_named_with_the_reason_before_anything_is_sent(scan: Path, tmp_path: Path, harm, reason: str) -> None:
    path = tmp_path / "scan.h5"
    path.write_bytes(scan.read_bytes())
    harm(path)
    with pytest.raises(FileError, match=rf"scan\.h5: .*{reason}"):
        read_measurement(path)


def test_a_file_that_turns_out_damaged_while_it_is_read(scan: Path, tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    content = bytearray(scan.read_bytes())
    start = content.rindex(b"TREE")  # the index of the readouts' blocks
    content[start : start + 4] = b"EERT"
    path.write_bytes(content)
    with pytest.raises(FileError, match=r"scan\.h5: cannot be read"):
        list(read_measurement(path).items())


def test_a_header_stored_as_a_single_string_is_a_header(scan: Path, tmp_path: Path) -> None:
    path = tmp_path / "scan.h5"
    path.write_bytes(scan.read_bytes())
    with h5py.File(path, "a") as file:
        xml = bytes(file["dataset/xml"][0])
        del file["dataset/xml"]
        file["dataset/xml"] = xml
    assert read_measurement(path).header_xml == read_measurement(scan).header_xml


@pytest.mark.parametrize("command", ["check", "replay", "local", "stream"])
def test_a_path_to_no_config_is_not_taken_for_a_name(scan: Path, tmp_path: Path, command: str) -> None:
    missing = tmp_path / "missing.xml"
    line = {
        "check": lambda: refused("check", missing),
        "replay": lambda: refused("replay", scan, "-c", missing, "-p", "1", "--wait", "0"),
        "local": lambda: refused("replay", scan, "-c", missing, "--local"),
        "stream": lambda: refused("stream", "-i", scan, "-c", missing, "-o", tmp_path / "out.h5"),
    }[command]()
    assert f"{missing}: there is no such file" in line


# -- streams of the shell ------------------------------------------------------------------------------------------------


def shell(command: str, folder: Path) -> tuple[int, str]:
    """Exit status and stderr of ``stream`` in a shell line, where RECONSTREAM stands for the command."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    line = command.replace("RECONSTREAM", f"{sys.executable} -m service.cli")
    done = subprocess.run(["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("RECONSTREAM stream -c default_short <&-", "stdin is closed"),
        ("RECONSTREAM stream -c default_short -i scan.h5 >&-", "stdout is closed"),
        ("RECONSTREAM stream -c default_short -i scan.h5 -o /dev/full", "/dev/full: the output cannot be written: No space left on device"),
        ("RECONSTREAM stream -c default_short -i scan.h5 | head -c 0; exit ${PIPESTATUS[0]}", "stdout: the output cannot be written"),
        ("head -c 5 scan.h5 | RECONSTREAM stream -c default_short >/dev/null", "HDF5 (a file for replay)"),
    ],
)
def test_streams_that_are_closed_full_or_cut(scan: Path, command: str, reason: str) -> None:
    status, line = shell(command, scan.parent)
    assert status == 1
    assert line.startswith("error: ")
    assert reason in line


# -- the service's own folders and settings --------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["spool", "storage"])
def test_a_folder_that_cannot_be_used_stops_the_server_at_its_start(setting: str, blocked: Path) -> None:
    for folder in (blocked, blocked / "sub"):
        line = refused("serve", "-p", "0", f"--{setting}", folder)
        assert str(folder) in line
        assert setting in line


def test_a_folder_of_our_own_is_for_its_owner_only(tmp_path: Path) -> None:
    own_folder(tmp_path / "a" / "b", "spool")
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700
    assert not list((tmp_path / "a" / "b").iterdir())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"workers: [1\n", r"own\.yaml:\d: not YAML"),
        (b"\xff\x00\xfe\xb0", r"own\.yaml: not YAML"),
        (b"wrokers: 1\n", r"own\.yaml: no setting 'wrokers'"),
        (b"just words\n", r"own\.yaml: expected lines"),
    ],
)
def test_a_settings_file_that_is_wrong_is_named_in_one_line(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=reason) as found:
        Settings.load(path)
    assert "\n" not in str(found.value)


def test_an_unknown_environment_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECONSTREAM_WROKERS", "1")
    with pytest.raises(SettingsError, match="environment variable RECONSTREAM_WROKERS"):
        Settings.load()


@pytest.mark.parametrize(
    ("number", "remedy"), [(errno.EADDRINUSE, "another server"), (errno.EACCES, "below 1024"), (errno.EADDRNOTAVAIL, "--host")]
)
def test_each_refusal_to_listen_has_its_own_remedy(number: int, remedy: str) -> None:
    assert remedy in _why(OSError(number, os.strerror(number)), 80)
