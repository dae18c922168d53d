"""Linear operators with adjoint and Gram operator, on NumPy arrays and TensorFlow tensors alike.

Those of the encoding can be imported from here; the others have a module each: `diagonal`, `differences`, `off_resonance`,
`phase`, `sms`, `stack`, `temporal`, `wavelet`. With tensors all of them work eagerly, in `tf.function` and in gradients, and
with `jit_compile=True` all but those that contain a `Nufft`, which XLA cannot compile (it calls finufft).
"""

from recon.operators.encoding import Encoding
from recon.operators.fourier import Fourier, Nufft, ToeplitzGram
from recon.operators.linear import Adjoint, Composition, Gram, LinearOperator
from recon.operators.sensitivity import Sensitivity

__all__ = [
    "Adjoint",
    "Composition",
    "Encoding",
    "Fourier",
    "Gram",
    "LinearOperator",
    "Nufft",
    "Sensitivity",
    "ToeplitzGram",
]
