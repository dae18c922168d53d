"""Networks as functions of clips: what they are fed, and how it is scaled back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from recon.networks.coil_clips import CoilClips, coil_clips
from recon.networks.compiled import Compiled
from recon.networks.dncnn import DnCNN
from recon.networks.named import multiple, named
from recon.networks.unet import UNet
from recon.networks.unrolled import Unrolled, unrolled
from recon.networks.varnet import VarNet
from recon.networks.weights import WeightsError
from recon.phantoms import birdcage_coils

RANDOM = np.random.default_rng(3)


def complex_noise(*shape: int) -> np.ndarray:
    """Single precision."""
    return (RANDOM.standard_normal(shape) + 1j * RANDOM.standard_normal(shape)).astype(np.complex64)


def fourier(x: np.ndarray, inverse: bool = False) -> np.ndarray:
    """Centred, orthonormal, over the last two axes."""
    function = np.fft.ifft2 if inverse else np.fft.fft2
    return np.fft.fftshift(function(np.fft.ifftshift(x, (-2, -1)), norm="ortho"), (-2, -1))


def gradient_descent(cells: int, shape: tuple[int, int, int]) -> VarNet:
    """A VarNet without regularisation."""
    network = VarNet(cells, (2, 4))
    network.build((None, *shape))
    for cell in network.cells:
        for variable in cell.regularizer.weights:
            variable.assign(np.zeros(variable.shape))
    return network


def test_without_regularisation_an_unrolled_network_is_gradient_descent() -> None:
    maps = birdcage_coils(3, (8, 12)).astype(np.complex64)
    maps /= np.sqrt((np.abs(maps) ** 2).sum(0))
    mask = RANDOM.random((4, 8, 12)) < 0.5
    kspace = 40 * complex_noise(3, 4, 8, 12) * mask
    image = expected = (maps.conj()[:, None] * fourier(kspace, inverse=True)).sum(0)
    for _ in range(3):
        residual = mask * fourier(maps[:, None] * expected) - kspace
        expected = expected - (maps.conj()[:, None] * fourier(residual, inverse=True)).sum(0)
    found = Unrolled("none", gradient_descent(3, (4, 8, 12)), 4)(kspace, mask, maps)
    assert found.dtype == np.complex64
    assert np.abs(found - expected).max() < 1e-5 * np.abs(image).max()


def test_an_unrolled_network_is_fed_with_numbers_of_the_size_of_one() -> None:
    seen: dict[str, Any] = {}

    def network(inputs: Any) -> Any:
        seen["start"], seen["kspace"], seen["maps"], seen["mask"] = (np.asarray(x) for x in inputs)
        return inputs[0]

    maps, mask = np.ones((1, 4, 4), np.complex64), np.ones((2, 4, 4), bool)
    kspace = 1000 * complex_noise(1, 2, 4, 4)
    found = Unrolled("none", network, 2)(kspace, mask, maps)
    assert np.abs(seen["start"]).max() == pytest.approx(1, rel=1e-5)
    assert seen["kspace"].shape == (1, 1, 2, 4, 4)
    assert seen["maps"].shape == (1, 1, 1, 4, 4)
    assert seen["mask"].shape == (1, 1, 2, 4, 4)
    np.testing.assert_allclose(found, fourier(kspace[0], inverse=True), rtol=1e-4, atol=1e-2)
    assert not Unrolled("none", network, 2)(0 * kspace, mask, maps).any()  # and no NaN


def test_coil_clips_become_real_channels_and_missing_coils_zeros() -> None:
    seen: list[np.ndarray] = []

    def network(inputs: Any) -> Any:
        seen.append(np.asarray(inputs))
        return inputs[..., :1]

    images = 50 * complex_noise(4, 2, 10, 20)
    found = CoilClips("none", network, 4, 3)(images)
    (inputs,) = seen
    assert inputs.shape == (1, 4, 10, 20, 6)
    mean = np.linalg.norm(images, axis=1).mean(0)
    scale = np.sort(mean.ravel())[-1]  # 0.5 % of 200 pixels is one
    np.testing.assert_allclose(inputs[0, ..., 0], images[:, 0].real / scale, rtol=1e-5)
    np.testing.assert_allclose(inputs[0, ..., 4], images[:, 1].imag / scale, rtol=1e-5)
    assert not inputs[..., [2, 5]].any()
    np.testing.assert_allclose(found, images[:, 0].real, rtol=1e-5)


def test_files_belong_to_an_architecture_of_the_catalogue(tmp_path: Path) -> None:
    network = UNet([64, 92, 128], 1, rank=3, activation="leaky_relu")
    network.build((None, 24, 256, 256, 20))
    network.save_weights(tmp_path / "unet.weights.h5")
    found = coil_clips(str(tmp_path / "unet.weights.h5"), "inter4k_unet_published", 8)
    assert (found.name, found.frames, found.coils, found.multiple) == ("unet.weights.h5", 8, 10, 4)
    inputs = RANDOM.standard_normal((1, 4, 4, 4, 20)).astype(np.float32)
    np.testing.assert_array_equal(np.asarray(found.network(inputs)), np.asarray(network(inputs)))
    assert not found.takes((8, 6))


def test_whole_models_are_what_their_file_says(tmp_path: Path) -> None:
    keras.utils.set_random_seed(5)
    network = VarNet(2, (2, 4))
    zeros = np.zeros((1, 1, 2, 4, 4), np.complex64)
    network((zeros[:, 0], zeros, zeros[:, :, :1], np.zeros(zeros.shape, np.float32)))
    network.save(tmp_path / "own.keras")
    found = unrolled(str(tmp_path / "own.keras"), "inter4k_varnet_published")
    assert (found.frames, found.multiple) == (24, 2)
    kspace, maps, mask = complex_noise(2, 24, 4, 4), complex_noise(2, 4, 4), np.ones((24, 4, 4))
    np.testing.assert_array_equal(found(kspace, mask, maps), Unrolled("again", network, 24)(kspace, mask, maps))


def test_a_whole_model_says_how_many_coils_it_takes(tmp_path: Path) -> None:
    """The catalogue's architecture has ten."""
    own = UNet([2, 4], 1, rank=3)
    own(np.zeros((1, 4, 4, 4, 6), np.float32))
    own.save(tmp_path / "own.keras")
    window = keras.Input((None, None, None, 8))
    keras.Model(window, keras.layers.Conv3D(1, 3, padding="same")(window)).save(tmp_path / "plain.keras")
    for name, coils in (("own", 3), ("plain", 4)):
        clips = coil_clips(str(tmp_path / f"{name}.keras"), "inter4k_unet_published", 4)
        assert clips.coils == coils
        assert clips(complex_noise(4, coils, 4, 4)).shape == (4, 4, 4)


