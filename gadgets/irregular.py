"""Sampling that is no lattice of the header's acceleration factors: CAIPIRINHA, variable density, a dense centre."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gadgets.items import ReconBuffer
from gadgets.layout import clone
from recon.grappa_patterns import PatternKernels, calibration_region

_KEPT = 16
"""Kernels of so many sampling patterns are kept."""


def sampled_lines(kspace: np.ndarray) -> np.ndarray:
    """Which lines of ``[LOC, S, N, CHA, E2, E1, E0]`` hold data: bool ``[LOC, S, N, E2, E1]``."""
    lines: np.ndarray = np.any(kspace != 0, axis=(3, 6))
    return lines


def is_lattice(lines: np.ndarray, acceleration: tuple[int, int]) -> bool:
    """Whether the sampled lines ``[LOC, S, N, E2, E1]`` of each image lie on a lattice of steps (E2, E1), which may start anywhere."""
    for image in lines.reshape(-1, *lines.shape[-2:]):
        for along, step in zip(np.nonzero(image), acceleration, strict=True):
            if along.size and np.any((along - along[0]) % step):
                return False
    return True


def sampled_centre(data: ReconBuffer) -> ReconBuffer | None:
    """The fully sampled block around the centre of imaging data as calibration data; None where the centre was not sampled."""
    lines: np.ndarray = np.all(sampled_lines(data.data), axis=(0, 1, 2))
    middle = [n // 2 for n in lines.shape]
    if not lines[tuple(middle)]:
        return None
    around = [min(at - found.start, found.stop - 1 - at) for at, found in zip(middle, calibration_region(lines), strict=True)]
    e2, e1 = (slice(at - reach, at + reach + 1) for at, reach in zip(middle, around, strict=True))
    sampling = clone(data.sampling)
    _, phase, partition = sampling["sampling_limits"]
    for limits, reach in ((partition, around[0]), (phase, around[1])):
        limits["min"], limits["center"], limits["max"] = 0, reach, 2 * reach
    return replace(data, data=np.ascontiguousarray(data.data[..., e2, e1, :]), headers=data.headers[..., e2, e1], sampling=sampling)


class Filling:
    """Fills k-spaces with kernels for every neighbourhood of sampled lines, fitted once for a sampling pattern.

    Args:
        calibration: complex ``[LOC, S, N, CHA, E2, E1, E0]``; its last S and N serve the rest.
        kernel_size: box of neighbours along (E2, E1, E0), odd.
        regularization, over_determination, most_sources: see `PatternKernels`.
    """

    def __init__(
        self,
        calibration: np.ndarray,
        kernel_size: tuple[int, int, int],
        *,
        regularization: float,
        over_determination: float,
        most_sources: int,
    ) -> None:
        self._calibration = calibration
        self._kernel_size = kernel_size
        self._regularization = regularization
        self._over_determination = over_determination
        self._most_sources = most_sources
        self._kernels: dict[tuple[int, int, int, bytes], PatternKernels] = {}

    def __call__(self, kspace: np.ndarray) -> np.ndarray:
        """``[LOC, S, N, CHA, E2, E1, E0]`` with the missing lines; those far from all sampled ones (partial Fourier) stay 0."""
        lines = sampled_lines(kspace)
        filled = np.zeros_like(kspace)
        for loc, s, n in np.ndindex(*kspace.shape[:3]):
            if lines[loc, s, n].any():
                filled[loc, s, n] = self._kernel(loc, s, n, lines[loc, s, n], kspace.shape[4:]).fill(kspace[loc, s, n])
        return filled

    def _kernel(self, loc: int, s: int, n: int, lines: np.ndarray, shape: tuple[int, ...]) -> PatternKernels:
        where = loc, min(s, self._calibration.shape[1] - 1), min(n, self._calibration.shape[2] - 1)
        key = *where, lines.tobytes()
        if key not in self._kernels:
            if len(self._kernels) >= _KEPT:
                self._kernels.clear()
            self._kernels[key] = PatternKernels(
                self._calibration[where],
                lines[..., None],
                shape,
                kernel_size=self._kernel_size,
                regularization=self._regularization,
                over_determination=self._over_determination,
                most_sources=self._most_sources,
                leave_gaps=True,
            )
        return self._kernels[key]
