"""From reconstructed images to what a client shows: splitting, real-valued images, scaling, integers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import ClassVar

import numpy as np

from gadgets.base import Context, Gadget, Stream, parameter
from gadgets.items import Image, ImageArray, Item, Text
from gadgets.layout import ImageType, clone
from gadgets.meta import is_quantitative, record_scaling


class ImageArraySplit(Gadget):
    """Send each image of an array on its own: N fastest, then S, then LOC. ImageArray -> Image. Images pass."""

    stock = (("gadgetron_mricore", "ImageArraySplitGadget"),)
    pure = True

    def __call__(self, items: Stream) -> Iterator[Item]:
        for array in items.of(ImageArray):
            for place, index in enumerate(np.ndindex(array.headers.shape)):
                meta = dict(array.meta[place]) if place < len(array.meta) else {}
                yield Image(clone(array.headers[index]), array.data[index], meta)


_SERIES_OFFSET = {ImageType.MAGNITUDE: 0, ImageType.PHASE: 3000, ImageType.REAL: 1000, ImageType.IMAG: 2000}


class Extract(Gadget):
    """Magnitude, phase, real and imaginary parts of complex images, each as an image of its own.

    Image -> Image, in this order; the series index grows by 0, 3000, 1000, 2000. Real-valued images pass.
    """

    stock = (("gadgetron_mricore", "ExtractGadget"),)
    pure = True

    extract_mask: int = parameter(0, ge=0, le=15, help="deprecated: sum of 1 magnitude, 2 real, 4 imaginary, 8 phase")
    extract_magnitude: bool = parameter(True, help="send the magnitude")
    extract_real: bool = parameter(False, help="send the real part")
    extract_imag: bool = parameter(False, help="send the imaginary part")
    extract_phase: bool = parameter(False, help="send the phase")
    real_imag_offset: float = parameter(0.0, help="added to real and imaginary parts")
    phase_offset: float = parameter(
        math.pi,
        unit="rad",
        help="added to the phase (-pi to pi); Gadgetron adds pi. Set 0 in front of FloatToUShort, which expects -pi to pi",
    )

    def __call__(self, items: Stream) -> Iterator[Item]:
        wanted = [
            kind
            for kind, asked, bit in (
                (ImageType.MAGNITUDE, self.extract_magnitude, 1),
                (ImageType.PHASE, self.extract_phase, 8),
                (ImageType.REAL, self.extract_real, 2),
                (ImageType.IMAG, self.extract_imag, 4),
            )
            if asked or self.extract_mask & bit
        ]
        if not wanted:
            raise ValueError("nothing to extract: set extract_magnitude, extract_phase, extract_real or extract_imag")
        for image in items.of(Image):
            if np.iscomplexobj(image.data):
                yield from (self._extracted(image, kind) for kind in wanted)
            else:
                yield image

    def _extracted(self, image: Image, kind: ImageType) -> Image:
        offset = self.phase_offset if kind is ImageType.PHASE else self.real_imag_offset if kind is not ImageType.MAGNITUDE else 0.0
        pixels = _part(image.data, kind)
        extracted = image.with_data(pixels + pixels.dtype.type(offset) if offset else pixels)
        if offset:
            record_scaling(extracted.meta, 1.0, offset)
        extracted.header["image_type"] = kind
        extracted.header["image_series_index"] += _SERIES_OFFSET[kind]
        return extracted


class ComplexToFloat(Gadget):
    """The part of complex images that their ``image_type`` names; the magnitude where it names none. Image -> Image."""

    stock = (("gadgetron_mricore", "ComplexToFloatGadget"),)
    pure = True

    def __call__(self, items: Stream) -> Iterator[Item]:
        for image in items.of(Image):
            if not np.iscomplexobj(image.data):
                yield image
                continue
            kind = ImageType(image.header["image_type"]) if image.header["image_type"] in _SERIES_OFFSET else ImageType.MAGNITUDE
            converted = image.with_data(_part(image.data, kind))
            converted.header["image_type"] = kind
            yield converted


def _part(data: np.ndarray, kind: ImageType) -> np.ndarray:
    if kind is ImageType.MAGNITUDE:
        part = np.abs(data)
    elif kind is ImageType.PHASE:
        part = np.angle(data)
    else:
        part = data.real if kind is ImageType.REAL else data.imag
    return np.ascontiguousarray(part)


class AutoScale(Gadget):
    """Scale magnitude images, each on its own, so that the 99th percentile of their pixels becomes `max_value`.

    Image -> Image. The percentile comes from a histogram of `histogram_bins` between 0 and the maximum. The factor is noted in the
    attributes. Pixels that are no finite numbers do not count; images without a positive pixel pass as they are, as do complex ones,
    other image types and maps of tissue parameters.
    """

    stock = (("gadgetron_mricore", "AutoScaleGadget"),)
    pure = True

    max_value: float = parameter(2048.0, gt=0, help="what the 99th percentile becomes")
    histogram_bins: int = parameter(100, ge=1, help="bins of the histogram")

    def __call__(self, items: Stream) -> Iterator[Item]:
        for image in items.of(Image):
            scalable = image.header["image_type"] == ImageType.MAGNITUDE and not np.iscomplexobj(image.data)
            yield self._scaled(image) if scalable and not is_quantitative(image.meta) else image

    def _scaled(self, image: Image) -> Image:
        finite = image.data[np.isfinite(image.data)]
        top = finite.max(initial=0)
        if not top > 0:
            return image
        if image.data.dtype.kind != "f":
            finite, top = finite.astype(np.float32), np.float32(top)
        factor = self.max_value / float(self._percentile(finite, top))
        scaled = image.with_data(_as(image.data.astype(np.float64) * factor, image.data.dtype))
        record_scaling(scaled.meta, factor)
        return scaled

    def _percentile(self, pixels: np.ndarray, top: np.floating) -> np.floating:
        bins = self.histogram_bins
        places = np.clip(np.floor(pixels / top * top.dtype.type(bins)), 0, bins - 1).astype(np.intp)
        reached = np.cumsum(np.bincount(places, minlength=bins))
        last = int(np.searchsorted(reached, 0.99 * pixels.size))
        percentile: np.floating = top.dtype.type(last + 2) * (top / top.dtype.type(bins))
        return percentile


def _as(pixels: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Float pixels in another type; for integers cut off towards 0 and kept in range."""
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        pixels = np.clip(np.trunc(pixels), limits.min, limits.max)
    return pixels.astype(dtype)