def test_sizes_that_networks_can_halve() -> None:
    assert multiple(UNet([2, 4, 8], 1)) == 4
    assert multiple(VarNet(1, (2, 4))) == 2
    assert multiple(DnCNN(1, 4)) == multiple(lambda x: x) == 1


def test_a_clip_of_several_channels_is_no_magnitude() -> None:
    two = UNet([2, 2], 2, rank=3)
    two.build((None, 4, 8, 8, 4))
    with pytest.raises(ValueError, match="gives 2 channels where the magnitude should be one"):
        CoilClips("two", two, 4, 2)(complex_noise(4, 2, 8, 8))


def test_files_that_have_changed_are_loaded_again(tmp_path: Path) -> None:
    clips, series = tmp_path / "clips.keras", tmp_path / "series.keras"
    unet = UNet([2, 4], 1, rank=3)
    unet(np.zeros((1, 4, 4, 4, 20), np.float32))
    unet.save(clips)
    varnet, zeros = VarNet(1, (2, 4)), np.zeros((1, 1, 2, 4, 4), np.complex64)
    varnet((zeros[:, 0], zeros, zeros[:, :, :1], np.zeros(zeros.shape, np.float32)))
    varnet.save(series)
    for path, load, architecture in (
        (clips, coil_clips, "inter4k_unet_published"),
        (series, unrolled, "inter4k_varnet_published"),
    ):
        first = load(str(path), architecture, 4)
        assert load(str(path), architecture, 4) is first
        os.utime(path, ns=(1, 1))
        assert load(str(path), architecture, 4) is not first


def test_what_does_not_go_together_is_said(tmp_path: Path) -> None:
    for weights, architecture, layout, message in (
        ("hyperslice_published", "", "clip", r"another kind of input \(frames_last\), not for clip"),
        ("inter4k_unet_published", "", "clip", "states no licence; give the path of your own copy"),
        ("nonsense", "", "clip", "no weights 'nonsense'"),
        (str(tmp_path / "a.h5"), "nonsense", "clip", "no weights 'nonsense'"),
        (str(tmp_path / "gone.h5"), "inter4k_unet_published", "clip", "does not exist"),
    ):
        with pytest.raises(WeightsError, match=message):
            named(weights, architecture, layout)  # type: ignore[arg-type]
    network = VarNet(1, (2, 4, 4))
    zeros = np.zeros((1, 1, 4, 4, 4), np.complex64)
    network((zeros[:, 0], zeros, zeros[:, :, :1], np.zeros(zeros.shape, np.float32)))
    network.save(tmp_path / "own.keras")
    with pytest.raises(WeightsError, match="clips of 6 frames do not fit the network; their length must be a multiple of 4"):
        unrolled(str(tmp_path / "own.keras"), "inter4k_varnet_published", 6)


def test_warming_up_makes_the_function_that_is_called_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where the first call would take a minute."""
    monkeypatch.setattr("recon.device.use_gpu", lambda: True)
    monkeypatch.setattr(Compiled, "_compile", lambda self, arrays: compiled.append([array.shape for array in arrays]) or self._function)
    compiled: list[list[tuple[int, ...]]] = []
    network = Unrolled("none", gradient_descent(1, (2, 4, 6)), 2)
    network.warm(3, (4, 6))
    network(complex_noise(3, 2, 4, 6), np.ones((2, 4, 6)), complex_noise(3, 4, 6))
    unet = UNet([2, 2], 1, rank=3)
    unet.build((None, 4, 8, 8, 4))
    clips = CoilClips("none", unet, 4, 2)
    clips.warm((8, 8))
    clips(complex_noise(4, 1, 8, 8))
    assert compiled == [[(3, 2, 4, 6), (2, 4, 6), (3, 4, 6)], [(4, 2, 8, 8)]]
