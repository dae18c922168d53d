"""Sensitivity maps of a running scan: made from its own readouts, and renewed as more of them come."""

from __future__ import annotations

from collections import deque

from gadgets.frames import Frame, Place, Readout, Series
from gadgets.reconstruction import Reconstruction


class LearnedMaps:
    """When to make sensitivity maps, and from which readouts: those of the first series seen at a place.

    They come from the first frame, then from 2, 4, 8, ... up to `most` frames, then anew every `refresh` frames (0: no more).
    """

    def __init__(self, reconstruction: Reconstruction, most: int, refresh: int) -> None:
        self.reconstruction = reconstruction
        self.most = most
        self.refresh = refresh
        self.learned: dict[Place, _Learned] = {}

    def prepare(self, frame: Frame) -> None:
        """Make maps from this frame where there are none, or where the slice has been moved since."""
        if not self.reconstruction.gadget.needs_maps:
            return
        place, position = frame.series.place, slice_position(frame)
        known = self.learned.get(place)
        if known is None or known.position != position:
            self.reconstruction.calibrate(frame.readouts)
            self.learned[place] = _Learned(frame.series, position, self.most)

    def learn(self, frame: Frame) -> None:
        """Keep the new readouts of this frame, and renew the maps when it is time."""
        if not self.reconstruction.gadget.needs_maps:
            return
        known = self.learned[frame.series.place]
        if known.series == frame.series:
            known.frames.append(frame.readouts[-frame.fresh :])
            known.count += 1
            if self._due(known.count):
                self.reconstruction.calibrate([readout for readouts in known.frames for readout in readouts])

    def _due(self, count: int) -> bool:
        if count <= self.most:
            return count > 1 and (count == self.most or count & (count - 1) == 0)
        return self.refresh > 0 and (count - self.most) % self.refresh == 0


class _Learned:
    """What the maps of a place were made from."""

    def __init__(self, series: Series, position: bytes, frames: int) -> None:
        self.series = series
        self.position = position
        self.frames: deque[list[Readout]] = deque(maxlen=frames)
        self.count = 0


def slice_position(frame: Frame) -> bytes:
    """Where the slice of a frame lies, to tell whether it has been moved."""
    header = frame.readouts[-1].header
    return b"".join(header[name].tobytes() for name in ("position", "read_dir", "phase_dir", "slice_dir"))
