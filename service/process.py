"""A worker process: warm before it takes a client, one measurement at a time, told what to do through a Unix socket.

Started by `service.pool` as ``python -m service.process FD``. Messages on the socket are JSON, one a packet:

* to the worker: the settings once; then ``{"session": …, "dialect": …, "peer": …}`` with the client's socket attached;
* from the worker: ``{"event": "warm"}``; for each client ``{"event": "started"}`` before it reads from it, and in the end
  ``{"event": "done", "error": …, "memory_mib": …}``.

End of file on the socket means: the server is gone or has no more work; finish the measurement and exit.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from service import logs
from service.settings import Settings
from service.spool import Spool

logger = logging.getLogger("service.process")  # not __name__, which is __main__ here

PACKET = 2**16
"""Bytes of the longest message on the control socket."""


def main(descriptor: int) -> None:
    """Serve measurements until the server closes the control socket."""
    faulthandler.enable()
    # The server decides when workers stop; a terminal's ^C and a service manager's SIGTERM reach them too. A handler, unlike SIG_IGN, is
    # not handed down to external programs.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    control = socket.socket(fileno=descriptor)
    settings = Settings.model_validate_json(control.recv(PACKET))
    logs.set_up(settings.log_level)
    jobs: queue.SimpleQueue[tuple[dict[str, Any], int] | None] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(control, jobs, settings.grace_seconds), daemon=True).start()
    started = time.perf_counter()
    _warm_up(settings)
    gc.freeze()  # or each collection between measurements would visit all of TensorFlow: 0.1 s
    _send(control, event="warm", seconds=time.perf_counter() - started)
    while (job := jobs.get()) is not None:
        _send(control, event="started")
        error = serve(*job, settings=settings)
        gc.collect()
        _send(control, event="done", error=error, memory_mib=resident_mib())


def _receive(control: socket.socket, jobs: queue.SimpleQueue, grace_seconds: float) -> None:
    """Queue jobs. When the server has gone, give the running measurement its grace, then end the process."""
    while True:
        try:
            message, descriptors, _, _ = socket.recv_fds(control, PACKET, 1)
        except ConnectionResetError:
            message, descriptors = b"", []
        if not message:
            break
        os.set_inheritable(descriptors[0], False)
        jobs.put((json.loads(message), descriptors[0]))
    jobs.put(None)
    time.sleep(grace_seconds)
    os._exit(1)


def _send(control: socket.socket, **message: Any) -> None:
    try:
        control.send(json.dumps(message).encode())
    except OSError:
        logger.info("the server has gone; this worker ends")
        raise SystemExit(0) from None


def _warm_up(settings: Settings) -> None:
    """Pay for imports and first plans now, not in the first measurement."""
    import service.dialects
    from gadgets import stock
    from recon import device
    from recon.blas import one_blas_thread

    assert service.dialects
    with one_blas_thread():  # finds the libraries
        pass
    stock.gadgets()
    device.configure(gpu_memory_mib=settings.gpu_memory_mib, threads=settings.threads)
    if settings.warm_up:
        try:
            device.warm_up()
        except ImportError as error:
            logger.warning("%s; chains that need it will fail (install the extra 'cpu' or 'gpu')", error)
    for config, scan in settings.rehearse.items():
        _rehearse(config, scan)


def _rehearse(config: str, scan: Path) -> None:
    """Reconstruct a file for what stays warm in the process: plans, compiled networks, caches. A failure is told, and nothing else."""
    from service.local import reconstruct

    started = time.perf_counter()
    try:
        images = reconstruct(scan, config)
    except Exception as error:  # whatever is wrong with the file or the chain, scans with other chains must run
        logger.warning(
            "rehearsal of %s with %s failed (%s); its first scan will have to wait for what is not prepared", config, scan, error
        )
    else:
        logger.info("rehearsed %s: %d images in %.1f s", config, len(images), time.perf_counter() - started)


def serve(job: dict[str, Any], descriptor: int, *, settings: Settings) -> str | None:
    """One measurement on the socket `descriptor`. Returns the error, if there was one; raises nothing."""
    from service.dialects import serve_client, serve_gadgetron
    from service.session import Outcome
    from service.transport import Connection

    session: str = job["session"]
    logger.info("[%s] connection from %s", session, job["peer"])
    spooled = Spool(Path(settings.spool), settings.spool_mib << 20).open(session) if settings.spool else None
    outcome = Outcome(session)
    abort = threading.Timer(settings.gone_seconds, _abort, (session,))
    abort.daemon = True
    try:
        connection = Connection.from_socket(
            socket.socket(fileno=descriptor), tee=spooled.write if spooled else None, write_timeout=settings.send_seconds
        )
        run = serve_gadgetron if job["dialect"] == "gadgetron" else serve_client
        outcome = run(connection, settings=settings, session=session, on_gone=partial(_start_once, abort))
    except Exception as error:
        logger.exception("[%s] the session failed", session)
        outcome.error = f"{type(error).__name__}: {error}"
    abort.cancel()
    if spooled and outcome.started:
        kept = spooled.finish(outcome.measurement, complete=outcome.complete)
        if kept is not None:  # or the warning has said why not
            logger.info("[%s] raw data kept as %s", outcome.measurement, kept)
    elif spooled:
        spooled.discard()
    return outcome.error


def _start_once(timer: threading.Timer) -> None:
    with suppress(RuntimeError):  # both threads of a session may notice that the peer has gone
        timer.start()


def _abort(session: str) -> None:
    """End this process: nothing else stops a computation that nobody waits for."""
    logger.error("[%s] its client has gone, but the chain goes on computing; this worker ends (gone_seconds)", session)
    os._exit(1)


def resident_mib() -> int:
    """Resident memory of this process, now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") >> 20


if __name__ == "__main__":
    main(int(sys.argv[1]))
