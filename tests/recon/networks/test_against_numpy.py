"""DnCNN and the cell of a VarNet, regulariser and all, against plain NumPy that shares nothing with them."""

from __future__ import annotations

import numpy as np
import pytest

from recon.networks.dncnn import DnCNN
from recon.networks.varnet import VarNet, VarNetCell

RANDOM = np.random.default_rng(3)


def convolved(x: np.ndarray, kernel: np.ndarray, bias: np.ndarray, mode: str) -> np.ndarray:
    """Correlation of ``[*image, channel]`` with ``[3, ..., in, out]``, the edge padded as np.pad's `mode` does."""
    rank = kernel.ndim - 2
    padded = np.pad(x, [(1, 1)] * rank + [(0, 0)], mode)  # type: ignore[call-overload]
    result = np.zeros((*x.shape[:-1], kernel.shape[-1]))
    for offset in np.ndindex(*(3,) * rank):
        window = tuple(slice(n, n + size) for n, size in zip(offset, x.shape[:-1], strict=True))
        result += padded[window] @ kernel[offset]
    return result + bias


def test_dncnn() -> None:
    network = DnCNN(2, 3)
    network.build((None, 9, 7, 1))
    for variable in network.weights:
        variable.assign(RANDOM.uniform(0.2, 1, variable.shape) * (1 if variable.ndim == 1 else RANDOM.choice([-1, 1], variable.shape)))
    values = iter([variable.numpy() for variable in network.published_weights()])
    image = RANDOM.uniform(0, 1, (9, 7, 1)).astype(np.float32)

    def take(count: int) -> list[np.ndarray]:
        return [next(values) for _ in range(count)]

    def normalised(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
        return np.maximum(gamma * (x - mean) / np.sqrt(variance + 1e-3) + beta, 0)

    x = np.maximum(convolved(image, *take(2), "reflect"), 0)
    for _ in range(2):  # a residual block: convolution and norm twice, and their running statistics at its end
        (kernel, bias, *first), (kernel_2, bias_2, *second) = take(4), take(4)
        statistics = take(4)
        inner = normalised(convolved(x, kernel, bias, "reflect"), *first, *statistics[:2])
        x = x + normalised(convolved(inner, kernel_2, bias_2, "reflect"), *second, *statistics[2:])
    kernel, bias, *rest = take(6)
    x = normalised(convolved(x, kernel, bias, "reflect"), *rest)
    expected = image + convolved(x, *take(2), "reflect")
    found = np.asarray(network(image[None]))[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def dft(n: int) -> np.ndarray:
    """The centred unitary transform as a matrix."""
    k = np.arange(n) - n // 2
    return np.exp(-2j * np.pi * np.outer(k, k) / n) / np.sqrt(n)


def regularised(u: np.ndarray, values: list[np.ndarray]) -> np.ndarray:
    """3D U-Net of two scales, one after another: encoders, decoder, head, two convolutions a block, of complex ``[frame, y, x]``."""
    pairs = list(zip(values[::2], values[1::2], strict=True))

    def block(x: np.ndarray, first: int) -> np.ndarray:
        for kernel, bias in pairs[first : first + 2]:
            x = convolved(x, kernel, bias, "constant")
            x = np.where(x > 0, x, 0.1 * x)
        return x

    fine = block(np.stack([u.real, u.imag], -1), 0)
    t, y, x, channels = fine.shape
    coarse = block(fine.reshape(t // 2, 2, y // 2, 2, x // 2, 2, channels).max((1, 3, 5)), 2)
    up = coarse.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    result = convolved(block(np.concatenate([up, fine], -1), 4), *pairs[6], "constant")
    return result[..., 0] + 1j * result[..., 1]


@pytest.mark.parametrize("published", [False, True])
def test_varnet(published: bool) -> None:
    """Two cells: u - step A^H (A u - f) - R(u), where the published A^H divides by the maps' sum of squares, 0 where that is 0."""
    coils, frames, rows, columns = 3, 4, 6, 8
    maps = RANDOM.standard_normal((coils, rows, columns)) + 1j * RANDOM.standard_normal((coils, rows, columns))
    maps[:, :2, :2] = 0
    mask = (RANDOM.uniform(size=(frames, rows, 1)) < 0.5).astype(float)
    shape = (coils, frames, rows, columns)
    kspace = mask * (RANDOM.standard_normal(shape) + 1j * RANDOM.standard_normal(shape))
    start = RANDOM.standard_normal(shape[1:]) + 1j * RANDOM.standard_normal(shape[1:])
    network = VarNet(2, (2, 3), published_adjoint=published)
    network.build((None, *shape[1:]))
    for variable in network.weights:
        variable.assign(0.4 * RANDOM.standard_normal(variable.shape))
    rows_dft, columns_dft = dft(rows), dft(columns)
    u = start
    for cell in network.cells:
        assert isinstance(cell, VarNetCell)
        residual = mask * (rows_dft @ (maps[:, None] * u) @ columns_dft.T) - kspace
        back = (maps.conj()[:, None] * (rows_dft.conj().T @ residual @ columns_dft.conj())).sum(0)
        if published:
            length = (np.abs(maps) ** 2).sum(0)
            back = np.where(length > 0, back / np.where(length > 0, length, 1), 0)
        u = u - float(cell.step) * back - regularised(u, [variable.numpy() for variable in cell.regularizer.weights])
    inputs = [array.astype(np.complex64)[None] for array in (start, kspace, maps[:, None])]
    found = np.asarray(network([*inputs, mask.astype(np.float32)[None, None]]))[0]
    np.testing.assert_allclose(found, u, atol=2e-4 * np.abs(u).max())
