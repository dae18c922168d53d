"""TensorFlow's start-up lines are held back, everything else comes through."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import os
from recon.quiet import without_chatter
try:
    with without_chatter():
        os.write(2, b"I0000 00:00:17 1 port.cc:153] oneDNN custom operations are on.\\n")
        os.write(2, b"E0000 00:00:17 1 cuda.cc:9] the driver is too old\\n")
        raise ImportError("no library")
except ImportError:
    os.write(2, b"afterwards\\n")
"""


def test_only_chatter_is_held_back() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == ["E0000 00:00:17 1 cuda.cc:9] the driver is too old", "afterwards"]


def test_a_warm_worker_starts_silently() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from recon import device; device.configure(gpu=False); device.warm_up()"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
