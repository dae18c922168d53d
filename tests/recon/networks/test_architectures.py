"""Networks: sizes and variables as published, and what they compute."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tensorflow as tf

from recon.fourier import fftc, ifftc
from recon.networks.complex_channels import ComplexConv, ComplexRelu, MagnitudeMaxPooling, from_channels, to_channels
from recon.networks.dncnn import DnCNN, ReflectionPadding
from recon.networks.fast_dvd_net import FastDVDnet
from recon.networks.losses import MultiscaleSSIMLoss, SSIMLoss
from recon.networks.modl import DataConsistency, MoDL
from recon.networks.unet import ConvBlock, UNet
from recon.networks.varnet import VarNet, VarNetCell
from recon.phantoms import birdcage_coils

RANDOM = np.random.default_rng(0)


def noise(*shape: int) -> np.ndarray:
    """Real, single precision."""
    return RANDOM.standard_normal(shape).astype(np.float32)


def complex_noise(*shape: int) -> np.ndarray:
    """Complex, single precision."""
    return noise(*shape) + 1j * noise(*shape)


# Kernels of the published checkpoints in the order of their variable lists (biases follow each).
TIME_UNET = [(3, 32), (32, 32), (32, 64), (64, 64), (64, 128), (128, 128), (64, 32), (32, 32), (128, 64), (64, 64)]
TIME_UNET += [(64, 128), (128, 256), (32, 1)]
RADIAL_UNET = [(20, 64), (64, 64), (64, 92), (92, 92), (92, 128), (128, 128), (156, 64), (64, 64), (220, 92), (92, 92), (64, 1)]
VARNET_UNET = [(2, 16), (16, 16), (16, 32), (32, 32), (32, 64), (64, 64), (48, 16), (16, 16), (96, 32), (32, 32), (16, 2)]


def variables(kernels: list[tuple[int, int]], rank: int) -> list[tuple[int, ...]]:
    """Shapes of kernels and biases."""
    return [shape for kernel in kernels for shape in ((*(3,) * rank, *kernel), kernel[1:])]


def test_fast_dvd_net_has_the_published_variables_in_the_published_order() -> None:
    network = FastDVDnet()
    network.build((None, 240, 240, 5))
    assert network.count_params() == 1_589_506
    assert [tuple(variable.shape) for variable in network.weights] == 2 * variables(TIME_UNET, 2)


def test_radial_unet_has_the_published_variables_in_the_published_order() -> None:
    network = UNet([64, 92, 128], 1, rank=3, activation="leaky_relu")
    network.build((None, 24, 256, 256, 20))
    assert network.count_params() == 2_450_753
    assert [tuple(variable.shape) for variable in network.weights] == variables(RADIAL_UNET, 3)


def test_varnet_has_the_published_variables_in_the_published_order() -> None:
    network = VarNet()
    network.build((None, 24, 240, 240))
    assert network.count_params() == 4_254_756
    assert [tuple(variable.shape) for variable in network.weights] == 12 * [(), *variables(VARNET_UNET, 3)]


def test_dncnn_has_the_published_variables() -> None:
    network = DnCNN()
    network.build((None, 80, 80, 1))
    assert network.count_params() == 633_345
    assert sum(int(np.prod(variable.shape)) for variable in network.non_trainable_weights) == 2_176
    shapes = [tuple(variable.shape) for variable in network.published_weights()]
    convolution, norm = [(3, 3, 64, 64), (64,)], [(64,), (64,)]
    assert shapes[:14] == [(3, 3, 1, 64), (64,), *convolution, *norm, *convolution, *norm, *norm, *norm]
    assert shapes[-2:] == [(3, 3, 64, 1), (1,)]
    assert len(shapes) == len(network.weights)


def test_fast_dvd_net_shares_its_first_stage() -> None:
    network = FastDVDnet((4, 8))
    frames = noise(2, 8, 12, 5)
    stages = [network.first(frames[..., n : n + 3]) for n in range(3)]
    expected = network.second(np.concatenate(stages, -1))
    np.testing.assert_allclose(network(frames), expected, atol=1e-5)
    assert network(frames).shape == (2, 8, 12, 1)


def test_a_unet_by_hand() -> None:
    """One scale down and up against plain TensorFlow calls."""
    network = UNet([3, 5], 2, rank=2, kernel_size=3, block_depth=1)
    x = noise(1, 4, 4, 2)
    network.build(x.shape)
    weights = [variable.numpy() for variable in network.weights]

    def convolve(y: np.ndarray, n: int) -> np.ndarray:
        return tf.nn.conv2d(y, weights[2 * n], 1, "SAME").numpy() + weights[2 * n + 1]

    fine = np.maximum(convolve(x, 0), 0)
    coarse = fine.reshape(1, 2, 2, 2, 2, 3).max((2, 4))
    coarse = np.maximum(convolve(coarse, 1), 0)
    up = coarse.repeat(2, 1).repeat(2, 2)
    merged = np.maximum(convolve(np.concatenate([up, fine], -1), 2), 0)
    np.testing.assert_allclose(network(x), convolve(merged, 3), atol=1e-5)


@pytest.mark.parametrize("upsampling", ["nearest", "deconvolution"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_unets_of_every_rank_are_saved_with_all_their_arguments(rank: int, upsampling: str, tmp_path: object) -> None:
    network = UNet([2, 4], 1, rank, upsampling=upsampling, activation="leaky_relu", negative_slope=0.3, batch_norm=True, dropout=0.1)
    x = noise(1, *(8,) * rank, 2)
    expected = network(x)
    network.save(f"{tmp_path}/network.keras")
    restored = keras.saving.load_model(f"{tmp_path}/network.keras")
    np.testing.assert_allclose(restored(x), expected, atol=1e-6)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of 4"):
        FastDVDnet()(noise(1, 10, 12, 5))
    with pytest.raises(ValueError, match="oldest frame first"):
        FastDVDnet().build((None, 16, 16, 4))
    network = FastDVDnet((2, 4))
    network(noise(1, 8, 8, 5))
    with pytest.raises(ValueError, match="oldest frame first"):  # the newest of six would go unseen
        network(noise(1, 8, 8, 6))
    with pytest.raises(ValueError, match="pixel_shuffle is for 2D"):
        UNet([2, 4], rank=3, upsampling="pixel_shuffle")
    with pytest.raises(ValueError, match="rank 3 takes"):
        VarNet(1, (2, 4))((complex_noise(1, 8, 8), complex_noise(1, 2, 8, 8), complex_noise(1, 2, 8, 8), noise(1, 1, 8, 8)))


def test_padding_is_numpys_reflection() -> None:
    x = noise(2, 5, 6, 3)
    np.testing.assert_array_equal(ReflectionPadding()(x), np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)], "reflect"))


def test_dncnn_subtracts_what_it_predicts() -> None:
    network = DnCNN(1, 4)
    x = noise(1, 9, 7, 1)
    network.build(x.shape)
    network.last.kernel.assign(tf.zeros_like(network.last.kernel))
    network.last.bias.assign([0.25])
    np.testing.assert_allclose(network(x), x + 0.25, atol=1e-6)


def without_regularizer(cell: VarNetCell, shape: tuple[int, ...]) -> VarNetCell:
    """The cell with a U-Net that returns zeros."""
    cell.build(shape)
    for variable in cell.regularizer.head.weights:
        variable.assign(tf.zeros_like(variable))
    return cell


@pytest.mark.parametrize("published", [False, True])
def test_a_cell_without_its_network_is_a_gradient_step(published: bool) -> None:
    """Against NumPy; with maps whose sum of squares is not 1, the published form is another operator."""
    maps = 1.7 * birdcage_coils(4, (12, 16)).astype(np.complex64)[None, :, None]
    image, kspace = complex_noise(1, 2, 12, 16), complex_noise(1, 4, 2, 12, 16)
    mask = (RANDOM.uniform(size=(1, 1, 2, 12, 1)) < 0.4).astype(np.float32)
    kspace *= mask
    cell = without_regularizer(VarNetCell((2, 4), 3, published), image.shape)
    cell.step.assign(0.6)
    residual = mask * fftc(image[:, None] * maps, (-2, -1)) - kspace
    gradient = (maps.conj() * ifftc(residual, (-2, -1))).sum(1)
    if published:
        gradient /= (np.abs(maps) ** 2).sum(1)
    np.testing.assert_allclose(cell(image, kspace, maps, mask), image - 0.6 * gradient, atol=2e-5)


def test_varnet_can_be_trained_and_saved(tmp_path: object) -> None:
    network = VarNet(2, (2, 4), rank=2)
    maps = birdcage_coils(3, (8, 8)).astype(np.complex64)[None]
    inputs = (complex_noise(1, 8, 8), complex_noise(1, 3, 8, 8), maps, np.ones((1, 1, 8, 8), np.float32))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.abs(network(inputs)) ** 2)
    gradients = tape.gradient(loss, network.trainable_weights)
    assert all(gradient is not None and np.isfinite(gradient).all() for gradient in gradients)
    network.save_weights(f"{tmp_path}/varnet.weights.h5")
    other = VarNet(2, (2, 4), rank=2)
    other.build((None, 8, 8))
    other.load_weights(f"{tmp_path}/varnet.weights.h5")
    np.testing.assert_allclose(other(inputs), network(inputs), atol=1e-6)


def test_data_consistency_solves_its_equation_and_differentiates_it() -> None:
    """A diagonal Gram operator: solution and its derivative by the weight are known."""
    layer = DataConsistency(20, 0.3)
    diagonal = RANDOM.uniform(0.5, 2, (1, 6, 6)).astype(np.float32)
    rhs, denoised = complex_noise(1, 6, 6), complex_noise(1, 6, 6)
    with tf.GradientTape() as tape:
        x = layer(tf.constant(denoised), tf.constant(rhs), gram=lambda y: tf.cast(diagonal, y.dtype) * y)
        loss = tf.reduce_sum(tf.abs(x) ** 2)
    expected = (rhs + 0.3 * denoised) / (diagonal + 0.3)
    np.testing.assert_allclose(x, expected, atol=1e-4)
    slope = (denoised - expected) / (diagonal + 0.3)
    derivative = 0.3 * 2 * np.sum(np.real(expected.conj() * slope))
    np.testing.assert_allclose(tape.gradient(loss, layer.log_weight), derivative, rtol=1e-3)


def test_modl_with_a_denoiser_that_does_nothing_converges_to_least_squares() -> None:
    network = MoDL(60, 1, 4)
    network.build()
    for variable in network.denoiser.last.weights:
        variable.assign(tf.zeros_like(variable))
    rhs = complex_noise(1, 6, 6)
    np.testing.assert_allclose(network(rhs, gram=lambda x: 2 * x), rhs / 2, atol=1e-4)


def test_complex_channels_go_back() -> None:
    x = complex_noise(2, 3, 4, 5)
    np.testing.assert_array_equal(from_channels(to_channels(x)), x)
    np.testing.assert_array_equal(to_channels(x)[..., 5:], x.imag)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_complex_convolution_is_one(rank: int) -> None:
    layer = ComplexConv(2, 3, rank)
    x = complex_noise(1, *(6, 5, 4)[:rank], 3)
    layer.build(x.shape)
    layer.bias.assign([[0.5, 0], [0, 0.25]])
    kernel = layer.real.kernel.numpy() + 1j * layer.imaginary.kernel.numpy()
    padded = np.pad(x[0], [(1, 1)] * rank + [(0, 0)])
    expected = np.broadcast_to([0.5, 0.25j], (*x.shape[1:-1], 2)).copy()
    for offset in np.ndindex(*(3,) * rank):
        window = tuple(slice(n, n + size) for n, size in zip(offset, x.shape[1:-1], strict=True))
        expected += padded[window] @ kernel[offset]
    np.testing.assert_allclose(layer(x)[0], expected, atol=1e-5)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_complex_pooling_takes_the_largest_magnitude(rank: int) -> None:
    x = complex_noise(2, *(4, 6, 2)[:rank], 3)
    y = MagnitudeMaxPooling(rank)(x).numpy()
    assert y.shape == (2, *(2, 3, 1)[:rank], 3)
    for place in np.ndindex(*y.shape[1:-1]):
        patch = x[(slice(None), *(slice(2 * n, 2 * n + 2) for n in place))].reshape(2, 2**rank, 3)
        best = np.abs(patch).argmax(1)
        np.testing.assert_array_equal(y[(slice(None), *place)], np.take_along_axis(patch, best[:, None], 1)[:, 0])
    with pytest.raises(ValueError, match="image sizes must be even"):
        MagnitudeMaxPooling(rank)(x[:, :3])


def test_a_model_of_complex_layers_is_saved_and_trained(tmp_path: object) -> None:
    image = keras.Input((8, 8, 1), dtype="complex64")
    model = keras.Model(image, ComplexConv(1)(MagnitudeMaxPooling()(ComplexRelu()(ComplexConv(4)(image)))))
    x = complex_noise(2, 8, 8, 1)
    model.save(f"{tmp_path}/complex.keras")
    np.testing.assert_allclose(keras.saving.load_model(f"{tmp_path}/complex.keras")(x), model(x), atol=1e-6)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.abs(model(x)) ** 2)
    for gradient, variable in zip(tape.gradient(loss, model.trainable_weights), model.trainable_weights, strict=True):
        assert np.abs(gradient).max() > 0, variable.path
    parts = np.asarray(ComplexRelu()(x))
    np.testing.assert_array_equal(parts, np.maximum(x.real, 0) + 1j * np.maximum(x.imag, 0))


def test_losses() -> None:
    target = RANDOM.uniform(size=(2, 176, 176, 1)).astype(np.float32)
    other = np.clip(target + 0.1 * noise(*target.shape), 0, 1)
    for loss in (SSIMLoss(), MultiscaleSSIMLoss()):
        assert abs(float(loss(target, target))) < 1e-5
        assert 0 < float(loss(target, other)) < 1
    expected = 1 - np.mean(tf.image.ssim(target, other, 1.0))
    np.testing.assert_allclose(float(SSIMLoss()(target, other)), expected, rtol=1e-3)
    several = 1 - np.mean(tf.image.ssim_multiscale(target, other, 1.0))
    np.testing.assert_allclose(float(MultiscaleSSIMLoss()(target, other)), several, rtol=1e-3)
    np.testing.assert_allclose(float(SSIMLoss()(target * (1 + 0j), other * 1j)), expected, rtol=1e-3)  # of magnitudes
    mixed = float(SSIMLoss(l1=2.0)(target, other)) - float(SSIMLoss()(target, other))
    np.testing.assert_allclose(mixed, 2 * np.abs(target - other).mean(), rtol=1e-3)


def test_a_residual_block_adds_its_input() -> None:
    block = ConvBlock([3, 3], residual=True)
    x = noise(1, 5, 5, 3)
    block.build(x.shape)
    for convolution in block.convolutions:
        convolution.kernel.assign(tf.zeros_like(convolution.kernel))
    np.testing.assert_array_equal(block(x), x)
