"""Copies between host and GPU; the GPU is a stand-in whose memory is the host's (`scripts/bench_blocks.py` runs on a real one)."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
import threading
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recon.quantitative import copies
from recon.quantitative.copies import GpuCopies, _pitched, _root


class DeviceArray:
    """CuPy's array."""

    def __init__(self, host: np.ndarray) -> None:
        self.host, self.shape, self.dtype = host, host.shape, host.dtype
        self.data = types.SimpleNamespace(ptr=host.ctypes.data)

    def __dlpack__(self, **_: Any) -> Any:
        return self.host

    def get(self, stream: Any, out: np.ndarray, blocking: bool) -> None:
        out[...] = self.host
        stream.waiting += 1


class Stream:
    waiting, ptr = 0, 7

    def __init__(self, non_blocking: bool) -> None:
        assert non_blocking

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def synchronize(self) -> None:
        self.waiting = 0


class Cuda:
    """What is page-locked, and how often something was copied."""

    def __init__(self, room: int = 10**9) -> None:
        self.locked: dict[int, int] = {}
        self.room, self.copied = room, 0

    def hostRegister(self, at: int, size: int, _: int) -> None:
        if size > self.room:
            raise RuntimeError("cudaErrorMemoryAllocation")
        assert at not in self.locked
        self.locked[at] = size

    def hostUnregister(self, at: int) -> None:
        del self.locked[at]

    def memcpy2DAsync(self, to: int, pitch_to: int, at: int, pitch: int, width: int, count: int, kind: int, stream: int) -> None:
        assert kind in (1, 2)
        assert stream == 7
        for n in range(count):
            ctypes.memmove(to + n * pitch_to, at + n * pitch, width)
        self.copied += 1


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cuda]:
    import tensorflow as tf

    made = Cuda()
    within: Any = type("Device", (), {"__enter__": lambda self: self, "__exit__": lambda *_: None, "id": 0})
    cupy: Any = types.ModuleType("cupy")
    cupy.cuda = types.SimpleNamespace(Device=lambda number: within(), Stream=Stream, runtime=made)
    cupy.empty = lambda shape, dtype: DeviceArray(np.empty(shape, dtype))
    cupy.from_dlpack = lambda capsule: DeviceArray(capsule.tensor.numpy())
    cupyx: Any = types.ModuleType("cupyx")
    cupyx.empty_pinned = np.empty
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, "cupyx", cupyx)
    monkeypatch.setattr(tf.experimental.dlpack, "from_dlpack", tf.constant)
    yield made
    gc.collect()


def volume(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).random(shape, np.float32)


def test_parts_of_volumes_are_fetched_where_they_lie(cuda: Cuda) -> None:
    there = GpuCopies("GPU:0")
    whole = volume(3, 2, 10, 256, 256)
    parts = [whole[..., 2:5, :, :], whole[1, :, 9:], whole[0], whole]
    tensors = there.to_device(parts)
    assert list(cuda.locked.values()) == [whole.nbytes]
    for part, tensor in zip(parts, tensors, strict=True):
        assert np.array_equal(tensor.numpy(), part)
    lent = there.lend(tensors)
    for tensor, result in zip(tensors, there.from_device(lent), strict=True):
        assert np.array_equal(result, tensor.numpy())
    copied = cuda.copied
    other = np.full((3, 2, 10, 256, 256), 7, np.float32)
    there.from_device(lent[:1], [other[..., 2:5, :, :]])
    assert cuda.copied == copied + 1
    assert np.array_equal(other[..., 2:5, :, :], parts[0])
    assert (other[..., :2, :, :] == 7).all()
    assert (other[..., 5:, :, :] == 7).all()
    assert list(cuda.locked) == [whole.ctypes.data, other.ctypes.data]
    del other
    gc.collect()
    assert list(cuda.locked) == [whole.ctypes.data]
    del whole, parts, part
    assert not cuda.locked


