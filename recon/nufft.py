"""Nonuniform fast Fourier transforms: finufft on the CPU, cufinufft on the GPU.

`Nufft` is a plan over NumPy (or, on the GPU, CuPy) arrays; `nufft` is the differentiable TensorFlow function on top of
it. Both are orthonormal: with N image pixels, r counted from index n // 2 and trajectory points t in rad/pixel,

    type 2 (image to k-space):   k_j = N^-1/2 sum_r x_r exp(-i r t_j)
    type 1 (k-space to image):   x_r = N^-1/2 sum_j k_j exp(+i r t_j)       the adjoint of type 2

Barnett, Magland, af Klinteberg, SIAM J. Sci. Comput. 41 (2019); Shih et al., IPDPSW 2021.
"""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, Literal

import numpy as np
from scipy.fft import next_fast_len

from recon import device
from recon.arrays import Array, complex_dtype, is_tensor, real_dtype
from recon.cache import Cache, array_key
from recon.gpu_plans import GpuPlans, clear_pool
from recon.hand_over import gradients_wanted, on_tensors

logger = logging.getLogger(__name__)

TOLERANCE = 1e-3
"""Default relative accuracy, fit for images; 1e-5 costs up to four times as much on a CPU."""
CACHED_PLANS = 32
"""Plans kept for reuse; the least recently used one goes first."""

TransformType = Literal[1, 2, "type_1", "type_2"]


class Nufft:
    """NUFFT for one trajectory and image shape, in both directions, for any number of coils.

    Thread-safe. On the CPU every transform runs on one thread and several run at once, so that results do not depend
    on the number of threads: the same input gives the same bits in every process. (finufft's own threads promise no
    such thing, and were measured no faster.)

    Args:
        trajectory: `[sample, axis]` in rad/pixel, 1 to 3 axes in the order of the image's.
        image_shape: pixels per axis.
        tolerance: relative accuracy.
        dtype: complex64 or complex128; by default complex128 for a float64 trajectory, else complex64.
        gpu: run on the GPU; None asks `recon.device.use_gpu`.

    Raises:
        ValueError: shapes do not fit, or the trajectory is not finite.
    """

    def __init__(
        self,
        trajectory: np.ndarray,
        image_shape: Sequence[int],
        tolerance: float = TOLERANCE,
        dtype: Any = None,
        gpu: bool | None = None,
    ) -> None:
        trajectory = np.asarray(trajectory)
        self.image_shape = tuple(int(n) for n in image_shape)
        self.dtype = np.dtype(dtype) if dtype is not None else complex_dtype(trajectory)
        if trajectory.ndim != 2 or trajectory.shape[1] != len(self.image_shape) or not 1 <= trajectory.shape[1] <= 3:
            raise ValueError(
                f"trajectory of shape {trajectory.shape} does not fit an image of {len(self.image_shape)} axes: "
                f"give [sample, {len(self.image_shape)}], views and samples flattened"
            )
        if min(self.image_shape) < 1 or trajectory.shape[0] < 1:
            raise ValueError(f"image shape {self.image_shape} or trajectory of {trajectory.shape[0]} samples is empty")
        if not np.isfinite(trajectory).all():
            raise ValueError("the trajectory holds values that are not finite (NaN or Inf)")
        self.samples = trajectory.shape[0]
        self.tolerance = float(tolerance)
        self.points = [np.ascontiguousarray(axis, real_dtype(self.dtype)) for axis in trajectory.T]
        self.gpu = device.use_gpu() if gpu is None else gpu
        self.scale = 1 / math.sqrt(math.prod(self.image_shape))
        self._backend: Any = GpuPlans(self) if self.gpu else _CpuPlans(self)

    def forward(self, images: Any) -> Any:
        """Type 2: images `[..., *image_shape]` to k-space `[..., sample]`, NumPy or CuPy as given."""
        return self._apply(images, self.image_shape, (self.samples,), adjoint=False)

    def adjoint(self, kspace: Any) -> Any:
        """Type 1: k-space `[..., sample]` to images `[..., *image_shape]`, NumPy or CuPy as given."""
        return self._apply(kspace, (self.samples,), self.image_shape, adjoint=True)

    def gram(self, images: Any, weights: Any = None, out: np.ndarray | None = None) -> Any:
        """A^H W A of images `[..., *image_shape]`, each in one go so that its data stay in cache.

        Args:
            images: NumPy or CuPy, of this plan's dtype.
            weights: real `[sample]` of the same kind and precision, or None for ones.
            out: where to write on the CPU; may be `images` itself.
        """
        if self.gpu:
            kspace = self.forward(images)
            return self.adjoint(kspace if weights is None else kspace * weights)
        flat = np.ascontiguousarray(images, self.dtype).reshape(-1, *self.image_shape)
        result = np.empty_like(flat) if out is None else out.reshape(flat.shape)

        def one(index: int) -> None:
            with self._backend.lend() as plan:
                kspace = plan.execute(flat[index])
                if weights is not None:
                    kspace *= weights
                plan.execute_adjoint(kspace, out=result[index])
            _scale(result[index], self.scale**2)

        run_each(one, flat.shape[0])
        return result.reshape(images.shape)

    def execute_into(self, source: Any, result: Any, adjoint: bool) -> None:
        """On a GPU, transform CuPy `[n, ...]` of this plan's dtype into CuPy `result`, on the null stream, without waiting for it.

        Raises:
            MemoryError: not even one transform fits.
        """
        self._backend.execute_into(source, result, adjoint)

    def _apply(self, source: Any, inner: tuple[int, ...], outer: tuple[int, ...], adjoint: bool) -> Any:
        batch, tail = source.shape[: source.ndim - len(inner)], source.shape[source.ndim - len(inner) :]
        if tuple(tail) != inner:
            raise ValueError(f"NUFFT input of shape {tuple(source.shape)} must end in {inner}")
        flat = source.reshape(-1, *inner)
        if flat.shape[0] == 0:
            return np.empty((*batch, *outer), self.dtype)
        try:
            result = self._backend.execute(flat, adjoint)
        except MemoryError as error:
            if not self.gpu:
                raise
            logger.warning("NUFFT does not fit into GPU memory (%s); using the CPU for it", error)
            result = _on_cpu(self, flat, adjoint)
        return result.reshape(*batch, *outer)


