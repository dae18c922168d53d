"""One line a log entry: time, level, process, ``[measurement id]``, message."""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

FORMAT = "%(asctime)s.%(msecs)03d %(levelname)-7s %(process)d %(message)s"


def set_up(level: str = "INFO") -> None:
    """Send the log to stderr, ours at `level`, other packages' from WARNING on. Call it before TensorFlow is imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(FORMAT, "%Y-%m-%d %H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in ("reconstream", "service", "gadgets", "recon"):
        logging.getLogger(name).setLevel(level)
    logging.captureWarnings(True)


@contextmanager
def native_quiet() -> Iterator[None]:
    """Keep what native libraries write to stderr out of the log, unless the block fails; at level DEBUG all of it is logged.

    TensorFlow prints lines that no setting of its own silences while it is imported.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as heap:
        faulthandler.enable(kept)  # a crash must not be hidden
        os.dup2(heap.fileno(), 2)
        failed = True
        try:
            yield
            failed = False
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            heap.seek(0)
            text = heap.read()
            if failed:
                os.write(2, text)
            else:
                logging.getLogger(__name__).debug("native libraries said: %s", text.decode(errors="replace"))
            faulthandler.enable(2)
            os.close(kept)


def one_line(text: str, limit: int = 2000) -> str:
    """Text of a peer, fit for the log: no line breaks or control characters, bounded length."""
    clean = "".join(character if character.isprintable() else " " for character in text)
    return clean if len(clean) <= limit else clean[:limit] + "…"
