"""Fast field cycling: T1 at several magnetic fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from recon.quantitative.model import ModelError, SignalModel, Unknown
from recon.quantitative.sequence import PHASE, FieldInput, SequenceModel, SequenceParameter
from recon.quantitative.start import within
from recon.quantitative.tensors import column, decay, times

_WHERE = "userParameters of the ISMRMRD header, attribute of the PyQMRI file"
EVOLUTION_TIMES = SequenceParameter(
    "t", "ms", "evolution time of every image, field after field", _WHERE, (), low=1, high=60000, suspect="seconds"
)
FIELDS = SequenceParameter("b", "T", "evolution fields", _WHERE, ("b_evo",), high=20)
POLARISATION = SequenceParameter(
    "b0", "T", "polarisation field; the first evolution field if not given", _WHERE, ("b_pol",), "scan", False, high=20
)

_T1 = np.geomspace(20, 3000, 40)


class FieldCycling(SequenceModel):
    """What the field-cycling models share: contrasts ordered field after field, one T1 for each field.

    Magnetisation in T after evolving for t at field b_j: sign b0 alpha exp(-t / T1_j) + (1 - exp(-t / T1_j)) b_j.
    """

    parameters: ClassVar[tuple[SequenceParameter, ...]] = (EVOLUTION_TIMES, FIELDS, POLARISATION)
    sign: ClassVar[float] = -1.0
    """-1 where the polarised magnetisation is inverted before it evolves."""

    def __init__(
        self, unknowns: Sequence[Unknown], t: Any, b: Any, b0: float | None, fields: Mapping[str, np.ndarray] | None, least: int
    ) -> None:
        given = self.read(t=np.asarray(t, object).ravel().tolist() if np.ndim(t) else t)
        self.t, self.b, self.b0 = given["t"], *self.magnets(b, b0)
        if len(self.t) % len(self.b):
            raise ModelError(f"{self.name}: {len(self.t)} times are no whole number of images for each of {len(self.b)} fields")
        self.t = self.t.reshape(len(self.b), -1)
        for times_ in self.t:
            self.distinct("t", times_, least)
        super().__init__(unknowns, self.t.size, fields)

    @classmethod
    def magnets(cls, b: Any, b0: float | None) -> tuple[np.ndarray, float]:
        """Evolution fields and polarisation field, T, checked."""
        fields = cls.read(b=b)["b"]
        return fields, float(fields[0]) if b0 is None else cls.read(b0=b0)["b0"]

    @staticmethod
    def count(b: Any) -> int:
        return int(np.atleast_1d(np.squeeze(b)).size)

    def magnetisation(self, j: int, alpha: Any, T1: Any) -> Any:
        """``[time, *voxels]`` of field j."""
        import tensorflow as tf

        exponent = column(self.t[j], T1) / T1
        return tf.exp(-exponent) * alpha * (self.sign * self.b0) + decay(exponent) * float(self.b[j])

    def relaxation(self, images: np.ndarray, magnitudes: bool) -> tuple[np.ndarray, np.ndarray]:
        """Amplitudes and T1 ``[field, *voxels]`` by search over T1 in each field, for alpha = 1."""
        series = images.reshape(*self.t.shape, -1)
        amplitudes, values = [], []
        for j, data in enumerate(series):
            shrunk = np.exp(-self.t[j][:, None] / _T1)
            atoms = self.sign * self.b0 * shrunk + (1 - shrunk) * self.b[j]
            atoms = np.abs(atoms) if magnitudes else atoms
            size = np.maximum(np.linalg.norm(atoms, axis=0), 1e-12)
            product = (atoms / size).T @ (np.abs(data) if magnitudes else data)
            best = np.argmax(np.abs(product), 0)
            amplitudes.append(product[best, np.arange(len(best))] / size[best])
            values.append(_T1[best])
        shape = (len(self.b), *images.shape[1:])
        return np.stack(amplitudes).reshape(shape), np.stack(values).reshape(shape)


class FFC(FieldCycling):
    """S_j(t) = C_j (-b0 alpha exp(-t / T1_j) + (1 - exp(-t / T1_j)) b_j), field j, times field after field.

    Unknowns: C_j (complex), alpha, 0.1 to 10, the efficiency of polarisation and inversion, T1_j in ms, 10 to 5000; weights of
    their regularisation 1, 30, 2 as in PyQMRI. Start: search over T1 in every field, alpha = 1.
    Broche et al., Sci. Rep. 9 (2019); Boedenler et al., Magn. Reson. Med. 86 (2021). PyQMRI bounds T1_j by 1000 |ln b0 / ln b_j|, which
    has no limit near 1 T; here a number.

    Args:
        t: evolution times, ms, ``[field, time]`` or all in a row.
        b: evolution fields, T.
        b0: polarisation field, T; b[0] if not given.
        fields: phase in rad of each image (instead of complex C_j alone).
    """

    name: ClassVar[str] = "FFC"
    inputs: ClassVar[tuple[FieldInput, ...]] = (PHASE,)
    magnitudes: ClassVar[bool] = False
    """Whether only the magnitude of the signal is modelled, with the images' own phases."""

    def __init__(self, t: Any, b: Sequence[float], b0: float | None = None, fields: Mapping[str, np.ndarray] | None = None) -> None:
        count = self.count(b)
        unknowns = [
            *(Unknown(f"C_{n + 1}", "1/T", 0, 1e4, 1, real=self.magnitudes, amplitude=True) for n in range(count)),
            *self.alphas(),
            *(Unknown(f"T1_{n + 1}", "ms", 10, 5000, 150, weight=self.weights[1]) for n in range(count)),
        ]
        super().__init__(unknowns, t, b, b0, fields, 3)

    weights: ClassVar[tuple[float, float]] = (30, 2)

    def alphas(self) -> list[Unknown]:
        return [Unknown("alpha", "", 0.1, 10, 1, weight=self.weights[0])]

    def adapted(self, images: np.ndarray) -> SignalModel:
        return self.with_phases(images, relative=False) if self.magnitudes else self

    def signal(self, unknowns: Sequence[Any]) -> Any:
        import tensorflow as tf

        count = len(self.b)
        C, alpha, T1 = unknowns[:count], unknowns[count], unknowns[count + 1 :]
        signal = tf.concat([times(C[j], self.magnetisation(j, alpha, T1[j])) for j in range(count)], 0)
        return self.phased(tf.abs(signal) if self.magnitudes else signal)

    def guess(self, images: np.ndarray) -> np.ndarray:
        _, images = self.unphased(images)
        C, T1 = self.relaxation(images, self.magnitudes)
        return within(self, np.concatenate([C, np.ones_like(T1[:1]), T1])).astype(images.dtype)
