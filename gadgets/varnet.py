"""Undersampled Cartesian real-time series reconstructed by a variational network, a clip at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from gadgets.any_mask import AnyMaskRecon, Calibration, _parts
from gadgets.base import Context, ParameterError, Stream, parameter
from gadgets.cartesian import centered
from gadgets.clips import Clip, Clips
from gadgets.coil_maps import zero_filled
from gadgets.field_of_view import resample
from gadgets.generic import describe_images, image_array
from gadgets.items import ImageArray, Item, Meta, ReconData, Waveform
from gadgets.network_marks import NetworkMarks, attempt
from recon.coils import CoilCompressor
from recon.fourier import ifftc
from recon.least_squares import least_squares

if TYPE_CHECKING:
    from recon.networks.unrolled import Unrolled

SMALLEST_CENTRE = 4
"""Central lines, sampled by some frame of a clip, without which maps would be guesses."""

Place = tuple[tuple[int, ...], bytes]
"""Shape of the k-space and position of the slice: what frames of one clip share."""


class VarNetRecon(AnyMaskRecon):
    """Variational network: frames of an undersampled 2D series, together with their neighbours in time. ReconData -> ImageArray.

    Hammernik et al., Magn. Reson. Med. 79 (2018); see `recon.networks.varnet`. The frames of a slice, contrast and set are
    gathered in clips; repetitions and phases count as time, in the order in which they come. An image array of one image leaves for
    every frame, in order, when the clip it is due with is complete: `Clips`. Sensitivities come from the mean k-space of the clip over
    the frames that sampled each line, or from separate calibration lines, see `AnyMaskRecon`. Coil compression is fitted to the first
    clip of a slice. K-space sizes are raised to what the network takes, images brought back.

    When the network fails or an image of it is not finite, that frame goes out reconstructed by CG-SENSE alone, marked
    (`NetworkFailed` in its attributes), counted and warned of once.
    """

    weights: str = parameter(help="name in the catalogue of weights, or path of a .keras, .h5 file, SavedModel or checkpoint")
    architecture: str = parameter(
        "inter4k_varnet_published", help="name in the catalogue of the network that a file of weights alone belongs to"
    )
    frames: int | None = parameter(None, ge=1, le=256, unit="frames", help="of a clip; none: as the weights say")
    overlap: int = parameter(4, ge=0, unit="frames", help="that two clips share")
    coil_maps: Literal["espirit", "image"] = parameter(
        "image", help="image: by coil_map_algorithm from the low-resolution image; espirit: only where nothing moves"
    )
    calibration_size: int = parameter(16, ge=4, unit="samples", help="use at most this much of the fully sampled centre, each axis")
    map_threshold: float = parameter(
        0.0,
        ge=0,
        lt=1,
        help="maps are 0 where the low-resolution image is darker than this fraction of its brightest pixel; 0.1 for the published weights",
    )
    coils: int | None = parameter(10, ge=1, help="compress to at most this many virtual coils; none: keep all")
    fallback_iterations: int = parameter(10, ge=1, help="of CG-SENSE where the network fails")

    def network(self) -> Unrolled:
        """The network, loaded once a process."""
        from recon.networks.unrolled import unrolled

        network = unrolled(self.weights, self.architecture, self.frames)
        if self.overlap >= network.frames:
            raise ParameterError(f"{self.name}: clips of {network.frames} frames cannot overlap by {self.overlap}; lower the overlap")
        return network

    def __call__(self, items: Stream) -> Iterator[Item]:
        items.header.require_cartesian()
        network = self.network()
        marks = NetworkMarks(self.name, "by CG-SENSE", items.context)
        running: dict[tuple[int, ...], _Series] = {}
        for item in items.of(ReconData):
            for frame in self._frames(item, items.context, network.multiple):
                series = running.get(frame.series)
                if series is None or series.place != frame.place:
                    if series is not None:
                        yield from series.finish()
                    series = running[frame.series] = _Series(self, network, marks, frame.place)
                yield from series.take(frame)
        for series in running.values():
            yield from series.finish()

    def _frames(self, item: ReconData, context: Context, multiple: int) -> Iterator[_Frame]:
        """Every image of the buffers of which a readout has come."""
        for space, bit in enumerate(item.bits):
            if not bit.data.data.size:
                continue
            if bit.data.data.shape[4] > 1:
                raise ValueError(
                    f"k-space of {bit.data.data.shape[4]} partitions: the network is for 2D series; use cartesian_compressed_sensing.xml"
                )
            kspace, separate = _parts(bit, context.header.encoding(space), self.name, context)
            headers, metas = describe_images(bit, (*kspace.shape[:3], 1, *kspace.shape[4:]), context.header, space)
            wide = _enlarged(kspace[..., 0, :, :], multiple)
            for n, where in enumerate(np.ndindex(*kspace.shape[:3])):
                if not bit.data.headers[where]["number_of_samples"].any():
                    continue  # there was no such combination of N and S
                header = headers[where]
                counters = tuple(int(header[name]) for name in ("slice", "contrast", "set"))
                position = b"".join(header[name].tobytes() for name in ("position", "read_dir", "phase_dir", "slice_dir"))
                yield _Frame(
                    series=(space, *counters),
                    place=(wide.shape[3:], position),
                    size=(kspace.shape[-2], kspace.shape[-1]),
                    kspace=wide[where],
                    separate=None if separate is None else separate[min(where[0], len(separate) - 1)],
                    describe=_Description(
                        headers[where[0] : where[0] + 1, where[1] : where[1] + 1, where[2] : where[2] + 1],
                        metas[n],
                        bit.data.headers[where][None, None, None],
                        item.waveforms,
                    ),
                )

    def _sensitivities(self, block: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        maps = super()._sensitivities(block, shape)
        if self.map_threshold:
            dim = np.linalg.norm(ifftc(zero_filled(block, shape[1:]), (-2, -1)), axis=0)
            maps = np.where(dim < self.map_threshold * dim.max(), 0, maps)
        return maps

    def _smallest_block(self) -> int:
        return max(super()._smallest_block(), SMALLEST_CENTRE)

    def _image(self, kspace: np.ndarray, sampled: np.ndarray, calibration: Calibration) -> np.ndarray:
        maps, mask = calibration.maps[0, :, 0], sampled[0]
        image: np.ndarray = np.zeros(mask.shape, np.complex64)
        if mask.any():
            image = least_squares(kspace[:, 0], maps, mask=mask, iterations=self.fallback_iterations, regularisation=0.01)
        return image.reshape(sampled.shape)


@dataclass(eq=False)
class _Description:
    """What is said of a frame's image, see `image_array`."""

    headers: np.ndarray
    meta: Meta
    acquisition_headers: np.ndarray
    waveforms: list[Waveform]


