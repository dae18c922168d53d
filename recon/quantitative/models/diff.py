"""Apparent diffusion coefficient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from recon.quantitative.model import SignalModel, Unknown
from recon.quantitative.sequence import B_VALUE, PHASE, FieldInput, SequenceModel, SequenceParameter
from recon.quantitative.start import log_linear, project
from recon.quantitative.tensors import column, times


class Diff(SequenceModel):
    """S_i = M0 exp(-b_i ADC) exp(i phase_i).

    Unknowns: M0 (complex), ADC in 1e-3 mm2/s, 0 to 5. The phase of each image relative to the first is taken from the images
    unless given: motion during diffusion weighting makes it arbitrary. Start: weighted log-linear fit.
    Le Bihan et al., Radiology 161 (1986). b-values are s/mm2 always; PyQMRI guesses their unit from the largest one.

    Args:
        b_value: s/mm2, one for each contrast.
        fields: phase in rad, ``[contrast, *voxels]``.
    """

    name: ClassVar[str] = "Diff"
    aliases: ClassVar[tuple[str, ...]] = ("ADC", "DWI")
    parameters: ClassVar[tuple[SequenceParameter, ...]] = (B_VALUE,)
    inputs: ClassVar[tuple[FieldInput, ...]] = (PHASE,)

    def __init__(self, b_value: Sequence[float], fields: Mapping[str, np.ndarray] | None = None) -> None:
        self.b = self.read(b_value=b_value)["b_value"] / 1000
        self.distinct("b_value", self.b, 2)
        unknowns = [
            Unknown("M0", "", 0, 100, 1, real=False, amplitude=True),
            Unknown("ADC", "1e-3 mm2/s", 0, 5, 1),
        ]
        super().__init__(unknowns, len(self.b), fields)

    def adapted(self, images: np.ndarray) -> SignalModel:
        return self.with_phases(images)

    def signal(self, unknowns: Sequence[Any]) -> Any:
        import tensorflow as tf

        M0, ADC = unknowns
        return self.phased(times(M0, tf.exp(-column(self.b, ADC) * ADC)))

    def guess(self, images: np.ndarray) -> np.ndarray:
        _, ADC = log_linear(images, np.stack([np.ones_like(self.b), -self.b], 1))
        return project(self, images, np.stack([np.ones_like(ADC), ADC]))
