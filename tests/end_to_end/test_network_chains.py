"""The chains with networks behind gridding, as shipped but for the weights, which are random."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from gadgets.items import Acquisition, Image, Item
from gadgets.layout import Flag
from recon.networks.coil_clips import CoilClips
from recon.nufft import Nufft
from recon.phantoms import birdcage_coils, moving_heart, phantom
from recon.realtime_spiral import RealtimeSpiral
from recon.sodium_spiral import sodium_spiral
from scripts import simulate
from service.client import replay
from service.files import read_images, write_measurement
from service.local import ReconstructionError, read_config, reconstruct
from tests.end_to_end import networks_small
from tests.end_to_end.test_noncartesian_chains import error
from tests.end_to_end.test_varnet_chain import realtime
from tests.gadgets.scans import header_xml
from tests.service.serving import Server

SPIRAL, ARMS, FRAMES, COILS = 240, 15, 20, 2


@dataclass
class Spirals:
    """A scan by the published protocol, without trajectories in the readouts."""

    header: bytes
    items: list[Item]
    objects: list[np.ndarray]
    maps: np.ndarray


@pytest.fixture(scope="module")
def spirals() -> Spirals:
    """20 frames of 15 arms of a beating heart."""
    protocol = RealtimeSpiral()
    maps = birdcage_coils(COILS, (SPIRAL, SPIRAL))
    objects = [moving_heart((SPIRAL, SPIRAL), 54.6 * (frame + 0.5)) for frame in range(FRAMES)]
    items: list[Item] = []
    for frame, image in enumerate(objects):
        points = protocol.trajectory[frame % protocol.phases]
        plan = Nufft(points[..., ::-1].reshape(-1, 2), (SPIRAL, SPIRAL), 1e-4)
        data = SPIRAL * plan.forward((image * maps).astype(np.complex64)).reshape(COILS, ARMS, -1)
        for arm in range(ARMS):
            readout = Acquisition(None, np.ascontiguousarray(data[:, arm]))
            idx = readout.header["idx"]
            idx["kspace_encode_step_1"], idx["repetition"] = arm, frame
            readout.header["acquisition_time_stamp"] = len(items)
            readout.header["scan_counter"] = len(items) + 1
            if arm == ARMS - 1:
                readout.set_flag(Flag.LAST_IN_REPETITION)
            items.append(readout)
    header = header_xml((SPIRAL, SPIRAL), encoded_mm=(400.0, 400.0), trajectory="spiral", views=ARMS)
    return Spirals(header, items, objects, maps)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Small networks in files."""
    folder = tmp_path_factory.mktemp("weights")
    makers = (networks_small.fast_dvd_net, networks_small.dncnn, networks_small.unet)
    return {make.__name__: make(folder / f"{make.__name__}.keras") for make in makers}


@pytest.fixture(scope="module")
def hyperslice(spirals: Spirals, weights: dict[str, str]) -> list[Image]:
    """The images of the chain."""
    return interactive(spirals.items, spirals, weights)


def interactive(items: list[Item], spirals: Spirals, weights: dict[str, str], **properties: Any) -> list[Image]:
    chosen = {"trajectory": "hyperslice", "weights": weights["fast_dvd_net"], "frames": 5, **properties}
    return reconstruct(items, "spiral_hyperslice", header=spirals.header, **chosen)


def test_twenty_frames_are_sixteen_images(hyperslice: list[Image]) -> None:
    assert [int(image.repetition) for image in hyperslice] == list(range(4, FRAMES))
    assert all(image.meta["NetworkWeights"] == "fast_dvd_net.keras" and "NetworkFailed" not in image.meta for image in hyperslice)
    assert {image.data.shape for image in hyperslice} == {(1, 1, SPIRAL, SPIRAL)}