def _upsampling(shape: tuple[int, ...], tolerance: float, single: bool) -> float:
    """Size of finufft's fine grid over that of the image: the smallest that reaches the tolerance, of a fast length.

    Measured for 256 x 256 at 1e-3, the factor 1.17 takes three quarters of the time of 1.25, at a smaller error. Lengths
    with large powers of two are left out: their columns collide in the processor's caches.
    """
    if tolerance >= (1e-4 if single else 1e-6):
        size = max(shape)
        for fine in range(math.ceil(1.15 * size), math.ceil(1.3 * size)):
            if fine % 2 == 0 and fine % 64 and next_fast_len(fine) == fine and not (fine % 7 == 0 or fine % 11 == 0):
                return (fine - 0.5) / size  # finufft rounds up
    return 1.25 if tolerance >= (1e-5 if single else 1e-8) else 2.0


def _scale(values: np.ndarray, factor: float) -> None:
    """Scale contiguous complex values in place, as real numbers: half the work."""
    numbers = values.view(values.real.dtype)
    numbers *= factor


class _CpuPlans:
    """A few single-threaded finufft plans for the same points, each used by one thread at a time."""

    def __init__(self, nufft: Nufft) -> None:
        self.nufft = nufft
        self.free: SimpleQueue[Any] = SimpleQueue()
        self.made = 0
        self.lock = threading.Lock()

    def execute(self, source: np.ndarray, adjoint: bool) -> np.ndarray:
        nufft = self.nufft
        source = np.ascontiguousarray(source, nufft.dtype)
        shape = nufft.image_shape if adjoint else (nufft.samples,)
        result = np.empty((source.shape[0], *shape), nufft.dtype)

        def transform(index: int) -> None:
            with self.lend() as plan:
                (plan.execute_adjoint if adjoint else plan.execute)(source[index], out=result[index])
            _scale(result[index], nufft.scale)

        run_each(transform, source.shape[0])
        return result

    @contextmanager
    def lend(self) -> Iterator[Any]:
        """Lend a plan to this thread; make another one while there are fewer than threads."""
        plan = None
        with self.lock:
            if self.free.empty() and self.made < device.threads():
                plan = self.make()
                self.made += 1
        plan = plan or self.free.get()
        try:
            yield plan
        finally:
            self.free.put(plan)

    def make(self) -> Any:
        import finufft

        nufft = self.nufft
        plan = finufft.Plan(
            2,
            nufft.image_shape,
            n_trans=1,
            eps=nufft.tolerance,
            isign=-1,
            dtype=nufft.dtype.name,
            nthreads=1,
            upsampfac=_upsampling(nufft.image_shape, nufft.tolerance, nufft.dtype == np.complex64),
            showwarn=0,
        )
        plan.setpts(*nufft.points)
        return plan


