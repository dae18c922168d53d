"""Cartesian reconstruction of sorted k-spaces: Fourier transform with coil combination, and GRAPPA with g-factor and SNR maps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gadgets.base import Stream, parameter
from gadgets.coil_maps import CoilMapGadget, zero_filled
from gadgets.generic import CalibrationMode, calibration_mode, describe_images, image_array
from gadgets.header import Encoding, Header
from gadgets.irregular import Filling, is_lattice, sampled_centre, sampled_lines
from gadgets.items import ImageArray, Item, ReconBit, ReconBuffer, ReconData
from recon.filters import apply_windows, reference_window
from recon.grappa import calibrate, gfactor, reconstruct, unmixing

_WHERE_FLAGS = (
    "calibration lines are the readouts flagged IS_PARALLEL_CALIBRATION (20) or IS_PARALLEL_CALIBRATION_AND_IMAGING (21); "
    "set these flags in the sequence or the converter"
)


def _low_resolution(ref: ReconBuffer, shape: tuple[int, ...], mode: CalibrationMode) -> np.ndarray:
    """Calibration k-space made ready for coil maps: centred, filtered, zero-filled to the (E2, E1, E0) of `shape`."""
    readout, phase, partition = ref.sampling["sampling_limits"]
    limits = [(int(one["min"]), int(one["center"]), int(one["max"])) for one in (partition, phase, readout)]
    recon = shape[-3:]
    first, center, last = limits[2]
    length = 2 * center + ref.data.shape[-1] % 2
    if first > 0 or last < length - 1:
        length = min(2 * max(center - first, last - center + 1), recon[2])
    block = np.zeros((*ref.data.shape[:-1], length), ref.data.dtype)
    block[..., first : last + 1] = ref.data[..., : last - first + 1]
    windows: list[np.ndarray | None] = [None, None, reference_window(length, first, last)]
    for axis in (0, 1):
        first, center, last = limits[axis]
        size = last - first + 1
        if size == 1:
            continue
        if mode in ("interleaved", "none"):
            size = min(2 * min(center - first, last - center + 1) - 1, recon[axis])
        start = center - size // 2
        block = np.take(block, range(start, start + size), axis=axis + 4)
        windows[axis] = reference_window(size, 0, size - 1)
    return zero_filled(apply_windows(block, windows), recon)


class CartesianFFT(CoilMapGadget):
    """Inverse Fourier transform and coil combination with maps of the calibration data. ReconData -> ImageArray."""

    stock = (("gadgetron_mricore", "GenericReconCartesianFFTGadget"),)

    def __call__(self, items: Stream) -> Iterator[Item]:
        known: dict[int, tuple[ReconBuffer, np.ndarray]] = {}
        for item in items.of(ReconData):
            for space, bit in enumerate(item.bits):
                if not bit.data.data.size:
                    continue
                encoding = items.header.encoding(space)
                ref = bit.ref if bit.ref is not None else bit.data
                if space not in known or not _same(known[space], ref, bit.data.data.shape):
                    low = bit.data.data if bit.ref is None else _low_resolution(ref, bit.data.data.shape, calibration_mode(encoding))
                    known[space] = ref, self.maps(low).conj()
                images = _per_image(bit.data.data, known[space][1])
                headers, metas = describe_images(bit, images.shape, items.header, space)
                yield image_array(
                    images,
                    headers,
                    metas,
                    encoding,
                    role="Image",
                    series=self.image_series + space + 1,
                    acquisition_headers=bit.data.headers,
                    waveforms=item.waveforms,
                )


def _same(known: tuple[ReconBuffer, np.ndarray], ref: ReconBuffer, shape: tuple[int, ...]) -> bool:
    """Whether what was derived from a calibration still holds for `ref` and k-spaces of `shape`."""
    kept, weights = known
    return (
        weights.shape[-3:] == shape[-3:]
        and kept.data.shape == ref.data.shape
        and bool(kept.sampling == ref.sampling)  # not their bytes: the padding holds whatever it holds
        and np.array_equal(kept.data, ref.data)
    )


def _per_image(kspace: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Reconstruct ``[LOC, S, N, CHA, E2, E1, E0]`` with weights ``[LOC, S, N, ...]``, whose last S and N serve the rest."""
    out = np.empty((*kspace.shape[:3], 1, *kspace.shape[4:]), np.complex64)
    used = weights.shape[3]
    for loc, s, n in np.ndindex(*kspace.shape[:3]):
        chosen = weights[loc, min(s, weights.shape[1] - 1), min(n, weights.shape[2] - 1)]
        out[loc, s, n, 0] = reconstruct(kspace[loc, s, n, :used], chosen)
    return out


@dataclass(eq=False)
class _Calibration:
    """What one calibration yields: the data it came from, weights ``[LOC, S, N, CHA, E2, E1, E0]``, g-factor or None.

    Of irregular sampling k-space is filled, and the weights only combine the coils.
    """

    ref: ReconBuffer
    weights: np.ndarray
    noise: np.ndarray | None = None
    filling: Filling | None = None