class _FloatToInteger(Gadget):
    """Round real-valued images to integers.

    Image -> Image. Magnitude: |x|. Real, imaginary: x + `intensity_offset`; a window centre in the attributes moves along. Phase:
    x * `intensity_offset` / pi + `intensity_offset`, so that -pi to pi fills 0 to twice the offset. Halves are rounded away from
    zero, then all is kept between `min_intensity` and `max_intensity`. NaN becomes 0; NaN and infinities are counted and logged.
    Complex and integer images pass, and maps of tissue parameters, whose values would be lost.
    """

    pure = True
    dtype: ClassVar[type[np.integer]]
    max_intensity: int
    min_intensity: int
    intensity_offset: int

    def __call__(self, items: Stream) -> Iterator[Item]:
        for image in items.of(Image):
            passes = image.data.dtype.kind != "f" or is_quantitative(image.meta)
            yield image if passes else self._converted(image, items.context)

    def _converted(self, image: Image, context: Context) -> Image:
        kind, offset = image.header["image_type"], np.float32(self.intensity_offset)
        factor = 1.0
        if kind == ImageType.MAGNITUDE:
            pixels, offset = np.abs(image.data), np.float32(0)
        elif kind in (ImageType.REAL, ImageType.IMAG):
            pixels = image.data + offset
        elif kind == ImageType.PHASE:
            pixels = image.data * offset / np.float32(np.pi) + offset
            factor = float(offset) / math.pi
        else:
            raise ValueError(
                f"image {image.header['image_index']} of series {image.header['image_series_index']} has image_type {kind}; "
                "magnitude, phase, real or imaginary expected: put ComplexToFloat or Extract in front"
            )
        converted = image.with_data(self._rounded(pixels, context))
        if factor != 1.0 or offset:
            record_scaling(converted.meta, factor, float(offset))
        return converted

    def _rounded(self, pixels: np.ndarray, context: Context) -> np.ndarray:
        invalid = pixels.size - int(np.count_nonzero(np.isfinite(pixels)))
        if invalid:
            context.count("pixels that were NaN or infinite", invalid)
            context.log.warning("%s: %d of %d pixels are NaN or infinite", self.name, invalid, pixels.size)
        clipped = np.clip(pixels.astype(np.float64), self.min_intensity, self.max_intensity)
        rounded = np.trunc(clipped + np.copysign(0.5, clipped))
        return np.nan_to_num(rounded, copy=False, nan=0.0).astype(self.dtype)


class FloatToUShort(_FloatToInteger):
    __doc__ = _FloatToInteger.__doc__
    stock = (("gadgetron_mricore", "FloatToUShortGadget"),)
    dtype = np.uint16

    max_intensity: int = parameter(4095, ge=0, le=65535, help="largest pixel")
    min_intensity: int = parameter(0, ge=0, le=65535, help="smallest pixel")
    intensity_offset: int = parameter(2048, help="zero of real, imaginary and phase images")


class FloatToShort(_FloatToInteger):
    __doc__ = _FloatToInteger.__doc__
    stock = (("gadgetron_mricore", "FloatToShortGadget"),)
    dtype = np.int16

    max_intensity: int = parameter(32767, ge=-32768, le=32767, help="largest pixel")
    min_intensity: int = parameter(-32768, ge=-32768, le=32767, help="smallest pixel")
    intensity_offset: int = parameter(0, help="zero of real, imaginary and phase images")


class FloatToInt(_FloatToInteger):
    __doc__ = _FloatToInteger.__doc__
    stock = (("gadgetron_mricore", "FloatToIntGadget"),)
    dtype = np.int32

    max_intensity: int = parameter(4095, ge=-(2**31), le=2**31 - 1, help="largest pixel")
    min_intensity: int = parameter(0, ge=-(2**31), le=2**31 - 1, help="smallest pixel")
    intensity_offset: int = parameter(2048, help="zero of real, imaginary and phase images")


class FloatToUInt(_FloatToInteger):
    __doc__ = _FloatToInteger.__doc__
    stock = (("gadgetron_mricore", "FloatToUIntGadget"),)
    dtype = np.uint32

    max_intensity: int = parameter(4095, ge=0, le=2**32 - 1, help="largest pixel")
    min_intensity: int = parameter(0, ge=0, le=2**32 - 1, help="smallest pixel")
    intensity_offset: int = parameter(2048, help="zero of real, imaginary and phase images")


class ImageFinish(Gadget):
    """End of a chain: everything passes; text goes to the log."""

    stock = (("gadgetron_mricore", "ImageFinishGadget"),)
    pure = True

    def __call__(self, items: Stream) -> Iterator[Item]:
        for item in items:
            if isinstance(item, Text):
                items.context.log.info("%s: %s", self.name, item.text)
                continue
            yield item
