"""FastDVDnet on a GPU, recorded once as a CUDA graph: one launch instead of a hundred.

TensorFlow queues each convolution by itself, which takes the CPU longer than the GPU needs to compute it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np

from recon.cuda_graph import record
from recon.networks.cudnn import Convolution
from recon.networks.fast_dvd_net import FRAMES
from recon.networks.normalization import BRIGHT
from recon.operators.gpu_convolution import as_memory_error

SEEN = 3
"""Frames that each stage sees."""
PADDED = 8
"""Channels come in multiples of so many: tensor cores take no fewer."""
THREADS = 256

_recording = threading.Lock()
"""The library's handle queues on one stream at a time."""

KERNELS = r"""
#include <cuda_fp16.h>
extern "C" {

// The frames side by side, and their mean as keys whose order is that of the numbers.
__global__ void gather(const float* f0, const float* f1, const float* f2, const float* f3, const float* f4, int pixels, float* frames,
                       unsigned* keys) {
    int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= pixels) return;
    float values[5] = {f0[at], f1[at], f2[at], f3[at], f4[at]}, sum = 0;
    for (int n = 0; n < 5; n++) {
        frames[n * pixels + at] = values[n];
        sum += values[n];
    }
    unsigned bits = __float_as_uint(sum / 5);
    keys[at] = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The rank-th largest key, digit by digit; 1 where it is not positive. One block of 1024 threads.
__global__ void ranked(const unsigned* keys, int pixels, int rank, float* scale) {
    __shared__ int counts[256];
    __shared__ unsigned prefix;
    __shared__ int left;
    if (threadIdx.x == 0) { prefix = 0; left = rank; }
    for (int shift = 24; shift >= 0; shift -= 8) {
        if (threadIdx.x < 256) counts[threadIdx.x] = 0;
        __syncthreads();
        unsigned mask = shift == 24 ? 0u : ~0u << (shift + 8);
        unsigned wanted = prefix;
        for (int at = threadIdx.x; at < pixels; at += blockDim.x) {
            unsigned key = keys[at];
            if ((key & mask) == wanted) atomicAdd(&counts[(key >> shift) & 255u], 1);
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            int digit = 255;
            while (digit > 0 && counts[digit] < left) left -= counts[digit--];
            prefix = wanted | ((unsigned)digit << shift);
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        unsigned bits = prefix & 0x80000000u ? prefix & 0x7fffffffu : ~prefix;
        float value = __uint_as_float(bits);
        *scale = value > 0 ? value : 1.0f;
    }
}

// Frames n, n + 1, n + 2 of a window as the first channels of image n.
__global__ void pack(const float* frames, const float* scale, int images, int pixels, __half* out) {
    int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= images * pixels) return;
    int image = at / pixels, pixel = at % pixels;
    for (int n = 0; n < PADDED; n++) out[at * PADDED + n] = (__half)(n < SEEN ? frames[(image + n) * pixels + pixel] / *scale : 0.0f);
}

// The first channels of three images as those of one.
__global__ void merge(const __half* in, int pixels, __half* out) {
    int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= pixels) return;
    for (int n = 0; n < PADDED; n++) out[at * PADDED + n] = n < SEEN ? in[(n * pixels + at) * PADDED] : (__half)0.0f;
}

__global__ void unpack(const __half* in, const float* scale, int pixels, float* out) {
    int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at < pixels) out[at] = (float)in[at * PADDED] * *scale;
}

// Largest of 2 x 2 pixels; rows, columns of the result.
__global__ void pool(const __half* in, int images, int rows, int columns, int channels, __half* out) {
    int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= images * rows * columns * channels) return;
    int c = at % channels, x = at / channels % columns, y = at / channels / columns;  // y counts on through the images
    const __half* first = in + ((2 * y) * (2 * columns) + 2 * x) * channels + c;
    float most = (float)first[0], value;
    value = (float)first[channels]; most = value > most || value != value ? value : most;
    value = (float)first[2 * columns * channels]; most = value > most || value != value ? value : most;
    value = (float)first[(2 * columns + 1) * channels]; most = value > most || value != value ? value : most;
    out[at] = (__half)most;
}

// Groups of four channels become 2 x 2 pixels, followed by the channels of another image; rows, columns, channels of both.
__global__ void shuffle(const __half* in, const __half* beside, int images, int rows, int columns, int channels, __half* out) {
    int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= images * rows * columns * 2 * channels) return;
    int c = at % (2 * channels), pixel = at / (2 * channels), x = pixel % columns, y = pixel / columns;
    if (c >= channels) { out[at] = beside[pixel * channels + c - channels]; return; }
    int quarter = (y % 2) * 2 + x % 2;
    out[at] = in[((y / 2) * (columns / 2) + x / 2) * 4 * channels + quarter * channels + c];
}
}
"""


