"""`reconstream replay`, as an operator types it, meets every fault: it ends, says why, exits non-zero, and the server serves on."""

from __future__ import annotations

import os
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from gadgets.items import Acquisition
from service.files import read_images, read_measurement, write_measurement
from service.transport import Connection
from service.wire import Close, Config, HeaderXml, Message, encode
from tests.service.peer import HEADER, IMAGES, ROOT, config, readouts, wait_for
from tests.service.serving import Server, alive
from tests.service.test_client import FakeServer
from tests.service.test_faults import MODULES, SLEEPER, external
from tests.service.test_session import ORDERS

LIMIT = 40.0
"""Seconds after which a replay that has not ended hangs."""


@dataclass
class Replay:
    """A running ``reconstream replay``."""

    process: subprocess.Popen[str]

    @classmethod
    def start(cls, port: int | None, file: Path, *arguments: object) -> Replay:
        """To a server's port; None: in the replaying process itself."""
        door = ["--local"] if port is None else ["-a", "127.0.0.1", "-p", str(port), "--wait", "0"]
        command = [sys.executable, "-m", "service.cli", "replay", str(file), *door, *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "1000"}
        return cls(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))

    def end(self) -> tuple[int, str, str]:
        """Exit status, stdout, stderr."""
        try:
            out, err = self.process.communicate(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            pytest.fail(f"the replay hangs; it said: {self.process.communicate()}")
        assert not re.search("^Traceback", err, re.MULTILINE), err  # those of external modules are indented
        return self.process.returncode, out, err

    def fails(self, *reasons: str) -> str:
        """Status 1 with these words on stderr."""
        status, out, err = self.end()
        assert status == 1, (status, out, err)
        for reason in reasons:
            assert reason in err, err
        return err

    def works(self, images: int) -> str:
        """Status 0 with so many images; returns stderr."""
        status, out, err = self.end()
        assert status == 0, (out, err)
        assert f", {images} images" in out
        return err


@pytest.fixture(scope="module")
def spool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spool")


@pytest.fixture(scope="module")
def running(spool: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    modules = tmp_path_factory.mktemp("modules")
    (modules / "faulty.py").write_text(MODULES)
    (modules / "sitecustomize.py").write_text(SLEEPER)
    with Server(workers=2, spool=spool, send_seconds=1, input_mib=1, output_mib=1, path=modules) as one:
        yield one.warm(2)


@pytest.fixture
def server(running: Server) -> Iterator[Server]:
    """The shared server; after each test it must still serve, in the same process."""
    yield running
    assert running.process.poll() is None, running.log
    running.serves()


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    return save(tmp_path / "scan.h5", readouts(6))


def save(path: Path, items: list[Acquisition], header: bytes = HEADER.xml) -> Path:
    write_measurement(path, header, items)
    return path


def chain(folder: Path, what: Config, name: str = "chain.xml") -> Path:
    path = folder / name
    path.write_bytes(what.xml)
    return path


def stream_of(path: Path, *parts: Message | bytes) -> Path:
    """A recorded stream of messages and of bytes that are none."""
    with path.open("wb") as file:
        for part in parts:
            file.writelines([part] if isinstance(part, bytes) else encode(part))
    return path


class HeldReplay:
    """A replay whose chain waits at its first readout until `release`."""

    def __init__(self, server: Server, file: Path, name: str, *gadgets: str) -> None:
        self.gate = file.with_name(name)
        self.file = file
        what = config(f"Hold file={self.gate}", *(gadgets or ("ToImage",)))
        self.replay = Replay.start(server.port, file, "-c", chain(file.parent, what, f"{name}.xml"))
        reached = self.gate.with_name(name + ".reached")
        wait_for(lambda: reached.exists() and reached.read_text(), f"a worker to take the replay; the log: {server.log}")
        self.worker = int(reached.read_text())

    def release(self) -> None:
        self.gate.touch()


# -- a good scan, and what is no fault -----------------------------------------------------------------------------------


def test_a_good_scan(server: Server, scan: Path, tmp_path: Path) -> None:
    assert Replay.start(server.port, scan, "-c", chain(tmp_path, IMAGES)).works(6) == ""


VARIANTS = {
    "trailing NUL": lambda xml: xml + b"\0\0",
    "no acquisitionSystemInformation": lambda xml: xml,
    "foreign version": lambda xml: xml.replace(b"<measurementInformation>", b"<version>99</version><measurementInformation>"),
    "an element of a vendor": lambda xml: xml.replace(b"<measurementInformation>", b"<vendor a='1'/><measurementInformation>"),
}


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_headers_that_others_refuse(server: Server, tmp_path: Path, variant: str) -> None:
    header = VARIANTS[variant](HEADER.xml)
    assert b"acquisitionSystemInformation" not in header
    path = stream_of(tmp_path / "scan.mrd", HeaderXml(header), *readouts(2), Close())
    Replay.start(server.port, path, "-c", chain(tmp_path, IMAGES)).works(2)


def test_nan_and_inf_are_told(server: Server, tmp_path: Path) -> None:
    data = readouts(3)
    data[1].data[:] = np.nan
    data[2].data[0, 0] = np.inf
    err = Replay.start(server.port, save(tmp_path / "scan.h5", data), "-c", chain(tmp_path, IMAGES)).works(3)
    assert "WARNING: readout 2 has 16 NaN or Inf samples; they are replaced by zero" in err


# -- configs and headers -------------------------------------------------------------------------------------------------

CONFIGS = {case: (found[0][0], found[1]) for case, found in ORDERS.items() if isinstance(found[0][0], Config) and found[0][0] is not IMAGES}


@pytest.mark.parametrize("case", [case for case in CONFIGS if "second" not in case])
def test_a_config_of_ones_own_that_is_wrong(server: Server, scan: Path, tmp_path: Path, case: str) -> None:
    what, reason = CONFIGS[case]
    Replay.start(server.port, scan, "-c", chain(tmp_path, what)).fails("[config] ERROR: ", reason)


def test_the_faults_of_the_issue_are_among_them() -> None:
    assert {"unknown gadget", "unknown property", "unknown element", "empty config", "config that is no XML"} <= set(CONFIGS)


@pytest.mark.parametrize(
    ("name", "reason"), [("defualt", "default.xml"), ("../../etc/passwd.xml", "there is no such file"), ("a/../b", "without '..'")]
)
def test_a_config_that_is_not_there(server: Server, scan: Path, name: str, reason: str) -> None:
    Replay.start(server.port, scan, "-c", name).fails(reason)


def test_no_config_at_all(server: Server, scan: Path) -> None:
    Replay.start(server.port, scan).fails("name one with -c")


@pytest.mark.parametrize(("header", "reason"), [(b"junk", "[header] ERROR: "), (b"<html/>", "ismrmrdHeader"), (b"<a", "[header] ERROR: ")])
def test_a_header_that_is_wrong(server: Server, tmp_path: Path, header: bytes, reason: str) -> None:
    Replay.start(server.port, save(tmp_path / "scan.h5", readouts(3), header), "-c", chain(tmp_path, IMAGES)).fails(reason)


def test_a_parameter_that_is_wrong(server: Server, scan: Path, tmp_path: Path) -> None:
    Replay.start(server.port, scan, "-c", chain(tmp_path, IMAGES), "-P", "repeat=many").fails("repeat", "many")


# -- the chain -----------------------------------------------------------------------------------------------------------


def test_a_singular_noise_covariance(server: Server, tmp_path: Path) -> None:
    noise = Acquisition(None, np.repeat(np.random.default_rng(0).standard_normal((1, 64)).astype(np.complex64), 2, 0))
    noise.set_flag(19)
    path = save(tmp_path / "scan.h5", [noise, *readouts(2)])
    Replay.start(server.port, path, "-c", "default_optimized").fails("ERROR: ", "covariance")


@pytest.mark.parametrize("door", ["server", "local"])
def test_a_gadget_that_raises_after_some_images(server: Server, scan: Path, tmp_path: Path, door: str) -> None:
    out = tmp_path / "out.h5"
    what = chain(tmp_path, config("Fail at=4", "ToImage"))
    failed = Replay.start(server.port if door == "server" else None, scan, "-c", what, "-o", out, "-G", "run")
    failed.fails("[Fail] ERROR: ArithmeticError: the matrix is singular")
    ((_, _, data),) = read_images(out, "run").values()
    assert len(data) == 4  # what had come before is kept


def test_images_that_are_missing(server: Server, scan: Path, tmp_path: Path) -> None:
    Replay.start(server.port, scan, "-c", chain(tmp_path, config("ToImage")), "--expect", 7).fails("6 images came, 7 were expected")
    Replay.start(server.port, scan, "-c", chain(tmp_path, config())).fails("no image came")


def test_a_chain_that_crashes_its_process(server: Server, scan: Path, tmp_path: Path) -> None:
    Replay.start(server.port, scan, "-c", chain(tmp_path, config("Crash at=3", "ToImage"))).fails("SIGKILL", "the raw data are kept as")


NOBODY = Config(
    b'<configuration><version>2</version><stream><external><connect address="127.0.0.1" port="1"/>'
    b'<property name="attempts" value="2"/><property name="interval" value="0.1"/><configuration/></external></stream></configuration>'
)
EXTERNALS = {
    "exits": (external("exits"), ("faulty.exits", "7", "no licence found")),
    "raises": (external("raises"), ("faulty.raises", "calibration file is missing")),
    "hangs": (external("hangs", silence_timeout=0.5, exit_timeout=0.2), ("faulty.hangs", "silence_timeout")),
    "is not there": (external("x", "no_such_module"), ("no_such_module",)),
    "never listens": (NOBODY, ("127.0.0.1:1", "start the module there")),
    "never connects": (external("x", "sleeper", start_timeout=0.5), ("sleeper", "did not connect", "start_timeout")),
}


@pytest.mark.parametrize("case", list(EXTERNALS))
def test_an_external_that_fails(server: Server, scan: Path, tmp_path: Path, case: str) -> None:
    what, reasons = EXTERNALS[case]
    Replay.start(server.port, scan, "-c", chain(tmp_path, what)).fails(*reasons)


def test_a_server_that_may_not_start_programs(scan: Path, tmp_path: Path) -> None:
    with Server(allow_external="false") as strict:
        Replay.start(strict.port, scan, "-c", chain(tmp_path, external("exits"))).fails("--allow-external")


# -- files that are damaged ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-3000]), "cut short"),
        (lambda path: path.write_bytes(b""), "neither an HDF5 file nor"),
        (lambda path: path.write_text("hello"), "neither an HDF5 file nor"),
        (lambda path: (path.unlink(), path.symlink_to("/proc/self/mem")), "scan.h5"),
    ],
    ids=["cut short", "empty", "text", "unreadable"],
)
def test_a_file_that_cannot_be_read(server: Server, scan: Path, tmp_path: Path, harm: Callable[[Path], object], reason: str) -> None:
    harm(scan)
    Replay.start(server.port, scan, "-c", chain(tmp_path, IMAGES)).fails(reason)


