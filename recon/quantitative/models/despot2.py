"""T2 from balanced SSFP with several flip angles, T1 known (DESPOT2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from recon.quantitative.model import ModelError, Unknown
from recon.quantitative.sequence import FA_CORR, FLIP_ANGLE, TR, FieldInput, SequenceModel, SequenceParameter
from recon.quantitative.tensors import column, decay, times

T1 = SequenceParameter(
    "T1",
    "ms",
    "T1, where no map of it is given",
    "userParameters, or the map of a VFA fit",
    (),
    "scan",
    False,
    low=50,
    high=10000,
    suspect="seconds",
)


class DESPOT2(SequenceModel):
    """S = M0 sin(a) (1 - E1) / (1 - E1 E2 - (E1 - E2) cos(a)) exp(-TR / (2 T2)), a = flip angle x fa_corr, on resonance.

    Unknowns: M0 (complex), T2 in ms, 1 to 3000. Start: search over T2. Deoni et al., Magn. Reson. Med. 49 (2003).

    Args:
        TR: ms.
        flip_angle: one for each contrast, degrees.
        T1: ms, where the field T1 is not given.
        fields: T1 in ms (from VFA), fa_corr.
    """

    name: ClassVar[str] = "DESPOT2"
    aliases: ClassVar[tuple[str, ...]] = ("T2_bSSFP",)
    parameters: ClassVar[tuple[SequenceParameter, ...]] = (TR, FLIP_ANGLE, T1)
    inputs: ClassVar[tuple[FieldInput, ...]] = (FieldInput("T1", "ms", "map of T1"), FA_CORR)
    grids: Mapping[str, np.ndarray] = {"T2": np.geomspace(4, 2500, 40)}

    def __init__(
        self, TR: float, flip_angle: Sequence[float], T1: float | None = None, fields: Mapping[str, np.ndarray] | None = None
    ) -> None:
        given = self.read(TR=TR, flip_angle=flip_angle, T1=T1)
        self.TR, self.flip_angle, self.T1 = given["TR"], given["flip_angle"], given["T1"]
        if self.T1 is None and "T1" not in (fields or {}):
            raise ModelError("DESPOT2 needs T1: the map T1 among the fields (from a VFA fit), or one number T1 in ms")
        if self.T1 is None and not (np.asarray((fields or {})["T1"]) > 0).all():
            raise ModelError("DESPOT2: the map T1 must be above 0 everywhere; fill the background, for example with 1000 ms")
        self.distinct("flip_angle", self.flip_angle, 2)
        unknowns = [
            Unknown("M0", "", 0, 1000, 1, real=False, amplitude=True),
            Unknown("T2", "ms", 1, 3000, 80),
        ]
        super().__init__(unknowns, len(self.flip_angle), fields)

    def signal(self, unknowns: Sequence[Any]) -> Any:
        import tensorflow as tf

        M0, T2 = unknowns
        T1 = self.field("T1", T2, self.T1 or 0.0)
        angle = column(np.deg2rad(self.flip_angle), T2) * self.field("fa_corr", T2)
        r1, r2 = decay(self.TR / T1), decay(self.TR / T2)
        # 1 - E1 E2 - (E1 - E2) cos(a) as a sum of positive terms.
        below = r1 * (2 - r2) * tf.cos(angle / 2) ** 2 + r2 * (2 - r1) * tf.sin(angle / 2) ** 2
        return times(M0, tf.sin(angle) * r1 / below * tf.exp(-self.TR / (2 * T2)))
