"""What networks are trained to do: pairs of network inputs and targets, a batch at a time, from a seed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from recon.fourier import fftc, ifftc
from recon.networks.complex_channels import to_channels
from recon.networks.normalization import min_max, window_scale
from recon.networks.training.coils import random_coils
from recon.networks.training.draws import Draws
from recon.networks.training.gridded_frames import GriddedFrames
from recon.networks.training.moving_objects import moving_objects


class Task(ABC):
    """A source of training pairs.

    Args:
        noise: range of the noise, as a fraction of the brightness of the object; drawn log-uniformly for each series.
        anatomy: see `moving_objects`.
    """

    def __init__(self, noise: tuple[float, float], anatomy: np.ndarray | None) -> None:
        self.noise, self.anatomy = noise, anatomy

    @abstractmethod
    def __call__(self, seed: Any, batch: int) -> tuple[Any, Any, Any]:
        """Network inputs, target ``[batch, ..., channel]``, and the image to beat, shaped as the target."""

    def loss_views(self, image: Any) -> Any:
        """What losses and metrics compare, ``[batch, y, x, channel]``, of a target or a network's output."""
        return image


class NewestFrame(Task):
    """FastDVDnet's: the newest of some gridded frames (root of the sum of squares over coils) to the one without noise and artefacts.

    Args:
        frames: gridding of the trajectories.
        count: of frames.
        coils: of the simulated receiver.
    """

    def __init__(
        self, frames: GriddedFrames, noise: tuple[float, float], anatomy: np.ndarray | None, count: int = 5, coils: int = 10
    ) -> None:
        super().__init__(noise, anatomy)
        self.frames, self.count, self.coils = frames, count, coils

    def __call__(self, seed: Any, batch: int) -> tuple[Any, Any, Any]:
        import tensorflow as tf

        draws = Draws(seed)
        objects = moving_objects(draws, batch, self.count, self.frames.shape, self.anatomy)
        maps = random_coils(draws, batch, self.coils, self.frames.shape)
        level = draws.log_uniform([batch], *self.noise)
        gridded = self.frames(draws, objects[:, :, None] * maps[:, None], level)
        window = tf.transpose(tf.sqrt(tf.reduce_sum(tf.abs(gridded) ** 2, 2)), [0, 2, 3, 1])
        target = (tf.abs(objects[:, -1]) * tf.sqrt(tf.reduce_sum(tf.abs(maps) ** 2, 1)))[..., None]
        scale = window_scale(window)
        return window / scale, target / scale, window[..., -1:] / scale


class CoilClip(Task):
    """The 3D U-Net's: gridded coil images of a clip of frames to their magnitudes without noise and artefacts.

    Channels are the real parts of all virtual coils, the strongest first, then the imaginary parts. Arguments as of `NewestFrame`.
    """

    def __init__(
        self, frames: GriddedFrames, noise: tuple[float, float], anatomy: np.ndarray | None, count: int = 24, coils: int = 10
    ) -> None:
        super().__init__(noise, anatomy)
        self.frames, self.count, self.coils = frames, count, coils

    def __call__(self, seed: Any, batch: int) -> tuple[Any, Any, Any]:
        import tensorflow as tf

        draws = Draws(seed)
        objects = moving_objects(draws, batch, self.count, self.frames.shape, self.anatomy)
        maps = random_coils(draws, batch, self.coils, self.frames.shape)
        gridded = self.frames(draws, objects[:, :, None] * maps[:, None], draws.log_uniform([batch], *self.noise))
        gridded = tf.transpose(_virtual(gridded), [0, 1, 3, 4, 2])
        start = tf.sqrt(tf.reduce_sum(tf.abs(gridded) ** 2, -1, keepdims=True))
        target = (tf.abs(objects) * tf.sqrt(tf.reduce_sum(tf.abs(maps) ** 2, 1))[:, None])[..., None]
        scale = window_scale(tf.transpose(start[..., 0], [0, 2, 3, 1]))[..., None]
        return to_channels(gridded) / scale, target / scale, start / scale

    def loss_views(self, image: Any) -> Any:
        """The frames as channels."""
        import tensorflow as tf

        return tf.transpose(image[..., 0], [0, 2, 3, 1])


def _virtual(images: Any) -> Any:
    """Coil images ``[batch, frame, coil, y, x]`` turned to principal components, the strongest first, as coil compression does."""
    import tensorflow as tf

    batch, frames, coils = images.shape[:3]
    flat = tf.reshape(tf.transpose(images, [0, 2, 1, 3, 4]), [batch, coils, -1])
    with tf.device("CPU:0"):  # ten by ten: a GPU's solver takes longer to start than a CPU to end
        _, vectors = tf.linalg.eigh(tf.matmul(flat, flat, adjoint_b=True))
    turned = tf.matmul(tf.reverse(vectors, [-1]), flat, adjoint_a=True)
    return tf.transpose(tf.reshape(turned, [batch, coils, frames, *images.shape[3:]]), [0, 2, 1, 3, 4])


