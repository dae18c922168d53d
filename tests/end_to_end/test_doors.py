"""Every door is started for real, and all give the same images bit for bit: header, attributes, pixels."""

from __future__ import annotations

import io
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gadgets.items import Image, meta_from_xml
from scripts import simulate
from service.files import read_images, read_measurement
from service.transport import Connection
from service.wire import Close, Config, HeaderXml, Message, encode

DEADLINE = 90.0
CONFIGS = ("cartesian_grappa", "radial_cgsense", "radial_realtime")
Picture = tuple[bytes, dict, str, tuple[int, ...], bytes]
RECONSTREAM = [sys.executable, "-m", "service.cli"]
# BLAS with another number of threads than in this process: images must not depend on it.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "2", "PYTHONUNBUFFERED": "1"}


@dataclass
class Service:
    """A running process and the port it listens on."""

    process: subprocess.Popen
    log: Path
    port: int = 0

    def wait(self, pattern: str) -> str:
        """Wait until the log matches; the first group of the match."""
        deadline = time.monotonic() + DEADLINE
        while time.monotonic() < deadline:
            found = re.search(pattern, self.log.read_text())
            if found:
                return found.group(found.lastindex or 0)
            assert self.process.poll() is None, f"it ended:\n{self.log.read_text()}"
            time.sleep(0.02)
        raise AssertionError(f"no {pattern!r} within {DEADLINE} s:\n{self.log.read_text()}")


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Service]]:
    """The embedded server and the warm worker, started at the same time."""
    folder = tmp_path_factory.mktemp("services")
    running: dict[str, Service] = {}
    try:
        for command in ("serve", "worker"):
            log = folder / f"{command}.log"
            with log.open("w") as sink:
                process = subprocess.Popen(
                    [*RECONSTREAM, command, "--port", "0", "--workers", "1"], stdout=sink, stderr=sink, env=ENVIRONMENT
                )
            running[command] = Service(process, log)
        for service in running.values():
            service.port = int(service.wait(r"listening on \S+ port (\d+)"))
        yield running
    finally:
        for service in running.values():
            service.process.terminate()
        for service in running.values():
            assert service.process.wait(DEADLINE) == 0, service.log.read_text()


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A scan for each config, with waveforms in between, which no door may stumble over."""
    folder = tmp_path_factory.mktemp("scans")
    paths = {name: folder / f"{name}.h5" for name in CONFIGS}
    simulate.cartesian((48, 40), 4, acceleration=2, calibration_lines=12, repetitions=2, slices=2, waveforms=True).save(paths[CONFIGS[0]])
    simulate.radial(48, 4, 21, 2, waveforms=True).save(paths[CONFIGS[1]])
    simulate.radial(48, 4, 13, 20, waveforms=True).save(paths[CONFIGS[2]])
    return paths


@pytest.fixture(scope="module")
def served(services: dict[str, Service], scans: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Picture]]:
    """The images of the embedded server, which the other doors are compared with."""
    folder = tmp_path_factory.mktemp("served")
    return {
        name: replayed(path, folder / f"{name}.h5", "-c", f"{name}.xml", "--port", str(services["serve"].port))
        for name, path in scans.items()
    }


def replayed(scan: Path, output: Path, *options: str) -> list[Picture]:
    """The images that `reconstream replay` writes."""
    done = subprocess.run(
        [*RECONSTREAM, "replay", str(scan), "-o", str(output), *options], capture_output=True, text=True, env=ENVIRONMENT, timeout=DEADLINE
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return pictures_in(output)


def pictures_in(path: Path) -> list[Picture]:
    return [
        picture(Image(header.copy(), pixels, bytes(attributes)))
        for _, series in sorted(read_images(path).items())
        for header, attributes, pixels in zip(*series, strict=True)
    ]


def picture(image: Image) -> Picture:
    """All of an image that can be compared. The length of the attributes depends on how they were carried, and readers ignore it."""
    header = image.header.copy()
    header["attribute_string_len"] = 0
    return header.tobytes(), meta_from_xml(image.attribute_string), str(image.data.dtype), image.data.shape, image.data.tobytes()


def of_messages(messages: list[Message]) -> list[Picture]:
    return [picture(message) for message in messages if isinstance(message, Image)]


def stream_of(scan: Path) -> bytes:
    """The scan as the stream that `ismrmrd_hdf5_to_stream` would write."""
    measurement = read_measurement(scan)
    messages: list[Message] = [HeaderXml(measurement.header_xml), *measurement.items(), Close()]
    return b"".join(bytes(buffer) for message in messages for buffer in encode(message))


def converse(sock: socket.socket, scan: Path, configuration: bytes) -> list[Message]:
    """What a Gadgetron does with an external module: CONFIG, HEADER, data and CLOSE out; everything in, up to CLOSE."""
    sock.settimeout(DEADLINE)
    measurement = read_measurement(scan)
    answers: list[Message] = []
    with Connection.from_socket(sock, read_timeout=DEADLINE, write_timeout=DEADLINE) as connection:
        reader = threading.Thread(target=lambda: answers.extend(connection), daemon=True)
        reader.start()
        connection.write(Config(configuration))
        connection.write(HeaderXml(measurement.header_xml))
        for item in measurement.items():
            connection.write(item)
        connection.write(Close())
        reader.join(DEADLINE)
        assert not reader.is_alive(), "no CLOSE came"
    return answers


def test_the_images_are_what_was_scanned(served: dict[str, list[Picture]], scans: dict[str, Path]) -> None:
    """Two slices and two repetitions; two frames; twenty frames; none of them empty, no two alike."""
    assert [len(pictures) for pictures in served.values()] == [4, 2, 20]
    for pictures in served.values():
        pixels = [picture[-1] for picture in pictures]
        assert all(any(one) for one in pixels)
        assert len(set(pixels)) == len(pixels)


def test_a_failure_reaches_the_shell(services: dict[str, Service], scans: dict[str, Path], tmp_path: Path) -> None:
    """The reason from the server on stderr, status 1, no output file; and the server serves on (all other tests)."""
    port = str(services["serve"].port)
    for options, reason in (
        (["-c", "radial_cgsens"], "radial_cgsense.xml"),
        (["-c", "cartesian_grappa", "-P", "iterations=3"], "iterations"),
        (["-c", "../secrets"], "../secrets: there is no such file"),  # the client says so; a server refuses it too (test_session)
        (["-c", "radial_cgsense", "-P", "iterations@NonCartesianRecon=many"], "valid integer"),
    ):
        command = [*RECONSTREAM, "replay", str(scans[CONFIGS[0]]), "--port", port, "-o", str(tmp_path / "out.h5"), *options]
        done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=DEADLINE)
        if options[-1] == "iterations=3":  # unknown to this chain: said, but no reason to lose a scan
            assert done.returncode == 0
            (tmp_path / "out.h5").unlink()
        else:
            assert done.returncode == 1
            assert not (tmp_path / "out.h5").exists()
        assert reason in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", CONFIGS)
def test_local_replay(name: str, served: dict[str, list[Picture]], scans: dict[str, Path], tmp_path: Path) -> None:
    assert replayed(scans[name], tmp_path / "out.h5", "-c", f"{name}.xml", "--local") == served[name]


@pytest.mark.parametrize("name", CONFIGS)
def test_the_module_that_a_gadgetron_starts(name: str, served: dict[str, list[Picture]], scans: dict[str, Path], tmp_path: Path) -> None:
    """`<execute name="gadgets" target="..." type="python"/>`; an empty `<configuration/>` comes as an empty document."""
    with socket.create_server(("localhost", 0)) as acceptor:
        port = acceptor.getsockname()[1]
        log = tmp_path / "log"
        with log.open("w") as sink:
            module = subprocess.Popen(
                [sys.executable, "-m", "gadgetron", str(port), "gadgets", name], stdout=sink, stderr=sink, env=ENVIRONMENT, cwd=tmp_path
            )
        try:
            acceptor.settimeout(DEADLINE)
            sock, _ = acceptor.accept()
            answers = converse(sock, scans[name], b'<?xml version="1.0"?>\n')
            assert module.wait(DEADLINE) == 0, log.read_text()
        finally:
            module.kill()
            module.wait()
    assert {type(answer).__name__ for answer in answers} == {"Image"}
    assert of_messages(answers) == served[name]


@pytest.mark.parametrize("name", CONFIGS)
def test_the_warm_worker_of_a_gadgetron(
    name: str, served: dict[str, list[Picture]], scans: dict[str, Path], services: dict[str, Service]
) -> None:
    configuration = f'<?xml version="1.0"?>\n<configuration><property name="config" value="{name}.xml"/></configuration>'.encode()
    for _ in range(2):  # one measurement after another
        answers = converse(socket.create_connection(("localhost", services["worker"].port)), scans[name], configuration)
        assert of_messages(answers) == served[name]


@pytest.mark.parametrize("name", CONFIGS)
def test_pipes(name: str, served: dict[str, list[Picture]], scans: dict[str, Path]) -> None:
    done = subprocess.run(
        [*RECONSTREAM, "stream", "-c", f"{name}.xml"], input=stream_of(scans[name]), capture_output=True, env=ENVIRONMENT, timeout=DEADLINE
    )
    assert done.returncode == 0, done.stderr.decode()
    messages = read_all(done.stdout)
    assert messages[0] == HeaderXml(read_measurement(scans[name]).header_xml)
    assert isinstance(messages[-1], Close)
    assert of_messages(messages) == served[name]


def test_named_pipes_and_files(served: dict[str, list[Picture]], scans: dict[str, Path], tmp_path: Path) -> None:
    name = CONFIGS[0]
    source, target = tmp_path / "in", tmp_path / "out"
    os.mkfifo(source)
    os.mkfifo(target)
    process = subprocess.Popen(
        [*RECONSTREAM, "stream", "-c", f"{name}.xml", "-i", str(source), "-o", str(target)], stderr=subprocess.PIPE, env=ENVIRONMENT
    )
    try:
        writer = threading.Thread(target=lambda: source.write_bytes(stream_of(scans[name])), daemon=True)
        writer.start()
        through_pipes = target.read_bytes()
        _, log = process.communicate(timeout=DEADLINE)
        assert process.returncode == 0, log.decode()
    finally:
        process.kill()
    assert of_messages(read_all(through_pipes)) == served[name]

    (tmp_path / "in.mrd").write_bytes(stream_of(scans[name]))
    for source, target in ((tmp_path / "in.mrd", tmp_path / "out.mrd"), (scans[name], tmp_path / "out.h5")):
        done = subprocess.run(
            [*RECONSTREAM, "stream", "-c", f"{name}.xml", "-i", str(source), "-o", str(target)],
            capture_output=True,
            env=ENVIRONMENT,
            timeout=DEADLINE,
        )
        assert done.returncode == 0, done.stderr.decode()
        found = pictures_in(target) if target.suffix == ".h5" else of_messages(read_all(target.read_bytes()))
        assert found == served[name]


def read_all(stream: bytes) -> list[Message]:
    connection = Connection.from_files(io.BytesIO(stream), None)
    return [*connection, Close()]
