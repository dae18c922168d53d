"""Compressed sensing of Cartesian scans."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from gadgets.any_mask import AnyMaskRecon, Calibration
from gadgets.base import ParameterError, parameter
from recon.compressed_sensing import l1_wavelet, total_generalised_variation, total_variation
from recon.functionals.wavelet import L1Wavelet


class CompressedSensing(AnyMaskRecon):
    """Compressed sensing with sensitivities, 2D and 3D, any samples missing. ReconData -> ImageArray.

    Minimises |E x - y|^2 / 2 + R(x), R being the l1 norm of wavelet coefficients (Lustig, Donoho, Pauly, Magn. Reson. Med. 58
    (2007)), total variation (Block, Uecker, Frahm, Magn. Reson. Med. 57 (2007)) or total generalised variation (Knoll et al., Magn.
    Reson. Med. 65 (2011)). See `recon.compressed_sensing`; the calibration: `AnyMaskRecon`. Needs irregular (random, Poisson-disc)
    sampling with a fully sampled centre to be better than SENSE. With several `map_sets` (soft-SENSE) the image is the root of the sum of
    squares of those of the sets.
    """

    method: Literal["l1_wavelet", "total_variation", "tgv"] = parameter("l1_wavelet", help="what makes the image simple")
    weight: float = parameter(0.002, ge=0, help="of it, as a fraction of the brightest pixel of the zero-filled image")
    iterations: int = parameter(50, ge=1, help="of FISTA (l1_wavelet), ADMM (total_variation) or the primal-dual method (tgv)")
    map_sets: int = parameter(
        1,
        ge=1,
        le=4,
        help="2 for objects that are larger than the field of view and fold over themselves: sets of ESPIRiT's maps (soft-SENSE)",
    )
    wavelet: str = parameter("db2", help="an orthogonal wavelet: haar, db2 to db38, sym2 to sym20, coif1 to coif17")

    def __init__(self, name: str = "", /, **properties: Any) -> None:
        super().__init__(name, **properties)
        if self.map_sets > 1 and self.coil_maps != "espirit":
            raise ParameterError(f"{self.name}: map_sets={self.map_sets} needs coil_maps=espirit; other maps come as one set")
        try:
            L1Wavelet((256, 256), wavelet=self.wavelet, level=1)
        except ValueError as error:
            raise ParameterError(f"{self.name}: wavelet: {error}") from error

    def _image(self, kspace: np.ndarray, sampled: np.ndarray, calibration: Calibration) -> np.ndarray:
        flat = kspace.shape[1] == 1
        data, maps, mask = (kspace[:, 0], calibration.maps[:, :, 0], sampled[0]) if flat else (kspace, calibration.maps, sampled)
        sets = len(maps) > 1
        maps = maps if sets else maps[0]
        image: np.ndarray
        if self.method == "l1_wavelet":
            image = l1_wavelet(
                data, maps, mask=mask, weight=self.weight, wavelet=self.wavelet, level=None, iterations=self.iterations, sets=sets
            )
        elif self.method == "total_variation":
            axes = tuple(range(-mask.ndim, 0))
            image = total_variation(data, maps, mask=mask, weight=self.weight, axes=axes, iterations=self.iterations, sets=sets)
        else:
            image = total_generalised_variation(data, maps, mask=mask, weight=self.weight, iterations=self.iterations, sets=sets)
        return (_together(image) if sets else image).reshape(sampled.shape)


def _together(images: np.ndarray) -> np.ndarray:
    """One image of those of several sets of maps `[set, ...]`, which share no signal: their energy, with the phase of the first."""
    phase = np.exp(1j * np.angle(images[0]))
    image: np.ndarray = (np.linalg.norm(images, axis=0) * phase).astype(images.dtype)
    return image
