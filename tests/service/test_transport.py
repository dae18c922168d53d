"""Messages over sockets, pipes and files: complete, prompt, and never waiting without end."""

from __future__ import annotations

import io
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gadgets.items import Acquisition, AcquisitionBucket, Text
from service.transport import MOST_BUFFERS, Connection
from service.wire import Close, Config, EndOfStream, Message, WireError, encode
from tests.service.wire_messages import content, sent

Pair = tuple[socket.socket, socket.socket]


def tcp(address: str = "127.0.0.1") -> Pair:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as server:
        client = socket.create_connection(server.getsockname()[:2])
        return server.accept()[0], client


@pytest.fixture(params=["socketpair", "tcp"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    sockets = socket.socketpair() if request.param == "socketpair" else tcp()
    yield sockets
    for sock in sockets:
        sock.close()


def readout(channels: int = 8, samples: int = 128, seed: int = 0) -> Acquisition:
    rng = np.random.default_rng(seed)
    return Acquisition(None, rng.standard_normal((channels, 2 * samples), dtype=np.float32).view(np.complex64))


def in_thread(work: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def finish(thread: threading.Thread) -> None:
    thread.join(30)
    assert not thread.is_alive(), "still waiting after 30 s"


SESSION: list[Message] = [Config(b"<a/>"), *(readout(1 + 7 * (i % 2), 16 << i % 8, i) for i in range(24)), Text("é"), readout(32, 512)]


# -- both ways -------------------------------------------------------------------------------------------------------------------------


def test_messages_arrive_in_order_up_to_close(pair: Pair) -> None:
    def send() -> None:
        with Connection.from_socket(pair[0]) as connection:
            for message in [*SESSION, Close()]:
                connection.write(message)

    thread = in_thread(send)
    connection = Connection.from_socket(pair[1])
    assert [content(m) for m in connection] == [content(m) for m in SESSION]
    finish(thread)
    assert connection.bytes_received == len(b"".join(map(sent, [*SESSION, Close()])))
    with pytest.raises(EndOfStream, match="nothing comes after CLOSE"):
        connection.read()


def test_one_thread_reads_while_another_writes(pair: Pair) -> None:
    """Each side sends more than the kernel buffers before the other has read all: one after the other would block."""
    big = [readout(32, 512, seed) for seed in range(60)]
    there, back = Connection.from_socket(pair[0]), Connection.from_socket(pair[1])

    def echo() -> None:
        for message in back:
            back.write(message)
        back.write(Close())

    def send() -> None:
        for message in big:
            there.write(message)
        there.write(Close())

    threads = [in_thread(echo), in_thread(send)]
    assert [content(m) for m in there] == [content(m) for m in big]
    for thread in threads:
        finish(thread)


def test_several_writers_do_not_mix(pair: Pair) -> None:
    writer = Connection.from_socket(pair[0])

    def send(seed: int) -> None:
        for _ in range(20):
            writer.write(readout(32, 512, seed))

    threads = [in_thread(lambda seed=seed: send(seed)) for seed in range(3)]  # type: ignore[misc]
    reader = Connection.from_socket(pair[1])
    known = [content(readout(32, 512, seed)) for seed in range(3)]
    assert sorted(known.index(content(reader.read())) for _ in range(60)) == [0] * 20 + [1] * 20 + [2] * 20
    for thread in threads:
        finish(thread)


class Counting(socket.socket):
    """Counts the calls that send."""

    calls = 0
    most = 0

    def sendmsg(self, buffers: Any, *rest: Any) -> int:
        self.calls += 1
        self.most = max(self.most, len(buffers))
        return super().sendmsg(buffers, *rest)


def test_one_system_call_a_message_without_delay() -> None:
    first, second = tcp()
    counting = Counting(fileno=first.detach())
    with Connection.from_socket(counting) as connection, second:
        assert counting.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        for message in (Config(b"<a/>"), readout(), Text("a")):
            connection.write(message)
        assert counting.calls == 3
        assert connection.bytes_sent == sum(len(sent(m)) for m in (Config(b"<a/>"), readout(), Text("a")))


def test_message_of_more_buffers_than_one_call_takes(pair: Pair) -> None:
    """A bucket of 1,500 readouts, through a kernel buffer that is far too small for it."""
    counting = Counting(fileno=pair[0].detach())
    counting.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    bucket = AcquisitionBucket([readout(2, 16, seed) for seed in range(1500)])
    assert len(encode(bucket)) > MOST_BUFFERS
    with Connection.from_socket(counting) as writer:
        thread = in_thread(lambda: writer.write(bucket))
        again = Connection.from_socket(pair[1]).read()
        finish(thread)
        assert counting.calls > 1
        assert counting.most <= MOST_BUFFERS
    assert content(again) == content(bucket)


def test_tee_sees_every_byte_once(pair: Pair) -> None:
    seen = bytearray()
    thread = in_thread(lambda: [Connection.from_socket(pair[0]).write(m) for m in [*SESSION, Close()]])
    for _ in Connection.from_socket(pair[1], tee=seen.extend):
        pass
    finish(thread)
    assert bytes(seen) == b"".join(map(sent, [*SESSION, Close()]))


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_peer_is_named(address: str) -> None:
    try:
        first, second = tcp(address)
    except OSError:
        pytest.skip(f"{address} is not available here")
    with Connection.from_socket(first) as connection, second:
        port = second.getsockname()[1]
        assert connection.peer == (f"[::1]:{port}" if ":" in address else f"127.0.0.1:{port}")


# -- ends ------------------------------------------------------------------------------------------------------------------------------


def test_end_without_close_is_an_error(pair: Pair) -> None:
    pair[0].sendall(sent(readout()) + sent(readout())[:100])
    pair[0].close()
    connection = Connection.from_socket(pair[1])
    assert isinstance(connection.read(), Acquisition)
    with pytest.raises(EndOfStream, match="in the middle of ACQUISITION"):
        connection.read()


def test_reset_is_an_error_that_says_so() -> None:
    first, second = tcp()
    first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    first.close()
    with Connection.from_socket(second) as connection, pytest.raises(EndOfStream, match="connection broke"):
        connection.read()


def test_garbage_is_an_error(pair: Pair) -> None:
    pair[0].sendall(b"\xff" * 1000)
    with pytest.raises(WireError, match="unknown message id 65535"):
        Connection.from_socket(pair[1]).read()


def test_silent_peer_runs_into_the_timeout(pair: Pair) -> None:
    connection = Connection.from_socket(pair[1], read_timeout=0.05)
    with pytest.raises(TimeoutError, match=r"sent nothing for 0\.05 s"):
        connection.read()
    pair[0].sendall(sent(Text("late")))
    message = connection.read()  # a timeout does not lose the stream
    assert isinstance(message, Text)


def test_peer_that_does_not_read_runs_into_the_timeout(pair: Pair) -> None:
    connection = Connection.from_socket(pair[0], write_timeout=0.05)
    message = readout(128, 4096)

    def fill() -> None:
        for _ in range(100):
            connection.write(message)

    with pytest.raises(TimeoutError, match="took no data"):
        fill()
    with pytest.raises(ConnectionError, match="cut off"):
        connection.write(Close())


def test_writing_to_a_peer_that_has_gone(pair: Pair) -> None:
    connection = Connection.from_socket(pair[0])
    pair[1].close()

    def fill() -> None:
        for _ in range(1000):
            connection.write(readout())

    with pytest.raises(ConnectionError):
        fill()


def test_message_that_cannot_be_encoded_leaves_the_stream_whole(pair: Pair) -> None:
    connection = Connection.from_socket(pair[0])
    with pytest.raises(WireError):
        connection.write(Acquisition(readout().header, np.zeros(3, np.complex64)))
    connection.write(Close())
    assert Connection.from_socket(pair[1]).read() == Close()


def test_shutdown_wakes_the_reader(pair: Pair) -> None:
    connection = Connection.from_socket(pair[1])
    ended = threading.Event()

    def read() -> None:
        with pytest.raises(EndOfStream):
            connection.read()
        ended.set()

    thread = in_thread(read)
    connection.shutdown()
    finish(thread)
    assert ended.is_set()
    connection.close()
    connection.close()


# -- draining --------------------------------------------------------------------------------------------------------------------------


def test_drain_ends_at_close(pair: Pair) -> None:
    thread = in_thread(lambda: pair[0].sendall(b"".join(map(sent, [*SESSION, Close()])) + sent(Text("behind"))))
    connection = Connection.from_socket(pair[1])
    connection.read()
    assert connection.drain(20)
    finish(thread)
    message = connection.read()
    assert isinstance(message, Text)


def test_drain_ends_with_the_stream_even_after_garbage(pair: Pair) -> None:
    connection = Connection.from_socket(pair[1])

    def send() -> None:
        pair[0].sendall(sent(Text("a")) + b"\xff" * 3_000_000 + sent(Close()))
        pair[0].close()

    thread = in_thread(send)
    assert connection.drain(20)
    finish(thread)


@pytest.mark.parametrize("data", [b"", sent(Text("a")), b"\xff\xff"])
def test_drain_of_a_silent_peer_ends_in_time(pair: Pair, data: bytes) -> None:
    pair[0].sendall(data)
    assert not Connection.from_socket(pair[1]).drain(0.05)


@pytest.mark.parametrize("data", [sent(Text("a" * 1000)), b"\xff" * 1000])
def test_drain_stops_at_the_byte_limit(pair: Pair, data: bytes) -> None:
    stop = threading.Event()

    def flood() -> None:
        try:
            while not stop.is_set():
                pair[0].sendall(data)
        except OSError:
            pass

    thread = in_thread(flood)
    connection = Connection.from_socket(pair[1])
    assert not connection.drain(20, limit_bytes=1_000_000)
    stop.set()
    connection.shutdown()
    connection.close()
    finish(thread)


def test_drain_after_reset_or_close_does_not_raise() -> None:
    first, second = tcp()
    first.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    first.close()
    connection = Connection.from_socket(second)
    assert connection.drain(5)
    connection.close()
    assert not connection.drain(5)


# -- files and pipes -------------------------------------------------------------------------------------------------------------------


def test_memory() -> None:
    sink = io.BytesIO()
    writer = Connection.from_files(None, sink, peer="sink")
    for message in [*SESSION, Close()]:
        writer.write(message)
    reader = Connection.from_files(io.BytesIO(sink.getvalue()), None)
    assert [content(m) for m in reader] == [content(m) for m in SESSION]
    assert (writer.peer, reader.peer) == ("sink", "memory")
    with pytest.raises(io.UnsupportedOperation, match="reading only"):
        reader.write(Close())
    with pytest.raises(EndOfStream):
        writer.read()


def test_file(tmp_path: Path) -> None:
    path = tmp_path / "stream.mrd"
    with Connection.from_files(None, path.open("wb")) as connection:
        for message in SESSION:
            connection.write(message)
    with Connection.from_files(path.open("rb"), None) as connection:
        assert connection.peer == str(path)
        assert [content(connection.read()) for _ in SESSION] == [content(m) for m in SESSION]
        with pytest.raises(EndOfStream, match="without CLOSE"):
            connection.read()
        assert connection.drain(1)


@pytest.mark.parametrize("buffering", [-1, 0])
def test_pipe_delivers_a_message_as_soon_as_it_is_there(buffering: int) -> None:
    """The reader must not wait until a buffer is full, nor for the writer to close."""
    out, into = os.pipe()
    with os.fdopen(out, "rb", buffering) as reader, os.fdopen(into, "wb") as writer:
        connection, other = Connection.from_files(reader, None), Connection.from_files(None, writer)
        for message in (readout(1, 4), readout(64, 512), Text("a")):
            thread = in_thread(lambda message=message: other.write(message))  # type: ignore[misc]
            assert content(connection.read()) == content(message)
            finish(thread)
        assert not connection.drain(0.05)


def test_named_pipe_that_breaks(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    thread = in_thread(lambda: path.write_bytes(sent(readout())[:-5]))
    with Connection.from_files(path.open("rb"), None) as connection, pytest.raises(EndOfStream, match="in the middle of ACQUISITION"):
        connection.read()
    finish(thread)
