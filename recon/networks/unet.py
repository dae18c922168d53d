"""U-Net, 1D to 3D, as in TensorFlow MRI, and the convolution block it is made of."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal

import keras

Upsampling = Literal["nearest", "deconvolution", "pixel_shuffle"]


def sized(kind: str, rank: int) -> Any:
    """Keras' layer class of a kind ("Conv", "MaxPooling", ...) for `rank` image axes."""
    if rank not in (1, 2, 3):
        raise ValueError(f"rank must be 1, 2 or 3, not {rank}")
    return getattr(keras.layers, f"{kind}{rank}D")


@keras.saving.register_keras_serializable(package="reconstream")
class ConvBlock(keras.layers.Layer):
    """Convolutions of stride 1, each followed by batch normalisation (where asked for), activation and dropout.

    Args:
        filters: of each convolution.
        rank: number of image axes, 1 to 3.
        kernel_size: of all convolutions.
        activation: a name that Keras knows; "leaky_relu" has the slope `negative_slope`.
        batch_norm, dropout: after each convolution; dropout as a rate.
        residual: add the block's input to its output (the channels must be equal).
    """

    def __init__(
        self,
        filters: Sequence[int],
        rank: int = 2,
        kernel_size: int = 3,
        activation: str | None = "relu",
        negative_slope: float = 0.1,
        batch_norm: bool = False,
        dropout: float = 0.0,
        residual: bool = False,
        kernel_initializer: str = "variance_scaling",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.settings: dict[str, Any] = {
            "filters": list(filters),
            "rank": rank,
            "kernel_size": kernel_size,
            "activation": activation,
            "negative_slope": negative_slope,
            "batch_norm": batch_norm,
            "dropout": dropout,
            "residual": residual,
            "kernel_initializer": kernel_initializer,
        }
        convolution = sized("Conv", rank)
        self.convolutions = [convolution(n, kernel_size, padding="same", kernel_initializer=kernel_initializer) for n in filters]
        self.norms = [keras.layers.BatchNormalization() for _ in filters] if batch_norm else []
        self.dropouts = [keras.layers.Dropout(dropout) for _ in filters] if dropout else []

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Make the variables, in the order of the convolutions."""
        shape = tuple(input_shape)
        for n, convolution in enumerate(self.convolutions):
            convolution.build(shape)
            shape = (*shape[:-1], convolution.filters)
            if self.norms:
                self.norms[n].build(shape)
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Features ``[batch, *image, channel]`` to features."""
        x = inputs
        for n, convolution in enumerate(self.convolutions):
            x = convolution(x)
            if self.norms:
                x = self.norms[n](x, training=training)
            x = activate(x, self.settings["activation"], self.settings["negative_slope"])
            if self.dropouts:
                x = self.dropouts[n](x, training=training)
        return x + inputs if self.settings["residual"] else x

    def get_config(self) -> dict[str, Any]:
        """The arguments, for saving."""
        return {**super().get_config(), **self.settings}


def activate(x: Any, name: str | None, negative_slope: float) -> Any:
    """The activation function `name` of x; "leaky_relu" with this slope."""
    if name is None:
        return x
    if name == "leaky_relu":
        return keras.ops.leaky_relu(x, negative_slope)
    return keras.activations.get(name)(x)


@keras.saving.register_keras_serializable(package="reconstream")
class PixelShuffle(keras.layers.Layer):
    """A convolution to four times the channels, whose groups of four become 2 x 2 pixels. Shi et al., CVPR (2016). 2D."""

    def __init__(self, filters: int, kernel_size: int = 3, kernel_initializer: str = "variance_scaling", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.settings: dict[str, Any] = {"filters": filters, "kernel_size": kernel_size, "kernel_initializer": kernel_initializer}
        self.convolution = keras.layers.Conv2D(4 * filters, kernel_size, padding="same", kernel_initializer=kernel_initializer)

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Make the variables."""
        self.convolution.build(tuple(input_shape))
        self.built = True

    def call(self, inputs: Any) -> Any:
        """Features ``[batch, y, x, channel]`` to ``[batch, 2 y, 2 x, filters]``."""
        import tensorflow as tf

        return tf.nn.depth_to_space(self.convolution(inputs), 2)

    def get_config(self) -> dict[str, Any]:
        """The arguments, for saving."""
        return {**super().get_config(), **self.settings}


@keras.saving.register_keras_serializable(package="reconstream")
class UNet(keras.Model):
    """U-Net: blocks of convolutions at ever coarser resolution and back, with links across. Ronneberger et al., MICCAI (2015).

    Architecture and order of variables are those of TensorFlow MRI's `UNet1D/2D/3D`, and with "pixel_shuffle" those of
    HyperSLICE's `TimeUNet`, so that their weights can be loaded in order.

    Args:
        filters: of the convolutions at each scale, the finest first.
        out_channels: channels of a last, linear convolution; None for none.
        rank: number of image axes, 1 to 3.
        kernel_size, activation, negative_slope, batch_norm, dropout, kernel_initializer: see `ConvBlock`.
        block_depth: convolutions of a block.
        upsampling: nearest neighbour, a transposed convolution, or (2D) a convolution and `PixelShuffle`.
        out_activation: of the last convolution.
        global_residual: add the input's last `out_channels` channels to the output.

    Raises:
        ValueError: (when called) an image size is no multiple of 2^(scales - 1).
    """

    def __init__(
        self,
        filters: Sequence[int],
        out_channels: int | None = None,
        rank: int = 2,
        kernel_size: int = 3,
        block_depth: int = 2,
        upsampling: Upsampling = "nearest",
        activation: str | None = "relu",
        negative_slope: float = 0.1,
        out_activation: str | None = None,
        global_residual: bool = False,
        batch_norm: bool = False,
        dropout: float = 0.0,
        kernel_initializer: str = "variance_scaling",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if upsampling == "pixel_shuffle" and rank != 2:
            raise ValueError("upsampling by pixel_shuffle is for 2D; use nearest or deconvolution")
        self.settings: dict[str, Any] = {
            "filters": list(filters),
            "out_channels": out_channels,
            "rank": rank,
            "kernel_size": kernel_size,
            "block_depth": block_depth,
            "upsampling": upsampling,
            "activation": activation,
            "negative_slope": negative_slope,
            "out_activation": out_activation,
            "global_residual": global_residual,
            "batch_norm": batch_norm,
            "dropout": dropout,
            "kernel_initializer": kernel_initializer,
        }
        common: dict[str, Any] = {"rank": rank, "kernel_size": kernel_size, "kernel_initializer": kernel_initializer}
        inner = {**common, "activation": activation, "negative_slope": negative_slope, "batch_norm": batch_norm, "dropout": dropout}
        self.encoders = [ConvBlock([n] * block_depth, **inner) for n in filters]
        self.decoders = [ConvBlock([n] * block_depth, **inner) for n in filters[:-1]]
        self.pools = [sized("MaxPooling", rank)(2, padding="same") for _ in filters[:-1]]
        self.upsamplers = [self._upsampler(n) for n in filters[:-1]]
        self.head = None
        if out_channels is not None:
            last = None if global_residual else out_activation
            self.head = ConvBlock([out_channels], **common, activation=last)

    def _upsampler(self, filters: int) -> Any:
        rank, size, start = (self.settings[name] for name in ("rank", "kernel_size", "kernel_initializer"))
        if self.settings["upsampling"] == "pixel_shuffle":
            return PixelShuffle(filters, size, start)
        if self.settings["upsampling"] == "deconvolution":
            transposed = getattr(keras.layers, f"Conv{rank}DTranspose")
            return transposed(filters, size, strides=2, padding="same", kernel_initializer=start)
        return sized("UpSampling", rank)(2)

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Make the variables: encoders, decoders, up-sampling, head."""
        filters, shuffled = self.settings["filters"], self.settings["upsampling"] != "nearest"
        shape = tuple(input_shape)
        self._check(shape)
        open_image = (None,) * self.settings["rank"]
        channels = shape[-1]
        for block, n in zip(self.encoders, filters, strict=True):
            block.build((shape[0], *open_image, channels))
            channels = n
        for scale, (n, coarser) in enumerate(pairwise(filters)):
            self.upsamplers[scale].build((shape[0], *open_image, coarser))
            self.decoders[scale].build((shape[0], *open_image, n + (n if shuffled else coarser)))
        if self.head is not None:
            self.head.build((shape[0], *open_image, filters[0]))
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Images ``[batch, *image, channel]`` to images."""
        self._check(inputs.shape)
        x, kept = inputs, []
        for block, pool in zip(self.encoders[:-1], self.pools, strict=True):
            kept.append(block(x, training=training))
            x = pool(kept[-1])
        x = self.encoders[-1](x, training=training)
        for block, upsampler in zip(self.decoders[::-1], self.upsamplers[::-1], strict=True):
            x = block(keras.ops.concatenate([upsampler(x), kept.pop()], -1), training=training)
        if self.head is not None:
            x = self.head(x, training=training)
        if self.settings["global_residual"]:
            x = activate(x + inputs[..., -x.shape[-1] :], self.settings["out_activation"], self.settings["negative_slope"])
        return x

    def _check(self, shape: Sequence[int | None]) -> None:
        multiple = 2 ** (len(self.settings["filters"]) - 1)
        rank = self.settings["rank"]
        if len(shape) != rank + 2:
            raise ValueError(f"a {rank}D U-Net takes [batch, {rank} image axes, channel], not an array of shape {tuple(shape)}")
        if any(n is not None and n % multiple for n in shape[1:-1]):
            raise ValueError(f"image sizes must be multiples of {multiple} for {multiple.bit_length()} scales, not {tuple(shape[1:-1])}")

    def get_config(self) -> dict[str, Any]:
        """The arguments, for saving."""
        return {"name": self.name, **self.settings}
