"""FastDVDnet as a CUDA graph of cuDNN's convolutions; the GPU is a stand-in (`scripts/gpu_check.py --only graphs` has a real one)."""

from __future__ import annotations

import ctypes
import gc
import logging
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from recon import device
from recon.networks import cudnn, recorded
from recon.networks import denoiser as module
from recon.networks.denoiser import Denoiser
from recon.networks.fast_dvd_net import FastDVDnet
from tests.recon import recording_cupy
from tests.recon.conftest import relative_error
from tests.recon.strict_cupy import DeviceArray

SHAPE = (16, 24)


def gather(threads: int, *values: Any) -> None:
    *frames, pixels, window, keys = values
    assert threads >= pixels
    window[...] = np.stack([frame.reshape(SHAPE) for frame in frames])
    bits = window.mean(0, dtype=np.float32).ravel().view(np.uint32)
    keys[...] = np.where(bits >> 31, ~bits, bits | 1 << 31)


def ranked(threads: int, keys: np.ndarray, pixels: int, rank: int, scale: np.ndarray) -> None:
    assert threads == 1024
    key = np.sort(keys[:pixels])[-rank]
    value = np.uint32(key & 0x7FFFFFFF if key >> 31 else ~key).view(np.float32)
    scale[0] = value if value > 0 else 1


def pack(threads: int, window: np.ndarray, scale: np.ndarray, images: int, pixels: int, out: np.ndarray) -> None:
    assert threads >= images * pixels
    out[...] = 0
    for image in range(images):
        out[image, ..., :3] = np.moveaxis(window[image : image + 3] / scale[0], 0, -1)


def merge(threads: int, stages: np.ndarray, pixels: int, out: np.ndarray) -> None:
    assert threads >= pixels
    out[...] = 0
    out[0, ..., :3] = np.moveaxis(stages[..., 0], 0, -1)


def unpack(threads: int, image: np.ndarray, scale: np.ndarray, pixels: int, out: np.ndarray) -> None:
    assert threads >= pixels
    out[...] = image[0, ..., 0].astype(np.float32) * scale[0]


def pool(threads: int, x: np.ndarray, images: int, rows: int, columns: int, channels: int, out: np.ndarray) -> None:
    assert threads >= images * rows * columns * channels
    out[...] = x.reshape(images, rows, 2, columns, 2, channels).max((2, 4))


