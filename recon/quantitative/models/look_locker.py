"""T1 from one inversion and a train of spoiled readouts (single-shot Look-Locker)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from recon.quantitative.model import ModelError, Unknown
from recon.quantitative.sequence import FA_CORR, FLIP_ANGLE, TI, TR, FieldInput, SequenceModel, SequenceParameter
from recon.quantitative.tensors import column, decay, geometric_mean_power, times

READOUTS = SequenceParameter("readouts", "", "readouts averaged in one frame", "readouts per frame", ("spokes",), "scan", False, low=1)
FIRST = SequenceParameter(
    "TI_first", "ms", "from the inversion to the first readout of the train", "userParameters/TI_first_ms", ("TI_first_ms",), "scan", False,
    high=60000,
)  # fmt: skip


class LookLocker(SequenceModel):
    """S(TI) = M0 sin(a) [M_ss + (M_1 - M_ss) (E1 cos a)^n], n = (TI - TI_first) / TR, averaged over the readouts of a frame.

    M_1 = 1 - 2 k exp(-TI_first / T1) before the first readout (k: inversion efficiency), M_ss = (1 - E1) / (1 - E1 cos a),
    E1 = exp(-TR / T1): the decay towards M_ss has the effective 1 / T1* = 1 / T1 - log(cos a) / TR.

    Unknowns: M0 (complex), T1 in ms, 20 to 6000, and with `fit_b1` the flip angle's factor B1, 0.5 to 1.5, which the train
    determines by itself. Start: search over T1.
    Look, Locker, Rev. Sci. Instrum. 41 (1970); Deichmann, Haase, J. Magn. Reson. 96 (1992). The magnetisation was in equilibrium
    before the inversion; for repeated inversions take IRLL.

    Args:
        TI: from the inversion to the first readout of each frame, ms; increasing by multiples of TR.
        TR: spacing of the readouts, ms.
        flip_angle: of the readouts, degrees, below 90.
        readouts: in each frame; 1 for a contrast of every readout.
        TI_first: of the train's first readout, ms; the smallest TI if not given.
        efficiency: k, 1 for a perfect inversion.
        fit_b1: fit B1.
        fields: fa_corr.
    """

    name: ClassVar[str] = "LookLocker"
    aliases: ClassVar[tuple[str, ...]] = ("LL", "T1_LL", "SingleShotLookLocker")
    parameters: ClassVar[tuple[SequenceParameter, ...]] = (TI, TR, FLIP_ANGLE.one(), READOUTS, FIRST)
    inputs: ClassVar[tuple[FieldInput, ...]] = (FA_CORR,)
    grids: Mapping[str, np.ndarray] = {"T1": np.geomspace(50, 5000, 48)}

    def __init__(
        self,
        TI: Sequence[float],
        TR: float,
        flip_angle: float,
        readouts: int | None = None,
        TI_first: float | None = None,
        efficiency: float = 1.0,
        fit_b1: bool = False,
        fields: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        given = self.read(TI=TI, TR=TR, flip_angle=flip_angle, readouts=readouts, TI_first=TI_first)
        self.TR, self.flip_angle, self.efficiency = given["TR"], given["flip_angle"], float(efficiency)
        self.readouts = int(given["readouts"] or 1)
        self.first = float(given["TI"].min()) if TI_first is None else given["TI_first"]
        self.index = (given["TI"] - self.first) / self.TR
        if self.index.min() < -1e-6:
            raise ModelError(f"LookLocker: a TI of {given['TI'].min():g} ms lies before the first readout at {self.first:g} ms")
        if self.flip_angle >= 90:
            raise ModelError(f"LookLocker: flip_angle must be below 90 degrees, not {self.flip_angle:g}")
        if not 0 < self.efficiency <= 1.2:
            raise ModelError(f"LookLocker: efficiency must be above 0 and about 1 at most, not {self.efficiency:g}")
        unknowns = [
            Unknown("M0", "", 0, 1000, 10, real=False, amplitude=True),
            Unknown("T1", "ms", 20, 6000, 1000),
            *([Unknown("B1", "", 0.5, min(1.5, 85 / self.flip_angle), 1)] if fit_b1 else []),
        ]
        self.distinct("TI", given["TI"], len(unknowns))
        super().__init__(unknowns, len(given["TI"]), fields)

    def signal(self, unknowns: Sequence[Any]) -> Any:
        import tensorflow as tf

        M0, T1, *factor = unknowns
        angle = self.field("fa_corr", T1) * np.deg2rad(self.flip_angle) * (factor[0] if factor else 1.0)
        recovered = decay(self.TR / T1)
        rate = self.TR / T1 - tf.math.log(tf.cos(angle))
        steady = recovered / (recovered + (1 - recovered) * 2 * tf.sin(angle / 2) ** 2)
        start = 1 - 2 * self.efficiency * tf.exp(-self.first / T1)
        powers = geometric_mean_power(rate, column(self.index, T1), self.readouts)
        return times(M0, tf.sin(angle) * (steady + (start - steady) * powers))
