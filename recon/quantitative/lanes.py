"""How blocks of slices travel: from arrays on the host to a device and back, while the device computes on another block."""

from __future__ import annotations

import itertools
import mmap
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recon import device
from recon.quantitative.copies import GpuCopies, TensorFlowCopies

HALO = 2
"""Slices that a block sees of its neighbours: differences reach one slice, and both an operator and its adjoint are applied."""
_AHEAD = 2
"""Blocks on a GPU beside the one it works on: one that comes or waits, one that goes or has come."""


@dataclass(frozen=True)
class Blocks:
    """How to cut a volume and where to compute.

    Attributes:
        slices: of a block; the last one may have fewer.
        devices: names of TensorFlow devices, which get blocks in turn; empty for all GPUs in use, else the CPU.
        ahead: blocks that are copied to a device beforehand, and back afterwards, while it computes; None for 2 on GPUs and for 0 on
            the CPU, where copies would only compete with the computation.
        folder: where arrays of the whole volume lie in files that vanish at the end; None for the host's memory.
        compiled: iterations by XLA, after some seconds of compiling; None for that on a GPU and for large blocks.
    """

    slices: int
    devices: tuple[str, ...] = ()
    ahead: int | None = None
    folder: Path | None = None
    compiled: bool | None = None

    def __post_init__(self) -> None:
        if self.slices < 1:
            raise ValueError(f"a block must have at least 1 slice, not {self.slices}")
        if self.ahead is not None and self.ahead < 0:
            raise ValueError(f"ahead must be at least 0 blocks, not {self.ahead}")

    def spans(self, total: int) -> list[Span]:
        """The blocks of a volume of so many slices."""
        cuts = [*range(0, total, self.slices), total]
        return [Span.of(first, last, total) for first, last in itertools.pairwise(cuts)]

    def lanes(self) -> Lanes:
        """What moves them."""
        names = self.devices or (available() if device.use_gpu() else ("CPU:0",))
        ahead = (0 if all("CPU" in name for name in names) else _AHEAD) if self.ahead is None else self.ahead
        return Lanes(names, ahead)


def available() -> tuple[str, ...]:
    """Names of the GPUs in use, or where there is none of TensorFlow's CPU devices."""
    import tensorflow as tf

    return tuple(one.name for one in tf.config.list_logical_devices("GPU" if device.use_gpu() else "CPU"))


def numbered(numbers: Sequence[int]) -> tuple[str, ...]:
    """Names of devices by their number among those available. Raises ValueError for one that is not there."""
    names = available()
    missing = [number for number in numbers if not 0 <= number < len(names)]
    if missing:
        raise ValueError(f"there is no device {missing[0]}: {len(names)} found, counted from 0 ({', '.join(names)})")
    return tuple(names[number] for number in numbers)


@dataclass(frozen=True)
class Span:
    """Slices `first` to `last` of a volume, seen with neighbours from `start` to `stop`.

    All blocks of as many slices see as many neighbours, so that one graph serves them.
    """

    first: int
    last: int
    start: int
    stop: int

    @classmethod
    def of(cls, first: int, last: int, total: int) -> Span:
        """With neighbours in a volume of so many slices."""
        size = min(total, last - first + 2 * HALO)
        start = min(max(first - HALO, 0), total - size)
        return cls(first, last, start, start + size)

    @property
    def width(self) -> int:
        """Number of slices without neighbours."""
        return self.last - self.first

    def own(self, array: np.ndarray) -> np.ndarray:
        """The block of `[..., slice, y, x]` without neighbours; an array of one slice for all is kept."""
        return self._cut(array, self.first, self.last)

    def wide(self, array: np.ndarray) -> np.ndarray:
        """With neighbours."""
        return self._cut(array, self.start, self.stop)

    def _cut(self, array: np.ndarray, first: int, last: int) -> np.ndarray:
        return array if array.shape[-3] == 1 else array[..., first:last, :, :]


class Volumes:
    """Makes arrays of whole volumes, on the host, in memory or in files without a name.

    Args:
        folder: of the files; None for memory.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._maps: list[mmap.mmap] = []

    def zeros(self, shape: Sequence[int], dtype: Any) -> np.ndarray:
        """An array of zeros."""
        kind = np.dtype(dtype)
        size = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
        if self.folder is None or size == 0:
            return np.zeros(shape, kind)
        with tempfile.TemporaryFile(dir=self.folder) as file:
            file.truncate(size)
            self._maps.append(mmap.mmap(file.fileno(), size))
        return np.frombuffer(self._maps[-1], kind).reshape(tuple(shape))

    def release(self) -> None:
        """Let go of the memory that shows the files; what was written stays in them."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for one in self._maps:
                one.madvise(mmap.MADV_DONTNEED)


@dataclass
class Times:
    """Where the time of passes over blocks went, seconds of all devices together, and what was copied.

    Attributes:
        wall: from beginning to end of the passes.
        up, down: copies from host to device, with the gathering of their parts, and back, with the storing. A copy that is asked for
            while a GPU computes begins afterwards, and the time until then is its own.
        computed: the devices computed.
        waited: they did not, because of copies.
        bytes_up, bytes_down: bytes copied.
    """

    wall: float = 0.0
    up: float = 0.0
    down: float = 0.0
    computed: float = 0.0
    waited: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0

    @property
    def hidden(self) -> float | None:
        """Share of the time of copies during which devices computed; None before the first copy."""
        copied = self.up + self.down
        return max(0.0, 1 - self.waited / copied) if copied else None


