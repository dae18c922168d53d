"""Everything that can go wrong, against one running server: the client learns why, in bounded time, and the server serves on."""

from __future__ import annotations

import os
import signal
import socket
import struct
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from gadgets.items import Acquisition, Image
from gadgets.layout import ACQUISITION_HEADER, IMAGE_HEADER
from service.files import read_measurement
from service.wire import Close, Config, Filename, Message
from tests.service.peer import HEADER, IMAGES, Peer, config, images, measure, readouts, texts, wait_for
from tests.service.serving import Server, alive
from tests.service.test_server import Held
from tests.service.test_session import BYTES, ORDERS


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


MODULES = textwrap.dedent(
    '''
    """External modules that fail."""
    import os, sys, time

    def exits(connection):
        next(connection)
        print("no licence found", file=sys.stderr, flush=True)
        os._exit(7)

    def hangs(connection):
        time.sleep(600)

    def raises(connection):
        raise ValueError("calibration file is missing")
    '''
)


SLEEPER = "import sys, time\nif 'sleeper' in sys.orig_argv: time.sleep(600)\n"
"""A ``sitecustomize`` that keeps the external module `sleeper` from ever connecting."""


def _head(number: int, layout: np.dtype, **fields: int) -> bytes:
    """Id and header of a message, all fields 0 but these."""
    header = np.zeros(1, layout)
    for name, value in fields.items():
        header[name] = value
    return struct.pack("<H", number) + header.tobytes()


def external(target: str, name: str = "faulty", **properties: object) -> Config:
    """A config whose only node is an external module."""
    inner = "".join(f'<property name="{key}" value="{value}"/>' for key, value in properties.items())
    node = f'<external><execute name="{name}" target="{target}" type="python"/>{inner}<configuration/></external>'
    return Config(f"<configuration><version>2</version><stream>{node}</stream></configuration>".encode())


@pytest.fixture
def empty_spool(running: Server, spool: Path) -> Path:
    wait_for(lambda: not list(spool.glob("*.part")), "earlier measurements to be over")
    for old in spool.iterdir():
        old.unlink()
    return spool


def kept(folder: Path, pattern: str = "*.mrd") -> Path:
    wait_for(lambda: list(folder.glob(pattern)), f"{pattern} in the spool")
    (path,) = folder.glob(pattern)
    return path


# -- the protocol, once more over the real thing ------------------------------------------------------------------------


@pytest.mark.parametrize("case", list(ORDERS))
def test_protocol_errors(server: Server, case: str) -> None:
    messages, reason = ORDERS[case]
    assert reason in server.peer().send(*messages).error()


@pytest.mark.parametrize("case", list(BYTES))
def test_bytes_that_are_no_message(server: Server, case: str) -> None:
    data, reason = BYTES[case]
    assert reason in server.peer().raw(data).error()


def test_unknown_id_in_mid_scan(server: Server) -> None:
    found = server.peer().send(IMAGES, HEADER, *readouts(5)).raw(struct.pack("<H", 1051)).answers()
    assert len(images(found)) == 5
    assert "1051" in texts(found)[-1]


def test_nan(server: Server) -> None:
    data = readouts(3)
    data[1].data[:] = np.nan
    found = server.peer().send(IMAGES, HEADER, *data, Close()).answers()
    assert [float(image.data.max()) for image in images(found)] == [1, 0, 3]
    assert "NaN" in texts(found)[0]


def test_a_singular_noise_covariance(server: Server) -> None:
    noise = Acquisition(None, np.repeat(np.random.default_rng(0).standard_normal((1, 64)).astype(np.complex64), 2, 0))
    noise.set_flag(19)
    error = server.peer().send(Filename("default_optimized.xml"), HEADER, noise, *readouts(2), Close()).error()
    assert "covariance" in error


def test_a_gadget_that_raises(server: Server) -> None:
    found = server.peer().send(config("Fail at=2", "ToImage"), HEADER, *readouts(500), Close()).answers()
    assert len(images(found)) == 2
    assert texts(found) == ["[Fail] ERROR: ArithmeticError: the matrix is singular"]


