"""Bounded hand-over between threads, for gadgets that run something beside the chain.

Nothing here waits by polling, nothing grows without bound, and whoever gives up wakes everybody else.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Closed(Exception):
    """The other side of a channel has given up."""


class Channel(Generic[T]):
    """A bounded queue whose end, error or abandonment both sides learn of.

    The producer calls `put` and at last `finish`; the consumer iterates, and calls `close` to give up.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._waiting: deque[T] = deque()
        self._changed = threading.Condition()
        self._finished = False
        self._closed = False
        self._error: BaseException | None = None

    def put(self, item: T) -> None:
        """Append; waits while the channel is full. Raises `Closed` when the consumer has given up."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._waiting) < self._size)
            if self._closed:
                raise Closed
            self._waiting.append(item)
            self._changed.notify_all()

    def finish(self, error: BaseException | None = None) -> None:
        """No more items; `error` is raised at the consumer once it has had what was put before."""
        with self._changed:
            if not self._finished:
                self._finished, self._error = True, error
            self._changed.notify_all()

    def close(self) -> None:
        """Give up: what waits is dropped, producers get `Closed`, the consumer gets the end."""
        with self._changed:
            self._closed = self._finished = True
            self._waiting.clear()
            self._changed.notify_all()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._finished)
            if self._waiting:
                item = self._waiting.popleft()
                self._changed.notify_all()
                return item
            if self._error is not None:
                raise self._error
            raise StopIteration


def in_background(work: Callable[[Callable[[T], None]], None], size: int, name: str) -> Iterator[T]:
    """Run ``work(put)`` in a thread and yield what it puts, at most `size` items ahead.

    An exception of `work` is raised here after everything put before it. Closing the iterator makes the next ``put`` raise
    `Closed` in the thread.
    """
    channel: Channel[T] = Channel(size)

    def body() -> None:
        try:
            work(channel.put)
        except Closed:
            channel.finish()
        except BaseException as error:
            channel.finish(error)
        else:
            channel.finish()

    threading.Thread(target=body, name=name, daemon=True).start()
    try:
        yield from channel
    finally:
        channel.close()
