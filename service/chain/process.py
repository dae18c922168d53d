"""A child process that runs one external module, and nothing of which is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

TAIL = 12
"""Last lines of output that an error repeats."""

# Linux kills the child when the thread that started it ends, so that even a killed server leaves none (gadgetron-python spins for ever
# on a closed socket). Without prctl (other systems) the child is only ended by `stop`.
_GUARD = """
import ctypes, os, signal, sys
try:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
except (OSError, AttributeError):
    pass
if os.getppid() != int(sys.argv[1]):
    sys.exit("the server has ended")
os.execvp(sys.argv[2], sys.argv[2:])
"""


class Child:
    """A process in a group of its own; what it prints goes line by line to `log`, and its last lines are kept.

    Raises OSError when it cannot be started.
    """

    def __init__(self, command: Sequence[str], environment: dict[str, str], log: Callable[[str], None]) -> None:
        self._lines: deque[str] = deque(maxlen=TAIL)
        self._log = log
        self._process = subprocess.Popen(
            [sys.executable, "-c", _GUARD, str(os.getpid()), *command],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self.pid = self._process.pid
        self._listener = threading.Thread(target=self._listen, name=f"output of {self.pid}", daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            for line in output:
                text = line.decode(errors="replace").rstrip()
                self._lines.append(text)
                self._log(text)

    @property
    def returncode(self) -> int | None:
        """Exit status, negative for a signal; None while it runs."""
        return self._process.poll()

    def wait(self, seconds: float) -> int | None:
        """Exit status once it has ended, None when that takes longer."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def stop(self, grace: float = 2.0) -> None:
        """End the process and everything it started: SIGTERM, then after `grace` seconds SIGKILL."""
        if self._process.poll() is None:
            self._signal(signal.SIGTERM)
            self.wait(grace)
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def last_words(self) -> str:
        """The last lines of its output, for an error; waits a moment for what is still in the pipe."""
        self._listener.join(1.0)
        return "".join(f"\n    {line}" for line in self._lines) or " nothing"
