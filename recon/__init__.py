"""Reconstruction on arrays: trajectories, NUFFT, coils, operators, solvers. Knows nothing of streams or headers.

Importing this package imports no TensorFlow; only what works on tensors does, when called.
"""