def _on_cpu(nufft: Nufft, source: Any, adjoint: bool) -> Any:
    import cupy

    values = source.get() if isinstance(source, cupy.ndarray) else source
    result = _CpuPlans(nufft).execute(values, adjoint)
    return cupy.asarray(result) if isinstance(source, cupy.ndarray) else result


_executor: ThreadPoolExecutor | None = None
_executor_lock = threading.Lock()


def run_each(function: Callable[[int], None], count: int) -> None:
    """Call `function(0) ... function(count - 1)` on `recon.device.threads()` threads; raises what they raise."""
    helpers = min(device.threads(), count) - 1
    indices = iter(range(count))

    def work() -> None:
        # `next` on a range iterator is atomic, so every index is taken once.
        for index in indices:
            function(index)

    if helpers <= 0:
        work()
        return
    futures = [_pool().submit(work) for _ in range(helpers)]
    try:
        work()
    finally:
        # Helpers that have not started are not needed any more; waiting for them could deadlock in nested calls.
        errors = [future.exception() for future in futures if not future.cancel()]
    for error in errors:
        if error is not None:
            raise error


def _pool() -> ThreadPoolExecutor:
    global _executor
    with _executor_lock:
        if _executor is None:
            _executor = ThreadPoolExecutor(max(1, device.threads() - 1), thread_name_prefix="recon")
        return _executor


def _after_fork() -> None:
    global _executor, _executor_lock
    _executor, _executor_lock = None, threading.Lock()


_cache: Cache[Nufft] = Cache(CACHED_PLANS)


def plan(trajectory: np.ndarray, image_shape: Sequence[int], tolerance: float = TOLERANCE, dtype: Any = None) -> Nufft:
    """Return the cached `Nufft` for these arguments, made if need be; see `Nufft`."""
    trajectory = np.ascontiguousarray(trajectory)
    kind = np.dtype(dtype).name if dtype is not None else None
    key = (array_key(trajectory), tuple(image_shape), float(tolerance), kind, device.use_gpu())
    return _cache.get(key, lambda: Nufft(trajectory, image_shape, tolerance, dtype))


def cached_plans() -> int:
    """Number of plans kept at present, at most `CACHED_PLANS`."""
    return len(_cache)


