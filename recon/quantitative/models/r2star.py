"""T2* and off-resonance from several gradient echoes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from recon.quantitative.model import Map, Unknown
from recon.quantitative.sequence import TE, SequenceModel, SequenceParameter
from recon.quantitative.start import log_linear, project
from recon.quantitative.tensors import column, times, turned


class R2Star(SequenceModel):
    """S = M0 exp(-TE R2star) exp(-i 2 pi TE B0).

    Unknowns: M0 (complex), R2star in 1/s, 1 to 1000, B0 in Hz, -1000 to 1000. Maps: M0, T2star in ms, B0 in Hz.
    Start: weighted log-linear fit; B0 from the phase between echoes, the shortest spacing first, so that it is unambiguous up to
    half its reciprocal.
    The sign of B0 is that of `OffResonance`; PyQMRI's is the opposite, and its B0 is in rad/ms.

    Args:
        TE: echo times, ms.
    """

    name: ClassVar[str] = "R2Star"
    aliases: ClassVar[tuple[str, ...]] = ("T2star", "MEGRE")
    parameters: ClassVar[tuple[SequenceParameter, ...]] = (replace(TE, low=0.5),)
    least = 2

    def __init__(self, TE: Sequence[float], fields: Mapping[str, np.ndarray] | None = None) -> None:
        self.TE = self.read(TE=TE)["TE"]
        self.distinct("TE", self.TE, 2)
        unknowns = [
            Unknown("M0", "", 0, 100, 1, real=False, amplitude=True),
            Unknown("R2star", "1/s", 1, 1000, 30),
            Unknown("B0", "Hz", -1000, 1000, 0),
        ]
        super().__init__(unknowns, len(self.TE), fields)

    def signal(self, unknowns: Sequence[Any]) -> Any:
        import tensorflow as tf

        M0, R2star, B0 = unknowns
        time = column(self.TE / 1000, R2star)
        return times(M0, tf.exp(-time * R2star)) * turned(tf.ones_like(R2star), -2 * np.pi * time * B0)

    def guess(self, images: np.ndarray) -> np.ndarray:
        _, rate = log_linear(images, np.stack([np.ones_like(self.TE), -self.TE / 1000], 1))
        return project(self, images, np.stack([np.ones_like(rate), rate, self._field_map(images)]))

    def _field_map(self, images: np.ndarray) -> np.ndarray:
        """B0 in Hz: phase differences at growing distances, each resolved by the estimate so far."""
        order = np.argsort(self.TE)
        time = self.TE[order] / 1000
        echoes = images[order]
        pairs = sorted((time[j] - time[i], i, j) for i in range(len(time)) for j in range(i + 1, len(time)) if time[j] > time[i])
        B0 = np.zeros(images.shape[1:])
        for distance in sorted({round(pair[0], 7) for pair in pairs}):
            turn = sum(echoes[j] * echoes[i].conj() for length, i, j in pairs if round(length, 7) == distance)
            left = np.angle(turn * np.exp(2j * np.pi * distance * B0))
            B0 = B0 - left / (2 * np.pi * distance)
            if distance > 2 * pairs[0][0]:
                break
        return B0

    def maps(self, parameters: np.ndarray) -> dict[str, Map]:
        M0, rate, B0 = parameters
        return {"M0": Map(M0, ""), "T2star": Map(1000 / rate.real, "ms"), "B0": Map(B0.real, "Hz")}
