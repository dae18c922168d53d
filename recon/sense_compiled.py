"""CG-SENSE with a convolution on tensors, as one program compiled by XLA for the GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from recon.cache import Cache
from recon.namespace import inner
from recon.operators.fourier import ToeplitzGram, convolve_tensor
from recon.operators.sensitivity import Sensitivity

_programs: Cache[Any] = Cache(8)


def compiled_sense(rhs: Any, maps: Any, convolution: ToeplitzGram, damping: float, iterations: int, tolerance: float) -> Any:
    """Solve (S^H T S + damping) x = b by conjugate gradients, eagerly or in a graph; differentiable as `conjugate_gradient`.

    Compiling a program for new shapes takes seconds; the programs used last are kept. Shapes must be static.

    Args:
        rhs: b, complex tensor `[*image_shape]`.
        maps: tensor or array `[coil, *image_shape]`.
        convolution: T.
        damping: weight of the identity.
        iterations, tolerance: see `conjugate_gradient`.

    Returns:
        x, tensor of the shape and dtype of `rhs`.
    """
    import tensorflow as tf

    maps = tf.cast(maps, rhs.dtype)
    key = (tuple(rhs.shape), tuple(maps.shape), rhs.dtype, iterations, tolerance)
    program = _programs.get(key, lambda: _compile(iterations, tolerance))
    return program(rhs, maps, convolution.kernel_like(rhs), tf.cast(damping, rhs.dtype))


def _compile(iterations: int, tolerance: float) -> Any:
    import tensorflow as tf

    def run(rhs: Any, maps: Any, kernel: Any, damping: Any) -> Any:
        sensitivity = Sensitivity(maps, rank=rhs.shape.rank)

        def normal(image: Any) -> Any:
            return sensitivity.adjoint(convolve_tensor(sensitivity(image), kernel)) + damping * image

        return _unrolled(normal, rhs, iterations, tolerance)

    return tf.function(run, jit_compile=True)


def _unrolled(operator: Callable[[Any], Any], rhs: Any, iterations: int, tolerance: float) -> Any:
    """Conjugate gradients without a loop, which XLA could not differentiate eagerly and would ask the host about each time round.

    Steps after the tolerance has been reached have length 0.
    """
    import tensorflow as tf

    solution, residual, direction = tf.zeros_like(rhs), rhs, rhs
    energy = inner(rhs, rhs)
    goal = tolerance**2 * energy
    for _ in range(iterations):
        image = operator(direction)
        length = tf.where(energy > goal, tf.math.divide_no_nan(energy, inner(direction, image)), 0)
        step = tf.cast(length, rhs.dtype)
        solution += step * direction
        residual -= step * image
        updated = tf.where(energy > goal, inner(residual, residual), 0)
        direction = residual + tf.cast(tf.math.divide_no_nan(updated, energy), rhs.dtype) * direction
        energy = updated
    return solution
