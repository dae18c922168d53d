"""Copies between the host's arrays and a device's tensors: on a GPU by its copy engines, while it computes.

TensorFlow copies pageable memory piece by piece and in the order of its computations. Here arrays of volumes are page-locked, so that
the GPU fetches parts of them by itself, on streams of their own.
"""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

LOCKED = 2**20
"""Bytes of arrays from which on they are page-locked; smaller ones go through a buffer that is."""
_ALIGNMENT = 64
"""Bytes. NumPy's 16 are not enough for TensorFlow's kernels."""
TO_DEVICE, TO_HOST = 1, 2
"""CUDA's `cudaMemcpyHostToDevice` and `cudaMemcpyDeviceToHost`."""


def aligned(part: np.ndarray) -> np.ndarray:
    """A contiguous copy, aligned as TensorFlow wants memory that it takes as it is."""
    memory = np.empty(part.nbytes + _ALIGNMENT, np.uint8)
    copy: np.ndarray = memory[-memory.ctypes.data % _ALIGNMENT :][: part.nbytes].view(part.dtype).reshape(part.shape)
    np.copyto(copy, part)
    return copy


class TensorFlowCopies:
    """Copies by TensorFlow.

    device: name.
    """

    def __init__(self, device: str) -> None:
        self.device = device

    def to_device(self, parts: Sequence[np.ndarray]) -> list[Any]:
        """Tensors on the device with the contents of these arrays, which may be written to afterwards."""
        import tensorflow as tf

        with tf.device(self.device):
            # `tf.constant` would copy once more: 1.5 GB/s instead of 4.3.
            return [tf.identity(tf.experimental.dlpack.from_dlpack(aligned(part).__dlpack__())) for part in parts]

    def lend(self, tensors: Sequence[Any]) -> list[Any]:
        """What `from_device` takes, of tensors that are computed."""
        return list(tensors)

    def from_device(self, lent: Sequence[Any], into: list[np.ndarray] | None = None) -> list[np.ndarray]:
        """Arrays with the contents of tensors: new ones, or those that it is to write to."""
        results = [one.numpy() for one in lent]
        if into is None:
            return results
        for target, result in zip(into, results, strict=True):
            target[...] = result
        return into


class GpuCopies:
    """Copies on streams of their own. `to_device` and `from_device` may each be called by one thread at a time.

    device: name; its number is that of the GPU among those that CUDA sees.
    """

    def __init__(self, device: str) -> None:
        import cupy

        self.name = device
        self.device = cupy.cuda.Device(int(device.rpartition(":")[2]))
        with self.device:
            self._up, self._down = (cupy.cuda.Stream(non_blocking=True) for _ in range(2))

    def to_device(self, parts: Sequence[np.ndarray]) -> list[Any]:
        """Tensors with the contents of these arrays, all of them there. Their memory is CuPy's: what uses them must be done before
        they go.

        Raises:
            MemoryError: they do not fit.
        """
        import tensorflow as tf

        with self.device, self._up:
            buffers: list[Any] = []
            arrays = [self._sent(part, buffers) if part.dtype.kind in "fc" else None for part in parts]
            self._up.synchronize()
        with tf.device(self.name):  # integers stay on the host: TensorFlow has them there
            return [tf.constant(part.copy()) if one is None else _lent(one) for one, part in zip(arrays, parts, strict=True)]

    def lend(self, tensors: Sequence[Any]) -> list[Any]:
        """See `TensorFlowCopies`. TensorFlow waits for its stream when it lends a tensor: call it while nothing else is computed."""
        import cupy

        from recon.hand_over import Capsule

        with self.device:
            return [cupy.from_dlpack(Capsule(tensor, self.device.id)) for tensor in tensors]

    def from_device(self, lent: Sequence[Any], into: list[np.ndarray] | None = None) -> list[np.ndarray]:
        """See `TensorFlowCopies`."""
        from cupyx import empty_pinned

        with self.device, self._down:
            results = [empty_pinned(one.shape, one.dtype) for one in lent] if into is None else into
            moved: list[tuple[np.ndarray, np.ndarray]] = []
            for one, result in zip(lent, results, strict=True):
                pitched = None if into is None or one.dtype != result.dtype else _reached(result)
                if pitched is None:
                    buffer = result if into is None else empty_pinned(one.shape, one.dtype)
                    one.get(stream=self._down, out=buffer, blocking=False)
                    moved.append((result, buffer))
                else:
                    count, width, pitch = pitched
                    _copy(result.ctypes.data, pitch, one.data.ptr, width, width, count, TO_HOST, self._down)
            self._down.synchronize()
        for result, buffer in moved:
            if result is not buffer:
                result[...] = buffer
        return results

    def _sent(self, part: np.ndarray, buffers: list[Any]) -> Any:
        """A CuPy array that a copy has been queued for; `buffers` keeps what it is copied from."""
        import cupy
        from cupyx import empty_pinned

        array = cupy.empty(part.shape, part.dtype)
        pitched = _reached(part)
        if pitched is None:
            buffer = empty_pinned(part.shape, part.dtype)
            buffer[...] = part
            buffers.append(buffer)
            part, pitched = buffer, (1, part.nbytes, part.nbytes)
        count, width, pitch = pitched
        _copy(array.data.ptr, width, part.ctypes.data, pitch, width, count, TO_DEVICE, self._up)
        return array


