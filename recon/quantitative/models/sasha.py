"""T1 from saturation recovery (SASHA)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from recon.quantitative.model import ModelError, Unknown
from recon.quantitative.models.recovery import recovery
from recon.quantitative.sequence import SequenceModel, SequenceParameter

TS = SequenceParameter(
    "TS", "ms", "saturation times", "userParameters/TS", ("TSs", "saturation_times"), low=20, high=60000, suspect="seconds"
)

UNSATURATED = 20000.0
"""Saturation times from here on (ms) count as an image without saturation."""


class SASHA(SequenceModel):
    """S = M0 (1 - k exp(-TS / T1)).

    Unknowns: M0 (complex), T1 in ms, 20 to 6000, and unless `two_parameters` the saturation's efficiency k, 0.5 to 1.1.
    Start: search over T1. Chow et al., Magn. Reson. Med. 71 (2014). No Look-Locker correction is needed: every image begins at
    a saturation, and the readout's effect goes into k.

    Args:
        TS: times from saturation to the image, ms; 20000 and more for an image without saturation.
        two_parameters: k = 1, precise but biased by the readout.
    """

    name: ClassVar[str] = "SASHA"
    aliases: ClassVar[tuple[str, ...]] = ("SR", "SaturationRecovery", "T1_SASHA")
    parameters: ClassVar[tuple[SequenceParameter, ...]] = (TS,)
    grids: Mapping[str, np.ndarray] = {"T1": np.geomspace(50, 5000, 48)}

    def __init__(self, TS: Sequence[float], two_parameters: bool = False, fields: Mapping[str, np.ndarray] | None = None) -> None:
        times = self.read(TS=TS)["TS"]
        self.TS = np.where(times >= UNSATURATED, np.inf, times)
        if not np.isfinite(self.TS).any():
            raise ModelError(f"SASHA: no image has a saturation time below {UNSATURATED:g} ms")
        unknowns = [
            Unknown("M0", "", 0, 100, 1, real=False, amplitude=True),
            Unknown("T1", "ms", 20, 6000, 1000),
            *([] if two_parameters else [Unknown("efficiency", "", 0.5, 1.1, 1)]),
        ]
        self.distinct("TS", self.TS, len(unknowns))
        super().__init__(unknowns, len(self.TS), fields)

    def signal(self, unknowns: Sequence[Any]) -> Any:
        M0, T1, *efficiency = unknowns
        return recovery(M0, efficiency[0] if efficiency else 1.0, T1, self.TS)
