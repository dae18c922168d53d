"""T2 from multi-echo spin echo with imperfect refocusing: stimulated echoes by extended phase graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from recon.quantitative.model import Map, ModelError, Unknown
from recon.quantitative.sequence import FA_CORR, TE, FieldInput, SequenceModel, SequenceParameter
from recon.quantitative.tensors import column, real_like, times

_WHERE = "userParameters of the ISMRMRD header, attribute of the PyQMRI file"
REFOCUSING = SequenceParameter(
    "refocusing_angle", "deg", "refocusing angles", _WHERE, ("refocusing_deg",), required=False, low=1.6, high=360, suspect="radians"
)
EXCITATION = SequenceParameter(
    "excitation_angle",
    "deg",
    "excitation angle",
    "sequenceParameters/flipAngle_deg",
    (),
    "scan",
    False,
    low=1.6,
    high=180,
    suspect="radians",
)
T1 = SequenceParameter("T1", "ms", "T1 of tissue", _WHERE, (), "scan", False, low=50, high=10000, suspect="seconds")


class EPG(SequenceModel):
    """Echo amplitudes of a CPMG train with echo spacing TE_1 by extended phase graphs, times M0.

    Unknowns: M0 (complex), R2 in 1/s, 0.33 to 1000, and with `fit_b1` the factor B1 of all angles, 0.4 to where the
    largest refocusing angle reaches 180 degrees (beyond, signals repeat). Maps: M0, T2 in ms, B1. Start: search over R2 and B1.
    Hennig, J. Magn. Reson. 78 (1988); Weigel, J. Magn. Reson. Imaging 41 (2015); Lebel, Wilman, Magn. Reson. Med. 64 (2010).
    Recovered longitudinal magnetisation reaches pulses in states of even order, and echoes come from odd ones: it is left out, exactly.

    Args:
        TE: echo times, ms: multiples n TE_1, n = 1, 2, ...
        refocusing_angle: degrees, one for all echoes or one for each; 180 if not given.
        excitation_angle: degrees.
        T1: ms, where the field T1 is not given; of little influence.
        fit_b1: fit B1.
        fields: fa_corr (factor of all angles), T1 in ms.
    """

    name: ClassVar[str] = "EPG"
    aliases: ClassVar[tuple[str, ...]] = ("T2_EPG", "MultiEchoT2", "CPMG")
    parameters: ClassVar[tuple[SequenceParameter, ...]] = (TE, REFOCUSING, EXCITATION, T1)
    inputs: ClassVar[tuple[FieldInput, ...]] = (FA_CORR, FieldInput("T1", "ms", "T1 of tissue"))

    def __init__(
        self,
        TE: Sequence[float],
        refocusing_angle: Sequence[float] | float | None = None,
        excitation_angle: float = 90.0,
        T1: float = 1000.0,
        fit_b1: bool = False,
        fields: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        given = self.read(TE=TE, excitation_angle=excitation_angle, T1=T1)
        echoes, self.excitation, self.T1 = given["TE"], given["excitation_angle"], given["T1"]
        self.spacing = float(echoes[0])
        if not np.allclose(echoes, self.spacing * np.arange(1, len(echoes) + 1), rtol=1e-3):
            raise ModelError(f"EPG: echo times must be the multiples 1, 2, 3, ... of the first, not {echoes.tolist()}")
        angles = self.read(refocusing_angle=180.0 if refocusing_angle is None else refocusing_angle)["refocusing_angle"]
        if len(angles) not in (1, len(echoes)):
            raise ModelError(f"EPG: {len(angles)} refocusing angles for {len(echoes)} echoes; give one, or one for each")
        self.refocusing = np.broadcast_to(angles, len(echoes))
        highest = min(1.6, 180 / float(self.refocusing.max()))
        unknowns = [
            Unknown("M0", "", 0, 100, 1, real=False, amplitude=True),
            Unknown("R2", "1/s", 1 / 3, 1000, 15),
            *([Unknown("B1", "", 0.4, highest, min(1.0, highest))] if fit_b1 else []),
        ]
        self.grids = {"R2": 1000 / np.geomspace(5, 2000, 40), **({"B1": np.linspace(0.5, highest, 11)} if fit_b1 else {})}
        super().__init__(unknowns, len(echoes), fields)

    def signal(self, unknowns: Sequence[Any]) -> Any:
        import tensorflow as tf

        M0, R2, *factor = unknowns
        B1 = self.field("fa_corr", R2) * (factor[0] if factor else tf.ones_like(R2))
        E1, E2 = tf.exp(-self.spacing / self.field("T1", R2, self.T1)), tf.exp(-self.spacing / 1000 * R2)
        half = tf.exp(-self.spacing / 2000 * R2)
        # Real states for CPMG, [dephased, rephasing, stored] x orders 1, 3, 5, ... at a pulse. Higher orders cannot come back in time.
        orders = self.contrasts // 2 + 1
        begin = tf.sin(B1 * np.deg2rad(self.excitation)) * half
        state = tf.concat([begin[None], tf.zeros_like(tf.stack([begin] * (3 * orders - 1)))], 0)
        state = tf.reshape(state, [3, orders, *tf.unstack(tf.shape(begin))])
        source, present = _shift(orders)
        kept = tf.stack([E2, E2, E1 * tf.ones_like(E2)])[:, None] * tf.reshape(real_like(present, R2), [3, orders, *[1] * R2.shape.rank])
        echoes = []
        for turn in tf.unstack(_rotations(B1 * column(np.deg2rad(self.refocusing), R2))):
            state = tf.reduce_sum(turn[:, :, None] * state[None], 1)
            echoes.append(state[1, 0] * half)
            moved = tf.gather(tf.reshape(state, tf.concat([[3 * orders], tf.shape(begin)], 0)), source)
            state = kept * tf.reshape(moved, tf.shape(state))
        return times(M0, tf.stack(echoes))

    def maps(self, parameters: np.ndarray) -> dict[str, Map]:
        shown = super().maps(parameters)
        rate = shown.pop("R2").values
        return {"M0": shown.pop("M0"), "T2": Map(1000 / rate, "ms"), **shown}


def _rotations(angles: Any) -> Any:
    """What pulses of these angles ``[echo, *voxels]`` do to the three kinds of states, ``[echo, 3, 3, *voxels]``."""
    import tensorflow as tf

    sine, swap = tf.sin(angles), tf.sin(angles / 2) ** 2
    rows = [[1 - swap, swap, sine], [swap, 1 - swap, -sine], [-sine / 2, sine / 2, 1 - 2 * swap]]
    return tf.stack([tf.stack(row, 1) for row in rows], 1)


def _shift(orders: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each state comes from over one echo spacing, flat, and 1 where it comes from anywhere."""
    dephased, rephasing, stored = np.arange(3 * orders).reshape(3, orders)
    # The echo, order 0 between pulses, dephases anew.
    source = np.stack([np.append(rephasing[:1], dephased[:-1]), np.append(rephasing[1:], 0), stored])
    present = np.ones((3, orders))
    present[1, -1] = 0
    return source.ravel(), present.ravel()