class RecordedFastDVDnet:
    """FastDVDnet for one size of image: windows of frames, scaled by their brightness (`window_scale`), to the newest, denoised.

    Features are kept and multiplied in half precision (10 bits, as TensorFlow's TensorFloat-32 has), sums are in single precision. What
    exceeds 65504 on the way becomes infinite or NaN.

    Args:
        network: `recon.networks.fast_dvd_net.FastDVDnet`, built; its weights are copied.
        shape: of images ``[y, x]``, multiples of 2^(scales - 1).

    Raises:
        ValueError: filters that are no multiples of 8, or weights that are not finite.
        CudnnError: see `recon.networks.cudnn`.
        MemoryError: it does not fit into the GPU's memory.
    """

    def __init__(self, network: Any, shape: tuple[int, int]) -> None:
        with _recording, as_memory_error():
            self._record(network, shape)

    def __call__(self, frames: Sequence[Any]) -> np.ndarray:
        """The newest of five frames, CuPy float32 ``[..., y, x]``, C-contiguous, the oldest first; NumPy ``[y, x]`` of its own.

        One thread at a time.
        """
        import cupy

        with cupy.cuda.Stream.null:
            pixels = np.int32(self._result.size)
            _kernel("gather")((-(-self._result.size // THREADS),), (THREADS,), (*frames, pixels, self._window, self._keys))
            self._graph.launch()
            result: np.ndarray = self._result.get()
        return result

    def _record(self, network: Any, shape: tuple[int, int]) -> None:
        import cupy

        pixels = math.prod(shape)
        self._window = cupy.zeros((FRAMES, *shape), np.float32)
        self._keys = cupy.zeros(pixels, np.uint32)
        self._result = cupy.empty(shape, np.float32)
        scale = cupy.ones(1, np.float32)
        self._steps: list[Callable[[], None]] = []
        images = FRAMES - SEEN + 1
        first, second = _features(images, *shape, PADDED), _features(1, *shape, PADDED)
        rank = max(1, math.ceil(BRIGHT * pixels))
        self._add("ranked", 1, self._keys, pixels, rank, scale, block=1024)
        self._add("pack", images * pixels, self._window, scale, images, pixels, first)
        self._add("merge", pixels, self._unet(network.first, first), pixels, second)
        self._add("unpack", pixels, self._unet(network.second, second), scale, pixels, self._result)
        self._graph = record(self._run)
        _kernel("gather")

    def _run(self) -> None:
        for step in self._steps:
            step()

    def _add(self, name: str, threads: int, *values: Any, block: int = THREADS) -> None:
        given = tuple(np.int32(value) if isinstance(value, int) else value for value in values)
        self._steps.append(lambda: _kernel(name)((-(-threads // block),), (block,), given))

    def _unet(self, unet: Any, x: Any) -> Any:
        if any(filters % PADDED for filters in unet.settings["filters"]):
            raise ValueError(f"filters {unet.settings['filters']} are no multiples of {PADDED}")
        kept = []
        for block in unet.encoders[:-1]:
            x = self._block(block, x)
            kept.append(x)
            images, rows, columns, channels = x.shape
            pooled = _features(images, rows // 2, columns // 2, channels)
            self._add("pool", pooled.size, x, images, rows // 2, columns // 2, channels, pooled)
            x = pooled
        x = self._block(unet.encoders[-1], x)
        for block, upsampler, beside in zip(unet.decoders[::-1], unet.upsamplers[::-1], kept[::-1], strict=True):
            x = self._convolve(upsampler.convolution, x, relu=False)
            images, rows, columns, channels = beside.shape
            joined = _features(images, rows, columns, 2 * channels)
            self._add("shuffle", joined.size, x, beside, images, rows, columns, channels, joined)
            x = self._block(block, joined)
        return self._block(unet.head, x, relu=False)

    def _block(self, block: Any, x: Any, relu: bool = True) -> Any:
        for layer in block.convolutions:
            x = self._convolve(layer, x, relu)
        return x

    def _convolve(self, layer: Any, x: Any, relu: bool) -> Any:
        kernel, bias = (np.asarray(variable, np.float32) for variable in (layer.kernel, layer.bias))
        if not (np.isfinite(kernel).all() and np.isfinite(bias).all()):
            raise ValueError("the network's weights are not finite")
        kernel = np.pad(kernel, ((0, 0), (0, 0), (0, x.shape[-1] - kernel.shape[2]), (0, -kernel.shape[3] % PADDED)))
        bias = np.pad(bias, (0, -bias.size % PADDED))
        result = _features(*x.shape[:-1], bias.size)
        self._steps.append(Convolution(x, result, kernel, bias, relu))
        return result


def _features(*shape: int) -> Any:
    import cupy

    return cupy.zeros(shape, np.float16)


@cache
def _kernel(name: str) -> Any:
    return _module().get_function(name)


@cache
def _module() -> Any:
    import cupy

    return cupy.RawModule(code=KERNELS.replace("PADDED", str(PADDED)).replace("SEEN", str(SEEN)), options=("-std=c++17",))
