"""Real-time imaging: an image the moment its last readout is there."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from typing import Any

from gadgets.base import Context, ParameterError, Stream, parameter
from gadgets.frames import Frame, Place, Readout, RepetitionFrames, Series, WindowFrames
from gadgets.items import Acquisition, Item
from gadgets.reconstruction import NonCartesianGadget, Reconstruction

PASSING = 10_000
"""Items other than readouts (waveforms, text) that may wait behind a slow reconstruction before reading stops; each is small."""
PARTING_S = 1.0
"""How long a reader thread that is told to stop is waited for: on a running scan it wakes up with the next readout."""


class RealtimeRecon(NonCartesianGadget):
    """Images of continuous radial or spiral imaging, one a frame, as soon as the frame's last readout has come.

    Acquisition -> Image. A frame is `frame_readouts` readouts; or the last `window` readouts, anew with every `stride` of them; or,
    with none of these, the readouts of a repetition (see `RepetitionFrames`). Each series (slice, contrast, phase, set) has frames of
    its own; image_index counts all images, repetition the images of a series.

    Sensitivity maps come from the first frame, then from 2, 4, 8, ... up to `calibration_frames` frames, then anew every
    `refresh_frames`. They are made between two images, not before one, so that they do not add to the latency.

    With `newest_wins` a reconstruction slower than the scan skips to the newest frame; what it skips is counted and logged. Without it
    every frame is reconstructed, and the images do not depend on how fast the readouts come.
    """

    iterations: int = parameter(8, ge=1, help="most iterations of CG-SENSE")
    frame_readouts: int | None = parameter(None, ge=1, unit="readouts", help="readouts of a frame; none: those of a repetition")
    window: int | None = parameter(None, ge=1, unit="readouts", help="readouts of an image in a sliding window; none: frame_readouts")
    stride: int | None = parameter(None, ge=1, unit="readouts", help="new readouts from image to image; none: frame_readouts, or window")
    calibration_frames: int = parameter(16, ge=1, unit="frames", help="most frames that sensitivity maps are made from")
    refresh_frames: int = parameter(64, ge=0, unit="frames", help="frames between renewals of the maps; 0: only at the start")
    newest_wins: bool = parameter(False, help="skip frames when the reconstruction cannot keep up")
    queue_frames: int = parameter(1, ge=1, unit="frames", help="frames that may wait with newest_wins before the oldest is skipped")

    def __init__(self, name: str = "", /, **properties: Any) -> None:
        super().__init__(name, **properties)
        self.runs_ahead = self.newest_wins
        self._gathering(Context())

    def __call__(self, items: Stream) -> Iterator[Item]:
        context = items.context
        reconstruction = Reconstruction(self, context)
        gathering = self._gathering(context)
        maps = _Maps(self, reconstruction)
        entries = _entries(items, reconstruction, gathering)
        for entry in _newest(entries, items, self) if self.newest_wins else entries:
            if isinstance(entry, Item):
                yield entry
            else:
                maps.prepare(entry)
                yield reconstruction.item(entry, reconstruction.image(entry))
                maps.learn(entry)
        if gathering.left_over:
            context.count("readouts in no frame", gathering.left_over)
            context.log.warning("%s: the last %d readouts do not fill a frame and are in no image", self.name, gathering.left_over)
        if gathering.late:
            context.log.warning(
                "%s: %d frames had no LAST_IN_... flag and waited for the next readout; set frame_readouts to get images without delay",
                self.name,
                gathering.late,
            )

    def _gathering(self, context: Context) -> RepetitionFrames | WindowFrames:
        window = self.window or self.frame_readouts
        if window is None:
            if self.stride is not None:
                raise ParameterError(f"{self.name}: stride needs window or frame_readouts")
            return RepetitionFrames(context.header)
        stride = self.stride or self.frame_readouts or window
        if stride > window:
            raise ParameterError(f"{self.name}: a stride of {stride} readouts leaves some out of a window of {window}; lower the stride")
        return WindowFrames(window, stride)


def _entries(items: Stream, reconstruction: Reconstruction, gathering: RepetitionFrames | WindowFrames) -> Iterator[Frame | Item]:
    """The frames, each as soon as it is complete, and all items that are no acquisitions, in order."""
    rehearsed = False
    for item in items:
        if isinstance(item, Acquisition):
            readout = reconstruction.readout(item)
            if readout is not None:
                if not rehearsed:
                    reconstruction.rehearse(readout)
                    rehearsed = True
                yield from gathering.add(readout)
        else:
            yield item
    yield from gathering.finish()


class _Maps:
    """When to make sensitivity maps, and from which readouts: those of the first series seen at a place."""

    def __init__(self, gadget: RealtimeRecon, reconstruction: Reconstruction) -> None:
        self.gadget = gadget
        self.reconstruction = reconstruction
        self.learned: dict[Place, _Learned] = {}

    def prepare(self, frame: Frame) -> None:
        """Make maps from this frame where there are none, or where the slice has been moved since."""
        place, geometry = frame.series.place, _geometry(frame)
        known = self.learned.get(place)
        if known is None or known.geometry != geometry:
            self.reconstruction.calibrate(frame.readouts)
            self.learned[place] = _Learned(frame.series, geometry, self.gadget.calibration_frames)

    def learn(self, frame: Frame) -> None:
        """Keep the new readouts of this frame, and renew the maps when it is time."""
        known = self.learned[frame.series.place]
        if known.series == frame.series:
            known.frames.append(frame.readouts[-frame.fresh :])
            known.count += 1
            if self._due(known.count):
                self.reconstruction.calibrate([readout for readouts in known.frames for readout in readouts])

    def _due(self, count: int) -> bool:
        most, refresh = self.gadget.calibration_frames, self.gadget.refresh_frames
        if count <= most:
            return count > 1 and (count == most or count & (count - 1) == 0)
        return refresh > 0 and (count - most) % refresh == 0


class _Learned:
    """What the maps of a place were made from."""

    def __init__(self, series: Series, geometry: bytes, frames: int) -> None:
        self.series = series
        self.geometry = geometry
        self.frames: deque[list[Readout]] = deque(maxlen=frames)
        self.count = 0


def _geometry(frame: Frame) -> bytes:
    header = frame.readouts[-1].header
    return b"".join(header[name].tobytes() for name in ("position", "read_dir", "phase_dir", "slice_dir"))


def _newest(entries: Iterator[Frame | Item], items: Stream, gadget: RealtimeRecon) -> Iterator[Frame | Item]:
    """The entries, read by a thread that never waits for the reconstruction; frames that have waited too long are skipped."""
    queue = _NewestQueue(gadget.queue_frames, items.context)
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

    reader = threading.Thread(target=read, name=f"{gadget.name}-reader", daemon=True)
    reader.start()
    try:
        while (entry := queue.get(items)) is not None:
            yield entry
    finally:
        queue.stop()
        items.close()
        reader.join(PARTING_S)
        if queue.skipped:
            items.context.log.warning("%s: the reconstruction could not keep up; %d frames skipped", gadget.name, queue.skipped)


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
