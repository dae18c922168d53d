"""Worker processes that are warm before a client comes, and are replaced when they die or have grown old.

Processes, not threads: measurements do not share a GIL or a heap, and a crash in native code takes one measurement with it, not all.
Started afresh (not forked), because CUDA and TensorFlow do not survive a fork.
"""

from __future__ import annotations

import json
import logging
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from service.process import PACKET
from service.settings import Settings

logger = logging.getLogger(__name__)

SLOWEST_RESTART = 30.0
"""Seconds between attempts when workers keep dying before they are warm."""


@dataclass
class Job:
    """A client that waits for a worker or is served by one."""

    client: socket.socket
    session: str
    peer: str
    dialect: str = "client"
    started: bool = False
    """The worker may have read from it, so no other worker can take it over."""


@dataclass(eq=False)
class Worker:
    """One process. `job` is what it works on."""

    process: subprocess.Popen[bytes]
    control: socket.socket
    warm: bool = False
    retired: bool = False
    job: Job | None = None
    measurements: int = 0
    started: float = field(default_factory=time.monotonic)

    @property
    def idle(self) -> bool:
        """Ready for a client."""
        return self.warm and self.job is None and not self.retired

    def receive(self) -> dict[str, Any] | None:
        """The next message of the worker; None when it has ended."""
        try:
            message = self.control.recv(PACKET)
        except OSError:
            return None
        return dict(json.loads(message)) if message else None

    def end(self) -> str:
        """Wait for the process (its control socket has been closed) and say how it ended."""
        self.control.close()
        try:
            code = self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        if code < 0:
            hint = "; the machine may be out of memory" if -code == signal.SIGKILL else ""
            return f"it was killed by {signal.Signals(-code).name}{hint}"
        return f"it exited with status {code}"


class Pool:
    """Keeps `settings.workers` processes. Not thread-safe: the server's loop owns it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._early_deaths = 0
        self._next_start = 0.0
        self.workers: list[Worker] = []

    @property
    def failing(self) -> bool:
        """Workers keep dying before they are warm, and none is."""
        return self._early_deaths >= 3 and not any(worker.warm for worker in self.workers)

    def start_missing(self) -> Iterator[Worker]:
        """Start what is missing, as far as earlier failures allow; yields the new workers."""
        while len(self.workers) < self._settings.workers and time.monotonic() >= self._next_start:
            worker = self._start()
            self.workers.append(worker)
            yield worker

    def restart_in(self) -> float | None:
        """Seconds until a missing worker may be started; None when none is missing."""
        return max(0.0, self._next_start - time.monotonic()) if len(self.workers) < self._settings.workers else None

    def _start(self) -> Worker:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "service.process", str(theirs.fileno())], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
            )
        ours.send(self._settings.model_dump_json().encode())
        return Worker(process, ours)

    def became_warm(self, worker: Worker) -> None:
        """Note that a worker can take clients."""
        worker.warm = True
        self._early_deaths = 0

    def idle(self) -> Worker | None:
        """A worker that can take a client; the one used last, whose caches are warmest."""
        return max((w for w in self.workers if w.idle), key=lambda w: w.measurements, default=None)

    def give(self, worker: Worker, job: Job) -> bool:
        """Hand the client over; False when the worker has just died. The server keeps its own handle to the socket."""
        order = {"session": job.session, "dialect": job.dialect, "peer": job.peer}
        try:
            socket.send_fds(worker.control, [json.dumps(order).encode()], [job.client.fileno()])
        except OSError:
            return False
        worker.job = job
        worker.measurements += 1
        return True

    def finished(self, worker: Worker, memory_mib: int) -> None:
        """Note the end of a measurement; a worker that has become too old or too large takes no more."""
        worker.job = None
        old = worker.measurements >= self._settings.worker_measurements
        large = memory_mib > self._settings.worker_memory_mib
        if old or large:
            reason = f"it uses {memory_mib} MiB" if large else f"it has served {worker.measurements} measurements"
            logger.info("worker %d is replaced: %s", worker.process.pid, reason)
            worker.retired = True
            worker.control.shutdown(socket.SHUT_WR)

    def remove(self, worker: Worker) -> str:
        """Take a worker that has ended out of the pool; returns how it ended."""
        how = worker.end()
        self.workers.remove(worker)
        if not worker.warm:
            self._early_deaths += 1
            self._next_start = time.monotonic() + min(SLOWEST_RESTART, 2.0**self._early_deaths / 2)
        return how
