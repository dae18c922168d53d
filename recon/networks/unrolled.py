"""An unrolled network as a function of undersampled k-space: started, scaled as in training, compiled."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from recon.fourier import ifftc
from recon.networks.compiled import Compiled
from recon.networks.named import frames_of, multiple, named
from recon.networks.weights import written


class Unrolled:
    """Clips of undersampled Cartesian k-space to images.

    Args:
        name: of the weights, for the record.
        network: takes start image, k-space, maps and mask as `recon.networks.varnet.VarNet` does.
        frames: of a clip.
        multiple: of which image sizes must be multiples.
    """

    def __init__(self, name: str, network: Any, frames: int, multiple: int = 1) -> None:
        self.name, self.network, self.frames, self.multiple = name, network, frames, multiple
        self._run = Compiled(self._reconstruct, network)

    def __call__(self, kspace: np.ndarray, mask: np.ndarray, maps: np.ndarray) -> np.ndarray:
        """Reconstruct a clip. Raises whatever the network's runtime raises.

        Args:
            kspace: ``[coil, frame, y, x]``, 0 where nothing was sampled.
            mask: true where sampled, ``[frame, y, x]``.
            maps: ``[coil, y, x]``.

        Returns:
            complex64 ``[frame, y, x]``, in the units of `kspace`.
        """
        return self._run(*(np.ascontiguousarray(a, t) for a, t in ((kspace, np.complex64), (mask, np.float32), (maps, np.complex64))))

    def warm(self, coils: int, shape: tuple[int, int]) -> None:
        """Prepare for clips of so many coils and images ``[y, x]``, see `Compiled.warm`."""
        clip = (self.frames, *shape)
        self._run.warm(((coils, *clip), np.complex64), (clip, np.float32), ((coils, *shape), np.complex64))

    def _reconstruct(self, kspace: Any, mask: Any, maps: Any) -> Any:
        import tensorflow as tf

        kspace, maps, mask = (tf.convert_to_tensor(x) for x in (kspace, maps, mask))
        kspace, maps, mask = kspace[None], maps[None, :, None], mask[None, None]
        start = tf.reduce_sum(tf.math.conj(maps) * ifftc(kspace, (-2, -1)), 1)
        brightest = tf.reduce_max(tf.abs(start))
        scale = tf.complex(tf.where(brightest > 0, brightest, 1.0), 0.0)
        return self.network((start / scale, kspace / scale, maps, mask))[0] * scale


def unrolled(weights: str, architecture: str, frames: int | None = None) -> Unrolled:
    """The network for a name of the catalogue or a file, loaded once a process; a file that has changed since is loaded again.

    Arguments: see `named` and `frames_of`.

    Raises:
        WeightsError: see there.
    """
    return _unrolled(weights, architecture, frames, written(weights))


@lru_cache(maxsize=4)
def _unrolled(weights: str, architecture: str, frames: int | None, _: int) -> Unrolled:
    name, network, entry = named(weights, architecture, "unrolled")
    return Unrolled(name, network, frames_of(entry, network, frames), multiple(network))