@pytest.mark.parametrize(
    ("tail", "reason"),
    [
        (struct.pack("<H", 1051), "unknown message id 1051"),
        (struct.pack("<HI", 2, 2**32 - 1) + bytes(100), "4,294,967,295"),
        (b"", "without CLOSE"),
        (np.random.default_rng(3).bytes(3000), "sending failed"),
    ],
    ids=["unknown id", "4 GiB", "cut short", "garbage"],
)
def test_a_recorded_stream_that_is_damaged(server: Server, tmp_path: Path, tail: bytes, reason: str) -> None:
    """The server learns nothing of CLOSE, so that it does not take half a scan for a whole one."""
    path = stream_of(tmp_path / "scan.mrd", HEADER, *readouts(4), tail)
    err = Replay.start(server.port, path, "-c", chain(tmp_path, IMAGES)).fails("sending failed after 4 items", reason)
    assert len(err.strip().splitlines()) == 1, err


# -- servers that go, or are none ------------------------------------------------------------------------------------------


def _garbage(connection: Connection, arrived: list[Message]) -> None:
    connection.write_raw([b"HTTP/1.1 400 Bad Request\r\n\r\n"])
    connection.drain(LIMIT)


def _no_close(connection: Connection, arrived: list[Message]) -> None:
    arrived.extend(connection)


