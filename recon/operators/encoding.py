"""The encoding operator of parallel MRI."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from recon import device, nufft
from recon.arrays import Array, complex_dtype, is_tensor, like, real_dtype
from recon.cache import ArrayKey, Cache
from recon.operators.fourier import Fourier, Nufft, ToeplitzGram
from recon.operators.linear import LinearOperator
from recon.operators.sensitivity import Sensitivity

_kernels: Cache[ToeplitzGram] = Cache(8)


class Encoding(LinearOperator):
    """E = W^1/2 F S: sensitivities, then an FFT with a mask or a NUFFT, then the root of the density weights.

    Data of the scanner must be scaled to match, `E.weigh(kspace)`; then E^H E = S^H F^H W F S.

    Args:
        maps: complex `[coil, y, x]` or `[coil, z, y, x]`; with `sets` `[set, coil, y, x]` or `[set, coil, z, y, x]`.
        trajectory: `[sample, axis]` in rad/pixel; None for Cartesian data `[..., coil, *image_shape]`.
        mask: for Cartesian data, broadcast against `[*image_shape]`.
        weights: real, at least 0, `[sample]` (with a trajectory); None for ones.
        toeplitz: apply the Gram operator as a convolution (with a trajectory).
        tolerance: relative accuracy of the NUFFT.
        sets: several sets of maps (soft-SENSE): images are `[..., set, *image_shape]`, the coils see their sum.

    Raises:
        ValueError: trajectory and mask, or weights without a trajectory, or shapes that do not fit.
    """

    def __init__(
        self,
        maps: Array,
        trajectory: np.ndarray | None = None,
        mask: np.ndarray | None = None,
        weights: np.ndarray | None = None,
        toeplitz: bool = False,
        tolerance: float = nufft.TOLERANCE,
        sets: bool = False,
    ) -> None:
        self.image_shape = tuple(int(n) for n in maps.shape[2 if sets else 1 :])
        rank = len(self.image_shape)
        if trajectory is None:
            if weights is not None or toeplitz:
                raise ValueError("weights and toeplitz need a trajectory; for Cartesian data use a mask")
            self.fourier: LinearOperator = Fourier(rank, mask)
        elif mask is not None:
            raise ValueError("give either a trajectory or a mask")
        else:
            trajectory = np.asarray(trajectory)
            if weights is not None and np.shape(weights) != trajectory.shape[:-1]:
                raise ValueError(f"weights {np.shape(weights)} do not fit a trajectory {trajectory.shape}")
            self.fourier = Nufft(trajectory, self.image_shape, tolerance)
        self.maps = maps
        self.sensitivity = Sensitivity(maps, rank, sets)
        self.weights = None if weights is None else like(np.asarray(weights), maps)
        self._total_weight = 0.0 if trajectory is None else float(len(trajectory) if weights is None else np.sum(weights))
        self.toeplitz = None
        if toeplitz and trajectory is not None:
            self.toeplitz = _toeplitz(trajectory, self.image_shape, weights, min(1e-6, tolerance))

    def forward(self, x: Array) -> Array:
        return self.weigh(self.fourier(self.sensitivity(x)))

    def adjoint(self, y: Array) -> Array:
        return self.sensitivity.adjoint(self.fourier.adjoint(self.weigh(y)))

    def weigh(self, kspace: Array) -> Array:
        """Multiply k-space with the root of the weights."""
        if self.weights is None:
            return kspace
        return kspace * np.sqrt(self.weights, dtype=real_dtype(complex_dtype(kspace)))

    @property
    def mean_diagonal(self) -> float:
        """Mean of the diagonal of F^H W F, the natural unit of a regularisation."""
        if isinstance(self.fourier, Nufft):
            return self._total_weight / math.prod(self.image_shape)
        mask = getattr(self.fourier, "mask", None)
        return 1.0 if mask is None else float(np.broadcast_to(np.abs(mask) ** 2, self.image_shape).mean())

    @property
    def gram(self) -> LinearOperator:
        return _EncodingGram(self)


class _EncodingGram(LinearOperator):
    """S^H F^H W F S, on the CPU coil by coil on several threads."""

    def __init__(self, encoding: Encoding) -> None:
        self.encoding = encoding

    def forward(self, x: Array) -> Array:
        encoding = self.encoding
        sensitivity, fourier, convolve = encoding.sensitivity, encoding.fourier, encoding.toeplitz
        if is_tensor(x) or not isinstance(fourier, Nufft):
            return sensitivity.adjoint(convolve(sensitivity(x))) if convolve else encoding.adjoint(encoding.forward(x))
        plan = fourier.plan(complex_dtype(x))
        weights = None if encoding.weights is None else encoding.weights.astype(real_dtype(plan.dtype), copy=False)

        if not isinstance(x, np.ndarray) or sensitivity.set_axis is not None:
            coil_images = sensitivity(x)
            return sensitivity.adjoint(convolve(coil_images) if convolve else plan.gram(coil_images, weights))

        def gram(image: np.ndarray) -> np.ndarray:
            result: np.ndarray = convolve(image) if convolve else plan.gram(image, weights, out=image)
            return result

        images = x.reshape(-1, *encoding.image_shape)
        return np.stack([_coil_by_coil(gram, image, encoding.maps) for image in images]).reshape(x.shape)

    def adjoint(self, y: Array) -> Array:
        return self.forward(y)


def _coil_by_coil(gram: Callable[[np.ndarray], np.ndarray], image: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """sum_c conj(s_c) G (s_c x), a coil on one thread from start to end, so that its data stay in cache.

    `gram` may overwrite its argument.
    """
    parts = np.empty_like(maps)

    def one(coil: int) -> None:
        # conj(s) p = conj(s conj(p)): no conjugate copy of the maps is needed.
        part = gram(np.multiply(maps[coil], image, out=parts[coil]))
        np.conjugate(part, out=parts[coil])
        parts[coil] *= maps[coil]

    nufft.run_each(one, maps.shape[0])
    # Added in the order of the coils, whatever thread came first: the same bits every time.
    total: np.ndarray = parts.sum(0)
    np.conjugate(total, out=total)
    return total


def _toeplitz(trajectory: np.ndarray, shape: tuple[int, ...], weights: np.ndarray | None, tolerance: float) -> ToeplitzGram:
    """The convolution for this trajectory, kept for the next frames."""
    weighting = None if weights is None else ArrayKey(weights)
    key = (ArrayKey(trajectory), weighting, shape, tolerance, device.use_gpu())
    return _kernels.get(key, lambda: ToeplitzGram(trajectory, shape, weights, tolerance))