class AveragedImage(Task):
    """DnCNN's: the magnitude of one coil's gridded image, of few averages, to the one without noise; scaled by `min_max`."""

    def __init__(self, frames: GriddedFrames, noise: tuple[float, float], anatomy: np.ndarray | None) -> None:
        super().__init__(noise, anatomy)
        self.frames = frames

    def __call__(self, seed: Any, batch: int) -> tuple[Any, Any, Any]:
        import tensorflow as tf

        draws = Draws(seed)
        objects = moving_objects(draws, batch, 1, self.frames.shape, self.anatomy, cuts=0.0, bright=0.4)
        image = tf.abs(self.frames(draws, objects[:, :, None], draws.log_uniform([batch], *self.noise)))[:, 0, 0, :, :, None]
        target = tf.abs(self.frames(draws, objects[:, :, None], tf.zeros([batch])))[:, 0, 0, :, :, None]
        shift, scale = min_max(image)
        return (image - shift) / scale, (target - shift) / scale, (image - shift) / scale


class CartesianSeries(Task):
    """VarNet's: k-space of a few lines a frame to the series of images.

    Args:
        shape: of the images.
        count: frames of a series.
        coils: of the simulated receiver.
        acceleration: of each frame; `centre` lines are in all of them, the others differ from frame to frame.
    """

    def __init__(
        self,
        shape: tuple[int, int],
        noise: tuple[float, float],
        anatomy: np.ndarray | None,
        count: int = 12,
        coils: int = 8,
        acceleration: float = 8.0,
        centre: int = 8,
    ) -> None:
        super().__init__(noise, anatomy)
        self.shape, self.count, self.coils, self.acceleration, self.centre = shape, count, coils, acceleration, centre
        lines = round(shape[0] / acceleration)
        self._scattered = lines - centre
        if self._scattered < 1:
            raise ValueError(
                f"an acceleration of {acceleration:g} leaves {lines} of {shape[0]} lines, none beside the {centre} central ones; lower "
                "acceleration or centre"
            )

    def __call__(self, seed: Any, batch: int) -> tuple[Any, Any, Any]:
        import tensorflow as tf

        draws = Draws(seed)
        objects = moving_objects(draws, batch, self.count, self.shape, self.anatomy)
        maps = random_coils(draws, batch, self.coils, self.shape)
        size = tf.sqrt(tf.reduce_sum(tf.abs(maps) ** 2, 1, keepdims=True))
        objects *= tf.cast(size, tf.complex64)
        maps = (maps / tf.cast(size, tf.complex64))[:, :, None]
        mask = self._mask(draws, batch)
        white = tf.complex(
            draws.normal([batch, self.coils, self.count, *self.shape]), draws.normal([batch, self.coils, self.count, *self.shape])
        )
        level = tf.cast(draws.log_uniform([batch], *self.noise) / np.sqrt(2), tf.complex64)[:, None, None, None, None]
        kspace = tf.cast(mask, tf.complex64) * (fftc(objects[:, None] * maps, (-2, -1)) + level * white)
        start = tf.reduce_sum(tf.math.conj(maps) * ifftc(kspace, (-2, -1)), 1)
        scale = tf.cast(tf.reduce_max(tf.abs(start), [1, 2, 3], keepdims=True), tf.complex64)
        return (start / scale, kspace / scale[:, None], maps, mask), objects / scale, start / scale

    def loss_views(self, image: Any) -> Any:
        """Magnitudes, the frames as channels."""
        import tensorflow as tf

        return tf.transpose(tf.abs(image), [0, 2, 3, 1])

    def _mask(self, draws: Draws, batch: int) -> Any:
        """1 for sampled lines, ``[batch, 1, frame, y, 1]``: the centre, and others scattered, denser towards it, anew in each frame."""
        import tensorflow as tf

        lines = self.shape[0]
        distance = np.abs(np.arange(lines) - lines // 2)
        middle = (np.arange(lines) >= lines // 2 - self.centre // 2) & (np.arange(lines) < lines // 2 + (self.centre + 1) // 2)
        # Gumbel's trick: the largest of logarithm of the odds plus Gumbel noise are drawn without replacement.
        odds = np.where(middle, -np.inf, -np.log(0.2 + distance / lines)).astype(np.float32)
        keys = odds - tf.math.log(-tf.math.log(draws.uniform([batch, self.count, lines], 1e-6, 1 - 1e-6)))
        threshold = tf.math.top_k(keys, self._scattered)[0][..., -1:]
        return tf.cast((keys >= threshold) | middle, tf.float32)[:, None, :, :, None]
