"""Total variation, along any axes: spatial, temporal (GRASP), or both."""

from __future__ import annotations

from collections.abc import Sequence

from recon.arrays import Array, is_tensor
from recon.functionals.base import Functional
from recon.functionals.composed import Composed
from recon.functionals.norms import L1, GroupL2
from recon.namespace import namespace
from recon.operators.differences import FiniteDifference, neighbours
from recon.operators.linear import LinearOperator


class Differences(LinearOperator):
    """Forward differences along several axes, `[direction, *x.shape]`, 0 at the end of each axis.

    Args:
        axes: negative ones count from the end.
    """

    def __init__(self, axes: Sequence[int]) -> None:
        self.axes = tuple(axes)
        self.parts = [FiniteDifference(axis, "neumann") for axis in axes]

    def forward(self, x: Array) -> Array:
        space = namespace(x)
        if is_tensor(x):
            return space.stack([part.forward(x) for part in self.parts], 0)
        result = space.zeros((len(self.axes), *x.shape), x.dtype)
        for n, axis in enumerate(self.axes):
            first, second = neighbours(x, axis)
            space.subtract(second, first, out=neighbours(result[n], axis)[0])
        return result

    def adjoint(self, y: Array) -> Array:
        if is_tensor(y):
            parts = [part.adjoint(y[n]) for n, part in enumerate(self.parts)]
            return sum(parts[1:], parts[0])
        result = namespace(y).zeros(y.shape[1:], y.dtype)
        for n, axis in enumerate(self.axes):
            first, second = neighbours(result, axis)
            difference = neighbours(y[n], axis)[0]
            first -= difference
            second += difference
        return result


class TotalVariation(Composed):
    """weight times the sum of magnitudes of differences between neighbours.

    Rudin, Osher, Fatemi, Physica D 60 (1992); temporal: Feng et al., Magn. Reson. Med. 72 (2014) (GRASP), with the axis of
    the frames. The proximal map is that of `Composed`; `operator` and `functional` are its two parts, for solvers that split.

    Args:
        weight: at least 0, in the units of x.
        axes: along which differences are taken; give negative ones, which do not depend on batch axes.
        isotropic: the root of the sum of squares over the axes, which treats all directions alike; False adds magnitudes
            (as TensorFlow MRI). The same for one axis.
        iterations: of the proximal map.

    Raises:
        ValueError: no axes, or a negative weight.
    """

    def __init__(self, weight: float = 1.0, axes: Sequence[int] = (-2, -1), isotropic: bool = True, iterations: int = 50) -> None:
        if not axes:
            raise ValueError("total variation needs at least one axis")
        norm: Functional = GroupL2(weight, 0) if isotropic else L1(weight)
        super().__init__(norm, Differences(axes), 4.0 * len(axes), iterations)
