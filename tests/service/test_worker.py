"""The doors for a real Gadgetron: the warm endpoint for ``<connect>`` and the module for ``<execute>``."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from gadgets.items import Acquisition, Image, ImageArray
from service.wire import Close, Config, ErrorReport, Message, encode
from tests.service.peer import GADGETS, HEADER, IMAGES, LIMIT, ROOT, Peer, config, images, readouts, wait_for
from tests.service.serving import Server


@pytest.fixture(scope="module")
def worker() -> Iterator[Server]:
    with Server("gadgetron", workers=2) as one:
        yield one.warm(2)


def configuration(**properties: object) -> Config:
    inner = "".join(f'<property name="{name}" value="{value}"/>' for name, value in properties.items())
    return Config(f'<?xml version="1.0"?>\n<configuration>{inner}</configuration>'.encode())


# -- warm --------------------------------------------------------------------------------------------------------------


def test_many_measurements_one_after_another_and_at_once(worker: Server) -> None:
    def run(number: int) -> list[Message]:
        return worker.peer().send(IMAGES, HEADER, *readouts(20), Close()).answers()

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(run, range(12)):
            assert len(images(found)) == len(found) == 20


def test_a_failure_is_an_error_report_and_the_next_measurement_works(worker: Server) -> None:
    found = worker.peer().send(config("Fail at=2", "ToImage"), HEADER, *readouts(100), Close()).answers()
    assert len(images(found)) == 2
    assert isinstance(found[-1], ErrorReport)
    assert "the matrix is singular" in found[-1].text
    assert len(worker.peer().send(IMAGES, HEADER, *readouts(2), Close()).answers()) == 2


def test_a_crash_is_an_error_report(worker: Server) -> None:
    found = worker.peer().send(config("Crash at=1"), HEADER, *readouts(3), Close()).answers()
    assert isinstance(found[-1], ErrorReport)
    assert "SIGKILL" in found[-1].text


def test_our_own_server_can_use_it_through_connect(worker: Server) -> None:
    inner = config("ToImage").xml.decode().partition("<stream>")[2].partition("</stream>")[0]
    node = f'<external><connect address="localhost" port="{worker.port}"/><configuration>{inner}</configuration></external>'
    chain = Config(f"<configuration><version>2</version><stream>{node}</stream></configuration>".encode())
    with Server() as server:
        found = server.peer().send(chain, HEADER, *readouts(5), Close()).answers()
    assert [float(image.data.max()) for image in images(found)] == [1, 2, 3, 4, 5]
    assert len(found) == 5


# -- cold --------------------------------------------------------------------------------------------------------------


class Cold:
    """``python -m gadgetron PORT gadgets TARGET``, and we are the Gadgetron it connects to."""

    def __init__(self, target: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.settimeout(LIMIT)
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "RECONSTREAM_ALLOW_EXTERNAL": "true", "OMP_NUM_THREADS": "1"}
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gadgetron", str(listener.getsockname()[1]), "gadgets", target],
                env=environment,
                cwd="/",
                stderr=subprocess.PIPE,
                text=True,
            )
            sock, _ = listener.accept()
        self.peer = Peer(sock)

    def end(self) -> tuple[int, str]:
        """Exit status and what was written to stderr."""
        _, errors = self.process.communicate(timeout=LIMIT)
        return self.process.returncode, errors


def frame(repetition: int = 0) -> list[Acquisition]:
    """Four lines of a fully sampled slice."""
    random = np.random.default_rng(repetition)
    lines = []
    for line in range(4):
        data = random.standard_normal((2, 8, 2)).astype(np.float32).view(np.complex64)[..., 0]
        acquisition = Acquisition(None, data)
        acquisition.header["idx"]["kspace_encode_step_1"] = line
        acquisition.header["idx"]["repetition"] = repetition
        acquisition.header["scan_counter"] = 4 * repetition + line
        lines.append(acquisition)
    return lines


@pytest.mark.parametrize("target", ["default", "default.xml", "default_short"])
def test_a_config_as_target(target: str) -> None:
    cold = Cold(target)
    found = cold.peer.send(configuration(), HEADER, *frame(0), *frame(1), Close()).answers()
    status, errors = cold.end()
    assert status == 0, errors
    assert [type(item) for item in found] == [Image, Image]
    assert "Connection state: [FINISHED]" in errors


def test_a_gadget_as_target() -> None:
    cold = Cold("ToImage")  # not one of ours: the error has to say so
    found = cold.peer.send(configuration(), HEADER, *readouts(2), Close()).answers()
    assert isinstance(found[-1], ErrorReport)
    assert "gadget" in found[-1].text
    assert cold.end()[0] == 1
    cold = Cold("RemoveROOversampling")
    found = cold.peer.send(configuration(), HEADER, *readouts(2), Close()).answers()
    assert [type(item) for item in found] == [Acquisition, Acquisition]
    assert cold.end()[0] == 0


def test_data_that_come_with_the_header_are_not_lost() -> None:
    """All of a measurement in one write: gadgetron-python reads config and header of it, we the rest."""
    cold = Cold("default")
    messages = [configuration(config="default.xml"), HEADER, *frame(), Close()]
    cold.peer.raw(b"".join(bytes(part) for message in messages for part in encode(message)))
    assert len(images(cold.peer.answers())) == 1
    assert cold.end()[0] == 0


def test_a_failure_is_told_before_the_process_ends_with_status_1() -> None:
    cold = Cold("default")
    chain = Config(config("Fail at=1").xml)
    cold.peer.send(chain, HEADER, *readouts(2000))
    found: list[Message] = []
    while not found or not isinstance(found[-1], ErrorReport):
        found.append(cold.peer.connection.read())
    assert "[Fail] ERROR: ArithmeticError: the matrix is singular" in found[-1].text
    cold.peer.send(Close())  # as a Gadgetron does when it has read an ERROR
    assert cold.peer.answers() == []
    status, errors = cold.end()
    assert status == 1
    assert "the matrix is singular" in errors


def test_our_own_server_can_start_it_through_execute() -> None:
    """Our server in the role of the Gadgetron, with results that no client could read behind the external node."""
    node = (
        '<external><execute name="gadgets" target="none" type="python"/><configuration>'
        f"<gadget><dll>{GADGETS}</dll><classname>Emit</classname><property name='kind' value='array'/></gadget>"
        "</configuration></external>"
    )
    chain = Config(f"<configuration><version>2</version><stream>{node}</stream></configuration>".encode())
    with Server() as server:
        found = server.peer().send(chain, HEADER, *readouts(2), Close()).answers()
        assert len(images(found)) == len(found) == 4, server.log  # two arrays of two images, split for the client
        wait_for(lambda: "[FINISHED]" in server.log, "the end")


def test_the_package_behaves_as_a_package() -> None:
    """Outside of `python -m gadgetron` the door does not exist."""
    import gadgets

    with pytest.raises(AttributeError, match="no attribute 'radial_cgsense'"):
        gadgets.radial_cgsense  # noqa: B018
    assert ImageArray.__module__ == "gadgets.items"
