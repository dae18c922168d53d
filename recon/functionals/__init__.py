"""Convex functionals for regularised reconstruction: value and proximal map, on NumPy arrays and tensors alike."""
