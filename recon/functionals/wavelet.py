"""The l1 norm of wavelet coefficients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from recon.arrays import Array
from recon.functionals.base import Functional, positive
from recon.functionals.norms import L1
from recon.functionals.shifts import RandomShift
from recon.operators.wavelet import Wavelet


class L1Wavelet(Functional):
    """weight sum |W x|, W an orthonormal wavelet transform; the proximal map is W^H shrink(W x).

    Lustig, Donoho, Pauly, Magn. Reson. Med. 58 (2007). With a seed the image is shifted randomly before every proximal map
    (cycle spinning, Figueiredo and Nowak 2003), which removes block edges: a different functional each time.

    Args:
        image_shape: size of the last axes, which are transformed.
        weight: at least 0, in the units of x.
        wavelet: name of an orthogonal wavelet, such as "haar", "db4", "sym4".
        level: how many; None for as many as the shortest axis allows.
        approximation: False leaves the approximation, whose coefficients are not sparse, out of the sum.
        seed: of the random shifts; None for none.

    Raises:
        ValueError: the transform is not orthonormal for this wavelet and these sizes (each axis must be divisible by
            2^level, and long enough for the filter), or the weight is negative.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        weight: float = 1.0,
        wavelet: str = "db4",
        level: int | None = None,
        approximation: bool = True,
        seed: int | None = None,
    ) -> None:
        self.operator = Wavelet(image_shape, wavelet, level=level)
        if not self.operator.orthonormal:
            raise ValueError(
                f"{self.operator.level} levels of {wavelet} on {tuple(image_shape)} pixels are not orthonormal: take an orthogonal "
                "wavelet, or fewer levels so that every axis is divisible by 2^level, or pad the image"
            )
        self.weight = positive("weight", weight)
        weights: Any = self.weight
        if not approximation:
            weights = np.full(self.operator.count, self.weight)
            weights[: self.operator.approximations] = 0
        self.functional = L1(weights)
        self._shift = RandomShift([2**self.operator.level] * len(tuple(image_shape)), seed)

    def __call__(self, x: Array) -> Any:
        return self.functional(self.operator(x))

    def prox(self, x: Array, step: Any = 1.0) -> Array:
        def shrink(image: Array) -> Array:
            if hasattr(image, "get") and isinstance(self.functional.weight, float):
                nested = self.operator.nested(image)
                return self.operator.nested(self.functional.prox(nested, step), inverse=True)
            return self.operator.adjoint(self.functional.prox(self.operator(image), step))

        return self._shift.around(shrink, x)
