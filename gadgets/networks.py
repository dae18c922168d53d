"""Networks in the stream: images of a running series, denoised."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gadgets.base import Context, Gadget, ParameterError, Stream, parameter
from gadgets.items import Image, Item
from gadgets.layout import ImageType
from gadgets.network_marks import NetworkMarks, attempt
from recon import device

if TYPE_CHECKING:
    from recon.networks.denoiser import Denoiser

Series = tuple[int, ...]
SIGNED = (ImageType.PHASE, ImageType.REAL, ImageType.IMAG)
"""Types of image whose sign matters; it would be lost."""


class NetworkDenoise(Gadget):
    """Denoise images by a network, one image or a sliding window of them at a time.

    Image -> Image, magnitudes in floating point. With `frames` above 1 the network sees the last `frames` images of a series (slice,
    contrast, set, phase, image series), the oldest first, and gives the newest: no look-ahead. It is scaled by those images alone, so
    that an image never depends on what came before its window.

    When the network fails or its result is not finite, the image goes out as it came, marked (`NetworkFailed` in its attributes),
    counted and warned of once. So do images that the network cannot take (sizes, several channels), and those of a series that ends
    before it fills a window.
    """

    weights: str = parameter(help="name in the catalogue of weights, or path of a .keras, .onnx, .h5 file, SavedModel or checkpoint")
    network: Literal["catalogue", "FastDVDnet", "DnCNN"] = parameter(
        "catalogue", help="what a file of weights alone belongs to; not needed for names and whole models"
    )
    frames: int | None = parameter(None, ge=1, le=64, unit="frames", help="images that the network sees at once; none: as the weights say")
    scaling: Literal["catalogue", "window", "min_max", "none"] = parameter(
        "catalogue", help="of the network's input: brightness of the window, minimum and maximum, none; catalogue: as the weights say"
    )
    layout: Literal["frames_last", "frames_first"] = parameter(
        "frames_last",
        help="axes of a file's whole model: batch, y, x, frame as Keras has them, or batch, frame, y, x as many ONNX files do",
    )
    first_images: Literal["wait", "repeat", "pass"] = parameter(
        "wait",
        help="before the window is full: send nothing (but a series that ends before, as it came), repeat the oldest image in it, or send "
        "images as they came",
    )

    def __init__(self, name: str = "", /, **properties: Any) -> None:
        super().__init__(name, **properties)
        known = Path(self.weights).suffix == "" and "/" not in self.weights
        if known and self.network != "catalogue":
            raise ParameterError(f"{self.name}: network is for files of weights; {self.weights!r} is a name of the catalogue")
        if self.layout == "frames_first" and (known or self.network != "catalogue"):
            raise ParameterError(f"{self.name}: layout is for files of whole models; networks of this package take frames_last")

    def denoiser(self) -> Denoiser:
        """The network, loaded once a process."""
        from recon.networks.denoiser import denoiser

        network = None if self.network == "catalogue" else self.network
        scaling = None if self.scaling == "catalogue" else self.scaling
        return denoiser(self.weights, network, self.frames, scaling, self.layout)

    def __call__(self, items: Stream) -> Iterator[Item]:
        denoiser = self.denoiser()
        marks = NetworkMarks(self.name, "as they came", items.context)
        self._warm(denoiser, items.context, marks)
        windows: dict[Series, deque[Any]] = {}
        held: dict[Series, list[Image]] = {}
        for image in items.of(Image):
            pixels = self._pixels(image, denoiser, marks)
            if pixels is None:
                yield image
                continue
            series = _series(image)
            window = windows.setdefault(series, deque(maxlen=denoiser.frames))
            if window and window[-1].shape != pixels.shape:
                window.clear()
            window.append(pixels)
            missing = denoiser.frames - len(window)
            if missing and self.first_images == "wait":
                held.setdefault(series, []).append(image)
                continue
            if missing and self.first_images == "pass":
                yield image
                continue
            if series in held:
                items.context.count("images before the network's first window", len(held.pop(series)))
            yield self._denoised(image, [window[0]] * missing + list(window), denoiser, marks)
        for image in (image for images in held.values() for image in images):
            marks.failed(image.meta, f"the series ended before it had the {denoiser.frames} images that the network sees at once")
            yield image

    def _warm(self, denoiser: Denoiser, context: Context, marks: NetworkMarks) -> None:
        """Compile for the size of the image while the first frame is still being measured."""
        encodings = context.header.encodings
        if encodings:
            columns, rows, planes = encodings[0].recon.matrix
            if planes <= 1 and denoiser.takes((rows, columns)):
                marks.warmed(lambda: denoiser.warm((rows, columns)))

    def _pixels(self, image: Image, denoiser: Denoiser, marks: NetworkMarks) -> Any:
        """Magnitudes ``[z, y, x]`` of NumPy or CuPy, or None for an image that the network cannot take."""
        resident = image.resident.array if image.resident is not None and denoiser.on_gpu else None
        if resident is not None and resident.shape[0] == 1 and denoiser.takes(resident.shape[-2:]):
            return resident[0]  # magnitudes made of finite samples
        if image.header["image_type"] in SIGNED:
            marks.failed(image.meta, "the network is for magnitudes, not for images of phase, real or imaginary part")
            return None
        data = image.data
        if data.shape[0] != 1 or not denoiser.takes(data.shape[-2:]):
            size = " x ".join(map(str, data.shape))
            marks.failed(image.meta, f"images of {size} (channel, z, y, x) do not fit the network: {denoiser.needs}")
            return None
        pixels: np.ndarray = np.abs(data[0]).astype(np.float32, copy=False)
        if not np.isfinite(pixels).all():
            marks.failed(image.meta, "an image has pixels that are NaN or infinite")
            return None
        return device.put(pixels) if denoiser.on_gpu else pixels

    def _denoised(self, image: Image, window: list[Any], denoiser: Denoiser, marks: NetworkMarks) -> Image:
        pixels, why = attempt(lambda: denoiser(window), window[-1].shape)
        if not why and not np.isfinite(pixels).all():
            why = "the network gave pixels that are NaN or infinite"
        if why:
            marks.failed(image.meta, why)
            return image
        header = image.header.copy()
        header["image_type"] = ImageType.MAGNITUDE
        meta = dict(image.meta)
        marks.made(meta, denoiser.name)
        result = Image(header, pixels[None], meta)
        result.received, result.triggered = image.received, image.triggered
        return result


def _series(image: Image) -> Series:
    header = image.header
    return tuple(int(header[name]) for name in ("slice", "contrast", "phase", "set", "image_series_index", "image_type"))
