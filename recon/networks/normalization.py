"""How images are scaled before a network sees them, in training and in the stream alike."""

from __future__ import annotations

import math
from typing import Any

BRIGHT = 0.005
"""The share of pixels that may be brighter than 1 after scaling."""


def window_scale(window: Any) -> Any:
    """The brightness of a window of frames: what all but the brightest 0.5 % of the pixels of their mean stay below.

    It depends on these frames alone, so that an image does not depend on what was measured before them.

    Args:
        window: magnitudes ``[batch, y, x, frame]``, a tensor.

    Returns:
        Positive, ``[batch, 1, 1, 1]``; 1 for images of zeros.
    """
    import tensorflow as tf

    window = tf.convert_to_tensor(window)
    mean = tf.reshape(tf.reduce_mean(window, -1), [tf.shape(window)[0], -1])
    pixels = window.shape[1] * window.shape[2]
    brightest = tf.math.top_k(mean, max(1, math.ceil(BRIGHT * pixels)), sorted=True)[0][:, -1]
    return tf.where(brightest > 0, brightest, tf.ones_like(brightest))[:, None, None, None]


def min_max(image: Any) -> tuple[Any, Any]:
    """Smallest value of an image and the largest above it: the scaling of sodium images, (image - shift) / scale.

    Args:
        image: magnitudes ``[batch, y, x, 1]``, a tensor.

    Returns:
        shift, scale, ``[batch, 1, 1, 1]`` each; scale 1 for constant images.
    """
    import tensorflow as tf

    image = tf.convert_to_tensor(image)
    shift = tf.reduce_min(image, [1, 2, 3], keepdims=True)
    scale = tf.reduce_max(image, [1, 2, 3], keepdims=True) - shift
    return shift, tf.where(scale > 0, scale, tf.ones_like(scale))
