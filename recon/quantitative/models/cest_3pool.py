"""Chemical exchange saturation transfer with three pools."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from recon.quantitative.models.cest import CEST


class CEST_3Pool(CEST):
    """As CEST, with water and two exchanging pools: amide at 3.5 ppm and guanidine at 1.9 ppm (fractions, widths, shifts in ppm)."""

    name: ClassVar[str] = "CEST_3Pool"
    aliases: ClassVar[tuple[str, ...]] = ()
    pools: ClassVar[Mapping[str, tuple[tuple[float, float, float], ...]]] = {
        "water": ((0.7, 0.9, 1), (0.4, 1, 4), (-0.3, 0, 0.3)),
        "amide": ((0, 0.05, 0.4), (0.1, 1, 4), (3, 3.5, 3.7)),
        "guanidine": ((0, 0.05, 0.4), (0.1, 1, 4), (1.8, 1.9, 2)),
    }
