"""Slices that were excited together, taken apart by the coils."""

from __future__ import annotations

import numpy as np

from recon.operators.diagonal import Mask
from recon.operators.fourier import Fourier
from recon.operators.linear import LinearOperator
from recon.operators.sensitivity import Sensitivity
from recon.operators.sms import SMS
from recon.solvers import conjugate_gradient

_LARGEST = 36
"""Unknowns of a system that are solved at once; larger ones take more memory than iterations take time."""
_PHASE = 1e-5


class SliceSense:
    """SENSE of simultaneous slices: min_x |M P F S x - y|^2 + lambda |x|^2, with sensitivities S, slice phases P, sampled lines M.

    Where lines and phases repeat every P lines, only pixels a P-th of the field of view apart fold onto each other, from all slices:
    their systems of slices x P unknowns are inverted once, and each k-space costs one adjoint and one small product a pixel.
    Elsewhere (partial Fourier, shifts by fractions of a pixel) conjugate gradients iterate. Larkman et al., J. Magn. Reson. Imaging 13
    (2001); Breuer et al., Magn. Reson. Med. 53 (2005).

    Args:
        maps: complex `[slice, coil, y, x]`; zero where a slice has no signal.
        phases: of each slice at each line, rad `[slice, ky]`, such as `caipi_phases(...)[..., 0]`.
        lines: which are sampled, boolean `[ky]`.
        regularisation: lambda in units of the mean diagonal of F^H M F.
        iterations: at most so many, where they are needed.
        tolerance: relative residual that ends them.

    Attributes:
        period: P, or None where conjugate gradients iterate.

    Raises:
        ValueError: shapes do not fit, no line is sampled, fewer coils than slices and folded lines, or a negative lambda.
    """

    def __init__(
        self,
        maps: np.ndarray,
        phases: np.ndarray,
        lines: np.ndarray,
        regularisation: float = 1e-3,
        iterations: int = 50,
        tolerance: float = 1e-4,
    ) -> None:
        maps, phases, lines = np.asarray(maps), np.asarray(phases, np.float64), np.asarray(lines, bool)
        if maps.ndim != 4 or phases.shape != (maps.shape[0], maps.shape[2]) or lines.shape != maps.shape[2:3]:
            raise ValueError(
                f"maps {maps.shape}, phases {phases.shape} and lines {lines.shape} do not fit: expected [slice, coil, y, x], "
                "[slice, y] and [y]"
            )
        if not lines.any():
            raise ValueError("no line is sampled")
        if not regularisation >= 0:
            raise ValueError(f"regularisation must be at least 0, not {regularisation}")
        slices, coils = maps.shape[:2]
        step = int(np.diff(np.flatnonzero(lines)).min(initial=len(lines)))
        if slices * step > coils and lines.sum() > 1:
            raise ValueError(
                f"{slices} slices with every {step}th line fold {slices * step} pixels onto each other, but there are only {coils} coils"
            )
        self.maps, self.iterations, self.tolerance = maps, iterations, tolerance
        self.encoding: LinearOperator = Mask(lines[:, None]) @ SMS(phases[..., None]) @ Fourier(2) @ Sensitivity(maps)
        self._damping = regularisation * float(lines.mean())
        self.period = _period(np.exp(1j * phases) * lines, _LARGEST // slices)
        self._inverse = None if self.period is None else self._inverted(np.exp(1j * phases) * lines, self.period)

    def __call__(self, kspace: np.ndarray) -> np.ndarray:
        """Images `[..., slice, y, x]` of k-space `[..., coil, ky, kx]`; what was not sampled is not looked at."""
        if kspace.shape[-3:] != self.maps.shape[1:]:
            raise ValueError(f"k-space {kspace.shape} does not fit maps {self.maps.shape}: expected [..., coil, ky, kx]")
        rhs: np.ndarray = self.encoding.adjoint(kspace)
        if self._inverse is None:
            return self._iterated(rhs)
        slices, _, ny, nx = self.maps.shape
        period = self.period or 1
        folded = rhs.reshape(-1, slices, period, ny // period, nx).transpose(0, 3, 4, 1, 2).reshape(-1, ny // period, nx, slices * period)
        solved = np.einsum("yxij,byxj->byxi", self._inverse, folded).reshape(-1, ny // period, nx, slices, period)
        images: np.ndarray = np.ascontiguousarray(solved.transpose(0, 3, 4, 1, 2)).reshape(rhs.shape)
        return images

    def _iterated(self, rhs: np.ndarray) -> np.ndarray:
        gram = self.encoding.gram

        def normal(images: np.ndarray) -> np.ndarray:
            result: np.ndarray = gram(images) + self._damping * images
            return result

        flat = rhs.reshape(-1, *rhs.shape[-3:])
        solved = [conjugate_gradient(normal, one, self.iterations, self.tolerance) for one in flat]
        return np.stack(solved).reshape(rhs.shape)

    def _inverted(self, phasors: np.ndarray, period: int) -> np.ndarray:
        """Inverses of the regularised normal equations, `[y, x, (slice, fold), (slice, fold)]` for y in the first P-th of the axis."""
        slices, coils, ny, nx = self.maps.shape
        size = slices * period
        line, fold = np.arange(period), np.arange(period)
        # Of two pixels d = j n / P apart the sum over all lines is that over one period, a P-th of it for each.
        waves = np.exp(2j * np.pi * np.multiply.outer(np.subtract.outer(fold, fold), line - ny // 2) / period) / period
        first = phasors[:, :period]
        coupling = np.einsum("mk,nk,ijk->minj", first.conj(), first, waves).reshape(size, size)
        folded = self.maps.reshape(slices, coils, period, ny // period, nx).transpose(3, 4, 0, 2, 1).reshape(ny // period, nx, size, coils)
        gram = coupling * (folded.conj() @ folded.swapaxes(-1, -2))
        diagonal = np.einsum("...ii->...i", gram).real
        # A pixel without sensitivity gets an equation of its own, x = 0; a trace of damping keeps equal coils solvable.
        trace = 4 * np.finfo(diagonal.dtype).eps * float(diagonal.max(initial=0))
        gram = gram + np.where(diagonal > 0, self._damping + trace, 1)[..., None] * np.eye(size)
        inverse: np.ndarray = np.linalg.inv(gram)
        return inverse.astype(self.maps.dtype, copy=False)


def _period(phasors: np.ndarray, most: int) -> int | None:
    """The smallest number of lines, a divisor of all and at most `most`, after which `[slice, ky]` repeats; None without one."""
    lines = phasors.shape[1]
    for period in range(1, min(most, lines) + 1):
        if lines % period == 0:
            repeats = phasors.reshape(len(phasors), -1, period)
            if np.abs(repeats - repeats[:, :1]).max() < _PHASE:
                return period
    return None
