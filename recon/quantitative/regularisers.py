"""Regularisers of parameter maps, all maps jointly: one Frobenius norm over maps and directions, so that edges coincide.

Knoll et al., IEEE Trans. Med. Imaging 36 (2017); Bredies, LNCS 8293 (2014). Maps are real components `[component, *voxels]`;
auxiliary fields stand beside them in a tuple, x = (maps, *fields). Each regulariser is min over the fields of
sum_i radius_i |K_i x|, and solvers use its K and the dual variables.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.special import ellipk

from recon.operators.differences import Gradient, SymmetrisedGradient
from recon.operators.wavelet import Wavelet
from recon.quantitative.model import ModelError
from recon.quantitative.settings import Settings

Tensors = tuple[Any, ...]


class Regulariser(ABC):
    """sum_i radius_i |K_i x|, the norms taken jointly over the axes before the voxels."""

    radii: tuple[float, ...] = (1.0,)
    """Weight of each term."""
    joint: int = 2
    """Leading axes of K_i x over which the norm runs; the others are summed."""

    def fields(self, maps: Any) -> Tensors:
        """Auxiliary fields to start with, for maps of this shape."""
        return ()

    @abstractmethod
    def forward(self, x: Tensors) -> Tensors:
        """K x."""

    @abstractmethod
    def adjoint(self, y: Tensors) -> Tensors:
        """K^T y, of the shape of x."""

    def value(self, images: Tensors) -> Any:
        """Sum of the terms, from K x: a scalar tensor of double precision."""
        import tensorflow as tf

        total = tf.constant(0, tf.float64)
        for radius, image in zip(self.radii, images, strict=True):
            total += radius * tf.reduce_sum(tf.cast(self._length(image), tf.float64))
        return total

    def dual(self, y: Tensors, weight: Any, step: Any) -> Tensors:
        """Proximal map of the conjugate of `weight` times the regulariser: into balls of radius `weight` radius_i."""
        import tensorflow as tf

        return tuple(
            one / tf.maximum(self._length(one) / (radius * weight), tf.constant(1, one.dtype))
            for radius, one in zip(self.radii, y, strict=True)
        )

    def conjugate(self, y: Tensors, weight: Any) -> Any:
        """The conjugate's value at a dual variable within the balls: 0."""
        import tensorflow as tf

        return tf.constant(0, tf.float64)

    def _length(self, image: Any) -> Any:
        import tensorflow as tf

        return tf.sqrt(tf.reduce_sum(image * image, list(range(self.joint)), keepdims=True))


class Nothing(Regulariser):
    """No regularisation."""

    radii = ()

    def forward(self, x: Tensors) -> Tensors:
        return ()

    def adjoint(self, y: Tensors) -> Tensors:
        raise NotImplementedError("there is nothing to apply")


class TotalVariation(Regulariser):
    """|grad u|. Rudin, Osher, Fatemi, Physica D 60 (1992).

    Args:
        rank: of the voxels.
        spacing: distance of neighbours per axis.
    """

    def __init__(self, rank: int, spacing: Sequence[float] | None = None) -> None:
        self.gradient = Gradient(rank, spacing=spacing)

    def forward(self, x: Tensors) -> Tensors:
        return (self.gradient(x[0]),)

    def adjoint(self, y: Tensors) -> Tensors:
        return (self.gradient.adjoint(y[0]),)


class H1(TotalVariation):
    """|grad u|^2 / 2: smooth maps."""

    def value(self, images: Tensors) -> Any:
        import tensorflow as tf

        return 0.5 * tf.reduce_sum(tf.cast(images[0] ** 2, tf.float64))

    def dual(self, y: Tensors, weight: Any, step: Any) -> Tensors:
        return (y[0] / (1 + step / weight),)

    def conjugate(self, y: Tensors, weight: Any) -> Any:
        import tensorflow as tf

        return 0.5 * tf.reduce_sum(tf.cast(y[0] ** 2, tf.float64)) / tf.cast(weight, tf.float64)


class TotalGeneralisedVariation(Regulariser):
    """|grad u - v| + ratio |E v|. Bredies, Kunisch, Pock, SIAM J. Imaging Sci. 3 (2010).

    Args:
        rank, spacing: see `TotalVariation`.
        first, second: weights of the two terms.
    """

    def __init__(self, rank: int, spacing: Sequence[float] | None = None, first: float = 1.0, second: float = 2.0) -> None:
        self.gradient, self.symmetrised = Gradient(rank, spacing=spacing), SymmetrisedGradient(rank, spacing=spacing)
        self.radii = (first, second)

    def fields(self, maps: Any) -> Tensors:
        import tensorflow as tf

        return (tf.zeros_like(self.gradient(maps)),)

    def forward(self, x: Tensors) -> Tensors:
        maps, field = x
        return self.gradient(maps) - field, self.symmetrised(field)

    def adjoint(self, y: Tensors) -> Tensors:
        first, second = y
        return self.gradient.adjoint(first), self.symmetrised.adjoint(second) - first


