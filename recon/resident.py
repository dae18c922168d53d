"""Reconstructions of NumPy arrays on a GPU: copied there once, the image copied back."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

import numpy as np

from recon import device
from recon.arrays import Array
from recon.operators.gpu_convolution import as_memory_error

logger = logging.getLogger(__name__)
Options = ParamSpec("Options")


def resident(function: Callable[Options, Array]) -> Callable[Options, Array]:
    """Let a reconstruction `function(kspace, maps, ...)` that takes CuPy arrays compute on the GPU where one is in use.

    What does not fit there is computed on the CPU, with a warning.
    """

    @wraps(function)
    def wrapper(*args: Options.args, **options: Options.kwargs) -> Array:
        if len(args) < 2 or not all(isinstance(array, np.ndarray) for array in args[:2]) or not device.use_gpu():
            return function(*args, **options)
        try:
            with as_memory_error():
                return device.get(function(device.put(args[0]), device.put(args[1]), *args[2:], **options))  # type: ignore[call-arg, arg-type]
        except MemoryError as error:
            logger.warning("%s does not fit into GPU memory (%s); using the CPU for it", function.__name__, error)
        with device.on_cpu():
            return function(*args, **options)

    return wrapper
