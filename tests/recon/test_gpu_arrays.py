"""Reconstructions of arrays on a GPU equal those on the CPU; the GPU is a stand-in (`scripts/gpu_check.py` has a real one)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from recon import device, gpu_plans, grappa, nufft
from recon.b0_sense import b0_sense
from recon.coils import inati, walsh
from recon.compressed_sensing import grasp, l1_wavelet, locally_low_rank, total_generalised_variation, total_variation
from recon.espirit import espirit
from recon.fourier import fftc
from recon.gridded_magnitude import gridded_magnitude
from recon.low_rank import low_rank_plus_sparse
from recon.nlinv import nlinv
from recon.phantoms import birdcage_coils, moving_heart, shepp_logan
from recon.sense import gridding
from recon.spirit import spirit
from recon.trajectory import radial_trajectory
from tests.recon import strict_cupy
from tests.recon.conftest import relative_error

SHAPE, COILS, FRAMES = (32, 32), 4, 3
MAPS = birdcage_coils(COILS, SHAPE).astype(np.complex64)
FULL = fftc(MAPS * shepp_logan(SHAPE).astype(np.complex64), (-2, -1))
MASK = np.arange(32)[:, None] % 2 * np.ones((1, 32)) > 0
MASK[12:20] = True
SPOKES = radial_trajectory(32, FRAMES * 13, ordering="golden").reshape(FRAMES, -1, 2).astype(np.float32)
HEART = np.stack(
    [nufft.Nufft(SPOKES[n], SHAPE, gpu=False).forward(MAPS * moving_heart(SHAPE, 40.0 * n).astype(np.complex64)) for n in range(FRAMES)]
)
GRID, RADIAL, SERIES = np.where(MASK, FULL, 0), HEART[0], HEART
FIELD = 40 * np.cos(np.arange(32) / 9)[:, None] * np.ones((1, 32))
TIMES = np.tile(np.linspace(0, 8e-3, 64), 13)
CINE_MASK = np.stack([np.roll(MASK, shift, 0) for shift in (0, 1, 3)])
CINE = np.where(CINE_MASK[:, None], FULL, 0)
# Not 0 anywhere: outside of the object, SciPy's running sums leave a rest of rounding that maps would be made from.
IMAGES = MAPS * (shepp_logan(SHAPE) + 0.01).astype(np.complex64)
VOLUME = np.stack([IMAGES, 0.5 * IMAGES, 0.2 * IMAGES], 1)
JOBS: dict[str, tuple[np.ndarray, Callable[[Any, Any], Any]]] = {
    "l1_wavelet": (GRID, lambda k, s: l1_wavelet(k, s, iterations=5, level=3)),
    "total_variation": (GRID, lambda k, s: total_variation(k, s, mask=MASK, iterations=3)),
    "total_variation_radial": (RADIAL, lambda k, s: total_variation(k, s, SPOKES[0], iterations=3)),
    "total_generalised_variation": (GRID, lambda k, s: total_generalised_variation(k, s, mask=MASK, iterations=5)),
    "grasp": (SERIES, lambda k, s: grasp(k, s, SPOKES, iterations=2)),
    "locally_low_rank": (SERIES, lambda k, s: locally_low_rank(k, s, SPOKES, iterations=3)),
    "b0_convolutions": (RADIAL, lambda k, s: b0_sense(k, SPOKES[0], s, FIELD, TIMES, 6, regularisation=0.01, toeplitz=True)),
    "b0_nuffts": (RADIAL, lambda k, s: b0_sense(k, SPOKES[0], s, FIELD, TIMES, 6, regularisation=0.01, toeplitz=False)),
    "low_rank_plus_sparse": (SERIES, lambda k, s: sum(low_rank_plus_sparse(k, s, SPOKES, iterations=3))),
    "grasp_cartesian": (CINE, lambda k, s: grasp(k, s, mask=CINE_MASK, iterations=2)),
    "espirit": (FULL, lambda k, _: espirit(k, calibration=16)),
    "espirit_two_sets": (FULL, lambda k, _: espirit(k, (40, 36), calibration=16, sets=2, soft=True)[0]),
    "walsh": (IMAGES, lambda k, _: walsh(k)),
    "walsh_exact": (IMAGES, lambda k, _: walsh(k, 3, exact=True)),
    "walsh_volume": (VOLUME, lambda k, _: walsh(k, 4, rank=3)),
    "inati": (IMAGES, lambda k, _: inati(k)),
    "inati_volume": (VOLUME, lambda k, _: inati(k, (1, 5, 4), rank=3)),
    "inati_large": (np.repeat(IMAGES[None], 64, 0), lambda k, _: inati(k)),
    "nlinv": (GRID, lambda k, _: nlinv(k, newton_steps=3)[1]),
    "gridding": (RADIAL, lambda k, s: gridding(k, SPOKES[0], None, SHAPE, s)),
    "gridded_magnitude": (RADIAL, lambda k, _: gridded_magnitude(k, SPOKES[0], None, SHAPE)),
    "nlinv_image": (GRID, lambda k, _: nlinv(k, newton_steps=3)[0]),
    "nlinv_slices": (np.stack([GRID, 2 * GRID]), lambda k, _: nlinv(k, mask=MASK, newton_steps=2)[1]),
    "nlinv_radial": (RADIAL, lambda k, _: nlinv(k, SPOKES[0], SHAPE, newton_steps=3)[1]),
    "spirit": (GRID, lambda k, _: spirit(k, MASK, calibration=8, iterations=5)),
    "spirit_volume": (np.repeat(GRID[..., None], 3, -1), lambda k, _: spirit(k, calibration=(8, 32, 3), kernel_size=3, iterations=3)),
    "grappa": (FULL[:, None], lambda k, s: grappa.reconstruct(k, s.conj()[:, None])),
}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    for name, module in strict_cupy.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(device, "_gpu", True)
    yield
    gpu_plans.clear_pool()


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("name", JOBS)
def test_the_gpu_gives_the_image_of_the_cpu(name: str) -> None:
    kspace, job = JOBS[name]
    with device.on_cpu():
        expected = job(kspace, MAPS)
    assert isinstance(expected, np.ndarray)
    # NUFFTs of tolerance 1e-3 on the CPU, convolutions of 1e-6 on the GPU
    bound = 1e-2 if name in ("grasp", "locally_low_rank", "low_rank_plus_sparse") else 5e-3
    assert relative_error(expected, job(kspace, MAPS)) < bound
    resident = job(device.put(kspace), device.put(MAPS))
    assert isinstance(resident, strict_cupy.DeviceArray)
    assert relative_error(expected, resident.get()) < bound
