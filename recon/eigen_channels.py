"""Eigen channels: coils sorted by signal, by a Karhunen-Loève transform over calibration data.

Buehrer et al., Magn Reson Med 2007;57:1131. Rotating the coils changes nothing in a reconstruction that combines them linearly;
dropping the last eigen channels makes it faster.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg


def eigen_channels(data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Principal directions of the channels.

    Args:
        data: complex ``[coil, ...]``; the mean over all points is taken out.

    Returns:
        Matrix ``[eigen channel, coil]``, unitary, strongest first: ``apply = matrix @ data``; and the eigenvalues (variance times
        number of points), descending. With fewer points than coils the remaining directions complete the basis.

    Raises:
        ValueError: values that are not finite.
    """
    coils = data.shape[0]
    points = data.reshape(coils, -1).T
    if not np.isfinite(points).all():
        raise ValueError("eigen channels: the calibration data hold values that are not finite")
    centred = points - points.mean(axis=0)
    triangle = scipy.linalg.qr(centred, mode="r", check_finite=False)[0][:coils]
    _, singular, vectors = scipy.linalg.svd(triangle, lapack_driver="gesvd", check_finite=False)
    values = np.zeros(coils)
    values[: singular.size] = singular.astype(np.float64) ** 2
    # data = U S V^H over points; a channel vector d becomes V^T d
    return vectors.conj(), values


def kept_channels(values: np.ndarray, threshold: float) -> int:
    """Number of leading channels before the first whose eigenvalue falls below `threshold` times the first; all if threshold <= 0."""
    if threshold <= 0:
        return int(values.size)
    weak = np.flatnonzero(values[1:] < threshold * values[0])
    return int(weak[0]) + 1 if weak.size else int(values.size)
