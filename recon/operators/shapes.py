"""Checks of shapes, with errors that name the argument."""

from __future__ import annotations

from collections.abc import Sequence

from recon.arrays import Array


def check_fit(name: str, shape: Sequence[int], x: Array, argument: str = "the argument") -> None:
    """Raise a ValueError unless values of `shape` can be multiplied with the last axes of `x` without making it larger.

    Sizes that a graph does not know (None) are let through.
    """
    inner = tuple(x.shape)[-len(shape) :] if shape else ()
    if len(inner) != len(shape) or any(m not in (1, n) for m, n in zip(shape, inner, strict=True) if n is not None):
        raise ValueError(f"{name} of shape {tuple(shape)} does not fit the last axes of {argument}, which has shape {tuple(x.shape)}")
