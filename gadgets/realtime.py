"""Real-time imaging: an image the moment its last readout is there."""

from __future__ import annotations

from collections.abc import Iterator

from gadgets.base import parameter
from gadgets.frames import Frame
from gadgets.items import Image
from gadgets.realtime_gadget import Imaging, RealtimeGadget
from gadgets.reconstruction import Reconstruction


class RealtimeRecon(RealtimeGadget):
    """Images of continuous radial or spiral imaging, one a frame, as soon as the frame's last readout has come.

    Acquisition -> Image. A frame is `frame_readouts` readouts; or the last `window` readouts, anew with every `stride` of them; or,
    with none of these, the readouts of a repetition (see `RepetitionFrames`). Each series (slice, contrast, phase, set) has frames of
    its own; image_index counts all images, repetition the images of a series.

    Sensitivity maps come from the first frame, then from 2, 4, 8, ... up to `calibration_frames` frames, then anew every
    `refresh_frames`. They are made between two images, not before one, so that they do not add to the latency.

    With `newest_wins` a reconstruction slower than the scan skips to the newest frame; what it skips is counted and logged. Without it
    every frame is reconstructed, and the images do not depend on how fast the readouts come.
    """

    resident_readouts = True
    iterations: int = parameter(8, ge=1, help="most iterations of CG-SENSE")

    def imaging(self, reconstruction: Reconstruction) -> Imaging:
        return _FrameByFrame(reconstruction)


class _FrameByFrame:
    """Every frame is an image of its own."""

    def __init__(self, reconstruction: Reconstruction) -> None:
        self.reconstruction = reconstruction

    def take(self, frame: Frame) -> Iterator[Image]:
        yield self.reconstruction.item(frame, self.reconstruction.image(frame))

    def finish(self) -> Iterator[Image]:
        return iter(())