# -- external modules --------------------------------------------------------------------------------------------------


def test_an_external_that_exits(server: Server) -> None:
    error = server.peer().send(external("exits"), HEADER, *readouts(3), Close()).error()
    assert "faulty.exits" in error
    assert "7" in error
    assert "no licence found" in error


def test_an_external_that_raises(server: Server) -> None:
    error = server.peer().send(external("raises"), HEADER, *readouts(3), Close()).error()
    assert "faulty.raises" in error
    assert "calibration file is missing" in error


def test_an_external_that_hangs(server: Server) -> None:
    chain = external("hangs", silence_timeout=0.5, exit_timeout=0.2)
    assert "faulty.hangs" in server.peer().send(chain, HEADER, *readouts(3), Close()).error()


def test_an_external_that_is_not_there(server: Server) -> None:
    assert "no_such_module" in server.peer().send(external("x", "no_such_module"), HEADER, *readouts(3), Close()).error()


def test_an_external_that_never_listens(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
    node = f'<external><connect address="127.0.0.1" port="{port}"/>{{}}<configuration/></external>'
    inner = node.format('<property name="attempts" value="2"/><property name="interval" value="0.1"/>')
    chain = Config(f"<configuration><version>2</version><stream>{inner}</stream></configuration>".encode())
    assert str(port) in server.peer().send(chain, HEADER, *readouts(3), Close()).error()


def test_a_client_may_not_start_programs_unless_it_is_allowed(tmp_path: Path) -> None:
    marker = tmp_path / "started"
    with Server(allow_external="false") as strict:
        chain = config(f"Hold file={marker}")
        for refused in (chain, external("exits"), external("system", "os")):
            error = strict.peer().send(refused, HEADER, *readouts(1), Close()).error()
            assert "--allow-external" in error
        assert not list(tmp_path.iterdir())
        assert strict.peer().send(Filename("default.xml"), HEADER, Close()).answers() == []


# -- clients -----------------------------------------------------------------------------------------------------------


def test_a_client_that_goes_in_mid_scan_frees_its_worker(server: Server, tmp_path: Path) -> None:
    held = [Held(server, tmp_path, name) for name in ("one", "two")]  # both workers
    for one in held:
        one.peer.connection.close()
        one.file.touch()
    for one in held:
        wait_for(lambda one=one: one.file.with_name(one.file.name + ".closed").exists(), "the chain to be given up")
    server.serves()


def test_a_chain_that_computes_on_for_a_client_that_has_gone_is_ended(tmp_path: Path) -> None:
    with Server(gone_seconds=0.3, spool=tmp_path / "spool") as server:
        held = Held(server, tmp_path)
        held.peer.connection.close()
        server.serves()  # by a new worker: the old one would hold for a minute
        assert not alive(held.pid)
        assert len(list(read_measurement(kept(tmp_path / "spool", "*.incomplete.mrd")).items())) == 3


def test_a_client_that_is_killed_with_images_unread(server: Server) -> None:
    """Its kernel answers with a reset."""
    peer = server.peer().send(IMAGES, HEADER, *readouts(20))
    assert isinstance(peer.connection.read(), Image)
    peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.connection.close()
    server.serves()


def resident_mib(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20


def test_a_client_that_reads_no_images_costs_bounded_memory(server: Server) -> None:
    """1 MiB waits before the chain and 1 MiB behind it, then the client cannot send on; after send_seconds it is given up."""
    workers = [int(pid) for pid in server.find(r"worker (\d+) is warm") if alive(int(pid))]
    before = max(resident_mib(pid) for pid in workers)
    peer = server.peer().send(config("ToImage repeat=64"), HEADER)  # 16 times more comes out than goes in
    readout = readouts(1, 4, 1024)[0]
    with pytest.raises(ConnectionError):
        peer.send(*[readout] * 10_000)
    grown = max(resident_mib(pid) for pid in workers if alive(pid)) - before
    assert grown < 40, f"a worker grew by {grown} MiB"
    wait_for(lambda: "took no data for 1" in server.log, "the reason in the log")
    peer.connection.close()


def test_four_clients_at_once_one_of_them_at_fault(server: Server) -> None:
    def run(number: int) -> int:
        chain = config("Fail at=5", "ToImage") if number == 2 else IMAGES
        return len(images(measure(server.peer(), 40, chain)))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(run, range(4))) == [40, 40, 5, 40]


# -- workers that die --------------------------------------------------------------------------------------------------


def test_a_killed_worker_takes_only_its_own_measurement_with_it(server: Server, empty_spool: Path, tmp_path: Path) -> None:
    victim, other = Held(server, tmp_path, "victim"), Held(server, tmp_path, "other")
    parts = list(empty_spool.glob("*.part"))
    wait_for(lambda: all(len(list(read_measurement(part).items())) == 3 for part in parts), "all readouts to have arrived")
    warm = len(server.find("is warm after"))
    os.kill(victim.pid, signal.SIGKILL)
    error = victim.peer.error()
    assert "killed by SIGKILL" in error
    assert len(images(other.release())) == 3
    server.warm(warm + 1)
    path = kept(empty_spool, "*.incomplete.mrd")
    assert path.name in error
    items = list(read_measurement(path).items())
    assert [item.scan_counter for item in items] == [0, 1, 2]
    found = server.peer().send(IMAGES, HEADER, *items, Close()).answers()
    assert [float(image.data.max()) for image in images(found)] == [1, 2, 3]


def test_a_chain_that_crashes_its_process(server: Server) -> None:
    found = server.peer().send(config("ToImage", "Crash"), HEADER, *readouts(3), Close()).answers()
    assert len(images(found)) == 3  # Crash sees no readouts behind ToImage
    found = server.peer().send(config("Crash at=2", "ToImage"), HEADER, *readouts(500), Close()).answers()
    assert "SIGKILL" in texts(found)[-1]
    assert len(images(found)) <= 2


def test_an_idle_worker_that_dies_is_replaced(server: Server) -> None:
    pids = [int(pid) for pid in server.find(r"worker (\d+) is warm") if alive(int(pid))]
    warm = len(server.find("is warm after"))
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    server.serves()
    server.warm(warm + len(pids))


# -- raw data ----------------------------------------------------------------------------------------------------------


def test_a_measurement_is_kept_byte_by_byte(server: Server, empty_spool: Path) -> None:
    assert len(images(measure(server.peer(), 4))) == 4
    path = kept(empty_spool)
    assert "_m_17-" in path.name
    assert "incomplete" not in path.name
    measurement = read_measurement(path)
    assert measurement.header_xml == HEADER.xml
    sent = readouts(4)
    found = list(measurement.items())
    assert [item.header.tobytes() for item in found] == [one.header.tobytes() for one in sent]
    assert all(np.array_equal(item.data, one.data) for item, one in zip(found, sent, strict=True))
    path.unlink()


def test_the_raw_data_of_a_failed_reconstruction_are_complete(server: Server, empty_spool: Path) -> None:
    server.peer().send(config("Fail at=1"), HEADER, *readouts(300), Close()).error()
    assert len(list(read_measurement(kept(empty_spool)).items())) == 300
    kept(empty_spool).unlink()


def test_a_stream_that_broke_off_is_kept_as_incomplete(server: Server, empty_spool: Path) -> None:
    peer = server.peer().send(IMAGES, HEADER, *readouts(3))
    assert isinstance(peer.connection.read(), Image)
    peer.connection.close()
    assert len(list(read_measurement(kept(empty_spool, "*.incomplete.mrd")).items())) == 3
    kept(empty_spool).unlink()


def test_a_spool_that_cannot_be_written_costs_no_scan(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    with Server(spool=folder) as server:
        server.warm()
        folder.rmdir()
        assert len(images(measure(server.peer()))) == 3
        wait_for(lambda: "goes on without its raw data" in server.log, "the warning")


def test_many_broken_clients_at_once(server: Server) -> None:
    """Half of them garbage, half of them gone at once; a good one in between is served."""

    def broken(number: int) -> None:
        with socket.create_connection(("127.0.0.1", server.port), 20) as client:
            if number % 2:
                client.sendall(np.random.default_rng(number).bytes(3000))

    threads = [threading.Thread(target=broken, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    assert len(images(measure(Peer.connect(server.port)))) == 3
    for thread in threads:
        thread.join(20)


@pytest.mark.parametrize("chain", [external("exits"), external("raises"), config("Fail at=1", "ToImage")], ids=["exits", "raises", "fails"])
def test_a_failure_is_told_while_the_client_pauses(server: Server, chain: Config) -> None:
    """The scan is not over, but nothing comes at the moment: the reason must not wait for the next readout."""
    peer = server.peer().send(chain, HEADER, *readouts(3))
    assert "ERROR" in peer.error()


LENGTHS = {
    "4 GiB header": [IMAGES, struct.pack("<HI", 3, 2**32 - 1)],
    "4 GiB text": [IMAGES, HEADER, struct.pack("<HI", 5, 2**32 - 1)],
    "4 GiB DICOM": [IMAGES, HEADER, struct.pack("<HI", 1018, 2**32 - 1)],
    "readout of 65535 x 65535": [
        IMAGES,
        HEADER,
        _head(1008, ACQUISITION_HEADER, version=1, active_channels=65535, number_of_samples=65535),
    ],
    "image of 65535^3": [IMAGES, HEADER, _head(1022, IMAGE_HEADER, version=1, data_type=5, matrix_size=65535, channels=1) + bytes(8)],
    "attributes of 2^63 bytes": [
        IMAGES,
        HEADER,
        _head(1022, IMAGE_HEADER, version=1, data_type=5, matrix_size=1, channels=1) + struct.pack("<Q", 2**63),
    ],
    "array of 2^32 dimensions": [IMAGES, HEADER, struct.pack("<HQ", 1024, 2**32)],
}


@pytest.mark.parametrize("case", list(LENGTHS))
def test_lengths_that_nothing_has(server: Server, case: str) -> None:
    peer = server.peer()
    for part in LENGTHS[case]:
        peer.raw(part) if isinstance(part, bytes) else peer.send(part)
    assert "declare" in peer.error()


def test_an_external_that_never_connects(server: Server) -> None:
    error = server.peer().send(external("x", "sleeper", start_timeout=0.5), HEADER, *readouts(3), Close()).error()
    assert "sleeper.x did not connect within 0.5 s" in error


def test_faults_one_after_another_leak_nothing() -> None:
    """Neither descriptors nor memory of the worker, whatever goes wrong in it."""
    faults: list[tuple[Message | bytes, ...]] = [
        (config("Fail at=2", "ToImage"), HEADER, *readouts(20, 8, 512), Close()),
        (np.random.default_rng(0).bytes(3000),),
        (IMAGES, HEADER, *readouts(5)),
        (Filename("nope"), HEADER, Close()),
    ]

    def meet(number: int) -> None:
        peer = server.peer()
        for part in faults[number % len(faults)]:
            peer.raw(part) if isinstance(part, bytes) else peer.send(part)
        if number % len(faults) == 2:
            peer.connection.close()  # in mid-scan
        else:
            peer.answers()

    with Server(workers=1) as server:
        (worker,) = [int(pid) for pid in server.warm().find(r"worker (\d+) is warm")]
        folders = [Path(f"/proc/{pid}/fd") for pid in (worker, server.process.pid)]
        for number in range(8):
            meet(number)
        server.serves()
        before, size = [len(os.listdir(folder)) for folder in folders], resident_mib(worker)
        for number in range(60):
            meet(number)
        server.serves()
        wait_for(lambda: all(len(os.listdir(folder)) <= had for folder, had in zip(folders, before, strict=True)), "sockets to be closed")
        assert resident_mib(worker) - size < 10
        assert alive(worker)
