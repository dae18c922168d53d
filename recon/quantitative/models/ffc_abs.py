"""Fast field cycling from magnitudes."""

from __future__ import annotations

from typing import ClassVar

from recon.quantitative.models.ffc import FFC


class FFC_abs(FFC):
    """|S| of FFC with real C_j, times the phase of each image (taken from the images unless given)."""

    name: ClassVar[str] = "FFC_abs"
    magnitudes: ClassVar[bool] = True
