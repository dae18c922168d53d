"""Networks in the stream: windows, scaling, failures."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from gadgets.base import Context, GadgetError, ParameterError, run
from gadgets.header import Header
from gadgets.items import Image, Text
from gadgets.layout import IMAGE_HEADER, ImageType, blank
from gadgets.network_marks import reason
from gadgets.networks import NetworkDenoise
from recon.networks.denoiser import Denoiser, denoiser
from recon.networks.fast_dvd_net import FastDVDnet
from recon.networks.weights import WeightsError
from tests.gadgets.scans import header_xml


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A whole small FastDVDnet with random weights, in a file."""
    keras.utils.set_random_seed(1)
    network = FastDVDnet((2, 4, 8))
    network(np.zeros((1, 8, 8, 5), np.float32))
    path = tmp_path_factory.mktemp("network") / "small.keras"
    network.save(path)
    return str(path)


def image(pixels: np.ndarray, slice_: int = 0) -> Image:
    """One image of a series."""
    header = blank(IMAGE_HEADER)
    header["slice"] = slice_
    header["image_series_index"] = 1
    return Image(header, pixels[None, None], {"ImageProcessingHistory": "reconstream"})


def series(count: int, shape: tuple[int, int] = (16, 12), seed: int = 0) -> list[np.ndarray]:
    """Frames."""
    return [frame.astype(np.float32) for frame in np.random.default_rng(seed).uniform(0.1, 1, (count, *shape))]


def denoised(frames: list[np.ndarray], gadget: NetworkDenoise) -> list[np.ndarray]:
    """What the gadget makes of them."""
    return [item.data[0, 0] for item in run([gadget], map(image, frames), Context()) if isinstance(item, Image)]


def test_the_newest_of_five_frames(small: str) -> None:
    frames = series(7)
    found = denoised(frames, NetworkDenoise(weights=small, frames=5))
    assert len(found) == 3
    network = keras.saving.load_model(small)
    window = np.stack(frames[2:7], -1)[None]
    scale = np.sort(window.mean(-1).ravel())[-1]  # 0.5 % of these few pixels is one
    np.testing.assert_allclose(found[-1], scale * np.asarray(network(window / scale))[0, ..., 0], rtol=1e-4, atol=1e-5)


def test_an_image_depends_on_its_window_and_on_nothing_else(small: str) -> None:
    """Frame t - 5 changed: not a bit differs; frame t changed: it does."""
    gadget = NetworkDenoise(weights=small, frames=5)
    frames = series(6)
    reference = denoised(frames, gadget)[-1]
    older, newer = [frame.copy() for frame in frames], [frame.copy() for frame in frames]
    older[0] *= 3
    newer[5][3, 4] += 0.5
    np.testing.assert_array_equal(denoised(older, gadget)[-1], reference)
    assert np.abs(denoised(newer, gadget)[-1] - reference).max() > 1e-4


def test_amplitude_passes_through(small: str) -> None:
    frames = series(5)
    gadget = NetworkDenoise(weights=small, frames=5)
    np.testing.assert_allclose(denoised([1000 * frame for frame in frames], gadget)[0], 1000 * denoised(frames, gadget)[0], rtol=1e-3)


def test_first_images(small: str) -> None:
    frames = series(6)
    passed = denoised(frames, NetworkDenoise(weights=small, frames=5, first_images="pass"))
    np.testing.assert_array_equal(passed[:4], frames[:4])
    repeated = denoised(frames, NetworkDenoise(weights=small, frames=5, first_images="repeat"))
    assert len(passed) == len(repeated) == 6
    np.testing.assert_array_equal(passed[4:], repeated[4:])
    context = Context()
    list(run([NetworkDenoise(weights=small, frames=5)], map(image, frames), context))
    assert context.counts["images before the network's first window"] == 4


def test_every_series_has_a_window_of_its_own(small: str) -> None:
    gadget = NetworkDenoise(weights=small, frames=5)
    first, second = series(5), series(5, seed=1)
    mixed = [image(frame, n) for pair in zip(first, second, strict=True) for n, frame in enumerate(pair)]
    found = [item.data[0, 0] for item in run([gadget], mixed, Context()) if isinstance(item, Image)]
    np.testing.assert_array_equal(found, [*denoised(first, gadget), *denoised(second, gadget)])


