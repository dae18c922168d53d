"""Real-time and whole series reconstructed jointly: GRASP, locally low rank, low rank plus sparse."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gadgets.base import ParameterError, parameter
from gadgets.frames import Frame, Series
from gadgets.items import Image
from gadgets.learned_maps import slice_position
from gadgets.realtime_gadget import Imaging, RealtimeGadget
from gadgets.reconstruction import Reconstruction

if TYPE_CHECKING:
    from recon.arrays import Array
    from recon.series_priors import SeriesPrior


class DynamicRecon(RealtimeGadget):
    """Images of continuous radial or spiral imaging, each reconstructed together with the frames around it.

    Acquisition -> Image. Frames, series and sensitivity maps are those of `RealtimeRecon`. With every `stride_frames` new frames the
    last `window_frames` of a series are reconstructed jointly (see `recon.moving_window`), from where the last time ended, so that a
    few iterations suffice. By default the newest frame leaves at once; with `delay_frames` more it has been looked at from both sides
    and iterated longer. Every frame leaves once, in order; the first ones come from shorter windows. What has left never changes.

    Weights are fractions of what the first frame of a series shows, and then fixed for the measurement: images do not flicker. They
    are taken anew only where the slice moves, which begins a new window.

    With window_frames=0 the whole series is reconstructed at the end of the scan. Memory then grows with the scan: for every frame its
    readouts after coil compression and about ten images. Give more iterations (30).
    """

    method: Literal["grasp", "locally_low_rank", "low_rank_plus_sparse"] = parameter(  # type: ignore[assignment]
        "grasp", help="what a series has little of: change from frame to frame; rank in blocks of pixels; rank and, beside it, frequencies"
    )
    iterations: int = parameter(4, ge=1, help="most iterations of a window")
    tolerance: float = parameter(
        0.0, ge=0, help="a window is done when its images change by less than this fraction; 0: only after `iterations`"
    )
    regularization: float = parameter(
        0.01,
        ge=0,
        help="Tikhonov weight beside the method's, in units of the mean diagonal of the normal equation",
        aliases=("regularisation",),
    )
    density_weighted: bool = parameter(False, help="weigh samples by density: converges faster, but to noisier images")
    weight: float = parameter(
        0.01, ge=0, help="of the method, as a fraction of the first frame's largest gridded pixel (low rank: norm of a block; of the image)"
    )
    sparse_weight: float = parameter(
        0.012, ge=0, help="low_rank_plus_sparse: of the sparse part, as a fraction of the first frame's largest gridded pixel"
    )
    block: int = parameter(8, ge=1, unit="pixels", help="locally_low_rank: edge of the blocks")
    window_frames: int = parameter(
        8, ge=0, unit="frames", help="most frames that are reconstructed together; 0: all, at the end of the scan"
    )
    stride_frames: int = parameter(1, ge=1, unit="frames", help="new frames from window to window; as many images leave together")
    delay_frames: int = parameter(0, ge=0, unit="frames", help="newer frames that an image waits for; 0: none")

    def __init__(self, name: str = "", /, **properties: Any) -> None:
        super().__init__(name, **properties)
        size, stride, delay = self.window_frames, self.stride_frames, self.delay_frames
        if size == 0 and (stride, delay) != (1, 0):
            raise ParameterError(f"{self.name}: stride_frames and delay_frames need a window; set window_frames, or leave them out")
        if size and stride + delay > size:
            raise ParameterError(
                f"{self.name}: frames would leave a window of {size} before their images do with stride_frames {stride} and delay_frames "
                f"{delay}; raise window_frames to {stride + delay} or more"
            )

    def imaging(self, reconstruction: Reconstruction) -> Imaging:
        return _Windows(self, reconstruction)

    def prior(self, first: Array) -> SeriesPrior:
        """What is known of the series of which `first` is the gridded first frame."""
        from recon import series_priors

        if self.method == "grasp":
            return series_priors.temporal_variation(first, self.weight)
        if self.method == "locally_low_rank":
            return series_priors.blockwise_low_rank(first, self.weight, self.block)
        return series_priors.low_rank_plus_sparse(first, self.weight, self.sparse_weight)


class _Windows:
    """The windows of all series of a measurement."""

    def __init__(self, gadget: DynamicRecon, reconstruction: Reconstruction) -> None:
        self._begin = partial(_Window, gadget, reconstruction)
        self._windows: dict[Series, _Window] = {}

    def take(self, frame: Frame) -> Iterator[Image]:
        """The images that are due with this frame."""
        series, position = frame.series, slice_position(frame)
        window = self._windows.get(series)
        if window is None or window.position != position:
            if window is not None:
                yield from window.finish()
            window = self._windows[series] = self._begin(position)
        yield from window.take(frame)

    def finish(self) -> Iterator[Image]:
        """What has not left yet, series by series."""
        for window in self._windows.values():
            yield from window.finish()


class _Window:
    """The window of one series at one position, and the frames whose images have not left."""

    def __init__(self, gadget: DynamicRecon, reconstruction: Reconstruction, position: bytes) -> None:
        from recon.moving_window import MovingWindow

        self.gadget = gadget
        self.reconstruction = reconstruction
        self.position = position
        self._window = MovingWindow(gadget.prior, gadget.window_frames or None, gadget.regularization)
        self._waiting: deque[Frame] = deque()
        self._fresh = 0
        self._images: np.ndarray = np.empty(0)

    def take(self, frame: Frame) -> Iterator[Image]:
        """Add a frame; the images that are due now."""
        samples = self.reconstruction.samples(frame.readouts, weighted=self.gadget.density_weighted)
        self._window.add(samples.data, samples.trajectory, self.reconstruction.maps[frame.series.place], samples.weights)
        self._waiting.append(_without_data(frame))
        self._fresh += 1
        if self.gadget.window_frames and self._fresh >= self.gadget.stride_frames:
            yield from self._leave(self.gadget.delay_frames)

    def finish(self) -> Iterator[Image]:
        """The images that have not left."""
        if self._waiting:
            yield from self._leave(0)

    def _leave(self, remaining: int) -> Iterator[Image]:
        """Images of the waiting frames except the last `remaining`."""
        if self._fresh:
            self._images = self._window.solve(self.gadget.iterations, self.gadget.tolerance)
            self._fresh = 0
            if not np.isfinite(self._images).all():
                self._window.clear()  # or all later images would inherit it
                remaining = 0
        while len(self._waiting) > remaining:
            image = self._images[-len(self._waiting)]
            frame = self._waiting.popleft()
            yield self.reconstruction.item(frame, self.reconstruction._volume(image, self.reconstruction._grids[frame.series.space]))


def _without_data(frame: Frame) -> Frame:
    """The frame's headers and times, for an image that leaves later."""
    nothing = np.empty((0, 0))
    return replace(frame, readouts=[replace(readout, data=nothing, trajectory=nothing) for readout in frame.readouts])
