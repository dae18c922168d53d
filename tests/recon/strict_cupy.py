"""A stand-in for CuPy that computes with NumPy and is as strict: nothing becomes a NumPy array by itself, or is mixed with one."""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import finufft
import numpy as np
import scipy.fft


class DeviceArray(np.lib.mixins.NDArrayOperatorsMixin):
    """An array that pretends to live on the GPU."""

    def __init__(self, values: Any) -> None:
        self.host = np.asarray(values)

    def get(self) -> np.ndarray:
        return self.host.copy()

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("implicit conversion to a NumPy array is not allowed")

    def __getattr__(self, name: str) -> Any:
        if name == "host" or name.startswith("__"):
            raise AttributeError(name)
        value = getattr(self.host, name)
        return on_device(value) if callable(value) and not isinstance(value, np.ndarray) else wrapped(value)

    def __getitem__(self, index: Any) -> Any:
        return wrapped(self.host[unwrapped(index)])

    def __setitem__(self, index: Any, value: Any) -> None:
        refuse_numpy(value)
        self.host[unwrapped(index)] = unwrapped(value)

    def __len__(self) -> int:
        return len(self.host)

    def __float__(self) -> float:
        return float(self.host)

    def __int__(self) -> int:
        return int(self.host)

    def __bool__(self) -> bool:
        return bool(self.host)

    def __iter__(self) -> Iterator[Any]:
        return (wrapped(part) for part in self.host)

    def __array_ufunc__(self, function: Any, method: str, *inputs: Any, **options: Any) -> Any:
        return on_device(getattr(function, method))(*inputs, **options)

    def __array_function__(self, function: Any, _: Any, inputs: Any, options: Any) -> Any:
        return on_device(function)(*inputs, **options)


def on_device(function: Any) -> Any:
    """The NumPy function for device arrays."""

    def call(*inputs: Any, **options: Any) -> Any:
        refuse_numpy([inputs, list(options.values())])
        return wrapped(function(*unwrapped(inputs), **{name: unwrapped(value) for name, value in options.items()}))

    return call


def refuse_numpy(value: Any) -> None:
    """Raise where CuPy would: at a NumPy array among the arguments."""
    if isinstance(value, np.ndarray) and value.ndim:
        raise TypeError("unsupported type numpy.ndarray")
    if isinstance(value, (tuple, list)):
        for part in value:
            refuse_numpy(part)


def wrapped(value: Any) -> Any:
    """Arrays and numbers of NumPy as device arrays."""
    if isinstance(value, tuple):
        return tuple(map(wrapped, value))
    return DeviceArray(value) if isinstance(value, (np.ndarray, np.generic)) else value


def unwrapped(value: Any) -> Any:
    """Device arrays as NumPy arrays."""
    if isinstance(value, (tuple, list)):
        return type(value)(map(unwrapped, value))
    return value.host if isinstance(value, DeviceArray) else value


class Functions(types.ModuleType):
    """The functions of a module of NumPy for device arrays."""

    def __init__(self, name: str, module: Any) -> None:
        super().__init__(name)
        self.module = module

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.module, name)
        return on_device(value) if callable(value) and not isinstance(value, type) else value


class Plan:
    """cuFINUFFT's plan."""

    def __init__(self, kind: int, shape: Any, n_trans: int, eps: float, isign: int, dtype: str, **_: Any) -> None:
        self.plan = finufft.Plan(kind, shape, n_trans=n_trans, eps=eps, isign=isign, dtype=dtype)

    def setpts(self, *points: Any) -> None:
        self.points = unwrapped(points)
        self.plan.setpts(*self.points)

    def execute(self, source: Any, out: Any) -> None:
        out.host[...] = self.plan.execute(np.ascontiguousarray(source.host)).reshape(out.shape)


def contiguous(values: Any, dtype: Any = None) -> DeviceArray:
    """An array in C's order; of device arrays only."""
    refuse_numpy(values)
    return DeviceArray(np.ascontiguousarray(values.host, dtype))


def modules() -> dict[str, types.ModuleType]:
    """`cupy` and `cufinufft`, to be put into `sys.modules`."""
    cupy: Any = Functions("cupy", np)
    stream: Any = nullcontext()
    stream.ptr, stream.synchronize = 0, lambda: None
    cupy.ndarray = DeviceArray
    cupy.linalg, cupy.fft = Functions("cupy.linalg", np.linalg), Functions("cupy.fft", scipy.fft)
    cupy.asarray = cupy.array = lambda values, dtype=None: DeviceArray(np.array(unwrapped(values), dtype))
    cupy.ascontiguousarray = contiguous
    cupy.empty = lambda shape, dtype=float: DeviceArray(np.full(shape, np.nan, dtype))
    error = types.SimpleNamespace(OutOfMemoryError=MemoryError)
    cupy.cuda = types.SimpleNamespace(Stream=types.SimpleNamespace(null=stream), get_current_stream=lambda: stream, memory=error)
    cufinufft: Any = types.ModuleType("cufinufft")
    cufinufft.Plan = Plan
    return {"cupy": cupy, "cufinufft": cufinufft}
