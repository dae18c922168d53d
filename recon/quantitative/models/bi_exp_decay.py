"""Two T2 components."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from recon.quantitative.model import Map, Unknown
from recon.quantitative.sequence import TE, SequenceModel, SequenceParameter
from recon.quantitative.tensors import column, times


class BiExpDecay(SequenceModel):
    """S = M0 (f exp(-TE R2_short) + (1 - f) exp(-TE R2_long)).

    Unknowns: M0 (complex), f, 0 to 1, R2_short, 1000/150 to 1000 per s, R2_long, 1000/1500 to 1000/150 per s.
    Maps: M0, f, T2_short, T2_long in ms. Start: search over fraction and both rates.
    PyQMRI has two fractions beside M0, of which only the products are determined; here they sum to one.

    Args:
        TE: echo times, ms.
    """

    name: ClassVar[str] = "BiExpDecay"
    aliases: ClassVar[tuple[str, ...]] = ("BiExp",)
    parameters: ClassVar[tuple[SequenceParameter, ...]] = (TE,)
    grids: Mapping[str, np.ndarray] = {
        "f": np.linspace(0.1, 0.9, 7),
        "R2_short": 1000 / np.geomspace(5, 120, 9),
        "R2_long": 1000 / np.geomspace(160, 1200, 7),
    }

    def __init__(self, TE: Sequence[float], fields: Mapping[str, np.ndarray] | None = None) -> None:
        self.TE = self.read(TE=TE)["TE"]
        self.distinct("TE", self.TE, 4)
        unknowns = [
            Unknown("M0", "", 0, 100, 1, real=False, amplitude=True),
            Unknown("f", "", 0, 1, 0.5),
            Unknown("R2_short", "1/s", 1000 / 150, 1000, 50),
            Unknown("R2_long", "1/s", 1000 / 1500, 1000 / 150, 4),
        ]
        super().__init__(unknowns, len(self.TE), fields)

    def signal(self, unknowns: Sequence[Any]) -> Any:
        import tensorflow as tf

        M0, f, short, long = unknowns
        time = column(self.TE / 1000, f)
        return times(M0, f * tf.exp(-time * short) + (1 - f) * tf.exp(-time * long))

    def maps(self, parameters: np.ndarray) -> dict[str, Map]:
        M0, f, short, long = parameters
        return {
            "M0": Map(M0, ""),
            "f": Map(f.real, ""),
            "T2_short": Map(1000 / short.real, "ms"),
            "T2_long": Map(1000 / long.real, "ms"),
        }
