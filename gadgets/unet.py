"""Undersampled radial real-time series reconstructed by a 3D U-Net, a clip at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from gadgets.base import ParameterError, parameter
from gadgets.clips import Clip, Clips
from gadgets.frames import Frame, Series
from gadgets.items import Image
from gadgets.learned_maps import slice_position
from gadgets.network_marks import NetworkMarks, attempt
from gadgets.realtime_gadget import Imaging, RealtimeGadget
from gadgets.reconstruction import Reconstruction, Samples

if TYPE_CHECKING:
    from recon.networks.coil_clips import CoilClips


class UNetRecon(RealtimeGadget):
    """3D U-Net over x, y and time on gridded coil images: magnitudes of undersampled radial or spiral frames. Acquisition -> Image.

    As in Jaubert et al. (Image_Reconstruction_Inter4k). Frames are those of `RealtimeRecon`. They are gathered in clips, see `Clips`;
    the image of every frame leaves once, in order, when the clip it is due with is complete. Each frame is gridded, coils turned to
    virtual ones, the strongest first, as fitted to the first clip of a slice; scans of fewer coils than the network takes leave its
    last channels 0.

    When the network fails, an image of it is not finite, or the image's size does not fit it, the root of the sum of squares of the
    gridded coil images goes out, marked (`NetworkFailed` in its attributes), counted and warned of once.
    """

    method: Literal["root_sum_of_squares"] = parameter("root_sum_of_squares", help="what goes out where the network fails")  # type: ignore[assignment]
    output: Literal["magnitude"] = parameter("magnitude", help="what the pixels are")  # type: ignore[assignment]
    coils: int | None = parameter(None, ge=1, help="virtual coils, at most; none: as many as the network takes")
    weights: str = parameter(help="name in the catalogue of weights, or path of a .keras, .h5 file, SavedModel or checkpoint")
    architecture: str = parameter(
        "inter4k_unet_published", help="name in the catalogue of the network that a file of weights alone belongs to"
    )
    frames: int | None = parameter(None, ge=1, le=256, unit="frames", help="of a clip; none: as the weights say")
    overlap: int = parameter(4, ge=0, unit="frames", help="that two clips share")

    def network(self) -> CoilClips:
        """The network, loaded once a process."""
        from recon.networks.coil_clips import coil_clips

        network = coil_clips(self.weights, self.architecture, self.frames)
        if self.overlap >= network.frames:
            raise ParameterError(f"{self.name}: clips of {network.frames} frames cannot overlap by {self.overlap}; lower the overlap")
        if self.coils is not None and self.coils > network.coils:
            raise ParameterError(f"{self.name}: the network takes {network.coils} coils, not {self.coils}; lower coils")
        return network

    def imaging(self, reconstruction: Reconstruction) -> Imaging:
        return _ClipByClip(self, reconstruction)


class _ClipByClip:
    """The clips of all series of a measurement."""

    def __init__(self, gadget: UNetRecon, reconstruction: Reconstruction) -> None:
        self.gadget, self.reconstruction, self.network = gadget, reconstruction, gadget.network()
        self._marks = NetworkMarks(gadget.name, "gridded", reconstruction.context)
        self._running: dict[Series, _Series] = {}

    def take(self, frame: Frame) -> Iterator[Image]:
        """The images that are due with this frame."""
        position, series = slice_position(frame), self._running.get(frame.series)
        if series is None or series.position != position:
            if series is not None:
                yield from series.finish()
            series = self._running[frame.series] = _Series(self.gadget, self.reconstruction, self.network, self._marks, position)
        yield from series.take(frame)

    def finish(self) -> Iterator[Image]:
        """Those that have not left, series by series."""
        for series in self._running.values():
            yield from series.finish()


@dataclass(eq=False)
class _Gathered:
    """A frame without its readouts' data, and its k-space until there are gridded coil images ``[coil, y, x]`` of it."""

    frame: Frame
    samples: Samples
    images: np.ndarray | None = None


