"""Linear operators with adjoint and Gram operator, on NumPy arrays and TensorFlow tensors alike."""

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
