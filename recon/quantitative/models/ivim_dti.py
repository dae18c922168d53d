"""Intravoxel incoherent motion with a diffusion tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from recon.quantitative.model import Map, SignalModel, Unknown
from recon.quantitative.models import diffusion_tensor
from recon.quantitative.sequence import B_VALUE, DIRECTIONS, PHASE, FieldInput, SequenceModel, SequenceParameter
from recon.quantitative.start import log_linear, project
from recon.quantitative.tensors import column, times

_SLOW = 0.2
"""Above this b-value (ms/um2) the perfusion part is gone."""


class IvimDTI(SequenceModel):
    """S_i = M0 (f exp(-b_i Dstar) + (1 - f) exp(-b_i g_i^T D g_i)) exp(i phase_i), D = L L^T.

    Unknowns: M0 (complex), the six entries of L in sqrt(1e-3 mm2/s), f, 1e-4 to 0.9999, Dstar in 1e-3 mm2/s, 5 to 300.
    Maps: M0, D's as in DiffdirLL, f, Dstar. Start: tensor of the b-values from 200 s/mm2 on, f from what it leaves at b = 0.
    Phases as in Diff.

    Args:
        b_value: s/mm2, one for each contrast.
        DWI_dir: directions ``[contrast, 3]``.
        fields: phase in rad, ``[contrast, *voxels]``.
    """

    name: ClassVar[str] = "IvimDTI"
    parameters: ClassVar[tuple[SequenceParameter, ...]] = (B_VALUE, DIRECTIONS)
    inputs: ClassVar[tuple[FieldInput, ...]] = (PHASE,)

    def __init__(
        self, b_value: Sequence[float], DWI_dir: Sequence[Sequence[float]], fields: Mapping[str, np.ndarray] | None = None
    ) -> None:
        given = self.read(b_value=b_value, DWI_dir=DWI_dir)
        self.b = given["b_value"] / 1000
        self.distinct("b_value", self.b, 4)
        self.directions = diffusion_tensor.directions(self.name, given["DWI_dir"], self.b)
        unknowns = [
            Unknown("M0", "", 0, 100, 1, real=False, amplitude=True),
            *diffusion_tensor.unknowns(),
            Unknown("f", "", 1e-4, 0.9999, 0.1),
            Unknown("Dstar", "1e-3 mm2/s", 5, 300, 50),
        ]
        super().__init__(unknowns, len(self.b), fields)

    def adapted(self, images: np.ndarray) -> SignalModel:
        return self.with_phases(images)

    def signal(self, unknowns: Sequence[Any]) -> Any:
        import tensorflow as tf

        M0, *factors, f, Dstar = unknowns
        slow = tf.exp(-diffusion_tensor.weighted(factors, self.directions, self.b))
        return self.phased(times(M0, f * tf.exp(-column(self.b, f) * Dstar) + (1 - f) * slow))

    def guess(self, images: np.ndarray) -> np.ndarray:
        design = np.concatenate([np.ones((len(self.b), 1)), -diffusion_tensor.design(self.directions, self.b)], 1)
        late = self.b >= _SLOW
        if np.linalg.matrix_rank(design[late], 1e-6) < 7:
            late = np.ones_like(late)
        tissue, *tensor = log_linear(images[late], design[late])
        whole = np.abs(images[self.b == self.b.min()]).mean(0)
        f = np.clip(1 - np.exp(tissue) / np.maximum(whole, 1e-12), 0.02, 0.6)
        factors = diffusion_tensor.factorised(np.stack(tensor))
        return project(self, images, np.stack([np.ones_like(f), *factors, f, np.full_like(f, 30)]))

    def maps(self, parameters: np.ndarray) -> dict[str, Map]:
        M0, *factors, f, Dstar = parameters
        return {
            "M0": Map(M0, ""),
            **diffusion_tensor.tensor_maps(np.stack(factors)),
            "f": Map(f.real, ""),
            "Dstar": Map(Dstar.real, "1e-3 mm2/s"),
        }
