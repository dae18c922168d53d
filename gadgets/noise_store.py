"""Noise covariances kept between measurements, by measurement id.

Scanners often measure the noise in a scan of its own; the imaging scan's header then names it in ``measurementDependency``. A store is a
folder with one ``.npz`` file a measurement.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

LEGACY_PREFIX = "GadgetronNoiseCovarianceMatrix_"
"""What clients of older Gadgetrons put before the measurement id."""


@dataclass(frozen=True)
class StoredNoise:
    """A noise covariance ``[channel, channel]`` (complex128, E n n^H in the data's units), sample time in us and number of samples."""

    covariance: np.ndarray
    dwell_us: float
    samples: int


class NoiseStore:
    """A folder of noise covariances. Files appear whole or not at all, so that scans running side by side can share it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, measurement_id: str, noise: StoredNoise) -> None:
        """Keep the noise of a measurement. Raises OSError when the folder cannot be written."""
        self.folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self.folder, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, covariance=noise.covariance, dwell_us=noise.dwell_us, samples=noise.samples)
            os.replace(name, self._path(measurement_id))
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise

    def load(self, measurement_id: str) -> StoredNoise | None:
        """The noise of a measurement; None when there is none. Raises ValueError naming the file when it is damaged."""
        path = self._path(measurement_id)
        try:
            with np.load(path, allow_pickle=False) as stored:
                return StoredNoise(stored["covariance"].astype(np.complex128), float(stored["dwell_us"]), int(stored["samples"]))
        except FileNotFoundError:
            return None
        except Exception as error:
            raise ValueError(f"stored noise {path} cannot be read ({error}); delete it and measure the noise again") from error

    def _path(self, measurement_id: str) -> Path:
        """A file name that cannot leave the folder and differs for different ids."""
        plain = measurement_id.removeprefix(LEGACY_PREFIX)
        readable = re.sub(r"[^A-Za-z0-9_-]", "_", plain)[:80]
        return self.folder / f"noise_{readable}_{hashlib.sha256(plain.encode()).hexdigest()[:12]}.npz"
