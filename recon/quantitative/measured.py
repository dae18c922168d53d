"""What was measured of a slice or volume in all contrasts, whatever file or stream it came from."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from recon.quantitative import data_term
from recon.quantitative.data_term import DataTerm, SharedGram, as_shared

_TURNS = 0.37 * np.arange(1, 9)
"""Angles in rad by which a trajectory may be turned: no multiples of those between regular spokes or arms."""
_OUTER = 0.7
"""Part of the largest radius beyond which samples lie so far apart that it matters where."""
_PROBES = 1000
"""Samples that are compared."""


@dataclass(frozen=True, eq=False)
class Measured:
    """Images, or k-space with sensitivities.

    Attributes:
        data: images `[contrast, *grid]`; k-space on the grid, centred, `[contrast, coil, *grid]`; or samples `[contrast, coil, sample]`.
        maps: sensitivities `[coil, *grid]`; None for images.
        trajectory: of samples, rad/pixel `[contrast, sample, axis]`; None for images and grids.
        weights: of samples `[contrast, sample]`, 0 where a contrast has fewer of them than others; None for ones.
        mask: points of the grid that were measured, broadcast against `[contrast, *grid]`; None for those that are not zero.
        crop: part of the grid that is wanted; None for all of it.
    """

    data: np.ndarray
    maps: np.ndarray | None = None
    trajectory: np.ndarray | None = None
    weights: np.ndarray | None = None
    mask: np.ndarray | None = None
    crop: tuple[slice, ...] | None = None

    @property
    def contrasts(self) -> int:
        """Number of contrasts."""
        return len(self.data)

    @property
    def grid(self) -> tuple[int, ...]:
        """Voxels that are fitted."""
        return tuple(self.data.shape[1:] if self.maps is None else self.maps.shape[1:])

    @property
    def shape(self) -> tuple[int, ...]:
        """Voxels that are wanted."""
        return tuple(self.cut(np.empty(self.grid, np.bool_)).shape)

    def cut(self, values: np.ndarray) -> np.ndarray:
        """The wanted voxels of `[..., *grid]`."""
        index: tuple[Any, ...] = (...,) if self.crop is None else (..., *self.crop)
        cut: np.ndarray = values[index]
        return cut

    def padded(self, values: np.ndarray) -> np.ndarray:
        """`[..., *shape]` on the whole grid, the values at the border continued."""
        if self.crop is None:
            return values
        widths = [(part.start, n - part.stop) for part, n in zip(self.crop, self.grid, strict=True)]
        return np.pad(values, [(0, 0)] * (values.ndim - len(widths)) + widths, mode="edge")

    def encoded(self, images: np.ndarray) -> np.ndarray:
        """What would have been measured of images `[contrast, *grid]`, without noise, as `data`."""
        from recon import nufft
        from recon.fourier import fftc

        if self.maps is None:
            return images
        if self.trajectory is not None:
            images = images.astype(self.data.dtype, copy=False)
            plans = [nufft.plan(np.ascontiguousarray(points), self.grid, dtype=images.dtype) for points in self.trajectory]
            return np.stack([plan.forward(self.maps * image) for plan, image in zip(plans, images, strict=True)])
        kspace: np.ndarray = fftc(self.maps * images[:, None], range(-len(self.grid), 0))
        return kspace if self.mask is None else kspace * np.broadcast_to(self.mask, (self.contrasts, *self.grid))[:, None]

    def elsewhere(self) -> Measured:
        """As many samples, equally dense, at other places of k-space, and all of them 0; the same where there are no others.

        Grids are mirrored, trajectories turned in the plane (mirrored if they leave the circle), so that as few places as possible agree.
        """
        if self.maps is None:
            return self
        empty = np.zeros_like(self.data)
        if self.trajectory is not None:
            return replace(self, data=empty, trajectory=_moved(self.trajectory, self.weights))
        sampled = np.abs(self.data).max(1) > 0 if self.mask is None else np.asarray(self.mask, bool)
        return replace(self, data=empty, mask=_mirrored(sampled))

    def gridded(self) -> np.ndarray:
        """Images `[contrast, *grid]` without iterations: samples weighed by their density, what is missing taken for zero."""
        from recon.coils import combine
        from recon.density import pipe_weights
        from recon.fourier import ifftc
        from recon.sense import gridding

        if self.maps is None:
            return self.data
        if self.trajectory is None:
            kspace = self.data if self.mask is None else self.data * np.broadcast_to(self.mask, (self.contrasts, *self.grid))[:, None]
            images: np.ndarray = combine(ifftc(kspace, range(-len(self.grid), 0)), self.maps, rank=len(self.grid))
            return images
        kept = np.ones(self.trajectory.shape[:2], bool) if self.weights is None else self.weights > 0
        every = []
        for data, points, used in zip(self.data, self.trajectory, kept, strict=True):
            where = np.ascontiguousarray(points[used])
            every.append(gridding(np.ascontiguousarray(data[:, used]), where, pipe_weights(where, self.grid), self.grid, self.maps))
        return np.stack(every)

    def term(self, dtype: np.dtype) -> DataTerm:
        """The data as what fits work with, in this complex precision.

        Raises:
            ValueError: shapes that do not fit, or values that are not finite.
        """
        data = self.data.astype(dtype, copy=False)
        if self.maps is None:
            return data_term.from_images(data)
        if self.trajectory is None:
            return data_term.cartesian(data, self.maps.astype(dtype, copy=False), self.mask)
        points = self.trajectory.astype(data.real.dtype, copy=False)
        return data_term.noncartesian(data, points, self.maps.astype(dtype, copy=False), self.weights)


def _mirrored(sampled: np.ndarray) -> np.ndarray:
    """Points of the grid `[contrast, *grid]` mirrored at its centre along those axes where fewest agree."""
    axes = [axis for axis in range(1, sampled.ndim) if sampled.shape[axis] > 1]
    choices = [sampled]
    for some in itertools.chain.from_iterable(itertools.combinations(axes, n) for n in range(1, len(axes) + 1)):
        even = [axis for axis in some if sampled.shape[axis] % 2 == 0]
        choices.append(np.roll(np.flip(sampled, some), [1] * len(even), even))
    return min(choices, key=lambda one: np.count_nonzero(one & sampled))


def _moved(trajectory: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """A trajectory `[contrast, sample, axis]` turned about the first of three axes, or mirrored, to lie farthest from where it was."""
    from scipy.spatial import cKDTree

    plane = np.hypot(trajectory[..., -2], trajectory[..., -1])
    flip = np.eye(2) * [-1, 1]
    changes = [flip, -flip]
    if plane.max() <= np.pi * (1 + 1e-3):
        changes += [np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) for angle in _TURNS]

    def moved(points: np.ndarray, change: np.ndarray) -> np.ndarray:
        return np.concatenate([points[..., :-2], points[..., -2:] @ change.T], -1).astype(trajectory.dtype)

    outer = plane[0] >= _OUTER * plane[0].max()
    points = trajectory[0][outer if weights is None else outer & (weights[0] > 0)]
    tree = cKDTree(points)
    probes = points[:: max(1, len(points) // _PROBES)]
    return moved(trajectory, max(changes, key=lambda change: float(tree.query(moved(probes, change))[0].mean())))


def stacked(terms: Sequence[DataTerm]) -> DataTerm:
    """Slices as one volume: `[contrast, slice, *voxels]`, whose data do not depend on one another."""
    import tensorflow as tf

    if len({tuple(term.rhs.shape) for term in terms}) > 1:
        raise ValueError(f"slices differ in shape: {', '.join(str(tuple(term.rhs.shape)) for term in terms)} ([contrast, *voxels])")

    grams = [as_shared(term.gram) for term in terms]
    ends = np.cumsum([len(gram.operands) for gram in grams])

    def each(x: Any, *operands: Any) -> Any:
        own = [operands[end - len(gram.operands) : end] for gram, end in zip(grams, ends, strict=True)]
        parts = zip(grams, tf.unstack(x, axis=1), own, strict=True)
        return tf.stack([gram.apply(part, *few) for gram, part, few in parts], 1)

    keys = tuple(gram.key for gram in grams)
    key = None if None in keys else ("stacked", *keys)
    gram = SharedGram(key, each, tuple(one for gram in grams for one in gram.operands), grams)

    def joined(name: str) -> Any:
        parts = [getattr(term, name) for term in terms]
        shape = np.broadcast_shapes(*(tuple(part.shape) for part in parts))
        return tf.stack([tf.broadcast_to(part, shape) for part in parts], 1)

    bound, pointwise = joined("bound"), all(term.pointwise for term in terms)
    return DataTerm(
        tf.stack([term.rhs for term in terms], 1),
        (lambda x: x * tf.cast(bound, x.dtype)) if pointwise else gram,
        bound,
        joined("diagonal"),
        pointwise,
        sum(term.energy for term in terms),
        sum(term.samples for term in terms),
        all(term.graph for term in terms),
        None if any(term.noise is None for term in terms) else partial(_stacked_noise, terms),
    )


def _stacked_noise(terms: Sequence[DataTerm], random: np.random.Generator) -> np.ndarray:
    return np.stack([term.noise(random) for term in terms if term.noise is not None], 1)