def _gone_at_once(connection: Connection, arrived: list[Message]) -> None:
    arrived.append(connection.read())


@pytest.mark.parametrize(
    ("peer", "reason"),
    [(_garbage, "the server's answer cannot be read"), (_no_close, "without CLOSE"), (_gone_at_once, "after 0 images")],
    ids=["garbage", "no CLOSE", "gone at once"],
)
def test_a_peer_that_is_no_good_server(scan: Path, peer: Callable[[Connection, list[Message]], None], reason: str) -> None:
    with FakeServer(peer) as fake:
        Replay.start(fake.port, scan, "-c", "default").fails(reason)


def test_a_server_that_falls_silent(server: Server, scan: Path) -> None:
    held = HeldReplay(server, scan, "silent")
    try:
        what = held.gate.with_name("silent.xml")
        other = Replay.start(server.port, scan, "-c", what, "--timeout", 0.5)
        other.fails("neither took nor sent anything for 0.5 s", "--timeout")
    finally:
        held.release()
    held.replay.works(6)


def test_nobody_listens(scan: Path) -> None:
    Replay.start(1, scan, "-c", "default").fails("nothing listens on 127.0.0.1:1", "reconstream serve")


def test_a_server_that_is_killed(scan: Path) -> None:
    with Server(workers=1, grace_seconds=0.3) as victim:
        held = HeldReplay(victim, scan, "killed")
        victim.process.kill()
        held.replay.fails("after 0 images")
        wait_for(lambda: not alive(held.worker), "its worker to end")
        held.release()


