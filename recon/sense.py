"""Reconstruction of multi-coil data: gridding, self-calibrated sensitivities, CG-SENSE."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from recon import device, nufft
from recon.arrays import Array, complex_dtype, is_tensor, like, real_dtype
from recon.coils import combine, inati, walsh
from recon.density import pipe_weights
from recon.gpu_plans import null_stream
from recon.hand_over import gradients_wanted, on_tensors
from recon.namespace import namespace
from recon.operators import Encoding
from recon.operators.gpu_convolution import GpuConvolution, as_memory_error
from recon.resident import call_resident
from recon.sense_compiled import compiled_sense
from recon.sense_recorded import LARGEST, recorded_sense
from recon.solvers import conjugate_gradient
from recon.solvers.gpu_conjugate_gradient import gpu_conjugate_gradient

logger = logging.getLogger(__name__)

_LARGEST_GRID = 2**23
"""Points of the doubled grid of a volume up to which a GPU convolves: a GiB for the set-up."""


def gridding(
    kspace: Array,
    trajectory: np.ndarray,
    weights: np.ndarray | None,
    image_shape: Sequence[int],
    maps: Array | None = None,
    tolerance: float = nufft.TOLERANCE,
) -> Array:
    """Gridding reconstruction A^H W y: density weights, then the adjoint NUFFT.

    Args:
        kspace: complex `[..., coil, sample]`, array (NumPy or CuPy) or tensor.
        trajectory: `[sample, axis]` in rad/pixel, or `[..., sample, axis]` with the leading axes of `kspace`.
        weights: density weights `[sample]` or `[..., sample]` like the trajectory (of CuPy beside CuPy's k-space, or NumPy); None finds
            them by `pipe_weights`.
        image_shape: pixels per axis.
        maps: sensitivity maps `[..., coil, *image_shape]`, to combine the coils.
        tolerance: relative accuracy of the NUFFT.

    Returns:
        Coil images `[..., coil, *image_shape]`, or with maps the combined images `[..., *image_shape]`.

    Raises:
        ValueError: shapes do not fit.
    """
    trajectory = _check(kspace, trajectory, image_shape)
    if weights is None:
        weights = pipe_weights(trajectory, image_shape)
    if weights.shape != trajectory.shape[:-1]:
        raise ValueError(f"weights of shape {weights.shape} do not fit a trajectory of shape {trajectory.shape}")
    factors = weights[..., None, :].astype(real_dtype(complex_dtype(kspace)), copy=False)

    def coil_images(values: Array) -> Array:
        weighted = values * (factors if is_tensor(values) else namespace(values).asarray(factors))
        return _adjoint(weighted, trajectory, tuple(image_shape), tolerance)

    if maps is None:
        return coil_images(kspace)
    return call_resident("gridding", lambda values, s: combine(coil_images(values), s, rank=len(image_shape)), kspace, maps)


def self_calibrated_maps(
    kspace: Array,
    trajectory: np.ndarray,
    image_shape: Sequence[int],
    weights: np.ndarray | None = None,
    bandwidth: float = 0.2,
    method: Literal["inati", "walsh"] = "inati",
    kernel_size: int = 9,
) -> Array:
    """Sensitivity maps from the centre of the data itself: low-pass gridding, then `inati` or `walsh`.

    Average several frames or views into one call (samples side by side) for a good centre of k-space.

    Args:
        kspace, trajectory, image_shape, weights: see `gridding`.
        bandwidth: radius of the Hann window that is kept, as a fraction of the k-space radius pi.
        method: how maps are found in the low-resolution images.
        kernel_size: box size in pixels for that method.

    Returns:
        Maps `[..., coil, *image_shape]` with sum |s|^2 = 1 over the coils.

    Raises:
        ValueError: shapes do not fit, or no sample lies within the bandwidth.
    """
    trajectory = _check(kspace, trajectory, image_shape)
    if weights is None:
        weights = pipe_weights(trajectory, image_shape)
    radius = np.linalg.norm(trajectory, axis=-1) / (np.pi * bandwidth)
    window = np.where(radius < 1, 0.5 + 0.5 * np.cos(np.pi * np.minimum(radius, 1)), 0)
    if not window.any():
        raise ValueError(f"no sample lies within a fraction {bandwidth} of k-space; raise the bandwidth")
    images = gridding(kspace, trajectory, np.asarray(weights) * window, image_shape)
    if method == "inati":
        return inati(images, kernel_size, rank=len(image_shape))
    if method == "walsh":
        return walsh(images, kernel_size, rank=len(image_shape))
    raise ValueError(f"method must be 'inati' or 'walsh', not {method!r}")


def cg_sense(
    kspace: Array,
    trajectory: np.ndarray,
    maps: Array,
    iterations: int = 10,
    tolerance: float = 0.0,
    regularisation: float = 0.0,
    weights: np.ndarray | None = None,
    nufft_tolerance: float = nufft.TOLERANCE,
    toeplitz: bool | None = None,
) -> Array:
    """Iterative SENSE: minimise |W^1/2 (A S x - y)|^2 + lambda |x|^2 by conjugate gradients.

    Pruessmann et al., Magn. Reson. Med. 46 (2001). Weights speed up convergence (fewer iterations for the same image)
    but raise the noise; without them the solution is the least-squares one.

    Args:
        kspace: complex `[..., coil, sample]`, array or tensor. (A CuPy array stays on the GPU, as does its image.)
        trajectory: `[sample, axis]` in rad/pixel, or `[..., sample, axis]` with the leading axes of `kspace`.
        maps: sensitivity maps `[coil, *image_shape]`, or `[..., coil, *image_shape]`. With a GPU, maps that are read-only
            arrays (`maps.setflags(write=False)`) are copied there once.
        iterations: at most so many.
        tolerance: stop when the normal equation's residual falls below this fraction of its right-hand side.
        regularisation: lambda in units of the mean diagonal of A^H W A.
        weights: density weights `[sample]` or `[..., sample]` like the trajectory; None for ones.
        nufft_tolerance: relative accuracy of the NUFFT.
        toeplitz: iterate with a convolution instead of NUFFTs; None chooses what costs less.

    Returns:
        Images `[..., *image_shape]`.

    Raises:
        ValueError: shapes do not fit.
    """
    rank = np.shape(trajectory)[-1]
    trajectory = _check(kspace, trajectory, maps.shape[-rank:])
    if maps.shape[-rank - 1] != kspace.shape[-2]:
        raise ValueError(f"maps of {maps.shape[-rank - 1]} coils do not fit k-space of {kspace.shape[-2]} coils")
    batch = tuple(kspace.shape[:-2])

    def solve(index: tuple[int, ...]) -> Array:
        frame = _Frame(
            kspace[index] if index else kspace,
            trajectory[index] if trajectory.ndim > 2 else trajectory,
            maps[index] if len(maps.shape) > rank + 1 else maps,
            None if weights is None else np.asarray(weights)[index if np.ndim(weights) > 1 else ...],
        )
        return _solve(frame, iterations, tolerance, regularisation, nufft_tolerance, toeplitz)

    if not batch:
        return solve(())
    images = [solve(index) for index in np.ndindex(*batch)]
    if is_tensor(kspace):
        import tensorflow as tf

        return tf.reshape(tf.stack(images), [*batch, *images[0].shape])
    return namespace(images[0]).stack(images).reshape(*batch, *images[0].shape)


@dataclass(eq=False)
class _Frame:
    """What one image is made from: `[coil, sample]`, `[sample, axis]`, `[coil, *image_shape]`, `[sample]` or None."""

    kspace: Array
    trajectory: np.ndarray
    maps: Array
    weights: np.ndarray | None

    def encoding(self, toeplitz: bool | None, tolerance: float) -> Encoding:
        chosen = _toeplitz_pays(self.trajectory, self.maps.shape[1:]) if toeplitz is None else toeplitz
        return Encoding(self.maps, self.trajectory, weights=self.weights, toeplitz=chosen, tolerance=tolerance)


def _solve(frame: _Frame, iterations: int, tolerance: float, regularisation: float, accuracy: float, toeplitz: bool | None) -> Array:
    """Conjugate gradients on the normal equation of one frame."""
    options = iterations, tolerance, regularisation, accuracy, toeplitz
    tensors = is_tensor(frame.kspace)
    if not tensors:
        frame = replace(frame, maps=_contiguous(frame.maps, complex_dtype(frame.kspace)))
    if not device.use_gpu() or (tensors and not _known(frame)):
        return _solve_anywhere(frame, *options)
    if tensors:
        return _solve_tensors(frame, *options)
    try:
        image = _solve_on_gpu(replace(frame, kspace=device.put(frame.kspace), maps=device.put(frame.maps)), *options)
        return device.get(image) if isinstance(frame.kspace, np.ndarray) else image
    except MemoryError as error:
        on_host = replace(frame, kspace=device.get(frame.kspace), maps=device.get(frame.maps))
        return like(_solve_after(error, on_host, *options), frame.kspace)


def _solve_after(error: MemoryError, frame: _Frame, *options: Any) -> np.ndarray:
    """The same for NumPy arrays on the CPU, after the GPU was found too small."""
    logger.warning("CG-SENSE does not fit into GPU memory (%s); using the CPU for it", error)
    with device.on_cpu():
        image: np.ndarray = _solve_anywhere(frame, *options)
        return image


def _solve_anywhere(
    frame: _Frame, iterations: int, tolerance: float, regularisation: float, accuracy: float, toeplitz: bool | None
) -> Array:
    """The same for NumPy arrays on the CPU, or for tensors by TensorFlow's own operations and the NUFFT."""
    encoding = frame.encoding(toeplitz, accuracy)
    damping = regularisation * encoding.mean_diagonal
    rhs = encoding.adjoint(encoding.weigh(frame.kspace))
    if is_tensor(rhs) and encoding.toeplitz and device.use_gpu() and rhs.shape.is_fully_defined():
        return compiled_sense(rhs, frame.maps, encoding.toeplitz, damping, iterations, tolerance)
    gram = encoding.gram

    def normal(image: Array) -> Array:
        result = gram(image)
        return result + damping * image if damping else result

    return conjugate_gradient(normal, rhs, iterations, tolerance)


def _solve_on_gpu(frame: _Frame, iterations: int, tolerance: float, regularisation: float, accuracy: float, toeplitz: bool | None) -> Any:
    """The same for CuPy arrays, with all work queued on the GPU and nothing waited for."""
    with null_stream(), as_memory_error():
        encoding = frame.encoding(toeplitz, accuracy)
        damping = regularisation * encoding.mean_diagonal
        if encoding.toeplitz and frame.maps.nbytes <= LARGEST:
            kernel = encoding.toeplitz.kernel_like(frame.kspace)
            plan = nufft.plan(frame.trajectory, encoding.image_shape, accuracy, frame.maps.dtype)
            weighted = encoding.weigh(encoding.weigh(frame.kspace)).astype(plan.dtype, order="C", copy=False)
            solver = recorded_sense(frame.maps, kernel, iterations, tolerance)
            return solver(lambda out: plan.execute_into(weighted, out, adjoint=True), frame.maps, kernel, damping)
        normal = _normal_on_gpu(encoding, frame, damping)
        return gpu_conjugate_gradient(normal, encoding.adjoint(encoding.weigh(frame.kspace)), iterations, tolerance)


def _normal_on_gpu(encoding: Encoding, frame: _Frame, damping: float) -> Callable[[Any], Any]:
    import cupy

    if encoding.toeplitz:
        return GpuConvolution(cupy.ascontiguousarray(frame.maps), encoding.toeplitz.kernel_like(frame.kspace), cupy.full(1, damping))
    gram = encoding.gram
    return lambda image: gram(image) + damping * image


def _known(frame: _Frame) -> bool:
    """Tell whether all shapes of the tensors are known, and their types fit."""
    known = all(array.shape.is_fully_defined() for array in (frame.kspace, frame.maps) if is_tensor(array))
    return known and frame.kspace.dtype.is_complex


def _solve_tensors(frame: _Frame, *options: Any) -> Any:
    """The same for tensors, lent to CuPy; differentiable as `_solve_anywhere`, which computes the gradients."""
    import tensorflow as tf

    kspace = tf.convert_to_tensor(frame.kspace)
    dtype = np.dtype(kspace.dtype.as_numpy_dtype)
    fixed = None if is_tensor(frame.maps) else device.put(np.ascontiguousarray(frame.maps, dtype))
    inputs = [kspace] if fixed is not None else [kspace, tf.cast(frame.maps, kspace.dtype)]
    shape = tuple(int(n) for n in frame.maps.shape[1:])

    def compute(*tensors: Any) -> Any:
        def solve(samples: Any, *rest: Any) -> None:
            maps, out = (fixed, *rest) if fixed is not None else rest
            out[...] = _solve_on_gpu(replace(frame, kspace=samples, maps=maps), *options)

        try:
            return on_tensors(solve, tensors, shape, tensors[0])
        except MemoryError as error:
            maps = device.get(fixed) if fixed is not None else tensors[1].numpy()
            return tf.convert_to_tensor(_solve_after(error, replace(frame, kspace=tensors[0].numpy(), maps=maps), *options))

    if tf.executing_eagerly() and not gradients_wanted():
        return compute(*inputs)

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def transform(*tensors: Any) -> tuple[Any, Callable[[Any], Any]]:
        def gradient(upstream: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(tensors)
                maps = frame.maps if fixed is not None else tensors[1]
                image = _solve_anywhere(replace(frame, kspace=tensors[0], maps=maps), *options)
            return tape.gradient(image, list(tensors), upstream)

        if tf.executing_eagerly():
            return compute(*tensors), gradient
        with tf.device("/GPU:0"):
            image = tf.py_function(compute, tensors, kspace.dtype)
        return tf.ensure_shape(image, shape), gradient

    return transform(*inputs)


def _contiguous(maps: Array, dtype: np.dtype) -> Array:
    """The maps in this dtype and in order; the same array if they are already."""
    if is_tensor(maps) or isinstance(maps, np.ndarray):
        return np.ascontiguousarray(maps, dtype)
    return maps.astype(dtype, order="C", copy=False)


def _toeplitz_pays(trajectory: np.ndarray, shape: Sequence[int]) -> bool:
    """Tell whether the convolution costs less than the NUFFTs, its set-up included.

    Measured on one core, per coil and iteration: NUFFTs 20 ns a pixel and 45 ns a sample, convolution 32 ns a pixel; the
    set-up costs about one iteration of 16 coils. A GPU's NUFFT has a fine grid of twice the size too, so a convolution saves
    all spreading and interpolation: on an H200 0.09 ms instead of 0.6 (16 coils, 256 x 256, 24 spokes), set-up 0.3 ms.
    In three dimensions the doubled grid would cost too much time on a CPU; on the H200 10.6 ms instead of 35 (8 coils, 64 cubed, 2,000
    spokes, 10 iterations), set-up 13, as long as the set-up, 128 bytes a point of that grid, fits into a GPU.
    """
    if device.use_gpu():
        return len(shape) <= 2 or 2 ** len(shape) * math.prod(shape) <= _LARGEST_GRID
    return len(shape) <= 2 and len(trajectory) > 0.4 * math.prod(shape)


def _adjoint(kspace: Array, trajectory: np.ndarray, shape: tuple[int, ...], tolerance: float) -> Array:
    """Adjoint NUFFT of `[..., coil, sample]`, with one trajectory or one for each index of the leading axes."""
    if is_tensor(kspace):
        points = trajectory if trajectory.ndim == 2 else np.expand_dims(trajectory, -3)
        return nufft.nufft(kspace, points, shape, 1, tolerance)
    dtype = complex_dtype(kspace)
    if trajectory.ndim == 2:
        return nufft.plan(trajectory, shape, tolerance, dtype).adjoint(kspace)
    result = namespace(kspace).empty((*kspace.shape[:-1], *shape), dtype)
    for index in np.ndindex(*trajectory.shape[:-2]):
        result[index] = nufft.plan(trajectory[index], shape, tolerance, dtype).adjoint(kspace[index])
    return result


def _check(kspace: Array, trajectory: Any, image_shape: Sequence[int]) -> np.ndarray:
    points: np.ndarray = np.asarray(trajectory)
    batch, samples = tuple(kspace.shape[:-2]), kspace.shape[-1]
    fits = points.ndim >= 2 and points.shape[-2] == samples and points.shape[-1] == len(image_shape)
    if len(kspace.shape) < 2 or not fits or points.shape[:-2] not in ((), batch):
        raise ValueError(
            f"k-space {tuple(kspace.shape)} ([..., coil, sample]), trajectory {points.shape} ([..., sample, axis]) "
            f"and image shape {tuple(image_shape)} do not fit together: flatten views and samples of both, and give one "
            "trajectory for all or one for each index of the leading axes"
        )
    return points
