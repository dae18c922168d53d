"""Reconstructions of NumPy arrays on a GPU: copied there once, the image copied back."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import wraps
from itertools import takewhile
from typing import Any, ParamSpec

import numpy as np

from recon import device
from recon.arrays import Array
from recon.blas import one_blas_thread
from recon.gpu_plans import null_stream
from recon.operators.gpu_convolution import as_memory_error

logger = logging.getLogger(__name__)
Options = ParamSpec("Options")


def resident(function: Callable[Options, Array]) -> Callable[Options, Array]:
    """Let a reconstruction `function(kspace, maps, ...)` or `function(kspace, ...)` that takes CuPy arrays compute on the GPU in use.

    What does not fit there is computed on the CPU, with a warning. BLAS has one thread meanwhile (`recon.blas`).
    """

    @wraps(function)
    @one_blas_thread()
    def wrapper(*args: Options.args, **options: Options.kwargs) -> Array:
        arrays = list(takewhile(lambda array: isinstance(array, np.ndarray), args[:2]))
        if not arrays:
            return function(*args, **options)
        rest = args[len(arrays) :]
        return call_resident(function.__name__, lambda *given: function(*given, *rest, **options), *arrays)  # type: ignore[call-arg, arg-type]

    return wrapper


def call_resident(name: str, function: Callable[..., Array], *arrays: Any) -> Array:
    """`function(*arrays)`; if all arrays are NumPy's and a GPU is in use, with copies there, and the result copied back.

    What does not fit there is computed on the CPU, with a warning that has this name.
    """
    if not all(isinstance(array, np.ndarray) for array in arrays) or not device.use_gpu():
        return function(*arrays)
    try:
        with null_stream(), as_memory_error():
            return device.get(function(*map(device.put, arrays)))
    except MemoryError as error:
        logger.warning("%s does not fit into GPU memory (%s); using the CPU for it", name, error)
    with device.on_cpu():
        return function(*arrays)