def test_sigterm_drains(scan: Path) -> None:
    with Server(workers=1) as stopped:
        held = HeldReplay(stopped.warm(), scan, "drained")
        waiting = Replay.start(stopped.port, scan, "-c", held.gate.with_name("drained.xml"))
        wait_for(lambda: stopped.find("waits for a worker"), "the second client to wait")
        stopped.process.send_signal(signal.SIGTERM)
        waiting.fails("the server is shutting down")
        held.release()
        held.replay.works(6)
        assert stopped.process.wait(LIMIT) == 0


def test_sigterm_and_a_scan_that_does_not_finish(scan: Path) -> None:
    with Server(workers=1, grace_seconds=0.2) as stopped:
        held = HeldReplay(stopped, scan, "stopped")
        stopped.process.send_signal(signal.SIGTERM)
        held.replay.fails("it was stopped with the server")
        assert stopped.process.wait(LIMIT) == 0


def test_a_killed_worker_and_the_spooled_scan_replays(server: Server, spool: Path, tmp_path: Path) -> None:
    victim_scan, other_scan = (save(tmp_path / name, readouts(6)) for name in ("victim.h5", "other.h5"))
    wait_for(lambda: not list(spool.glob("*.part")), "earlier measurements to be over")
    victim = HeldReplay(server, victim_scan, "victim")
    (part,) = spool.glob("*.part")
    other = HeldReplay(server, other_scan, "other")
    wait_for(lambda: len(list(read_measurement(part).items())) == 6, "all readouts to have arrived")
    warm = len(server.find("is warm after"))
    os.kill(victim.worker, signal.SIGKILL)
    err = victim.replay.fails("killed by SIGKILL", "replay them with `reconstream replay`")
    other.release()
    other.replay.works(6)
    server.warm(warm + 1)
    kept = part.with_suffix(".incomplete.mrd")
    assert kept.name in err
    victim.release()
    Replay.start(server.port, kept, "--expect", 6).works(6)  # with the config that it had asked for


# -- clients ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_a_replay_that_is_ended(server: Server, scan: Path, number: int, status: int) -> None:
    held = HeldReplay(server, scan, "gone")
    held.replay.process.send_signal(number)
    ended, _, err = held.replay.end()
    assert ended == status
    assert err.strip() == ("interrupted" if number == signal.SIGINT else "")
    held.release()
    wait_for(held.gate.with_name("gone.closed").exists, "the chain to be given up")


def test_a_replay_that_takes_no_images(server: Server, spool: Path, tmp_path: Path) -> None:
    """Stopped while 64 MB wait for it; the server gives it up, and it says so when it is continued."""
    path = save(tmp_path / "large.h5", readouts(64, 4, 1024))
    wait_for(lambda: not list(spool.glob("*.part")), "earlier measurements to be over")
    held = HeldReplay(server, path, "slow", "ToImage repeat=64")
    (part,) = spool.glob("*.part")
    wait_for(lambda: part.stat().st_size > 1 << 20, "enough readouts for more images than the sockets hold")
    held.replay.process.send_signal(signal.SIGSTOP)
    try:
        held.release()
        wait_for(lambda: "took no data for 1" in server.log, "the server to give the client up")
    finally:
        held.replay.process.send_signal(signal.SIGCONT)
    held.replay.fails("images")


def test_four_at_once_one_of_them_at_fault(server: Server, scan: Path, tmp_path: Path) -> None:
    good, bad = chain(tmp_path, IMAGES, "good.xml"), chain(tmp_path, config("Fail at=5", "ToImage"), "bad.xml")
    four = [Replay.start(server.port, scan, "-c", what) for what in (good, good, bad, good)]
    four[2].fails("the matrix is singular")
    for number in (0, 1, 3):
        four[number].works(6)
