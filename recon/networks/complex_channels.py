"""Complex images as two real channels and back, and pooling of complex features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from recon.networks.unet import sized


def to_channels(x: Any) -> Any:
    """Complex ``[..., channel]`` to real ``[..., 2 channel]``: all real parts, then all imaginary parts."""
    import tensorflow as tf

    return tf.concat([tf.math.real(x), tf.math.imag(x)], -1)


def from_channels(x: Any) -> Any:
    """The inverse of `to_channels`."""
    import tensorflow as tf

    real, imaginary = tf.split(x, 2, -1)
    return tf.complex(real, imaginary)


@keras.saving.register_keras_serializable(package="reconstream")
class ComplexConv(keras.layers.Layer):
    """A convolution of complex features with complex kernels, 1D to 3D, stride 1, size kept.

    Trabelsi et al., ICLR (2018). As TensorFlow MRI's `ConvND` with a complex dtype; the kernel is kept as two real variables, which
    every optimiser knows what to do with.

    Args:
        filters, kernel_size, rank: as of Keras' layers.
        use_bias: add a complex bias.
    """

    def __init__(self, filters: int, kernel_size: int = 3, rank: int = 2, use_bias: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.settings: dict[str, Any] = {"filters": filters, "kernel_size": kernel_size, "rank": rank, "use_bias": use_bias}
        # He's variance for the modulus: half of it in each part.
        start = keras.initializers.VarianceScaling(1.0, "fan_in", "truncated_normal")
        self.real, self.imaginary = (
            sized("Conv", rank)(filters, kernel_size, padding="same", use_bias=False, kernel_initializer=start.clone()) for _ in range(2)
        )

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Make the variables."""
        self.real.build(tuple(input_shape))
        self.imaginary.build(tuple(input_shape))
        self.bias = None
        if self.settings["use_bias"]:
            self.bias = self.add_weight(shape=(2, self.settings["filters"]), initializer="zeros", name="bias")
        self.built = True

    def call(self, inputs: Any) -> Any:
        """Complex ``[batch, *image, channel]`` to ``[batch, *image, filters]``."""
        import tensorflow as tf

        x, y = tf.math.real(inputs), tf.math.imag(inputs)
        real, imaginary = self.real(x) - self.imaginary(y), self.real(y) + self.imaginary(x)
        if self.bias is not None:
            real, imaginary = real + self.bias[0], imaginary + self.bias[1]
        return tf.complex(real, imaginary)

    def get_config(self) -> dict[str, Any]:
        """The arguments, for saving."""
        return {**super().get_config(), **self.settings}


@keras.saving.register_keras_serializable(package="reconstream")
class MagnitudeMaxPooling(keras.layers.Layer):
    """The feature of largest magnitude of every 2 x 2 (x 2) pixels of a complex ``[batch, *image, channel]``; sizes must be even."""

    def __init__(self, rank: int = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rank = rank

    def call(self, inputs: Any) -> Any:
        """Complex features of half the size."""
        import tensorflow as tf

        sizes = tf.shape(inputs)
        if any(n is not None and n % 2 for n in inputs.shape[1:-1]):
            raise ValueError(f"image sizes must be even, not {tuple(inputs.shape[1:-1])}")
        split = [sizes[0]]
        for axis in range(1, self.rank + 1):
            split += [sizes[axis] // 2, 2]
        x = tf.reshape(inputs, [*split, sizes[-1]])
        order = [0, *range(1, 2 * self.rank, 2), 2 * self.rank + 1, *range(2, 2 * self.rank + 1, 2)]
        x = tf.transpose(x, order)
        x = tf.reshape(x, tf.concat([tf.shape(x)[: self.rank + 2], [2**self.rank]], 0))
        best = tf.argmax(tf.abs(x), -1)
        return tf.gather(x, best, batch_dims=self.rank + 2)

    def get_config(self) -> dict[str, Any]:
        """The arguments, for saving."""
        return {**super().get_config(), "rank": self.rank}


@keras.saving.register_keras_serializable(package="reconstream")
class ComplexRelu(keras.layers.Layer):
    """ReLU of real and imaginary part (CReLU)."""

    def call(self, inputs: Any) -> Any:
        """Complex features of the same shape."""
        import tensorflow as tf

        return tf.complex(tf.nn.relu(tf.math.real(inputs)), tf.nn.relu(tf.math.imag(inputs)))
