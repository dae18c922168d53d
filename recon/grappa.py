"""GRAPPA with image-domain unmixing, for regular Cartesian undersampling in one or two directions.

Griswold et al., Magn Reson Med 2002;47:1202 (GRAPPA); Breuer et al., MRM 2009;62:739 (g-factor); Saybasili et al., MRM 2009;61:1425
(kernels applied in image space). All arrays end in ``[..., coil, e2, e1, e0]``; a 2D scan has one e2.

The steps: `calibrate` fits a convolution kernel to fully sampled calibration lines; `unmixing` turns it and coil sensitivities into
one weight a coil and pixel; `reconstruct` applies them to aliased coil images, which is all that is left to do for each frame.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.linalg
from numpy.lib.stride_tricks import sliding_window_view

from recon.blas import one_blas_thread
from recon.fourier import ifftc

_ROWS = 4096
"""Equations that are gathered at once: bounds the memory of a 3D calibration."""

_SMALLEST_REGULARIZATION = 1e-10
"""Below this the normal equations may be singular in double precision and are solved by pseudo-inverse."""


def source_offsets(size: int, acceleration: int) -> np.ndarray:
    """Positions of the source lines of a kernel relative to the sampled line before the gap: ``-R, 0, R, 2R`` for size 4."""
    first = -((size - 1) // 2)
    return np.arange(first, first + size) * acceleration


@one_blas_thread()
def calibrate(
    source: np.ndarray,
    target: np.ndarray | None = None,
    *,
    acceleration: tuple[int, int],
    kernel_size: tuple[int, int, int] = (4, 4, 5),
    regularization: float = 5e-4,
    over_determination: float = 0.0,
) -> np.ndarray:
    """Fit the GRAPPA kernel: minimise ``||A w - b||² + regularization * trace(A^H A) / n * ||w||²``.

    Args:
        source: calibration k-space, complex ``[coil, e2, e1, e0]``, fully sampled.
        target: channels to be predicted, ``[target, e2, e1, e0]`` (for example the leading channels of `source`). None predicts the
            channels of `source` and keeps what was sampled; with a target the sampled points are fitted as well.
        acceleration: undersampling factors (e2, e1).
        kernel_size: source points along (e2, e1, e0); e2 counts as 1 where the calibration has one e2.
        regularization: Tikhonov weight relative to the mean diagonal of the normal equations; 0 gives the least-norm solution.
        over_determination: at most this many equations an unknown, taken around the brightest part of the readout; 0 uses all.

    Returns:
        Convolution kernel, complex ``[target, coil, k2, k1, k0]`` with odd sizes and its origin in the middle: applied to the zero-filled
        k-space it yields the fully sampled one.

    Raises:
        ValueError: too few calibration lines for the kernel, or no signal in them.
    """
    offsets = _offsets(source.shape[1:], acceleration, kernel_size)
    targets = [(o2, o1) for o2 in range(acceleration[0]) for o1 in range(acceleration[1])]
    if target is None:
        targets.remove((0, 0))
    channels = source if target is None else target
    if not targets:
        return _identity(source.shape[0], source.dtype)
    weights = solve(*normal_equations(source, channels, offsets, targets, over_determination), regularization)
    unknown = [source.shape[0], *(len(o) for o in offsets)]
    weights = weights.reshape(*unknown, len(targets), channels.shape[0]).astype(source.dtype)
    return convolution_kernel(weights, offsets, targets, keep_sampled=target is None)


def _offsets(
    shape: tuple[int, ...], acceleration: tuple[int, int], kernel_size: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Source offsets along e2, e1, e0."""
    k2, k1, k0 = kernel_size
    if min(*acceleration, *kernel_size) < 1:
        raise ValueError(f"GRAPPA: acceleration {acceleration} and kernel size {kernel_size} must be at least 1")
    along_e2 = np.zeros(1, int) if shape[0] == 1 and acceleration[0] == 1 else source_offsets(k2, acceleration[0])
    return along_e2, source_offsets(k1, acceleration[1]), np.arange(-(k0 // 2), k0 // 2 + 1)


def _positions(shape: tuple[int, ...], offsets: tuple[np.ndarray, ...], targets: list[tuple[int, int]]) -> list[range]:
    """Where the whole kernel fits into the calibration region, along e2, e1, e0."""
    reach = [max(t[0] for t in targets), max(t[1] for t in targets), 0]
    positions = []
    for name, n, along, far in zip(("e2", "e1", "e0"), shape, offsets, reach, strict=True):
        fitting = range(-int(along[0]), n - max(int(along[-1]), far))
        if not fitting:
            raise ValueError(
                f"GRAPPA: {n} calibration samples along {name} are too few for a kernel that spans "
                f"{max(int(along[-1]), far) - int(along[0]) + 1}; acquire more calibration lines or make the kernel smaller along {name}"
            )
        positions.append(fitting)
    return positions


def normal_equations(
    source: np.ndarray,
    target: np.ndarray,
    offsets: tuple[np.ndarray, np.ndarray, np.ndarray],
    targets: list[tuple[int, int]],
    over_determination: float,
) -> tuple[np.ndarray, np.ndarray]:
    """A^H A and A^H b. Products in the precision of the data, sums over blocks in double."""
    unknowns = source.shape[0] * int(np.prod([len(o) for o in offsets]))
    positions = _positions(source.shape[1:], offsets, targets)
    positions[2] = _brightest(source, positions, unknowns, over_determination)
    gram = np.zeros((unknowns, unknowns), np.complex128)
    right = np.zeros((unknowns, len(targets) * target.shape[0]), np.complex128)
    for a, b in _equations(source, target, offsets, targets, positions):
        adjoint = a.conj().T
        gram += adjoint @ a
        right += adjoint @ b
    return gram, right


def _brightest(source: np.ndarray, positions: list[range], unknowns: int, over_determination: float) -> range:
    """The part of the readout used for calibration: all of it, or as much as `over_determination` asks for around the peak."""
    readout = positions[2]
    if over_determination <= 1:
        return readout
    needed = max(int(np.ceil(over_determination * unknowns) // (len(positions[0]) * len(positions[1]))), 1)
    if needed >= len(readout):
        return readout
    peak = int(np.argmax(np.abs(source[0].sum(axis=(0, 1)))))
    first = max(peak - needed // 2, readout.start)
    return range(first, min(first + needed, readout.stop))


def _equations(
    source: np.ndarray,
    target: np.ndarray,
    offsets: tuple[np.ndarray, np.ndarray, np.ndarray],
    targets: list[tuple[int, int]],
    positions: list[range],
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Blocks of rows of A (neighbourhoods in `source`) and b (points of `target`)."""
    at2, at1, at0 = positions
    extent = tuple(int(o[-1] - o[0]) + 1 for o in offsets)
    step = tuple(int(o[1] - o[0]) if len(o) > 1 else 1 for o in offsets)
    first = at0.start + int(offsets[2][0])
    windows = sliding_window_view(source, extent, axis=(1, 2, 3))[..., :: step[0], :: step[1], :: step[2]]
    windows = windows[:, :, :, first : first + len(at0)]
    lines = max(_ROWS // len(at0), 1)
    where = [(e2, e1) for e2 in at2 for e1 in at1]
    for start in range(0, len(where), lines):
        e2, e1 = np.array(where[start : start + lines]).T
        a = windows[:, e2 + offsets[0][0], e1 + offsets[1][0]]
        b = np.stack([target[:, e2 + o2, e1 + o1, at0.start : at0.stop] for o2, o1 in targets])
        rows = e1.size * len(at0)
        yield np.moveaxis(a, 0, 2).reshape(rows, -1), b.transpose(2, 3, 0, 1).reshape(rows, -1)


def solve(gram: np.ndarray, right: np.ndarray, regularization: float) -> np.ndarray:
    """Weights of the regularised normal equations; least norm where they are singular. Overwrites `gram`."""
    n = gram.shape[0]
    mean = np.trace(gram).real / n
    if not np.isfinite(mean) or mean <= 0:
        raise ValueError("GRAPPA: the calibration lines hold no signal or values that are not finite; check them and the noise adjustment")
    if regularization >= _SMALLEST_REGULARIZATION:
        gram[np.diag_indices(n)] += regularization * mean
        weights: np.ndarray = scipy.linalg.solve(gram, right, assume_a="pos", overwrite_a=True, check_finite=False)
        return weights
    values, vectors = scipy.linalg.eigh(gram)
    used = values > values[-1] * n * np.finfo(np.float64).eps
    vectors = vectors[:, used]
    least: np.ndarray = vectors @ ((vectors.conj().T @ right) / values[used, None])
    return least


def convolution_kernel(
    weights: np.ndarray, offsets: tuple[np.ndarray, np.ndarray, np.ndarray], targets: list[tuple[int, int]], keep_sampled: bool
) -> np.ndarray:
    """Merge the kernels of all target positions ``[coil, k2, k1, k0, position, target]`` into one convolution kernel."""
    along2, along1, along0 = offsets
    half2 = max(abs(o2 - int(k)) for o2, _ in targets for k in along2)
    half1 = max(abs(o1 - int(k)) for _, o1 in targets for k in along1)
    half0 = int(along0[-1])
    coils, outputs = weights.shape[0], weights.shape[-1]
    kernel = np.zeros((outputs, coils, 2 * half2 + 1, 2 * half1 + 1, 2 * half0 + 1), weights.dtype)
    for position, (o2, o1) in enumerate(targets):
        index2, index1 = half2 + o2 - along2, half1 + o1 - along1
        part = weights[..., position, :].transpose(4, 0, 1, 2, 3)[..., ::-1]
        kernel[:, :, index2[:, None], index1[None, :]] = part
    if keep_sampled:
        kernel[np.arange(coils), np.arange(coils), half2, half1, half0] = 1
    return kernel


def _identity(coils: int, dtype: np.dtype) -> np.ndarray:
    return np.eye(coils, dtype=dtype)[:, :, None, None, None]


def _phases(taps: int, n: int, dtype: np.dtype) -> np.ndarray:
    """Image of a unit tap at each kernel position: ``[taps, n]``, centred, not scaled."""
    taps_at, pixel = np.arange(taps) - taps // 2, np.arange(n) - n // 2
    phases: np.ndarray = np.exp(2j * np.pi / n * np.outer(taps_at, pixel)).astype(dtype)
    return phases


def image_kernel(kernel: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """The kernel as pixel-wise mixing of coil images: ``[target, coil, e2, e1, e0]`` for images of `shape` (e2, e1, e0).

    Large: target x coil images. `unmixing` does without it.
    """
    along2, along1, along0 = (_phases(k, n, kernel.dtype) for k, n in zip(kernel.shape[2:], shape, strict=True))
    mixed: np.ndarray = np.einsum("tckji,kz,jy,ix->tczyx", kernel, along2, along1, along0, optimize=True)
    return mixed


def unmixing(kernel: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """Weights that unalias and combine the coils at once: ``u_c(x) = sum_t conj(maps_t(x)) K_tc(x)``.

    Args:
        kernel: convolution kernel ``[target, coil, k2, k1, k0]`` of `calibrate`.
        maps: sensitivities of the target channels ``[target, e2, e1, e0]``, normalised over channels.

    Returns:
        ``[coil, e2, e1, e0]`` of the dtype of `kernel`.
    """
    targets, coils, _, _, taps = kernel.shape
    n2, n1, n0 = maps.shape[1:]
    along2, along1, along0 = (_phases(k, n, kernel.dtype) for k, n in zip(kernel.shape[2:], (n2, n1, n0), strict=True))
    along_e1 = np.einsum("tckji,jy->kycti", kernel, along1, optimize=True)
    result = np.empty((coils, n2, n1, n0), kernel.dtype)
    for e2 in range(n2):
        # [e1, coil, target * tap] x [e1, target * tap, e0]: one small matrix product a line, no kernel image is ever held
        lines = np.tensordot(along2[:, e2], along_e1, axes=(0, 0)).reshape(n1, coils, targets * taps)
        weights = (maps[:, e2].conj().transpose(1, 0, 2)[:, :, None, :] * along0).reshape(n1, targets * taps, n0)
        result[:, e2] = np.matmul(lines, weights.astype(kernel.dtype, copy=False)).transpose(1, 0, 2)
    return result


def gfactor(weights: np.ndarray, acceleration: tuple[int, int]) -> np.ndarray:
    """Noise amplification by unaliasing beyond the square root of the acceleration, for white noise of unit variance in every coil.

    Args:
        weights: ``[..., coil, e2, e1, e0]`` of `unmixing`, with maps of unit norm.
        acceleration: undersampling factors (e2, e1).

    Returns:
        float ``[..., e2, e1, e0]``.
    """
    power = np.sum(weights.real**2 + weights.imag**2, axis=-4)
    result: np.ndarray = np.sqrt(power) / (acceleration[0] * acceleration[1])
    return result


def reconstruct(kspace: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Unaliased, combined image of zero-filled k-space.

    Args:
        kspace: ``[..., coil, e2, e1, e0]``, zero where nothing was sampled; it does not matter which line is the first sampled one.
        weights: ``[..., coil, e2, e1, e0]`` of `unmixing`, or conjugated sensitivities for fully sampled data.

    Returns:
        ``[..., e2, e1, e0]``, as bright as the image of the fully sampled k-space.
    """
    axes = (-2, -1) if kspace.shape[-3] == 1 else (-3, -2, -1)
    aliased = ifftc(kspace, axes)
    combined: np.ndarray = np.einsum("...czyx,...czyx->...zyx", aliased, weights)
    return combined
