"""Reconstructions on a GPU and, where it is too small, on the CPU; the GPU is a stand-in."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

from recon import device
from recon.resident import resident
from tests.recon import strict_cupy


class OnGpu:
    """An array that pretends to live on the GPU."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def get(self) -> np.ndarray:
        return self.values


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, module in strict_cupy.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(device, "_gpu", True)
    monkeypatch.setattr(device, "put", OnGpu)


def places(kspace: Any, maps: Any, factor: float = 1.0) -> Any:
    """Whether the function was given GPU arrays, times a factor."""
    on_gpu = isinstance(kspace, OnGpu) and isinstance(maps, OnGpu)
    result = np.array([factor * on_gpu, device.use_gpu()])
    return OnGpu(result) if on_gpu else result


@pytest.mark.usefixtures("gpu")
def test_arrays_go_to_the_gpu_and_back() -> None:
    assert resident(places)(np.ones(3), np.ones(3), factor=2.0).tolist() == [2, 1]
    kept = resident(places)(OnGpu(np.ones(3)), OnGpu(np.ones(3)))
    assert isinstance(kept, OnGpu)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("error", [MemoryError("full"), RuntimeError("cudaErrorMemoryAllocation: out of memory")])
def test_what_does_not_fit_is_computed_on_the_cpu(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    def full(kspace: Any, maps: Any) -> Any:
        if isinstance(kspace, OnGpu):
            raise error
        return places(kspace, maps)

    assert resident(full)(np.ones(3), np.ones(3)).tolist() == [0, 0]
    assert "full does not fit into GPU memory" in caplog.text
    assert device.use_gpu()


@pytest.mark.usefixtures("gpu")
def test_other_errors_are_not_hidden() -> None:
    def wrong(kspace: Any, maps: Any) -> Any:
        raise RuntimeError("an illegal memory access")

    with pytest.raises(RuntimeError, match="illegal"):
        resident(wrong)(np.ones(3), np.ones(3))


@pytest.mark.usefixtures("gpu")
def test_only_leading_arrays_are_copied() -> None:
    def kinds(*arguments: Any) -> Any:
        return OnGpu(np.array([isinstance(one, OnGpu) for one in arguments]))

    ones = np.ones(3)
    assert resident(kinds)(ones, 5, ones).tolist() == [True, False, False]
    assert resident(kinds)(ones, ones, ones).tolist() == [True, True, False]
