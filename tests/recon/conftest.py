"""Inputs that several tests of `recon` share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest


@pytest.fixture(scope="session")
def oracle(shared: Path) -> Any:
    """Arrays computed by TensorFlow MRI 0.22, by name."""
    return np.load(shared / "reference" / "tfmri_oracle.npz", allow_pickle=False)


@pytest.fixture(scope="session")
def tf() -> Any:
    """TensorFlow, imported once."""
    import recon.device  # noqa: F401  (sets the logging level first)

    return pytest.importorskip("tensorflow")


def random_complex(shape: tuple[int, ...], seed: int = 0, dtype: str = "complex64") -> np.ndarray:
    """Complex normal numbers, the same for the same seed."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(dtype)


def random_trajectory(samples: int, axes: int, seed: int = 0, dtype: str = "float32") -> np.ndarray:
    """Uniform points of k-space in rad/pixel."""
    return np.random.default_rng(seed).uniform(-np.pi, np.pi, (samples, axes)).astype(dtype)


def relative_error(reference: np.ndarray, value: np.ndarray) -> float:
    """l2 error relative to the reference."""
    return float(np.linalg.norm(np.asarray(value) - reference) / np.linalg.norm(reference))
