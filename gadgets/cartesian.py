"""Fully sampled Cartesian k-space to images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from gadgets.base import Context, Gadget, Stream, parameter
from gadgets.buffer import sort_bucket
from gadgets.geometry import central_header, image_header
from gadgets.header import Encoding
from gadgets.items import AcquisitionBucket, Image, ImageArray, Item, ReconBuffer, ReconData
from gadgets.layout import ACQUISITION_HEADER, IMAGE_HEADER, blank
from gadgets.meta import describe
from recon.coils import combine, inati
from recon.fourier import ifftc


class SimpleRecon(Gadget):
    """Inverse Fourier transform and root sum of squares over the channels.

    ReconData -> ImageArray, one for each encoding space with data. Calibration data are not used; what was not sampled is zero. The
    matrix is that of the k-space. Image indices count from 1, the series is 0. Geometry, counters and time stamps come from the
    readout nearest the centre of k-space (Gadgetron: from the centre itself, all zero where no readout was).
    """

    stock = (("gadgetron_mricore", "SimpleReconGadget"),)

    def __call__(self, items: Stream) -> Iterator[Item]:
        images = 0
        for recon_data in items.of(ReconData):
            for bit in recon_data.bits:
                if bit.data.data.size:
                    yield _simple(bit.data, recon_data, images, items.context)
                    images += int(np.prod(bit.data.data.shape[:3]))


def _simple(buffer: ReconBuffer, source: ReconData, count: int, context: Context) -> ImageArray:
    locations, sets, repeats, _, *matrix = buffer.data.shape
    data = np.empty((locations, sets, repeats, 1, *matrix), np.complex64)
    headers = np.zeros((locations, sets, repeats), IMAGE_HEADER)
    meta = []
    for index in np.ndindex(headers.shape):
        count += 1
        acquisition = _central(buffer, index)
        data[index][0] = combine(ifftc(buffer.data[index], (-3, -2, -1)), rank=3)
        headers[index] = image_header(acquisition, matrix[::-1], buffer.sampling["recon_FOV"], series=0, index=count)
        meta.append(
            describe(context.header, sampling=buffer.sampling, acquisition_header=acquisition, image_number=count, comment="reconstream")
        )
    return ImageArray(data, headers, meta, source.waveforms or None, buffer.headers)


def _central(buffer: ReconBuffer, index: tuple[int, ...]) -> np.void:
    limits = buffer.sampling["sampling_limits"]
    header = central_header(buffer.headers[index], limits[1]["center"], limits[2]["center"])
    return blank(ACQUISITION_HEADER) if header is None else header


class CartesianRecon(Gadget):
    """Fully sampled Cartesian scans, 2D or 3D, to images in the matrix and field of view the header asks for.

    AcquisitionBucket or ReconData -> Image, one for each slice, contrast, phase, repetition and set. The averages of a bucket are
    averaged in k-space; of ReconData, each N, S and LOC is an image. K-space is zero-filled or cropped to the resolution of the
    reconstructed matrix and the image cropped to the reconstructed field of view, which takes away what is left of the
    oversampling. Channels are combined adaptively (maps after Inati et al., ISMRM 2014, from the images themselves) or as root sum
    of squares.

    Lines that were not sampled are zero: a scan accelerated along its phase encoding comes out aliased and is warned of.
    """

    combination: Literal["adaptive", "rss"] = parameter(
        "adaptive", help="how channels are combined: adaptive keeps the phase, rss does not"
    )
    average: bool = parameter(True, help="average over the average counter; false: an image for each average")
    image_series: int = parameter(1, ge=0, le=65535, help="series index of the images")

    def __call__(self, items: Stream) -> Iterator[Item]:
        context, count = items.context, 0
        context.header.require_cartesian()
        _warn_of_acceleration(self.name, context)
        source: Iterator[AcquisitionBucket | ReconData] = items.of(AcquisitionBucket, ReconData)
        for item in source:
            for recon_data in [item] if isinstance(item, ReconData) else self._sorted(item, context):
                for space, bit in enumerate(recon_data.bits):
                    for index in np.ndindex(bit.data.headers.shape[:3]):
                        if bit.data.headers[index]["number_of_samples"].any():
                            count += 1
                            yield self._image(bit.data, index, context, space, count)

    def _sorted(self, bucket: AcquisitionBucket, context: Context) -> list[ReconData]:
        dimension = "average" if self.average else "none"
        kspaces = sort_bucket(bucket, context, n_dimension=dimension, split_slices=True, ignore_segment=True)
        for recon_data in kspaces:
            for bit in recon_data.bits:
                bit.data = averaged(bit.data)
        return kspaces

    def _image(self, buffer: ReconBuffer, index: tuple[int, ...], context: Context, space: int, count: int) -> Image:
        encoding, acquisition = context.header.encoding(space), _central(buffer, index)
        kspace = buffer.data[index]
        image = self._combined(to_image(kspace, field_of_view(encoding, kspace.shape[-1]), encoding))
        header = image_header(acquisition, image.shape[::-1], encoding.recon.field_of_view, series=self.image_series, index=count)
        meta = describe(
            context.header,
            sampling=buffer.sampling,
            acquisition_header=acquisition,
            image_number=count,
            history=["reconstream", "FFT", self.combination],
        )
        return Image(header, image[None], meta)

    def _combined(self, images: np.ndarray) -> np.ndarray:
        """Coil images [CHA, z, y, x] to one complex image [z, y, x]."""
        if self.combination == "rss":
            combined = combine(images, rank=3)
        elif images.shape[0] == 1:
            combined = images[0]
        elif images.shape[1] == 1:
            combined = combine(images[:, 0], inati(images[:, 0]))[None]
        else:
            combined = combine(images, inati(images, rank=3), rank=3)
        return np.asarray(combined, np.complex64)


def to_image(kspace: np.ndarray, field_of_view_xyz: tuple[float, float, float], encoding: Encoding) -> np.ndarray:
    """K-space to images in the header's reconstructed matrix and field of view.

    Args:
        kspace: complex ``[..., E2, E1, E0]``, centred.
        field_of_view_xyz: field of view of that k-space (the inverse of its steps) in mm.
        encoding: gives the reconstructed space.

    Returns:
        complex64 ``[..., z, y, x]``. The zero-filled matrix is rounded to whole samples, which moves the edge of the image by half a
        pixel at most. Values do not depend on the zero-filling and are those of an orthonormal transform where the matrix
        does not change.
    """
    spaces = zip(encoding.recon.matrix, encoding.recon.field_of_view, field_of_view_xyz, strict=True)
    for axis, (wanted, shown, covered) in enumerate(spaces, start=1):
        acquired = kspace.shape[-axis]
        if acquired == 1:
            continue  # the slice of a 2D scan
        filled = round(wanted * covered / shown) if shown > 0 and covered > 0 else acquired
        kspace = centered(kspace, -axis, filled) * np.float32(np.sqrt(filled / acquired))
        kspace = centered(ifftc(kspace, -axis), -axis, wanted)
    return np.ascontiguousarray(kspace, np.complex64)


def centered(array: np.ndarray, axis: int, size: int) -> np.ndarray:
    """Crop or zero-pad along `axis` to `size`; index n // 2 stays the centre."""
    length = array.shape[axis]
    if size == length:
        return array
    before = size // 2 - length // 2
    if size < length:
        return np.moveaxis(np.moveaxis(array, axis, 0)[-before : size - before], 0, axis)
    padding = [(0, 0)] * array.ndim
    padding[axis] = (before, size - length - before)
    return np.pad(array, padding)


