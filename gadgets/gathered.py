"""Readouts side by side on a GPU as they come, so that a frame's k-space is there with its last readout."""

from __future__ import annotations

from typing import Any

from gadgets.frames import Frame, Readout
from recon.namespace import namespace


class Gathered:
    """The readouts since the last frame, in one array ``[coil, sample]`` of the size of that frame."""

    def __init__(self) -> None:
        self._readouts: list[Readout] = []
        self._array: Any = None
        self._filled = 0

    def add(self, readout: Readout) -> None:
        """Copy a readout that is on the GPU behind the ones before."""
        self._readouts.append(readout)
        data = readout.resident
        end = self._filled + (data.shape[1] if data is not None else 0)
        if data is not None and self._array is not None and data.shape[0] == self._array.shape[0] and end <= self._array.shape[1]:
            self._array[:, self._filled : end] = data
        self._filled = end

    def take(self, frame: Frame) -> Any:
        """The samples of a frame, all of whose readouts are on the GPU, ``[coil, sample]``. They are good until the next `add`."""
        parts = [readout.resident for readout in frame.readouts]
        if not self._readouts or frame.readouts[-1] is not self._readouts[-1]:
            return _joined(parts)  # a frame of long ago
        whole = (parts[0].shape[0], sum(part.shape[1] for part in parts))
        same = len(parts) == len(self._readouts) and all(a is b for a, b in zip(frame.readouts, self._readouts, strict=True))
        complete = same and self._array is not None and self._array.shape == whole and self._filled == whole[1]
        self.restart()
        if complete:
            return self._array
        joined = _joined(parts)
        if self._array is None or self._array.shape != whole:
            self._array = namespace(joined).empty(whole, joined.dtype)
        return joined

    def restart(self) -> None:
        """What comes next is of a new frame."""
        self._readouts, self._filled = [], 0


def _joined(parts: list[Any]) -> Any:
    return namespace(*parts).concatenate(parts, axis=1)
