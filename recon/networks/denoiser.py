"""A trained network as a function of magnitude images: scaled as in training, compiled, warm."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recon.arrays import Array
from recon.hand_over import Buffer
from recon.networks.compiled import KEPT, Compiled
from recon.networks.named import multiple
from recon.networks.normalization import min_max, window_scale
from recon.networks.weights import Architecture, WeightsError, catalogue, load, load_file, written

if TYPE_CHECKING:
    from recon.networks.recorded import RecordedFastDVDnet

logger = logging.getLogger(__name__)

RECORDED = 4
"""Sizes for which networks are kept as CUDA graphs."""


class Denoiser:
    """Windows of magnitude images ``[z, y, x]``, the oldest first, to the newest one.

    Args:
        name: of the weights, for the record.
        network: callable, ``[batch, y, x, frame]`` to ``[batch, y, x, 1]``, or as `layout` says.
        frames: of a window.
        scaling: "window", "min_max" (of the newest frame) or "none"; undone afterwards.
        multiple: of which image sizes must be multiples.
        layout: "frames_last", or "frames_first" for a network of ``[batch, frame, y, x]`` to ``[batch, 1, y, x]``.
    """

    def __init__(
        self, name: str, network: Callable[[Any], Any], frames: int, scaling: str, multiple: int = 1, layout: str = "frames_last"
    ) -> None:
        self.name, self.network, self.frames, self.scaling, self.multiple = name, network, frames, scaling, multiple
        self.frames_first = layout == "frames_first"
        self._function = Compiled(self._run, network)
        self._warm: set[tuple[int, ...]] = set()
        self._buffers: dict[tuple[int, ...], Buffer] = {}
        self._recorded: dict[tuple[int, ...], RecordedFastDVDnet | None] = {}
        self._lock = threading.Lock()

    @property
    def needs(self) -> str:
        """What images it takes, in words."""
        sizes = f", sizes that are multiples of {self.multiple}" if self.multiple > 1 else ""
        return f"one channel{sizes}"

    def takes(self, shape: Sequence[int]) -> bool:
        """Whether images ``[y, x]`` of this size fit."""
        return all(n > 0 and n % self.multiple == 0 for n in shape)

    @property
    def on_gpu(self) -> bool:
        """Whether images may stay on the GPU on their way into it."""
        return self._function.on_gpu

    def __call__(self, window: Sequence[Array]) -> np.ndarray:
        """Denoise images ``[z, y, x]``, the oldest first, each of NumPy or (with `on_gpu`) CuPy; float32.

        Raises whatever the network's runtime raises.
        """
        if not self.on_gpu:
            return self._function(np.stack(window).astype(np.float32, copy=False))
        import cupy

        shape = (len(window), *window[-1].shape)
        with self._lock:  # several threads would write to the same buffer
            recorded = self._recorded_for(shape)
            if recorded is not None:
                result: np.ndarray = recorded([cupy.ascontiguousarray(cupy.asarray(image, np.float32)) for image in window])[None]
                if np.isfinite(result).all():
                    return result
                logger.info("%s: numbers too large for half precision; computing this image in single precision", self.name)
            if shape not in self._buffers:
                if len(self._buffers) >= KEPT:
                    self._buffers.clear()
                self._buffers[shape] = Buffer(shape, np.float32)
            buffer = self._buffers[shape]
            cupy.stack([cupy.asarray(image, np.float32) for image in window], out=buffer.array)
            result = buffer.call(self._function.tensor)
            return result

    def _recorded_for(self, shape: tuple[int, ...]) -> RecordedFastDVDnet | None:
        """The network as one CUDA graph, where there is one for it: a third of TensorFlow's time."""
        from recon.networks.fast_dvd_net import FRAMES, FastDVDnet
        from recon.networks.recorded import RecordedFastDVDnet

        frames, slices, rows, columns = shape
        if self.scaling != "window" or self.frames_first or not isinstance(self.network, FastDVDnet) or (frames, slices) != (FRAMES, 1):
            return None
        if shape not in self._recorded:
            if len(self._recorded) >= RECORDED:
                self._recorded.clear()
            try:
                self._recorded[shape] = RecordedFastDVDnet(self.network, (rows, columns))
            except Exception as error:
                # Whatever a driver or a library raises, TensorFlow computes the same.
                logger.warning("%s: no CUDA graph of it (%s: %s); TensorFlow takes longer", self.name, type(error).__name__, error)
                self._recorded[shape] = None
        return self._recorded[shape]

    def warm(self, shape: Sequence[int]) -> None:
        """Compile for images ``[y, x]``, and run once. Raises whatever the network's runtime raises."""
        whole = (self.frames, 1, *shape)
        if whole not in self._warm:
            self(list(np.zeros(whole, np.float32)))
            self._warm.add(whole)

    def _run(self, window: Any) -> Any:
        import tensorflow as tf

        window = tf.transpose(tf.convert_to_tensor(window), (1, 2, 3, 0))  # here, not by the caller: a GPU does so in no time
        shift: Any = 0.0
        scale: Any = 1.0
        if self.scaling == "window":
            scale = window_scale(window)
        elif self.scaling == "min_max":
            shift, scale = min_max(window[..., -1:])
        inputs = (window - shift) / scale
        if self.frames_first:
            result = tf.transpose(tf.convert_to_tensor(self.network(tf.transpose(inputs, [0, 3, 1, 2]))), [0, 2, 3, 1])
        else:
            result = tf.convert_to_tensor(self.network(inputs))
        if result.shape[-1] not in (1, None):
            raise ValueError(f"it gives {result.shape[-1]} channels where the image should be one")
        return (tf.cast(result, tf.float32) * scale + shift)[..., 0]


