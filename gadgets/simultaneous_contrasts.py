"""The readouts of slices that were excited together as their common k-space in all contrasts, with sensitivities of each slice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gadgets.base import Context
from gadgets.contrasts import CoilMaps, cartesian_maps, gridded_lines, sorted_lines
from gadgets.frames import skipped
from gadgets.header import NOT_CARTESIAN, Encoding, HeaderError
from gadgets.items import Acquisition
from gadgets.layout import Flag, clone
from gadgets.sms import GEOMETRY, caipi_shift, group_count
from recon.operators.sms import caipi_phases
from recon.quantitative.simultaneous import SimultaneousMeasured


@dataclass(frozen=True, eq=False)
class Simultaneous:
    """The slices of one group: their data, and the header of a readout in the middle for each, with its own number and geometry."""

    measured: SimultaneousMeasured
    headers: list[np.void]
    encoding: Encoding


def simultaneous_contrasts(
    readouts: Sequence[Acquisition],
    calibration: Sequence[Acquisition],
    factor: int,
    shift: float | None,
    context: Context,
    coil_maps: CoilMaps = "espirit",
) -> Simultaneous:
    """Sort the readouts of one group of slices, numbered and shifted as `gadgets.sms.SMSRecon` tells.

    Args:
        readouts: of one group, all contrasts; Cartesian, whitened.
        calibration: of all slices, each alone.
        factor: slices in a group.
        shift: turns from line to line between neighbours of the group; None for what the header tells.
        context: of the measurement.
        coil_maps: how sensitivities are found.

    Raises:
        ValueError: the scan is not Cartesian or three-dimensional, calibration readouts lack, or slices and factor do not fit.
    """
    kept = [one for one in readouts if skipped(one) is None]
    space = int(kept[0].header["encoding_space_ref"])
    encoding = context.header.encoding(space)
    if encoding.trajectory in NOT_CARTESIAN or encoding.trajectory == "epi" or kept[0].trajectory is not None:
        raise HeaderError(
            f"simultaneous slices of a scan along the trajectory {encoding.trajectory!r} are not fitted: only Cartesian ones are; "
            "put QuantitativeFit behind the gadget that reconstructs the slices"
        )
    if encoding.encoded.matrix[2] > 1:
        raise HeaderError("simultaneous slices of 3D encoding are not supported; the encoded matrix must have z = 1")
    alone, _ = sorted_lines([_as_imaging(one) for one in calibration], context) if calibration else ({}, {})
    groups, group = group_count(alone, factor), int(kept[0].header["idx"]["slice"])
    if group >= groups:
        raise ValueError(
            f"imaging readouts have the slice counter {group}, but {len(alone)} slices in bands of {factor} make {groups} groups; the "
            "multiband factor does not match the scan: set multiband"
        )
    numbers = [group + m * groups for m in range(factor)]
    ((_, contrasts),) = sorted_lines(kept, context)[0].items()
    kspace, _, crop = gridded_lines([contrasts[key].data[0, 0, 0] for key in sorted(contrasts)], [], encoding)
    maps = np.stack([_maps([one.data[0, 0, 0] for one in alone[n].values()], encoding, coil_maps, kspace.shape[1:]) for n in numbers], 1)
    lines = np.flatnonzero((kspace != 0).any((0, 1, 3)))
    step = int(np.diff(lines).min(initial=kspace.shape[2]))
    turns = caipi_shift(context.header, factor, shift) / step
    phases = caipi_phases(factor, kspace.shape[2], [turns * m for m in range(factor)])[..., 0]
    part = None if crop is None else (slice(0, factor), *crop)
    middle = kept[len(kept) // 2].header
    heads = [_of_slice(middle, n, next(iter(alone[n].values())).headers) for n in numbers]
    return Simultaneous(SimultaneousMeasured(kspace, maps, crop=part, phases=phases), heads, encoding)


def _as_imaging(readout: Acquisition) -> Acquisition:
    """A calibration readout as if it belonged to an image: placed in the whole matrix."""
    plain = Acquisition(clone(readout.header), readout.data, readout.trajectory)
    plain.header["flags"] = int(plain.header["flags"]) & ~Flag.IS_PARALLEL_CALIBRATION.mask
    plain.header["idx"]["repetition"] = 0
    return plain


def _maps(contrasts: list[np.ndarray], encoding: Encoding, method: CoilMaps, shape: tuple[int, ...]) -> np.ndarray:
    """Sensitivities `[coil, y, x]` of a slice from its calibration k-spaces ``[coil, E2, E1, E0]``."""
    kspace, _, _ = gridded_lines(contrasts, [], encoding)
    if kspace.shape[1:] != shape:
        raise ValueError(f"calibration and imaging readouts differ in channels or matrix: {kspace.shape[1:]} and {shape} ([coil, y, x])")
    return cartesian_maps(kspace, [], method, (-2, -1))


def _of_slice(header: np.void, number: int, calibration: np.ndarray) -> np.void:
    """Counters and times of the group, number and geometry of the slice."""
    head, own = clone(header), calibration[calibration["number_of_samples"] > 0][0]
    head["idx"]["slice"] = number
    for name in GEOMETRY:
        head[name] = own[name]
    return head
