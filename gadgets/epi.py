"""Echo-planar readouts onto an even grid.

The header describes the gradient of a line as Siemens converters do (trajectoryDescription with rampUpTime, flatTopTime,
rampDownTime, acqDelayTime and dwellTime in us, numSamples). Readouts flagged IS_REVERSE were read backwards; readouts flagged
IS_PHASECORR_DATA are navigators, lines without phase encoding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np

from gadgets.base import Context, Gadget, Stream, parameter
from gadgets.header import Encoding, Header, HeaderError
from gadgets.items import Acquisition, Item
from gadgets.layout import Flag
from recon.epi import EpiReadout, pixel_matrix, receiver_phase
from recon.epi_correction import estimate_line_phase

_TIMING = ("rampUpTime", "flatTopTime", "rampDownTime", "acqDelayTime", "dwellTime")
_EVEN = "scans whose echo-planar lines were taken as evenly sampled"
_COARSE = "scans whose echo-planar lines are sampled too coarsely"
_LARGEST_SHIFT = 2.0  # samples; more is a mistake in the timing, not a delay
_MATRICES = 64  # kept: one for each direction, length and offset


def is_epi(header: Header, space: int) -> bool:
    """Whether the lines of an encoding space are echo-planar: its gradient is described or, where none is, its trajectory says so."""
    if _described(header.encoding(space)):
        return True
    return header.encoding(space).trajectory == "epi" and not any(map(_described, header.encodings))


def _described(encoding: Encoding) -> bool:
    return any(name in encoding.trajectory_description for name in _TIMING)


class EPIReadout(Gadget):
    """Echo-planar lines to image space along the readout: backward lines turned round, samples on the ramps put right.

    Acquisition -> Acquisition with the samples x of the reconstructed matrix and field of view; EPIPhaseCorrection works there,
    ReadoutFFT leads back to k-space. The image of a line is fitted to its samples by least squares, which is exact where these
    determine it. Readouts of other, Cartesian encoding spaces (a calibration scan) are transformed and cropped. Noise readouts
    pass. The flag IS_REVERSE stays, for the phase correction.

    The gradient is read from the header's trajectoryDescription; properties go before it. Without either, lines count as evenly
    sampled, and a warning says so. Its delay behind the sampling is measured once, from the navigators at the start of the scan.
    """

    stock = (("gadgetron_epi", "EPIReconXGadget"),)
    ignored = ("verboseMode",)

    ramp_up_time: float | None = parameter(None, unit="us", ge=0, help="of the readout gradient", aliases=("rampUpTime",))
    flat_top_time: float | None = parameter(None, unit="us", ge=0, help="of the readout gradient", aliases=("flatTopTime",))
    ramp_down_time: float | None = parameter(None, unit="us", ge=0, help="of the readout gradient", aliases=("rampDownTime",))
    acquisition_delay: float | None = parameter(
        None, unit="us", ge=0, help="from the start of the ramp to the first sample, with balanced=false", aliases=("acqDelayTime",)
    )
    dwell_time: float | None = parameter(None, unit="us", gt=0, help="of a sample", aliases=("dwellTime",))
    balanced: bool = parameter(True, help="sampling is centred on the gradient, as Gadgetron has it; false: see acquisition_delay")
    ramps: Literal["linear", "sinusoidal"] = parameter("linear", help="shape of the ramps (sinusoidal with flat top 0: a sine)")
    sample_at: float = parameter(0.5, ge=0, le=1, unit="dwell times", help="when in its dwell time a sample is; Gadgetron: 1")
    delay: float | None = parameter(None, unit="us", help="of the gradient behind the sampling; none: from the first navigators")
    off_center: Literal["receiver", "none"] = parameter(
        "receiver", help="receiver: undo the even frequency shift of the receiver for fields of view off centre along the readout"
    )

    def __call__(self, items: Stream) -> Iterator[Item]:
        items.header.require_cartesian()
        delay = self.delay or 0.0
        held: list[Acquisition] | None = [] if self.delay is None else None
        matrices: dict[tuple[object, ...], np.ndarray] = {}
        for acquisition in items.of(Acquisition):
            if acquisition.is_flag_set(Flag.IS_NOISE_MEASUREMENT):
                yield acquisition
                continue
            if held is not None and is_epi(items.header, int(acquisition.header["encoding_space_ref"])):
                if acquisition.is_flag_set(Flag.IS_PHASECORR_DATA):
                    held.append(acquisition)
                    continue
                delay = self._measured_delay(held, items.context) if held else 0.0
                yield from (self._line(navigator, matrices, delay, items.context) for navigator in held)
                held = None
            yield self._line(acquisition, matrices, delay, items.context)
        yield from (self._line(navigator, matrices, delay, items.context) for navigator in held or ())

    def _line(
        self, acquisition: Acquisition, matrices: dict[tuple[object, ...], np.ndarray], delay: float, context: Context
    ) -> Acquisition:
        key = self._key(acquisition, context.header, delay)
        if key not in matrices:
            if len(matrices) >= _MATRICES:
                matrices.clear()
            matrices[key] = self._matrix(acquisition, delay, context)
        line = acquisition.with_data(acquisition.data @ matrices[key].T)
        line.header["center_sample"] = line.data.shape[1] // 2
        line.header["discard_pre"] = line.header["discard_post"] = 0
        return line

    def _measured_delay(self, navigators: list[Acquisition], context: Context) -> float:
        """Delay of the gradient in us, from the shift between forward and backward navigators.

        On the ramps the same delay shifts the samples less, which the linear phase of a phase correction cannot follow.
        """
        first = navigators[0]
        gradient = self._gradient(first, 0.0, context)
        encoding = context.header.encoding(int(first.header["encoding_space_ref"]))
        matrices: dict[tuple[object, ...], np.ndarray] = {}
        lines = [self._line(navigator, matrices, 0.0, context).data for navigator in navigators]
        if len({line.shape for line in lines}) > 1 or not all(np.isfinite(line).all() for line in lines):
            return 0.0
        directions = [navigator.is_flag_set(Flag.IS_REVERSE) for navigator in navigators]
        shift = estimate_line_phase(np.stack(lines), directions).delay
        if abs(shift) > _LARGEST_SHIFT:
            context.log.warning("%s: navigators are shifted by %.2f samples, too much for a delay; it is not corrected", self.name, shift)
            return 0.0
        sample = 2 * np.pi / encoding.recon.matrix[0] / _spacing(encoding, encoding.encoded.matrix[0])
        speed = np.abs(np.diff(gradient.positions())).max() / gradient.dwell_time
        delay = float(shift * sample / speed)
        context.log.info("%s: the gradient is %.3f us behind the sampling (%.4f samples)", self.name, delay, shift)
        return delay

    def _key(self, acquisition: Acquisition, measurement: Header, delay: float) -> tuple[object, ...]:
        header = acquisition.header
        names = ("encoding_space_ref", "number_of_samples", "discard_pre", "discard_post", "center_sample", "sample_time_us")
        reverse = acquisition.is_flag_set(Flag.IS_REVERSE)
        return (*(float(header[name]) for name in names), reverse, self._offset(acquisition, measurement), delay)

    def _offset(self, acquisition: Acquisition, header: Header) -> float:
        """Of the field of view along the readout, in encoded pixels, to a thousandth."""
        space = int(acquisition.header["encoding_space_ref"])
        if self.off_center == "none" or not is_epi(header, space):
            return 0.0
        encoding = header.encoding(space)
        position, direction = (acquisition.header[name].astype(float) for name in ("position", "read_dir"))
        return round(float(position @ direction) * encoding.encoded.matrix[0] / _fields(encoding)[0], 3)

    def _matrix(self, acquisition: Acquisition, delay: float, context: Context) -> np.ndarray:
        """From samples to pixels, complex64 ``[pixel, sample]``; discarded samples do not count."""
        space = int(acquisition.header["encoding_space_ref"])
        encoding = context.header.encoding(space)
        samples = acquisition.data.shape[1]
        kept = slice(int(acquisition.header["discard_pre"]), samples - int(acquisition.header["discard_post"]))
        sign = -1 if acquisition.is_flag_set(Flag.IS_REVERSE) else 1
        matrix = np.zeros((encoding.recon.matrix[0], samples), np.complex64)
        if not is_epi(context.header, space):
            matrix[:, kept] = _cartesian(encoding, sign * (np.arange(samples) - int(acquisition.header["center_sample"])))[:, kept]
            return matrix
        size = encoding.encoded.matrix[0]
        positions = sign * self._gradient(acquisition, delay, context).positions()
        _warn_of_coarse_sampling(self.name, positions, size, context)
        fitted = pixel_matrix(positions[kept], size, encoding.recon.matrix[0], _spacing(encoding, size))
        matrix[:, kept] = fitted * receiver_phase(positions, self._offset(acquisition, context.header))[kept]
        return matrix

    def _gradient(self, acquisition: Acquisition, delay: float, context: Context) -> EpiReadout:
        """The gradient of a line. Raises `HeaderError` for a description that fits no gradient."""
        encoding = context.header.encoding(int(acquisition.header["encoding_space_ref"]))
        samples = acquisition.data.shape[1]
        given = (self.ramp_up_time, self.flat_top_time, self.ramp_down_time, self.acquisition_delay, self.dwell_time)
        described = encoding.trajectory_description
        wanted = {name: described.get(name) if value is None else value for name, value in zip(_TIMING, given, strict=True)}
        times = {name: float(value) for name, value in wanted.items() if isinstance(value, (int, float))}
        if self.dwell_time is None and described.get("numSamples", samples) != samples:
            raise HeaderError(
                f"readout {acquisition.header['scan_counter']} has {samples} samples, the header's trajectoryDescription says "
                f"{described['numSamples']}: its dwellTime is not theirs; set dwell_time (us), or do not remove oversampling before"
            )
        dwell = times.get("dwellTime") or float(acquisition.header["sample_time_us"]) or 1.0
        if not times and not context.counts.get(_EVEN):
            context.count(_EVEN)
            context.log.warning(
                "%s: the header has no trajectoryDescription; lines count as evenly sampled. For samples on the ramps set ramp_up_time, "
                "flat_top_time and ramp_down_time (us)",
                self.name,
            )
        flat = times.get("flatTopTime", 0.0)
        if not flat and self.flat_top_time is None and not (self.ramps == "sinusoidal" and times.get("rampUpTime")):
            flat = dwell * samples  # a header that leaves it at 0 means: no sampling on the ramps
        try:
            return EpiReadout(
                samples,
                dwell,
                flat,
                times.get("rampUpTime", 0.0),
                times.get("rampDownTime", 0.0),
                None if self.balanced else times.get("acqDelayTime"),
                self.sample_at,
                self.ramps,
                delay,
            )
        except ValueError as error:
            raise HeaderError(f"the readout gradient (trajectoryDescription {described}, properties of this gadget): {error}") from error


def _fields(encoding: Encoding) -> tuple[float, float]:
    """Encoded and reconstructed field of view along x, mm."""
    encoded, recon = encoding.encoded.field_of_view[0], encoding.recon.field_of_view[0]
    if not (encoded > 0 and recon > 0):
        raise HeaderError(f"header: fieldOfView_mm along x is {encoded:g} (encoded) and {recon:g} (reconstructed); both must be positive")
    return encoded, recon


def _spacing(encoding: Encoding, size: int) -> float:
    """Distance of reconstructed pixels in units of an image of `size` pixels over the encoded field of view."""
    encoded, recon = _fields(encoding)
    return (recon / encoding.recon.matrix[0]) / (encoded / size)


def _cartesian(encoding: Encoding, steps: np.ndarray) -> np.ndarray:
    """Inverse transform of samples at whole steps of k to the reconstructed pixels."""
    size = max(encoding.encoded.matrix[0], len(steps))
    pixels = encoding.recon.matrix[0]
    places = (np.arange(pixels) - pixels // 2) * _spacing(encoding, size)
    return np.asarray(np.exp(2j * np.pi / size * places[:, None] * steps) / np.sqrt(size))


def _warn_of_coarse_sampling(name: str, positions: np.ndarray, size: int, context: Context) -> None:
    coarse = np.abs(np.diff(positions)).max(initial=0) * size / (2 * np.pi)
    if coarse > 1.001 and not context.counts.get(_COARSE):
        context.count(_COARSE)
        context.log.warning(
            "%s: on the flat top samples are %.3g times as far apart as the encoded field of view needs; the edges of the image are lost",
            name,
            coarse,
        )


class OneEncoding(Gadget):
    """Put all readouts into encoding space 0, such as calibration readouts of a sequence of its own. Acquisition -> Acquisition."""

    stock = (("gadgetron_epi", "OneEncodingGadget"),)
    pure = True

    def __call__(self, items: Stream) -> Iterator[Item]:
        for acquisition in items.of(Acquisition):
            if acquisition.header["encoding_space_ref"]:
                acquisition = acquisition.with_data(acquisition.data, acquisition.trajectory)
                acquisition.header["encoding_space_ref"] = 0
            yield acquisition
