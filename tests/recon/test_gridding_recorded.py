"""Gridding as a CUDA graph; the GPU is a stand-in (`scripts/gpu_check.py --only graphs` has a real one)."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from recon import device, gpu_plans, gridding_recorded
from recon.gridded_magnitude import gridded_magnitude
from recon.gridding_recorded import recorded_gridding
from tests.recon import recording_cupy
from tests.recon.conftest import relative_error
from tests.recon.strict_cupy import DeviceArray

SHAPE, COILS, SAMPLES = (20, 24), 3, 300


def magnitude(threads: int, images: np.ndarray, coils: int, pixels: int, factor: float, result: np.ndarray) -> None:
    assert threads >= pixels
    result[...] = factor * np.sqrt((np.abs(images[:coils]) ** 2).sum(0))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    fakes = recording_cupy.modules({"magnitude": magnitude})
    for name, fake in fakes.items():
        monkeypatch.setitem(sys.modules, name, fake)
    monkeypatch.setattr(device, "_gpu", True)
    gridding_recorded._kernel.cache_clear()
    gridding_recorded.clear_graphs()  # those that other stand-ins could not make
    yield fakes
    gpu_plans.clear_pool()
    gridding_recorded.clear_graphs()
    gridding_recorded._kernel.cache_clear()


def case(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    kspace = random.standard_normal((COILS, SAMPLES)) + 1j * random.standard_normal((COILS, SAMPLES))
    return kspace.astype(np.complex64), random.uniform(-3, 3, (SAMPLES, 2)).astype(np.float32), random.random(SAMPLES).astype(np.float32)


def there(kspace: np.ndarray, trajectory: np.ndarray, weights: np.ndarray) -> np.ndarray:
    found = gridded_magnitude(DeviceArray(kspace), trajectory, DeviceArray(weights), SHAPE)
    return np.array(found.get())


def test_a_trajectory_that_comes_back_is_recorded_and_takes_other_data(gpu: Any) -> None:
    kspace, trajectory, weights = case(0)
    images = []
    for turn in range(4):
        other = kspace * (1 + turn) + turn
        heavier = weights + turn
        with device.on_cpu():
            expected = gridded_magnitude(other, trajectory, heavier, SHAPE)
        images.append((expected, there(other, trajectory, heavier)))
        assert len(gridding_recorded._graphs) == (turn > 0)
    for expected, found in images:  # none was overwritten by the next
        assert found.dtype == np.float32
        assert relative_error(expected, found) < 2e-3


def test_each_trajectory_and_number_of_coils_has_its_own_graph(gpu: Any) -> None:
    kspace, trajectory, weights = case(1)
    for _ in range(2):
        for points in (trajectory, -trajectory):
            for coils in (1, COILS):
                with device.on_cpu():
                    expected = gridded_magnitude(kspace[:coils], points, weights, SHAPE)
                assert relative_error(expected, there(kspace[:coils], points, weights)) < 2e-3
    assert len(gridding_recorded._graphs) == 4


def test_of_too_many_trajectories_none_is_recorded(gpu: Any) -> None:
    kspace, trajectory, weights = case(4)
    for _ in range(3):
        for n in range(gridding_recorded.RECORDED + 1):
            there(kspace, trajectory * np.float32(1 - n / 100), weights)
    assert len(gridding_recorded._graphs) == 0


def test_a_plan_goes_before_the_stream_that_it_frees_its_memory_on(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """cuFINUFFT ends the process otherwise."""
    gone: list[str] = []
    monkeypatch.setattr(recording_cupy.Plan, "__del__", lambda self: gone.append("plan"), raising=False)
    monkeypatch.setattr(recording_cupy.Stream, "__del__", lambda self: gone.append("stream"), raising=False)
    made = gridding_recorded.RecordedGridding(case(5)[1], COILS, SHAPE, 1e-3)
    del made
    gc.collect()
    assert gone == ["plan", "stream"]


@pytest.mark.parametrize("why", ["large", "double", "frames", "volume"])
def test_what_is_not_worthwhile_is_not_recorded(why: str, gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kspace, trajectory, _ = case(2)
    shape: tuple[int, ...] = SHAPE
    if why == "large":
        monkeypatch.setattr(gridding_recorded, "LARGEST", 100)
    elif why == "double":
        kspace = kspace.astype(np.complex128)
    elif why == "frames":
        kspace, trajectory = np.stack([kspace, kspace]), np.stack([trajectory, trajectory])
    else:
        shape = (4, *SHAPE)
    for _ in range(3):
        assert recorded_gridding(DeviceArray(kspace), trajectory, shape, 1e-3) is None


def test_without_room_for_a_graph_images_come_all_the_same(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise MemoryError("out of memory")

    monkeypatch.setattr(gridding_recorded, "RecordedGridding", full)
    kspace, trajectory, weights = case(3)
    with device.on_cpu():
        expected = gridded_magnitude(kspace, trajectory, weights, SHAPE)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert relative_error(expected, there(kspace, trajectory, weights)) < 2e-3
    assert [record.message for record in caplog.records if "CUDA graph" in record.message] == [
        "no CUDA graph of a gridding (MemoryError: out of memory); queueing it from Python"
    ]
