"""What is copied to the GPU and when, with a stand-in for CuPy."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from recon import device


class OnGpu(np.ndarray):
    """An array that pretends to live on the GPU."""

    def get(self) -> np.ndarray:
        return np.asarray(self)


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The copies made to a pretended GPU."""
    made: list[Any] = []

    def asarray(array: np.ndarray) -> OnGpu:
        made.append(array.copy().view(OnGpu))
        return made[-1]

    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(asarray=asarray))
    monkeypatch.setattr(device, "_gpu", True)
    monkeypatch.setattr(device, "_uploads", device._Uploads(2))
    return made


def read_only(value: float) -> np.ndarray:
    array = np.full(3, value)
    array.setflags(write=False)
    return array


def test_only_what_cannot_change_is_copied_once(copies: list[Any]) -> None:
    fixed, writable = read_only(1), np.ones(3)
    assert device.put(fixed) is device.put(fixed)
    assert len(copies) == 1
    first = device.put(writable)
    writable += 1
    assert np.array_equal(first, np.ones(3))
    assert np.array_equal(device.put(writable), writable)
    view = writable[:]
    view.setflags(write=False)  # a read-only view of what can change
    device.put(view)
    writable += 1
    assert np.array_equal(device.put(view), writable)


def test_copies_are_few_and_go_with_their_arrays(copies: list[Any]) -> None:
    arrays = [read_only(value) for value in range(4)]
    for array in arrays:
        assert np.array_equal(device.put(array), array)
    assert len(device._uploads._kept) == 2
    again = len(copies)
    device.put(arrays[3])
    assert len(copies) == again
    device.put(arrays[0])
    assert len(copies) == again + 1
    del array, arrays
    assert not device._uploads._kept
