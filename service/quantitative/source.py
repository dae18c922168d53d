"""Data to fit, whatever kind of file they came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from recon.quantitative.measured import Measured


class SourceError(ValueError):
    """Data cannot be fitted as they are; the text says why and what to do."""


@dataclass(eq=False)
class Source:
    """Data to fit.

    Attributes:
        slices: `[y, x]` each, in order, or one volume `[z, y, x]`.
        parameters: of the sequence, by the names that models ask for; times in ms, angles in degrees, b-values in s/mm2.
        affine: of voxel (row, column, slice) to mm in NIfTI's axes (right, anterior, superior).
        fields: per-voxel inputs by name, `[z, y, x]` or `[contrast, z, y, x]`.
        magnitudes: the images have no phase.
        spacing: pixel size over distance of slices.
        notes: what the user should know about how the data were read.
    """

    slices: list[Measured]
    parameters: dict[str, Any]
    affine: np.ndarray = field(default_factory=lambda: np.eye(4))
    fields: dict[str, np.ndarray] = field(default_factory=dict)
    magnitudes: bool = False
    spacing: float = 1.0
    notes: list[str] = field(default_factory=list)

    @property
    def contrasts(self) -> int:
        """Number of contrasts."""
        return self.slices[0].contrasts

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels of the maps, (z, y, x)."""
        shape = self.slices[0].shape
        return (len(self.slices), *shape) if len(shape) == 2 else shape  # type: ignore[return-value]

    @property
    def norm(self) -> float:
        """Root of the summed squares of all data."""
        return float(np.sqrt(sum(np.sum(np.abs(one.data) ** 2, dtype=np.float64) for one in self.slices)))

    def central(self, count: int) -> Source:
        """So many slices about the middle. Raises `SourceError` for more than there are."""
        depth = self.shape[0]
        if not 1 <= count <= depth:
            raise SourceError(f"{count} slices asked for (--slices), the data have {depth}")
        first = (depth - count) // 2
        chosen = slice(first, first + count)
        moved = self.affine.copy()
        moved[:3, 3] += self.affine[:3, 2] * first
        fields = {name: values[..., chosen, :, :] for name, values in self.fields.items()}
        if len(self.slices) == 1 and len(self.slices[0].shape) == 3:
            if count == depth:
                return self
            raise SourceError("--slices is for scans of several slices; a volume that was encoded as one is fitted as one")
        return Source(self.slices[chosen], self.parameters, moved, fields, self.magnitudes, self.spacing, self.notes)


def affine_of(rows: np.ndarray, columns: np.ndarray, slices: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """Affine of voxel (row, column, slice) in NIfTI's axes.

    Args:
        rows, columns, slices: steps in mm in the patient's axes of DICOM (left, posterior, superior) from a row, column or slice to
            the next.
        origin: position of the first voxel there, mm.
    """
    affine = np.eye(4)
    affine[:3] = np.diag([-1.0, -1.0, 1.0]) @ np.stack([rows, columns, slices, origin], 1)
    return affine
