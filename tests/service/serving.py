"""A server process for tests: started with settings from the environment, as an operator would."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

from tests.service.peer import LIMIT, ROOT, Peer, measure, wait_for

START = """
import sys
from service.settings import Settings
{start}
"""
DOORS = {
    "client": "from service.server import serve; serve(Settings.load())",
    "gadgetron": "from service.worker import *; serve_worker(Settings.load())",
}


class Server:
    """``reconstream serve`` (or ``worker``) as a child process on a free port; a context manager that ends it."""

    def __init__(self, dialect: str = "client", path: Path | None = None, **settings: object) -> None:
        chosen = {"port": 0, "warm_up": "false", "workers": 1, "allow_external": "true", "drain_silence_seconds": 2, **settings}
        environment = {key: value for key, value in os.environ.items() if not key.startswith("RECONSTREAM_")}
        environment |= {f"RECONSTREAM_{name.upper()}": str(value) for name, value in chosen.items()}
        environment["PYTHONPATH"] = os.pathsep.join(str(part) for part in (path, ROOT) if part)
        environment["OMP_NUM_THREADS"] = "1"
        self.process = subprocess.Popen(
            [sys.executable, "-c", START.format(start=DOORS[dialect])], env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        wait_for(lambda: self.find(r"listening on \S+ port (\d+)") or self.process.poll() is not None, "the server to listen")
        assert self.process.poll() is None, self.log
        self.port = int(self.find(r"listening on \S+ port (\d+)")[0])

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.lines.extend(iter(self.process.stderr.readline, ""))  # appends each line as it comes

    @property
    def log(self) -> str:
        return "".join(self.lines)

    def find(self, pattern: str) -> list[str]:
        """All matches in the log."""
        return re.findall(pattern, self.log)

    def peer(self, host: str = "127.0.0.1") -> Peer:
        return Peer.connect(self.port, host)

    def serves(self) -> None:
        """A measurement works."""
        found = measure(self.peer(), 2)
        assert len(found) == 2, found

    def warm(self, number: int = 1) -> Server:
        """Wait until so many workers have become warm."""
        wait_for(lambda: len(self.find("is warm after")) >= number, f"{number} warm workers; the log: {self.log}")
        return self

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(LIMIT)
        self._reader.join(LIMIT)
        return status

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(LIMIT)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
