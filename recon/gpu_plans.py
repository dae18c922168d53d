"""cuFINUFFT plans, few and used again: a plan belongs to a shape and is given the points of one trajectory after another.

Making a plan takes 2 ms on an H200 (the first of a size 80), giving it other points 0.05 ms, a transform 0.1 ms. All work
goes to the null stream, so that it needs no waiting between transforms and other work of CuPy.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from recon.nufft import Nufft

logger = logging.getLogger(__name__)

GPU_BATCH = 32
"""Most transforms in one GPU call; bounds the memory of a plan."""
POOLED_PLANS = 24
"""Plans kept on the GPU, of all shapes."""
ALIKE_PLANS = 12
"""Plans kept of the same shape, each with the points of a trajectory: the rotations of real-time spirals, which then cost 0.2 ms less."""


@dataclass(eq=False)
class _Slot:
    kind: Hashable
    plan: Any
    points: Any = None


class PlanPool:
    """At most `size` plans, at most `alike` of a kind; the least recently used one goes, or takes other points."""

    def __init__(self, size: int, alike: int) -> None:
        self.size, self.alike = size, alike
        self._slots: list[_Slot] = []  # the one used last at the end

    def __len__(self) -> int:
        return len(self._slots)

    def get(self, kind: Hashable, points: list[Any], make: Callable[[], Any]) -> Any:
        """A plan of this kind with these points (told by identity); `make` makes one without points."""
        alike = [slot for slot in self._slots if slot.kind == kind]
        slot = next((slot for slot in alike if slot.points is points), None)
        if slot is None and len(alike) >= self.alike:
            slot = alike[0]
        if slot is None:
            del self._slots[: max(0, len(self._slots) + 1 - self.size)]
            slot = _Slot(kind, make())
        else:
            self._slots.remove(slot)
        if slot.points is not points:
            slot.plan.setpts(*points)
            slot.points = points
        self._slots.append(slot)
        return slot.plan

    def clear(self) -> None:
        """Free all plans."""
        self._slots.clear()


_pool = PlanPool(POOLED_PLANS, ALIKE_PLANS)
_lock = threading.RLock()


def clear_pool() -> None:
    """Free the GPU memory of all plans."""
    with _lock:
        _pool.clear()


@contextmanager
def null_stream() -> Iterator[None]:
    """Queue on the null stream, after all that CuPy's current stream has been asked and before all it will be."""
    import cupy

    current = cupy.cuda.get_current_stream()
    if current.ptr:
        wait_for(current)
    with cupy.cuda.Stream.null:
        yield
    if current.ptr:
        wait_for(cupy.cuda.Stream.null)


def wait_for(stream: Any) -> None:
    """Wait until the GPU has done all that this stream has been asked."""
    stream.synchronize()


class GpuPlans:
    """The GPU's side of a `recon.nufft.Nufft`: its points on the GPU, and plans of both types for batches of any size."""

    def __init__(self, nufft: Nufft) -> None:
        self.nufft = nufft
        self.points: list[Any] = []
        self.largest = GPU_BATCH

    def execute(self, source: Any, adjoint: bool) -> Any:
        """Transform NumPy or CuPy `source`; returns the same kind. MemoryError when not even one transform fits.

        A CuPy result is ready in the order of the current stream, not yet for the host.
        """
        import cupy

        try:
            values = cupy.ascontiguousarray(cupy.asarray(source), dtype=self.nufft.dtype)
            shape = self.nufft.image_shape if adjoint else (self.nufft.samples,)
            result = cupy.empty((values.shape[0], *shape), self.nufft.dtype)
            with null_stream():
                self.execute_into(values, result, adjoint)
            return result if isinstance(source, cupy.ndarray) else result.get()
        except cupy.cuda.memory.OutOfMemoryError as error:
            raise MemoryError(str(error)) from error

    def execute_into(self, source: Any, result: Any, adjoint: bool) -> None:
        """Transform CuPy `[n, ...]` into CuPy `result` on the null stream, in batches that fit; does not wait for the GPU."""
        import cupy

        with _lock, cupy.cuda.Stream.null:
            start = 0
            while start < source.shape[0]:
                size = min(self.largest, source.shape[0] - start)
                part = slice(start, start + size)
                try:
                    self.plan(adjoint, size).execute(source[part], out=result[part])
                except (RuntimeError, cupy.cuda.memory.OutOfMemoryError) as error:
                    self.shrink(size, error)
                    continue
                start += size
            result *= self.nufft.scale

    def shrink(self, size: int, error: Exception) -> None:
        """Make room: drop all plans and halve the batch."""
        import cupy

        _pool.clear()
        cupy.get_default_memory_pool().free_all_blocks()
        if size == 1:
            raise MemoryError(str(error)) from error
        self.largest = (size + 1) // 2
        logger.warning("GPU NUFFT of %d transforms failed (%s); trying %d at once", size, error, self.largest)

    def plan(self, adjoint: bool, size: int) -> Any:
        """A plan with this trajectory's points, of type 1 (adjoint) or 2."""
        import cufinufft
        import cupy

        nufft = self.nufft
        if not self.points:
            self.points = list(cupy.asarray(np.stack(nufft.points)))

        def make() -> Any:
            return cufinufft.Plan(
                1 if adjoint else 2,
                nufft.image_shape,
                n_trans=size,
                eps=nufft.tolerance,
                isign=1 if adjoint else -1,
                dtype=nufft.dtype.name,
                gpu_maxbatchsize=size,
                gpu_method=spreading_method(adjoint, len(nufft.image_shape), nufft.dtype),
            )

        return _pool.get((adjoint, nufft.image_shape, size, nufft.tolerance, nufft.dtype.name), self.points, make)


def spreading_method(adjoint: bool, rank: int, dtype: np.dtype) -> int:
    """How cuFINUFFT spreads and interpolates: 1 goes by points, 2 by blocks in shared memory, 0 is its own choice.

    Measured on an H200 for 10 coils of 240 x 240 and 17,565 radial samples: spreading (type 1) by points takes 0.11 ms, by
    blocks, its own choice, 0.5 ms; interpolation (type 2) by points, its own choice, 1.05 ms, by blocks 0.15 ms. The relation
    is similar in three dimensions, where blocks of double precision may not fit into shared memory; in one there are none.
    """
    if adjoint:
        return 1
    return 2 if rank == 2 or (rank == 3 and dtype == np.complex64) else 0
