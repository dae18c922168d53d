"""The readouts of a scan as the k-space of all contrasts of each slice or volume, with sensitivities: what maps are fitted to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from gadgets.accumulate import gather
from gadgets.base import Context
from gadgets.buffer import sort_bucket
from gadgets.cartesian import averaged, centered, field_of_view
from gadgets.frames import Place, Readout, skipped
from gadgets.header import NOT_CARTESIAN, Encoding
from gadgets.items import Acquisition, AcquisitionBucket, ReconBuffer
from gadgets.noncartesian import NonCartesianRecon
from gadgets.reconstruction import Reconstruction
from recon.fourier import fftc, ifftc
from recon.quantitative.measured import Measured

CoilMaps = Literal["espirit", "image", "nlinv"]
COUNTERS = ("contrast", "phase", "set", "repetition")
"""What tells contrasts apart: every combination of these counters that occurs is one, in ascending order."""
_TRAIN = ("average", "contrast", "phase", "set", "repetition", "segment")
"""A readout train begins where one of these changes."""
_BLOCK, _SMALLEST_BLOCK = 24, 8
"""Edge of the centre of k-space from which Cartesian maps are made, and what ESPIRiT needs at least."""


@dataclass(eq=False)
class Slice:
    """A slice or volume.

    measured: its data; header: of the readout in the middle, for geometry and counters.
    """

    measured: Measured
    header: np.void


@dataclass(eq=False)
class ContrastSeries:
    """A scan by slices and contrasts.

    slices: in ascending order of their counter; contrasts: counters (see `COUNTERS`) of each, or (frame,) of a readout train;
    first_headers: header of the first readout of each contrast of the first slice; readouts: in a contrast; order: number of the first
    readout of each contrast in its train, 0 unless a train is cut into frames; encoding: of the images.
    """

    slices: list[Slice]
    contrasts: list[tuple[int, ...]]
    first_headers: list[np.void]
    readouts: int
    order: list[int]
    encoding: Encoding


def contrast_series(
    acquisitions: Iterable[Acquisition], context: Context, coil_maps: CoilMaps = "espirit", readouts_per_frame: int = 0
) -> ContrastSeries:
    """Sort readouts, whitened already, and find the sensitivities of each slice from all its contrasts.

    Amplitudes are those of the object. Readouts with NaN are left out and counted.

    Args:
        acquisitions: in the order of time.
        context: of the measurement.
        coil_maps: by ESPIRiT, from a low-resolution image, or by nonlinear inversion (Cartesian).
        readouts_per_frame: cut the train of readouts after each inversion into contrasts of so many; 0: contrasts by the counters.

    Raises:
        ValueError: no imaging readouts, slices that differ in contrasts or size, a trajectory for which there is no way.
    """
    kept = [one for one in acquisitions if skipped(one) is None]
    if not kept:
        raise ValueError("the scan has no imaging readouts")
    spaces = {int(one.header["encoding_space_ref"]) for one in kept}
    space = min(spaces)
    if len(spaces) > 1:
        context.log.warning("the scan has %d encoding spaces; maps are made of number %d", len(spaces), space)
    kept = [one for one in kept if int(one.header["encoding_space_ref"]) == space]
    encoding = context.header.encoding(space)
    if encoding.trajectory == "epi":
        raise ValueError("EPI readouts need their corrections first: reconstruct images with epi_grappa.xml and fit those")
    if encoding.trajectory in NOT_CARTESIAN or kept[-1].trajectory is not None:
        return _off_grid(kept, context, encoding, coil_maps, readouts_per_frame)
    if readouts_per_frame:
        raise ValueError("a train of Cartesian readouts cannot be cut into frames: give its lines a contrast counter")
    return _on_grid(kept, context, encoding, coil_maps)


def _checked(slices: dict[int, dict[tuple[int, ...], Any]]) -> list[tuple[int, ...]]:
    """The contrasts that all slices have."""
    contrasts = sorted(next(iter(slices.values())))
    for number, found in slices.items():
        if sorted(found) != contrasts:
            raise ValueError(
                f"slice {number} has {len(found)} contrasts, slice {next(iter(slices))} has {len(contrasts)}: did the scan end early? "
                "leave out incomplete slices"
            )
    return contrasts


# -- trajectories ----------------------------------------------------------------------------------------------------------------------


def _off_grid(acquisitions: list[Acquisition], context: Context, encoding: Encoding, coil_maps: CoilMaps, per_frame: int) -> ContrastSeries:
    if coil_maps == "nlinv":
        raise ValueError("coil maps by nlinv are for Cartesian scans; take espirit or image")
    gadget = NonCartesianRecon("fit", coil_maps=coil_maps)
    reconstruction = Reconstruction(gadget, context)
    slices: dict[int, dict[tuple[int, ...], list[Readout]]] = {}
    order: dict[tuple[int, ...], int] = {}
    train, position = None, 0
    for acquisition in acquisitions:
        readout = reconstruction.readout(acquisition)
        if readout is None:
            continue
        counters = readout.header["idx"]
        number = int(counters["slice"])
        if per_frame:
            begun = (number, *(int(counters[name]) for name in _TRAIN))
            position, train = (position + 1 if begun == train else 0), begun
            key: tuple[int, ...] = (position // per_frame,)
            order[key] = key[0] * per_frame
        else:
            key = tuple(int(counters[name]) for name in COUNTERS)
        slices.setdefault(number, {}).setdefault(key, []).append(readout)
    if per_frame:
        _drop_short_frames(slices, per_frame, context)
    contrasts = _checked(slices)
    gathered = [_radial_slice(reconstruction, slices[number], contrasts, context) for number in sorted(slices)]
    first = slices[min(slices)]
    return ContrastSeries(
        gathered,
        contrasts,
        [first[key][0].header for key in contrasts],
        max(len(first[key]) for key in contrasts),
        [order.get(key, 0) for key in contrasts],
        encoding,
    )


def _drop_short_frames(slices: dict[int, dict[tuple[int, ...], list[Readout]]], per_frame: int, context: Context) -> None:
    """The end of a train that fills no frame would be averaged over fewer readouts than the model is told."""
    for frames in slices.values():
        whole = max(len(frame) for frame in frames.values())
        last = max(frames)
        if len(frames[last]) < whole:
            context.count(f"readouts after the last frame of {per_frame}", len(frames.pop(last)))


def _radial_slice(
    reconstruction: Reconstruction, frames: dict[tuple[int, ...], list[Readout]], contrasts: Sequence[tuple[int, ...]], context: Context
) -> Slice:
    everything = [readout for key in contrasts for readout in frames[key]]
    place: Place = everything[0].series.place
    reconstruction.calibrate(everything)
    maps, grid = reconstruction.maps[place], reconstruction.grid(place[0])
    parts = [reconstruction.samples(frames[key], weighted=False) for key in contrasts]
    length = max(part.data.shape[1] for part in parts)
    factor = np.float32(grid.amplitude / np.sqrt(np.prod(grid.shape)))
    kspace = np.zeros((len(parts), len(maps), length), np.complex64)
    trajectory = np.zeros((len(parts), length, parts[0].trajectory.shape[1]), np.float32)
    weights = np.zeros((len(parts), length), np.float32)
    for n, part in enumerate(parts):
        have = part.data.shape[1]
        kspace[n, :, :have], trajectory[n, :have], weights[n, :have] = part.data * factor, part.trajectory, 1
    window = tuple(slice(n // 2 - m // 2, n // 2 - m // 2 + m) for n, m in zip(grid.shape, grid.crop, strict=True))
    whole = all(n == m for n, m in zip(grid.shape, grid.crop, strict=True))
    measured = Measured(kspace, maps, trajectory, None if weights.all() else weights, None, None if whole else window)
    return Slice(measured, everything[len(frames[contrasts[0]]) // 2].header)


# -- grids -----------------------------------------------------------------------------------------------------------------------------


def _on_grid(acquisitions: list[Acquisition], context: Context, encoding: Encoding, coil_maps: CoilMaps) -> ContrastSeries:
    slices, references = sorted_lines(acquisitions, context)
    contrasts = _checked(slices)
    gathered = [_cartesian_slice(slices[n], contrasts, references.get(n, []), encoding, coil_maps) for n in sorted(slices)]
    first = [slices[min(slices)][key].headers for key in contrasts]
    taken = [headers[headers["number_of_samples"] > 0] for headers in first]
    heads = [headers[np.argmin(headers["acquisition_time_stamp"])] for headers in taken]
    return ContrastSeries(gathered, contrasts, heads, max(len(one) for one in taken), [0] * len(contrasts), encoding)


def sorted_lines(
    acquisitions: Iterable[Acquisition], context: Context
) -> tuple[dict[int, dict[tuple[int, ...], ReconBuffer]], dict[int, list[np.ndarray]]]:
    """Cartesian readouts, averaged, by slice and contrast (see `COUNTERS`), and calibration k-spaces ``[coil, E2, E1, E0]`` by slice.

    Readouts with NaN are left out and counted. Raises ValueError where nothing is left.
    """
    bucket = AcquisitionBucket()
    for acquisition in acquisitions:
        if np.isfinite(acquisition.data).all():
            gather(bucket, acquisition)
        else:
            context.count("readouts with NaN or infinite samples left out")
    if not bucket.data:
        raise ValueError("every imaging readout holds NaN or infinite samples; check the receiver, the noise scan and the converter")
    slices: dict[int, dict[tuple[int, ...], ReconBuffer]] = {}
    references: dict[int, list[np.ndarray]] = {}
    for recon_data in sort_bucket(bucket, context, n_dimension="average", split_slices=True, ignore_segment=True):
        bit = recon_data.bits[-1]
        for buffer, is_data in ((bit.data, True), (bit.ref, False)):
            if buffer is None or not buffer.data.size:
                continue
            buffer = averaged(buffer)
            acquired = buffer.headers[buffer.headers["number_of_samples"] > 0]
            counters = acquired[0]["idx"]
            if is_data:
                key = tuple(int(counters[name]) for name in COUNTERS)
                slices.setdefault(int(counters["slice"]), {})[key] = buffer
            else:
                references.setdefault(int(counters["slice"]), []).append(buffer.data[0, 0, 0])
    return slices, references


def _cartesian_slice(
    buffers: dict[tuple[int, ...], ReconBuffer],
    contrasts: Sequence[tuple[int, ...]],
    references: list[np.ndarray],
    encoding: Encoding,
    coil_maps: CoilMaps,
) -> Slice:
    kspace, references, crop = gridded_lines([buffers[key].data[0, 0, 0] for key in contrasts], references, encoding)
    axes = tuple(range(2 - kspace.ndim, 0))
    maps = cartesian_maps(kspace, references, coil_maps, axes)
    headers = buffers[contrasts[0]].headers
    acquired_headers = headers[headers["number_of_samples"] > 0]
    return Slice(Measured(kspace, maps, crop=crop), acquired_headers[len(acquired_headers) // 2])


def gridded_lines(
    arrays: Sequence[np.ndarray], references: list[np.ndarray], encoding: Encoding
) -> tuple[np.ndarray, list[np.ndarray], tuple[slice, ...] | None]:
    """K-space of all contrasts, and calibration k-spaces, on the grid of the images that the header asks for.

    Of whole readouts the field of view outside the image (oversampling) is left out.

    Args:
        arrays: ``[coil, E2, E1, E0]`` of each contrast; references: so, too.

    Returns:
        K-space ``[contrast, coil, (z,) y, x]``, references ``[coil, (z,) y, x]``, and the part of the grid that is wanted; None for all.
    """
    if len({array.shape for array in arrays}) > 1:
        raise ValueError(f"contrasts differ in channels or matrix: {', '.join(str(array.shape) for array in arrays)} ([coil, E2, E1, E0])")
    kspace = np.stack(arrays)
    flat = kspace.shape[2] == 1
    covered = field_of_view(encoding, kspace.shape[-1])
    grid, crop, factor = list(kspace.shape[-3:]), [slice(0, n) for n in kspace.shape[-3:]], 1.0
    spaces = zip(encoding.recon.matrix, encoding.recon.field_of_view, covered, strict=True)
    for axis, (wanted, shown, have) in enumerate(spaces, start=1):
        if flat and axis == 3:
            continue
        acquired = kspace.shape[-axis]
        filled = max(round(wanted * have / shown) if shown > 0 and have > 0 else acquired, wanted)
        # Values of the image do not depend on zero-filling.
        factor *= np.sqrt(filled / acquired)
        grid[-axis] = filled
        crop[-axis] = slice(filled // 2 - wanted // 2, filled // 2 - wanted // 2 + wanted)
        if axis == 1 and wanted < filled and _whole_readouts(kspace):
            kspace, references = _narrowed(kspace, filled, wanted), [_narrowed(one, filled, wanted) for one in references]
            grid[-1], crop[-1] = wanted, slice(0, wanted)
            continue
        kspace = centered(kspace, -axis, filled)
        references = [centered(one, -axis, filled) if one.shape[-axis] > 1 else one for one in references]
    kspace = np.ascontiguousarray(kspace * np.float32(factor))
    if flat:
        kspace, grid, crop, references = kspace[:, :, 0], grid[1:], crop[1:], [one[:, 0] for one in references]
    whole = all(part == slice(0, n) for part, n in zip(crop, grid, strict=True))
    return kspace, references, None if whole else tuple(crop)


def _whole_readouts(kspace: np.ndarray) -> bool:
    """Whether each readout of `[..., coil, E2, E1, E0]` was sampled from end to end or not at all."""
    sampled = (kspace != 0).any(-4)
    return bool((sampled.all(-1) == sampled.any(-1)).all())


def _narrowed(kspace: np.ndarray, filled: int, wanted: int) -> np.ndarray:
    """K-space `[..., E0]` at the resolution of `filled` samples, of the middle `wanted` pixels."""
    narrowed: np.ndarray = fftc(centered(ifftc(centered(kspace, -1, filled), -1), -1, wanted), -1)
    return narrowed.astype(np.complex64, copy=False)


def cartesian_maps(kspace: np.ndarray, references: Sequence[np.ndarray], method: CoilMaps, axes: tuple[int, ...]) -> np.ndarray:
    """Sensitivities `[coil, *grid]` that all contrasts share.

    Args:
        kspace: `[contrast, coil, *grid]`, 0 where nothing was sampled.
        references: calibration k-spaces `[coil, *grid]`; where there are none, the contrasts calibrate themselves.
        method: ESPIRiT falls back to nonlinear inversion where the centre was not sampled fully.
        axes: of the grid.
    """
    from recon.coils import inati
    from recon.espirit import espirit
    from recon.nlinv import nlinv

    rank = len(axes)
    if kspace.shape[1] == 1:
        return np.ones(kspace.shape[1:], np.complex64)
    source = np.stack(references) if references else kspace
    together, sampled = _together(source)
    block = _full_centre(sampled)
    maps: np.ndarray
    if method == "image":
        window = np.array(1.0)
        for axis, n in zip(axes, together.shape[1:], strict=True):
            ramp = np.abs(np.arange(n) - n // 2) / (0.1 * n)
            edge = np.where(ramp < 1, 0.5 + 0.5 * np.cos(np.pi * np.minimum(ramp, 1)), 0) if n > 1 else np.ones(1)
            window = window * edge.reshape([-1 if a == axis else 1 for a in range(-rank, 0)])
        maps = inati(ifftc(together * window, axes).astype(np.complex64), 9 if rank == 2 else 5, rank=rank)
    elif method == "espirit" and min(block) >= min(_SMALLEST_BLOCK, *together.shape[1:]):
        # Of a thin slab, a kernel of all partitions would fit anything.
        kernel = [min(6 if rank == 2 else 4, (n + 1) // 2) for n in block]
        maps = espirit(together, None, block, kernel, rank=rank)
    else:
        maps = nlinv(together, mask=sampled, rank=rank)[1]
    return maps.astype(np.complex64)


def _together(kspace: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One k-space `[coil, *grid]` of the strongest combination of the contrasts, and the points sampled in it.

    Any combination of contrasts has the same sensitivities; where not all were sampled, that of those which were. Contrasts that
    share no samples (interleaved) cannot be compared and count alike.
    """
    sampled = (kspace != 0).any(1)
    common = sampled.all(0)
    weights = np.ones(len(kspace), np.complex64)
    if common.any():
        flat = kspace[:, :, common].reshape(len(kspace), -1)
        weights = np.linalg.eigh(flat @ flat.conj().T)[1][:, -1].conj()
    share = np.einsum("c,c...->...", np.abs(weights) ** 2, sampled)
    total = np.einsum("c,c...->...", weights, kspace)
    return (total / np.where(share > 0, share, 1)).astype(np.complex64), share > 0


def _full_centre(sampled: np.ndarray) -> tuple[int, ...]:
    """Edges of a fully sampled block around the centre of `[*grid]`."""
    shape = np.array(sampled.shape)
    for edge in range(_BLOCK, 0, -1):
        size = np.minimum(edge, shape)
        block = sampled[tuple(slice(n // 2 - m // 2, n // 2 - m // 2 + m) for n, m in zip(shape, size, strict=True))]
        if block.all():
            return tuple(int(n) for n in size)
    return (0,) * sampled.ndim
