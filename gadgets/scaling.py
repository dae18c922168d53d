"""Scale image arrays for integer output, and maps of the noise over frames. ImageArray -> ImageArray."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gadgets.base import Gadget, Stream, parameter
from gadgets.generic import IGNORED, data_role, encoding_space, has_meta, with_data
from gadgets.items import ImageArray, Item, Meta
from gadgets.meta import PAIRS, put, record_scaling

_DEFAULT_FACTOR = 4.0
_DEFAULT_MAXIMUM = 2048.0


class ImageArrayScaling(Gadget):
    """Multiply images by a factor that fits what they show. ImageArray -> ImageArray.

    SNR, g-factor and noise maps have factors of their own. Images get `scalingFactor`, or (with `use_constant_scalingFactor` false)
    one that is found from their brightness: 4, halved until nothing exceeds `max_intensity_value`, for images in SNR units; whatever
    brings the maximum to 2048 for images far outside that range.
    """

    stock = (("gadgetron_mricore", "GenericReconImageArrayScalingGadget"),)
    ignored = IGNORED

    use_constant_scalingFactor: bool = parameter(True, help="use scalingFactor; false, or a factor <= 0: find it from the images")
    scalingFactor: float = parameter(_DEFAULT_FACTOR, help="factor for images")
    min_intensity_value: int = parameter(64, help="images with a smaller maximum are not in SNR units")
    max_intensity_value: int = parameter(4095, help="largest value of the output's range")
    auto_scaling_only_once: bool = parameter(True, help="keep the first factor found; false: find one for every array")
    use_dedicated_scalingFactor_meta_field: str = parameter(
        "Use_dedicated_scaling_factor", help="images with this attribute get scalingFactor_dedicated"
    )
    scalingFactor_dedicated: float = parameter(100.0, help="factor for images that ask for it")
    scalingFactor_gfactor_map: float = parameter(100.0, help="factor for g-factor maps")
    scalingFactor_snr_map: float = parameter(10.0, help="factor for SNR maps")
    scalingFactor_snr_std_map: float = parameter(1000.0, help="factor for maps of the noise over frames")

    def __call__(self, items: Stream) -> Iterator[Item]:
        found: dict[int, float] = {}
        for images in items.of(ImageArray):
            factor = self._factor(images, found)
            scaled = with_data(images, images.data * np.float32(factor))
            scaled.meta = [dict(meta) for meta in images.meta]
            for meta in scaled.meta:
                add_comment(meta, f"x{factor:.4g}")
                record_scaling(meta, factor)
            yield scaled

    def _factor(self, images: ImageArray, found: dict[int, float]) -> float:
        by_role = {
            "SNR_MAP": self.scalingFactor_snr_map,
            "Gfactor": self.scalingFactor_gfactor_map,
            "STD_MAP": self.scalingFactor_snr_std_map,
        }
        role = data_role(images)
        if role in by_role:
            return by_role[role]
        if has_meta(images, self.use_dedicated_scalingFactor_meta_field):
            return self.scalingFactor_dedicated
        if self.use_constant_scalingFactor and self.scalingFactor > 0:
            return self.scalingFactor
        space = encoding_space(images)
        if space not in found or not self.auto_scaling_only_once:
            found[space] = self._automatic(images.data)
        return found[space]

    def _automatic(self, data: np.ndarray) -> float:
        volumes = data.reshape(-1, *data.shape[-3:])
        middle = max(len(volumes) // 2 - 12, 0)
        magnitude = np.abs(volumes[middle : middle + 24] if len(volumes) > 24 else volumes)
        maximum = float(np.max(magnitude, where=np.isfinite(magnitude), initial=0.0))
        if maximum < np.finfo(np.float32).eps:
            maximum = 1.0
        if not self.min_intensity_value <= maximum <= self.max_intensity_value:
            return _DEFAULT_MAXIMUM / maximum
        factor = _DEFAULT_FACTOR
        while factor >= 2 and maximum * factor > self.max_intensity_value:
            factor /= 2
        return factor if maximum * factor <= self.max_intensity_value else self.max_intensity_value / maximum


def add_comment(meta: Meta, text: str) -> None:
    """Append to the image comment in both dialects."""
    for name in PAIRS["comment"]:
        old = meta.get(name, [])
        put(meta, name, [*(old if isinstance(old, list) else [old]), text])


class NoiseStdMap(Gadget):
    """Besides SNR maps of a series of frames, send the standard deviation of their magnitude over the frames. ImageArray -> ImageArray.

    Series number: ten times that of the SNR maps. Of a correct SNR-unit reconstruction the map is 1 where signal is strong.
    """

    stock = (("gadgetron_mricore", "GenericReconNoiseStdMapComputingGadget"),)
    ignored = IGNORED

    start_N_for_std_map: int = parameter(5, ge=0, help="first N that counts (the signal is steady by then)")

    def __call__(self, items: Stream) -> Iterator[Item]:
        for images in items.of(ImageArray):
            yield images
            frames = images.data[:, :, self.start_N_for_std_map :]
            if data_role(images) == "SNR_MAP" and frames.shape[2] > 1:
                yield self._std_map(images, frames)

    def _std_map(self, images: ImageArray, frames: np.ndarray) -> ImageArray:
        deviation = np.abs(frames).std(axis=2, keepdims=True).astype(np.complex64)
        headers = images.headers[:, :, :1].copy()
        headers["image_series_index"] = headers["image_series_index"] * 10
        index = np.arange(images.headers.size).reshape(images.headers.shape)[:, :, 0].ravel()
        metas = [dict(images.meta[i]) for i in index]
        for meta in metas:
            for name, value in (("role", "STD_MAP"), ("comment", ["GT", "SNR", "STD_MAP"]), ("series_description", "_STD_MAP")):
                put(meta, name, value)
            put(meta, "Use_dedicated_scaling_factor", 1)
        return ImageArray(deviation, headers, metas, images.waveforms, images.acquisition_headers)
