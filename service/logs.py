"""One line a log entry: time, level, process, ``[measurement id]``, message."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

FORMAT = "%(asctime)s.%(msecs)03d %(levelname)-7s %(process)d %(message)s"


OURS = ("reconstream", "service", "gadgets", "recon")
"""Loggers of this project."""


class StandardError(logging.StreamHandler):
    """Writes to what stderr is now: whoever has replaced it since (a program that calls the command line in-process) gets the log."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> Any:
        """The present stderr."""
        return sys.stderr


def set_up(level: str = "INFO") -> None:
    """Send the log to stderr, ours at `level`, other packages' from WARNING on. Call it before TensorFlow is imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    handler = StandardError()
    handler.setFormatter(logging.Formatter(FORMAT, "%Y-%m-%d %H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in OURS:
        logging.getLogger(name).setLevel(level)
    logging.captureWarnings(True)


def one_line(text: str, limit: int = 2000) -> str:
    """Text of a peer, fit for the log: no line breaks or control characters, bounded length."""
    clean = "".join(character if character.isprintable() else " " for character in text)
    return clean if len(clean) <= limit else clean[:limit] + "…"
