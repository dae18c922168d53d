"""The logic of the GPU plans - batches, lack of memory, fall-back - with stand-ins for CuPy and cuFINUFFT.

The stand-ins compute with NumPy and finufft; the real libraries are tested by `scripts/gpu_check.py` on a GPU.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import finufft
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recon import device, gpu_plans, nufft
from recon.gpu_plans import PlanPool
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
        self.pointed: list[int] = []

    def modules(self) -> dict[str, Any]:
        stream: Any = nullcontext()
        stream.synchronize, stream.ptr = lambda: None, 0
        pool = SimpleNamespace(free_all_blocks=lambda: None)
        cupy = SimpleNamespace(
            ndarray=DeviceArray,
            asarray=lambda a: np.asarray(a).view(DeviceArray),
            ascontiguousarray=lambda a, dtype: np.ascontiguousarray(a, dtype).view(DeviceArray),
            empty=lambda shape, dtype: np.full(shape, np.nan, dtype).view(DeviceArray),
            cuda=SimpleNamespace(
                Stream=SimpleNamespace(null=stream),
                get_current_stream=lambda: stream,
                memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
            ),
            get_default_memory_pool=lambda: pool,
        )
        return {"cupy": cupy, "cufinufft": SimpleNamespace(Plan=self.plan)}

    def plan(self, kind: int, shape: tuple[int, ...], n_trans: int, gpu_maxbatchsize: int, gpu_method: int, **options: Any) -> Any:
        if n_trans > self.capacity:
            raise RuntimeError("Error creating plan.")
        assert gpu_maxbatchsize == n_trans
        assert gpu_method == (1 if kind == 1 else 2)
        self.made.append((kind, n_trans))
        plan = finufft.Plan(kind, shape, n_trans, nthreads=1, **options)
        return SimpleNamespace(
            setpts=lambda *points: (self.pointed.append(kind), plan.setpts(*(p.get() for p in points))),
            execute=lambda data, out: plan.execute(np.array(data), out=out.view(np.ndarray)),
        )


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gpu]:
    made = Gpu()
    for name, module in made.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(device, "_gpu", True)
    gpu_plans.clear_pool()
    yield made
    gpu_plans.clear_pool()


def plans() -> tuple[nufft.Nufft, nufft.Nufft]:
    return nufft.Nufft(TRAJECTORY, SHAPE), nufft.Nufft(TRAJECTORY, SHAPE, gpu=False)


@pytest.mark.parametrize("count", [1, 3, gpu_plans.GPU_BATCH, gpu_plans.GPU_BATCH + 5, 2 * gpu_plans.GPU_BATCH + 1])
def test_batches_of_any_size_equal_the_cpu(gpu: Gpu, count: int) -> None:
    ours, reference = plans()
    images, kspace = random_complex((count, *SHAPE)), random_complex((count, 100))
    for _ in range(2):
        assert relative_error(reference.forward(images), ours.forward(images)) < 2e-3
        assert relative_error(reference.adjoint(kspace), ours.adjoint(kspace)) < 2e-3
    assert len(gpu.made) <= 4  # a plan for whole batches and one for the rest, each way, made once
    assert all(size <= gpu_plans.GPU_BATCH for _, size in gpu.made)


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


def test_new_trajectories_take_over_the_plans_of_old_ones(gpu: Gpu) -> None:
    image = random_complex((2, *SHAPE))
    for seed in range(3 * gpu_plans.ALIKE_PLANS):
        trajectory = random_trajectory(100, 2, seed)
        ours, reference = nufft.Nufft(trajectory, SHAPE), nufft.Nufft(trajectory, SHAPE, gpu=False)
        for _ in range(2):
            assert relative_error(reference.forward(image), ours.forward(image)) < 2e-3
    assert len(gpu.made) == gpu_plans.ALIKE_PLANS
    assert len(gpu.pointed) == 3 * gpu_plans.ALIKE_PLANS  # once a trajectory


@given(calls=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5)), max_size=40))
def test_the_pool_is_bounded_and_its_plans_have_the_points_asked_for(calls: list[tuple[int, int]]) -> None:
    pool = PlanPool(size=3, alike=2)
    points: list[list[Any]] = [[number] for number in range(6)]

    class Plan:
        kind: int
        points: int

        def setpts(self, points: int) -> None:
            self.points = points

    for kind, number in calls:
        plan = pool.get(kind, points[number], Plan)
        assert plan.__dict__.setdefault("kind", kind) == kind
        assert plan.points == number
        assert pool.get(kind, points[number], Plan) is plan
        assert len(pool) <= 3
        assert sum(slot.kind == kind for slot in pool._slots) <= 2
