"""Fast field cycling without inversion (saturation)."""

from __future__ import annotations

from typing import ClassVar

from recon.quantitative.model import Unknown
from recon.quantitative.models.ffc import FFC


class FFCsat(FFC):
    """S_j(t) = C_j (b_pol alpha exp(-t / T1_j) + (1 - exp(-t / T1_j)) b_evo_j).

    Unknowns: C_j (complex), alpha, 0 to 2, T1_j in ms, 10 to 5000; weights 1, 10, 1. Otherwise as FFC. PyQMRI stops T1 at 500 ms, and
    its alpha is complex like C_j, whose phase it repeats. alpha and C_j separate only where b_evo is not small beside b_pol alpha.
    """

    name: ClassVar[str] = "FFCsat"
    sign: ClassVar[float] = 1.0
    weights: ClassVar[tuple[float, float]] = (10, 1)

    def alphas(self) -> list[Unknown]:
        return [Unknown("alpha", "", 0, 2, 1, weight=self.weights[0])]


class FFCsat_abs(FFCsat):
    """|S| of FFCsat with real C_j, times the phase of each image (taken from the images unless given)."""

    name: ClassVar[str] = "FFCsat_abs"
    magnitudes: ClassVar[bool] = True
