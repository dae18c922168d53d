"""Gadgets around sub-chains: parallel streams, and several workers over one stream of independent items."""

from __future__ import annotations

import copy
import os
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any, ClassVar

from gadgets.base import Context, Gadget, Stream, run, stop
from gadgets.channel import Channel, Closed, in_background
from gadgets.items import Item


class Branch(Gadget):
    """Hands items to the streams of a `Parallel`; what it does not accept passes the whole block by."""

    accepts: ClassVar[tuple[type[Item], ...]] = ()
    """Types of item that are handed to the streams."""

    def keys(self, item: Item, keys: Sequence[str]) -> Sequence[str]:
        """The streams that get `item`, of all `keys`."""
        return keys


class Merge(Gadget):
    """Brings the streams of a `Parallel` together."""


def runs_ahead(gadgets: Sequence[Gadget]) -> bool:
    """Whether one of the gadgets takes its input in a thread of its own, ahead of its output."""
    return any(gadget.runs_ahead for gadget in gadgets)


def _fresh(context: Context) -> Context:
    """The same context with accounts of its own (threads must not add to one dictionary)."""
    return replace(context, seconds={}, counts={})


def _settle(context: Context, accounts: Sequence[Context]) -> None:
    for account in accounts:
        for name, seconds in account.seconds.items():
            context.seconds[name] = context.seconds.get(name, 0.0) + seconds
        for what, count in account.counts.items():
            context.count(what, count)


class Parallel(Gadget):
    """Several streams side by side, each in a thread.

    Order of the output: everything that the streams make of one input item before anything they make of the next; within that,
    the streams in the order of the file, then what passed the block by. This does not depend on timing. Only streams with a gadget
    that works ahead of its input (an external process, a nested parallel block) deliver as soon as they have something, in their
    own order, because when they answer is not ours to know.

    Every queue is bounded. A failing stream raises its error here, after what precedes it in that order.
    """

    runs_ahead = True
    queue: ClassVar[int] = 16
    """Items that wait before each stream, and behind it."""

    def __init__(self, name: str, branch: Branch, streams: Mapping[str, Sequence[Gadget]], merge: Merge) -> None:
        super().__init__(name)
        self.branch = branch
        self.streams = {key: list(gadgets) for key, gadgets in streams.items()}
        self.merge = merge

    def __call__(self, items: Stream) -> Iterator[Item]:
        keys = list(self.streams)
        feeds: dict[str, Channel[Item]] = {key: Channel(self.queue) for key in keys}
        contexts = {key: _fresh(items.context) for key in keys}
        lanes = _Lanes(len(keys) + 1, self.queue, [n for n, key in enumerate(keys) if runs_ahead(self.streams[key])])
        passing = len(keys)

        def fed(lane: int) -> Iterator[Item]:
            feed = feeds[keys[lane]]
            while True:
                lanes.asks(lane)
                try:
                    item = next(feed)
                except StopIteration:
                    return
                yield item

        def stream(lane: int) -> None:
            key = keys[lane]
            error: BaseException | None = None
            outputs = run(self.streams[key], fed(lane), contexts[key])
            try:
                for item in outputs:
                    lanes.put(lane, item)
            except Closed:
                stop(outputs)
            except BaseException as caught:
                error = caught
            feeds[key].close()
            lanes.done(lane, error)

        def distribute() -> None:
            error: BaseException | None = None
            try:
                for item in items:
                    if isinstance(item, self.branch.accepts):
                        lanes.asks(passing)
                        self._hand_out(item, feeds)
                    else:
                        lanes.put(passing, item)
            except Closed:
                items.close()
            except BaseException as caught:
                error = caught
            for feed in feeds.values():
                feed.finish(error)
            lanes.done(passing, error)

        for lane, key in enumerate(keys):
            threading.Thread(target=stream, args=(lane,), name=f"{self.name}/{key}", daemon=True).start()
        threading.Thread(target=distribute, name=f"{self.name}/branch", daemon=True).start()
        try:
            yield from lanes
        finally:
            lanes.close()
            for feed in feeds.values():
                feed.close()
            _settle(items.context, list(contexts.values()))

    def _hand_out(self, item: Item, feeds: Mapping[str, Channel[Item]]) -> None:
        targets = list(self.branch.keys(item, list(feeds)))
        for n, key in enumerate(targets):
            with suppress(Closed):  # that stream has ended; its error reaches the consumer by the lanes
                feeds[key].put(item if n == len(targets) - 1 else copy.deepcopy(item))