def clear_plans() -> None:
    """Forget all cached plans and free their memory."""
    _cache.clear()
    clear_pool()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def nufft(
    source: Array,
    trajectory: Array,
    grid_shape: Sequence[int] | None = None,
    type: TransformType = 2,
    tol: float = TOLERANCE,
) -> Any:
    """Differentiable orthonormal NUFFT as a TensorFlow operation, eager or inside `tf.function`.

    Args:
        source: complex images `[..., *grid_shape]` (type 2) or k-space `[..., sample]` (type 1); leading axes are batch.
        trajectory: `[..., sample, axis]` in rad/pixel; leading axes broadcast against the leading axes of `source`.
        grid_shape: image shape; needed for type 1.
        type: 2, image to k-space, or 1, its adjoint; also 'type_2', 'type_1'.
        tol: relative accuracy.

    Returns:
        Tensor `[..., sample]` or `[..., *grid_shape]` of the dtype of `source`. Gradients flow to `source` and, where
        the trajectory is a tensor or variable, to the trajectory.

    Raises:
        ValueError: unknown type, missing grid shape, or shapes that do not fit.
    """
    import tensorflow as tf

    kind = {1: 1, 2: 2, "type_1": 1, "type_2": 2}.get(type)
    if kind is None:
        raise ValueError(f"type must be 1 or 2, not {type!r}")
    source = tf.convert_to_tensor(source)
    if not source.dtype.is_complex:
        source = tf.cast(source, tf.as_dtype(complex_dtype(source)))
    rank = trajectory.shape[-1]
    if kind == 1 and grid_shape is None:
        raise ValueError("type 1 needs grid_shape")
    shape = tuple(int(n) for n in (source.shape[-rank:] if kind == 2 else grid_shape or ()))
    if len(shape) != rank:
        raise ValueError(f"grid_shape {shape} must have as many axes as the trajectory: {rank}")
    if is_tensor(trajectory):
        return _differentiable(source, tf.convert_to_tensor(trajectory), shape, kind, float(tol))
    points = np.asarray(trajectory, real_dtype(np.dtype(source.dtype.as_numpy_dtype)))
    if tf.executing_eagerly() and not gradients_wanted():
        return _call(source, points, shape, kind, float(tol))
    return _fixed_points(source, points, shape, kind, float(tol))


def _fixed_points(source: Any, points: np.ndarray, shape: tuple[int, ...], kind: int, tol: float) -> Any:
    """NUFFT with a gradient for the values only."""
    import tensorflow as tf

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def transform(values: Any) -> tuple[Any, Callable[[Any], Any]]:
        def gradient(upstream: Any) -> Any:
            back = _fixed_points(upstream, points, shape, 3 - kind, tol)
            return _reduce_to(back, values)

        return _call(values, points, shape, kind, tol), gradient

    return transform(source)


def _differentiable(source: Any, trajectory: Any, shape: tuple[int, ...], kind: int, tol: float) -> Any:
    """NUFFT with gradients for values and points."""
    import tensorflow as tf

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def transform(values: Any, points: Any) -> tuple[Any, Callable[[Any], tuple[Any, Any]]]:
        def gradient(upstream: Any) -> tuple[Any, Any]:
            back = _differentiable(upstream, points, shape, 3 - kind, tol)
            # d/dt of exp(-i r t) brings down -i r, so both types need the transform of the image times position.
            image, kspace = (values, upstream) if kind == 2 else (upstream, values)
            moments = _differentiable(
                tf.expand_dims(image, -1 - len(shape)) * _positions(shape, image.dtype),
                points[..., None, :, :],
                shape,
                2,
                tol,
            )
            slope = tf.math.real(tf.math.conj(kspace)[..., None, :] * moments)
            slope = tf.linalg.matrix_transpose(slope)
            return _reduce_to(back, values), _reduce_to(tf.cast(slope, points.dtype), points)

        return _call(values, points, shape, kind, tol), gradient

    return transform(source, trajectory)