class CartesianGrappa(CoilMapGadget):
    """GRAPPA for 2D and 3D scans, with optional g-factor and SNR maps. ReconData -> ImageArray.

    Lines on a lattice of the header's acceleration factors are unaliased in the image. Any other sampling (CAIPIRINHA, variable
    density, a dense centre) is found in the data and filled in k-space; there is no g-factor for it, and without flagged calibration
    lines the fully sampled centre serves.

    Calibration data come with the buffer (see `ReferencePrep`); a buffer without any is reconstructed with those of an earlier one.
    Kernels and maps are computed only when the calibration data change. With noise-adjusted input, images are in SNR units times
    the g-factor. Series: images `image_series` + space + 1, g-factor + 10 (space + 2), SNR map + 100 (space + 3).
    """

    stock = (("gadgetron_mricore", "GenericReconCartesianGrappaGadget"),)

    send_out_gfactor: bool = parameter(False, help="send g-factor maps (accelerated scans)")
    send_out_snr_map: bool = parameter(False, help="send SNR maps: image divided by g-factor")
    grappa_kSize_RO: int = parameter(5, ge=1, help="kernel points along the readout (odd)")
    grappa_kSize_E1: int = parameter(4, ge=1, help="kernel lines along E1 (irregular sampling: E1 x E2 lines, the nearest)")
    grappa_kSize_E2: int = parameter(4, ge=1, help="kernel lines along E2")
    grappa_reg_lamda: float = parameter(0.0005, ge=0, help="regularisation relative to the mean diagonal of the normal equations")
    grappa_calib_over_determine_ratio: float = parameter(
        45.0,
        ge=0,
        help="3D: equations an unknown used for calibration, around the brightest part of the readout (irregular: a fifth); 0: all",
    )
    downstream_coil_compression: bool = parameter(True, help="unalias into fewer channels than come in")
    downstream_coil_compression_thres: float = parameter(
        0.002, help="leave out trailing channels with less than this fraction of the first channel's energy; negative: off"
    )
    downstream_coil_compression_num_modesKept: int = parameter(0, ge=0, help="unalias into this many channels; 0: use the threshold")

    def __call__(self, items: Stream) -> Iterator[Item]:
        items.header.require_cartesian()
        calibrations: dict[int, _Calibration] = {}
        for item in items.of(ReconData):
            for space, bit in enumerate(item.bits):
                if bit.data.data.size:
                    known = calibrations.get(space)
                    calibrations[space] = self._calibration(bit, items.header.encoding(space), known)
                    if calibrations[space] is not known and calibrations[space].filling is not None:
                        items.context.log.info("%s: sampled irregularly in space %d: filled in k-space, no g-factor", self.name, space)
                    for images in self._images(bit, calibrations[space], items.header, space):
                        images.waveforms = item.waveforms
                        yield images

    def _calibration(self, bit: ReconBit, encoding: Encoding, known: _Calibration | None) -> _Calibration:
        shape = bit.data.data.shape
        acceleration = _acceleration(encoding, shape)
        irregular = max(acceleration) > 1 and not is_lattice(sampled_lines(bit.data.data), acceleration)
        ref = bit.ref
        if ref is None:
            if known is None or known.weights.shape[-3:] != shape[-3:]:
                raise ValueError(
                    "no calibration data came with the first buffer; put ReferencePrep "
                    f"(GenericReconCartesianReferencePrepGadget) before this gadget. {_WHERE_FLAGS}"
                )
            ref = known.ref
        elif irregular and not _complete(ref.data):
            ref = sampled_centre(bit.data) or ref
        if known is not None and irregular == (known.filling is not None) and _same((known.ref, known.weights), ref, shape):
            return known
        return self._calibrate(ref, shape, encoding, irregular)

    def _calibrate(self, ref: ReconBuffer, shape: tuple[int, ...], encoding: Encoding, irregular: bool) -> _Calibration:
        targets = self._targets(ref.data)
        acceleration = _acceleration(encoding, shape)
        if max(acceleration) > 1:
            _check_complete(ref.data, encoding)
        maps = self.maps(_low_resolution(ref, shape, calibration_mode(encoding))[:, :, :, :targets])
        if max(acceleration) <= 1:
            return _Calibration(ref, maps.conj())
        if irregular:
            return _Calibration(ref, maps.conj(), filling=self._filling(ref.data, acceleration))
        coils = ref.data.shape[3]
        weights = np.empty((*ref.data.shape[:3], coils, *shape[-3:]), np.complex64)
        for where in np.ndindex(*ref.data.shape[:3]):
            source = ref.data[where]
            kernel = calibrate(
                source,
                source[:targets] if self.downstream_coil_compression else None,
                acceleration=acceleration,
                kernel_size=(self.grappa_kSize_E2, self.grappa_kSize_E1, self.grappa_kSize_RO),
                regularization=self.grappa_reg_lamda,
                over_determination=self.grappa_calib_over_determine_ratio if shape[-3] > 1 else 0.0,
            )
            weights[where] = unmixing(kernel, maps[where])
        return _Calibration(ref, weights, gfactor(weights, acceleration))

    def _filling(self, calibration: np.ndarray, acceleration: tuple[int, int]) -> Filling:
        lines = (self.grappa_kSize_E2 if calibration.shape[-3] > 1 else 1, self.grappa_kSize_E1)
        e2, e1 = (2 * max(k * step // 4, 1) + 1 if k > 1 else 1 for k, step in zip(lines, acceleration, strict=True))
        return Filling(
            calibration,
            (e2, e1, self.grappa_kSize_RO | 1),
            regularization=self.grappa_reg_lamda,
            over_determination=self.grappa_calib_over_determine_ratio / 5,
            most_sources=lines[0] * lines[1],
        )

    def _targets(self, calibration: np.ndarray) -> int:
        """Number of leading channels to unalias into."""
        coils: int = calibration.shape[3]
        modes, threshold = self.downstream_coil_compression_num_modesKept, self.downstream_coil_compression_thres
        if not self.downstream_coil_compression:
            return coils
        if 0 < modes <= coils:
            return modes
        first = calibration[0, 0, 0].reshape(coils, -1)
        energy = np.sum(first.real**2 + first.imag**2, axis=1)
        if not np.isfinite(energy).all():
            raise ValueError("the calibration data hold values that are not finite (NaN or Inf)")
        return int(np.flatnonzero(energy >= threshold * energy[0]).max()) + 1

    def _images(self, bit: ReconBit, calibration: _Calibration, header: Header, space: int) -> Iterator[ImageArray]:
        encoding = header.encoding(space)
        kspace = bit.data.data if calibration.filling is None else calibration.filling(bit.data.data)
        images = _per_image(kspace, calibration.weights) * np.float32(_noise_scale(bit.data, encoding))
        headers, metas = describe_images(bit, images.shape, header, space)
        noise = calibration.noise[:, :, :, None] if calibration.noise is not None else None
        if self.send_out_gfactor and noise is not None:
            series = self.image_series + 10 * (space + 2)
            yield image_array(noise, headers, metas, encoding, role="Gfactor", series=series)
        if self.send_out_snr_map:
            series = self.image_series + 100 * (space + 3)
            snr = images if noise is None else _divided(images, noise)
            yield image_array(snr, headers, metas, encoding, role="SNR_MAP", series=series, acquisition_headers=bit.data.headers)
        series = self.image_series + space + 1
        yield image_array(images, headers, metas, encoding, role="Image", series=series, acquisition_headers=bit.data.headers)


def _acceleration(encoding: Encoding, shape: tuple[int, ...]) -> tuple[int, int]:
    """Steps along (E2, E1)."""
    return encoding.acceleration[1] if shape[-3] > 1 else 1, encoding.acceleration[0]


def _complete(calibration: np.ndarray) -> bool:
    """Whether calibration data have no gaps."""
    sampled = sampled_lines(calibration).all(axis=(0, 1, 2))
    # A 3D calibration region may have cut corners; an ellipse still fills 78 % of its rectangle.
    return bool(sampled.mean() >= (1.0 if sampled.shape[0] == 1 else 0.75))


def _check_complete(calibration: np.ndarray, encoding: Encoding) -> None:
    """Refuse calibration data with gaps: the kernel would learn the undersampling."""
    if not _complete(calibration):
        sampled = sampled_lines(calibration).all(axis=(0, 1, 2))
        mode = encoding.calibration_mode or "none given"
        raise ValueError(
            f"no complete calibration lines for acceleration {encoding.acceleration[0]} x {encoding.acceleration[1]} "
            f"(calibrationMode {mode}): only {int(sampled.sum())} of {sampled.size} lines of the calibration region are sampled. "
            f"In embedded, separate and external mode {_WHERE_FLAGS}. In interleaved mode the frames that complete one another must be "
            "in one buffer: choose N_dimension of BucketToBuffer and the trigger accordingly"
        )


def _divided(images: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Images over g-factor, whose last S and N serve the rest; 0 where there is no g-factor."""
    _, sets, frames = images.shape[:3]
    spread = noise[:, np.minimum(range(sets), noise.shape[1] - 1)][:, :, np.minimum(range(frames), noise.shape[2] - 1)]
    result: np.ndarray = np.divide(images, spread, out=np.zeros_like(images), where=spread > 0)
    return result


def _noise_scale(data: ReconBuffer, encoding: Encoding) -> float:
    """Factor that keeps unit noise: the fewer samples an image is made of, the less noise its Fourier transform holds.

    GRAPPA kernels preserve the signal of the fully sampled scan; sqrt(R) / R makes the noise one times the g-factor.
    """
    lines = int(np.count_nonzero(data.data[0, :, :, 0, :, :, data.data.shape[-1] // 2]))
    if not lines:
        return 1.0
    shape = data.data.shape
    effective = shape[1] * shape[2] * shape[4] * shape[5] / lines
    if effective <= 1:
        return 1.0
    limits = data.sampling["sampling_limits"][0]
    first, last, samples = int(limits["min"]), int(limits["max"]), shape[-1]
    sampled = last - first + 1 if 0 <= first <= last < samples else samples
    factor: float = np.sqrt(effective * samples / sampled) / (encoding.acceleration[0] * encoding.acceleration[1])
    return factor