class _Series:
    """The frames of one series at one position."""

    def __init__(self, gadget: UNetRecon, reconstruction: Reconstruction, network: CoilClips, marks: NetworkMarks, position: bytes) -> None:
        self.gadget, self.reconstruction, self.network, self.marks, self.position = gadget, reconstruction, network, marks, position
        self._clips: Clips[_Gathered] = Clips(network.frames, gadget.overlap)
        self._compression: np.ndarray | None = None
        self._channels = 0
        self._result = (np.empty(0), "")
        self._warm = False

    def take(self, frame: Frame) -> Iterator[Image]:
        """The images that are due with this frame."""
        if len(self.reconstruction.grid(frame.series.space).shape) != 2:
            raise ValueError("the network is for 2D series, the header's encoded matrix has several partitions; use radial_cgsense.xml")
        if not self._warm:  # while the first clip is still being measured
            self._warm = True
            shape = self.reconstruction.grid(frame.series.space).crop
            if self.network.takes(shape):
                self.marks.warmed(lambda: self.network.warm(shape))
        samples = self.reconstruction.samples(frame.readouts, compress=False)
        self._channels = self._channels or len(samples.data)
        if len(samples.data) != self._channels:
            raise ValueError(f"frame {frame.number} has {len(samples.data)} channels, earlier frames of its series {self._channels}")
        gathered = _Gathered(_without_data(frame), samples)
        if self._compression is not None:
            self._grid(gathered)
        clip = self._clips.add(gathered)
        if clip is not None:
            yield from self._images(clip)

    def finish(self) -> Iterator[Image]:
        """Those that have not left."""
        clip = self._clips.finish()
        if clip is not None:
            yield from self._images(clip)

    def _images(self, clip: Clip[_Gathered]) -> Iterator[Image]:
        if self._compression is None:
            self._compression = self._fitted([gathered.samples for gathered in clip.frames])
        coil_images = np.stack([self._grid(gathered) for gathered in clip.frames])
        if not clip.again:
            self._result = self._network(coil_images)
        images, failure = self._result
        for n in range(clip.first, clip.last):
            image, why = images[n], failure
            if not why and not np.isfinite(image).all():
                why = "the network gave pixels that are NaN or infinite"
            if why:
                image = np.linalg.norm(coil_images[n], axis=0)
            item = self.reconstruction.item(clip.frames[n].frame, image[None])
            if why:
                self.marks.failed(item.meta, why)
            else:
                self.marks.made(item.meta, self.network.name)
            yield item

    def _network(self, coil_images: np.ndarray) -> tuple[np.ndarray, str]:
        """Images ``[frame, y, x]``, and why the network failed, if it did."""
        shape = (len(coil_images), *coil_images.shape[2:])
        if not self.network.takes(shape[1:]):
            size = " x ".join(map(str, shape[1:]))
            return np.empty(shape), f"images of {size} pixels do not fit the network: it takes multiples of {self.network.multiple}"
        return attempt(lambda: self.network(coil_images), shape)

    def _fitted(self, samples: list[Samples]) -> np.ndarray:
        """The coil compression ``[virtual, coil]`` of a clip: as many virtual coils as the network takes, the strongest first.

        A scan of no more coils is turned as well: the network has learnt which channels are the strong ones.
        """
        from recon.coils import CoilCompressor

        wanted = min(len(samples[0].data), self.gadget.coils or self.network.coils)
        data = np.concatenate([one.data for one in samples], axis=1)
        return CoilCompressor.fit(data, wanted).matrix.astype(np.complex64)

    def _grid(self, gathered: _Gathered) -> np.ndarray:
        from recon.sense import gridding

        if gathered.images is None:
            assert self._compression is not None
            grid, samples = self.reconstruction.grid(gathered.frame.series.space), gathered.samples
            data = np.einsum("vc,cs->vs", self._compression, samples.data)
            gathered.images = self.reconstruction._volume(gridding(data, samples.trajectory, samples.weights, grid.shape), grid)
        return gathered.images


def _without_data(frame: Frame) -> Frame:
    """The frame's headers and times, for an image that leaves later."""
    nothing = np.empty((0, 0))
    return replace(frame, readouts=[replace(readout, data=nothing, trajectory=nothing) for readout in frame.readouts])
