"""FastDVDnet: a sliding window of five frames to the newest one, denoised, without looking ahead."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from recon.networks.unet import UNet

FRAMES = 5
"""Frames of the window, the oldest first."""


@keras.saving.register_keras_serializable(package="reconstream")
class FastDVDnet(keras.Model):
    """Two stages of small U-Nets: one, shared, on frames 0-2, 1-3 and 2-4, then one on the three results.

    Tassano, Delon, Veit, CVPR (2020), in the form of HyperSLICE (Jaubert et al., Magn. Reson. Med. (2024)): no noise map, PixelShuffle
    up-sampling, output is the newest frame. 1,589,506 parameters with the default filters; variables in the published order.

    Args:
        filters: at each scale.
        block_depth: convolutions of a block.
        kernel_initializer: He's, as published.

    Raises:
        ValueError: (when called) not five channels, or an image size that is no multiple of 2^(scales - 1).
    """

    def __init__(
        self, filters: Sequence[int] = (32, 64, 128), block_depth: int = 2, kernel_initializer: str = "he_uniform", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.settings: dict[str, Any] = {"filters": list(filters), "block_depth": block_depth, "kernel_initializer": kernel_initializer}
        self.first, self.second = (
            UNet(filters, 1, block_depth=block_depth, upsampling="pixel_shuffle", kernel_initializer=kernel_initializer) for _ in range(2)
        )

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Make the variables: first stage, second stage."""
        shape = self._checked(input_shape)
        for stage in (self.first, self.second):
            if not stage.built:
                stage.build((*shape[:-1], 3))
        self.built = True

    def call(self, inputs: Any) -> Any:
        """Magnitudes ``[batch, y, x, 5]``, the oldest frame first, to the newest frame ``[batch, y, x, 1]``."""
        self._checked(inputs.shape)
        # The three windows go through the shared stage as one batch: one set of kernels launched instead of three.
        windows = keras.ops.concatenate([inputs[..., n : n + 3] for n in range(3)], 0)
        stages = keras.ops.split(self.first(windows), 3, 0)
        return self.second(keras.ops.concatenate(stages, -1))

    def _checked(self, shape: Sequence[int | None]) -> tuple[int | None, ...]:
        if len(shape) != 4 or shape[-1] != FRAMES:
            raise ValueError(
                f"FastDVDnet takes [batch, y, x, {FRAMES}] magnitudes, the oldest frame first, not an array of shape {tuple(shape)}"
            )
        return tuple(shape)

    def get_config(self) -> dict[str, Any]:
        """The arguments, for saving."""
        return {"name": self.name, **self.settings}