class JointWavelet(Regulariser):
    """Magnitudes of wavelet coefficients, those of all maps at a place together; approximations are free.

    Args:
        shape: of the voxels.
        wavelet: name of an orthogonal one.
    """

    joint = 1

    def __init__(self, shape: Sequence[int], wavelet: str) -> None:
        self.operator = Wavelet([n for n in shape if n > 1], wavelet)
        self.shape, self.inner = tuple(shape), self.operator.image_shape
        kept = np.ones(self.operator.count)
        kept[: self.operator.approximations] = 0
        self.kept = kept

    def forward(self, x: Tensors) -> Tensors:
        import tensorflow as tf

        return (self.operator(tf.reshape(x[0], [x[0].shape[0], *self.inner])) * tf.constant(self.kept, x[0].dtype),)

    def adjoint(self, y: Tensors) -> Tensors:
        import tensorflow as tf

        kept = tf.constant(self.kept, y[0].dtype)
        return (tf.reshape(self.operator.adjoint(y[0] * kept), [y[0].shape[0], *self.shape]),)


class InfimalConvolution(Regulariser):
    """min over w of first R_1(u - w) + second R_2(w): what lasts in time and what changes, told apart by two weightings.

    ICTV: Holler, Kunisch, SIAM J. Imaging Sci. 7 (2014); ICTGV: Schloegl et al., Magn. Reson. Med. 78 (2017). The unknowns are
    the frames of a series; differences run along them as along space.

    Args:
        parts: 1 (for complex frames 2) components per frame.
        one, two: R_1 and R_2, of rank 1 + that of the voxels, time first, each with its own spacing.
        first, second: their weights.
    """

    def __init__(self, parts: int, one: Regulariser, two: Regulariser, first: float, second: float) -> None:
        self.parts, self.one, self.two = parts, one, two
        self.radii = (*(first * radius for radius in one.radii), *(second * radius for radius in two.radii))

    def fields(self, maps: Any) -> Tensors:
        import tensorflow as tf

        series = self._series(maps)
        return tf.zeros_like(maps), *self.one.fields(series), *self.two.fields(series)

    def forward(self, x: Tensors) -> Tensors:
        maps, other, *fields = x
        own = len(fields) // 2
        return (
            *self.one.forward((self._series(maps - other), *fields[:own])),
            *self.two.forward((self._series(other), *fields[own:])),
        )

    def adjoint(self, y: Tensors) -> Tensors:
        count = len(y) // 2
        first, *fields = self.one.adjoint(y[:count])
        second, *others = self.two.adjoint(y[count:])
        back, again = self._maps(first), self._maps(second)
        return back, again - back, *fields, *others

    def _series(self, maps: Any) -> Any:
        """Components `[frame parts, *voxels]` to `[part, frame, *voxels]`."""
        import tensorflow as tf

        rest = list(range(2, maps.shape.rank + 1))
        return tf.transpose(tf.reshape(maps, [-1, self.parts, *maps.shape[1:]]), [1, 0, *rest])

    def _maps(self, series: Any) -> Any:
        import tensorflow as tf

        rest = list(range(2, series.shape.rank))
        return tf.reshape(tf.transpose(series, [1, 0, *rest]), [-1, *series.shape[2:]])


def build(settings: Settings, shape: Sequence[int], real: Sequence[bool]) -> Regulariser:
    """The regulariser that the settings name.

    Args:
        settings: see there.
        shape: of the voxels.
        real: for each unknown whether it is real.

    Raises:
        ModelError: ICTV and ICTGV of unknowns that are not the frames of a series.
        ValueError: the wavelet does not fit.
    """
    rank = len(shape)
    spacing = [1 / settings.dz, 1.0, 1.0] if rank == 3 else [1.0] * rank
    ratio = settings.alpha_ratio
    # PyQMRI: gamma is the weight of the first order, or with a ratio that of the second.
    orders = (ratio, 1.0) if ratio else (1.0, 2.0)
    kind = settings.reg_type
    if kind in ("ICTV", "ICTGV"):
        if len(set(real)) != 1:
            raise ModelError(f"{kind} regularises a series of frames: all unknowns must be of one kind, real or complex, as in ImageReco")
        return _infimal(settings, spacing, orders, 1 if real[0] else 2)
    if kind == "wavelet":
        return JointWavelet(shape, settings.wavelet)
    if kind == "TGV":
        return TotalGeneralisedVariation(rank, spacing, *orders)
    return {"TV": TotalVariation, "H1": H1}[kind](rank, spacing) if kind != "none" else Nothing()


def _infimal(settings: Settings, spacing: Sequence[float], orders: tuple[float, float], parts: int) -> InfimalConvolution:
    rank = len(spacing) + 1

    def part(ratio: float, weight: float) -> Regulariser:
        space, time = balance(ratio)
        distances = [settings.dt / time, *(distance / (weight * space) for distance in spacing)]
        return TotalVariation(rank, distances) if settings.reg_type == "ICTV" else TotalGeneralisedVariation(rank, distances, *orders)

    least = min(settings.s, 1 - settings.s)
    one, two = part(settings.t1, settings.mu1_1), part(settings.t2, settings.mu2_1)
    return InfimalConvolution(parts, one, two, settings.s / least, (1 - settings.s) / least)


def balance(ratio: float) -> tuple[float, float]:
    """Weights of space and time whose quotient time / space is `ratio`, and whose costs of an edge have a harmonic mean of 1.

    The mean runs over all directions of space and time; it is a complete elliptic integral of the first kind.
    """
    small = min(ratio, 1 / ratio)
    large = 2 / math.pi * float(ellipk(1 - small**2))
    return (large, small * large) if ratio <= 1 else (small * large, large)
