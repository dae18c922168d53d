"""How fast readouts come in, against the ceiling of the socket and against the other Python readers, in the same run.

    python scripts/bench_wire.py [--runs 5] [--quick] [--json FILE]

The sender is another process and the same for every reader; readers take turns. Printed are medians over the runs, and the rate as a
part of the raw one: median of the ratios within each run, and best run over best run (the figure that other load disturbs least).
Raw is a loop of ``recv_into`` into one buffer of a message's size that is never looked at; peers are gadgetron's `Connection` and
ismrmrd's `Acquisition.deserialize_from` over a buffered file.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from gadgets.items import Acquisition
from gadgets.layout import clone
from service.files import read_measurement, write_measurement
from service.transport import Connection
from service.wire import Close, Config, HeaderXml, encode

RAW = "raw recv_into, one message"
HEADER = (
    b'<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><experimentalConditions>'
    b"<H1resonanceFrequency_Hz>123000000</H1resonanceFrequency_Hz></experimentalConditions></ismrmrdHeader>"
)
PRELUDE = b"".join(map(bytes, [*encode(Config(b"<configuration/>")), *encode(HeaderXml(HEADER))]))


def readout(channels: int, samples: int) -> Acquisition:
    """A readout of noise."""
    rng = np.random.default_rng(1)
    values = rng.standard_normal((channels, 2 * samples), dtype=np.float32)
    return Acquisition(None, values.view(np.complex64))


def wire(channels: int, samples: int) -> bytes:
    """The same readout as it goes over the wire."""
    return b"".join(map(bytes, encode(readout(channels, samples))))


# -- the other process -----------------------------------------------------------------------------------------------------------------


def send(number: int, channels: int, samples: int, count: int) -> None:
    """Write prelude, `count` readouts and CLOSE to the socket with this file number, as fast as it takes them."""
    message = wire(channels, samples)
    batch = max(1, min(count, (1 << 20) // len(message)))
    block = memoryview(message * batch)
    with socket.socket(fileno=number) as sock:
        sock.sendall(PRELUDE)
        for done in range(0, count, batch):
            sock.sendall(block[: len(message) * min(batch, count - done)])
        sock.sendall(bytes(encode(Close())[0]))
        sock.recv(1)


def echo(number: int) -> None:
    """Send every message back."""
    with Connection.from_socket(socket.socket(fileno=number)) as connection:
        for message in connection:
            connection.write(message)


def echo_gadgetron(number: int) -> None:
    """The same with gadgetron-python."""
    import gadgetron

    with gadgetron.external.Connection(socket.socket(fileno=number)) as connection:
        for item in connection:
            connection.send(item)


def pair(kind: str) -> tuple[socket.socket, socket.socket]:
    """Two connected sockets."""
    if kind == "socketpair":
        return socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        return server.accept()[0], client


def other(kind: str, *command: Any) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """Start this script as the other process; our end of the connection, and the process."""
    ours, theirs = pair(kind)
    process = subprocess.Popen(
        [sys.executable, __file__, "--other", command[0], str(theirs.fileno()), *map(str, command[1:])], pass_fds=[theirs.fileno()]
    )
    theirs.close()
    return ours, process


# -- readers: socket -> number of readouts ---------------------------------------------------------------------------------------------


def raw(size: int) -> Callable[[socket.socket, int], None]:
    """The ceiling: receive that many bytes into one buffer of `size`."""

    def read(sock: socket.socket, total: int) -> None:
        buffer = memoryview(bytearray(size))
        while total:
            at = 0
            while at < size and total:
                got = sock.recv_into(buffer[at:])
                at, total = at + got, total - got

    return read


def ours(sock: socket.socket, total: int) -> None:
    """reconstream: every readout as an item with its arrays."""
    for _ in Connection.from_socket(sock):
        pass


def gadgetron_connection(sock: socket.socket, total: int) -> None:
    """gadgetron-python's Connection."""
    import gadgetron

    for _ in gadgetron.external.Connection(sock):
        pass


def ismrmrd_buffered(sock: socket.socket, total: int) -> None:
    """ismrmrd's own deserialiser over a buffer of 1 MiB."""
    import ismrmrd

    with sock.makefile("rb", buffering=1 << 20) as file:
        file.read(len(PRELUDE))
        while struct.unpack("<H", file.read(2))[0] != 4:
            ismrmrd.Acquisition.deserialize_from(file.read)


def measure_reading(kind: str, channels: int, samples: int, count: int, runs: int) -> dict[str, Any]:
    """Readouts per second and CPU time per readout of every reader."""
    size = len(wire(channels, samples))
    total = len(PRELUDE) + count * size + 2
    readers: dict[str, Callable[[socket.socket, int], None]] = {
        RAW: raw(size),
        "raw recv_into, 256 KiB": raw(256 << 10),
        "reconstream": ours,
        "ismrmrd deserialize_from": ismrmrd_buffered,
        "gadgetron Connection": gadgetron_connection,
    }
    rates: dict[str, list[float]] = {name: [] for name in readers}
    cpu: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(runs):
        for name, reader in readers.items():
            sock, process = other(kind, "send", channels, samples, count)
            with sock:
                sock.recv(1, socket.MSG_PEEK)  # the sender has started
                start, used = time.perf_counter(), time.process_time()
                reader(sock, total)
                rates[name].append(count / (time.perf_counter() - start))
                cpu[name].append((time.process_time() - used) / count * 1e6)
            process.wait()
    ceiling = rates[RAW]
    rows = {
        name: {
            "per_s": statistics.median(values),
            "best_per_s": max(values),
            "gb_per_s": statistics.median(values) * size / 1e9,
            "cpu_us": statistics.median(cpu[name]),
            "of_raw": statistics.median(value / raw for value, raw in zip(values, ceiling, strict=True)),
            "best_of_best_raw": max(values) / max(ceiling),
        }
        for name, values in rates.items()
    }
    return {"what": f"{channels} x {samples} ({size:,} B) over {kind}", "count": count, "rows": rows}


