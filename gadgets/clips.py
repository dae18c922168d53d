"""Series of frames cut into clips of a fixed length, for what reconstructs many frames at once."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Clip(Generic[T]):
    """frames: of the clip, the oldest first; first, last: those from `first` up to but not including `last` leave with it; again: it has
    the frames of the clip before."""

    frames: list[T]
    first: int
    last: int
    again: bool = False


class Clips(Generic[T]):
    """Clips of `length` frames of one series, consecutive ones sharing `overlap` of them. Every frame leaves once, in order.

    Of the frames that two clips share, the older half leaves with the first clip and the rest with the second, so that no frame leaves
    from the very edge of a clip that has a neighbour. The end of a series makes a clip of its last `length` frames; a series shorter
    than that is filled up with its own frames, backwards and forwards again (0 1 2 1 0 1 2 ...).
    """

    def __init__(self, length: int, overlap: int) -> None:
        if not 0 <= overlap < length:
            raise ValueError(f"clips of {length} frames cannot overlap by {overlap}; choose 0 to {length - 1}")
        self.length = length
        self._held_back = overlap - overlap // 2
        self._stride = length - overlap
        self._wanted = length
        self._recent: deque[T] = deque(maxlen=length)
        self._waiting = 0
        self._unchanged = False

    def add(self, frame: T) -> Clip[T] | None:
        """Take the next frame; the clip that is complete with it, if any."""
        self._recent.append(frame)
        self._unchanged = False
        self._waiting += 1
        self._wanted -= 1
        if self._wanted:
            return None
        self._wanted = self._stride
        return self._clip(self._held_back)

    def finish(self) -> Clip[T] | None:
        """The clip with the frames that have not left, if there are any."""
        return self._clip(0) if self._waiting else None

    def _clip(self, held_back: int) -> Clip[T]:
        frames = list(self._recent)
        count = len(frames)
        first, self._waiting = count - self._waiting, held_back
        period = max(2 * count - 2, 1)
        there_and_back = [count - 1 - abs(count - 1 - n % period) for n in range(self.length)]
        again, self._unchanged = self._unchanged, True
        return Clip([frames[n] for n in there_and_back], first, count - held_back, again)
