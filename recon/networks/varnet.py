"""Variational network: gradient steps of the data term with a learnt regularisation, unrolled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from recon.fourier import fftc, ifftc
from recon.networks.complex_channels import from_channels, to_channels
from recon.networks.unet import UNet


@keras.saving.register_keras_serializable(package="reconstream")
class VarNetCell(keras.layers.Layer):
    """u - step A^H (A u - f) - R(u), A = mask, centred FFT over y and x, sensitivities; R a U-Net on real and imaginary part.

    Args:
        filters, rank: of the U-Net; rank 3 takes frames as its first image axis.
        published_adjoint: divide A^H by the sum of squares of the maps, as the published network does; it then is no
            adjoint where that sum is not 1.
    """

    def __init__(self, filters: Sequence[int], rank: int, published_adjoint: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.settings: dict[str, Any] = {"filters": list(filters), "rank": rank, "published_adjoint": published_adjoint}
        self.regularizer = UNet(filters, 2, rank=rank, activation="leaky_relu")

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Make the variables: step, U-Net."""
        self.step = self.add_weight(shape=(), initializer="ones", name="step")
        self.regularizer.build((*tuple(input_shape), 2))
        self.built = True

    def call(self, image: Any, kspace: Any, maps: Any, mask: Any) -> Any:
        """One step; shapes as of `VarNet`."""
        import tensorflow as tf

        coil_images = tf.expand_dims(image, 1) * maps
        residual = tf.cast(mask, image.dtype) * fftc(coil_images, (-2, -1)) - kspace
        back = tf.math.conj(maps) * ifftc(residual, (-2, -1))
        gradient = tf.reduce_sum(back, 1)
        if self.settings["published_adjoint"]:
            gradient = tf.math.divide_no_nan(gradient, tf.cast(tf.reduce_sum(tf.abs(maps) ** 2, 1), gradient.dtype))
        learnt = from_channels(self.regularizer(to_channels(image[..., None])))[..., 0]
        step = tf.complex(tf.convert_to_tensor(self.step), 0.0)
        return image - step * gradient - learnt

    def get_config(self) -> dict[str, Any]:
        """The arguments, for saving."""
        return {**super().get_config(), **self.settings}


@keras.saving.register_keras_serializable(package="reconstream")
class VarNet(keras.Model):
    """Cells of a variational network, each with a step and a U-Net of its own, for Cartesian series.

    Hammernik et al., Magn. Reson. Med. 79 (2018), in the form of Jaubert et al. (Image_Reconstruction_Inter4k): 12 cells of 3D
    U-Nets with 16, 32, 64 filters, 4,254,756 parameters, variables in the published order. Scale the data by the largest
    magnitude of the zero-filled image.

    Args:
        cells: steps.
        filters: of the U-Nets, at each scale.
        rank: 3 for series (frames, y, x), 2 for single images.
        published_adjoint: see `VarNetCell`.
    """

    def __init__(
        self, cells: int = 12, filters: Sequence[int] = (16, 32, 64), rank: int = 3, published_adjoint: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.settings: dict[str, Any] = {
            "cells": cells,
            "filters": list(filters),
            "rank": rank,
            "published_adjoint": published_adjoint,
        }
        self.cells = [VarNetCell(filters, rank, published_adjoint) for _ in range(cells)]

    def build(self, input_shape: Any) -> None:
        """Make the variables, from the shape of the start image (or the shapes of all inputs)."""
        shape = input_shape[0] if input_shape and isinstance(input_shape[0], (tuple, list)) else input_shape
        self._check(shape)
        for cell in self.cells:
            if not cell.built:
                cell.build(tuple(shape))
        self.built = True

    def call(self, inputs: Sequence[Any]) -> Any:
        """Reconstruct.

        Args:
            inputs: start image, complex ``[batch, (frame,) y, x]``; k-space ``[batch, coil, (frame,) y, x]`` with zeros where nothing was
                sampled; maps ``[batch, coil, (1,) y, x]``; mask, 1 where sampled, ``[batch, 1, (frame,) y, x]`` (sizes of 1 broadcast).

        Returns:
            Images, complex, shaped as the start image.
        """
        image, kspace, maps, mask = inputs
        self._check(image.shape)
        if len(kspace.shape) != len(image.shape) + 1:
            raise ValueError(f"k-space of shape {tuple(kspace.shape)} is not that of images {tuple(image.shape)} with a coil axis")
        for cell in self.cells:
            image = cell(image, kspace, maps, mask)
        return image

    def _check(self, shape: Sequence[int | None]) -> None:
        rank = self.settings["rank"]
        if len(shape) != rank + 1:
            raise ValueError(f"a VarNet of rank {rank} takes a start image of {rank + 1} axes, batch included, not of shape {tuple(shape)}")

    def get_config(self) -> dict[str, Any]:
        """The arguments, for saving."""
        return {"name": self.name, **self.settings}