def test_other_items_keep_their_places_and_headers_stay(small: str) -> None:
    frames = [image(frame) for frame in series(5)]
    frames[4].header["image_index"] = 77
    found = list(run([NetworkDenoise(weights=small, frames=5)], [Text("before"), *frames, Text("after")], Context()))
    assert [type(item) for item in found] == [Text, Image, Text]
    assert found[1].header["image_index"] == 77
    assert found[1].header["image_type"] == ImageType.MAGNITUDE
    assert found[1].meta["ImageProcessingHistory"] == ["reconstream", "network"]
    assert found[1].meta["NetworkWeights"] == "small.keras"


class Broken:
    """A network that fails, or gives something that is no image."""

    def __init__(self, result: Any) -> None:
        self.result = result

    def __call__(self, window: Any) -> Any:
        if isinstance(self.result, Exception):
            raise self.result
        return tf.fill([1, 16, 12, 1], self.result) if isinstance(self.result, float) else self.result


@pytest.mark.parametrize(
    ("result", "why"),
    [
        (RuntimeError("out of memory"), "the network failed: RuntimeError: out of memory"),
        (float("nan"), "NaN"),
        (tf.zeros([1, 3, 3, 1]), "an image of"),
    ],
)
def test_when_the_network_fails_the_image_goes_out_marked(
    result: Any, why: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gadget = NetworkDenoise(weights="any.keras")
    monkeypatch.setattr(NetworkDenoise, "denoiser", lambda self: Denoiser("broken", Broken(result), 1, "none"))
    frames, context = series(3), Context()
    with caplog.at_level(logging.WARNING, "reconstream"):
        found = [item for item in run([gadget], map(image, frames), context) if isinstance(item, Image)]
    np.testing.assert_array_equal([item.data[0, 0] for item in found], frames)
    assert all(why in str(item.meta["NetworkFailed"]) for item in found)
    assert context.counts["images not made by the network"] == 3
    assert sum("NetworkFailed" in record.message for record in caplog.records) == 1


def test_a_network_that_fails_halfway_costs_that_image_only(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(range(9))

    def sometimes(window: Any) -> Any:
        number = next(calls)
        if number == 3:
            raise RuntimeError("out of memory")
        return tf.fill([1, 16, 12, 1], np.nan if number == 5 else 7.0)

    monkeypatch.setattr(NetworkDenoise, "denoiser", lambda self: Denoiser("sometimes", sometimes, 2, "none"))
    frames, context = series(8), Context()
    found = [item for item in run([NetworkDenoise(weights="any.keras")], map(image, frames), context) if isinstance(item, Image)]
    failed = [n for n, item in enumerate(found, 1) if "NetworkFailed" in item.meta]
    assert failed == [4, 6]  # the first window is full with image 1
    for n, item in enumerate(found, 1):
        np.testing.assert_array_equal(item.data[0, 0], frames[n] if n in failed else np.full((16, 12), 7.0))
    assert context.counts == {"images before the network's first window": 1, "images not made by the network": 2}


def test_why_a_network_failed_is_what_it_says_and_not_where(small: str, tmp_path: Path) -> None:
    """TensorFlow puts a traceback before it, Keras a heading."""
    plain = keras.Sequential([keras.Input((None, None, 2)), keras.layers.Conv2D(1, 3)])
    plain.save(tmp_path / "plain.keras")
    for weights, message in (
        (small, r"ValueError: FastDVDnet takes \[batch, y, x, 5\] magnitudes.*shape \(1, 16, 12, 4\)"),
        (str(tmp_path / "plain.keras"), "ValueError: Input 0 .*expected axis -1 of input shape to have value 2"),
    ):
        (*_, item) = run([NetworkDenoise(weights=weights, frames=4)], map(image, series(4)), Context())
        assert isinstance(item, Image)
        why = str(item.meta["NetworkFailed"])
        assert re.match(f"the network failed: {message}", why), why
        assert "\x1b" not in why
    assert reason(ValueError("")) == "the network failed: ValueError: "
    assert reason(OSError("first\nsecond")) == "the network failed: OSError: first"
    assert reason(ValueError("in user code:\n\n    File x")) == "the network failed: ValueError: File x"


def test_images_that_do_not_fit_go_out_marked(small: str) -> None:
    context = Context()
    odd = image(np.ones((15, 12), np.float32))
    bad = image(np.full((16, 12), np.nan, np.float32))
    found = list(run([NetworkDenoise(weights=small, frames=5)], [odd, bad], context))
    assert "multiples of 4" in str(found[0].meta["NetworkFailed"])
    assert "NaN or infinite" in str(found[1].meta["NetworkFailed"])
    assert context.counts["images not made by the network"] == 2


@pytest.mark.parametrize("kind", [ImageType.PHASE, ImageType.REAL, ImageType.IMAG])
def test_images_with_a_sign_go_out_as_they_are(kind: ImageType, small: str) -> None:
    phase = image(series(1)[0] - 0.5)
    phase.header["image_type"] = kind
    (found,) = run([NetworkDenoise(weights=small, frames=5)], [phase], Context())
    assert isinstance(found, Image)
    assert (found.header["image_type"], found.data.min() < 0) == (kind, True)
    assert "for magnitudes, not for images of phase" in str(found.meta["NetworkFailed"])


def test_a_network_of_two_channels_and_one_of_any_size(tmp_path: Path) -> None:
    for channels in (1, 2):
        keras.Sequential([keras.Input((None, None, 1)), keras.layers.Conv2D(channels, 3, padding="same")]).save(
            tmp_path / f"{channels}.keras"
        )
    items = list(run([NetworkDenoise(weights=str(tmp_path / "1.keras"))], [image(series(1, (15, 7))[0])], Context()))
    assert "NetworkFailed" not in items[0].meta  # type: ignore[attr-defined]
    items = list(run([NetworkDenoise(weights=str(tmp_path / "2.keras"))], [image(series(1)[0])], Context()))
    assert "gives 2 channels where the image should be one" in str(items[0].meta["NetworkFailed"])  # type: ignore[attr-defined]


def test_a_whole_model_says_how_many_frames_it_sees(tmp_path: Path) -> None:
    keras.Sequential([keras.Input((None, None, 3)), keras.layers.Conv2D(1, 1, kernel_initializer="ones")]).save(tmp_path / "sum.keras")
    frames = series(4)
    items = list(run([NetworkDenoise(weights=str(tmp_path / "sum.keras"), scaling="none")], [image(one) for one in frames], Context()))
    assert len(items) == 2
    for n, item in enumerate(items):
        assert np.allclose(item.data[0, 0], np.abs(frames[n : n + 3]).sum(0), rtol=1e-5)  # type: ignore[attr-defined]


def test_weights_that_are_not_there(tmp_path: Path) -> None:
    for weights, message in (
        ("hyperslice_published", "states no licence; give the path of your own copy"),
        ("nonsense", "no weights 'nonsense'"),
        (str(tmp_path / "gone.keras"), "does not exist"),
        ("inter4k_varnet_published", "are for another kind of input"),
    ):
        with pytest.raises(GadgetError, match=message):
            list(run([NetworkDenoise(weights=weights)], [image(series(1)[0])], Context()))
    with pytest.raises(ParameterError, match="is a name of the catalogue"):
        NetworkDenoise(weights="hyperslice_published", network="DnCNN")
    with pytest.raises(WeightsError, match="no weights"):
        denoiser("nonsense")


def test_a_series_too_short_for_the_network_goes_out_marked(small: str) -> None:
    frames, context = series(3), Context()
    found = [item for item in run([NetworkDenoise(weights=small, frames=5)], map(image, frames), context) if isinstance(item, Image)]
    np.testing.assert_array_equal([item.data[0, 0] for item in found], frames)
    assert all("ended before it had the 5 images" in str(item.meta["NetworkFailed"]) for item in found)


def test_a_network_that_cannot_be_prepared_costs_no_image(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A header with a matrix makes the gadget warm the network up before the first image."""
    broken = Denoiser("broken", Broken(RuntimeError("out of memory")), 1, "none")
    monkeypatch.setattr(NetworkDenoise, "denoiser", lambda self: broken)
    frames, context = series(2), Context(header=Header(header_xml((16, 12))))
    with caplog.at_level(logging.WARNING, "reconstream"):
        found = [item for item in run([NetworkDenoise(weights="any.keras")], map(image, frames), context) if isinstance(item, Image)]
    np.testing.assert_array_equal([item.data[0, 0] for item in found], frames)
    assert "preparing the network: the network failed: RuntimeError: out of memory" in caplog.text


def test_a_file_that_has_changed_is_loaded_again(small: str, tmp_path: Path) -> None:
    path = tmp_path / "network.keras"
    path.write_bytes(Path(small).read_bytes())
    first = denoiser(str(path), frames=5)
    assert denoiser(str(path), frames=5) is first
    os.utime(path, ns=(1, 1))
    assert denoiser(str(path), frames=5) is not first
