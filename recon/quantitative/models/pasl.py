"""Perfusion from pulsed arterial spin labelling (PASL)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from recon.quantitative.models.perfusion import Perfusion


class PASL(Perfusion):
    """Control minus label: 2 alpha M0 f / lambd exp(-t R) (exp(s k) - exp(ATT k)) / k, k = R - 1 / T1b, R = 1 / T1 + f / lambd,

    with s = t while the bolus arrives (ATT <= t < ATT + tau), s = ATT + tau after it, and 0 before it.

    Unknowns: CBF f in ml/100g/min, 0 to 300, ATT in ms, 50 to 5000. Start: search over ATT.
    Buxton et al., Magn. Reson. Med. 40 (1998). Written with (exp(x) - 1) / x, so that T1b = T1 is no division by zero.

    Args:
        t: from the labelling pulse to each image, ms.
        tau: duration of the bolus (TI1), ms.
        T1b, T1, lambd, alpha, fields: as in ASL.
    """

    name: ClassVar[str] = "PASL"

    def __init__(
        self,
        t: Sequence[float],
        tau: float,
        T1b: float = 1650.0,
        T1: float = 1330.0,
        lambd: float = 0.9,
        alpha: float = 0.98,
        fields: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        super().__init__(t, tau, T1b, T1, lambd, alpha, fields)

    def signal(self, unknowns: Sequence[Any]) -> Any:
        import tensorflow as tf

        parts = self.terms(unknowns)
        difference = parts["rate"] - 1 / parts["T1b"]
        inflow = tf.clip_by_value(parts["t"] - parts["arrival"], 0, parts["tau"])
        exponent = inflow * difference
        small = tf.abs(exponent) < 1e-3
        safe = tf.where(small, tf.ones_like(exponent), exponent)
        mean = tf.where(small, 1 + exponent / 2 + exponent**2 / 6, tf.math.expm1(safe) / safe)
        relaxed = tf.exp(parts["arrival"] * difference - parts["t"] * parts["rate"])
        return self.calibrated(parts["amplitude"] * relaxed * inflow * mean)
