"""The logic of the GPU plans - batches, lack of memory, fall-back - with stand-ins for CuPy and cuFINUFFT.

The stand-ins compute with NumPy and finufft; the real libraries are tested by `scripts/gpu_check.py` on a GPU.
"""

from __future__ import annotations

import sys
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import finufft
import numpy as np
import pytest

from recon import device, nufft
from tests.recon.conftest import random_complex, random_trajectory, relative_error

SHAPE, TRAJECTORY = (14, 12), random_trajectory(100, 2)


class DeviceArray(np.ndarray):
    """An array that pretends to live on the GPU."""

    def get(self) -> np.ndarray:
        return np.asarray(self).view(np.ndarray)


class OutOfMemoryError(Exception):
    """What CuPy raises."""


class Gpu:
    """Stand-in for both libraries; refuses more than `capacity` transforms at once."""

    def __init__(self) -> None:
        self.capacity = 100
        self.made: list[tuple[int, int]] = []

    def modules(self) -> dict[str, Any]:
        stream = nullcontext()
        stream.synchronize = lambda: None  # type: ignore[attr-defined]
        pool = SimpleNamespace(free_all_blocks=lambda: None)
        cupy = SimpleNamespace(
            ndarray=DeviceArray,
            asarray=lambda a: np.asarray(a).view(DeviceArray),
            ascontiguousarray=lambda a, dtype: np.ascontiguousarray(a, dtype).view(DeviceArray),
            empty=lambda shape, dtype: np.full(shape, np.nan, dtype).view(DeviceArray),
            cuda=SimpleNamespace(Stream=SimpleNamespace(null=stream), memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError)),
            get_default_memory_pool=lambda: pool,
        )
        return {"cupy": cupy, "cufinufft": SimpleNamespace(Plan=self.plan)}

    def plan(self, kind: int, shape: tuple[int, ...], n_trans: int, **options: Any) -> Any:
        if n_trans > self.capacity:
            raise RuntimeError("Error creating plan.")
        self.made.append((kind, n_trans))
        plan = finufft.Plan(kind, shape, n_trans, nthreads=1, **options)
        return SimpleNamespace(
            setpts=lambda *points: plan.setpts(*(p.get() for p in points)),
            execute=lambda data, out: plan.execute(np.array(data), out=out.view(np.ndarray)),
        )


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    made = Gpu()
    for name, module in made.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(device, "_gpu", True)
    return made


def plans() -> tuple[nufft.Nufft, nufft.Nufft]:
    return nufft.Nufft(TRAJECTORY, SHAPE), nufft.Nufft(TRAJECTORY, SHAPE, gpu=False)


@pytest.mark.parametrize("count", [1, 3, nufft.GPU_BATCH, nufft.GPU_BATCH + 5, 2 * nufft.GPU_BATCH + 1])
def test_batches_of_any_size_equal_the_cpu(gpu: Gpu, count: int) -> None:
    ours, reference = plans()
    images, kspace = random_complex((count, *SHAPE)), random_complex((count, 100))
    for _ in range(2):
        assert relative_error(reference.forward(images), ours.forward(images)) < 2e-3
        assert relative_error(reference.adjoint(kspace), ours.adjoint(kspace)) < 2e-3
    assert len(gpu.made) <= 4  # a plan for whole batches and one for the rest, each way, made once
    assert all(size <= nufft.GPU_BATCH for _, size in gpu.made)


def test_arrays_stay_where_they_are(gpu: Gpu) -> None:
    ours, _ = plans()
    assert isinstance(ours.forward(random_complex((2, *SHAPE)).view(DeviceArray)), DeviceArray)
    assert type(ours.forward(random_complex((2, *SHAPE)))) is np.ndarray


def test_too_little_memory_makes_batches_smaller(gpu: Gpu, caplog: pytest.LogCaptureFixture) -> None:
    ours, reference = plans()
    gpu.capacity = 3
    kspace = random_complex((11, 100))
    assert relative_error(reference.adjoint(kspace), ours.adjoint(kspace)) < 2e-3
    assert max(size for _, size in gpu.made) == 3
    assert "trying 3 at once" in caplog.text
    assert "using the CPU" not in caplog.text


def test_no_memory_at_all_falls_back_to_the_cpu(gpu: Gpu, caplog: pytest.LogCaptureFixture) -> None:
    ours, reference = plans()
    gpu.capacity = 0
    kspace = random_complex((5, 100))
    assert np.array_equal(reference.adjoint(kspace), ours.adjoint(kspace))
    assert "using the CPU" in caplog.text


def test_the_self_test_passes_and_fails_on_the_device_it_is_given(gpu: Gpu, caplog: pytest.LogCaptureFixture) -> None:
    assert device.self_test()
    right = gpu.plan

    def wrong(kind: int, shape: tuple[int, ...], n_trans: int, **options: Any) -> Any:
        return right(kind, shape, n_trans, **{**options, "isign": -options["isign"]})

    sys.modules["cufinufft"].Plan = wrong  # type: ignore[attr-defined]
    assert not device.self_test()
    assert "differs from the CPU's" in caplog.text
