"""SPIRiT of Cartesian scans."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from gadgets.any_mask import AnyMaskRecon, Calibration
from gadgets.base import ParameterError, parameter
from recon.fourier import ifftc
from recon.spirit import calibrate, fill

READOUT = 3
"""Samples of a volume's kernel along the readout, which is fully sampled."""


class CartesianSpirit(AnyMaskRecon):
    """SPIRiT, 2D and 3D, any samples missing. ReconData -> ImageArray.

    Every missing sample becomes the combination of its neighbours in all channels that holds in the calibration region; measured
    samples stay as they are. Lustig and Pauly, Magn. Reson. Med. 64 (2010). As GRAPPA, it needs no sensitivities, which serve
    to combine the channels only; unlike it, it takes any sampling. The calibration: `AnyMaskRecon`.
    """

    coil_maps: Literal["espirit", "image"] = parameter(
        "image", help="to combine the channels; image: by coil_map_algorithm from the low-resolution image; espirit: from k-space"
    )
    kernel_size: int = parameter(5, ge=3, unit="samples", help="edge of the kernel (odd), of a volume's along the phase encodings; 3 there")
    regularization: float = parameter(
        0.01, ge=0, help="Tikhonov weight of the kernel, relative to the mean diagonal", aliases=("regularisation",)
    )
    iterations: int = parameter(30, ge=1, help="most iterations; more fit noise, fewer leave aliasing")
    tolerance: float = parameter(1e-4, ge=0, help="stop when the residual falls below this fraction")

    def __init__(self, name: str = "", /, **properties: Any) -> None:
        super().__init__(name, **properties)
        if self.kernel_size % 2 == 0:
            raise ParameterError(f"{self.name}: kernel_size must be odd, not {self.kernel_size}")

    def _smallest_block(self) -> int:
        return max(super()._smallest_block(), self.kernel_size)

    def _kernel(self, block: np.ndarray) -> np.ndarray | None:
        flat = block.shape[1] == 1
        source = block[:, 0] if flat else block
        wanted = (self.kernel_size,) * 2 if flat else (self.kernel_size, self.kernel_size, READOUT)
        return calibrate(source, [min(k, n - 1 + n % 2) for k, n in zip(wanted, source.shape[1:], strict=True)], self.regularization)

    def _image(self, kspace: np.ndarray, sampled: np.ndarray, calibration: Calibration) -> np.ndarray:
        assert calibration.kernel is not None
        # Whole lines: no neighbours lie beyond the end of an asymmetric echo.
        lines = np.broadcast_to(sampled.any(axis=-1, keepdims=True), sampled.shape)
        if sampled.shape[0] == 1:
            images = ifftc(fill(kspace[:, 0], calibration.kernel, lines[0], self.iterations, self.tolerance), (-2, -1))[:, None]
        else:
            images = ifftc(fill(kspace, calibration.kernel, lines, self.iterations, self.tolerance), (-3, -2, -1))
        combined: np.ndarray = (calibration.maps[0].conj() * images).sum(axis=0)
        return combined
