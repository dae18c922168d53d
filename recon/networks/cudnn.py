"""Two-dimensional convolutions of NVIDIA's cuDNN on CuPy's arrays: as TensorFlow computes them, but they can be recorded in CUDA graphs.

TensorFlow for GPUs comes with the library; CuPy has no functions for it. Numbers are those of its C interface, the same since version 7.
"""

from __future__ import annotations

import ctypes
import importlib.util
import weakref
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

NHWC, CROSS_CORRELATION, PRECOMPUTED_GEMM, PROPAGATE_NAN = 1, 1, 1, 1
TENSOR_CORES = 1
IDENTITY, RELU = 5, 1
FLOAT, HALF = 0, 2


class CudnnError(RuntimeError):
    """The library is not there, or cannot do what it was asked for."""


class Convolution:
    """activation(convolve(x, kernel) + bias) with zeros around the image, of one size of image, always at the same places in memory.

    Args:
        source, result: CuPy, C-contiguous float16 `[batch, y, x, channel]`, multiples of 8 channels; read and written. Sums are float32.
        kernel: NumPy `[size, size, channel, result's channel]`, of an odd size.
        bias: NumPy `[result's channel]`.
        relu: negative results become 0.

    Raises:
        CudnnError: see above.
    """

    def __init__(self, source: Any, result: Any, kernel: np.ndarray, bias: np.ndarray, relu: bool) -> None:
        import cupy

        size, _, channels, filters = kernel.shape
        self._kernel = cupy.asarray(np.ascontiguousarray(kernel.transpose(3, 0, 1, 2)), source.dtype)
        self._bias = cupy.asarray(bias, source.dtype)
        self._source, self._result = source, result
        made: list[tuple[str, ctypes.c_void_p]] = []
        weakref.finalize(self, _destroy, made).atexit = False
        self._source_is = _tensor(source.shape, made)
        self._result_is = _tensor(result.shape, made)
        self._bias_is = _tensor((1, 1, 1, filters), made)
        self._kernel_is = _made("FilterDescriptor", made)
        _call("cudnnSetFilter4dDescriptor", self._kernel_is, HALF, NHWC, filters, channels, size, size)
        self._convolution_is = _made("ConvolutionDescriptor", made)
        around = size // 2
        _call("cudnnSetConvolution2dDescriptor", self._convolution_is, around, around, 1, 1, 1, 1, CROSS_CORRELATION, FLOAT)
        _call("cudnnSetConvolutionMathType", self._convolution_is, TENSOR_CORES)
        self._activation_is = _made("ActivationDescriptor", made)
        _call("cudnnSetActivationDescriptor", self._activation_is, RELU if relu else IDENTITY, PROPAGATE_NAN, ctypes.c_double(0))
        needed = ctypes.c_size_t()
        described = (self._source_is, self._kernel_is, self._convolution_is, self._result_is)
        _call("cudnnGetConvolutionForwardWorkspaceSize", _handle(), *described, PRECOMPUTED_GEMM, ctypes.byref(needed))
        self._workspace = cupy.empty(max(1, needed.value), np.uint8)

    def __call__(self) -> None:
        """Queue it on CuPy's current stream."""
        import cupy

        one, nothing = ctypes.c_float(1), ctypes.c_float(0)
        _call("cudnnSetStream", _handle(), ctypes.c_void_p(cupy.cuda.get_current_stream().ptr))
        _call(
            "cudnnConvolutionBiasActivationForward",
            _handle(),
            ctypes.byref(one),
            self._source_is,
            _place(self._source),
            self._kernel_is,
            _place(self._kernel),
            self._convolution_is,
            PRECOMPUTED_GEMM,
            _place(self._workspace),
            ctypes.c_size_t(self._workspace.nbytes),
            ctypes.byref(nothing),
            self._result_is,
            _place(self._result),
            self._bias_is,
            _place(self._bias),
            self._activation_is,
            self._result_is,
            _place(self._result),
        )


def _tensor(shape: tuple[int, ...], among: list[tuple[str, ctypes.c_void_p]]) -> ctypes.c_void_p:
    batch, rows, columns, channels = shape
    tensor = _made("TensorDescriptor", among)
    _call("cudnnSetTensor4dDescriptor", tensor, NHWC, HALF, batch, channels, rows, columns)
    return tensor


def _made(kind: str, among: list[tuple[str, ctypes.c_void_p]]) -> ctypes.c_void_p:
    made = ctypes.c_void_p()
    _call(f"cudnnCreate{kind}", ctypes.byref(made))
    among.append((kind, made))
    return made


def _destroy(made: list[tuple[str, ctypes.c_void_p]]) -> None:
    for kind, one in made:
        _call(f"cudnnDestroy{kind}", one)


def _place(array: Any) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.data.ptr)


def _call(name: str, *values: Any) -> None:
    status = getattr(_library(), name)(*values)
    if status:
        describe = _library().cudnnGetErrorString
        describe.restype = ctypes.c_char_p
        raise CudnnError(f"{name}: {describe(status).decode()}")


@lru_cache(maxsize=1)
def _handle() -> ctypes.c_void_p:
    return _made("", [])


@lru_cache(maxsize=1)
def _library() -> Any:
    """The library that TensorFlow has loaded, or its package's."""
    package = importlib.util.find_spec("nvidia")
    folders = package.submodule_search_locations or () if package else ()
    names = ["libcudnn.so.9", *(str(path) for folder in folders for path in Path(folder).glob("cudnn/lib/libcudnn.so.9"))]
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise CudnnError("no library libcudnn.so.9; it comes with `pip install tensorflow[and-cuda]`")
