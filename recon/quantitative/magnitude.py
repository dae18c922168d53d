"""A signal model for magnitude images."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from recon.quantitative.model import Map, SignalModel
from recon.quantitative.sequence import SequenceModel
from recon.quantitative.start import match, within


class Magnitude(SignalModel):
    """|S| of another model: for series of which only magnitudes are left, such as inversion recovery from DICOM or NIfTI.

    Complex amplitudes become real and non-negative, for the phase is lost. Start: the model's own search, on magnitudes.

    Args:
        model: the model of the complex signal.
    """

    name: ClassVar[str] = "Magnitude"

    def __init__(self, model: SignalModel) -> None:
        self.model = model
        unknowns = [unknown if unknown.real else replace(unknown, real=True, lower=max(unknown.lower, 0.0)) for unknown in model.unknowns]
        super().__init__(unknowns, model.contrasts, model.fields)

    def signal(self, unknowns: Sequence[Any]) -> Any:
        import tensorflow as tf

        parts = [
            part if unknown.real else tf.complex(part, tf.zeros_like(part))
            for part, unknown in zip(unknowns, self.model.unknowns, strict=True)
        ]
        # Solvers exchange the fields of this model, not of the inner one.
        inner = copy.copy(self.model)
        inner.fields = self.fields
        return tf.abs(inner.signal(parts))

    def guess(self, images: np.ndarray) -> np.ndarray:
        sizes = np.abs(images).astype(images.dtype)
        grids = self.model.grids if isinstance(self.model, SequenceModel) else {}
        if grids:
            return match(self, sizes, grids)
        start = self.model.guess(sizes)
        for n, unknown in enumerate(self.model.unknowns):
            if not unknown.real:
                start[n] = np.abs(start[n])
        return within(self, start).astype(images.dtype)

    def maps(self, parameters: np.ndarray) -> dict[str, Map]:
        return {name: Map(np.real(shown.values), shown.unit) for name, shown in self.model.maps(parameters).items()}

    def scaled(self, factor: float) -> SignalModel:
        return Magnitude(self.model.scaled(factor))