class _Lanes:
    """The outputs of parallel streams, put in an order that does not depend on timing.

    Each lane says when it asks for its next input item. What it puts between two questions belongs to the item before; so the
    number of questions is the time stamp, and a lane that has asked more than n times has nothing more to say about time n.
    """

    def __init__(self, lanes: int, size: int, prompt: Sequence[int]) -> None:
        self._size = size
        self._prompt = list(prompt)
        self._ordered = [lane for lane in range(lanes) if lane not in self._prompt]
        self._waiting: list[deque[tuple[int, Item]]] = [deque() for _ in range(lanes)]
        self._asked = [0] * lanes
        self._done = [False] * lanes
        self._errors: list[BaseException | None] = [None] * lanes
        self._time = self._turn = 0
        self._closed = False
        self._changed = threading.Condition()

    def asks(self, lane: int) -> None:
        """The lane wants its next input item: its clock goes on by one. Raises `Closed` when the consumer has given up."""
        with self._changed:
            if self._closed:
                raise Closed
            self._asked[lane] += 1
            self._changed.notify_all()

    def put(self, lane: int, item: Item) -> None:
        """An output of the lane; waits while the lane is full. Raises `Closed` when the consumer has given up."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or len(self._waiting[lane]) < self._size)
            if self._closed:
                raise Closed
            self._waiting[lane].append((self._asked[lane], item))
            self._changed.notify_all()

    def done(self, lane: int, error: BaseException | None) -> None:
        """The lane has ended."""
        with self._changed:
            self._done[lane], self._errors[lane] = True, error
            self._changed.notify_all()

    def close(self) -> None:
        """The consumer gives up."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def __iter__(self) -> Iterator[Item]:
        while True:
            with self._changed:
                lane = self._next_lane()
                while lane is None and not self._over():
                    self._changed.wait()
                    lane = self._next_lane()
                if lane is None:
                    return
                error = self._errors[lane]
                if not self._waiting[lane] and error is not None:
                    raise error
                _, item = self._waiting[lane].popleft()
                self._changed.notify_all()
            yield item

    def _over(self) -> bool:
        return all(self._done) and not any(self._waiting)

    def _next_lane(self) -> int | None:
        """The lane whose output, or error, comes next; None while that is not known."""
        for lane in self._prompt:
            if self._waiting[lane] or self._errors[lane] is not None:
                return lane
        while not all(self._done[lane] and not self._waiting[lane] and self._errors[lane] is None for lane in self._ordered):
            lane = self._ordered[self._turn]
            if self._waiting[lane] and self._waiting[lane][0][0] <= self._time:
                return lane
            if not self._waiting[lane] and self._asked[lane] <= self._time:
                if self._errors[lane] is not None:
                    return lane
                if not self._done[lane]:
                    return None
            self._turn = (self._turn + 1) % len(self._ordered)
            self._time += self._turn == 0
        return None


class ParallelProcess(Gadget):
    """Several threads over one stream of items that do not depend on each other; the order of the input is kept.

    gadgets: a chain of pure gadgets (no state between items); workers: number of threads, 0 = one a core.
    """

    runs_ahead = True

    def __init__(self, name: str, gadgets: Sequence[Gadget], workers: int) -> None:
        super().__init__(name)
        self.gadgets = list(gadgets)
        self.workers = workers or os.cpu_count() or 1

    def __call__(self, items: Stream) -> Iterator[Item]:
        def one(item: Item) -> tuple[list[Item], Context]:
            context = _fresh(items.context)
            return list(run(self.gadgets, [item], context)), context

        pool = ThreadPoolExecutor(self.workers, thread_name_prefix=self.name)

        def feed(put: Any) -> None:
            try:
                for item in items:
                    put(pool.submit(one, item))
            finally:
                items.close()

        futures: Iterator[Future[tuple[list[Item], Context]]] = in_background(feed, 2 * self.workers, f"{self.name}/feed")
        try:
            for future in futures:
                made, context = future.result()
                _settle(items.context, [context])
                yield from made
        finally:
            futures.close()  # type: ignore[attr-defined]
            pool.shutdown(wait=False, cancel_futures=True)
