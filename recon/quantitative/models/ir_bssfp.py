"""T1 and T2 together from inversion recovery balanced SSFP (IR-TrueFISP)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from recon.quantitative.model import Unknown
from recon.quantitative.models.irll import FRAMES, SPOKES
from recon.quantitative.sequence import FA_CORR, FLIP_ANGLE, TR, FieldInput, SequenceModel, SequenceParameter
from recon.quantitative.tensors import column, geometric_mean_power, times

DELAY = SequenceParameter(
    "delay",
    "ms",
    "from the inversion to the half-angle pulse",
    "userParameters of the ISMRMRD header",
    ("TI_first",),
    "scan",
    False,
    high=10000,
)


class IRbSSFP(SequenceModel):
    """Transient of balanced SSFP after an inversion and a half-angle pulse, on resonance, averaged over the readouts of a frame.

    After pulse n = 0, 1, ... the magnetisation (transverse, longitudinal) is m_n = m_ss + A^n (m_0 - m_ss) with
    A = [[-E2 cos a, E1 sin a], [E2 sin a, E1 cos a]] (alternating pulses), whose eigenvalues are real; S_n = exp(-TR / (2 T2)) times
    its transverse part. The well-known S_ss [1 - INV exp(-n TR / T1star)], 1 / T1star = cos^2(a/2) / T1 + sin^2(a/2) / T2 of
    Schmitt et al., Magn. Reson. Med. 51 (2004), is its slow part for TR << T2; this is exact.

    Unknowns: M0 (complex), T1 in ms, 50 to 6000, T2 in ms, 5 to 3000. Start: search over T1 and T2.

    Args:
        TR: spacing of the pulses, ms; echoes at TR / 2.
        flip_angle: degrees.
        frames: contrasts.
        spokes: readouts averaged in each frame.
        delay: from the inversion to the half-angle pulse, ms; TR / 2 before the first readout's pulse.
        efficiency: of the inversion.
        fields: fa_corr.
    """

    name: ClassVar[str] = "IRbSSFP"
    aliases: ClassVar[tuple[str, ...]] = ("IR_bSSFP", "IR-TrueFISP", "bSSFP")
    parameters: ClassVar[tuple[SequenceParameter, ...]] = (TR, FLIP_ANGLE.one(), FRAMES, SPOKES, DELAY)
    inputs: ClassVar[tuple[FieldInput, ...]] = (FA_CORR,)
    grids: Mapping[str, np.ndarray] = {"T1": np.geomspace(100, 5000, 24), "T2": np.geomspace(10, 2500, 20)}

    def __init__(
        self,
        TR: float,
        flip_angle: float,
        frames: int,
        spokes: int = 1,
        delay: float = 0.0,
        efficiency: float = 1.0,
        fields: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        given = self.read(TR=TR, flip_angle=flip_angle, frames=frames, spokes=spokes, delay=delay)
        self.TR, self.flip_angle, self.delay, self.efficiency = given["TR"], given["flip_angle"], given["delay"], float(efficiency)
        self.spokes = int(given["spokes"])
        unknowns = [
            Unknown("M0", "", 0, 1000, 5, real=False, amplitude=True),
            Unknown("T1", "ms", 50, 6000, 1000),
            Unknown("T2", "ms", 5, 3000, 80),
        ]
        super().__init__(unknowns, int(given["frames"]), fields)

    def signal(self, unknowns: Sequence[Any]) -> Any:
        import tensorflow as tf

        M0, T1, T2 = unknowns
        angle = self.field("fa_corr", T1) * np.deg2rad(self.flip_angle)
        sine, cosine = tf.sin(angle), tf.cos(angle)
        E1, E2 = tf.exp(-self.TR / T1), tf.exp(-self.TR / T2)
        # Before the first pulse: inversion, delay, half pulse, TR / 2; the transverse part changes sign as between all pulses.
        left = 1 - 2 * self.efficiency * tf.exp(-self.delay / T1)
        h1 = tf.exp(-self.TR / (2 * T1))
        x, z = -left * tf.sin(angle / 2) * tf.exp(-self.TR / (2 * T2)), 1 - (1 - left * tf.cos(angle / 2)) * h1
        x, z = x * cosine + z * sine, -x * sine + z * cosine
        scale = -tf.math.expm1(-self.TR / T1) / (1 - (E1 - E2) * cosine - E1 * E2)
        x_ss, z_ss = sine * scale, (cosine + E2) * scale
        # A^n by its eigenvalues: slow > 0, fast < 0.
        mean = (E1 - E2) * cosine / 2
        root = tf.sqrt(mean**2 + E1 * E2)
        slow, fast = mean + root, mean - root
        dx, dz = x - x_ss, z - z_ss
        # Transverse part of A d, with the signs of alternating pulses.
        moved = -E2 * cosine * dx + E1 * sine * dz
        part_slow, part_fast = (moved - fast * dx) / (slow - fast), (slow * dx - moved) / (slow - fast)
        first = np.arange(self.contrasts) * self.spokes
        slowly = geometric_mean_power(-tf.math.log(slow), column(first, T1), self.spokes)
        quickly = _alternating_mean_power(-tf.math.log(-fast), first, self.spokes)
        return times(M0, (x_ss + part_slow * slowly + part_fast * quickly) * tf.exp(-self.TR / (2 * T2)))


def _alternating_mean_power(rate: Any, first: np.ndarray, count: int) -> Any:
    """Means of (-exp(-rate))^n over n = first, ..., first + count - 1; rate above 0."""
    import tensorflow as tf

    begin = column((-1.0) ** first, rate) * tf.exp(-column(first, rate) * rate)
    return begin * (1 - (-1) ** count * tf.exp(-count * rate)) / (count * (1 + tf.exp(-rate)))