def denoiser(
    weights: str, network: str | None = None, frames: int | None = None, scaling: str | None = None, layout: str = "frames_last"
) -> Denoiser:
    """The denoiser for a name of the catalogue or a file, loaded once a process; a file that has changed since is loaded again.

    Args:
        weights: name, or path.
        network: kind that a file of weights alone belongs to.
        frames: of a window; None takes the catalogue's, or what a file's whole model says, 5 for FastDVDnet's weights, else 1.
        scaling: None takes the catalogue's, for files "window".
        layout: of the input of a file's whole model, see `Denoiser`.

    Raises:
        WeightsError: see `recon.networks.weights`; or a network that does not take windows of magnitude images.
    """
    return _denoiser(weights, network, frames, scaling, layout, written(weights))


@lru_cache(maxsize=4)
def _denoiser(weights: str, network: str | None, frames: int | None, scaling: str | None, layout: str, _: int) -> Denoiser:
    if Path(weights).suffix == "" and "/" not in weights and weights in catalogue():
        entry = catalogue()[weights]
        if entry.layout not in ("frames_last", "image"):
            raise WeightsError(f"the weights {weights!r} are for another kind of input ({entry.layout}), not for magnitude images")
        channels = entry.input_shape[-1] or 1
        if frames is not None and frames != channels:
            raise WeightsError(f"the weights {weights!r} see {channels} frames at once, not {frames}")
        return Denoiser(weights, load(weights), channels, scaling or entry.scaling, _multiple(entry.network))
    if "/" not in weights and Path(weights).suffix == "":
        load(weights)  # says which names there are
    architecture = None if network is None else Architecture(kind=network)
    given = frames or (5 if network == "FastDVDnet" else 1)
    built = load_file(Path(weights), architecture, (None, None, None, given))
    count = frames or (given if architecture is not None else _seen(built, layout))
    sizes = multiple(built) if architecture is None else _multiple(architecture)
    return Denoiser(Path(weights).name, built, count, scaling or "window", sizes, layout)


def _seen(model: Any, layout: str) -> int:
    """Frames that a whole model of Keras sees at once; 1 for one that does not say."""
    shape = getattr(model, "input_shape", None)
    channels = shape[1 if layout == "frames_first" else -1] if isinstance(shape, tuple) and len(shape) == 4 else None
    return channels if isinstance(channels, int) else 1


def _multiple(architecture: Architecture) -> int:
    if architecture.kind not in ("FastDVDnet", "UNet"):
        return 1
    filters = (architecture.model_extra or {}).get("filters", (32, 64, 128))
    return int(2 ** (len(filters) - 1))
