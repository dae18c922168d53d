"""T1 from inversion recovery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from recon.quantitative.model import Unknown
from recon.quantitative.models.recovery import recovery
from recon.quantitative.sequence import TI, TR, SequenceModel, SequenceParameter
from recon.quantitative.tensors import times


class IR(SequenceModel):
    """S = M0 (1 - 2 k exp(-TI / T1) + exp(-TR / T1)), the last term only when TR is given.

    Unknowns: M0 (complex), T1 in ms, 20 to 6000, and with `fit_efficiency` the inversion's efficiency k, 0.5 to 1.05 (else 1).
    Start: search over T1, which finds the zero crossing by itself. Needs signed (complex) images; `Magnitude` wraps it for magnitudes.
    Barral et al., Magn. Reson. Med. 64 (2010). PyQMRI's IR fits 1 / T1 down to 1/5000 per ms only and knows neither k nor TR.

    Args:
        TI: inversion times, ms.
        TR: ms, when the magnetisation does not recover fully before the next inversion.
        fit_efficiency: fit k.
    """

    name: ClassVar[str] = "IR"
    aliases: ClassVar[tuple[str, ...]] = ("InversionRecovery", "T1_IR")
    parameters: ClassVar[tuple[SequenceParameter, ...]] = (TI, TR.optional())
    grids: Mapping[str, np.ndarray] = {"T1": np.geomspace(50, 5000, 48)}

    def __init__(
        self,
        TI: Sequence[float],
        TR: float | None = None,
        fit_efficiency: bool = False,
        fields: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        given = self.read(TI=TI, TR=TR)
        self.TI, self.TR = given["TI"], given["TR"]
        unknowns = [
            Unknown("M0", "", 0, 100, 1, real=False, amplitude=True),
            Unknown("T1", "ms", 20, 6000, 1000),
            *([Unknown("efficiency", "", 0.5, 1.05, 1)] if fit_efficiency else []),
        ]
        self.distinct("TI", self.TI, len(unknowns))
        super().__init__(unknowns, len(self.TI), fields)

    def signal(self, unknowns: Sequence[Any]) -> Any:
        import tensorflow as tf

        M0, T1, *efficiency = unknowns
        signal = recovery(M0, 2 * efficiency[0] if efficiency else 2.0, T1, self.TI)
        return signal if self.TR is None else signal + times(M0, tf.exp(-self.TR / T1))