# -- answers and files -----------------------------------------------------------------------------------------------------------------


def measure_answers(kind: str, peer: str, channels: int, samples: int, count: int) -> dict[str, Any]:
    """Time from sending a readout to having it back through a pass-through in another process."""
    sock, process = other(kind, peer)
    item = readout(channels, samples)
    times = []
    with Connection.from_socket(sock) as connection:
        if peer == "echo-gadgetron":
            connection.write_raw([PRELUDE])
        for _ in range(count + 20):
            start = time.perf_counter()
            connection.write(item)
            connection.read()
            times.append((time.perf_counter() - start) * 1e6)
        connection.write(Close())
        process.wait()
    times = sorted(times[20:])
    return {
        "what": f"{channels} x {samples} over {kind}, {peer}",
        "median_us": statistics.median(times),
        "p99_us": times[int(0.99 * len(times))],
        "max_us": times[-1],
        "stalls_over_20_ms": sum(t > 20_000 for t in times),
    }


def measure_files(count: int, runs: int) -> dict[str, Any]:
    """Readouts of 32 x 512 per second from HDF5."""
    import h5py
    import ismrmrd

    def numbered() -> Any:
        item = readout(32, 512)
        for i in range(count):
            header = clone(item.header)
            header["scan_counter"] = i
            yield Acquisition(header, item.data)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scan.h5"
        start = time.perf_counter()
        write_measurement(path, HEADER, numbered())
        rows = {"reconstream write_measurement": count / (time.perf_counter() - start)}

        def items() -> None:
            for _ in read_measurement(path).items():
                pass

        def slices() -> None:
            with h5py.File(path) as file:
                data = file["dataset/data"]
                for i in range(0, len(data), 256):
                    data[i : i + 256]

        def file_all() -> None:
            with ismrmrd.File(path, "r") as file:
                file["dataset"].acquisitions[:]

        def one_by_one() -> None:
            with closing(ismrmrd.Dataset(str(path), "dataset", False)) as dataset:
                for i in range(min(count, 200)):
                    dataset.read_acquisition(i)

        readers = {"reconstream items": items, "h5py slices of 256": slices, "ismrmrd.File [:]": file_all}
        for name, reader in readers.items():
            seconds = []
            for _ in range(runs):
                start = time.perf_counter()
                reader()
                seconds.append(time.perf_counter() - start)
            rows[name] = count / statistics.median(seconds)
        start = time.perf_counter()
        one_by_one()
        rows["ismrmrd.Dataset.read_acquisition"] = min(count, 200) / (time.perf_counter() - start)
    return {"what": f"HDF5, {count} readouts of 32 x 512", "per_s": rows}


def report(results: dict[str, Any]) -> None:
    """Print the tables."""
    for case in results["reading"]:
        print(f"\n{case['what']}, {case['count']:,} readouts")
        print(f"{'reader':28} {'readouts/s':>11} {'best':>9} {'GB/s':>6} {'CPU us':>7} {'of raw':>7} {'best/best':>9}")
        for name, row in case["rows"].items():
            print(
                f"{name:28} {row['per_s']:11,.0f} {row['best_per_s']:9,.0f} {row['gb_per_s']:6.2f} {row['cpu_us']:7.2f} "
                f"{row['of_raw']:7.2f} {row['best_of_best_raw']:9.2f}"
            )
    print(f"\n{'answer time through a pass-through':44} {'median us':>9} {'p99 us':>9} {'max us':>9} {'> 20 ms':>8}")
    for row in results["answers"]:
        print(f"{row['what']:44} {row['median_us']:9.0f} {row['p99_us']:9.0f} {row['max_us']:9.0f} {row['stalls_over_20_ms']:8}")
    print(f"\n{results['files']['what']}")
    for name, rate in results["files"]["per_s"].items():
        print(f"{name:34} {rate:9,.0f} per s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a tenth of the messages")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--other", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.other:
        name, *numbers = options.other
        {"send": send, "echo": echo, "echo-gadgetron": echo_gadgetron}[name](*map(int, numbers))
        return
    part = 10 if options.quick else 1
    results = {
        "reading": [
            measure_reading("socketpair", 32, 512, 20_000 // part, options.runs),
            measure_reading("tcp", 32, 512, 20_000 // part, options.runs),
            measure_reading("socketpair", 8, 128, 100_000 // part, options.runs),
            measure_reading("tcp", 8, 128, 100_000 // part, options.runs),
        ],
        "answers": [
            measure_answers("tcp", "echo", 1, 16, 2000 // part),
            measure_answers("tcp", "echo", 8, 128, 2000 // part),
            measure_answers("tcp", "echo", 32, 512, 2000 // part),
            measure_answers("tcp", "echo-gadgetron", 1, 16, 200 // part),
        ],
        "files": measure_files(4000 // part, options.runs),
    }
    report(results)
    if options.json:
        options.json.write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