@dataclass(eq=False)
class _Frame:
    """kspace: ``[coil, y, x]``; separate: calibration ``[S, N, coil, E2, E1, E0]``; size: of the image that shall leave, (y, x)."""

    series: tuple[int, ...]
    place: Place
    size: tuple[int, int]
    kspace: np.ndarray
    separate: np.ndarray | None
    describe: _Description


class _Series:
    """The frames of one series at one position."""

    def __init__(self, gadget: VarNetRecon, network: Unrolled, marks: NetworkMarks, place: Place) -> None:
        self.gadget, self.network, self.marks, self.place = gadget, network, marks, place
        self._clips: Clips[_Frame] = Clips(network.frames, gadget.overlap)
        self._compressor: CoilCompressor | None = None
        self._calibration: Calibration | None = None
        self._result = (np.empty(0), "")
        self._warm = False

    def take(self, frame: _Frame) -> Iterator[ImageArray]:
        """The images that are due with this frame."""
        if not self._warm:  # while the first clip is still being measured
            channels, rows, columns = frame.kspace.shape
            self.marks.warmed(lambda: self.network.warm(min(channels, self.gadget.coils or channels), (rows, columns)))
            self._warm = True
        clip = self._clips.add(frame)
        if clip is not None:
            yield from self._images(clip)

    def finish(self) -> Iterator[ImageArray]:
        """Those that have not left."""
        clip = self._clips.finish()
        if clip is not None:
            yield from self._images(clip)

    def _images(self, clip: Clip[_Frame]) -> Iterator[ImageArray]:
        kspace = np.stack([frame.kspace for frame in clip.frames])
        separate = clip.frames[clip.last - 1].separate
        coils = self.gadget.coils
        if coils is not None and coils < kspace.shape[1]:
            if self._compressor is None:
                self._compressor = CoilCompressor.fit(kspace, coils, coil_axis=1)
            kspace = self._compressor.apply(kspace, -3)
            separate = None if separate is None else self._compressor.apply(separate, -4)
        source = kspace[None, :, :, None] if separate is None else separate
        volume = (kspace.shape[1], 1, *kspace.shape[2:])
        self._calibration = self.gadget._calibrate(source, volume, self._calibration)
        sampled = np.any(kspace, axis=1)
        if not clip.again:
            self._result = self._network(kspace, sampled, self._calibration.maps[0, :, 0])
        images, failure = self._result
        for n in range(clip.first, clip.last):
            image, why = images[n], failure
            if not why and not np.isfinite(image).all():
                why = "the network gave pixels that are NaN or infinite"
            if why:
                image = self.gadget._image(kspace[n][:, None], sampled[n][None], self._calibration)[0]
            yield self._item(clip.frames[n], image, why)

    def _network(self, kspace: np.ndarray, sampled: np.ndarray, maps: np.ndarray) -> tuple[np.ndarray, str]:
        """Images ``[frame, y, x]``, and why the network failed, if it did."""
        return attempt(lambda: self.network(kspace.swapaxes(0, 1), sampled, maps), sampled.shape)

    def _item(self, frame: _Frame, image: np.ndarray, failure: str) -> ImageArray:
        for axis, pixels in zip((-2, -1), frame.size, strict=True):
            image = resample(image, pixels, axis)
        meta = dict(frame.describe.meta)
        if failure:
            self.marks.failed(meta, failure)
        else:
            self.marks.made(meta, self.network.name)
        space = frame.series[0]
        return image_array(
            image[None, None, None, None, None],
            frame.describe.headers,
            [meta],
            self.marks.context.header.encoding(space),
            role="Image",
            series=self.gadget.image_series + space + 1,
            acquisition_headers=frame.describe.acquisition_headers,
            waveforms=frame.describe.waveforms,
        )


def _enlarged(kspace: np.ndarray, multiple: int) -> np.ndarray:
    """K-space ``[..., y, x]`` with zeros around it, up to multiples of `multiple`."""
    for axis in (-2, -1):
        kspace = centered(kspace, axis, -(-kspace.shape[axis] // multiple) * multiple)
    return kspace
