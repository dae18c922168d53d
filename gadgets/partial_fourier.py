"""Partial Fourier handling of reconstructed images. ImageArray -> ImageArray.

The sampled part of k-space is read from the images' ``sampling_limits_*`` attributes.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gadgets.base import Gadget, Stream, parameter
from gadgets.generic import encoding_space, has_meta, image_axes, sampling_region, with_data
from gadgets.items import ImageArray, Item
from recon.fourier import fftc, ifftc
from recon.partial_fourier import pocs, taper_filter

Region = list[tuple[int, int]]


class _PartialFourier(Gadget):
    """To k-space, complete it, and back; images that are fully sampled or marked to be skipped pass."""

    ignored = ("perform_timing", "verbose", "debug_folder")

    skip_processing_meta_field: str = parameter("Skip_processing_after_recon", help="images with this attribute pass unchanged")

    def __call__(self, items: Stream) -> Iterator[Item]:
        for images in items.of(ImageArray):
            if has_meta(images, self.skip_processing_meta_field):
                yield images
                continue
            region = _partial_region(images, items.header.encoding(encoding_space(images)).acceleration)
            if all(last - first + 1 == n for n, (first, last) in zip(images.data.shape[-3:], region, strict=True)):
                yield images
                continue
            axes = image_axes(images.data)
            completed = self._complete(fftc(images.data, axes), region)
            yield with_data(images, ifftc(completed, axes).astype(np.complex64, copy=False))

    def _complete(self, kspace: np.ndarray, region: Region) -> np.ndarray:
        raise NotImplementedError


def _partial_region(images: ImageArray, acceleration: tuple[int, int]) -> Region:
    """Sampled (first, last) along E2, E1, RO. An imbalance of up to the acceleration is no partial Fourier: lines are missing anyway."""
    region = sampling_region(images)
    for axis, factor in ((0, acceleration[1]), (1, acceleration[0])):
        n = images.data.shape[axis - 3]
        first, last = region[axis]
        if abs((last - n // 2) - (n // 2 - first)) <= factor:
            region[axis] = (0, n - 1)
    return region


class PartialFourierFilter(_PartialFourier):
    """Partial Fourier by tapering the border of the sampled region, so that zero filling does not ring."""

    stock = (("gadgetron_mricore", "GenericReconPartialFourierHandlingFilterGadget"),)
    pure = True

    partial_fourier_filter_RO_width: float = parameter(0.15, ge=0, le=1, help="taper along RO as a fraction of the matrix")
    partial_fourier_filter_E1_width: float = parameter(0.15, ge=0, le=1, help="taper along E1 as a fraction of the matrix")
    partial_fourier_filter_E2_width: float = parameter(0.15, ge=0, le=1, help="taper along E2 as a fraction of the matrix")
    partial_fourier_filter_densityComp: bool = parameter(False, help="count samples without a mirror image twice")

    def _complete(self, kspace: np.ndarray, region: Region) -> np.ndarray:
        widths = (self.partial_fourier_filter_E2_width, self.partial_fourier_filter_E1_width, self.partial_fourier_filter_RO_width)
        return taper_filter(kspace, region, width=widths, density_compensation=self.partial_fourier_filter_densityComp)


class PartialFourierPOCS(_PartialFourier):
    """Partial Fourier by projection onto convex sets with the low-resolution phase."""

    stock = (("gadgetron_mricore", "GenericReconPartialFourierHandlingPOCSGadget"),)
    pure = True

    partial_fourier_POCS_iters: int = parameter(6, ge=1, help="at most this many iterations")
    partial_fourier_POCS_thres: float = parameter(0.01, ge=0, help="relative change of the image that ends the iteration")
    partial_fourier_POCS_transitBand: int = parameter(24, ge=0, unit="samples", help="blend between measured and estimated, RO and E1")
    partial_fourier_POCS_transitBand_E2: int = parameter(16, ge=0, unit="samples", help="blend between measured and estimated, E2")

    def _complete(self, kspace: np.ndarray, region: Region) -> np.ndarray:
        completed = np.empty_like(kspace)
        band = self.partial_fourier_POCS_transitBand
        for where in np.ndindex(*kspace.shape[:-3]):
            # The threshold is for each image, so that a faint one is not cut short by a bright one.
            completed[where] = pocs(
                kspace[where],
                region,
                iterations=self.partial_fourier_POCS_iters,
                tolerance=self.partial_fourier_POCS_thres,
                transition=(self.partial_fourier_POCS_transitBand_E2, band, band),
            )
        return completed
