"""Virtual and fewer receiver channels."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from gadgets.base import Context, Gadget, ParameterError, Stream, parameter
from gadgets.items import Acquisition, Item
from gadgets.layout import Flag


class PCACoil(Gadget):
    """Rotate the channels to principal components, strongest first.

    Acquisition -> Acquisition. Readouts of a slice are held until its last one or until `readouts` have come; the components are
    those of their central samples, mean removed, and are used for all readouts of that slice (Buehrer et al., Magn Reson Med
    2007;57:1131). Channels named in `uncombined_channels_by_name` come first, unchanged. Follow with CoilReduction to drop the weak
    ones. Noise readouts are dropped.

    Where a stream ends before a slice is complete, its readouts are rotated and sent; Gadgetron loses them.
    """

    stock = (("gadgetron_mricore", "PCACoilGadget"),)
    ignored = ("present_uncombined_channels",)

    uncombined_channels_by_name: str = parameter("", help="names of coils, separated by commas, to keep as they are")
    readouts: int = parameter(100, ge=1, unit="readouts", help="how many readouts of a slice the components are computed from, at most")
    samples: int = parameter(16, ge=1, unit="samples", help="samples around the echo used of each; all of them below 16 readouts")

    def __call__(self, items: Stream) -> Iterator[Item]:
        keep = self._uncombined(items.context)
        held: dict[tuple[int, int], list[Acquisition]] = {}
        rotations: dict[tuple[int, int], np.ndarray] = {}
        for acquisition in items.of(Acquisition):
            if acquisition.is_flag_set(Flag.IS_NOISE_MEASUREMENT):
                items.context.count("noise readouts ignored")
                continue
            key = (int(acquisition.header["idx"]["slice"]), acquisition.data.shape[0])
            if key not in rotations:
                held.setdefault(key, []).append(acquisition)
                if len(held[key]) < self.readouts and not acquisition.is_flag_set(Flag.LAST_IN_SLICE):
                    continue
                rotations[key] = self._rotation(held[key], keep)
                yield from (_mixed(rotations[key], one) for one in held.pop(key))
            else:
                yield _mixed(rotations[key], acquisition)
        for acquisitions in held.values():
            rotation = self._rotation(acquisitions, keep)
            yield from (_mixed(rotation, one) for one in acquisitions)

    def _rotation(self, acquisitions: list[Acquisition], keep: list[int]) -> np.ndarray:
        """Matrix [component, channel]: unit rows for kept channels, then the components of the others."""
        channels = acquisitions[0].data.shape[0]
        kept = [channel for channel in keep if channel < channels]
        others = np.setdiff1d(np.arange(channels), kept)
        data = np.concatenate([self._central(one, len(acquisitions)) for one in acquisitions], axis=1)[others].astype(np.complex128)
        data -= data.mean(axis=1, keepdims=True)
        _, vectors = np.linalg.eigh(data @ data.conj().T)
        rotation = np.zeros((channels, channels), np.complex64)
        rotation[np.arange(len(kept)), kept] = 1
        rotation[len(kept) :, others] = vectors[:, ::-1].conj().T
        return rotation

    def _central(self, acquisition: Acquisition, readouts: int) -> np.ndarray:
        samples = acquisition.data.shape[1]
        if readouts < 16 or samples <= self.samples:
            return acquisition.data
        start = min(max(int(acquisition.header["center_sample"]) - self.samples // 2, 0), samples - self.samples)
        return acquisition.data[:, start : start + self.samples]

    def _uncombined(self, context: Context) -> list[int]:
        labels = list(context.header.coil_labels.values())
        names = [name.strip() for name in self.uncombined_channels_by_name.split(",") if name.strip()]
        for name in names:
            if name not in labels:
                context.log.warning("%s: the header has no coil %r to keep uncombined", self.name, name)
        return [labels.index(name) for name in names if name in labels]


def _mixed(matrix: np.ndarray, acquisition: Acquisition) -> Acquisition:
    return acquisition.with_data(matrix @ acquisition.data, acquisition.trajectory)


class CoilReduction(Gadget):
    """Keep some channels.

    Acquisition -> Acquisition. Channels whose mask value is not 0, or the first `coils_out`. Channels beyond the mask are dropped.
    """

    stock = (("gadgetron_mricore", "CoilReductionGadget"),)

    coil_mask: str = parameter("", help="0 or 1 for each channel, with or without blanks between; empty: by coils_out")
    coils_out: int = parameter(128, ge=1, unit="channels", help="how many channels to keep, from the first on")

    def __init__(self, name: str = "", /, **properties: Any) -> None:
        super().__init__(name, **properties)
        mask = self.coil_mask.strip()
        if not re.fullmatch(r"[01\s,]*", mask):
            raise ParameterError(f"coil_mask {mask!r}: expected 0 and 1, such as '1 1 0 1'")
        self._kept = [index for index, digit in enumerate(re.sub(r"[\s,]+", "", mask)) if digit == "1"] if mask else None
        if self._kept == []:
            raise ParameterError(f"coil_mask {mask!r} keeps no channel")

    def __call__(self, items: Stream) -> Iterator[Item]:
        for acquisition in items.of(Acquisition):
            channels = acquisition.data.shape[0]
            if self._kept is None:
                data = acquisition.data[: self.coils_out]
            else:
                data = acquisition.data[[index for index in self._kept if index < channels]]
            if not data.shape[0]:
                raise ValueError(
                    f"coil_mask {self.coil_mask!r} keeps none of the {channels} channels of readout {acquisition.scan_counter}"
                )
            yield acquisition if data.shape[0] == channels else acquisition.with_data(data, acquisition.trajectory)
