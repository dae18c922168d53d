"""Exponential recovery M0 (1 - c exp(-t / tau)), what inversion and saturation recovery and MOLLI have in common."""

from __future__ import annotations

from typing import Any

import numpy as np

from recon.quantitative.tensors import column, times


def recovery(M0: Any, depth: Any, tau: Any, t: np.ndarray) -> Any:
    """Signal ``[contrast, *voxels]`` of M0 (1 - depth exp(-t / tau)), times in one unit; infinite times are fully recovered."""
    import tensorflow as tf

    finite = np.isfinite(t)
    remaining = tf.exp(-column(np.where(finite, t, 0), tau) / tau) * column(finite, tau)
    return times(M0, 1 - depth * remaining)
