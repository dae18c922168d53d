"""Bring images to the matrix and field of view that the protocol asks for. ImageArray -> ImageArray."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gadgets.base import Gadget, Stream, parameter
from gadgets.generic import IGNORED, encoding_space, with_data
from gadgets.items import ImageArray, Item
from recon.fourier import fftc, ifftc


class FieldOfViewAdjustment(Gadget):
    """Interpolate to the protocol's pixel size by zero filling (or cropping) k-space and crop to its field of view.

    Interpolation keeps the brightness; cropping k-space keeps the noise level. Images whose recon field of view exceeds the
    encoded one pass unchanged, with a warning in the log.
    """

    stock = (("gadgetron_mricore", "GenericReconFieldOfViewAdjustmentGadget"),)
    pure = True
    ignored = IGNORED

    tolerance: float = parameter(0.1, unit="mm", ge=0, help="fields of view that differ by less count as equal")

    def __call__(self, items: Stream) -> Iterator[Item]:
        for images in items.of(ImageArray):
            encoding = items.header.encoding(encoding_space(images))
            matrix, wanted, encoded = encoding.recon.matrix, encoding.recon.field_of_view, encoding.encoded.field_of_view
            if any(encoded[axis] < wanted[axis] - self.tolerance for axis in self._phase_axes(images)):
                items.context.log.warning(
                    "%s: the recon field of view %s mm exceeds the encoded %s mm; images are sent as they are", self.name, wanted, encoded
                )
                yield images
                continue
            data = images.data
            for axis in self._phase_axes(images):
                pixels = matrix[axis]
                if encoded[axis] > wanted[axis] + 1e-6 * wanted[axis]:
                    pixels = 2 * round(encoded[axis] * matrix[axis] / (2 * wanted[axis]))
                data = crop(resample(data, pixels, -1 - axis), min(matrix[axis], pixels), -1 - axis)
            data = resample(data, matrix[0], -1)
            yield with_data(images, np.ascontiguousarray(data))

    @staticmethod
    def _phase_axes(images: ImageArray) -> tuple[int, ...]:
        """y, and z of a volume (axes counted x, y, z)."""
        return (1, 2) if images.data.shape[-3] > 1 else (1,)


def resample(images: np.ndarray, n: int, axis: int) -> np.ndarray:
    """Fourier interpolation of `images` to `n` pixels along `axis`.

    More pixels: zero-filled, brightness kept. Fewer: k-space is cropped with the orthonormal transform's scale, noise level kept.
    """
    have = images.shape[axis]
    if n == have:
        return images
    kspace = fftc(images, axis)
    if n < have:
        cropped: np.ndarray = ifftc(crop(kspace, n, axis), axis)
        return cropped
    before = n // 2 - have // 2
    padding = [(0, 0)] * images.ndim
    padding[axis] = (before, n - have - before)
    enlarged: np.ndarray = ifftc(np.pad(kspace, padding), axis) * np.sqrt(n / have).astype(images.real.dtype)
    return enlarged


def crop(values: np.ndarray, n: int, axis: int) -> np.ndarray:
    """The central `n` along `axis`; index n // 2 stays the centre."""
    start = values.shape[axis] // 2 - n // 2
    where = [slice(None)] * values.ndim
    where[axis] = slice(start, start + n)
    return values[tuple(where)]
