"""ISMRMRD raw data as data to fit."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gadgets.base import Context, Gadget, run
from gadgets.contrasts import CoilMaps, ContrastSeries, contrast_series
from gadgets.header import NOT_CARTESIAN, Header, HeaderError
from gadgets.items import Acquisition
from gadgets.noise import NoiseAdjust
from gadgets.oversampling import AsymmetricEchoAdjustRO, RemoveROOversampling
from gadgets.sequence_parameters import per_contrast, readout_train, sequence_parameters
from recon.quantitative.measured import Measured
from service.files import read_measurement
from service.quantitative.source import Source, SourceError, affine_of

FRAME_MS = 90.0
"""How long a frame of a Look-Locker train lasts, unless told otherwise: short against any T1, long enough for a few spokes."""
_FEWER = 0.75
"""Part of the usual number of samples below which a contrast is told of."""
_TRAINS = ("LookLocker", "IRLL")
_FIELD = re.compile(r"^user_(?P<kind>float|int)\[(?P<index>[0-7])\]$")


@dataclass(frozen=True)
class Reading:
    """How raw data are read.

    Attributes:
        model: name of the signal model; those of readout trains have their data cut into frames.
        coil_maps: how sensitivities are found.
        readouts_per_frame: of a readout train; None for as many as last `FRAME_MS`.
        given: sequence parameters that win over the header's; ``user_float[n]`` or ``user_int[n]`` for what stands in the readouts.
    """

    model: str
    coil_maps: CoilMaps = "espirit"
    readouts_per_frame: int | None = None
    given: Mapping[str, Any] = field(default_factory=dict)


def read_ismrmrd(path: Path, group: str, reading: Reading) -> Source:
    """Raw data of a file or recorded stream: whitened, sorted, with sensitivities from the data themselves.

    Raises:
        SourceError: nothing to fit in the file.
        ValueError: the file, its header or its readouts are wrong; the text says what.
    """
    measurement = read_measurement(path, group)
    if measurement.images:
        raise SourceError(f"{path}: holds reconstructed images, no readouts; maps are fitted to raw data, or to NIfTI image series")
    header = Header(measurement.header_xml)
    context = Context(header=header)
    stored = {name: value for name, value in reading.given.items() if in_readouts(value)}
    plain = {name: value for name, value in reading.given.items() if name not in stored}
    parameters = {**sequence_parameters(header), **plain}
    gadgets: list[Gadget] = [NoiseAdjust("noise")]
    if header.encoding().trajectory not in NOT_CARTESIAN:
        gadgets += [AsymmetricEchoAdjustRO("echo"), RemoveROOversampling("oversampling")]
    acquisitions = (item for item in run(gadgets, measurement.items(), context) if isinstance(item, Acquisition))
    counted = header.encoding().limit("contrast")
    train = reading.model in _TRAINS and (counted is None or counted.maximum == counted.minimum)
    try:
        per_frame = reading.readouts_per_frame or (_frame(parameters) if train else 0)
        series = contrast_series(acquisitions, context, reading.coil_maps, per_frame)
    except ValueError as error:
        raise SourceError(f"{path}: {error}") from error
    notes = [f"{what}: {count}" for what, count in context.counts.items()]
    parameters = per_contrast(parameters, series.contrasts)
    if per_frame:
        notes.append(f"{len(series.contrasts)} frames of {per_frame} readouts (--readouts-per-frame)")
        parameters |= readout_train(parameters, series.order, per_frame)
        # All inversion times of the frames may be given, not only the first.
        parameters |= {name: value for name, value in plain.items() if np.size(value) == len(series.contrasts)}
    for name, where in stored.items():
        parameters[name] = [_stored(head, where) for head in series.first_headers]
    notes += [text for number, one in enumerate(series.slices) for text in _short(path, number, one.measured)]
    affine, spacing = _geometry(series)
    return Source([one.measured for one in series.slices], parameters, affine, spacing=spacing, notes=notes)


def _short(path: Path, number: int, measured: Measured) -> list[str]:
    """What to tell of contrasts of a slice that have far fewer samples than the others.

    Raises:
        SourceError: the centre of k-space is not among them, so that the contrast has the wrong brightness.
    """
    if measured.trajectory is None:
        sampled = np.abs(measured.data).max(1) > 0
        middle = (slice(None), *(slice(n // 2 - 1, n // 2 + 2) for n in measured.grid))
        centred = sampled[middle].reshape(len(sampled), -1).any(1)
        counts = sampled.reshape(len(sampled), -1).sum(1)
    else:
        full = np.ones(measured.trajectory.shape[:2], np.float32)
        counts = ((full if measured.weights is None else measured.weights) > 0).sum(1)
        centred = np.ones(len(counts), bool)
    usual = int(np.median(counts))
    told = []
    for contrast in np.flatnonzero(counts < _FEWER * usual):
        text = f"contrast {contrast} of slice {number} (counted from 0) has {100 * counts[contrast] / usual:.0f} % of the others' samples"
        if not centred[contrast]:
            raise SourceError(f"{path}: {text}, none in the middle of k-space: did the scan end early? Leave it out")
        told.append(text)
    return told


def _frame(parameters: Mapping[str, Any]) -> int:
    """Readouts of a train in a frame."""
    try:
        step = readout_train(dict(parameters), [0], 1)["TR"]
    except HeaderError as error:
        raise SourceError(f"{error}, or give it by -P NAME=VALUE") from error
    return max(1, round(FRAME_MS / step)) if step > 0 else 1


def _stored(header: np.void, where: str) -> float:
    match = _FIELD.match(where)
    if match is None:
        raise SourceError(f"{where!r} is no place in a readout's header; write user_float[n] or user_int[n], n from 0 to 7")
    return float(header[f"user_{match['kind']}"][int(match["index"])])


def in_readouts(value: Any) -> bool:
    """Whether a parameter's value names a field of the readouts instead of numbers."""
    return isinstance(value, str) and _FIELD.match(value) is not None


def _geometry(series: ContrastSeries) -> tuple[np.ndarray, float]:
    """Affine of (row, column, slice), and pixel size over distance of slices."""
    head, space = series.slices[0].header, series.encoding.recon
    x, y, z = (field / n for field, n in zip(space.field_of_view, space.matrix, strict=True))
    read, phase, normal = (_unit(head[name], axis) for name, axis in (("read_dir", 0), ("phase_dir", 1), ("slice_dir", 2)))
    position = head["position"].astype(float)
    # The position is that of the voxel at n // 2, the origin of the Fourier transform.
    origin = position - read * x * (space.matrix[0] // 2) - phase * y * (space.matrix[1] // 2)
    step = normal * z
    if len(series.slices) > 1:
        distance = (series.slices[-1].header["position"].astype(float) - position) / (len(series.slices) - 1)
        step = distance if np.linalg.norm(distance) > 0 else step
    elif space.matrix[2] > 1:
        origin = origin - normal * z * (space.matrix[2] // 2)
    length = float(np.linalg.norm(step))
    return affine_of(phase * y, read * x, step, origin), x / length if length > 0 else 1.0


def _unit(direction: np.ndarray, axis: int) -> np.ndarray:
    """A direction of unit length; the axis itself where the readouts say none."""
    length = float(np.linalg.norm(direction))
    return np.eye(3)[axis] if length == 0 else direction.astype(float) / length