def test_an_image_depends_on_its_own_and_the_four_frames_before(hyperslice: list[Image], spirals: Spirals, weights: dict[str, str]) -> None:
    changed = [item.with_data(item.data * np.float32(1.5)) if _frame(item) == 6 else item for item in spirals.items]
    for image, before in zip(interactive(changed, spirals, weights), hyperslice, strict=True):
        same = image.data.tobytes() == before.data.tobytes()
        assert same != (6 <= int(image.repetition) <= 10), int(image.repetition)


def _frame(item: Item) -> int:
    assert isinstance(item, Acquisition)
    return int(item.header["idx"]["repetition"])


def without_network(config: str) -> bytes:
    """The chain up to its network."""
    text = read_config(config)[1].decode()
    assert "NetworkDenoise" in text
    return re.sub(r"<gadget>\s*<dll>reconstream</dll><classname>NetworkDenoise</classname>.*?</gadget>", "", text, flags=re.S).encode()


def test_what_the_network_sees_is_the_gridded_frame(spirals: Spirals) -> None:
    """Low frequencies are sampled densely, and are those of the object; the rest is aliased."""
    items = [item for item in spirals.items if _frame(item) == 0]
    (image,) = reconstruct(items, without_network("spiral_hyperslice"), header=spirals.header, trajectory="hyperslice")
    truth = np.abs(spirals.objects[0]) * np.linalg.norm(spirals.maps, axis=0)
    pixels = image.data[0, 0].astype(np.float64)
    assert np.linalg.norm(pixels - truth) < 0.25 * np.linalg.norm(truth)
    low = np.hypot(*np.meshgrid(*[np.arange(SPIRAL) - SPIRAL // 2] * 2)) < 12
    blurred, expected = (np.fft.ifft2(np.fft.ifftshift(low) * np.fft.fft2(one)).real for one in (pixels, truth))
    assert float((blurred * expected).sum() / (expected**2).sum()) == pytest.approx(1, abs=0.05)


def test_the_gridded_frame_is_the_published_one(shared: Path) -> None:
    """Ten coils, the brightest coil pixel 1: largest pixel 2.197, sum 20948; by direct sums with TensorFlow MRI's trajectory and weights,
    and by the chain, up to a factor (the weights' scale, and Pipe's weights for the frame's 15 arms instead of the full set's 16)."""
    with np.load(shared / "reference" / "tfmri_oracle.npz") as oracle:
        points, density = oracle["hyperslice_trajectory_phase0"].reshape(-1, 2), oracle["hyperslice_weights"].reshape(-1)
    images = phantom("modified_shepp_logan", (SPIRAL, SPIRAL)) * birdcage_coils(10, (SPIRAL, SPIRAL))
    images = (images / np.abs(images).max()).astype(np.complex64)
    pixels = np.arange(SPIRAL) - SPIRAL // 2
    across, along = (np.exp(-1j * points[:, axis, None] * pixels).astype(np.complex64) for axis in (0, 1))  # kx, ky
    samples = np.stack([((along @ image) * across).sum(1) for image in images]) / SPIRAL
    gridded = [along.conj().T @ ((density * one)[:, None] * across.conj()) / SPIRAL for one in samples]
    expected = np.linalg.norm(gridded, axis=0)
    assert expected.max() == pytest.approx(2.197, rel=0.02)
    assert expected.sum() == pytest.approx(20948, rel=0.02)
    readouts = [Acquisition(None, one) for one in samples.reshape(10, ARMS, -1).swapaxes(0, 1).astype(np.complex64)]
    for arm, readout in enumerate(readouts):
        readout.header["idx"]["kspace_encode_step_1"] = arm
    header = header_xml((SPIRAL, SPIRAL), encoded_mm=(400.0, 400.0), trajectory="spiral", views=ARMS)
    (image,) = reconstruct(readouts, without_network("spiral_hyperslice"), header=header, trajectory="hyperslice")
    found = image.data[0, 0].astype(np.float64)
    found *= np.vdot(found, expected) / np.vdot(found, found)
    assert np.linalg.norm(found - expected) < 0.02 * np.linalg.norm(expected)
    assert (found.max(), found.sum()) == (pytest.approx(expected.max(), rel=0.02), pytest.approx(expected.sum(), rel=0.02))


def test_spirals_go_on_turning_where_the_counter_begins_anew(spirals: Spirals) -> None:
    """Frames 65,534 to 65,537: the same images as of readouts that carry their trajectory, two degrees a frame on."""
    protocol, first = RealtimeSpiral(), 65534
    counted: list[Item] = []
    carried: list[Item] = []
    for item in spirals.items:
        frame = _frame(item) - first % protocol.phases  # the scan's first frame that is turned as the 65,534th
        if 0 <= frame < 4:
            assert isinstance(item, Acquisition)
            points = protocol.trajectory[(first + frame) % protocol.phases, int(item.header["idx"]["kspace_encode_step_1"])]
            for found, trajectory in ((counted, None), (carried, (points / (2 * np.pi)).astype(np.float32))):
                readout = Acquisition(item.header.copy(), item.data, trajectory)
                readout.header["idx"]["repetition"] = (first + frame) % 65536
                found.append(readout)
    chain = without_network("spiral_hyperslice")
    by_counter = reconstruct(counted, chain, header=spirals.header, trajectory="hyperslice")
    by_readout = reconstruct(carried, chain, header=spirals.header)
    assert [int(image.repetition) for image in by_counter] == [65534, 65535, 0, 1]
    for one, other in zip(by_counter, by_readout, strict=True):
        np.testing.assert_allclose(one.data, other.data, atol=1e-4 * other.data.max())


@pytest.fixture(scope="module")
def radial() -> simulate.Scan:
    """30 frames of 13 spokes, of more coils than the network takes."""
    return simulate.radial(32, 12, 13, 30, noise=0.01)


def clips(scan: simulate.Scan, weights: str, items: list[Item] | None = None, **properties: Any) -> list[Image]:
    return reconstruct(scan.items if items is None else items, "radial_unet", header=scan.header, weights=weights, **properties)


def test_thirty_frames_are_two_clips_and_thirty_images(radial: simulate.Scan, weights: dict[str, str]) -> None:
    found = clips(radial, weights["unet"])
    assert [int(image.repetition) for image in found] == list(range(30))
    assert [int(image.image_index) for image in found] == list(range(1, 31))
    assert {(image.data.dtype.type, image.data.shape) for image in found} == {(np.float32, (1, 1, 32, 32))}
    assert all(image.meta["NetworkWeights"] == "unet.keras" for image in found)
    brighter = [_brighter(item) if _frame(item) == 26 else item for item in radial.items]
    same = [one.data.tobytes() == two.data.tobytes() for one, two in zip(clips(radial, weights["unet"], brighter), found, strict=True)]
    assert same == [True] * 22 + [False] * 8  # the second clip is of frames 6 to 29, of which those from 22 on leave with it


def test_without_its_network_it_grids(weights: dict[str, str], tmp_path: Path) -> None:
    scan = simulate.radial(32, 4, 13, 5, noise=0.01)
    network = keras.saving.load_model(weights["unet"], compile=False)
    network.weights[0].assign(np.full(network.weights[0].shape, np.nan))
    found = clips(scan, networks_small.saved(network, tmp_path / "broken.keras"), frames=4, overlap=0)
    expected = reconstruct(scan.items, "radial_realtime", header=scan.header, method="root_sum_of_squares", coils="")
    assert [int(image.repetition) for image in found] == list(range(5))
    for image, other in zip(found, expected, strict=True):
        assert "NaN" in str(image.meta["NetworkFailed"])
        np.testing.assert_allclose(image.data, other.data, atol=1e-4 * other.data.max())


@pytest.mark.parametrize("coils", [4, 12])
def test_the_strongest_virtual_coils_come_first(coils: int, weights: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where there are no more coils than the network takes: it has learnt so."""
    scan = simulate.radial(32, coils, 13, 4, noise=0.01)
    seen: list[np.ndarray] = []
    monkeypatch.setattr(CoilClips, "__call__", lambda self, images: seen.append(images) or np.abs(images[:, 0]))
    found = clips(scan, weights["unet"], frames=4, overlap=0)
    (images,) = seen
    energy = (np.abs(images) ** 2).sum((0, 2, 3))
    assert len(energy) == min(coils, 10)
    assert (energy[0] > energy[1:]).all()
    assert (np.diff(energy) < 0.02 * energy[0]).all()
    gridded = reconstruct(scan.items, "radial_realtime", header=scan.header, method="root_sum_of_squares", coils="")
    np.testing.assert_allclose(energy.sum(), sum((image.data**2).sum() for image in gridded), rtol=0.02)
    np.testing.assert_array_equal(found[1].data[0, 0], np.abs(images[1, 0]))


def test_an_image_that_does_not_fit_the_network(weights: dict[str, str]) -> None:
    scan = simulate.radial(30, 4, 13, 2, noise=0.01)
    for image in clips(scan, weights["unet"]):
        assert "30 x 30 pixels do not fit the network: it takes multiples of 4" in str(image.meta["NetworkFailed"])


def test_weights_that_are_not_shipped_are_asked_for(radial: simulate.Scan) -> None:
    with pytest.raises(ReconstructionError, match=r"UNetRecon.*Image_Reconstruction_Inter4k.*states no licence; give the path of your own"):
        clips(radial, "inter4k_unet_published")


def test_channels_that_get_lost_on_the_way_are_noticed(radial: simulate.Scan, weights: dict[str, str]) -> None:
    readouts = [item for item in radial.items if isinstance(item, Acquisition) and not item.is_flag_set(Flag.IS_NOISE_MEASUREMENT)]
    items: list[Item] = [item.with_data(item.data[:11], item.trajectory) if _frame(item) == 3 else item for item in readouts]
    with pytest.raises(ReconstructionError, match="frame 4 has 11 channels, earlier frames of its series 12"):
        clips(radial, weights["unet"], items)


def _brighter(item: Item) -> Item:
    assert isinstance(item, Acquisition)
    return item if item.is_flag_set(Flag.IS_NOISE_MEASUREMENT) else item.with_data(item.data * np.float32(1.5), item.trajectory)


def sodium(averages: int, noise: float) -> tuple[bytes, list[Item], np.ndarray]:
    """Header, readouts and truth of the published protocol: 80 x 80, 20 arms, one coil, averages outermost."""
    points = sodium_spiral()
    truth = moving_heart((80, 80), 200.0)
    data = 80 * Nufft(points[..., ::-1].reshape(-1, 2), (80, 80), 1e-4).forward(truth[None].astype(np.complex64)).reshape(20, -1)
    random = np.random.default_rng(0)
    items: list[Item] = []
    for average in range(averages):
        for arm in range(20):
            white = random.standard_normal((1, data.shape[1])) + 1j * random.standard_normal((1, data.shape[1]))
            readout = Acquisition(None, (data[arm] + noise * white).astype(np.complex64), (points[arm] / (2 * np.pi)).astype(np.float32))
            idx = readout.header["idx"]
            idx["kspace_encode_step_1"], idx["average"] = arm, average
            readout.header["scan_counter"] = len(items) + 1
            if arm == 19:
                readout.set_flag(Flag.LAST_IN_SLICE)
            if arm == 19 and average == averages - 1:
                readout.set_flag(Flag.LAST_IN_REPETITION)
            items.append(readout)
    limit = f"<average><minimum>0</minimum><maximum>{averages - 1}</maximum><center>0</center></average>"
    header = header_xml((80, 80), encoded_mm=(180.0, 180.0), trajectory="spiral", views=20).decode()
    return header.replace("</encodingLimits>", f"{limit}</encodingLimits>").encode(), items, truth


def test_sodium(weights: dict[str, str]) -> None:
    """One image of all averages, its noise less by their root, through the network scaled by minimum and maximum."""
    gridded = {}
    for averages, noise in ((1, 0.0), (1, 6.0), (16, 6.0)):
        header, items, truth = sodium(averages, noise)
        (gridded[averages, noise],) = reconstruct(items, without_network("sodium_dncnn"), header=header)
    clean, one, many = (image.data[0, 0][truth > 0.15] for image in gridded.values())
    assert np.std(many - clean) / np.std(one - clean) == pytest.approx(1 / 4, rel=0.1)
    before = gridded[16, 6.0].data
    assert before.dtype == np.float32
    assert error(gridded[16, 6.0], truth) < 0.15
    (found,) = reconstruct(items, "sodium_dncnn", header=header, weights=weights["dncnn"], scaling="min_max")
    network = keras.saving.load_model(weights["dncnn"], compile=False)
    low, high = before.min(), before.max()
    expected = np.asarray(network((before[0, ..., None] - low) / (high - low)))[..., 0] * (high - low) + low
    np.testing.assert_allclose(found.data[0], expected, rtol=1e-4, atol=1e-5 * high)
    assert int(found.average) == 15
    bare = [item.with_data(item.data) for item in items if isinstance(item, Acquisition)]
    (designed,) = reconstruct(bare, without_network("sodium_dncnn"), header=header, trajectory="sodium")
    np.testing.assert_allclose(designed.data, before, atol=1e-4 * high)


def test_readouts_of_another_protocol_are_refused(spirals: Spirals) -> None:
    shorter = [item.with_data(item.data[:, :1000]) for item in spirals.items[:ARMS] if isinstance(item, Acquisition)]
    for trajectory, arms in (("hyperslice", "15 arms of 1171 samples"), ("sodium", "20 arms of ")):
        with pytest.raises(
            ReconstructionError, match=rf"arm 0 of 1000 samples, but the protocol '{trajectory}' has {arms}.*correct the header"
        ):
            reconstruct(shorter, without_network("spiral_hyperslice"), header=spirals.header, trajectory=trajectory)


def test_online_equals_offline(
    hyperslice: list[Image], spirals: Spirals, radial: simulate.Scan, weights: dict[str, str], tmp_path: Path
) -> None:
    """To the bit: every chain by a server's process, and in this one."""
    varnet = networks_small.varnet(tmp_path / "varnet.keras")
    cartesian, (header, averages, _) = realtime(32, 10), sodium(2, 6.0)
    scans: dict[str, tuple[bytes, list[Item], dict[str, str]]] = {
        "radial_fastdvdnet": (radial.header, radial.items, {"weights": weights["fast_dvd_net"], "frames": "5"}),
        "radial_unet": (radial.header, radial.items, {"weights": weights["unet"]}),
        "cartesian_varnet": (cartesian.header, cartesian.items, {"weights": varnet, "frames": "4", "overlap": "2"}),
        "sodium_dncnn": (header, averages, {"weights": weights["dncnn"], "scaling": "min_max"}),
    }
    offline = {config: reconstruct(items, config, header=xml, **chosen) for config, (xml, items, chosen) in scans.items()}
    scans["spiral_hyperslice"] = (
        spirals.header,
        spirals.items,
        {"trajectory": "hyperslice", "weights": weights["fast_dvd_net"], "frames": "5"},
    )
    offline["spiral_hyperslice"] = hyperslice
    with Server() as server:
        for config, (xml, items, chosen) in scans.items():
            scan, output = tmp_path / f"{config}.h5", tmp_path / f"{config}_images.h5"
            write_measurement(scan, xml, items)
            replay(scan, config, port=server.port, output=output, parameters=chosen)
            found = [pixels for _, series in sorted(read_images(output).items()) for pixels in series[2]]
            assert [pixels.tobytes() for pixels in found] == [image.data.tobytes() for image in offline[config]], config
