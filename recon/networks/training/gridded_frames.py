"""Gridded images of undersampled, noisy frames, without leaving the image grid.

Gridding what a NUFFT sampled is a convolution: A^H W A x = p * x, and the noise it carries, A^H W n, has the covariance A^H W^2 A,
a convolution too. Both follow from kernels made once per trajectory; training then needs FFTs only, which a compiler can fuse with
the network. The covariance is right for each pixel and its neighbourhood, and fades linearly with the distance to 0 at the size of the
image: so its spectrum is positive and noise can be drawn from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from recon.device import get
from recon.networks.training.draws import Draws
from recon.operators.fourier import ToeplitzGram


class GriddedFrames:
    """What gridding makes of frames whose trajectories follow one another in a cycle.

    Args:
        cycles: one or more ways to scan, each the trajectories of consecutive frames, ``[sample, 2]`` in rad/pixel, and density
            weights ``[sample]`` of each; after the last frame comes the first. All cycles have as many frames.
        shape: of the images.
    """

    def __init__(self, cycles: Sequence[Sequence[tuple[np.ndarray, np.ndarray]]], shape: tuple[int, int]) -> None:
        if len({len(cycle) for cycle in cycles}) != 1:
            raise ValueError(f"all cycles must have as many frames, not {', '.join(str(len(cycle)) for cycle in cycles)}")
        self.shape, self.cycle = shape, len(cycles[0])
        frames = [frame for cycle in cycles for frame in cycle]
        self.kernels = np.stack([get(ToeplitzGram(points, shape, weights).kernel) for points, weights in frames]).astype(np.float32)
        self.noise_roots = np.stack([_noise_root(get(ToeplitzGram(points, shape, weights**2).kernel)) for points, weights in frames])

    def __call__(self, draws: Draws, coil_images: Any, noise: Any) -> Any:
        """Gridded coil images ``[batch, frame, coil, y, x]`` of coil images of the same shape.

        noise: ``[batch]``, standard deviation of a pixel of a gridded coil image. Each series starts at a random frame of a random cycle.
        """
        import tensorflow as tf

        batch, count = coil_images.shape[:2]
        first = draws.integers([batch, 1], self.cycle) + tf.range(count)
        which = self.cycle * draws.integers([batch, 1], len(self.kernels) // self.cycle) + first % self.cycle
        kernels = tf.gather(tf.constant(self.kernels), which)[:, :, None]
        roots = tf.gather(tf.constant(self.noise_roots), which)[:, :, None]
        rows, columns = self.shape
        padded = tf.pad(coil_images, [[0, 0]] * 3 + [[0, rows], [0, columns]])
        gridded = tf.signal.ifft2d(tf.signal.fft2d(padded) * tf.cast(kernels, tf.complex64))[..., :rows, :columns]
        wide = [*coil_images.shape[:3], 2 * rows, 2 * columns]
        white = tf.complex(draws.normal(wide), draws.normal(wide))
        # Of variance 2 a pixel, and ifft2 divides by the number of pixels, where its root would make it unitary.
        coloured = tf.signal.ifft2d(tf.cast(roots, tf.complex64) * white) * np.complex64(np.sqrt(2 * rows * columns))
        return gridded + tf.cast(noise[:, None, None, None, None], tf.complex64) * coloured[..., :rows, :columns]


def _noise_root(kernel: np.ndarray) -> np.ndarray:
    """The root of the spectrum ``[2 y, 2 x]`` of the covariance with this kernel, faded with distance and scaled to a variance of 1."""
    fading = np.array(1.0)
    for n in kernel.shape:
        distance = np.abs(np.fft.fftfreq(n) * n)
        fading = np.multiply.outer(fading, 1 - distance / (n // 2))
    covariance = np.fft.ifft2(kernel)
    spectrum = np.fft.fft2(covariance / covariance[0, 0].real * fading).real
    return np.sqrt(np.maximum(spectrum, 0)).astype(np.float32)
