"""DnCNN with residual blocks: the noise of an image, subtracted from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras


@keras.saving.register_keras_serializable(package="reconstream")
class ReflectionPadding(keras.layers.Layer):
    """One pixel on every side of ``[batch, y, x, channel]``, reflected about the edge pixel as NumPy's "reflect"."""

    def call(self, inputs: Any) -> Any:
        """``[batch, y, x, channel]`` to ``[batch, y + 2, x + 2, channel]``."""
        return keras.ops.pad(inputs, [[0, 0], [1, 1], [1, 1], [0, 0]], "reflect")

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        """Two more rows and columns."""
        batch, rows, columns, channels = input_shape
        return batch, None if rows is None else rows + 2, None if columns is None else columns + 2, channels


@keras.saving.register_keras_serializable(package="reconstream")
class DnCNN(keras.Model):
    """Convolutions with batch normalisation and residual blocks that predict minus the noise; the output is image plus prediction.

    Zhang et al., IEEE Trans. Image Process. 26 (2017), in the form used for sodium MRI of the calf (repository
    mrphys/sodium_MRI_DnCNN): 633,345 parameters with the default arguments, variables in the published order. The published
    model has a second input, used only by a term of its training loss and to be fed zeros otherwise; here it does not exist.

    Args:
        blocks: residual blocks of two convolutions.
        filters: of all convolutions but the last.
        channels: of image and result.
    """

    def __init__(self, blocks: int = 8, filters: int = 64, channels: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.settings = {"blocks": blocks, "filters": filters, "channels": channels}
        self.pad = ReflectionPadding()
        self.first = keras.layers.Conv2D(filters, 3)
        self.convolutions = [keras.layers.Conv2D(filters, 3) for _ in range(2 * blocks + 1)]
        self.norms = [keras.layers.BatchNormalization() for _ in self.convolutions]
        self.last = keras.layers.Conv2D(channels, 3)

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Make the variables."""
        features = (input_shape[0], None, None, self.settings["filters"])
        self.first.build((input_shape[0], None, None, self.settings["channels"]))
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            convolution.build(features)
            norm.build(features)
        self.last.build(features)
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Images ``[batch, y, x, channel]``, scaled as in training, to denoised images."""
        x = keras.ops.relu(self.first(self.pad(inputs)))
        for block in range(self.settings["blocks"]):
            x = x + self._convolve(2 * block + 1, self._convolve(2 * block, x, training), training)
        x = self._convolve(2 * self.settings["blocks"], x, training)
        return inputs + self.last(self.pad(x))

    def _convolve(self, n: int, x: Any, training: bool | None) -> Any:
        return keras.ops.relu(self.norms[n](self.convolutions[n](self.pad(x)), training=training))

    def published_weights(self) -> list[Any]:
        """The variables in the order of the published files: layer by layer, the running statistics of a residual block at its end."""
        layers = list(zip(self.convolutions, self.norms, strict=True))
        found = list(self.first.weights)
        for start in range(0, len(layers), 2):
            block = layers[start : start + 2]  # a residual block; at the end a single convolution
            for convolution, norm in block:
                found += [*convolution.weights, norm.gamma, norm.beta]
            for _, norm in block:
                found += [norm.moving_mean, norm.moving_variance]
        return [*found, *self.last.weights]

    def get_config(self) -> dict[str, Any]:
        """The arguments, for saving."""
        return {"name": self.name, **self.settings}
