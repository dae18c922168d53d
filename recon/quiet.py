"""Import TensorFlow without its start-up chatter."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import re
import sys
import tempfile
from collections.abc import Iterator

CHATTER = re.compile(
    rb"absl::InitializeLog|oneDNN custom operations|^I0000 |^W0000 |cpu_feature_guard|To enable the following instructions"
    rb"|computation_placer|Unable to register cu|computation placer already registered|^\d{4}-\d\d-\d\d \S+ I "
)
"""Lines that say nothing about the service. TensorFlow 2.21 prints them whatever TF_CPP_MIN_LOG_LEVEL says."""


@contextlib.contextmanager
def without_chatter() -> Iterator[None]:
    """Hold back what native libraries write to standard error; afterwards pass on all but TensorFlow's start-up lines.

    For the start of a process, before it has threads that log: standard error is redirected for the whole process.
    """
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        kept = os.dup(2)
        crashes = faulthandler.is_enabled()
        if crashes:
            faulthandler.enable(kept)  # a crash must not be held back
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            if crashes:
                faulthandler.enable(2)
            os.close(kept)
            held.seek(0)
            rest = b"".join(line for line in held if not CHATTER.search(line))
            if rest:
                os.write(2, rest)
