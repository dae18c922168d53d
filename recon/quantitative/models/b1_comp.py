"""B1 from the Bloch-Siegert shift, with compensation of other phases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from recon.quantitative.model import Map, ModelError, Unknown
from recon.quantitative.sequence import TE, SequenceModel, SequenceParameter
from recon.quantitative.start import within
from recon.quantitative.tensors import column, turned

_SIGNS = SequenceParameter(
    "bss_sign", "", "sign of the Bloch-Siegert pulse's offset", "attribute of the PyQMRI file", high=1, negative=True
)
_PHASES = ("even_odd", "pos", "neg", "same")


class B1_comp(SequenceModel):
    """S_i = x_i exp(i (2 pi TE_i B0 - bss_i BSS + even_odd_i p2 + pos_i p3 + neg_i p4 + same_i p5)).

    Unknowns: magnitudes x_i of the N images (real), BSS, p2 to p5 in rad, -pi to pi, B0 in Hz, -5000 to 5000.
    Maps: image_i, B1 = sqrt(2 BSS / kbs) in uT, B0 and the phases. Start: magnitudes; the phases by least squares of
    the images' phases, unwrapped against the first image.
    Sacolick et al., Magn. Reson. Med. 63 (2010); Lesch et al., Magn. Reson. Med. 81 (2019). As PyQMRI's, whose documentation
    lacks the minus sign of BSS and whose B0 is in rad/ms.

    Args:
        TE: echo times, ms.
        bss_sign: sign of the pulse's frequency offset, +-1 (or 0), for each image.
        even_odd_sign, pos_offset, neg_offset, same_sign: factors of the other phases, for each image.
        kbs: Bloch-Siegert constant of the pulse, rad/T2.

    Raises:
        ModelError: as all models, and when the images do not tell the six phases apart (PyQMRI fits on).
    """

    name: ClassVar[str] = "B1_comp"
    aliases: ClassVar[tuple[str, ...]] = ("B1", "BlochSiegert")
    parameters: ClassVar[tuple[SequenceParameter, ...]] = (
        replace(TE, low=0.5),
        _SIGNS,
        *(
            replace(_SIGNS, name=name, text=f"factor of the phase {name}")
            for name in ("even_odd_sign", "pos_offset", "neg_offset", "same_sign")
        ),
        SequenceParameter("kbs", "rad/T2", "Bloch-Siegert constant", "attribute of the PyQMRI file", (), "scan", low=1e3, suspect="rad/G2"),
    )
    least = 6

    def __init__(
        self,
        TE: Sequence[float],
        bss_sign: Sequence[float],
        even_odd_sign: Sequence[float],
        pos_offset: Sequence[float],
        neg_offset: Sequence[float],
        same_sign: Sequence[float],
        kbs: float,
        fields: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        given = self.read(
            TE=TE,
            bss_sign=bss_sign,
            even_odd_sign=even_odd_sign,
            pos_offset=pos_offset,
            neg_offset=neg_offset,
            same_sign=same_sign,
            kbs=kbs,
        )
        self.kbs, count = given["kbs"], len(given["TE"])
        self.turns = np.stack(
            [
                -given["bss_sign"],
                2 * np.pi * given["TE"] / 1000,
                *(given[name] for name in ("even_odd_sign", "pos_offset", "neg_offset", "same_sign")),
            ]
        )
        """Phase of each image per unit of BSS, B0, p2, ..., p5: ``[6, contrast]``."""
        if np.linalg.matrix_rank(self.turns, 1e-9) < len(self.turns):
            raise ModelError(
                "B1_comp: the images do not tell apart the six phases (BSS, B0, even_odd, pos, neg, same): bss_sign, TE and the four "
                "factors must be linearly independent over the images"
            )
        unknowns = [
            *(Unknown(f"image_{n}", "", 0, 1000, 1, amplitude=True) for n in range(count)),
            Unknown("BSS", "rad", -np.pi, np.pi, 0),
            Unknown("B0", "Hz", -5000, 5000, 0),
            *(Unknown(f"phase_{name}", "rad", -np.pi, np.pi, 0) for name in _PHASES),
        ]
        super().__init__(unknowns, count, fields)

    def signal(self, unknowns: Sequence[Any]) -> Any:
        import tensorflow as tf

        images, phases = tf.stack(list(unknowns[: self.contrasts])), unknowns[self.contrasts :]
        return turned(images, sum(column(turn, phase) * phase for turn, phase in zip(self.turns, phases, strict=True)))

    def guess(self, images: np.ndarray) -> np.ndarray:
        flat = images.reshape(len(images), -1)
        relative = np.angle(flat * flat[:1].conj()) + np.angle(flat[:1])
        phases = np.linalg.lstsq(self.turns.T, relative, rcond=1e-6)[0]
        return within(self, np.concatenate([np.abs(flat), phases]).reshape(-1, *images.shape[1:])).astype(images.dtype)

    def maps(self, parameters: np.ndarray) -> dict[str, Map]:
        shown = super().maps(parameters)
        shift = shown.pop("BSS").values
        return {"B1": Map(1e6 * np.sqrt(2 * np.maximum(shift, 0) / self.kbs), "uT"), **shown}
