"""Diffusion tensor imaging."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from recon.quantitative.model import Map, SignalModel, Unknown
from recon.quantitative.models import diffusion_tensor
from recon.quantitative.sequence import B_VALUE, DIRECTIONS, PHASE, FieldInput, SequenceModel, SequenceParameter
from recon.quantitative.start import log_linear, project
from recon.quantitative.tensors import times


class DiffdirLL(SequenceModel):
    """S_i = M0 exp(-b_i g_i^T D g_i) exp(i phase_i), D = L L^T.

    Unknowns: M0 (complex), the six entries of the lower triangular L in sqrt(1e-3 mm2/s), -5 to 5. Maps: M0, the entries of D,
    MD, AD, RD in 1e-3 mm2/s, FA. Start: weighted log-linear tensor fit, made positive definite.
    Basser et al., Biophys. J. 66 (1994); Koay et al., J. Magn. Reson. 182 (2006) for the Cholesky factor.
    Phases as in Diff; PyQMRI has none here.

    Args:
        b_value: s/mm2, one for each contrast.
        DWI_dir: directions ``[contrast, 3]``, normalised here; zero where b is 0.
        fields: phase in rad, ``[contrast, *voxels]``.
    """

    name: ClassVar[str] = "DiffdirLL"
    aliases: ClassVar[tuple[str, ...]] = ("DTI",)
    parameters: ClassVar[tuple[SequenceParameter, ...]] = (B_VALUE, DIRECTIONS)
    inputs: ClassVar[tuple[FieldInput, ...]] = (PHASE,)

    def __init__(
        self, b_value: Sequence[float], DWI_dir: Sequence[Sequence[float]], fields: Mapping[str, np.ndarray] | None = None
    ) -> None:
        given = self.read(b_value=b_value, DWI_dir=DWI_dir)
        self.b = given["b_value"] / 1000
        self.directions = diffusion_tensor.directions(self.name, given["DWI_dir"], self.b)
        unknowns = [Unknown("M0", "", 0, 100, 1, real=False, amplitude=True), *diffusion_tensor.unknowns()]
        super().__init__(unknowns, len(self.b), fields)

    def adapted(self, images: np.ndarray) -> SignalModel:
        return self.with_phases(images)

    def signal(self, unknowns: Sequence[Any]) -> Any:
        import tensorflow as tf

        M0, *factors = unknowns
        return self.phased(times(M0, tf.exp(-diffusion_tensor.weighted(factors, self.directions, self.b))))

    def guess(self, images: np.ndarray) -> np.ndarray:
        design = np.concatenate([np.ones((len(self.b), 1)), -diffusion_tensor.design(self.directions, self.b)], 1)
        factors = diffusion_tensor.factorised(log_linear(images, design)[1:])
        return project(self, images, np.concatenate([np.ones_like(factors[:1]), factors]))

    def maps(self, parameters: np.ndarray) -> dict[str, Map]:
        return {"M0": Map(parameters[0], ""), **diffusion_tensor.tensor_maps(parameters[1:])}
