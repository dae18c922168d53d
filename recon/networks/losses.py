"""Losses for training networks that make images: structural similarity at one or several scales, alone or with L1."""

from __future__ import annotations

from typing import Any

import keras

from recon.metrics import ms_ssim, ssim


def _magnitude(x: Any) -> Any:
    """The magnitude of complex values; real ones as they are."""
    import tensorflow as tf

    x = tf.convert_to_tensor(x)
    return tf.abs(x) if x.dtype.is_complex else x


def _image_last(x: Any, rank: int) -> Any:
    """``[batch, *image, channel]`` as ``[batch, channel, *image]``."""
    import tensorflow as tf

    return tf.transpose(x, [0, rank + 1, *range(1, rank + 1)])


@keras.saving.register_keras_serializable(package="reconstream")
class SSIMLoss(keras.losses.Loss):
    """1 - SSIM of images ``[batch, *image, channel]``, each channel for itself, complex ones by their magnitudes.

    Args:
        data_range: between the smallest and the largest value of a target.
        rank: number of image axes, 2 or 3.
        l1: weight of the mean absolute error that is added. Zhao et al., IEEE Trans. Comput. Imaging 3 (2017).
    """

    similarity = staticmethod(ssim)

    def __init__(self, data_range: float = 1.0, rank: int = 2, l1: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.settings: dict[str, Any] = {"data_range": data_range, "rank": rank, "l1": l1}

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        """Mean loss of a batch, as of all of Keras' losses."""
        # Here and not in `call`: before that, Keras casts to real numbers, and drops imaginary parts.
        return super().__call__(_magnitude(y_true), _magnitude(y_pred), sample_weight)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Loss of each image, ``[batch]``."""
        import tensorflow as tf

        rank, l1 = self.settings["rank"], self.settings["l1"]
        target, image = _image_last(y_true, rank), _image_last(y_pred, rank)
        loss = 1 - tf.reduce_mean(self.similarity(target, image, self.settings["data_range"], rank), -1)
        if l1:
            loss += l1 * tf.reduce_mean(tf.abs(target - image), list(range(1, rank + 2)))
        return loss

    def get_config(self) -> dict[str, Any]:
        """The arguments, for saving."""
        return {**super().get_config(), **self.settings}


@keras.saving.register_keras_serializable(package="reconstream")
class MultiscaleSSIMLoss(SSIMLoss):
    """1 - multiscale SSIM; images of at least 161 pixels an axis. Arguments: see `SSIMLoss`."""

    similarity = staticmethod(ms_ssim)
