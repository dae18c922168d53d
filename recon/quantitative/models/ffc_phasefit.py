"""Fast field cycling with a phase for every field."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from recon.quantitative.model import Unknown
from recon.quantitative.models.ffc import FieldCycling
from recon.quantitative.start import within
from recon.quantitative.tensors import turned


class FFC_phasefit(FieldCycling):
    """S_j(t) = M0 exp(i phase_j) (-b0 alpha exp(-t / T1_j) + (1 - exp(-t / T1_j)) b_j): one amplitude for all fields.

    Unknowns: M0 (real), phase_j in rad, -2 pi to 2 pi, alpha, 0.1 to 10, T1_j in ms, 10 to 5000; weights 1, 10, 10, 1.
    Start: search over T1 in every field, phases of the amplitudes found. PyQMRI freezes phases at 0 and alpha at 1 by their bounds, and
    has a complex M0 that the phases repeat.

    Args:
        t, b, b0: as in FFC.
    """

    name: ClassVar[str] = "FFC_phasefit"

    def __init__(self, t: Any, b: Sequence[float], b0: float | None = None, fields: Mapping[str, np.ndarray] | None = None) -> None:
        count = self.count(b)
        unknowns = [
            Unknown("M0", "1/T", 0, 1e4, 1, amplitude=True),
            *(Unknown(f"phase_{n + 1}", "rad", -2 * np.pi, 2 * np.pi, 0, weight=10) for n in range(count)),
            Unknown("alpha", "", 0.1, 10, 1, weight=10),
            *(Unknown(f"T1_{n + 1}", "ms", 10, 5000, 150) for n in range(count)),
        ]
        super().__init__(unknowns, t, b, b0, fields, 2)

    def signal(self, unknowns: Sequence[Any]) -> Any:
        import tensorflow as tf

        count = len(self.b)
        M0, phases, alpha, T1 = unknowns[0], unknowns[1 : count + 1], unknowns[count + 1], unknowns[count + 2 :]
        return tf.concat([turned(M0 * self.magnetisation(j, alpha, T1[j]), phases[j]) for j in range(count)], 0)

    def guess(self, images: np.ndarray) -> np.ndarray:
        C, T1 = self.relaxation(images, False)
        start = np.concatenate([np.abs(C).mean(0)[None], np.angle(C), np.ones_like(T1[:1]), T1])
        return within(self, start).astype(images.dtype)
