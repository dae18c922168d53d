"""GRAPPA for any sampling pattern: every neighbourhood of acquired samples that occurs gets a kernel of its own.

Griswold et al., Magn Reson Med 2002;47:1202 (GRAPPA); Breuer et al., MRM 2006;55:549 (CAIPIRINHA: sheared lattices). Lattices, lattices
with a shift, factors that do not divide the size, a dense centre, variable density: all are found in the mask itself.

`recon.grappa` unaliases frames of one lattice in the image; here k-space is filled, and the acquired samples stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.lib.stride_tricks import sliding_window_view
from scipy.ndimage import maximum_filter

from recon.blas import one_blas_thread
from recon.fourier import fftc, ifftc
from recon.grappa import solve

_ROWS = 4096
"""Equations gathered at once."""

_UNKNOWNS = 2048
"""Patterns share one matrix of normal equations up to this size."""

_GATHERED = 1 << 23
"""Source samples gathered at once when k-space is filled: 64 MiB in single precision."""


def grappa(
    kspace: np.ndarray,
    mask: np.ndarray | None = None,
    calibration: np.ndarray | None = None,
    *,
    kernel_size: int | Sequence[int] | None = None,
    regularization: float = 0.01,
    over_determination: float = 8.0,
    most_sources: int | None = None,
    leave_gaps: bool = False,
) -> np.ndarray:
    """Fill the missing samples of multi-coil k-space.

    Args:
        kspace: complex `[..., coil, (z,) y, x]`; what it holds where nothing was sampled does not matter if there is a mask.
        mask: bool `[(z,) y, x]`, or of length 1 along axes where it does not change. None takes samples that are 0 in all coils as
            missing; there are no leading axes then.
        calibration: fully sampled k-space `[..., coil, (z,) y, x]` of any size, leading axes as `kspace`, or none: all share the kernels.
            None takes the largest fully sampled block around the centre of each k-space.
        kernel_size, regularization, over_determination, most_sources, leave_gaps: see `PatternKernels`.

    Returns:
        k-space of the shape of `kspace`.

    Raises:
        ValueError: shapes that do not fit, values that are not finite, a mask without samples, or see `PatternKernels`.
    """
    rank = kspace.ndim - 1 if mask is None else mask.ndim
    if kspace.ndim <= rank or rank < 1:
        raise ValueError(f"GRAPPA: kspace {kspace.shape} must end in a coil axis and the {rank} axes of mask")
    image_shape, lead = kspace.shape[-rank:], kspace.shape[: -rank - 1]
    sampled = (kspace != 0).any(0) if mask is None else np.asarray(mask, bool)
    if any(m not in (1, n) for m, n in zip(sampled.shape, image_shape, strict=True)):
        raise ValueError(f"GRAPPA: mask {sampled.shape} does not fit kspace {kspace.shape}")
    if not sampled.any():
        raise ValueError("GRAPPA: mask is empty: no sample was acquired; check the sampling pattern or the data")
    if calibration is None:
        region = [slice(None)] * (kspace.ndim - rank) + calibration_region(np.broadcast_to(sampled, image_shape))
        calibration = kspace[tuple(region)]
    if calibration.ndim - rank - 1 not in (0, len(lead)) or calibration.shape[-rank - 1] != kspace.shape[-rank - 1]:
        raise ValueError(
            f"GRAPPA: calibration {calibration.shape} does not fit kspace {kspace.shape}; both are [..., coil, {rank} axes], "
            "with the same leading axes or none for calibration"
        )

    def kernels(samples: np.ndarray) -> PatternKernels:
        return PatternKernels(
            samples,
            sampled,
            image_shape,
            kernel_size=kernel_size,
            regularization=regularization,
            over_determination=over_determination,
            most_sources=most_sources,
            leave_gaps=leave_gaps,
        )

    if calibration.ndim == rank + 1:
        return kernels(calibration).fill(kspace)
    filled = np.empty_like(kspace)
    for where in np.ndindex(*lead):
        filled[where] = kernels(calibration[where]).fill(kspace[where])
    return filled


def calibration_region(mask: np.ndarray) -> list[slice]:
    """The largest fully sampled block around the centre (index n // 2) of a mask, grown by one sample a side in turns.

    Raises:
        ValueError: the centre was not sampled.
    """
    first = [n // 2 for n in mask.shape]
    last = list(first)
    if not mask[tuple(first)]:
        raise ValueError("GRAPPA: mask leaves out the centre of k-space; give the argument calibration, fully sampled k-space")
    growing = True
    while growing:
        growing = False
        for axis, n in enumerate(mask.shape):
            for ends, candidate in ((first, first[axis] - 1), (last, last[axis] + 1)):
                face = tuple(candidate if a == axis else slice(first[a], last[a] + 1) for a in range(mask.ndim))
                if 0 <= candidate < n and mask[face].all():
                    ends[axis] = candidate
                    growing = True
    return [slice(low, high + 1) for low, high in zip(first, last, strict=True)]


@dataclass(frozen=True)
class _Pattern:
    """Missing samples with the same neighbourhood, and their kernel."""

    targets: np.ndarray
    """Flat indices into the grid of the mask."""
    sources: np.ndarray
    """Which points of the kernel's box were acquired: flat indices into the box."""
    weights: np.ndarray
    """`[source, readout tap, coil, target coil]`."""


class PatternKernels:
    """A kernel for every neighbourhood of acquired samples around a missing one: fitted once, applied to any number of k-spaces.

    Each minimises ``||A w - b||² + regularization * trace(A^H A) / n * ||w||²`` over all places of the calibration data.
    The last axis along which the mask does not change (the readout) is periodic, as in a Fourier transform; beyond the ends of the
    others there are no samples, and neighbourhoods at the border get their own kernels. Time and memory grow with the number of distinct
    neighbourhoods: for masks without any order `recon.spirit` does better.

    Args:
        calibration: fully sampled k-space, complex `[coil, (z,) y, x]`.
        mask: bool `[(z,) y, x]`, or of length 1 along axes where it does not change.
        image_shape: samples of the k-spaces along (z,) y, x.
        kernel_size: width of the box of neighbours, odd, one number or one for each axis; axes shorter than that shrink one number.
            None takes 5, and without `leave_gaps` as much more as gives every missing point an acquired neighbour.
        regularization: Tikhonov weight relative to the mean diagonal of the normal equations; 0 gives the least-norm solution.
        over_determination: at most this many equations an unknown, taken around the brightest part of the readout; 0 uses all.
        most_sources: use only so many of the acquired neighbours, the nearest (along the readout each counts once); None uses all.
        leave_gaps: leave samples without an acquired neighbour at 0 (corners outside an ellipse, partial Fourier) instead of refusing.

    Raises:
        ValueError: see `leave_gaps`; even kernel, calibration smaller than the kernel, without signal or not finite.
    """

    @one_blas_thread()
    def __init__(
        self,
        calibration: np.ndarray,
        mask: np.ndarray,
        image_shape: Sequence[int],
        *,
        kernel_size: int | Sequence[int] | None = None,
        regularization: float = 0.01,
        over_determination: float = 8.0,
        most_sources: int | None = None,
        leave_gaps: bool = False,
    ) -> None:
        self.image_shape = tuple(image_shape)
        self._sampled = np.asarray(mask, bool)
        if not np.isfinite(calibration).all():
            raise ValueError("GRAPPA: calibration holds values that are not finite (NaN or Inf); check the data and the noise adjustment")
        self._readout = _unchanging_axis(self._sampled, self.image_shape)
        grid = self._sampled if self._readout is None else np.take(self._sampled, [0], self._readout)
        self._grid = tuple(1 if axis == self._readout else n for axis, n in enumerate(self.image_shape))
        grid = np.broadcast_to(grid, self._grid)
        if kernel_size is None:
            kernel_size = 5 if leave_gaps else _reaching_size(grid, self.image_shape, self._readout)
        size = _kernel_size(kernel_size, self.image_shape)
        if any(n < k for n, k in zip(calibration.shape[1:], size, strict=True)):
            raise ValueError(
                f"GRAPPA: calibration has {calibration.shape[1:]} fully sampled points, too few for kernel_size {size}; "
                "acquire more calibration lines or make the kernel smaller"
            )
        self._box = tuple(1 if axis == self._readout else n for axis, n in enumerate(size))
        self._taps = 1 if self._readout is None else size[self._readout]
        neighbourhoods = list(_neighbourhoods(grid, self._box, most_sources))
        if not leave_gaps:
            self._refuse_gaps(neighbourhoods, size)
        neighbourhoods = [(targets, sources) for targets, sources in neighbourhoods if sources.size]
        samples = self._to_grid(calibration)[:, 0]
        self.patterns = list(_fitted(samples, neighbourhoods, self._box, self._taps, regularization, over_determination))

    def _refuse_gaps(self, neighbourhoods: list[tuple[np.ndarray, np.ndarray]], size: tuple[int, ...]) -> None:
        for targets, sources in neighbourhoods:
            if not sources.size:
                place = tuple(int(i) for i in np.unravel_index(targets[0], self._grid))
                raise ValueError(
                    f"GRAPPA: mask has {len(targets)} missing points without an acquired neighbour in a kernel of {size}, the first at "
                    f"{place}; enlarge kernel_size, or leave such points 0 with leave_gaps=True (corners, partial Fourier)"
                )

    @one_blas_thread()
    def fill(self, kspace: np.ndarray) -> np.ndarray:
        """Put what the kernels predict in place of the missing samples.

        Args:
            kspace: complex `[..., coil, (z,) y, x]` of `image_shape`.

        Returns:
            k-space of the same shape; acquired samples unchanged.

        Raises:
            ValueError: other shape, or acquired values that are not finite.
        """
        rank = len(self.image_shape)
        if kspace.shape[-rank:] != self.image_shape or kspace.ndim <= rank:
            raise ValueError(f"GRAPPA: kspace {kspace.shape} does not end in [coil, {', '.join(map(str, self.image_shape))}]")
        measured = np.where(self._sampled, kspace, np.zeros((), kspace.dtype))
        if not np.isfinite(measured).all():
            raise ValueError("GRAPPA: kspace holds values that are not finite (NaN or Inf); check the data")
        if not self.patterns:
            return measured
        hybrid = self._to_grid(measured)
        if self._readout is not None:
            hybrid = ifftc(hybrid, 0)
        hybrid = hybrid.reshape(*hybrid.shape[:2], -1, hybrid.shape[-1])
        filled = np.zeros_like(hybrid)
        waves = _waves(self._taps, len(hybrid), hybrid.dtype)
        for pattern in self.patterns:
            self._predict(pattern, waves, hybrid, filled)
        if self._readout is not None:
            filled = fftc(filled, 0)
        result: np.ndarray = measured + self._from_grid(filled, kspace.shape)
        return result

    def _predict(self, pattern: _Pattern, waves: np.ndarray, hybrid: np.ndarray, filled: np.ndarray) -> None:
        """One matrix product for each readout position, which is a pixel: the taps along the readout have become phases."""
        pixels, batch, _, coils = hybrid.shape
        sources, taps, _, outputs = pattern.weights.shape
        weights = waves @ np.moveaxis(pattern.weights, 1, 0).reshape(taps, -1).astype(hybrid.dtype, copy=False)
        weights = weights.reshape(pixels, sources * coils, outputs)
        offsets = _flat_offsets(pattern.sources, self._box, self._grid)
        step = max(_GATHERED // (pixels * batch * sources * coils), 1)
        for start in range(0, len(pattern.targets), step):
            targets = pattern.targets[start : start + step]
            gathered = np.take(hybrid, targets[:, None] + offsets, axis=2).reshape(pixels, -1, sources * coils)
            filled[:, :, targets] = (gathered @ weights).reshape(pixels, batch, len(targets), outputs)

    def _to_grid(self, kspace: np.ndarray) -> np.ndarray:
        """`[..., coil, *image]` -> `[readout, batch, *grid, coil]`, the readout of length 1 where there is none."""
        rank = len(self.image_shape)
        flat = kspace.reshape(-1, *kspace.shape[-rank - 1 :])
        front = flat[None] if self._readout is None else np.expand_dims(np.moveaxis(flat, self._readout + 2, 0), self._readout + 3)
        return np.ascontiguousarray(np.moveaxis(front, 2, -1))

    def _from_grid(self, filled: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """The reverse of `_to_grid`."""
        pixels, batch, _, coils = filled.shape
        grid = np.moveaxis(filled.reshape(pixels, batch, *self._grid, coils), -1, 2)
        if self._readout is None:
            return grid.reshape(shape)
        return np.moveaxis(grid.squeeze(3 + self._readout), 0, self._readout + 2).reshape(shape)


def _kernel_size(kernel_size: int | Sequence[int], image_shape: tuple[int, ...]) -> tuple[int, ...]:
    size = tuple(min(kernel_size, n - 1 + n % 2) for n in image_shape) if isinstance(kernel_size, int) else tuple(kernel_size)
    if len(size) != len(image_shape) or any(n < 1 or n % 2 == 0 for n in size):
        raise ValueError(f"GRAPPA: kernel_size must be odd, one number or {len(image_shape)}, not {kernel_size}")
    return size


def _reaching_size(grid: np.ndarray, image_shape: tuple[int, ...], readout: int | None) -> tuple[int, ...]:
    """The smallest box from 5 on in which every point of the grid has an acquired neighbour."""
    for width in range(5, max(2 * max(grid.shape), 6), 2):
        size = tuple(min(5 if axis == readout else width, n - 1 + n % 2) for axis, n in enumerate(image_shape))
        box = tuple(1 if axis == readout else n for axis, n in enumerate(size))
        if maximum_filter(grid, box, mode="constant").all():
            break
    return size


def _unchanging_axis(sampled: np.ndarray, image_shape: tuple[int, ...]) -> int | None:
    """The last axis along which the mask does not change."""
    for axis in reversed(range(sampled.ndim)):
        if image_shape[axis] > 1 and (sampled == np.take(sampled, [0], axis)).all():
            return axis
    return None


def _neighbourhoods(sampled: np.ndarray, box: tuple[int, ...], most: int | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each set of acquired points in the box around a missing one: flat indices of the missing points, and of the box's points."""
    padded = np.pad(sampled, [(n // 2, n // 2) for n in box])
    missing = np.flatnonzero(~sampled)
    windows = sliding_window_view(padded, box)
    found: dict[bytes, list[np.ndarray]] = {}
    for start in range(0, len(missing), 1 << 18):
        some = missing[start : start + (1 << 18)]
        bits = np.packbits(windows[np.unravel_index(some, sampled.shape)].reshape(len(some), -1), axis=1)
        keys, inverse = np.unique(bits.view(np.dtype((np.void, bits.shape[1])))[:, 0], return_inverse=True)
        order = np.argsort(inverse, kind="stable")
        for key, members in zip(keys, np.split(some[order], np.cumsum(np.bincount(inverse))[:-1]), strict=True):
            found.setdefault(key.tobytes(), []).append(members)
    distance = np.sum((np.indices(box).reshape(len(box), -1) - np.array(box)[:, None] // 2) ** 2, axis=0)
    together: dict[bytes, list[np.ndarray]] = {}
    for pattern, parts in found.items():
        acquired = np.flatnonzero(np.unpackbits(np.frombuffer(pattern, np.uint8)))
        nearest = np.sort(acquired[np.argsort(distance[acquired], kind="stable")[:most]])
        together.setdefault(nearest.tobytes(), []).extend(parts)
    for sources, parts in together.items():
        yield np.concatenate(parts), np.frombuffer(sources, np.intp)


def _flat_offsets(sources: np.ndarray, box: tuple[int, ...], grid: tuple[int, ...]) -> np.ndarray:
    """Distance of points of the box from its middle as steps in the flat grid."""
    strides = np.cumprod((1, *grid[:0:-1]))[::-1]
    steps = np.stack(np.unravel_index(sources, box), axis=-1) - np.array(box) // 2
    offsets: np.ndarray = steps @ strides
    return offsets


def _waves(taps: int, pixels: int, dtype: np.dtype) -> np.ndarray:
    """`[pixel, tap]`: what a step of (tap - taps // 2) samples along the readout is after its inverse transform."""
    steps = np.outer(np.arange(pixels) - pixels // 2, np.arange(taps) - taps // 2)
    waves: np.ndarray = np.exp(-2j * np.pi / pixels * steps).astype(dtype)
    return waves


def _fitted(
    samples: np.ndarray,
    neighbourhoods: list[tuple[np.ndarray, np.ndarray]],
    box: tuple[int, ...],
    taps: int,
    regularization: float,
    over_determination: float,
) -> Iterator[_Pattern]:
    """The kernel of each neighbourhood from calibration samples `[readout, *grid, coil]`."""
    coils = samples.shape[-1]
    middle = int(np.ravel_multi_index([n // 2 for n in box], box))
    for group in _groups(neighbourhoods, taps * coils):
        used = np.unique(np.concatenate([[middle], *(sources for _, sources in group)]))
        gram = _gram(samples, used, box, taps, over_determination)
        unknown = np.arange(len(gram)).reshape(len(used), taps, coils)
        own = unknown[np.searchsorted(used, middle), taps // 2]
        for targets, sources in group:
            chosen = unknown[np.searchsorted(used, sources)].ravel()
            columns = gram[chosen].astype(np.complex128)
            weights = solve(columns[:, chosen], columns[:, own], regularization)
            yield _Pattern(targets, sources, weights.astype(samples.dtype).reshape(len(sources), taps, coils, coils))


def _groups(neighbourhoods: list[tuple[np.ndarray, np.ndarray]], unknowns_a_point: int) -> Iterator[list[tuple[np.ndarray, np.ndarray]]]:
    """Neighbourhoods whose points together make normal equations of bearable size."""
    group: list[tuple[np.ndarray, np.ndarray]] = []
    used: set[int] = set()
    for targets, sources in neighbourhoods:
        together = used | set(sources.tolist())
        if group and len(together) * unknowns_a_point > _UNKNOWNS:
            yield group
            group, together = [], set(sources.tolist())
        group.append((targets, sources))
        used = together
    if group:
        yield group


def _gram(samples: np.ndarray, points: np.ndarray, box: tuple[int, ...], taps: int, over_determination: float) -> np.ndarray:
    """A^H A, where a row of A holds the samples `[point, tap, coil]` around one place of the calibration data."""
    grid, coils = samples.shape[1:-1], samples.shape[-1]
    fits = tuple(n - k + 1 for n, k in zip(grid, box, strict=True))
    unknowns = len(points) * taps * coils
    places = int(np.prod(fits))
    readout = range(len(samples) - taps + 1)
    needed = int(np.ceil(over_determination * unknowns / places)) if over_determination else len(readout)
    if needed < len(readout):
        peak = int(np.argmax(np.sum(np.abs(samples), axis=tuple(range(1, samples.ndim))))) - taps // 2
        start = min(max(peak - needed // 2, 0), len(readout) - needed)
        readout = range(start, start + needed)
    corners = np.stack(np.unravel_index(points, box), axis=-1)
    herk = scipy.linalg.get_blas_funcs("herk", (samples,))
    total = np.zeros((unknowns, unknowns), samples.dtype, order="F")
    step = max(_ROWS // places, 1)
    for start in range(readout.start, readout.stop, step):
        lines = min(step, readout.stop - start)
        rows = np.empty((lines, *fits, len(points), taps, coils), samples.dtype)
        for point, corner in enumerate(corners):
            where = [slice(c, c + n) for c, n in zip(corner, fits, strict=True)]
            for tap in range(taps):
                rows[..., point, tap, :] = samples[tuple([slice(start + tap, start + tap + lines), *where])]
        total = herk(1, rows.reshape(-1, unknowns).T, beta=1, c=total, overwrite_c=True)
    lower = total.T  # herk gives the upper triangle of the transpose
    gram: np.ndarray = np.tril(lower) + np.tril(lower, -1).conj().T
    return gram
