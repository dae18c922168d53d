"""Gridded images of undersampled, noisy frames, without leaving the image grid.

Gridding what a NUFFT sampled is a convolution: A^H W A x = p * x, and the noise it carries, A^H W n, has the covariance A^H W^2 A,
a convolution too. Both follow from kernels made once per trajectory; training then needs FFTs only, which a compiler can fuse with
the network. The covariance is right for each pixel and its neighbourhood, and fades linearly with the distance to 0 at the size of the
image: so its spectrum is positive and noise can be drawn from it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
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
        import tensorflow as tf

        self.shape, self.cycle = shape, len(cycles[0])
        frames = [frame for cycle in cycles for frame in cycle]
        with ThreadPoolExecutor(8) as pool:
            spectra = list(pool.map(self._spectra, frames))
        # Tensors of their own, not constants of the graphs that use them: those would be copied when a graph is made.
        self._kernels, self._noise_roots = (tf.constant(np.stack(each)) for each in zip(*spectra, strict=True))

    def _spectra(self, frame: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Of gridding, and of the root of the noise's covariance, float32 ``[2 y, 2 x]``."""
        points, weights = frame
        kernel = get(ToeplitzGram(points, self.shape, weights).kernel).astype(np.float32)
        return kernel, _noise_root(get(ToeplitzGram(points, self.shape, weights**2).kernel))

    def __call__(self, draws: Draws, coil_images: Any, noise: Any) -> Any:
        """Gridded coil images ``[batch, frame, coil, y, x]`` of coil images of the same shape.

        noise: ``[batch]``, standard deviation of a pixel of a gridded coil image. Each series starts at a random frame of a random cycle.
        """
        import tensorflow as tf

        batch, count = coil_images.shape[:2]
        first = draws.integers([batch, 1], self.cycle) + tf.range(count)
        which = self.cycle * draws.integers([batch, 1], self._kernels.shape[0] // self.cycle) + first % self.cycle
        kernels = tf.gather(self._kernels, which)[:, :, None]
        roots = tf.gather(self._noise_roots, which)[:, :, None]
        rows, columns = self.shape
        padded = tf.pad(coil_images, [[0, 0]] * 3 + [[0, rows], [0, columns]])
        wide = [*coil_images.shape[:3], 2 * rows, 2 * columns]
        # Of variance 2 a pixel, and ifft2 divides by the number of pixels, where its root would make it unitary.
        roots *= noise[:, None, None, None, None] * math.sqrt(2 * rows * columns)
        white = tf.complex(roots * draws.normal(wide), roots * draws.normal(wide))
        return tf.signal.ifft2d(tf.signal.fft2d(padded) * tf.cast(kernels, tf.complex64) + white)[..., :rows, :columns]


def _noise_root(kernel: np.ndarray) -> np.ndarray:
    """The root of the spectrum ``[2 y, 2 x]`` of the covariance with this kernel, faded with distance and scaled to a variance of 1."""
    fading = np.array(1.0)
    for n in kernel.shape:
        distance = np.abs(np.fft.fftfreq(n) * n)
        fading = np.multiply.outer(fading, 1 - distance / (n // 2))
    covariance = np.fft.ifft2(kernel)
    spectrum = np.fft.fft2(covariance / covariance[0, 0].real * fading).real
    return np.sqrt(np.maximum(spectrum, 0)).astype(np.float32)
