"""`strict_cupy` whose streams record: what is queued after `begin_capture` runs when the graph is launched, not before."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.recon import strict_cupy

_streams: list[Stream] = []
Kernel = Callable[..., None]


class Stream:
    """A CUDA stream, which has done everything as soon as it is asked, or records."""

    null: Any = None

    def __init__(self, non_blocking: bool = False) -> None:
        self.ptr, self.recorded = (1 if non_blocking else 0), None

    recorded: list[Callable[[], None]] | None

    def __enter__(self) -> Stream:
        _streams.append(self)
        return self

    def __exit__(self, *_: Any) -> None:
        _streams.pop()

    def synchronize(self) -> None:
        assert self.recorded is None, "waiting is not allowed while recording"

    def begin_capture(self) -> None:
        self.recorded = []

    def end_capture(self) -> Graph:
        recorded, self.recorded = self.recorded, None
        return Graph(recorded or [])


class Graph:
    """What was recorded."""

    def __init__(self, steps: list[Callable[[], None]]) -> None:
        self.steps = steps

    def launch(self) -> None:
        for step in self.steps:
            step()


def queue(step: Callable[[], None]) -> None:
    """Do it, or record it."""
    recorded = _streams[-1].recorded if _streams else None
    if recorded is None:
        step()
    else:
        recorded.append(step)


class Plan(strict_cupy.Plan):
    """cuFINUFFT's plan, on a stream."""

    def execute(self, source: Any, out: Any) -> None:
        given = super().execute
        queue(lambda: given(source, out))


def modules(kernels: dict[str, Kernel]) -> dict[str, types.ModuleType]:
    """`cupy` and `cufinufft`. `kernels`: what those of CUDA's C are called, as functions of NumPy arrays and numbers."""
    fakes: dict[str, Any] = strict_cupy.modules()
    cupy = fakes["cupy"]

    def kernel(name: str) -> Any:
        def launch(blocks: tuple[int], threads: tuple[int], values: tuple[Any, ...]) -> None:
            assert all(isinstance(value, (strict_cupy.DeviceArray, np.int32, np.float32)) for value in values), "passed by size in CUDA"
            host = strict_cupy.unwrapped(list(values))
            queue(lambda: kernels[name](blocks[0] * threads[0], *host))

        return launch

    Stream.null = Stream()
    cupy.cuda.Stream, cupy.cuda.get_current_stream = Stream, lambda: _streams[-1] if _streams else Stream.null
    cupy.RawKernel = lambda code, name, **_: kernel(name)
    cupy.RawModule = lambda code, **_: types.SimpleNamespace(get_function=kernel)
    fakes["cufinufft"].Plan = Plan
    return fakes
