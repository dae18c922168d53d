"""Chemical exchange saturation transfer: sums of Lorentzian pools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from recon.quantitative.model import Unknown
from recon.quantitative.sequence import SequenceModel, SequenceParameter
from recon.quantitative.start import within
from recon.quantitative.tensors import column, times

OMEGA = SequenceParameter(
    "omega", "ppm", "offsets of saturation", "userParameters of the ISMRMRD header, attribute of the PyQMRI file", ("offsets_ppm",),
    low=0.5, high=400, suspect="a fraction", negative=True,
)  # fmt: skip
POOL = ("a", "width", "shift")


class CEST(SequenceModel):
    """Z-spectrum: S(w) = M0 (1 - sum_j a_j (G_j / 2)^2 / ((G_j / 2)^2 + (w_j - w)^2)), five pools.

    Unknowns: M0 (complex), and for each of water, APT, NOE, MT, amine: a (fraction), width G and shift w_j in ppm (absolute,
    not relative to water). Start: M0 from the largest image, the water shift where the spectrum is lowest, constants.
    Windschuh et al., NMR Biomed. 28 (2015); bounds as PyQMRI's. PyQMRI takes M0 as real, and needs
    images without phase.

    Args:
        omega: offsets of the saturation pulse, ppm.
    """

    name: ClassVar[str] = "CEST"
    aliases: ClassVar[tuple[str, ...]] = ("CEST_5Pool",)
    parameters: ClassVar[tuple[SequenceParameter, ...]] = (OMEGA,)
    # For each pool: (lower, start, upper) of a, of the width and of the shift.
    pools: ClassVar[Mapping[str, tuple[tuple[float, float, float], ...]]] = {
        "water": ((0.02, 0.9, 1), (0.3, 1.4, 10), (-1, 0, 1)),
        "APT": ((0, 0.07, 0.2), (0.1, 2, 4), (3, 3.5, 4)),
        "NOE": ((0, 0.08, 0.6), (0.5, 2.5, 10), (-4, -3.5, -2.5)),
        "MT": ((0, 0.1, 1), (10, 25, 99), (-8, -2, 0)),
        "amine": ((0, 0.05, 0.5), (0.1, 0.8, 3.5), (1.7, 2.2, 2.5)),
    }

    def __init__(self, omega: Sequence[float], fields: Mapping[str, np.ndarray] | None = None) -> None:
        self.omega = self.read(omega=omega)["omega"]
        unknowns = [Unknown("M0", "", 0, 100, 1, real=False, amplitude=True)]
        for pool, bounds in self.pools.items():
            for name, (lower, start, upper) in zip(POOL, bounds, strict=True):
                unknowns.append(Unknown(f"{pool}_{name}", "" if name == "a" else "ppm", lower, upper, start))
        self.distinct("omega", self.omega, len(unknowns))
        super().__init__(unknowns, len(self.omega), fields)

    def signal(self, unknowns: Sequence[Any]) -> Any:
        import tensorflow as tf

        M0, *rest = unknowns
        # [pool, contrast, *voxels]
        a, width, shift = (tf.stack(rest[n :: len(POOL)])[:, None] for n in range(len(POOL)))
        half = (width / 2) ** 2
        return times(M0, 1 - tf.reduce_sum(a * half / (half + (shift - column(self.omega, rest[0])) ** 2), 0))

    def guess(self, images: np.ndarray) -> np.ndarray:
        start = super().guess(images)
        far = np.argmax(np.abs(self.omega))
        start[0] = np.abs(images).max(0) * np.exp(1j * np.angle(images[far]))
        near = np.flatnonzero(np.abs(self.omega) <= 1.5)
        if near.size:
            start[3] = self.omega[near][np.argmin(np.abs(images[near]), 0)]
        return within(self, start).astype(images.dtype)
