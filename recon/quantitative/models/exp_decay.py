"""T2 (or T2*) from a mono-exponential decay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from recon.quantitative.model import Map, Unknown
from recon.quantitative.sequence import TE, SequenceModel, SequenceParameter
from recon.quantitative.start import log_linear, project
from recon.quantitative.tensors import column, times


class ExpDecay(SequenceModel):
    """S = M0 exp(-TE R2).

    Unknowns: M0 (complex), R2 in 1/s, 0.33 to 1000 (T2 of 1 to 3000 ms); the rate, because noise makes it normal and keeps voxels
    without signal finite. Maps: M0, T2 in ms. Start: weighted log-linear fit. For trains of refocusing pulses below 180 degrees
    use `EPG`: their stimulated echoes lengthen this T2.

    Args:
        TE: echo times, ms.
    """

    name: ClassVar[str] = "ExpDecay"
    aliases: ClassVar[tuple[str, ...]] = ("T2", "MonoExp", "MESE")
    parameters: ClassVar[tuple[SequenceParameter, ...]] = (TE,)

    def __init__(self, TE: Sequence[float], fields: Mapping[str, np.ndarray] | None = None) -> None:
        self.TE = self.read(TE=TE)["TE"]
        self.distinct("TE", self.TE, 2)
        unknowns = [
            Unknown("M0", "", 0, 100, 1, real=False, amplitude=True),
            Unknown("R2", "1/s", 1 / 3, 1000, 15),
        ]
        super().__init__(unknowns, len(self.TE), fields)

    def signal(self, unknowns: Sequence[Any]) -> Any:
        import tensorflow as tf

        M0, R2 = unknowns
        return times(M0, tf.exp(-column(self.TE / 1000, R2) * R2))

    def guess(self, images: np.ndarray) -> np.ndarray:
        _, rate = log_linear(images, np.stack([np.ones_like(self.TE), -self.TE / 1000], 1))
        return project(self, images, np.stack([np.ones_like(rate), rate]))

    def maps(self, parameters: np.ndarray) -> dict[str, Map]:
        return {"M0": Map(parameters[0], ""), "T2": Map(1000 / parameters[1].real, "ms")}
