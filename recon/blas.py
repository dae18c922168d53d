"""One thread for BLAS and LAPACK, so that matrix products and decompositions round the same whatever the machine's setting.

OpenBLAS splits sums by its number of threads: GRAPPA's weights and ESPIRiT's maps differed by 2e-6 between one and two. Its threads also
wait by spinning, which takes the cores from others. The work of a reconstruction is spread over coils and slabs instead
(`recon.nufft.run_each`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

_lock = threading.Lock()
_users = 0
_limit: Any = None


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keep NumPy's and SciPy's BLAS to one thread for as long as anyone in this process is in here; then as before.

    In their wheels the number belongs to the process: other threads' products are kept to one as well meanwhile. Libraries that count
    for each thread (MKL, OpenMP) are limited in this one.
    """
    controller = _controller()
    _count(1)
    try:
        with controller.limit(limits=1, user_api="blas"):
            yield
    finally:
        _count(-1)


def _count(change: int) -> None:
    """The first user sets the limit, the last one, who may be another, takes it back."""
    global _users, _limit
    with _lock:
        before, _users = _users, _users + change
        if before == 0:
            _limit = _aside(lambda: _controller().limit(limits=1, user_api="blas"))
        elif _users == 0:
            _aside(_limit.restore_original_limits)


def _aside(function: Callable[[], Any]) -> Any:
    """Call the function in a thread that ends: threadpoolctl lets none but the thread that set a limit change it, as long as it lives."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


@cache
def _controller() -> Any:
    # Each brings a library of its own, which is only found once it is loaded.
    import numpy
    import scipy.linalg
    from threadpoolctl import ThreadpoolController

    assert numpy
    assert scipy.linalg
    return ThreadpoolController()
