"""Settings of the regularised fit, under the names of PyQMRI's configuration files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

Regularisation = Literal["TGV", "TV", "H1", "wavelet", "ICTV", "ICTGV", "none"]
NAMES: tuple[Regularisation, ...] = ("TGV", "TV", "H1", "wavelet", "ICTV", "ICTGV", "none")


@dataclass(frozen=True)
class Settings:
    """Schedule, weights and stopping of `recon.quantitative.irgn.fit`.

    Data and unknowns are scaled as in PyQMRI: the energy of the data to 2000 and the norm of each partial derivative to
    100 / sqrt(number of unknowns) for every 256 x 256 voxels, so that weights mean the same for all models and scanners. (PyQMRI
    scales slices of any size so: for n x n its `gamma` is ours times (n / 256)^2.)

    Attributes:
        reg_type: regularisation of the maps, all of them jointly.
        max_gn_it: Gauss-Newton steps, at most.
        start_iters, inc, max_iters: inner iterations of the first step, factor from step to step, and their limit.
        lambd: weight of the data.
        gamma, gamma_dec, gamma_min: weight of the regularisation in the first step, factor, lower limit.
        delta, delta_inc, delta_max: one over the weight of the distance from the last step's unknowns, factor, upper limit.
        alpha_ratio: of TGV, weight of the first over that of the second order, which is `gamma` then; 0 for 1/2 as in the paper,
            `gamma` being that of the first.
        beta: dual over primal step; 0 finds it from the curvature of the data.
        rtol, atol, stag: inner iterations end when the primal-dual gap changes by less than `rtol` of the first, is below `atol` of
            it, or its mean over 20 checks changes by less than `stag` of it; the steps when the cost changes by less than `rtol`.
        check: iterations from one gap to the next.
        precond: use a voxel's curvature of the data as the metric of its step instead of the largest one of all voxels.
        cutoffPre: smallest eigenvalue of that curvature, as a fraction of the voxel's largest.
        mu1_1, mu2_1, dt, t1, t2, s: ICTV and ICTGV: weights of space for both parts, distance of frames, ratios of time to space for
            both parts, balance of the parts (0 to 1).
        wavelet: name of an orthogonal one, for "wavelet".
        replicas: draws of the noise for which the last step is solved again, from below and above, to find standard deviations, for a
            third of the fit's iterations or 40 each; 0 for the bound that holds without regularisation and aliasing.
        dz: difference of neighbours along the first of three axes is multiplied by it: pixel size over distance of slices.
    """

    reg_type: Regularisation = "TGV"
    max_gn_it: int = 4
    start_iters: int = 100
    inc: float = 1.5
    max_iters: int = 300
    lambd: float = 1.0
    gamma: float = 6e-4
    gamma_dec: float = 0.7
    gamma_min: float = 3e-4
    delta: float = 1e3
    delta_inc: float = 10.0
    delta_max: float = 1e10
    alpha_ratio: float = 0.0
    beta: float = 0.0
    rtol: float = 1e-5
    atol: float = 1e-6
    stag: float = 1e-4
    check: int = 10
    precond: bool = True
    cutoffPre: float = 0.0
    mu1_1: float = 1.0
    mu2_1: float = 1.0
    dt: float = 1.0
    t1: float = 4.0
    t2: float = 0.5
    s: float = 0.5
    wavelet: str = "db4"
    replicas: int = 3
    dz: float = 1.0

    def __post_init__(self) -> None:
        if self.reg_type not in NAMES:
            raise ValueError(f"reg_type must be one of {', '.join(NAMES)}, not {self.reg_type!r}")
        for name in ("max_gn_it", "start_iters", "max_iters", "check"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("lambd", "delta", "inc", "gamma_dec", "delta_inc", "dz", "dt", "t1", "t2", "mu1_1", "mu2_1"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        for name in ("gamma", "gamma_min", "alpha_ratio", "beta", "rtol", "atol", "stag", "cutoffPre"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a number of at least 0, not {getattr(self, name)}")
        if self.replicas < 0 or self.replicas == 1:
            raise ValueError(f"replicas must be 0 or at least 2, not {self.replicas}")
        if not 0 < self.s < 1:
            raise ValueError(f"s must lie between 0 and 1, not {self.s}")

    @classmethod
    def of(cls, reg_type: Regularisation = "TGV", **changes: Any) -> Settings:
        """The defaults for this regularisation, changed.

        Raises:
            TypeError: a setting of another name.
            ValueError: a value out of its range.
        """
        return cls(reg_type, **changes)

    def without_schedule(self) -> Settings:
        """The same for all settings that make one convex problem of the same kind."""
        defaults = Settings()
        names = (
            "max_gn_it",
            "start_iters",
            "inc",
            "max_iters",
            "lambd",
            "gamma",
            "gamma_dec",
            "gamma_min",
            "delta",
            "delta_inc",
            "delta_max",
            "replicas",
        )
        return replace(self, **{name: getattr(defaults, name) for name in names})

    def at(self, step: int) -> tuple[float, float, int]:
        """gamma and delta, in the units of the scaled data, and inner iterations of a Gauss-Newton step counted from 0."""
        gamma = max(self.gamma * self.gamma_dec**step, self.gamma_min) / self.lambd
        delta = min(self.delta * self.delta_inc**step, self.delta_max) * self.lambd
        return gamma, delta, round(min(self.start_iters * self.inc**step, self.max_iters))


def checked_weights(weights: Sequence[float], names: Sequence[str]) -> np.ndarray:
    """Weights of the unknowns' regularisation.

    Args:
        weights: one for each unknown.
        names: of the unknowns.

    Raises:
        ValueError: another number of them, one that is negative or not finite, or all of them 0.
    """
    values = np.asarray(weights, float)
    if values.shape != (len(names),):
        raise ValueError(f"weights has {values.size} values for the unknowns {', '.join(names)}; give one for each")
    if not (np.isfinite(values) & (values >= 0)).all() or not values.any():
        raise ValueError(f"weights must be numbers of at least 0, not all of them 0: {', '.join(f'{value:g}' for value in values)}")
    return values
