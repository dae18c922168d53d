"""The raw stream of each measurement, kept as it arrives, so that a failed reconstruction can be replayed.

A measurement is written to ``<time>_<session>.part`` and renamed in one step when it is over: to ``<time>_<measurement id>.mrd`` after
CLOSE, to ``<time>_<measurement id>.incomplete.mrd`` when the stream broke off. The files hold the wire bytes from the first message on
(config included) and are read by `service.files.read_measurement`. They contain patient data: only the owner may read them.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from service.folders import own_folder

logger = logging.getLogger(__name__)

CHECK_EVERY = 64 * 2**20
"""Bytes between two looks at the size of the folder."""


class Spool:
    """A folder of raw streams, at most `limit` bytes of them; the oldest go first."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit

    def prepare(self) -> None:
        """Make the folder; finish what a server that was killed left behind. Raises OSError when the folder cannot be used."""
        own_folder(self.folder, "spool")
        for part in self.folder.glob("*.part"):
            if not _in_use(part):
                part.rename(_incomplete(part))

    def open(self, session: str) -> SpoolFile:
        """A file for the stream of `session`. Never raises: a spool that cannot be written must not cost the scan."""
        return SpoolFile(self, session)

    def finish_abandoned(self, session: str) -> Path | None:
        """Keep what a worker that died had written for `session`; None when there is nothing."""
        for part in self.folder.glob(f"*_{session}.part"):
            return part.rename(_incomplete(part))
        return None

    def make_room(self, needed: int = 0) -> None:
        """Delete the oldest finished streams until `needed` more bytes keep the folder within its limit."""
        entries = sorted(self._sizes())
        total = sum(size for _, size, _ in entries) + needed
        for _, size, path in entries:
            if total <= self.limit:
                return
            if path.suffix == ".mrd":
                logger.warning("spool: %s is full (%d MiB); deleting the oldest, %s", self.folder, self.limit >> 20, path.name)
                path.unlink(missing_ok=True)
                total -= size

    def _sizes(self) -> Iterator[tuple[float, int, Path]]:
        for path in self.folder.iterdir():
            if path.suffix in (".mrd", ".part"):
                with suppress(FileNotFoundError):  # another worker's .part has just become a .mrd, or room was made
                    status = path.stat()
                    yield status.st_mtime, status.st_size, path


class SpoolFile:
    """One measurement's stream. Write errors (disk full) end the spooling with a warning, never the measurement."""

    def __init__(self, spool: Spool, session: str) -> None:
        self._spool = spool
        self._stem = time.strftime("%Y%m%d-%H%M%S")
        self._part = spool.folder / f"{self._stem}_{session}.part"
        self._descriptor: int | None = None
        self._unchecked = 0
        self._written = 0
        try:
            spool.make_room()
            self._descriptor = os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        except OSError as error:
            self._give_up(error)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append received bytes."""
        if self._descriptor is None:
            return
        view = memoryview(data).cast("B")
        try:
            self._check_size(len(view))
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError as error:
            self._give_up(error)

    def finish(self, measurement: str, *, complete: bool) -> Path | None:
        """Close and rename. `measurement` is an id that no other measurement has.

        Returns the final path; None when the spooling had ended early (what was written stays, as incomplete).
        """
        if self._descriptor is None:
            return None
        ending = ".mrd" if complete else ".incomplete.mrd"
        try:
            return self._part.rename(self._part.with_name(f"{self._stem}_{safe_name(measurement)}{ending}"))
        except OSError as error:
            self._give_up(error)
            return None
        finally:
            self._close()

    def discard(self) -> None:
        """Delete the file: the connection never became a measurement."""
        if self._descriptor is not None:
            self._part.unlink(missing_ok=True)
            self._close()

    def _check_size(self, more: int) -> None:
        self._unchecked += more
        self._written += more
        if self._written > self._spool.limit:
            raise OSError(f"the measurement alone exceeds the folder's limit of {self._spool.limit >> 20} MiB (spool_mib)")
        if self._unchecked >= CHECK_EVERY:
            self._unchecked = 0
            self._spool.make_room(CHECK_EVERY)

    def _give_up(self, error: OSError) -> None:
        logger.warning("spool: %s: %s; this measurement goes on without its raw data being kept", self._part, error)
        if self._descriptor is not None:
            with suppress(OSError):
                self._part.rename(_incomplete(self._part))
        self._close()

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def safe_name(measurement: str) -> str:
    """A measurement id (sent by a client) as part of a file name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", measurement).strip(".-")[:80] or "unknown"


def _incomplete(part: Path) -> Path:
    return part.with_suffix(".incomplete.mrd")


def _in_use(part: Path) -> bool:
    """Whether a living process writes the file (it holds the lock)."""
    try:
        descriptor = os.open(part, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(descriptor)
