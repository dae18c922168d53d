"""k-space filtering of reconstructed images. ImageArray -> ImageArray."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import cast

import numpy as np

from gadgets.base import Gadget, Stream, parameter
from gadgets.generic import IGNORED, has_meta, image_axes, sampling_region, with_data
from gadgets.items import ImageArray, Item
from recon.filters import WindowKind, apply_windows, window
from recon.fourier import fftc, ifftc

_SIGMA_HELP = "steepness of the Gaussian along {}: exp(-sigma² x² / 2), x = ±1 at the border"
_WIDTH_HELP = "taper of TaperedHanning along {} as a fraction of the sampled length"


class KSpaceFilter(Gadget):
    """Multiply the images' k-space with a window along every axis. ImageArray -> ImageArray.

    Windows have unit noise gain, so that images keep their SNR units. They span the sampled region, which is read from the
    ``sampling_limits_*`` attributes.
    """

    stock = (("gadgetron_mricore", "GenericReconKSpaceFilteringGadget"),)
    pure = True
    ignored = IGNORED

    skip_processing_meta_field: str = parameter("Skip_processing_after_recon", help="images with this attribute pass unchanged")
    filterRO: WindowKind = parameter("Gaussian", help="window along RO")
    filterRO_sigma: float = parameter(1.0, ge=0, help=_SIGMA_HELP.format("RO"))
    filterRO_width: float = parameter(0.15, ge=0, le=1, help=_WIDTH_HELP.format("RO"))
    filterE1: WindowKind = parameter("Gaussian", help="window along E1")
    filterE1_sigma: float = parameter(1.0, ge=0, help=_SIGMA_HELP.format("E1"))
    filterE1_width: float = parameter(0.15, ge=0, le=1, help=_WIDTH_HELP.format("E1"))
    filterE2: WindowKind = parameter("Gaussian", help="window along E2")
    filterE2_sigma: float = parameter(1.0, ge=0, help=_SIGMA_HELP.format("E2"))
    filterE2_width: float = parameter(0.15, ge=0, le=1, help=_WIDTH_HELP.format("E2"))

    def __call__(self, items: Stream) -> Iterator[Item]:
        for images in items.of(ImageArray):
            windows = [] if has_meta(images, self.skip_processing_meta_field) else self._windows(images)
            if all(one is None for one in windows):
                yield images
                continue
            axes = image_axes(images.data)
            filtered = apply_windows(fftc(images.data, axes), windows)
            yield with_data(images, ifftc(filtered, axes).astype(np.complex64, copy=False))

    def _windows(self, images: ImageArray) -> list[np.ndarray | None]:
        """Windows along E2, E1, RO; None for an axis that is not filtered."""
        windows: list[np.ndarray | None] = []
        for name, n, (first, last) in zip(("E2", "E1", "RO"), images.data.shape[-3:], sampling_region(images), strict=True):
            kind = cast(WindowKind, getattr(self, f"filter{name}"))
            if kind == "None" or n == 1:
                windows.append(None)
            else:
                windows.append(
                    _sampled_window(n, first, last, kind, getattr(self, f"filter{name}_sigma"), getattr(self, f"filter{name}_width"))
                )
        return windows


def _sampled_window(n: int, first: int, last: int, kind: WindowKind, sigma: float, width: float) -> np.ndarray:
    """Window over the sampled region, as wide as its farther end asks for, with unit noise gain over the samples."""
    length = n
    if first > 0 and last < n - 1:
        length = min(2 * max(last - n // 2, n // 2 - first) + 1, n)
    weights = np.zeros(n)
    start = n // 2 - length // 2
    weights[start : start + length] = window(length, kind, sigma=sigma, width=math.ceil(width * length))
    if (first, last) != (0, n - 1):
        weights /= np.sqrt(np.mean(weights[first : last + 1] ** 2))
    return weights
