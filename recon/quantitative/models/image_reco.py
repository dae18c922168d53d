"""No model: the images themselves, for joint regularisation of a series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from recon.quantitative.model import Unknown
from recon.quantitative.sequence import SequenceModel, SequenceParameter

CONTRASTS = SequenceParameter("contrasts", "", "number of images", "contrasts of the data", ("NScan",), "scan", low=1)


class ImageReco(SequenceModel):
    """S_i = x_i: one complex unknown for each contrast. Start: the images.

    PyQMRI starts at the images times their scale, and so that factor off; here at the images.

    Args:
        contrasts: number of images.
    """

    name: ClassVar[str] = "ImageReco"
    aliases: ClassVar[tuple[str, ...]] = ("Images",)
    parameters: ClassVar[tuple[SequenceParameter, ...]] = (CONTRASTS,)

    def __init__(self, contrasts: int, fields: Mapping[str, np.ndarray] | None = None) -> None:
        count = int(self.read(contrasts=contrasts)["contrasts"])
        super().__init__([Unknown(f"image_{n}", "", 0, 1000, 0, real=False, amplitude=True) for n in range(count)], count, fields)

    def signal(self, unknowns: Sequence[Any]) -> Any:
        import tensorflow as tf

        return tf.stack(list(unknowns))

    def guess(self, images: np.ndarray) -> np.ndarray:
        return np.array(images)