def shuffle(threads: int, x: np.ndarray, beside: np.ndarray, images: int, rows: int, columns: int, channels: int, out: np.ndarray) -> None:
    assert threads >= images * rows * columns * 2 * channels
    parts = x.reshape(images, rows // 2, columns // 2, 2, 2, channels)
    out[..., :channels] = parts.transpose(0, 1, 3, 2, 4, 5).reshape(images, rows, columns, channels)
    out[..., channels:] = beside


KERNELS = {function.__name__: function for function in (gather, ranked, pack, merge, unpack, pool, shuffle)}


class Convolution:
    """`recon.networks.cudnn.Convolution` by TensorFlow."""

    def __init__(self, source: Any, result: Any, kernel: np.ndarray, bias: np.ndarray, relu: bool) -> None:
        assert source.host.dtype == result.host.dtype == np.float16
        assert source.shape[-1] % 8 == result.shape[-1] % 8 == 0
        self.places, self.kernel, self.bias, self.relu = (source, result), kernel, bias, relu

    def __call__(self) -> None:
        import tensorflow as tf

        source, result = self.places

        def run() -> None:
            value = tf.nn.conv2d(source.host.astype(np.float32), self.kernel, 1, "SAME").numpy() + self.bias
            result.host[...] = np.maximum(value, 0) if self.relu else value

        recording_cupy.queue(run)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, fake in recording_cupy.modules(KERNELS).items():
        monkeypatch.setitem(sys.modules, name, fake)
    monkeypatch.setattr(device, "_gpu", True)
    monkeypatch.setattr(recorded, "Convolution", Convolution)
    for cached in (recorded._kernel, recorded._module):
        cached.cache_clear()
    yield
    for cached in (recorded._kernel, recorded._module, cudnn._handle):
        cached.cache_clear()


class Buffer:
    """`recon.hand_over.Buffer` without a GPU."""

    used = 0

    def __init__(self, shape: Any, dtype: Any) -> None:
        self.array = DeviceArray(np.zeros(shape, dtype))

    def call(self, function: Any) -> np.ndarray:
        type(self).used += 1
        return np.asarray(function(self.array.host))


@pytest.fixture
def tensorflow(monkeypatch: pytest.MonkeyPatch) -> type[Buffer]:
    """Counts what TensorFlow computes."""
    monkeypatch.setattr(Buffer, "used", 0)
    monkeypatch.setattr(module, "Buffer", Buffer)
    monkeypatch.setattr("recon.networks.compiled.Compiled._compile", lambda self, arrays: self._function)
    return Buffer


@pytest.fixture(scope="module")
def network() -> FastDVDnet:
    """With random weights and biases."""
    made = FastDVDnet((8, 16, 24))
    made.build((None, None, None, 5))
    random = np.random.default_rng(0)
    for variable in made.weights:
        inputs = np.prod(variable.shape[:-1]) if len(variable.shape) > 1 else 200
        variable.assign(random.standard_normal(variable.shape) * np.sqrt(2 / inputs))
    return made


def window(seed: int = 0) -> list[np.ndarray]:
    return list(7 * np.random.default_rng(seed).random((5, 1, *SHAPE), np.float32))


def expected(network: Any, frames: list[np.ndarray], scaling: str = "window") -> np.ndarray:
    with device.on_cpu():
        return Denoiser("here", network, 5, scaling, 4)(frames)


def test_it_is_the_network(network: FastDVDnet, gpu: None, tensorflow: type[Buffer]) -> None:
    there = Denoiser("there", network, 5, "window", 4)
    found = [(seed, there([DeviceArray(frame) for frame in window(seed)])) for seed in (0, 1, 2)]
    for seed, image in found:
        assert image.shape == (1, *SHAPE)
        assert image.dtype == np.float32
        assert relative_error(expected(network, window(seed)), image) < 4e-3
    assert tensorflow.used == 0
    assert len(there._recorded) == 1
    dark = there([DeviceArray(0 * frame) for frame in window()])
    assert relative_error(expected(network, [0 * frame for frame in window()]), dark) < 4e-3


def test_it_is_recorded_before_the_first_image(network: FastDVDnet, gpu: None, tensorflow: type[Buffer]) -> None:
    there = Denoiser("there", network, 5, "window", 4)
    there.warm(SHAPE)
    assert [type(one) for one in there._recorded.values()] == [recorded.RecordedFastDVDnet]
    assert tensorflow.used == 0


def test_numbers_too_large_for_half_precision_are_left_to_tensorflow(network: FastDVDnet, gpu: None, tensorflow: type[Buffer]) -> None:
    there = Denoiser("there", network, 5, "window", 4)
    frames = window()
    frames[2][0, 3, 4] = 1e7  # of a window whose brightest 0.5 % are not more than two pixels
    frames[2][0, 3, 5] = 0
    with np.errstate(over="ignore", invalid="ignore"):
        found = there([DeviceArray(frame) for frame in frames])
    assert np.isfinite(found).all()
    assert tensorflow.used == 1
    assert relative_error(expected(network, frames), found) < 1e-5


@pytest.mark.parametrize("why", ["scaling", "slices", "filters", "weights", "library"])
def test_what_cannot_be_recorded_is_computed_by_tensorflow(
    why: str, network: FastDVDnet, gpu: None, tensorflow: type[Buffer], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    frames, scaling = window(), "window"
    if why == "scaling":
        scaling = "none"
    elif why == "slices":
        frames = [np.concatenate([frame, 2 * frame]) for frame in frames]
    elif why in ("filters", "weights"):
        network = FastDVDnet((4, 8, 16) if why == "filters" else (8, 16, 24))
        network.build((None, None, None, 5))
        if why == "weights":
            network.weights[-1].assign(np.full(network.weights[-1].shape, np.nan))
    else:

        def missing(*_: Any) -> Any:
            raise cudnn.CudnnError("no library")

        monkeypatch.setattr(recorded, "Convolution", missing)
    there = Denoiser("there", network, 5, scaling, 4)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            found = there([DeviceArray(frame) for frame in frames])
    assert tensorflow.used == 2
    assert np.array_equal(np.isnan(found), np.isnan(expected(network, frames, scaling)))
    if why != "weights":
        assert relative_error(expected(network, frames, scaling), found) < 1e-5
    warnings = [record.message for record in caplog.records if "CUDA graph" in record.message]
    words = {"filters": "no multiples of 8", "weights": "not finite", "library": "CudnnError: no library"}
    assert len(warnings) == (why in words)
    assert all(words[why] in warning for warning in warnings)


class Library:
    """cuDNN: counts what it makes; refuses one function."""

    def __init__(self, refused: str = "") -> None:
        self.refused = refused
        self.made: dict[str, int] = {}

    def __getattr__(self, name: str) -> Any:
        library = self

        class Function:
            restype: Any = None

            def __call__(self, *_: Any) -> Any:
                if name == "cudnnGetErrorString":
                    return b"CUDNN_STATUS_SOMETHING"
                for word, sign in (("Create", 1), ("Destroy", -1)):
                    kind = name.removeprefix(f"cudnn{word}")
                    if kind != name:
                        library.made[kind] = library.made.get(kind, 0) + sign
                return 4 if name == library.refused else 0

        return Function()


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    made = Library()
    monkeypatch.setattr(cudnn, "_library", lambda: made)
    cudnn._handle.cache_clear()
    return made


def test_what_the_library_cannot_do_is_said_by_name(library: Library, gpu: None) -> None:
    arrays = [DeviceArray(np.zeros((1, 4, 4, 8), np.float16)) for _ in range(2)]
    library.refused = "cudnnSetConvolution2dDescriptor"
    with pytest.raises(cudnn.CudnnError, match="cudnnSetConvolution2dDescriptor: CUDNN_STATUS_SOMETHING"):
        cudnn.Convolution(*arrays, np.zeros((3, 3, 8, 8)), np.zeros(8), True)
    gc.collect()
    library.refused = ""
    convolution = cudnn.Convolution(*arrays, np.zeros((3, 3, 8, 8)), np.zeros(8), True)
    assert library.made["TensorDescriptor"] == 3
    del convolution
    gc.collect()
    assert library.made == {"TensorDescriptor": 0, "FilterDescriptor": 0, "ConvolutionDescriptor": 0, "ActivationDescriptor": 0, "": 1}


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    cudnn._library.cache_clear()
    with pytest.raises(cudnn.CudnnError, match=r"tensorflow\[and-cuda\]"):
        cudnn._library()
