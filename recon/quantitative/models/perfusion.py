"""What the models of arterial spin labelling share: unknowns, blood and tissue constants, the images' scale."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from recon.quantitative.model import SignalModel, Unknown
from recon.quantitative.sequence import PHASE, FieldInput, SequenceModel, SequenceParameter
from recon.quantitative.start import within
from recon.quantitative.tensors import column, real_like, turned

_WHERE = "userParameters of the ISMRMRD header, attribute of the PyQMRI file"
TIMES = SequenceParameter(
    "t", "ms", "from the start of labelling to the image", _WHERE, ("time",), low=100, high=20000, suspect="seconds or minutes"
)
TAU = SequenceParameter(
    "tau", "ms", "duration of the label", _WHERE, ("label_duration",), "scan", low=50, high=10000, suspect="seconds or minutes"
)
T1B = SequenceParameter("T1b", "ms", "T1 of blood", _WHERE, (), "scan", False, low=100, high=5000, suspect="seconds or minutes")
T1 = SequenceParameter("T1", "ms", "T1 of tissue", _WHERE, ("T1_tissue",), "scan", False, low=100, high=5000, suspect="seconds or minutes")
LAMBDA = SequenceParameter("lambd", "ml/g", "blood-tissue partition coefficient", _WHERE, ("lambda",), "scan", False, low=0.3, high=1.5)
ALPHA = SequenceParameter("alpha", "", "labelling efficiency", _WHERE, (), "scan", False, low=0.2, high=1)
M0 = FieldInput("M0", "as the data", "image of the equilibrium magnetisation, in the data's scale", (), required=True, complex=True)

PER_MS = 1 / 6e6
"""One ml/100g/min in ml/g/ms."""


class Perfusion(SequenceModel):
    """Unknowns CBF in ml/100g/min, 0 to 300, and ATT (arterial transit time) in ms, 50 to 5000; both real.

    PyQMRI works in minutes and takes a complex CBF; here a complex M0 image, or the images' common phase, makes it real.
    """

    parameters: ClassVar[tuple[SequenceParameter, ...]] = (TIMES, TAU, T1B, T1, LAMBDA, ALPHA)
    inputs: ClassVar[tuple[FieldInput, ...]] = (
        M0,
        PHASE,
        *(replace(M0, name=p.name, unit=p.unit, text=p.text, required=False, complex=False) for p in (T1B, T1, LAMBDA, ALPHA)),
    )
    least = 2

    def __init__(
        self,
        t: Sequence[float],
        tau: float,
        T1b: float = 1650.0,
        T1: float = 1330.0,
        lambd: float = 0.9,
        alpha: float = 0.85,
        fields: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.constants = self.read(t=t, tau=tau, T1b=T1b, T1=T1, lambd=lambd, alpha=alpha)
        self.distinct("t", self.constants["t"], 2)
        unknowns = [Unknown("CBF", "ml/100g/min", 0, 300, 50), Unknown("ATT", "ms", 50, 5000, 1000)]
        super().__init__(unknowns, len(self.constants["t"]), fields)

    def adapted(self, images: np.ndarray) -> SignalModel:
        """With a real M0 the images' common phase, that of their sum, which is positive in any voxel with blood flow."""
        if "phase" in self.fields or np.iscomplexobj(self.fields["M0"]):
            return self
        model = copy.copy(self)
        model.fields = {**self.fields, "phase": np.angle(images.sum(0))}
        return model

    def scaled(self, factor: float) -> SignalModel:
        model = copy.copy(self)
        model.fields = {**self.fields, "M0": self.fields["M0"] * factor}
        return model

    def guess(self, images: np.ndarray) -> np.ndarray:
        """ATT by search; CBF by least squares, repeated once because the signal is not quite linear in it."""
        model, images = self.unphased(images)
        voxels = images.shape[1:]
        best = np.full(voxels, np.inf)
        start = np.zeros((2, *voxels))
        for arrival in np.geomspace(200, 3500, 24):
            CBF = np.full(voxels, 50.0)
            for _ in range(2):
                signal = np.asarray(model(np.stack([CBF, np.full(voxels, arrival)]).astype(images.dtype)))
                power = np.maximum((np.abs(signal) ** 2).sum(0), np.finfo(np.float32).tiny)
                CBF = np.clip(CBF * (signal.conj() * images).sum(0).real / power, 1, 300)
            signal = np.asarray(model(np.stack([CBF, np.full(voxels, arrival)]).astype(images.dtype)))
            error = (np.abs(signal - images) ** 2).sum(0)
            better = error < best
            best = np.where(better, error, best)
            start = np.where(better, np.stack([CBF, np.full(voxels, arrival)]), start)
        return within(self, start).astype(images.dtype)

    def terms(self, unknowns: Sequence[Any]) -> dict[str, Any]:
        """Tensors of the equations: t, T1b, tau, arrival, the rate R = 1 / T1 + f / lambd, and the amplitude 2 alpha f / lambd."""
        CBF, arrival = unknowns
        given = {name: self.field(name, CBF, self.constants[name]) for name in ("T1b", "T1", "lambd", "alpha")}
        flow = CBF * PER_MS / given["lambd"]
        return {
            "t": column(self.constants["t"], CBF),
            "tau": self.constants["tau"],
            "arrival": arrival,
            "T1b": given["T1b"],
            "rate": 1 / given["T1"] + flow,
            "amplitude": 2 * given["alpha"] * flow,
        }

    def calibrated(self, relative: Any) -> Any:
        """A signal relative to M0, times M0, with its phase."""
        import tensorflow as tf

        scale = tf.convert_to_tensor(self.fields["M0"])
        if scale.dtype.is_complex:
            phase = tf.math.angle(scale)
            return self.phased(turned(relative * real_like(tf.abs(scale), relative), real_like(phase, relative)))
        return self.phased(relative * real_like(scale, relative))
