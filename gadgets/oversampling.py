"""Readouts on the grid the reconstruction wants: oversampling removed, asymmetric echoes filled up."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.fft

from gadgets.base import Gadget, Stream
from gadgets.header import Encoding
from gadgets.items import Acquisition, Item
from gadgets.layout import Flag

STRAIGHT = ("cartesian", "epi", "radial", "goldenangle")
"""Trajectory types whose readouts are straight and evenly sampled where the readouts bring no trajectory that would tell."""


class RemoveROOversampling(Gadget):
    """Crop each readout's field of view to the one asked for.

    Acquisition -> Acquisition. The readout goes to image space, keeps the middle `recon FOV / encoded FOV` of its samples and
    comes back (orthonormal transforms), where matrix or field of view along x differ between encoded and recon space.

    This is right for straight, evenly sampled readouts only: Cartesian lines, and spokes, whose trajectory is resampled to the
    new, wider steps. Readouts that curve or whose steps vary (spirals) pass as they are, with one warning.
    """

    stock = (("gadgetron_mricore", "RemoveROOversamplingGadget"),)

    def __call__(self, items: Stream) -> Iterator[Item]:
        crops: dict[tuple[int, int], _Crop | None] = {}
        warned = False
        for acquisition in items.of(Acquisition):
            space, samples = int(acquisition.header["encoding_space_ref"]), acquisition.data.shape[1]
            if (space, samples) not in crops:
                crops[space, samples] = _crop(items.header.encoding(space), samples)
            crop = crops[space, samples]
            if crop is None:
                yield acquisition
            elif _straight(acquisition.trajectory, crop.trajectory_type):
                yield crop(acquisition)
            else:
                if not warned:
                    warned = True
                    items.context.log.warning(
                        "%s: readouts of this %s trajectory are not straight and even; their oversampling stays (the reconstruction "
                        "crops the image)",
                        self.name,
                        crop.trajectory_type,
                    )
                yield acquisition


class _Crop:
    """Cropping of readouts of one length."""

    def __init__(self, samples: int, kept: int, ratio: float, trajectory_type: str) -> None:
        self.trajectory_type = trajectory_type
        self._kept = kept
        self._ratio = ratio
        self._upper = kept - kept // 2
        # Row r of the image, counted from its centre, is row r mod samples of an unshifted transform. The shifts of k-space
        # before and after are phases over r that cancel when both lengths are even.
        rows = np.r_[0 : self._upper, -(kept // 2) : 0]
        turns = rows * (kept // 2 / kept - samples // 2 / samples)
        self._phase = None if samples % 2 == kept % 2 == 0 else np.exp(2j * np.pi * turns).astype(np.complex64)
        self._scale = np.sqrt(samples / kept).astype(np.float32)
        self._steps = samples // 2 + (np.arange(kept) - kept // 2) * (samples / kept)

    def __call__(self, acquisition: Acquisition) -> Acquisition:
        line = scipy.fft.ifft(acquisition.data, axis=1)
        image = np.empty((line.shape[0], self._kept), line.dtype)
        image[:, : self._upper] = line[:, : self._upper]
        image[:, self._upper :] = line[:, line.shape[1] - self._kept // 2 :]
        image *= self._scale if self._phase is None else self._scale * self._phase
        data = scipy.fft.fft(image, axis=1, overwrite_x=True)
        cropped = acquisition.with_data(data, self._resampled(acquisition.trajectory))
        for name in ("center_sample", "discard_pre", "discard_post"):
            cropped.header[name] = int(cropped.header[name] / self._ratio)
        return cropped

    def _resampled(self, trajectory: np.ndarray | None) -> np.ndarray | None:
        if trajectory is None:
            return None
        start = trajectory[0].astype(np.float64)
        step = (trajectory[-1] - start) / max(len(trajectory) - 1, 1)
        resampled: np.ndarray = (start + self._steps[:, None] * step).astype(np.float32)
        return resampled


def _crop(encoding: Encoding, samples: int) -> _Crop | None:
    """The cropping for this encoding, None when there is nothing to crop."""
    encoded, recon = encoding.encoded, encoding.recon
    if encoded.matrix[0] == recon.matrix[0] and encoded.field_of_view[0] == recon.field_of_view[0]:
        return None
    if recon.field_of_view[0] <= 0:
        raise ValueError(f"the header's recon field of view along x is {recon.field_of_view[0]} mm, expected more than 0")
    ratio = encoded.field_of_view[0] / recon.field_of_view[0]
    kept = int(samples / ratio + 1e-3)  # fields of view are written with few digits
    if not 0 < kept < samples:
        return None
    return _Crop(samples, kept, ratio, encoding.trajectory)


def _straight(trajectory: np.ndarray | None, trajectory_type: str) -> bool:
    """Whether the readout is straight and evenly sampled, to 1 % of a step."""
    if trajectory is None:
        return trajectory_type in STRAIGHT
    if len(trajectory) < 3:
        return False
    step = (trajectory[-1] - trajectory[0]) / np.float32(len(trajectory) - 1)
    length = float(np.abs(step).max())
    return length > 0 and float(np.abs(np.diff(trajectory, axis=0) - step).max()) <= 0.01 * length


class AsymmetricEchoAdjustRO(Gadget):
    """Fill an asymmetric echo with zeros, so that its echo lies in the middle of the encoded matrix.

    Acquisition -> Acquisition. Readouts shorter than the encoded matrix whose ``center_sample`` is not their middle get the
    encoded length; ``discard_pre`` and ``discard_post`` say how many samples are zeros. Noise readouts and readouts with a
    trajectory pass as they are.
    """

    stock = (("gadgetron_mricore", "AsymmetricEchoAdjustROGadget"),)
    pure = True

    def __call__(self, items: Stream) -> Iterator[Item]:
        for acquisition in items.of(Acquisition):
            samples, center = acquisition.data.shape[1], int(acquisition.header["center_sample"])
            if (
                2 * center == samples
                or center >= samples
                or acquisition.trajectory is not None
                or acquisition.is_flag_set(Flag.IS_NOISE_MEASUREMENT)
            ):
                yield acquisition
            else:
                yield _filled(acquisition, items.header.encoding(int(acquisition.header["encoding_space_ref"])).encoded.matrix[0])


def _filled(acquisition: Acquisition, length: int) -> Acquisition:
    channels, samples = acquisition.data.shape
    if samples >= length:
        return acquisition
    before = min(max(length // 2 - int(acquisition.header["center_sample"]), 0), length - samples)
    data = np.zeros((channels, length), acquisition.data.dtype)
    data[:, before : before + samples] = acquisition.data
    filled = acquisition.with_data(data)
    filled.header["discard_pre"], filled.header["discard_post"] = before, length - samples - before
    filled.header["center_sample"] = length // 2
    return filled
