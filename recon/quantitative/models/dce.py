"""Perfusion and permeability from dynamic contrast-enhanced T1-weighted series (extended Tofts)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from recon.quantitative.model import ModelError, Unknown
from recon.quantitative.sequence import FA_CORR, FLIP_ANGLE, TR, FieldInput, SequenceModel, SequenceParameter
from recon.quantitative.tensors import column, decay, times

_WHERE = "userParameters of the ISMRMRD header, attribute of the PyQMRI file"
T = SequenceParameter(
    "t",
    "s",
    "time of each image",
    "acquisition_time_stamp, userParameters, attribute of the PyQMRI file",
    ("time",),
    low=5,
    high=1e4,
    suspect="minutes",
)
AIF = SequenceParameter("aif", "mM", "concentration in plasma at each image", _WHERE, ("Cp",), high=100)
R1 = SequenceParameter("r1", "1/s/mM", "relaxivity", _WHERE, ("relaxivity",), "scan", False, low=0.5, high=100, suspect="1/ms/mM")
T10 = SequenceParameter("T10", "ms", "T1 before the contrast agent", _WHERE, (), "scan", False, low=50, high=6000, suspect="seconds")


class DCE(SequenceModel):
    """Spoiled gradient echo S = M0 sin(a) (1 - E1) / (1 - E1 cos a), E1 = exp(-TR (1 / T10 + r1 C)),

    C(t) = vp Cp(t) + Ktrans integral Cp(s) exp(-Ktrans / ve (t - s)) ds, with Cp linear between the images and 0 before the first.

    Unknowns: M0 (complex), Ktrans in 1/min, 0 to 5, ve, 0.01 to 1, vp, 0 to 1. Start: search over all three.
    Tofts et al., J. Magn. Reson. Imaging 10 (1999). PyQMRI's DCE_Michal (a transit-time model that wants concentrations and their
    ground truth in the file) cannot be imported there; this is the model that scanners and QIBA use.

    Args:
        t: time of each image, s, increasing.
        aif: concentration in arterial plasma at each image, mM; see `population_aif`.
        TR: ms.
        flip_angle: degrees.
        r1: relaxivity, 1/s/mM.
        T10: T1 before the agent, ms, where the field T10 is not given.
        fields: T10 in ms, fa_corr.
    """

    name: ClassVar[str] = "DCE"
    aliases: ClassVar[tuple[str, ...]] = ("ExtendedTofts", "Tofts")
    parameters: ClassVar[tuple[SequenceParameter, ...]] = (T, AIF, TR, FLIP_ANGLE.one(), R1, T10)
    inputs: ClassVar[tuple[FieldInput, ...]] = (FieldInput("T10", "ms", "T1 before the contrast agent"), FA_CORR)
    grids: Mapping[str, np.ndarray] = {
        "Ktrans": np.geomspace(0.01, 1.5, 8),
        "ve": np.geomspace(0.05, 0.8, 5),
        "vp": np.array([0.0, 0.03, 0.1]),
    }

    def __init__(
        self,
        t: Sequence[float],
        aif: Sequence[float],
        TR: float,
        flip_angle: float,
        r1: float = 4.5,
        T10: float = 1400.0,
        fields: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        given = self.read(t=t, aif=aif, TR=TR, flip_angle=flip_angle, r1=r1, T10=T10)
        self.t, self.aif, self.TR, self.flip_angle, self.r1, self.T10 = (
            given[name] for name in ("t", "aif", "TR", "flip_angle", "r1", "T10")
        )
        if (np.diff(self.t) <= 0).any():
            raise ModelError("DCE: the times t of the images must increase")
        if not self.aif.any():
            raise ModelError("DCE: aif is 0 throughout; give the arterial plasma concentration, or take population_aif(t, arrival)")
        unknowns = [
            Unknown("M0", "", 0, 1000, 1, real=False, amplitude=True),
            Unknown("Ktrans", "1/min", 0, 5, 0.2),
            Unknown("ve", "", 0.01, 1, 0.3),
            Unknown("vp", "", 0, 1, 0.03),
        ]
        super().__init__(unknowns, len(self.t), fields)

    def signal(self, unknowns: Sequence[Any]) -> Any:
        import tensorflow as tf

        M0, Ktrans, ve, vp = unknowns
        concentration = self._concentration(Ktrans / 60, ve, vp)
        rate = 1 / self.field("T10", vp, self.T10) + self.r1 / 1000 * concentration
        angle = self.field("fa_corr", vp) * np.deg2rad(self.flip_angle)
        recovered = decay(self.TR * rate)
        return times(M0, tf.sin(angle) * recovered / (recovered + (1 - recovered) * 2 * tf.sin(angle / 2) ** 2))

    def _concentration(self, transfer: Any, ve: Any, vp: Any) -> Any:
        """C ``[contrast, *voxels]``: exact for a plasma concentration that is linear between the images."""
        import tensorflow as tf

        steps, rise = column(np.diff(self.t), vp), column(np.diff(self.aif), vp)
        exponent = transfer / ve * steps
        whole, ramp = _moments(exponent)
        none = tf.zeros_like(vp)[None]
        leaked = tf.concat([none, transfer * steps * (column(self.aif[:-1], vp) * whole + rise * ramp)], 0)
        kept = tf.concat([none, tf.exp(-exponent)], 0)
        # y_n = kept_n y_(n-1) + leaked_n in log2(n) steps (Hillis, Steele, Commun. ACM 29 (1986)).
        reach = 1
        while reach < self.contrasts:
            missing = tf.zeros_like(leaked[:reach])
            leaked += kept * tf.concat([missing, leaked[:-reach]], 0)
            kept *= tf.concat([missing, kept[:-reach]], 0)
            reach *= 2
        return vp * column(self.aif, vp) + leaked


def _moments(x: Any) -> tuple[Any, Any]:
    """Integrals over s in 0..1 of exp(-x (1 - s)) and of s exp(-x (1 - s)), for x >= 0, without cancellation near 0."""
    import tensorflow as tf

    small = x < 0.1
    safe = tf.where(small, tf.ones_like(x), x)
    whole = tf.where(small, 1 - x / 2 * (1 - x / 3 * (1 - x / 4 * (1 - x / 5 * (1 - x / 6 * (1 - x / 7))))), decay(safe) / safe)
    ramp = tf.where(
        small, 0.5 - x / 6 * (1 - x / 4 * (1 - x / 5 * (1 - x / 6 * (1 - x / 7 * (1 - x / 8))))), (safe - decay(safe)) / safe**2
    )
    return whole, ramp


def population_aif(t: Sequence[float], arrival: float, haematocrit: float = 0.42) -> np.ndarray:
    """Plasma concentration in mM at times `t` (s) of a standard dose that arrives at `arrival` (s): Parker's population average.

    Parker et al., Magn. Reson. Med. 56 (2006), for 0.1 mmol/kg.
    """
    minutes = (np.asarray(t, np.float64) - arrival) / 60
    since = np.maximum(minutes, 0)
    blood = sum(
        area / (width * np.sqrt(2 * np.pi)) * np.exp(-((since - centre) ** 2) / (2 * width**2))
        for area, width, centre in ((0.809, 0.0563, 0.17046), (0.330, 0.132, 0.365))
    )
    blood = blood + 1.050 * np.exp(-0.1685 * since) / (1 + np.exp(-38.078 * (since - 0.483)))
    return np.where(minutes > 0, blood, 0) / (1 - haematocrit)
