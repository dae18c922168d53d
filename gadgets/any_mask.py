"""Cartesian k-spaces of which any samples may be missing: what was sampled, its fully sampled centre, maps from there.

`AnyMaskRecon` is the base of the reconstructions that need no regular undersampling.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from gadgets.base import Context, Stream, parameter
from gadgets.coil_maps import CoilMapGadget, zero_filled
from gadgets.generic import describe_images, image_array
from gadgets.header import Encoding
from gadgets.items import Item, ReconBit, ReconBuffer, ReconData
from recon.cartesian_sampling import sampled_centre
from recon.espirit import espirit
from recon.filters import apply_windows, reference_window

_REMEDY = (
    "sample some 16 lines or more around the centre of k-space with the image, or flag separate calibration lines "
    "IS_PARALLEL_CALIBRATION (20), in the first buffer of a series at least"
)


@dataclass(eq=False)
class Calibration:
    """Of one slice. block: fully sampled k-space ``[CHA, E2, E1, E0]``, its centre at n // 2; maps: ``[set, CHA, E2, E1, E0]``;
    kernel: what else is learnt from the block, see `AnyMaskRecon._kernel`."""

    block: np.ndarray
    maps: np.ndarray
    kernel: np.ndarray | None = None


class AnyMaskRecon(CoilMapGadget):
    """ReconData -> ImageArray, image by image (`_image`), series `image_series` + space + 1.

    A sample that is 0 in all channels (or not finite in one) counts as missing. Calibration lines that lie in the imaging matrix
    are part of the image. The sensitivities of a slice come from separate calibration lines where there are some, else from the
    fully sampled centre of its own k-space, averaged over N and S; a buffer without either takes those of an earlier one.
    Brightness is that of the Fourier transform of the complete k-space, for maps of unit length.
    """

    coil_maps: Literal["espirit", "image"] = parameter(
        "espirit", help="espirit: from the calibration k-space; image: by coil_map_algorithm from its low-resolution image"
    )
    calibration_size: int = parameter(32, ge=4, unit="samples", help="use at most this much of the fully sampled centre, each axis")
    espirit_kernel_size: int | None = parameter(None, ge=2, unit="samples", help="edge of ESPIRiT's patches; none: 6, in volumes 4")
    espirit_threshold: float = parameter(0.02, gt=0, lt=1, help="singular values below this fraction of the largest are noise")
    espirit_crop: float = parameter(0.8, ge=0, le=1, help="the image is 0 where ESPIRiT's eigenvalue lies below: no object; 0: nowhere")

    map_sets: int = 1
    """Sets of ESPIRiT's maps, more than one for objects that fold over themselves."""

    def __call__(self, items: Stream) -> Iterator[Item]:
        items.header.require_cartesian()
        known: dict[tuple[int, int], Calibration] = {}
        for item in items.of(ReconData):
            for space, bit in enumerate(item.bits):
                if not bit.data.data.size:
                    continue
                encoding = items.header.encoding(space)
                kspace, separate = _parts(bit, encoding, self.name, items.context)
                for location in range(len(kspace)):
                    source = kspace[location] if separate is None else separate[min(location, len(separate) - 1)]
                    known[space, location] = self._calibrate(source, kspace.shape[3:], known.get((space, location)))
                images = np.zeros((*kspace.shape[:3], 1, *kspace.shape[4:]), np.complex64)
                for where in np.ndindex(*kspace.shape[:3]):
                    sampled = np.any(kspace[where], axis=0)
                    if sampled.any():  # else there was no such combination of N and S
                        images[where] = self._image(kspace[where], sampled, known[space, where[0]])
                headers, metas = describe_images(bit, images.shape, items.header, space)
                series = self.image_series + space + 1
                result = image_array(images, headers, metas, encoding, role="Image", series=series, acquisition_headers=bit.data.headers)
                result.waveforms = item.waveforms
                yield result

    def _image(self, kspace: np.ndarray, sampled: np.ndarray, calibration: Calibration) -> np.ndarray:
        """Complex image ``[E2, E1, E0]`` of k-space ``[CHA, E2, E1, E0]``, sampled ``[E2, E1, E0]``."""
        raise NotImplementedError

    def _kernel(self, block: np.ndarray) -> np.ndarray | None:
        """What the reconstruction learns from the calibration k-space ``[CHA, E2, E1, E0]``."""
        return None

    def _calibrate(self, source: np.ndarray, shape: tuple[int, ...], known: Calibration | None) -> Calibration:
        """The calibration in ``source`` ``[S, N, CHA, E2, E1, E0]`` for images of ``shape`` (CHA, E2, E1, E0), or the one known."""
        block = _centre(source, self.calibration_size)
        needed = [min(n, self._smallest_block()) for n in shape[1:]]
        if any(n < least for n, least in zip(block.shape[1:], needed, strict=True)):
            if known is None or known.maps.shape[1:] != shape:
                raise ValueError(
                    f"the centre of k-space is fully sampled over {block.shape[1:]} samples (E2, E1, E0) only, {tuple(needed)} are needed "
                    f"for calibration; {_REMEDY}"
                )
            return known
        if known is not None and known.maps.shape[1:] == shape and np.array_equal(known.block, block):
            return known
        return Calibration(block, self._sensitivities(block, shape), self._kernel(block))

    def _smallest_block(self) -> int:
        return (self.espirit_kernel_size or 6) if self.coil_maps == "espirit" else 1

    def _sensitivities(self, block: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        maps: np.ndarray
        if len(block) == 1:  # nothing to compare it with
            maps = np.ones((1, *shape), np.complex64)
        elif self.coil_maps == "espirit":
            flat = shape[1] == 1
            source, image = (block[:, 0], shape[2:]) if flat else (block, shape[1:])
            edge = self.espirit_kernel_size or (6 if flat else 4)
            kernel = [min(edge, n) for n in source.shape[1:]]
            found = espirit(
                source,
                image,
                source.shape[1:],
                kernel,
                sets=min(self.map_sets, len(block)),
                threshold=self.espirit_threshold,
                crop=self.espirit_crop,
                rank=len(image),
            )
            maps = found.reshape(-1, *shape)
        else:
            windows = [
                reference_window(n, 0, n - 1) if 1 < n < whole else None for n, whole in zip(block.shape[1:], shape[1:], strict=True)
            ]
            maps = self.maps(zero_filled(apply_windows(block, windows), shape[1:])[None, None, None])[0, 0]
        return maps


def _parts(bit: ReconBit, encoding: Encoding, name: str, context: Context) -> tuple[np.ndarray, np.ndarray | None]:
    """K-space with the calibration lines that lie in its matrix filled in, and those that are a scan of their own, or None."""
    data = _measured(bit.data, name, context)
    if bit.ref is None or not bit.ref.data.size:
        return data, None
    ref = _measured(bit.ref, name, context)
    if ref.shape != data.shape or encoding.calibration_mode in ("separate", "external"):
        return data, _cropped(ref)
    missing = ~np.any(data, axis=(3, 6), keepdims=True)
    return np.where(missing, ref, data), None


def _measured(buffer: ReconBuffer, name: str, context: Context) -> np.ndarray:
    """The buffer's k-space with 0 for samples that are not finite in some channel, and beyond the ends of an asymmetric echo."""
    kspace = buffer.data
    finite = np.isfinite(kspace).all(axis=3, keepdims=True)
    lost = finite.size - int(np.count_nonzero(finite))
    if lost:
        context.count("samples not finite", lost)
        context.log.warning("%s: %d samples are NaN or infinite in some channel and count as not acquired", name, lost)
        kspace = np.where(finite, kspace, 0)
    samples, limits = kspace.shape[-1], buffer.sampling["sampling_limits"][0]
    first, last = int(limits["min"]), int(limits["max"])
    if 0 <= first < last < samples and last - first + 1 < samples:
        inside = np.zeros(samples, bool)
        inside[first : last + 1] = True
        kspace = np.where(inside, kspace, 0)
    return kspace


def _cropped(separate: np.ndarray) -> np.ndarray | None:
    """Calibration lines of a scan of their own, cropped to the sampled ones, whose middle is the centre of k-space; None for none."""
    lines: np.ndarray = np.any(separate, axis=(0, 1, 2, 3, 6))
    if not lines.any():
        return None
    e2, e1 = (np.flatnonzero(np.any(lines, axis=axis)) for axis in (1, 0))
    return separate[..., e2[0] : e2[-1] + 1, e1[0] : e1[-1] + 1, :]


def _centre(source: np.ndarray, largest: int) -> np.ndarray:
    """The fully sampled centre ``[CHA, E2, E1, E0]`` of ``[S, N, CHA, E2, E1, E0]``, averaged over the S and N that sampled each point."""
    sampled: np.ndarray = np.any(source, axis=2)
    sizes = [min(n, largest) for n in sampled_centre(np.any(sampled, axis=(0, 1)))]
    inside: tuple[Any, ...] = (..., *(slice(n // 2 - m // 2, n // 2 - m // 2 + m) for n, m in zip(source.shape[3:], sizes, strict=True)))
    times = sampled[inside].sum(axis=(0, 1))
    mean: np.ndarray = source[inside].sum(axis=(0, 1)) / times.astype(np.float32)
    return mean