def field_of_view(encoding: Encoding, samples: int) -> tuple[float, float, float]:
    """Field of view of a k-space of so many samples: the encoded one; along x the reconstructed one where oversampling is gone."""
    x, y, z = encoding.encoded.field_of_view
    shown = encoding.recon.field_of_view[0]
    cropped = x > 0 and samples == int(encoding.encoded.matrix[0] * shown / x + 1e-3)
    return (shown if cropped else x), y, z


def averaged(buffer: ReconBuffer) -> ReconBuffer:
    """Mean over N of the lines that were sampled, with the first header of each."""
    if buffer.headers.shape[2] <= 1:
        return buffer
    sampled = buffer.headers["number_of_samples"] > 0
    weight = (1 / np.maximum(sampled.sum(2, keepdims=True), 1)).astype(np.float32)
    mean = buffer.data.sum(2, keepdims=True) * weight[:, :, :, None, :, :, None]
    first = np.take_along_axis(buffer.headers, sampled.argmax(2)[:, :, None], axis=2)
    return ReconBuffer(mean, first, buffer.sampling)


def _warn_of_acceleration(name: str, context: Context) -> None:
    for space, encoding in enumerate(context.header.encodings):
        if max(encoding.acceleration) > 1:
            context.log.warning(
                "%s: encoding %d is accelerated %d x %d; its images will be aliased, use cartesian_grappa.xml",
                *(name, space, *encoding.acceleration),
            )
