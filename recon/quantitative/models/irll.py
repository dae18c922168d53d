"""T1 from repeated inversion recovery Look-Locker (IRLL), as PyQMRI's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from recon.quantitative.model import ModelError, Unknown
from recon.quantitative.sequence import FA_CORR, FLIP_ANGLE, FieldInput, SequenceModel, SequenceParameter
from recon.quantitative.tensors import column, decay, geometric_mean_power, times

_PYQMRI = "userParameters of the ISMRMRD header, attribute of the PyQMRI file"
TAU = SequenceParameter("tau", "ms", "spacing of the readouts", _PYQMRI, ("echo_spacing",), "scan", low=0.5, high=1000, suspect="seconds")
TIME_PER_SLICE = SequenceParameter(
    "time_per_slice", "ms", "from one inversion to the next of a slice", _PYQMRI, (), "scan", low=50, high=120000, suspect="seconds"
)
DELAY = SequenceParameter("gradient_delay", "ms", "from the inversion to the first readout", _PYQMRI, ("td",), "scan", high=60000)
FRAMES = SequenceParameter(
    "frames", "", "contrasts (groups of readouts) per inversion", "contrasts or bins of the data", ("NScan",), "scan", low=1
)
SPOKES = SequenceParameter("spokes", "", "readouts averaged in one frame", "readouts per frame", ("Nproj",), "scan", low=1)
MEASURED = SequenceParameter(
    "Nproj_measured", "", "readouts after each inversion", _PYQMRI, ("readouts_per_inversion",), "scan", required=False, low=1
)


class IRLL(SequenceModel):
    """Readout n after an inversion: S_n = M0 sin(a) [(E_tau cos a)^(n-1) (Q - F) + F], averaged over the readouts of a frame.

    F = (1 - E_tau) / (1 - E_tau cos a) is the steady state of the train, Q the magnetisation before its first readout when the
    whole (inversion, delay, N readouts, recovery) repeats: Q (1 + E_r E_d cos a (E_tau cos a)^(N-1)) =
    1 - 2 E_d + E_r E_d - E_r E_d F (1 - (E_tau cos a)^(N-1)) cos a; E_x = exp(-x / T1).

    Unknowns: M0 (complex), T1 in ms, 10 to 5500. Start: search over T1.
    Henderson et al., Magn. Reson. Imaging 17 (1999); Maier et al., Magn. Reson. Med. 81 (2019). The recovery lasts
    r = time_per_slice - gradient_delay - (N - 1) tau, so that the cycle lasts time_per_slice; PyQMRI takes one tau less.

    Args:
        time_per_slice: from one inversion to the next, ms.
        tau: spacing of readouts, ms.
        gradient_delay: from the inversion to the first readout, ms.
        flip_angle: of the readouts, degrees, below 90.
        frames: contrasts.
        spokes: readouts per frame.
        Nproj_measured: readouts N after each inversion; frames x spokes if not given.
        fields: fa_corr.
    """

    name: ClassVar[str] = "IRLL"
    parameters: ClassVar[tuple[SequenceParameter, ...]] = (
        TIME_PER_SLICE, TAU, DELAY, FLIP_ANGLE.one(), FRAMES, SPOKES, MEASURED,
    )  # fmt: skip
    inputs: ClassVar[tuple[FieldInput, ...]] = (FA_CORR,)
    grids: Mapping[str, np.ndarray] = {"T1": np.geomspace(50, 5000, 48)}

    def __init__(
        self,
        time_per_slice: float,
        tau: float,
        gradient_delay: float,
        flip_angle: float,
        frames: int,
        spokes: int,
        Nproj_measured: int | None = None,
        fields: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        given = self.read(
            time_per_slice=time_per_slice, tau=tau, gradient_delay=gradient_delay, flip_angle=flip_angle, frames=frames, spokes=spokes,
            Nproj_measured=Nproj_measured,
        )  # fmt: skip
        self.tau, self.delay, self.flip_angle = given["tau"], given["gradient_delay"], given["flip_angle"]
        self.spokes, contrasts = int(given["spokes"]), int(given["frames"])
        self.readouts = int(given["Nproj_measured"] or contrasts * self.spokes)
        if self.readouts < contrasts * self.spokes:
            raise ModelError(f"IRLL: {contrasts} frames of {self.spokes} readouts are more than the {self.readouts} after each inversion")
        self.rest = given["time_per_slice"] - self.delay - (self.readouts - 1) * self.tau
        if self.rest < 0:
            raise ModelError(
                f"IRLL: delay {self.delay:g} ms and {self.readouts} readouts every {self.tau:g} ms do not fit into "
                f"time_per_slice {given['time_per_slice']:g} ms"
            )
        if self.flip_angle >= 90:
            raise ModelError(f"IRLL: flip_angle must be below 90 degrees, not {self.flip_angle:g}")
        unknowns = [
            Unknown("M0", "", 0, 1000, 10, real=False, amplitude=True),
            Unknown("T1", "ms", 10, 5500, 1000),
        ]
        super().__init__(unknowns, contrasts, fields)

    def signal(self, unknowns: Sequence[Any]) -> Any:
        import tensorflow as tf

        M0, T1 = unknowns
        angle = self.field("fa_corr", T1) * np.deg2rad(self.flip_angle)
        cosine = tf.cos(angle)
        recovered = decay(self.tau / T1)
        rate = self.tau / T1 - tf.math.log(cosine)
        steady = recovered / (recovered + (1 - recovered) * 2 * tf.sin(angle / 2) ** 2)
        delay, rest = tf.exp(-self.delay / T1), tf.exp(-self.rest / T1)
        last = tf.exp(-(self.readouts - 1) * rate)
        first = (1 - 2 * delay + rest * delay * (1 - steady * (1 - last) * cosine)) / (1 + rest * delay * last * cosine)
        powers = geometric_mean_power(rate, column(np.arange(self.contrasts) * self.spokes, T1), self.spokes)
        return times(M0, tf.sin(angle) * (powers * (first - steady) + steady))
