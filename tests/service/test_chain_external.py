"""External modules: real processes and sockets, and every way in which they fail."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from gadgets.base import Context, GadgetError
from gadgets.header import Header
from gadgets.items import Acquisition, Image, Item, Text, Waveform
from service.chain import Chain, Policy, load
from service.transport import Connection
from service.wire import Close, Config, ErrorReport, HeaderXml

HEADER = Header(
    """<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
  <experimentalConditions><H1resonanceFrequency_Hz>63500000</H1resonanceFrequency_Hz></experimentalConditions>
  <encoding><encodedSpace><matrixSize><x>16</x><y>8</y><z>1</z></matrixSize>
    <fieldOfView_mm><x>200</x><y>200</y><z>5</z></fieldOfView_mm></encodedSpace>
   <reconSpace><matrixSize><x>16</x><y>8</y><z>1</z></matrixSize>
    <fieldOfView_mm><x>200</x><y>200</y><z>5</z></fieldOfView_mm></reconSpace>
   <encodingLimits/><trajectory>cartesian</trajectory></encoding></ismrmrdHeader>"""
)


def readout(number: int = 0) -> Acquisition:
    acquisition = Acquisition(None, np.full((2, 16), number + 1j, np.complex64))
    acquisition.scan_counter = number
    return acquisition


def waveform(number: int = 0) -> Waveform:
    made = Waveform(None, np.arange(4, dtype=np.uint32).reshape(1, 4))
    made.scan_counter = number
    return made


def chain(inner: str) -> Chain:
    xml = f"<configuration><version>2</version><stream><external>{inner}</external></stream></configuration>"
    return load(xml.encode(), policy=Policy(allow_external=True))


def until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return condition()


def alive(pid: int) -> bool:
    """Whether the process runs (one that waits to be reaped does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


# -- modules run by the real gadgetron package ---------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the module's search path."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def test_a_module_gets_config_header_and_items_and_answers(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "double.py").write_text(
        """
import sys, ismrmrd
def handler(connection):
    factor = float(connection.config.find("property").get("value"))
    assert connection.header.encoding[0].encodedSpace.matrixSize.y == 8
    print("factor is", factor, file=sys.stderr)
    connection.filter(ismrmrd.Acquisition)
    for acquisition in connection:
        acquisition.data[:] *= factor
        connection.send(acquisition)
"""
    )
    made: list[Item] = [readout(0), waveform(), readout(1), Text("not for the module"), readout(2)]
    configuration = '<configuration><property name="factor" value="2"/></configuration>'
    running = chain(f'<execute name="double" target="handler" type="Python"/>{configuration}')
    with caplog.at_level(logging.INFO, "reconstream"):
        out = list(running.run(made, Context(header=HEADER)))
    assert sorted(type(item).__name__ for item in out) == ["Acquisition", "Acquisition", "Acquisition", "Text", "Waveform"]
    came = [item for item in out if isinstance(item, Acquisition)]
    assert [int(item.scan_counter) for item in came] == [0, 1, 2]
    for one, other in zip(came, [made[0], made[2], made[4]], strict=True):
        np.testing.assert_array_equal(one.data, 2 * other.data)
    assert any("factor is 2.0" in record.message for record in caplog.records)


def test_a_module_that_raises_is_an_error_with_its_traceback(folder: Path) -> None:
    (folder / "broken.py").write_text("def handler(connection):\n    next(connection)\n    raise ValueError('no coil sensitivity')\n")
    with pytest.raises(GadgetError, match=r"\[broken.handler\]") as caught:
        list(chain('<execute name="broken" target="handler" type="python"/>').run([readout()], Context(header=HEADER)))
    assert all(text in str(caught.value) for text in ("exit status 1", "ValueError: no coil sensitivity", "broken.py"))


# -- modules that behave badly: a stand-in for the gadgetron package, because the real one cannot do most of this -----------

