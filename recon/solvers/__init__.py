"""Iterative solvers."""

from recon.solvers.conjugate_gradient import conjugate_gradient

__all__ = ["conjugate_gradient"]
