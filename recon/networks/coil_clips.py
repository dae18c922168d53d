"""A network as a function of gridded coil images of many frames at once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from recon.networks.compiled import Compiled
from recon.networks.named import frames_of, multiple, named
from recon.networks.normalization import window_scale
from recon.networks.weights import written


class CoilClips:
    """Clips of gridded coil images to magnitudes.

    Args:
        name: of the weights, for the record.
        network: callable, ``[batch, frame, y, x, channel]`` to ``[batch, frame, y, x, 1]``; channels are the real parts of all coils,
            then the imaginary parts.
        frames: of a clip.
        coils: that it takes.
        scaled: divide its input by the brightness of the clip (`window_scale` of the root of the sum of squares).
        multiple: of which image sizes must be multiples.
    """

    def __init__(self, name: str, network: Any, frames: int, coils: int, scaled: bool = True, multiple: int = 1) -> None:
        self.name, self.network, self.frames, self.coils, self.scaled, self.multiple = name, network, frames, coils, scaled, multiple
        self._run = Compiled(self._reconstruct, network)

    def takes(self, shape: Sequence[int]) -> bool:
        """Whether images ``[y, x]`` of this size fit."""
        return all(n > 0 and n % self.multiple == 0 for n in shape)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Magnitudes ``[frame, y, x]`` of coil images ``[frame, coil, y, x]``, in their units. Missing coils count as zeros."""
        missing = self.coils - images.shape[1]
        padded = np.pad(images.astype(np.complex64, copy=False), [(0, 0), (0, missing), (0, 0), (0, 0)])
        return self._run(np.ascontiguousarray(padded))

    def warm(self, shape: Sequence[int]) -> None:
        """Prepare for images ``[y, x]``, see `Compiled.warm`."""
        self._run.warm(((self.frames, self.coils, *shape), np.complex64))

    def _reconstruct(self, images: Any) -> Any:
        import tensorflow as tf

        images = tf.transpose(tf.convert_to_tensor(images), [0, 2, 3, 1])
        channels = tf.concat([tf.math.real(images), tf.math.imag(images)], -1)
        scale: Any = tf.constant(1.0)
        if self.scaled:
            scale = tf.reshape(window_scale(tf.transpose(tf.norm(channels, axis=-1), [1, 2, 0])[None]), [])
        result = tf.convert_to_tensor(self.network((channels / scale)[None]))
        if result.shape[-1] != 1:
            raise ValueError(f"it gives {result.shape[-1]} channels where the magnitude should be one")
        return tf.cast(result, tf.float32)[0, ..., 0] * scale


def coil_clips(weights: str, architecture: str, frames: int | None = None) -> CoilClips:
    """The network for a name of the catalogue or a file, loaded once a process; a file that has changed since is loaded again.

    Arguments: see `named` and `frames_of`.

    Raises:
        WeightsError: see there.
    """
    return _coil_clips(weights, architecture, frames, written(weights))


@lru_cache(maxsize=4)
def _coil_clips(weights: str, architecture: str, frames: int | None, _: int) -> CoilClips:
    name, network, entry = named(weights, architecture, "clip")
    coils = (_channels(network) or entry.input_shape[-1] or 2) // 2
    return CoilClips(name, network, frames_of(entry, network, frames), coils, entry.scaling == "window", multiple(network))


def _channels(network: Any) -> int | None:
    """Of its input, as the model tells, or its first kernel."""
    inputs, variables = getattr(network, "inputs", None), getattr(network, "weights", None)
    if inputs:
        channels: int | None = inputs[0].shape[-1]
        return channels
    return int(variables[0].shape[-2]) if variables and len(variables[0].shape) == 5 else None
