"""Fourier transform and channel combination as steps of their own, as Gadgetron's EPI chain has them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gadgets.base import Gadget, Stream
from gadgets.geometry import central_header, image_header
from gadgets.items import Acquisition, Image, Item, ReconData
from gadgets.layout import ACQUISITION_HEADER, Flag, blank
from gadgets.meta import describe
from recon.fourier import fftc, ifftc


class ReadoutFFT(Gadget):
    """Readouts from image space to k-space (orthonormal). Acquisition -> Acquisition. Noise readouts pass."""

    stock = (("gadgetron_epi", "FFTXGadget"),)
    pure = True

    def __call__(self, items: Stream) -> Iterator[Item]:
        for acquisition in items.of(Acquisition):
            if acquisition.is_flag_set(Flag.IS_NOISE_MEASUREMENT):
                yield acquisition
            else:
                yield acquisition.with_data(fftc(acquisition.data, 1), acquisition.trajectory)


class FFT(Gadget):
    """Inverse Fourier transform of every k-space, one complex image with all channels for each N, S and LOC.

    ReconData -> Image. The matrix is that of the k-space, image indices count from 1, the series is 0. Geometry, counters and time
    stamps come from the readout nearest the centre of k-space. Calibration data are not used.
    """

    stock = (("gadgetron_mricore", "FFTGadget"),)

    def __call__(self, items: Stream) -> Iterator[Item]:
        count = 0
        for recon_data in items.of(ReconData):
            for space, bit in enumerate(recon_data.bits):
                buffer, limits = bit.data, bit.data.sampling["sampling_limits"]
                for index in np.ndindex(buffer.headers.shape[:3]):
                    count += 1
                    acquired = central_header(buffer.headers[index], limits[1]["center"], limits[2]["center"])
                    acquisition = blank(ACQUISITION_HEADER) if acquired is None else acquired
                    image = ifftc(buffer.data[index], (-3, -2, -1))
                    header = image_header(
                        acquisition, image.shape[:0:-1], buffer.sampling["recon_FOV"], series=0, index=(count - 1) % 65535 + 1
                    )
                    meta = describe(
                        items.header, sampling=buffer.sampling, acquisition_header=acquisition, image_number=count, encoding=space
                    )
                    yield Image(header, image, meta)


class Combine(Gadget):
    """Channels combined as root sum of squares, with the phase of their sum weighted by magnitude. Image -> Image.

    Real-valued images and those of one channel pass.
    """

    stock = (("gadgetron_mricore", "CombineGadget"),)
    pure = True

    def __call__(self, items: Stream) -> Iterator[Item]:
        for image in items.of(Image):
            if image.data.shape[0] == 1 or not np.iscomplexobj(image.data):
                yield image
                continue
            magnitude = np.abs(image.data)
            phase = np.angle((magnitude * image.data).sum(0, keepdims=True))
            combined = np.sqrt((magnitude**2).sum(0, keepdims=True)) * np.exp(1j * phase)
            yield image.with_data(combined.astype(image.data.dtype, copy=False))