@pytest.mark.parametrize("why", ["small", "no room", "file", "transposed", "empty", "borrowed", "repeated", "backwards", "integers"])
def test_other_arrays_go_through_a_buffer(why: str, cuda: Cuda, tmp_path: Any) -> None:
    there = GpuCopies("GPU:0")
    whole = volume(4, 512, 256)
    if why == "small":
        whole = whole[:, :8].copy()
    elif why == "no room":
        cuda.room = 1000
    elif why == "file":
        whole.tofile(tmp_path / "volume")
        whole = np.memmap(tmp_path / "volume", np.float32, "r", shape=whole.shape)
    elif why == "transposed":
        whole = whole.transpose(2, 0, 1)[:, ::2]
    elif why == "empty":
        whole = whole[:0]
    elif why == "borrowed":
        whole = np.frombuffer(whole.tobytes(), np.float32).reshape(whole.shape)
    elif why == "repeated":
        whole = np.broadcast_to(whole[:1], whole.shape)
    elif why == "backwards":
        whole = whole[::-1]
    elif why == "integers":
        whole = (whole * 100).astype(np.int32)
    for _ in range(2):
        (tensor,) = there.to_device([whole])
        assert np.array_equal(tensor.numpy(), whole)
    if whole.dtype == np.float32:
        target = np.zeros((2, *whole.shape), np.float64 if why == "small" else np.float32)[::-1, ..., ::-1][1]
        there.from_device(there.lend([tensor]), [target])
        assert np.array_equal(target, whole)
    assert not cuda.locked


def test_two_devices_lock_an_array_once(cuda: Cuda) -> None:
    """The second waits for the first, which is still at it, and uses its lock."""
    register, both = cuda.hostRegister, threading.Barrier(2)

    def slowly(at: int, size: int, flags: int) -> None:
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(0.2)  # a second one in here at the same time would end this at once
        register(at, size, flags)

    cuda.hostRegister = slowly  # type: ignore[method-assign]
    whole = volume(4, 512, 256)
    with ThreadPoolExecutor(2) as threads:
        tensors = list(threads.map(lambda part: GpuCopies("GPU:0").to_device([part])[0].numpy(), [whole[:2], whole[2:]]))
    assert np.array_equal(np.concatenate(tensors), whole)
    assert list(cuda.locked.values()) == [whole.nbytes]
    del whole
    gc.collect()
    assert not cuda.locked


def test_memory_that_is_used_again_is_locked_again(cuda: Cuda) -> None:
    there = GpuCopies("GPU:0")
    for n in range(5):
        array = np.full((2**20,), n, np.float32)
        (tensor,) = there.to_device([array[10:]])
        assert (tensor.numpy() == n).all()
        assert list(cuda.locked) == [array.ctypes.data]
        del array
        assert not cuda.locked


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.data())
def test_pieces_are_those_of_the_part(shape: list[int], data: Any) -> None:
    """Whatever is cut out of an array: the pieces hold its elements in order, or it is said not to consist of such."""
    whole = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    cuts = tuple(slice(*sorted(data.draw(st.tuples(st.integers(0, n), st.integers(0, n))))) for n in shape)
    part = whole[cuts]
    if part.size == 0 or (found := _pitched(part)) is None:
        assert part.size == 0 or sum(own.stop - own.start != n for own, n in zip(cuts, shape, strict=True)) > 1
        return
    count, width, pitch = found
    assert count * width == part.nbytes
    at = (part.ctypes.data - whole.ctypes.data) // 4
    flat = whole.ravel()
    pieces = [flat[at + n * pitch // 4 : at + n * pitch // 4 + width // 4] for n in range(count)]
    assert np.array_equal(np.concatenate(pieces), part.ravel())


def test_the_owner_of_memory_is_found() -> None:
    whole = np.zeros((4, 5))
    assert _root(whole[1:][:, 2]) is whole
    assert _root(np.frombuffer(b"12345678")) is None
    assert copies.LOCKED > 0
