"""T1 from modified Look-Locker inversion recovery (MOLLI), with the Look-Locker correction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from recon.quantitative.model import Map, Unknown
from recon.quantitative.models.recovery import recovery
from recon.quantitative.sequence import TI, SequenceModel, SequenceParameter


class MOLLI(SequenceModel):
    """S = A - B exp(-TI / T1*), T1 = T1* (B / A - 1): M0 (1 - c exp(-TI (c - 1) / T1)) with c = B / A.

    Unknowns: M0 = A (complex), T1 in ms, 20 to 6000, c, 1.2 to 3 (2 is a perfect inversion without readout effects).
    Maps: M0, T1, T1star = T1 / (c - 1) in ms. Start: search over T1 and c.
    Messroghli et al., Magn. Reson. Med. 52 (2004); correction: Deichmann, Haase, J. Magn. Reson. 96 (1992). Fitting T1 itself
    regularises the corrected map, not its noisy factors. Needs signed (complex) images; `Magnitude` wraps it for magnitudes.

    Args:
        TI: inversion times of the images, ms.
    """

    name: ClassVar[str] = "MOLLI"
    aliases: ClassVar[tuple[str, ...]] = ("T1_MOLLI",)
    parameters: ClassVar[tuple[SequenceParameter, ...]] = (TI,)
    grids: Mapping[str, np.ndarray] = {"T1": np.geomspace(80, 4500, 32), "ratio": np.linspace(1.4, 2.2, 9)}

    def __init__(self, TI: Sequence[float], fields: Mapping[str, np.ndarray] | None = None) -> None:
        self.TI = self.read(TI=TI)["TI"]
        self.distinct("TI", self.TI, 3)
        unknowns = [
            Unknown("M0", "", 0, 100, 1, real=False, amplitude=True),
            Unknown("T1", "ms", 20, 6000, 1000),
            Unknown("ratio", "", 1.2, 3, 1.9),
        ]
        super().__init__(unknowns, len(self.TI), fields)

    def signal(self, unknowns: Sequence[Any]) -> Any:
        M0, T1, ratio = unknowns
        return recovery(M0, ratio, T1 / (ratio - 1), self.TI)

    def maps(self, parameters: np.ndarray) -> dict[str, Map]:
        M0, T1, ratio = parameters
        return {"M0": Map(M0, ""), "T1": Map(T1.real, "ms"), "T1star": Map(T1.real / (ratio.real - 1), "ms")}