def _copy(to: int, pitch_to: int, at: int, pitch_at: int, width: int, count: int, kind: int, stream: Any) -> None:
    import cupy

    cupy.cuda.runtime.memcpy2DAsync(to, pitch_to, at, pitch_at, width, count, kind, stream.ptr)


def _reached(part: np.ndarray) -> tuple[int, int, int] | None:
    """See `_pitched`; None too where a GPU cannot reach the memory by itself."""
    pitched = _pitched(part)
    return pitched if pitched is not None and _locked(_root(part)) else None


def _lent(array: Any) -> Any:
    import tensorflow as tf

    return tf.experimental.dlpack.from_dlpack(array.__dlpack__(max_version=None))  # TensorFlow wants the unversioned capsule


def _pitched(part: np.ndarray) -> tuple[int, int, int] | None:
    """How many pieces of how many bytes, how far apart, an array of slices `[..., slice, y, x]` consists of; None if not equally far."""
    if part.size == 0:
        return None
    if part.flags.c_contiguous:
        return 1, part.nbytes, part.nbytes
    axis = part.ndim
    width = part.itemsize
    while axis and part.strides[axis - 1] == width:
        axis -= 1
        width *= part.shape[axis]
    if axis == 0:
        return 1, width, width
    pitch = part.strides[axis - 1]
    if pitch < width:  # repeated, or backwards
        return None
    reach = pitch
    for length, stride in zip(part.shape[axis - 1 :: -1], part.strides[axis - 1 :: -1], strict=True):
        if stride != reach:
            return None
        reach *= length
    return part.nbytes // width, width, pitch


def _root(part: np.ndarray) -> np.ndarray | None:
    """The array that owns the memory; None where it is no array."""
    while isinstance(part.base, np.ndarray):
        part = part.base
    return part if part.base is None and part.flags.owndata else None


_known: dict[int, tuple[weakref.ref[np.ndarray], bool]] = {}
_turn = threading.RLock()
"""Lanes of several devices meet the same array at the same time; an array may go while another one is locked."""


def _locked(array: np.ndarray | None) -> bool:
    """Whether an array's memory is page-locked, done now and undone when it goes."""
    if array is None or array.nbytes < LOCKED:
        return False
    import cupy

    number = id(array)
    with _turn:
        kept = _known.get(number)
        if kept is None or kept[0]() is not array:
            locked = _lock(array.ctypes.data, array.nbytes)
            kept = weakref.ref(array, functools.partial(_gone, number, array.ctypes.data, cupy.cuda.runtime.hostUnregister)), locked
            _known[number] = kept
    return kept[1]


def _gone(number: int, at: int, unlock: Callable[[int], None], gone: Any) -> None:
    """An array goes; its memory does just after this."""
    with _turn:
        kept = _known.get(number)
        if kept is None or kept[0] is not gone:
            return
        del _known[number]
        if kept[1]:
            unlock(at)


def _lock(at: int, size: int) -> bool:
    import cupy

    try:
        cupy.cuda.runtime.hostRegister(at, size, 0)
    except RuntimeError:  # not enough memory that can be locked, or a page that another array has
        return False
    return True