def _positions(shape: tuple[int, ...], dtype: Any) -> Any:
    """-i r for each axis: `[axis, *shape]`."""
    grid = np.meshgrid(*(np.arange(n) - n // 2 for n in shape), indexing="ij")
    return (-1j * np.stack(grid)).astype(dtype.as_numpy_dtype)


def _reduce_to(gradient: Any, like: Any) -> Any:
    """Sum a gradient over the axes that were broadcast."""
    import tensorflow as tf

    if gradient.shape.is_fully_defined() and gradient.shape == like.shape:
        return gradient
    target = tf.shape(like)
    axes = tf.raw_ops.BroadcastGradientArgs(s0=target, s1=tf.shape(gradient)).r0
    return tf.reshape(tf.reduce_sum(gradient, axes), target)


def _call(source: Any, points: Any, shape: tuple[int, ...], kind: int, tol: float) -> Any:
    """The transform itself, through Python, with its static shape restored."""
    import tensorflow as tf

    if kind == 1 and source.shape[-1] is not None and points.shape[-2] not in (None, source.shape[-1]):
        raise ValueError(
            f"k-space of {source.shape[-1]} samples does not fit a trajectory of {points.shape[-2]} samples: "
            "flatten views and samples of both"
        )
    fixed = isinstance(points, np.ndarray)
    inputs = [source] if fixed else [source, points]
    on_gpu = device.use_gpu()

    def compute(values: Any, given: Any = points) -> Any:
        if on_gpu:
            return _gpu_transform(values, given if fixed else given.numpy(), shape, kind, tol)
        return _transform(values, given, shape, kind, tol)

    if tf.executing_eagerly():
        # Not through py_function, which keeps the tensors of every eager call for a gradient that is never asked for.
        return tf.convert_to_tensor(compute(*(inputs if on_gpu else [one.numpy() for one in inputs])))
    inner = len(shape) if kind == 2 else 1
    batch = tf.broadcast_static_shape(source.shape[:-inner], tf.TensorShape(points.shape[:-2]))
    static = batch.concatenate([points.shape[-2]] if kind == 2 else list(shape))
    if on_gpu:
        with tf.device("/GPU:0"):
            result = tf.py_function(compute, inputs, source.dtype)
    else:
        result = tf.numpy_function(compute, inputs, source.dtype, stateful=False)
    result.set_shape(static)
    return result


def _transform(source: np.ndarray, points: np.ndarray, shape: tuple[int, ...], kind: int, tol: float) -> np.ndarray:
    """NUFFT of a batch over a batch of trajectories, which broadcast against each other."""
    rank = len(shape)
    inner = rank if kind == 2 else 1
    if points.ndim == 2:
        chosen = plan(points, shape, tol, source.dtype)
        result: np.ndarray = chosen.forward(source) if kind == 2 else chosen.adjoint(source)
        return result
    batch = np.broadcast_shapes(source.shape[:-inner], points.shape[:-2])
    source = np.broadcast_to(source, (*batch, *source.shape[-inner:]))
    # Trailing batch axes of length 1 in the trajectory (coils) share one plan.
    points = np.broadcast_to(points, (*([1] * (len(batch) - points.ndim + 2)), *points.shape))
    outer = len(batch)
    while outer and points.shape[outer - 1] == 1:
        outer -= 1
    points = points.reshape(*points.shape[:outer], *points.shape[-2:])
    points = np.broadcast_to(points, (*batch[:outer], *points.shape[-2:]))
    result = np.empty((*batch, *((points.shape[-2],) if kind == 2 else shape)), source.dtype)
    for index in np.ndindex(*batch[:outer]):
        result[index] = _transform(source[index], points[index], shape, kind, tol)
    return result


def _gpu_transform(source: Any, points: np.ndarray, shape: tuple[int, ...], kind: int, tol: float) -> Any:
    """The same on GPU tensors, without a copy through the host for the values."""
    import tensorflow as tf

    rank = len(shape)
    inner = rank if kind == 2 else 1
    if points.ndim > 2:
        return tf.convert_to_tensor(_transform(source.numpy(), points, shape, kind, tol))
    chosen = plan(points, shape, tol, source.dtype.as_numpy_dtype)
    tail = (points.shape[0],) if kind == 2 else shape
    batch = tuple(source.shape[:-inner])
    count = math.prod(batch)
    if count == 0:
        return tf.zeros([*batch, *tail], source.dtype)

    def transform(values: Any, out: Any) -> None:
        chosen.execute_into(values.reshape(count, *source.shape[-inner:]), out.reshape(count, *tail), adjoint=kind == 1)

    try:
        return on_tensors(transform, [source], (*batch, *tail), source)
    except MemoryError as error:
        logger.warning("NUFFT does not fit into GPU memory (%s); using the CPU for it", error)
        flat = source.numpy().reshape(count, *source.shape[-inner:])
        return tf.reshape(tf.convert_to_tensor(_CpuPlans(chosen).execute(flat, kind == 1)), [*batch, *tail])
