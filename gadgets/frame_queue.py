"""Frames for a reconstruction that may be slower than the scan: only the newest ones wait."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator

from gadgets.base import Context, Stream
from gadgets.frames import Frame
from gadgets.items import Item

PASSING = 10_000
"""Items other than readouts (waveforms, text) that may wait behind a slow reconstruction before reading stops; each is small."""
PARTING_S = 1.0
"""How long a reader thread that is told to stop is waited for: on a running scan it wakes up with the next readout."""


def newest(entries: Iterator[Frame | Item], items: Stream, name: str, frames: int) -> Iterator[Frame | Item]:
    """The entries, read by a thread that never waits for the reconstruction; of the waiting frames the last `frames` are kept.

    items: the stream that the entries are made from; name: of the gadget.
    """
    queue = _NewestQueue(frames, items.context)
    items.in_thread = True

    def read() -> None:
        try:
            for entry in entries:
                if not queue.put(entry):
                    return
        except BaseException as error:  # to be raised where it is seen
            queue.end(error)
        else:
            queue.end(None)

    reader = threading.Thread(target=read, name=f"{name}-reader", daemon=True)
    reader.start()
    try:
        while (entry := queue.get(items)) is not None:
            yield entry
    finally:
        queue.stop()
        items.close()
        reader.join(PARTING_S)
        if queue.skipped:
            items.context.log.warning("%s: the reconstruction could not keep up; %d frames skipped", name, queue.skipped)


class _NewestQueue:
    """Between the reader thread and the reconstruction: at most `frames` frames wait, the oldest goes first; other items are kept."""

    def __init__(self, frames: int, context: Context) -> None:
        self.frames = frames
        self._context = context
        self.skipped = 0
        self._entries: deque[Frame | Item] = deque()
        self._changed = threading.Condition()
        self._stopped = False
        self._ended = False
        self._error: BaseException | None = None

    def put(self, entry: Frame | Item) -> bool:
        """Add an entry; waits only where too many other items wait. False when nobody wants entries any more."""
        with self._changed:
            if self._stopped:
                return False
            if isinstance(entry, Frame):
                waiting = [one for one in self._entries if isinstance(one, Frame)]
                if len(waiting) >= self.frames:
                    self._entries.remove(waiting[0])
                    self.skipped += 1
                    self._context.count("frames skipped")
            else:
                self._changed.wait_for(lambda: self._stopped or len(self._entries) < PASSING + self.frames)
            self._entries.append(entry)
            self._changed.notify_all()
            return not self._stopped

    def get(self, items: Stream) -> Frame | Item | None:
        """The next entry, waited for; None after the last. Raises what the reader raised."""
        with self._changed, items.waiting():
            self._changed.wait_for(lambda: self._entries or self._ended)
            if self._entries:
                entry = self._entries.popleft()
                self._changed.notify_all()
                return entry
        if self._error is not None:
            raise self._error
        return None

    def end(self, error: BaseException | None) -> None:
        """The reader has come to its end."""
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def stop(self) -> None:
        """Nobody wants entries any more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