class Lanes:
    """Devices, each with a thread that gives it work and two that copy. Use it as a context manager.

    Args:
        devices: names; one that is named twice gets work from two threads.
        ahead: see `Blocks`.

    Attributes:
        times: since `reset`.
        held: bytes of inputs and results that were on one device at the same time, at most.
    """

    def __init__(self, devices: Sequence[str], ahead: int) -> None:
        self.devices, self.ahead = tuple(devices), ahead
        self.times = Times()
        self.held = 0
        self._lock = threading.Lock()
        self._stack = ExitStack()

    def __enter__(self) -> Lanes:
        def pool() -> ThreadPoolExecutor:
            return self._stack.enter_context(ThreadPoolExecutor(1))

        self._pools = [tuple(pool() for _ in range(3)) for _ in self.devices]
        self._copies = [_copies(name) for name in self.devices]
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def reset(self) -> None:
        """Forget the times."""
        self.times = Times()

    def sweep(
        self,
        spans: Sequence[Span],
        gather: Callable[[Span], Any],
        compute: Callable[[Span, Any], tuple[Any, Any]],
        store: Callable[[Span, list[np.ndarray]], None] = lambda span, results: None,
        into: Callable[[Span], list[np.ndarray]] | None = None,
    ) -> list[Any]:
        """Every block once through a device, block n through device n modulo their number.

        Args:
            spans: the blocks.
            gather: a block's arrays, parts of those of the volume, nested as one likes.
            compute: of tensors, nested the same; returns a list of tensors for `store` and nested tensors of a few numbers.
            store: keeps a block's results on the host. It must not write what `gather` reads, except of the same block.
            into: parts of arrays that the results are copied to, for `store` to see there; otherwise to new ones.

        Returns:
            The numbers of each block, as arrays, in the order of the blocks, whatever the order in which they were ready.
        """
        count = len(self.devices)
        with self._timed("wall"):
            if count == 1:
                return self._lane(0, spans, gather, compute, store, into)
            pools = [self._pools[n][0] for n in range(count)]
            parts = [pool.submit(self._lane, n, spans[n::count], gather, compute, store, into) for n, pool in enumerate(pools)]
            results = [part.result() for part in parts]
        return [results[n % count][n // count] for n in range(len(spans))]

    def _lane(self, number: int, spans: Sequence[Span], gather: Any, compute: Any, store: Any, into: Any) -> list[Any]:
        import tensorflow as tf

        name = self.devices[number]
        _, up, down = self._pools[number]
        copies = self._copies[number]
        run: Callable[..., Future[Any]] = _at_once if self.ahead == 0 else _in_thread
        held: dict[tuple[Span, bool], int] = {}

        def load(span: Span) -> Any:
            with self._timed("up"):
                parts = gather(span)
                tensors = tf.nest.pack_sequence_as(parts, copies.to_device(tf.nest.flatten(parts)))
            self._hold(held, (span, True), tensors)
            return tensors

        def save(span: Span, lent: list[Any]) -> None:
            with self._timed("down"):
                store(span, copies.from_device(lent, None if into is None else into(span)))
            del held[span, False]

        totals, rest = [], iter(spans)
        coming = deque(run(up, load, span) for span in itertools.islice(rest, self.ahead))
        going: deque[Future[Any]] = deque()
        for span in spans:
            with self._timed("waited"):
                coming.extend(run(up, load, one) for one in itertools.islice(rest, 1))
                tensors = coming.popleft().result()
            with self._timed("computed"), tf.device(name):
                results, numbers = compute(span, tensors)
                totals.append(_finished(results, numbers))
            self._hold(held, (span, False), results)
            results = copies.lend(results)
            del tensors, held[span, True]
            with self._timed("waited"):
                going.append(run(down, save, span, results))
                del results
                while len(going) > self.ahead:
                    going.popleft().result()
        with self._timed("waited"):
            for one in going:
                one.result()
        return totals

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        """Adds to one of `times`."""
        begun = time.perf_counter()
        yield
        with self._lock:
            setattr(self.times, what, getattr(self.times, what) + time.perf_counter() - begun)

    def _hold(self, held: dict[tuple[Span, bool], int], key: tuple[Span, bool], tensors: Any) -> None:
        import tensorflow as tf

        size = sum(one.dtype.size * one.shape.num_elements() for one in tf.nest.flatten(tensors))
        way = "bytes_up" if key[1] else "bytes_down"
        with self._lock:
            setattr(self.times, way, getattr(self.times, way) + size)
            held[key] = size
            self.held = max(self.held, sum(held.values()))


def _copies(name: str) -> GpuCopies | TensorFlowCopies:
    return GpuCopies(name) if "GPU" in name and device.use_gpu() else TensorFlowCopies(name)


def _at_once(_: ThreadPoolExecutor, function: Callable[..., Any], *args: Any) -> Future[Any]:
    done: Future[Any] = Future()
    done.set_result(function(*args))
    return done


def _in_thread(pool: ThreadPoolExecutor, function: Callable[..., Any], *args: Any) -> Future[Any]:
    return pool.submit(function, *args)


def _finished(results: Sequence[Any], numbers: Any) -> Any:
    """The numbers, once the device has computed them and the results: a GPU works through what it is given in order."""
    import tensorflow as tf

    for one in results[-1:]:
        tf.reshape(one, [-1])[:1].numpy()
    return tf.nest.map_structure(lambda one: one.numpy(), numbers)
