"""Which device computes, how much of it may be used, and a self-test of the GPU NUFFT against the CPU one."""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from recon.quiet import without_chatter

logger = logging.getLogger(__name__)

# Waiting OpenMP threads must sleep: with one other busy process, spinning ones made a NUFFT 18 times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# TensorFlow's start-up chatter would drown the service's own log; 2 keeps errors.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

KEPT_UPLOADS = 8
"""Read-only arrays of which copies are kept on the GPU."""

_lock = threading.RLock()
_threads: int | None = None
_gpu: bool | None = None
_thread = threading.local()


def configure(gpu_memory_mib: int | None = None, threads: int | None = None, gpu: bool | None = None) -> None:
    """Set the resources of this process. Call it before the first computation.

    Args:
        gpu_memory_mib: GPU memory this process may use, in MiB: half for TensorFlow, half for CuPy's pool. NUFFT plans
            come on top (about twice a coil batch). None: both grow as needed.
        threads: CPU threads for NUFFTs and TensorFlow. None: `OMP_NUM_THREADS`, else the CPUs of this process.
        gpu: False keeps to the CPU; True or None use a GPU that passes `self_test`.

    Raises:
        ValueError: a number is not positive.
        RuntimeError: TensorFlow has already been started with other settings.
    """
    global _threads, _gpu
    for name, value in (("gpu_memory_mib", gpu_memory_mib), ("threads", threads)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")
    with _lock:
        _threads = threads
        _gpu = False if gpu is False else None
        if threads is not None:
            os.environ["TF_NUM_INTRAOP_THREADS"] = str(threads)
            os.environ["TF_NUM_INTEROP_THREADS"] = str(threads)
        if gpu is not False and _gpu_packages():
            _limit_gpu_memory(gpu_memory_mib)


def threads() -> int:
    """Number of CPU threads that this process may use."""
    if _threads is not None:
        return _threads
    wanted = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if wanted.isdigit() and int(wanted) > 0:
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def use_gpu() -> bool:
    """Tell whether computations run on the GPU. The first call finds out and tests it (`self_test`)."""
    global _gpu
    if getattr(_thread, "on_cpu", False):
        return False
    with _lock:
        if _gpu is None:
            _gpu = _gpu_packages() and _tensorflow_gpu() and self_test()
        return _gpu


@contextmanager
def on_cpu() -> Iterator[None]:
    """Let this thread do without a GPU for a while."""
    before = getattr(_thread, "on_cpu", False)
    _thread.on_cpu = True
    try:
        yield
    finally:
        _thread.on_cpu = before


def put(array: Any) -> Any:
    """Copy to the GPU (CuPy) if it is in use; otherwise return the same array.

    Of an array that is read-only (`array.setflags(write=False)`) and owns its memory the copy is kept for the next time.
    """
    if not use_gpu() or not isinstance(array, np.ndarray):
        return array
    import cupy

    if array.flags.writeable or not array.flags.owndata:
        return cupy.asarray(array)
    return _uploads.get(array, cupy.asarray)


def get(array: Any) -> np.ndarray:
    """Copy back what `put` and computations on it made."""
    return array if isinstance(array, np.ndarray) else array.get()


class _Uploads:
    """Copies of the arrays used last, for as long as the arrays live."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._kept: OrderedDict[int, tuple[weakref.ref[np.ndarray], Any]] = OrderedDict()

    def get(self, array: np.ndarray, copy: Callable[[np.ndarray], Any]) -> Any:
        key = id(array)
        with _lock:
            if key not in self._kept or self._kept[key][0]() is not array:
                self._kept[key] = weakref.ref(array, lambda gone: self._forget(key, gone)), copy(array)
            self._kept.move_to_end(key)
            value = self._kept[key][1]
            while len(self._kept) > self.size:
                self._kept.popitem(last=False)
        return value

    def _forget(self, key: int, gone: weakref.ref[np.ndarray]) -> None:
        with _lock:
            if key in self._kept and self._kept[key][0] is gone:
                del self._kept[key]


_uploads = _Uploads(KEPT_UPLOADS)


def self_test() -> bool:
    """Compare small NUFFTs on the GPU with the same on the CPU; warn and return False where they differ."""
    from recon import nufft

    rng = np.random.default_rng(1)
    trajectory = rng.uniform(-np.pi, np.pi, (2000, 2)).astype(np.float32)
    image = (rng.standard_normal((3, 40, 48)) + 1j * rng.standard_normal((3, 40, 48))).astype(np.complex64)
    reference = nufft.Nufft(trajectory, image.shape[1:], gpu=False)
    try:
        tested = nufft.Nufft(trajectory, image.shape[1:], gpu=True)
        kspace = tested.forward(image)
        back = tested.adjoint(kspace)
    except Exception as error:
        # Whatever a driver, a library or a full GPU raises, the service must still reconstruct.
        logger.warning("GPU NUFFT failed its self-test (%s: %s); using the CPU", type(error).__name__, error)
        return False
    pairs = ((kspace, reference.forward(image)), (back, reference.adjoint(kspace)))
    worst = max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs)
    if not worst < 5e-3:
        logger.warning("GPU NUFFT differs from the CPU's by %.1e in its self-test; using the CPU", worst)
        return False
    return True


def warm_up() -> None:
    """Pay the start-up costs of a worker now: import TensorFlow, make a NUFFT plan, test the GPU."""
    from recon import nufft

    tf = _tensorflow()
    on_gpu = use_gpu()  # before TensorFlow's first operation, after which it cannot be kept from taking all of the GPU's memory
    trajectory = np.linspace(-np.pi, np.pi, 256, endpoint=False, dtype=np.float32).reshape(-1, 2)
    image = tf.ones([2, 16, 16], tf.complex64)
    kspace = nufft.nufft(image, trajectory)
    nufft.nufft(kspace, trajectory, (16, 16), type=1)
    if on_gpu:
        from recon.sense import cg_sense

        tf.signal.ifft2d(image)  # loads cuFFT
        cg_sense(kspace.numpy(), trajectory, image.numpy(), 1)  # compiles the kernels


def _gpu_packages() -> bool:
    """Tell whether a GPU is visible and the packages to use it are installed; warn if only the packages miss."""
    if not any(os.path.exists(node) for node in ("/dev/nvidiactl", "/dev/dxg")):
        return False
    missing = [name for name in ("cupy", "cufinufft") if importlib.util.find_spec(name) is None]
    if missing:
        logger.warning("a GPU is visible, but %s is not installed; using the CPU", " and ".join(missing))
        return False
    try:
        import cupy

        return bool(cupy.cuda.runtime.getDeviceCount() > 0)
    except Exception as error:
        logger.warning("a GPU is visible, but CuPy cannot use it (%s); using the CPU", error)
        return False


def _tensorflow_gpu() -> bool:
    """Tell whether TensorFlow can use the GPU, and keep it from taking all of its memory."""
    tf = _tensorflow()
    if not tf.config.list_physical_devices("GPU"):
        logger.warning("a GPU is visible, but TensorFlow cannot use it (install tensorflow[and-cuda]); using the CPU")
        return False
    try:
        if not any(tf.config.get_logical_device_configuration(card) for card in tf.config.list_physical_devices("GPU")):
            _limit_gpu_memory(None)
    except RuntimeError as error:
        logger.warning("TensorFlow holds the GPU's memory already (%s); call recon.device.configure first", error)
    return True


def _tensorflow() -> Any:
    with without_chatter():
        import tensorflow

        tensorflow.config.list_physical_devices()  # looks for GPUs, and tells of them
    return tensorflow


def _limit_gpu_memory(mib: int | None) -> None:
    import cupy

    tf = _tensorflow()
    if mib is not None:
        cupy.get_default_memory_pool().set_limit(size=mib * 2**20 // 2)
    for card in tf.config.list_physical_devices("GPU"):
        if mib is None:
            tf.config.experimental.set_memory_growth(card, True)
        else:
            limit: Any = tf.config.LogicalDeviceConfiguration(memory_limit=mib // 2)
            tf.config.set_logical_device_configuration(card, [limit])
