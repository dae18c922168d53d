"""Perfusion from pseudo-continuous arterial spin labelling (pCASL)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from recon.quantitative.models.perfusion import Perfusion
from recon.quantitative.tensors import decay


class ASL(Perfusion):
    """Control minus label: 2 alpha M0 f / lambd exp(-ATT / T1b) / R times, R = 1 / T1 + f / lambd,

    0 before the blood arrives (t < ATT); 1 - exp(-(t - ATT) R) while it does; exp(-(t - ATT - tau) R) (1 - exp(-tau R)) after.

    Unknowns: CBF f in ml/100g/min, 0 to 300, ATT in ms, 50 to 5000. Start: search over ATT.
    Buxton et al., Magn. Reson. Med. 40 (1998); constants: Alsop et al., Magn. Reson. Med. 73 (2015). PyQMRI's cannot run: it reads a
    setting that nothing writes.

    Args:
        t: from the start of labelling to each image (labelling duration plus post-labelling delay), ms.
        tau: labelling duration, ms.
        T1b, T1: of blood and tissue, ms.
        lambd: partition coefficient, ml/g.
        alpha: labelling efficiency.
        fields: M0 (needed, real or complex, in the data's scale), and T1b, T1, lambd, alpha, phase (rad) where they vary.
    """

    name: ClassVar[str] = "ASL"
    aliases: ClassVar[tuple[str, ...]] = ("pCASL",)

    def signal(self, unknowns: Sequence[Any]) -> Any:
        import tensorflow as tf

        parts = self.terms(unknowns)
        since = parts["t"] - parts["arrival"]
        # Inflow lasts from the arrival to tau later; the inflowed label then relaxes.
        inflow = tf.clip_by_value(since, 0, parts["tau"])
        after = tf.nn.relu(since - parts["tau"])
        level = parts["amplitude"] * tf.exp(-parts["arrival"] / parts["T1b"]) / parts["rate"]
        return self.calibrated(level * decay(inflow * parts["rate"]) * tf.exp(-after * parts["rate"]))
