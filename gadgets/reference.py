"""Calibration data for parallel imaging: averaging and cropping them, eigen channels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from gadgets.base import Gadget, Stream, parameter
from gadgets.generic import IGNORED, CalibrationMode, calibration_mode
from gadgets.items import Item, ReconBit, ReconBuffer, ReconData
from gadgets.layout import clone
from recon.eigen_channels import eigen_channels, kept_channels


def average(data: np.ndarray, over_n: bool, over_s: bool, count_samples: bool) -> np.ndarray:
    """Average buffers ``[LOC, S, N, CHA, E2, E1, E0]`` over N and S (those axes stay, with length 1).

    With `count_samples` every line is divided by the number of frames that sampled it (interleaved acceleration), else by the
    number of frames.
    """
    if over_n and data.shape[2] > 1:
        total = data.sum(axis=2, keepdims=True)
        if count_samples:
            times = np.maximum(_sampled(data).sum(axis=2, keepdims=True), 1)
            data = total / times[:, :, :, None, :, :, None].astype(np.float32)
        else:
            data = total / np.float32(data.shape[2])
    if over_s and data.shape[1] > 1:
        data = data.mean(axis=1, keepdims=True, dtype=data.dtype)
    return data


def _sampled(data: np.ndarray) -> np.ndarray:
    """Which lines hold data: bool ``[LOC, S, N, E2, E1]``."""
    sampled: np.ndarray = np.any(data != 0, axis=(3, 6))
    return sampled


class ReferencePrep(Gadget):
    """Prepare calibration data: average over N and S, crop to the sampled region. ReconData -> ReconData.

    A buffer without calibration data gets a copy of its imaging data, which calibrates scans that are fully sampled or accelerated
    in an interleaved manner. Of other accelerated scans, buffers that follow one with calibration data go without, so that the
    earlier calibration serves on.
    """

    stock = (("gadgetron_mricore", "GenericReconCartesianReferencePrepGadget"),)
    ignored = IGNORED

    average_all_ref_N: bool = parameter(True, help="average the calibration data over N")
    average_all_ref_S: bool = parameter(False, help="average the calibration data over S")
    N_for_ref: int = parameter(-1, help="use this N instead of the average; negative: off")
    S_for_ref: int = parameter(-1, help="use this S instead of the average; negative: off")
    ref_fill_into_data_embedded: bool = parameter(False, help="embedded mode: copy the calibration lines into the imaging data")
    prepare_ref_always: bool = parameter(True, help="prepare for every buffer; false: for the first one only")

    def __call__(self, items: Stream) -> Iterator[Item]:
        prepared: set[int] = set()
        for item in items.of(ReconData):
            bits = []
            for space, bit in enumerate(item.bits):
                if not bit.data.data.size and bit.ref is None:
                    bits.append(bit)
                    continue
                mode = calibration_mode(items.header.encoding(space))
                again = self.prepare_ref_always and (bit.ref is not None or mode in ("none", "interleaved"))
                if space in prepared and not again:
                    bits.append(replace(bit, ref=None))
                else:
                    bits.append(self._prepare(bit, mode))
                    prepared.add(space)
            yield ReconData(bits, item.waveforms)

    def _prepare(self, bit: ReconBit, mode: CalibrationMode) -> ReconBit:
        ref = bit.ref or bit.data
        if not ref.data.size:
            return bit
        data = bit.data
        if mode == "embedded" and self.ref_fill_into_data_embedded:
            data = self._filled(data, ref)
        calibration = self._averaged(ref.data, mode)
        return replace(bit, data=data, ref=_cropped(ref, calibration, mode))

    def _filled(self, data: ReconBuffer, ref: ReconBuffer) -> ReconBuffer:
        if data.data.shape != ref.data.shape:
            raise ValueError(
                f"ref_fill_into_data_embedded: imaging data {data.data.shape} and calibration data {ref.data.shape} differ in shape; "
                "set the property to false"
            )
        lines = _sampled(ref.data)[:, :, :, None, :, :, None]
        return replace(data, data=np.where(lines, ref.data, data.data))

    def _averaged(self, data: np.ndarray, mode: CalibrationMode) -> np.ndarray:
        one_n, one_s = 0 <= self.N_for_ref < data.shape[2], 0 <= self.S_for_ref < data.shape[1]
        if one_n:
            data = data[:, :, self.N_for_ref : self.N_for_ref + 1]
        if one_s:
            data = data[:, self.S_for_ref : self.S_for_ref + 1]
        return average(data, self.average_all_ref_N and not (one_n or one_s), self.average_all_ref_S and not one_s, mode == "interleaved")


def _cropped(ref: ReconBuffer, calibration: np.ndarray, mode: CalibrationMode) -> ReconBuffer:
    """Crop to the sampled block and say in the sampling limits where the k-space centre lies in it."""
    sampled: np.ndarray = np.any(_sampled(ref.data), axis=(0, 1, 2))
    if not sampled.any():
        raise ValueError(
            "the calibration data are empty (all samples are zero); check that the readouts flagged IS_PARALLEL_CALIBRATION or "
            "IS_PARALLEL_CALIBRATION_AND_IMAGING hold data"
        )
    (first_e2, last_e2), (first_e1, last_e1) = _span(np.any(sampled, axis=1)), _span(np.any(sampled, axis=0))
    sampling = clone(ref.sampling)
    readout, phase, partition = sampling["sampling_limits"]
    samples = calibration.shape[-1]
    first, last = int(readout["min"]), min(int(readout["max"]), samples - 1)
    readout["center"], readout["max"] = samples // 2, last
    for limits, start, end in ((phase, first_e1, last_e1), (partition, first_e2, last_e2)):
        limits["min"], limits["max"] = 0, end - start
        # Interleaved and full scans keep the k-space centre where it is; other calibration lines are centred on it.
        limits["center"] = int(limits["center"]) - start if mode in ("interleaved", "none") else (end - start + 1) // 2
    block = calibration[..., first_e2 : last_e2 + 1, first_e1 : last_e1 + 1, first : last + 1]
    return replace(ref, data=np.ascontiguousarray(block), sampling=sampling)


def _span(used: np.ndarray) -> tuple[int, int]:
    where = np.flatnonzero(used)
    return int(where[0]), int(where[-1])


class EigenChannels(Gadget):
    """Rotate the coils into eigen channels of the calibration data, strongest first, and drop the weakest. ReconData -> ReconData.

    The rotation is kept for the whole measurement unless `update_eigen_channel_coefficients` is set or the buffer changes shape.
    """

    stock = (("gadgetron_mricore", "GenericReconEigenChannelGadget"),)
    ignored = IGNORED

    average_all_ref_N: bool = parameter(True, help="one rotation for all N")
    average_all_ref_S: bool = parameter(False, help="one rotation for all S")
    update_eigen_channel_coefficients: bool = parameter(False, help="find the rotation anew for every buffer")
    upstream_coil_compression: bool = parameter(True, help="drop weak eigen channels; false: keep them all")
    upstream_coil_compression_thres: float = parameter(
        -1.0, help="drop channels below this fraction of the strongest eigenvalue; zero or negative: off"
    )
    upstream_coil_compression_num_modesKept: int = parameter(0, help="keep this many channels; zero or negative: use the threshold")

    def __call__(self, items: Stream) -> Iterator[Item]:
        rotations: dict[int, tuple[tuple[int, ...], np.ndarray]] = {}
        for item in items.of(ReconData):
            bits = []
            for space, bit in enumerate(item.bits):
                if not bit.data.data.size:
                    bits.append(bit)
                    continue
                shape = bit.data.data.shape[:4]
                known = rotations.get(space)
                if known is None or known[0] != shape or self.update_eigen_channel_coefficients:
                    source = bit.ref.data if bit.ref is not None else bit.data.data
                    known = shape, self._rotation(source, calibration_mode(items.header.encoding(space)))
                    rotations[space] = known
                    items.context.log.info("%s: %d of %d channels kept in space %d", self.name, known[1].shape[-2], shape[3], space)
                ref = None if bit.ref is None else replace(bit.ref, data=_rotate(known[1], bit.ref.data))
                bits.append(replace(bit, data=replace(bit.data, data=_rotate(known[1], bit.data.data)), ref=ref))
            yield ReconData(bits, item.waveforms)

    def _rotation(self, data: np.ndarray, mode: CalibrationMode) -> np.ndarray:
        """Matrices ``[LOC, S or 1, N or 1, eigen channel, coil]``; the first decides how many channels are kept."""
        data = average(data, self.average_all_ref_N, self.average_all_ref_S, mode == "interleaved")
        coils = data.shape[3]
        rotation = np.empty((*data.shape[:3], coils, coils), np.complex64)
        kept = coils
        for where in np.ndindex(*data.shape[:3]):
            rotation[where], values = eigen_channels(data[where])
            if not any(where) and self.upstream_coil_compression:
                modes = self.upstream_coil_compression_num_modesKept
                kept = min(modes, coils) if modes > 0 else kept_channels(values, self.upstream_coil_compression_thres)
        return rotation[..., :kept, :]


def _rotate(rotation: np.ndarray, data: np.ndarray) -> np.ndarray:
    """Apply the matrices to ``[LOC, S, N, CHA, E2, E1, E0]``; the last S and N of the rotation serve the rest."""
    out = np.empty((*data.shape[:3], rotation.shape[-2], *data.shape[4:]), data.dtype)
    for loc, s, n in np.ndindex(*data.shape[:3]):
        matrix = rotation[loc, min(s, rotation.shape[1] - 1), min(n, rotation.shape[2] - 1)]
        out[loc, s, n] = (matrix @ data[loc, s, n].reshape(data.shape[3], -1)).reshape(out.shape[3:])
    return out
