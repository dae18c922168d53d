"""Sensitivity maps of the Cartesian chain, from a low-resolution k-space."""

from __future__ import annotations

from typing import Literal

import numpy as np

from gadgets.base import Gadget, parameter
from gadgets.generic import IGNORED, image_axes
from recon.coils import inati
from recon.fourier import ifftc
from recon.local_svd import local_svd_maps


class CoilMapGadget(Gadget):
    """Properties and coil maps that the Cartesian reconstructions share."""

    ignored = IGNORED

    image_series: int = parameter(0, help="number of the image series before the first")
    coil_map_algorithm: Literal["Inati", "Inati_Iter"] = parameter(
        "Inati", help="sensitivity maps from a decomposition of every neighbourhood (Inati) or by iteration (Inati_Iter)"
    )
    coil_map_kernel_size_readout: int = parameter(7, unit="pixels", ge=1, help="neighbourhood for the maps in the image plane")
    coil_map_kernel_size_phase: int = parameter(5, unit="pixels", ge=1, help="neighbourhood for the maps along E2")
    coil_map_num_iter: int = parameter(10, ge=1, help="iterations of Inati_Iter")
    coil_map_thres_iter: float = parameter(1e-4, ge=0, help="relative change that stops Inati_Iter")

    def maps(self, kspace: np.ndarray) -> np.ndarray:
        """Sensitivities of low-resolution k-spaces ``[LOC, S, N, CHA, E2, E1, E0]``, same shape."""
        images: np.ndarray = ifftc(kspace, image_axes(kspace))
        maps = np.empty_like(images)
        flat = images.shape[-3] == 1
        plane = self.coil_map_kernel_size_readout
        size = (plane, plane) if flat else (self.coil_map_kernel_size_phase, plane, plane)
        for where in np.ndindex(*images.shape[:3]):
            coils = images[where][:, 0] if flat else images[where]
            found = self._estimate(coils, size)
            maps[where] = found[:, None] if flat else found
        return maps

    def _estimate(self, images: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
        maps: np.ndarray
        if self.coil_map_algorithm == "Inati":
            maps = local_svd_maps(images, size)
        else:
            maps = inati(images, size, self.coil_map_num_iter, self.coil_map_thres_iter, rank=len(size))
        return maps


def zero_filled(kspace: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Zeros around k-space up to `shape` along the last three axes, the centre kept at n // 2."""
    if any(m > n for n, m in zip(shape, kspace.shape[-3:], strict=True)):
        raise ValueError(
            f"the calibration k-space {kspace.shape[-3:]} (E2, E1, RO) is larger than the imaging k-space {shape}; "
            "check the encoding space of the calibration readouts and their oversampling"
        )
    full = np.zeros((*kspace.shape[:-3], *shape), kspace.dtype)
    e2, e1, e0 = (slice(n // 2 - m // 2, n // 2 - m // 2 + m) for n, m in zip(shape, kspace.shape[-3:], strict=True))
    full[..., e2, e1, e0] = kspace
    return full