TALK = """
import os, signal, socket, struct, sys, time
port, name = int(sys.argv[1]), sys.argv[2]
def connect():
    return socket.create_connection(("localhost", port))
def read(s, n):
    data = b""
    while len(data) < n:
        more = s.recv(n - len(data))
        assert more
        data += more
    return data
def greet(s):
    for _ in range(2):
        number, size = struct.unpack("<HI", read(s, 6))
        read(s, size)
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Chain]:
    """A chain of one external module whose whole program is given."""

    def make(program: str, **properties: float) -> Chain:
        package = tmp_path / "gadgetron"
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "__main__.py").write_text(TALK + f"open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n" + program)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        own = "".join(f'<property name="{name}" value="{value}"/>' for name, value in properties.items())
        return chain(f'<execute name="stand_in" type="python"/>{own}<configuration/>')

    return make


@pytest.mark.parametrize(
    ("program", "properties", "words"),
    [
        ("print('CUDA not found'); sys.exit(3)", {}, ["ended before it connected", "exit status 3", "CUDA not found"]),
        ("time.sleep(600)", {"start_timeout": 0.3}, ["did not connect within 0.3 s", "start_timeout"]),
        ("s = connect(); greet(s); print('out of memory'); os.kill(os.getpid(), 9)", {}, ["without CLOSE", "signal 9", "out of memory"]),
        ("s = connect(); greet(s); sys.exit(0)", {}, ["without CLOSE", "exit status 0"]),
        ("s = connect(); greet(s); s.send(b'\\4\\0'); sys.exit(5)", {}, ["failed", "exit status 5"]),
        ("s = connect(); greet(s); time.sleep(600)", {"silence_timeout": 0.3}, ["for 0.3 s", "silence_timeout", "still running"]),
        ("s = connect(); time.sleep(600)", {"silence_timeout": 0.3}, ["for 0.3 s", "silence_timeout"]),
        ("s = connect(); s.send(b'\\4\\0'); time.sleep(600)", {"exit_timeout": 0.3}, ["did not end within 0.3 s", "exit_timeout"]),
        (
            "signal.signal(15, signal.SIG_IGN); s = connect(); s.send(b'\\4\\0'); time.sleep(600)",
            {"exit_timeout": 0.2},
            ["did not end within 0.2 s"],
        ),
        ("s = connect(); s.send(b'\\x63\\x63abcdef'); time.sleep(600)", {}, ["no message", "25443"]),
        ("s = connect(); s.send(b'\\2\\0\\0\\0\\0\\0'); time.sleep(600)", {}, ["sent a Config"]),
        (
            "s = connect(); greet(s); m = b'singular matrix'; s.send(struct.pack('<HQ', 8, len(m)) + m + b'\\4\\0'); time.sleep(600)",
            {},
            ["reports: singular matrix"],
        ),
    ],
    ids=[
        "exits",
        "never-connects",
        "killed",
        "eof",
        "status",
        "silent",
        "takes-nothing",
        "lingers",
        "ignores-sigterm",
        "garbage",
        "illegal",
        "error",
    ],
)
def test_a_failing_module_is_an_error_and_leaves_nothing(
    stand_in: Callable[..., Chain], tmp_path: Path, program: str, properties: dict[str, float], words: list[str]
) -> None:
    big = Acquisition(None, np.zeros((64, 4096), np.complex64))  # more than the socket's buffers hold
    with pytest.raises(GadgetError, match=r"\[stand_in\]") as caught:
        list(stand_in(program, **properties).run([big] * 8, Context(header=HEADER)))
    assert all(text in str(caught.value) for text in words), str(caught.value)
    assert until(lambda: not alive(int((tmp_path / "pid").read_text())))


def test_what_a_failing_module_sent_before_arrives_first(stand_in: Callable[..., Chain]) -> None:
    program = "s = connect(); greet(s); s.sendall(read(s, 2 + 340 + 2 * 16 * 8)); sys.exit(1)"
    out: list[Item] = []
    with pytest.raises(GadgetError, match="exit status 1"):
        out.extend(stand_in(program).run([readout(7), readout(8)], Context(header=HEADER)))
    assert [int(item.scan_counter) for item in out] == [7]


def test_a_module_may_end_early_and_what_it_did_not_take_is_counted(
    stand_in: Callable[..., Chain], caplog: pytest.LogCaptureFixture
) -> None:
    program = "s = connect(); greet(s); read(s, 2 + 340 + 2 * 16 * 8); s.send(b'\\4\\0'); s.close()"
    running = stand_in(program)
    with caplog.at_level(logging.WARNING, "reconstream"):
        assert list(running.run(map(readout, range(20_000)), Context(header=HEADER))) == []
    assert any("ended without taking" in record.message for record in caplog.records)


def test_giving_up_kills_the_module_and_what_it_started(stand_in: Callable[..., Chain], tmp_path: Path) -> None:
    program = f"""
child = os.fork()
if not child:
    signal.signal(15, signal.SIG_IGN)
    open({str(tmp_path / "grandchild")!r}, "w").write(str(os.getpid()))
    time.sleep(600)
s = connect(); greet(s)
while True:
    s.sendall(read(s, 2 + 340 + 2 * 16 * 8))
