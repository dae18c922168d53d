"""The server as a process: waiting, several clients, queries without a worker, replaced workers, stopping."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gadgets.items import Acquisition
from scripts import simulate
from service.server import ListenError, listen
from service.wire import Close, Message, Query, Response
from tests.service.peer import ECHO, HEADER, IMAGES, Peer, config, images, measure, readouts, texts, wait_for
from tests.service.serving import Server, alive


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(workers=2) as one:
        yield one


class Held:
    """A measurement that the chain holds at its first readout until it is released."""

    def __init__(self, server: Server, folder: Path, name: str = "held") -> None:
        self.file = folder / name
        self.peer = server.peer().send(config(f"Hold file={self.file}", "ToImage"), HEADER, *readouts(3))
        wait_for(self._reached, f"a worker to take the client; the log: {server.log}")
        self.pid = int(self.file.with_name(name + ".reached").read_text())

    def _reached(self) -> bool:
        marker = self.file.with_name(self.file.name + ".reached")
        return marker.exists() and marker.read_text() != ""

    def release(self) -> list[Message]:
        self.file.touch()
        return self.peer.send(Close()).answers()


def ask(peer: Peer, key: str = "gadgetron::info") -> str:
    peer.send(Query(key, 7))
    answer = peer.connection.read()
    assert isinstance(answer, Response)
    assert answer.correlation == 7
    return answer.text


def test_a_client_that_comes_before_a_worker_is_warm_waits_for_it() -> None:
    with Server() as early:
        peer = early.peer().send(IMAGES, HEADER, *readouts(3), Close())
        assert not early.find("is warm after")
        assert len(images(peer.answers())) == 3
        assert early.find("waits for a worker")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_addresses(server: Server, host: str) -> None:
    if host == "::1" and not os.path.exists("/proc/net/if_inet6"):
        pytest.skip("this machine knows no IPv6")
    assert len(images(measure(server.peer(host)))) == 3


def test_only_this_machine_is_listened_to(server: Server) -> None:
    addresses = {line.split("listening on ")[1].split()[0] for line in server.lines if "listening on" in line}
    assert addresses <= {"127.0.0.1", "::1"}


def test_four_clients_at_once_get_their_own_images(server: Server) -> None:
    def run(number: int) -> list[float]:
        data = readouts(30, 4, 64)
        for acquisition in data:
            acquisition.data += 100 * number
        return [float(image.data.max()) for image in images(server.peer().send(IMAGES, HEADER, *data, Close()).answers())]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(run, range(4)))
    assert found == [[100 * number + 1 + i for i in range(30)] for number in range(4)]


def test_a_second_client_is_served_while_the_first_is_held(server: Server, tmp_path: Path) -> None:
    held = Held(server.warm(2), tmp_path)
    assert len(images(measure(server.peer()))) == 3
    assert len(images(held.release())) == 3


def test_queries_and_silent_connections_need_no_worker(server: Server, tmp_path: Path) -> None:
    server.warm(2)
    silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(5)]
    held = [Held(server, tmp_path, name) for name in ("one", "two")]
    peer = server.peer()
    assert "reconstream" in ask(peer)
    assert ask(peer, "gadgetron::info::python") == "1"
    assert ask(peer, "nonsense") == "Unknown query"
    for one in held:
        assert len(images(one.release())) == 3
    assert len(images(measure(peer))) == 3  # the connection that asked goes on to measure
    for one in silent:
        one.close()


@pytest.mark.parametrize("junk", [b"\x06\x00" + bytes(16) + b"\xff" * 8, b"\x06\x00" + bytes(3)], ids=["huge", "cut short"])
def test_broken_queries_harm_nobody(server: Server, junk: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(junk)
        client.shutdown(socket.SHUT_WR)
        client.settimeout(10)
        assert client.recv(100) == b""
    server.serves()


def test_too_many_clients_are_told(tmp_path: Path) -> None:
    with Server(workers=1, waiting=1) as small:
        held = Held(small.warm(), tmp_path)
        waiting = small.peer().send(IMAGES, HEADER, *readouts(2), Close())
        wait_for(lambda: small.find("waits for a worker"), "the second client to wait")
        third = small.peer().send(IMAGES, HEADER, *readouts(2), Close())
        assert "all 1 workers are busy and 1 clients wait already" in third.error()
        assert len(images(held.release())) == 3
        assert len(images(waiting.answers())) == 2


def test_an_old_worker_is_replaced_by_a_fresh_one(tmp_path: Path) -> None:
    with Server(workers=1, worker_measurements=2) as server:
        pids = []
        for number in range(4):
            held = Held(server, tmp_path, f"n{number}")
            pids.append(held.pid)
            assert len(images(held.release())) == 3
        assert pids[0] == pids[1] != pids[2] == pids[3]
        assert "it has served 2 measurements" in server.log
        wait_for(lambda: not alive(pids[0]), "the old worker to end")


def test_a_worker_that_has_grown_too_large_is_replaced() -> None:
    with Server(workers=1, worker_memory_mib=1) as server:
        server.serves()
        server.serves()
        wait_for(lambda: server.find(r"worker \d+ is replaced: it uses \d+ MiB"), "the worker to be replaced")


def test_workers_that_cannot_start_are_reported(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os, sys\nif 'service.process' in sys.orig_argv: os._exit(3)\n")
    with Server(path=tmp_path) as broken:
        error = broken.peer().send(IMAGES, HEADER).error()
        assert "no worker process could be started" in error
        assert "it exited with status 3" in broken.log
        assert "reconstream" in ask(broken.peer())


# -- stopping ----------------------------------------------------------------------------------------------------------


def test_sigterm_lets_the_running_measurement_finish(tmp_path: Path) -> None:
    with Server(workers=1) as server:
        held = Held(server, tmp_path)
        waiting = server.peer().send(IMAGES, HEADER, *readouts(1), Close())
        server.process.send_signal(signal.SIGTERM)
        assert "the server is shutting down" in waiting.error()
        with pytest.raises(ConnectionRefusedError):
            server.peer()
        assert server.process.poll() is None
        assert len(images(held.release())) == 3
        assert server.process.wait(20) == 0
        assert not alive(held.pid)


def test_sigterm_and_a_measurement_that_does_not_finish(tmp_path: Path) -> None:
    with Server(workers=1, grace_seconds=0.2) as server:
        held = Held(server, tmp_path)
        server.process.send_signal(signal.SIGTERM)
        assert "it was stopped with the server" in held.peer.error()
        assert server.process.wait(20) == 0
        assert not alive(held.pid)


def test_sigint_to_the_whole_group_drains_too(tmp_path: Path) -> None:
    """^C in a terminal reaches the workers as well."""
    with Server(workers=1) as server:
        held = Held(server, tmp_path)
        os.kill(held.pid, signal.SIGINT)
        server.process.send_signal(signal.SIGINT)
        wait_for(lambda: server.find("stopping"), "the server to stop accepting")
        assert len(images(held.release())) == 3
        assert server.process.wait(20) == 0


def test_workers_end_when_the_server_is_killed(tmp_path: Path) -> None:
    with Server(workers=2, grace_seconds=0.5) as server:
        held = Held(server.warm(2), tmp_path)
        workers = [int(pid) for pid in server.find(r"worker (\d+) is warm")]
        server.process.kill()
        wait_for(lambda: not any(alive(pid) for pid in workers), "the workers to end")
        held.file.touch()


# -- listening ---------------------------------------------------------------------------------------------------------


def test_a_port_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(ListenError, match=rf"port {port}: Address already in use.*--port"):
            listen("localhost", port)


def test_an_address_of_another_machine() -> None:
    with pytest.raises(ListenError, match=r"192\.0\.2\.1"):
        listen("192.0.2.1", 0)


def test_a_name_nobody_knows() -> None:
    with pytest.raises(ListenError, match=r"no\.such\.host\.invalid"):
        listen("no.such.host.invalid", 0)


def test_every_address() -> None:
    listeners = listen("*", 0)
    ports = {listener.getsockname()[1] for listener in listeners}
    assert len(ports) == 1
    for listener in listeners:
        listener.close()


def test_the_parent_needs_neither_tensorflow_nor_the_gadgets() -> None:
    code = "import sys, service.server; print(*[m for m in ('tensorflow', 'h5py', 'scipy', 'gadgets.stock', 'recon') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""


# -- with everything ---------------------------------------------------------------------------------------------------


def test_workers_rehearse_before_the_first_client(tmp_path: Path) -> None:
    scan = tmp_path / "scan.h5"
    simulate.cartesian((32, 32), coils=2, acceleration=1).save(scan)
    with Server(rehearse=f"cartesian.xml={scan},no_such_chain.xml={scan},radial_realtime.xml={tmp_path / 'none.h5'}") as server:
        server.warm()
        assert server.find(r"rehearsed cartesian.xml: 1 images"), server.log
        assert server.log.index("rehearsed cartesian.xml") < server.log.index("is warm after")
        assert len(server.find(r"rehearsal of (no_such_chain.xml|radial_realtime.xml) with \S+ failed \(.+\)")) == 2, server.log
        server.serves()


def test_a_warm_server() -> None:
    """Workers that import TensorFlow first; the client comes before they have."""
    with Server(warm_up="true", workers=1) as server:
        peer = server.peer().send(IMAGES, HEADER, *readouts(3), Close())
        wait_for(lambda: server.find("is warm after") or server.process.poll() is not None, "a warm worker")
        assert len(images(peer.answers())) == 3
        server.serves()
        assert server.stop() == 0
        assert not [line for line in server.lines if "INFO" not in line], server.log


def test_readouts_are_answered_one_by_one(server: Server) -> None:
    peer = server.peer().send(ECHO, HEADER)
    for readout in readouts(200, 8, 128):
        peer.send(readout)
        echo = peer.connection.read()
        assert isinstance(echo, Acquisition)
        assert echo.scan_counter == readout.scan_counter
    assert texts(peer.send(Close()).answers()) == []


def test_many_measurements_one_after_another_leak_nothing(server: Server) -> None:
    server.serves()
    before = len(os.listdir(f"/proc/{server.process.pid}/fd"))
    for _ in range(30):
        server.serves()
    wait_for(lambda: len(os.listdir(f"/proc/{server.process.pid}/fd")) <= before, "the server to close its sockets")
    assert threading.active_count() < 50
