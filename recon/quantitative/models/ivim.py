"""Intravoxel incoherent motion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from recon.quantitative.model import SignalModel, Unknown
from recon.quantitative.sequence import B_VALUE, PHASE, FieldInput, SequenceModel, SequenceParameter
from recon.quantitative.tensors import column, times


class Ivim(SequenceModel):
    """S_i = M0 (f exp(-b_i Dstar) + (1 - f) exp(-b_i ADC)) exp(i phase_i).

    Unknowns: M0 (complex), ADC in 1e-3 mm2/s, 0 to 5, f, 0 to 1, Dstar in 1e-3 mm2/s, 5 to 300. Start: search over all three.
    Le Bihan et al., Radiology 168 (1988). Phases as in Diff.

    Args:
        b_value: s/mm2, one for each contrast.
        fields: phase in rad, ``[contrast, *voxels]``.
    """

    name: ClassVar[str] = "Ivim"
    parameters: ClassVar[tuple[SequenceParameter, ...]] = (B_VALUE,)
    inputs: ClassVar[tuple[FieldInput, ...]] = (PHASE,)
    grids: Mapping[str, np.ndarray] = {
        "ADC": np.linspace(0.3, 3, 10),
        "f": np.linspace(0.04, 0.5, 7),
        "Dstar": np.geomspace(8, 150, 6),
    }

    def __init__(self, b_value: Sequence[float], fields: Mapping[str, np.ndarray] | None = None) -> None:
        self.b = self.read(b_value=b_value)["b_value"] / 1000
        self.distinct("b_value", self.b, 4)
        unknowns = [
            Unknown("M0", "", 0, 100, 1, real=False, amplitude=True),
            Unknown("ADC", "1e-3 mm2/s", 0, 5, 1),
            Unknown("f", "", 0, 1, 0.2),
            Unknown("Dstar", "1e-3 mm2/s", 5, 300, 50),
        ]
        super().__init__(unknowns, len(self.b), fields)

    def adapted(self, images: np.ndarray) -> SignalModel:
        return self.with_phases(images)

    def signal(self, unknowns: Sequence[Any]) -> Any:
        import tensorflow as tf

        M0, ADC, f, Dstar = unknowns
        b = column(self.b, f)
        return self.phased(times(M0, f * tf.exp(-b * Dstar) + (1 - f) * tf.exp(-b * ADC)))
