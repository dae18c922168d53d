"""What real-time gadgets share: frames as soon as they are complete, maps that are learnt on the way, skipping when it gets late."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from gadgets.base import Context, ParameterError, Stream, parameter
from gadgets.frame_queue import newest
from gadgets.frames import Frame, RepetitionFrames, WindowFrames
from gadgets.items import Acquisition, Image, Item
from gadgets.learned_maps import LearnedMaps
from gadgets.reconstruction import NonCartesianGadget, Reconstruction


class Imaging(Protocol):
    """What makes the images of one measurement."""

    def take(self, frame: Frame) -> Iterator[Image]:
        """The images that are due with this frame."""

    def finish(self) -> Iterator[Image]:
        """The images that the end of the scan makes due."""


class RealtimeGadget(NonCartesianGadget):
    """Images of frames of continuous radial or spiral imaging; subclasses say how, by `imaging`.

    A frame is `frame_readouts` readouts; or the last `window` readouts, anew with every `stride` of them; or, with none of these,
    the readouts of a repetition (see `RepetitionFrames`). Each series (slice, contrast, phase, set) has frames of its own.

    Sensitivity maps are made between two images, not before one, so that they do not add to the latency.
    """

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

    def imaging(self, reconstruction: Reconstruction) -> Imaging:
        """What makes the images of a measurement."""
        raise NotImplementedError(f"{type(self).__name__} has no imaging")

    def __call__(self, items: Stream) -> Iterator[Item]:
        context = items.context
        reconstruction = Reconstruction(self, context)
        gathering = self._gathering(context)
        maps = LearnedMaps(reconstruction, self.calibration_frames, self.refresh_frames)
        imaging = self.imaging(reconstruction)
        entries = _entries(items, reconstruction, gathering)
        for entry in newest(entries, items, self.name, self.queue_frames) if self.newest_wins else entries:
            if isinstance(entry, Item):
                yield entry
            else:
                maps.prepare(entry)
                yield from imaging.take(entry)
                maps.learn(entry)
        yield from imaging.finish()
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
