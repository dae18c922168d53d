"""Slices of a head to train networks on: the MNI template that nilearn's package carries, no download.

    python scripts/anatomy.py anatomy.npz      (needs nilearn)

Axial, coronal and sagittal slices, 4 mm apart, skull and all where the template has them; every fifth is kept apart for validation.
"""

from __future__ import annotations

import sys

import numpy as np

SIZE, STEP = 208, 4


def main() -> None:
    """Write ``train`` and ``validation``, uint8 ``[slice, y, x]``."""
    from nilearn.datasets import load_mni152_template

    volume = np.asarray(load_mni152_template(resolution=1).get_fdata())
    volume = volume / volume.max()
    slices = []
    for axis in range(3):
        for n in range(0, volume.shape[axis], STEP):
            slice_ = np.flip(volume.take(n, axis).T, 0)
            if (slice_ > 0.1).mean() > 0.1:
                slices.append(fitted(slice_))
    images = np.stack(slices)
    kept = np.arange(len(images)) % 5 != 4
    np.savez_compressed(sys.argv[1], train=images[kept], validation=images[~kept])


def fitted(image: np.ndarray) -> np.ndarray:
    """Cropped or padded about the middle to ``[SIZE, SIZE]``, uint8."""
    result = np.zeros((SIZE, SIZE), np.uint8)
    target, source = [], []
    for n in image.shape:
        kept = min(n, SIZE)
        target.append(slice((SIZE - kept) // 2, (SIZE - kept) // 2 + kept))
        source.append(slice((n - kept) // 2, (n - kept) // 2 + kept))
    result[tuple(target)] = np.round(255 * image[tuple(source)])
    return result


if __name__ == "__main__":
    main()
