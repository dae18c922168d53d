"""MoDL: a learnt denoiser alternating with exact data consistency."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from recon.networks.complex_channels import from_channels, to_channels
from recon.networks.dncnn import DnCNN
from recon.solvers.conjugate_gradient import conjugate_gradient


@keras.saving.register_keras_serializable(package="reconstream")
class DataConsistency(keras.layers.Layer):
    """argmin |A x - y|^2 + lambda |x - z|^2, by conjugate gradients, with a learnt lambda; can be differentiated.

    The gradient is that of the solution (implicit), which costs another run of conjugate gradients and no memory.

    Args:
        iterations: of conjugate gradients, enough to converge.
        weight: lambda to start with.
    """

    def __init__(self, iterations: int = 10, weight: float = 0.05, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.settings = {"iterations": iterations, "weight": weight}

    def build(self, input_shape: Any = None) -> None:
        """Make the variable: the logarithm of lambda, which so stays positive."""
        start = keras.initializers.Constant(float(keras.ops.log(self.settings["weight"])))
        self.log_weight = self.add_weight(shape=(), initializer=start, name="log_weight")
        self.built = True

    def call(self, denoised: Any, rhs: Any, gram: Callable[[Any], Any]) -> Any:
        """Solve (A^H A + lambda) x = A^H y + lambda z.

        Args:
            denoised: z, complex, any shape.
            rhs: A^H y, of the same shape.
            gram: applies A^H A.
        """
        import tensorflow as tf

        size = tf.exp(self.log_weight)
        weight = tf.complex(size, tf.zeros_like(size))  # a cast would warn in the gradient
        solved = conjugate_gradient(
            lambda x: gram(x) + weight * x, rhs + weight * denoised, int(self.settings["iterations"]), 1e-6, implicit_gradient=True
        )
        return solved

    def get_config(self) -> dict[str, Any]:
        """The arguments, for saving."""
        return {**super().get_config(), **self.settings}


@keras.saving.register_keras_serializable(package="reconstream")
class MoDL(keras.Model):
    """Model-based deep learning: x_(k+1) = argmin |A x - y|^2 + lambda |x - D(x_k)|^2, with one denoiser D for all steps.

    Aggarwal, Mani, Jacob, IEEE Trans. Med. Imaging 38 (2019). D is a DnCNN on real and imaginary part.

    Args:
        steps: K.
        blocks, filters: of the denoiser.
        iterations: of conjugate gradients in a step.
    """

    def __init__(self, steps: int = 5, blocks: int = 2, filters: int = 64, iterations: int = 10, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.settings = {"steps": steps, "blocks": blocks, "filters": filters, "iterations": iterations}
        self.denoiser = DnCNN(blocks, filters, 2)
        self.consistency = DataConsistency(iterations)

    def build(self, input_shape: Any = None) -> None:
        """Make the variables: denoiser, lambda."""
        self.denoiser.build((None, None, None, 2))
        self.consistency.build()
        self.built = True

    def call(self, rhs: Any, gram: Callable[[Any], Any], training: bool | None = None) -> Any:
        """Reconstruct ``[batch, y, x]`` (complex) from A^H y and `gram` (by keyword), which applies A^H A to such a batch."""
        import tensorflow as tf

        if len(rhs.shape) != 3:
            raise ValueError(f"MoDL takes [batch, y, x], not an array of shape {tuple(rhs.shape)}")
        x = tf.convert_to_tensor(rhs)
        for _ in range(self.settings["steps"]):
            denoised = from_channels(self.denoiser(to_channels(x[..., None]), training=training))[..., 0]
            x = self.consistency(denoised, rhs, gram=gram)
        return x

    def get_config(self) -> dict[str, Any]:
        """The arguments, for saving."""
        return {"name": self.name, **self.settings}
