"""Small networks with random weights in files, for tests of the chains."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np

from recon.networks.dncnn import DnCNN
from recon.networks.fast_dvd_net import FastDVDnet
from recon.networks.unet import UNet
from recon.networks.varnet import VarNet


def saved(network: keras.Model, path: Path) -> str:
    """The network in a file."""
    network.save(path)
    return str(path)


def fast_dvd_net(path: Path, seed: int = 1) -> str:
    """FastDVDnet of few filters."""
    keras.utils.set_random_seed(seed)
    network = FastDVDnet((2, 4, 8))
    network(np.zeros((1, 8, 8, 5), np.float32))
    return saved(network, path)


def dncnn(path: Path, seed: int = 1) -> str:
    """DnCNN of few filters."""
    keras.utils.set_random_seed(seed)
    network = DnCNN(1, 4)
    network(np.zeros((1, 8, 8, 1), np.float32))
    return saved(network, path)


def unet(path: Path, seed: int = 1) -> str:
    """3D U-Net of few filters for 10 coils."""
    keras.utils.set_random_seed(seed)
    network = UNet([4, 6, 8], 1, rank=3, activation="leaky_relu")
    network(np.zeros((1, 8, 8, 8, 20), np.float32))
    return saved(network, path)


def varnet(path: Path, cells: int = 2, regularised: bool = True, seed: int = 1) -> str:
    """VarNet of few filters; without regularisation it is gradient descent."""
    keras.utils.set_random_seed(seed)
    network = VarNet(cells, (2, 4, 4))
    shape = (1, 1, 4, 8, 8)
    zeros = np.zeros(shape, np.complex64)
    network((zeros[:, 0], zeros, zeros[:, :, :1], np.zeros(shape, np.float32)))
    if not regularised:
        for cell in network.cells:
            for variable in cell.regularizer.weights:
                variable.assign(np.zeros(variable.shape))
    return saved(network, path)
