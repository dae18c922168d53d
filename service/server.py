"""The embedded server: accepts clients, lets them wait until a worker is warm, hands them over, and stands in for workers that die.

One loop in one thread, no TensorFlow: it listens within a second of its start and stays answerable whatever the workers do. It keeps a
handle to every client's socket, so that the client of a worker that died still learns why.
"""

from __future__ import annotations

import errno
import logging
import selectors
import signal
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from gadgets.items import Text
from service import logs
from service.folders import own_folder
from service.identity import new_session
from service.lobby import Arrival, answer_query, arrival
from service.pool import Job, Pool, Worker
from service.settings import Settings
from service.spool import Spool
from service.transport import Connection
from service.wire import Close, ErrorReport, WireError

logger = logging.getLogger(__name__)

MOST_SILENT = 256
"""Connections that have sent nothing yet; each costs a file descriptor."""


class ListenError(OSError):
    """The address cannot be listened on; the text says what to do."""


class Server:
    """`run` serves until `stop`, SIGTERM or SIGINT.

    dialect: ``client`` for Gadgetron's client protocol, ``gadgetron`` for the external side of its ``<connect>``.
    """

    def __init__(self, settings: Settings, dialect: str = "client") -> None:
        self.settings = settings
        self.dialect = dialect
        self.pool = Pool(settings)
        self.spool = Spool(Path(settings.spool), settings.spool_mib << 20) if settings.spool else None
        self._selector = selectors.DefaultSelector()
        self._listeners: list[socket.socket] = []
        self._silent: set[socket.socket] = set()
        self._queue: deque[Job] = deque()
        self._asking: deque[socket.socket] = deque()
        self._farewells: list[threading.Thread] = []
        self._stop_by: float | None = None
        self._wake, self._woken = socket.socketpair()

    # -- life ----------------------------------------------------------------------------------------------------------

    def listen(self) -> int:
        """Bind and listen; returns the port. Raises `ListenError`, or OSError when a folder of the settings cannot be used."""
        self._listeners = listen(self.settings.host, self.settings.port)
        if self.spool is not None:
            self.spool.prepare()
        if self.settings.storage is not None:
            own_folder(self.settings.storage, "storage")
        for listener in self._listeners:
            self._watch(listener, self._accept)
            logger.info("listening on %s port %d", *listener.getsockname()[:2])
        return int(self._listeners[0].getsockname()[1])

    def run(self) -> None:
        """Serve until stopped; then let running measurements finish, at most `grace_seconds`. Call `listen` first."""
        self._wake.setblocking(False)
        self._watch(self._woken, self._after_wake)
        try:
            while not self._done():
                self._fill_pool()
                for key, _ in self._selector.select(self._pause()):
                    key.data(key.fileobj)
                self._assign()
        finally:
            self._leave()

    def stop(self) -> None:
        """Accept no more clients and finish; a second call stops at once. May be called from a signal handler or another thread."""
        now = time.monotonic()
        self._stop_by = now + self.settings.grace_seconds if self._stop_by is None else now
        self._nudge()

    def _done(self) -> bool:
        if self._stop_by is None:
            return False
        if self._listeners:
            self._refuse_new()
        if time.monotonic() >= self._stop_by:
            for worker in self._busy():
                logger.warning("worker %d did not finish its measurement within %g s", worker.process.pid, self.settings.grace_seconds)
                worker.process.kill()
                self._bury(worker, "it was stopped with the server")
        return not self._busy()

    def _busy(self) -> list[Worker]:
        return [worker for worker in self.pool.workers if worker.job is not None]

    def _refuse_new(self) -> None:
        """Stop listening; clients that have no worker yet, those in the kernel's queue included, learn why."""
        logger.info("stopping: %d measurements are running", len(self._busy()))
        for listener in self._listeners:
            while self._accept(listener):
                pass
            self._forget(listener)
        self._listeners.clear()
        for client in self._silent:
            self._selector.unregister(client)
            self._queue.append(self._job(client))
        self._silent.clear()
        while self._queue:
            self._turn_away(self._queue.popleft(), "the server is shutting down; start the measurement again when it is back")

    def _leave(self) -> None:
        for worker in self.pool.workers:
            worker.control.close()
        deadline = time.monotonic() + 2
        for thread in self._farewells:
            thread.join(max(0.0, deadline - time.monotonic()))
        for worker in self.pool.workers:
            with suppress(subprocess.TimeoutExpired):
                worker.process.wait(max(0.0, deadline - time.monotonic()))
            worker.process.kill()
            worker.process.wait()
        logger.info("stopped")

    # -- the loop ------------------------------------------------------------------------------------------------------

    def _watch(self, readable: socket.socket, action: Callable[[Any], object]) -> None:
        self._selector.register(readable, selectors.EVENT_READ, action)

    def _forget(self, readable: socket.socket) -> None:
        self._selector.unregister(readable)
        readable.close()

    def _pause(self) -> float | None:
        """Seconds until something is due that no socket announces."""
        due = [] if self._stop_by is None else [max(0.0, self._stop_by - time.monotonic())]
        restart = self.pool.restart_in()
        if restart is not None and self._stop_by is None:
            due.append(restart)
        return min(due, default=None)

    def _nudge(self) -> None:
        with suppress(BlockingIOError):
            self._wake.send(b"!")

    def _after_wake(self, woken: socket.socket) -> None:
        woken.recv(4096)
        while self._asking:
            self._let_in(self._asking.popleft())

    def _fill_pool(self) -> None:
        if self._stop_by is None:
            for worker in self.pool.start_missing():
                self._watch(worker.control, partial(self._hear, worker))

    # -- clients -------------------------------------------------------------------------------------------------------

    def _accept(self, listener: socket.socket) -> bool:
        """Let one client in; False when there is none."""
        try:
            client, _ = listener.accept()
        except BlockingIOError:
            return False
        except OSError as error:  # it has gone already, or no file descriptor is left
            logger.warning("a connection could not be accepted: %s", error)
            time.sleep(0.1)
            return False
        keep_alive(client)
        if len(self._silent) >= MOST_SILENT:
            self._drop(next(iter(self._silent)))
        self._let_in(client)
        return True

    def _let_in(self, client: socket.socket) -> None:
        """Wait for the client's first bytes."""
        self._silent.add(client)
        self._watch(client, self._look)

    def _look(self, client: socket.socket) -> None:
        what = arrival(client)
        if what is Arrival.NOTHING:
            return
        if what is Arrival.GONE:
            self._drop(client)
            return
        self._silent.discard(client)
        self._selector.unregister(client)
        if what is Arrival.QUERY:
            threading.Thread(target=self._answer, args=(client,), daemon=True).start()
            return
        job = self._job(client)
        if len(self._queue) >= self.settings.waiting and self.pool.idle() is None:
            busy = f"all {self.settings.workers} workers are busy and {len(self._queue)} clients wait already"
            self._turn_away(job, f"{busy}; try again later, or raise 'workers' or 'waiting'")
            return
        self._queue.append(job)
        if self.pool.idle() is None:
            logger.info("[%s] %s waits for a worker (%d before it)", job.session, job.peer, len(self._queue) - 1)

    def _job(self, client: socket.socket) -> Job:
        return Job(client, new_session(), peer_name(client), self.dialect)

    def _answer(self, client: socket.socket) -> None:
        """Answer a query (in a thread of its own: the client may be slow), then look at what comes next."""
        try:
            answer_query(client)
        except (OSError, WireError) as error:
            logger.info("a query was not answered: %s", error)
            client.close()
            return
        self._asking.append(client)
        self._nudge()

    def _drop(self, client: socket.socket) -> None:
        self._silent.discard(client)
        self._forget(client)

    def _turn_away(self, job: Job, why: str) -> None:
        """Tell a client that there is no result, in a thread of its own: it may have much left to send."""
        logger.error("[%s] %s: %s", job.session, job.peer, why)
        thread = threading.Thread(target=self._farewell, args=(job, why), daemon=True)
        self._farewells = [other for other in self._farewells if other.is_alive()] + [thread]
        thread.start()

    def _farewell(self, job: Job, why: str) -> None:
        text = f"[server] ERROR: {why}"
        with Connection.from_socket(job.client, write_timeout=5) as connection, suppress(OSError):
            connection.write(ErrorReport(text) if job.dialect == "gadgetron" else Text(text))
            connection.write(Close())
            connection.shutdown(writing_only=True)
            connection.drain(self.settings.drain_seconds, self.settings.drain_mib << 20, self.settings.drain_silence_seconds)

    # -- workers -------------------------------------------------------------------------------------------------------

    def _assign(self) -> None:
        """Give waiting clients to idle workers."""
        while self._queue and (worker := self.pool.idle()) is not None:
            job = self._queue.popleft()
            if not self.pool.give(worker, job):
                self._queue.appendleft(job)
                self._bury(worker)
        if self.pool.failing:
            while self._queue:
                self._turn_away(self._queue.popleft(), "no worker process could be started; the server's log says why")

    def _hear(self, worker: Worker, _: socket.socket) -> None:
        message = worker.receive()
        if message is None:
            self._bury(worker)
        elif message["event"] == "warm":
            logger.info("worker %d is warm after %.1f s", worker.process.pid, message["seconds"])
            self.pool.became_warm(worker)
        elif worker.job is not None and message["event"] == "started":
            worker.job.started = True
        elif worker.job is not None:
            worker.job.client.close()
            self.pool.finished(worker, message["memory_mib"])

    def _bury(self, worker: Worker, why: str = "") -> None:
        """A worker has ended: its client learns why, what it had spooled is kept, the pool is refilled."""
        self._selector.unregister(worker.control)
        job, pid = worker.job, worker.process.pid
        died = self.pool.remove(worker)
        how = why or died
        if not worker.retired:
            logger.error("worker %d ended: %s", pid, how)
        if job is None:
            return
        if not job.started and self._stop_by is None:
            self._queue.appendleft(job)  # it died before it took the client: another one can
            return
        kept = self.spool.finish_abandoned(job.session) if self.spool is not None else None
        if kept is not None:
            logger.info("[%s] raw data kept as %s", job.session, kept)
        advice = f"the raw data are kept as {kept.name}; replay them with `reconstream replay`" if kept else "start the measurement again"
        self._turn_away(job, f"the worker process of this measurement ended: {how}; {advice}")