"""
    running = stand_in(program).run(iter(lambda: readout(1), None), Context(header=HEADER))
    assert isinstance(next(running), Acquisition)
    assert until(lambda: (tmp_path / "grandchild").exists() and (tmp_path / "grandchild").read_text() != "")
    pids = [int((tmp_path / name).read_text()) for name in ("pid", "grandchild")]
    assert all(map(alive, pids))
    running.close()  # type: ignore[attr-defined]
    assert until(lambda: not any(map(alive, pids)))


def test_the_modules_end_when_the_server_is_killed(stand_in: Callable[..., Chain], tmp_path: Path) -> None:
    running = stand_in("s = connect(); greet(s); time.sleep(600)")
    server = os.fork()
    if not server:  # the server: killed without a chance to clean up
        try:
            next(running.run(iter(lambda: readout(1), None), Context(header=HEADER)))
        finally:
            os._exit(0)
    pid = tmp_path / "pid"
    assert until(lambda: pid.exists() and pid.read_text() != "")
    os.kill(server, signal.SIGKILL)
    os.waitpid(server, 0)
    assert until(lambda: not alive(int(pid.read_text())))


# -- modules that listen ------------------------------------------------------------------------------------------------


def serve(work: Callable[[Connection], None], listener: socket.socket) -> threading.Thread:
    def body() -> None:
        peer, _ = listener.accept()
        with Connection.from_socket(peer) as connection:
            work(connection)

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    return thread


def test_a_listening_module_sees_config_header_items_close() -> None:
    heard: list[object] = []

    def work(connection: Connection) -> None:
        for message in connection:
            heard.append(message)
            if isinstance(message, Acquisition):
                connection.write(Image(None, np.abs(message.data)[:, None, None]))
        heard.append("close")
        connection.write(Close())

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = serve(work, listener)
        running = chain(
            f"""<connect address="127.0.0.1" port="{listener.getsockname()[1]}"/>
            <writers><writer><dll>gadgetron_core_writers</dll><classname>AcquisitionWriter</classname></writer></writers>
            <readers><reader><dll>gadgetron_mricore</dll><classname>MRIImageReader</classname></reader></readers>
            <configuration><anything at="all">here</anything></configuration>"""
        )
        out = list(running.run([readout(3), waveform(), readout(4)], Context(header=HEADER)))
        thread.join(20)
    assert sorted(type(item).__name__ for item in out) == ["Image", "Image", "Waveform"]
    config, header, *rest = heard
    assert isinstance(config, Config)
    assert config.xml == b'<?xml version="1.0"?>\n<configuration><anything at="all">here</anything></configuration>'
    assert isinstance(header, HeaderXml)
    assert header.xml == HEADER.xml
    assert [type(item) for item in rest[:-1]] == [Acquisition, Acquisition]
    assert rest[-1] == "close"


def test_a_listening_module_that_reports_an_error_while_we_still_send() -> None:
    def work(connection: Connection) -> None:
        connection.read()
        connection.write(ErrorReport("field map missing"))
        connection.write(Close())
        connection.drain(20)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        serve(work, listener)
        running = chain(f'<connect address="127.0.0.1" port="{listener.getsockname()[1]}"/>')
        with pytest.raises(GadgetError, match="field map missing"):
            list(running.run(iter(lambda: readout(1), None), Context(header=HEADER)))


def test_a_listening_module_that_ends_early_and_stops_reading(caplog: pytest.LogCaptureFixture) -> None:
    done = threading.Event()

    def work(connection: Connection) -> None:
        connection.write(Close())
        done.wait(20)  # the socket stays open, nothing is read

    big = Acquisition(None, np.zeros((64, 4096), np.complex64))
    with socket.create_server(("127.0.0.1", 0)) as listener, caplog.at_level(logging.WARNING, "reconstream"):
        serve(work, listener)
        running = chain(f'<connect address="127.0.0.1" port="{listener.getsockname()[1]}"/>')
        assert list(running.run([big] * 50, Context(header=HEADER))) == []
    done.set()
    assert any("ended without taking" in record.message for record in caplog.records)


def test_nothing_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    running = chain(f'<connect port="{port}"/><property name="attempts" value="3"/><property name="interval" value="0.01"/>')
    with pytest.raises(GadgetError, match=f"nothing answers at localhost:{port} .*after 3 attempts"):
        list(running.run([readout()], Context(header=HEADER)))


def test_a_module_that_begins_to_listen_late_is_reached() -> None:
    def work(connection: Connection) -> None:
        for message in connection:
            if isinstance(message, Acquisition):
                connection.write(message)
        connection.write(Close())

    with socket.create_server(("127.0.0.1", 0)) as first:
        port = first.getsockname()[1]
    running = chain(
        f'<connect address="127.0.0.1" port="{port}"/><property name="attempts" value="1000"/><property name="interval" value="0.02"/>'
    )

    def begin() -> None:
        assert until(lambda: bool(attempts))
        listener = socket.create_server(("127.0.0.1", port))
        serve(work, listener)

    attempts: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = attempts.append  # type: ignore[method-assign]
    log = logging.getLogger("reconstream")
    log.addHandler(handler)
    level = log.level
    log.setLevel(logging.INFO)
    try:
        threading.Thread(target=begin, daemon=True).start()
        out = list(running.run([readout(5)], Context(header=HEADER)))
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
    assert [int(item.scan_counter) for item in out] == [5]


def test_the_source_failing_is_not_the_modules_fault() -> None:
    def work(connection: Connection) -> None:
        connection.drain(20)

    def broken() -> Iterator[Item]:
        yield readout(0)
        raise ConnectionResetError("client gone")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        serve(work, listener)
        running = chain(f'<connect address="127.0.0.1" port="{listener.getsockname()[1]}"/>')
        with pytest.raises(ConnectionResetError, match="client gone"):
            list(running.run(broken(), Context(header=HEADER)))
