"""T1 from spoiled gradient echoes with several flip angles (DESPOT1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from recon.quantitative.model import Unknown
from recon.quantitative.sequence import FA_CORR, FLIP_ANGLE, TR, FieldInput, SequenceModel, SequenceParameter
from recon.quantitative.start import project
from recon.quantitative.tensors import column, decay, times


class VFA(SequenceModel):
    """S = M0 sin(a) (1 - E1) / (1 - E1 cos(a)), E1 = exp(-TR / T1), a = flip angle x fa_corr.

    Unknowns: M0 (complex, with the decay until the echo), T1 in ms, 50 to 5500. Start: the linearised fit S / sin a over S / tan a,
    weighted against its noise (Chang et al., Magn. Reson. Med. 60 (2008)).
    Deoni et al., Magn. Reson. Med. 49 (2003). PyQMRI fits E1 instead of T1.

    Args:
        TR: repetition time, ms.
        flip_angle: one for each contrast, degrees.
        fields: fa_corr, actual over nominal flip angle ``[*voxels]``.
    """

    name: ClassVar[str] = "VFA"
    aliases: ClassVar[tuple[str, ...]] = ("DESPOT1", "T1_VFA")
    parameters: ClassVar[tuple[SequenceParameter, ...]] = (TR, FLIP_ANGLE)
    inputs: ClassVar[tuple[FieldInput, ...]] = (FA_CORR,)

    def __init__(self, TR: float, flip_angle: Sequence[float], fields: Mapping[str, np.ndarray] | None = None) -> None:
        given = self.read(TR=TR, flip_angle=flip_angle)
        self.TR, self.flip_angle = given["TR"], given["flip_angle"]
        self.distinct("flip_angle", self.flip_angle, 2)
        unknowns = [
            Unknown("M0", "", 0, 1000, 1, real=False, amplitude=True),
            Unknown("T1", "ms", 50, 5500, 1000),
        ]
        super().__init__(unknowns, len(self.flip_angle), fields)

    def signal(self, unknowns: Sequence[Any]) -> Any:
        import tensorflow as tf

        M0, T1 = unknowns
        angle = column(np.deg2rad(self.flip_angle), T1) * self.field("fa_corr", T1)
        recovered = decay(self.TR / T1)
        # 1 - E1 cos(a) as a sum of positive terms: no cancellation at small angles.
        return times(M0, tf.sin(angle) * recovered / (recovered + (1 - recovered) * 2 * tf.sin(angle / 2) ** 2))

    def guess(self, images: np.ndarray) -> np.ndarray:
        angle = np.deg2rad(self.flip_angle).reshape(-1, *[1] * (images.ndim - 1)) * self.fields.get("fa_corr", 1.0)
        size = np.abs(images).astype(np.float64)
        y, x = size / np.sin(angle), size / np.tan(angle)
        E1 = np.full(images.shape[1:], np.exp(-self.TR / 1000))
        for _ in range(3):
            weight = (np.sin(angle) / (1 - E1 * np.cos(angle))) ** 2
            total = weight.sum(0)
            x0, y0 = (weight * x).sum(0) / total, (weight * y).sum(0) / total
            spread = (weight * (x - x0) ** 2).sum(0)
            slope = (weight * (x - x0) * (y - y0)).sum(0) / np.where(spread > 0, spread, 1)
            E1 = np.clip(slope, np.exp(-self.TR / 50), np.exp(-self.TR / 5500))
        return project(self, images, np.stack([np.ones_like(E1), -self.TR / np.log(E1)]))