def serve(settings: Settings, dialect: str = "client") -> None:
    """Run a server in this process until SIGTERM or SIGINT. Raises `ListenError`."""
    logs.set_up(settings.log_level)
    server = Server(settings, dialect)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: server.stop())
    server.listen()
    server.run()


def listen(host: str, port: int) -> list[socket.socket]:
    """Listening sockets for a host name or address: ``localhost``, ``*`` (all), ``0.0.0.0``, ``::1``, ….

    IPv4 and IPv6 where the name has both and the machine knows both. Raises `ListenError`.
    """
    found: list[socket.socket] = []
    refusals: list[OSError] = []
    for family, address in _addresses(host):
        try:
            found.append(_listener(family, address, found[0].getsockname()[1] if found else port))
        except OSError as error:
            refusals.append(error)
            if error.errno in (errno.EADDRINUSE, errno.EACCES):  # half a server would be worse than none
                break
    fatal = [error for error in refusals if error.errno in (errno.EADDRINUSE, errno.EACCES)]
    if not found or fatal:
        for listener in found:
            listener.close()
        raise ListenError(f"cannot listen on {host} port {port}: {_why((fatal or refusals)[0], port)}")
    return found


def _why(error: OSError, port: int) -> str:
    """Cause and remedy."""
    remedies = {
        errno.EADDRINUSE: "is another server running? stop it, or choose another port (--port)",
        errno.EACCES: f"ports below 1024 need privileges; choose another port (--port), not {port}",
        errno.EADDRNOTAVAIL: "this machine has no such address; give one that it has, localhost or * (--host)",
    }
    return f"{error.strerror}; {remedies.get(error.errno or 0, 'choose another address or port (--host, --port)')}"


def _addresses(host: str) -> Iterable[tuple[int, str]]:
    both = {"localhost": ("127.0.0.1", "::1"), "*": ("0.0.0.0", "::"), "": ("0.0.0.0", "::")}
    if host in both:
        four, six = both[host]
        return [(socket.AF_INET, four), (socket.AF_INET6, six)]
    try:
        entries = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise ListenError(f"cannot listen on {host!r}: {error.strerror}; give an address of this machine, localhost or *") from error
    return dict.fromkeys((int(family), str(address[0])) for family, _, _, _, address in entries)


def _listener(family: int, address: str, port: int) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind((address, port))
        listener.listen(128)
        # A client that has gone again before it is accepted must not block the loop.
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def keep_alive(client: socket.socket) -> None:
    """Let the kernel notice within two minutes that the machine at the other end, or the way to it, has gone."""
    client.setblocking(True)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 6)):
        if hasattr(socket, option):
            client.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def peer_name(client: socket.socket) -> str:
    """Address and port of the other end, for the log."""
    try:
        host, port = client.getpeername()[:2]
    except OSError:
        return "a client that has gone"
    return f"{host} port {port}"
