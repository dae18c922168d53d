"""A queue between two threads that is bounded by bytes and can be ended from either side."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class QueueEnded(Exception):
    """The other side has ended the queue: nothing more comes, or nothing more is wanted."""


class BoundedQueue(Generic[T]):
    """First in, first out; `put` waits while `limit` bytes or more are in it.

    Bounded by bytes, not by number: a readout has 1 kB or 1 MB. One item always fits, so that a large one cannot wait for ever.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._items: deque[tuple[T, int]] = deque()
        self._size = 0
        self._end: BaseException | None = None
        lock = threading.Lock()
        self._filled = threading.Condition(lock)
        self._emptied = threading.Condition(lock)

    def put(self, item: T, size: int = 0) -> None:
        """Append; wait while the queue is full. Raises `QueueEnded`, or the error given to `end` or `fail`."""
        with self._filled:
            while self._size >= self._limit and self._end is None:
                self._emptied.wait()
            if self._end is not None:
                raise self._end
            self._items.append((item, size))
            self._size += size
            self._filled.notify()

    def get(self, timeout: float | None = None) -> T:
        """The oldest item. Raises TimeoutError after `timeout` seconds; `QueueEnded` or the given error once all items are out."""
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._filled:
            while not self._items:
                if self._end is not None:
                    raise self._end
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    raise TimeoutError
                self._filled.wait(left)
            item, size = self._items.popleft()
            self._size -= size
            if self._size < self._limit:
                self._emptied.notify()
            return item

    def end(self, error: BaseException | None = None) -> None:
        """Nothing more will be put; what is in the queue can still be got, then `error` is raised. The first call counts."""
        with self._filled:
            self._end = self._end or error or QueueEnded()
            self._filled.notify_all()
            self._emptied.notify_all()

    def fail(self, error: BaseException | None = None) -> None:
        """As `end`, but what is in the queue is thrown away."""
        with self._filled:
            self._items.clear()
            self._size = 0
        self.end(error)
