"""Odd scans through the chains with networks: no image is lost, and none depends on what it should not."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from gadgets.base import Context, run
from gadgets.header import Header
from gadgets.items import Acquisition, Image, Item
from gadgets.layout import Flag
from gadgets.networks import NetworkDenoise
from gadgets.realtime import RealtimeRecon
from recon.networks.coil_clips import CoilClips
from recon.networks.denoiser import Denoiser
from recon.networks.unrolled import Unrolled
from scripts import simulate
from service.local import reconstruct
from tests.end_to_end import networks_small
from tests.end_to_end.test_network_chains import sodium, without_network
from tests.end_to_end.test_noncartesian_chains import error
from tests.end_to_end.test_varnet_chain import realtime

SPOKES, FRAMES, DEADLINE = 13, 12, 60.0
CHAINS = ["radial_fastdvdnet", "radial_unet"]
Alter = Callable[[Acquisition], None]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Properties of each chain for small networks with random weights."""
    folder = tmp_path_factory.mktemp("weights")
    return {
        "radial_fastdvdnet": {"weights": networks_small.fast_dvd_net(folder / "fast.keras"), "frames": 5},
        "radial_unet": {"weights": networks_small.unet(folder / "unet.keras"), "frames": 8, "overlap": 4},
        "cartesian_varnet": {"weights": networks_small.varnet(folder / "varnet.keras"), "frames": 4, "overlap": 2, "coils": 4},
    }


@pytest.fixture(scope="module")
def scan() -> simulate.Scan:
    return simulate.radial(32, 6, SPOKES, FRAMES, noise=0.01)


def altered(items: list[Item], alter: Alter) -> list[Item]:
    """Copies of the readouts, all but those of noise altered."""
    found: list[Item] = []
    for item in items:
        assert isinstance(item, Acquisition)
        copy = Acquisition(item.header.copy(), item.data.copy(), item.trajectory)
        if not copy.is_flag_set(Flag.IS_NOISE_MEASUREMENT):
            alter(copy)
        found.append(copy)
    return found


def repetition(item: Item) -> int:
    assert isinstance(item, Acquisition)
    return int(item.header["idx"]["repetition"])


def pixels(images: list[Image]) -> list[bytes]:
    """To the bit; all made by the network."""
    assert not any("NetworkFailed" in image.meta for image in images)
    return [image.data.tobytes() for image in images]


SERIES = [(slice_, contrast, set_) for slice_ in (0, 1) for contrast in (0, 1) for set_ in (0, 1)]


def of_series(item: Acquisition, series: tuple[int, int, int]) -> Acquisition:
    """The readout as one of a series, with data of its own."""
    brightness = 1 + SERIES.index(series)
    copy = Acquisition(item.header.copy(), item.data * np.complex64(brightness), item.trajectory)
    copy.header["flags"] = 0
    for name, value in zip(("slice", "contrast", "set"), series, strict=True):
        copy.header["idx"][name] = value
    copy.header["position"][2] = 5 * series[0]
    return copy


def counters(image: Image) -> tuple[int, int, int]:
    return int(image.header["slice"]), int(image.header["contrast"]), int(image.header["set"])


@pytest.mark.parametrize("chain", CHAINS)
def test_series_side_by_side_are_as_each_alone(chain: str, scan: simulate.Scan, weights: dict[str, dict[str, Any]]) -> None:
    """Slices, contrasts and sets, readout by readout."""
    readouts = [item for item in scan.items if isinstance(item, Acquisition) and not item.is_flag_set(Flag.IS_NOISE_MEASUREMENT)]

    def images(items: list[Item]) -> list[Image]:
        return reconstruct(items, chain, header=scan.header, frame_readouts=SPOKES, **weights[chain])

    together = images([of_series(item, series) for item in readouts for series in SERIES])
    for series in SERIES[::3]:
        alone = images([of_series(item, series) for item in readouts])
        found = [image for image in together if counters(image) == series]
        assert pixels(found) == pixels(alone)
        assert [int(image.repetition) for image in found] == list(range(FRAMES))[-len(alone) :]
    assert len(together) == len(SERIES) * len(alone)


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("coils", [1, 34])
def test_few_and_many_coils(chain: str, coils: int, weights: dict[str, dict[str, Any]]) -> None:
    found = simulate.radial(32, coils, SPOKES, 6, noise=0.01)
    images = reconstruct(found.items, chain, header=found.header, **weights[chain])
    assert len(pixels(images)) == (2 if chain == "radial_fastdvdnet" else 6)
    assert all(np.isfinite(image.data).all() and image.data.any() for image in images)


def test_many_coils_do_not_drown_the_image_in_their_noise() -> None:
    """34 coils, of which the chain makes 16: as good as with ten, where without it was hardly better than CG-SENSE."""
    many = simulate.radial(96, 34, SPOKES, 6)
    truth = np.abs(many.truth["frames"]) * np.linalg.norm(many.truth["coil_maps"], axis=0)
    (found, _), (all_kept, _) = (
        reconstruct(many.items, "radial_fastdvdnet", header=many.header, **chosen) for chosen in ({}, {"coils": ""})
    )
    assert found.meta["NetworkWeights"] == "fastdvdnet_radial"
    assert error(found, truth[4]) < min(0.1, 0.75 * error(all_kept, truth[4]))


def test_a_root_of_the_sum_of_squares_of_virtual_coils_is_of_its_frame_alone(scan: simulate.Scan) -> None:
    """As of readouts whose frame is turned to its strongest components by NumPy."""

    def gridded(items: list[Item], coils: str) -> list[Image]:
        config = without_network("radial_fastdvdnet")
        return reconstruct(items, config, header=scan.header, coils=coils, perform_noise_adjust=False)

    turned: dict[int, np.ndarray] = {}
    for number in range(FRAMES):
        frame = [item.data for item in scan.items if isinstance(item, Acquisition) and imaging(item) and repetition(item) == number]
        turned[number] = np.linalg.svd(np.concatenate(frame, 1), full_matrices=False)[0][:, :3].conj().T

    def turn(item: Acquisition) -> None:
        item.data = (turned[repetition(item)] @ item.data).astype(np.complex64)
        item.header["active_channels"] = 3

    expected = gridded([item for item in altered(scan.items, turn) if imaging(item)], "")
    found, whole = gridded(scan.items, "3"), gridded(scan.items, "")
    for image, other, all_coils in zip(found, expected, whole, strict=True):
        np.testing.assert_allclose(image.data, other.data, atol=1e-3 * other.data.max())
        assert 0.003 < np.linalg.norm(image.data - all_coils.data) / np.linalg.norm(all_coils.data) < 0.3
    assert pixels(gridded(scan.items, "6")) == pixels(whole)  # there are no more


def imaging(item: Item) -> bool:
    assert isinstance(item, Acquisition)
    return not item.is_flag_set(Flag.IS_NOISE_MEASUREMENT)


@pytest.mark.parametrize("chain", CHAINS)
def test_a_counter_that_begins_anew_changes_no_image(chain: str, scan: simulate.Scan, weights: dict[str, dict[str, Any]]) -> None:
    def count_on(item: Acquisition) -> None:
        item.header["idx"]["repetition"] = (repetition(item) + 65530) % 65536

    plain, found = (
        reconstruct(items, chain, header=scan.header, **weights[chain]) for items in (scan.items, altered(scan.items, count_on))
    )
    assert pixels(found) == pixels(plain)
    assert [int(image.repetition) for image in found] == [(int(image.repetition) + 65530) % 65536 for image in plain]


@pytest.mark.parametrize("chain", CHAINS)
def test_a_lost_frame_harms_its_neighbours_only(chain: str, scan: simulate.Scan, weights: dict[str, dict[str, Any]]) -> None:
    """All readouts of frame 5 are NaN: FastDVDnet has it in the windows of 5 to 9; of the U-Net's clips 0-7 and 4-11 in both."""

    def lose(item: Acquisition) -> None:
        if repetition(item) == 5:
            item.data[:] = np.nan

    plain, found = (reconstruct(items, chain, header=scan.header, **weights[chain]) for items in (scan.items, altered(scan.items, lose)))
    numbers = [int(image.repetition) for image in found]
    assert numbers == [int(image.repetition) for image in plain]
    assert all(np.isfinite(image.data).all() for image in found)
    same = {number for number, one, other in zip(numbers, pixels(found), pixels(plain), strict=True) if one == other}
    assert same == ({4, 10, 11} if chain == "radial_fastdvdnet" else set())


@pytest.mark.parametrize("chain", CHAINS)
def test_a_scan_that_ends_within_a_frame(chain: str, scan: simulate.Scan, weights: dict[str, dict[str, Any]]) -> None:
    """What has come of the last frame is an image, where the readouts' counters make the frames; else it is said."""
    cut = scan.items[:-6]
    whole, found = (reconstruct(items, chain, header=scan.header, **weights[chain]) for items in (scan.items, cut))
    assert [int(image.repetition) for image in found] == [int(image.repetition) for image in whole]
    counted = reconstruct(cut, chain, header=scan.header, frame_readouts=SPOKES, **weights[chain])
    assert len(counted) == len(whole) - 1


def test_a_slice_that_is_moved_begins_a_clip_of_its_own(scan: simulate.Scan, weights: dict[str, dict[str, Any]]) -> None:
    def move(item: Acquisition) -> None:
        item.header["position"][2] += 10 * (repetition(item) >= 7)

    def images(items: list[Item]) -> list[Image]:
        return reconstruct(items, "radial_unet", header=scan.header, **weights["radial_unet"])

    found = images(altered(scan.items, move))
    assert [int(image.repetition) for image in found] == list(range(FRAMES))
    assert pixels(found[:7]) == pixels(images([item for item in scan.items if repetition(item) < 7]))
    assert {float(image.position[2]) for image in found[7:]} == {float(found[0].position[2]) + 10}


def test_cartesian_contrasts_and_sets_side_by_side_are_as_each_alone(weights: dict[str, dict[str, Any]]) -> None:
    found = realtime(32, 6)
    readouts = [item for item in found.items if isinstance(item, Acquisition) and not item.is_flag_set(Flag.IS_NOISE_MEASUREMENT)]
    chosen = SERIES[:4]  # of slice 0

    def images(items: list[Item]) -> list[Image]:
        return reconstruct(items, "cartesian_varnet", header=found.header, **weights["cartesian_varnet"])

    together = images([of_series(item, series) for item in readouts for series in chosen])
    for series in chosen:
        alone = images([of_series(item, series) for item in readouts])
        assert pixels([image for image in together if counters(image) == series]) == pixels(alone)
        assert [int(image.repetition) for image in alone] == list(range(6))


def test_a_readout_lost_in_one_average_does_not_darken_the_image() -> None:
    """Without noise all averages are alike: the mean of those that came is what it would have been."""
    header, items, _ = sodium(4, 0.0)

    def lose(item: Acquisition) -> None:
        if item.header["scan_counter"] in (3, 30):  # arm 2 of the first average, arm 9 of the second
            item.data[:] = np.nan

    plain, found = (reconstruct(each, without_network("sodium_dncnn"), header=header) for each in (items, altered(items, lose)))
    np.testing.assert_allclose(found[0].data, plain[0].data, atol=1e-5 * plain[0].data.max())


def test_a_unet_that_fails_halfway(scan: simulate.Scan, weights: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """The frames that leave with the second clip are gridded, those of the first are the network's."""
    plain = reconstruct(scan.items, "radial_unet", header=scan.header, **weights["radial_unet"])
    original, clips = CoilClips.__call__, iter(range(9))

    def fail(self: CoilClips, images: np.ndarray) -> np.ndarray:
        if next(clips) == 1:
            raise RuntimeError("in user code:\n\n    File x\n\n    ResourceExhaustedError: out of memory\n")
        return original(self, images)

    monkeypatch.setattr(CoilClips, "__call__", fail)
    found = reconstruct(scan.items, "radial_unet", header=scan.header, **weights["radial_unet"])
    assert [image.meta.get("NetworkFailed", "") for image in found] == 6 * [""] + 6 * ["the network failed: RuntimeError: out of memory"]
    assert [one.data.tobytes() == other.data.tobytes() for one, other in zip(found, plain, strict=True)] == 6 * [True] + 6 * [False]
    gridded = reconstruct(scan.items, "radial_realtime", header=scan.header, method="root_sum_of_squares", coils="")
    for image, expected in zip(found[6:], gridded[6:], strict=True):
        np.testing.assert_allclose(image.data, expected.data, atol=1e-4 * expected.data.max())


def test_a_varnet_that_gives_one_frame_of_nan(weights: dict[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    found, original = realtime(32, 6), Unrolled.__call__
    plain = reconstruct(found.items, "cartesian_varnet", header=found.header, **weights["cartesian_varnet"])

    def spoilt(self: Unrolled, kspace: np.ndarray, mask: np.ndarray, maps: np.ndarray) -> np.ndarray:
        images = original(self, kspace, mask, maps).copy()
        images[2, 3, 4] = np.nan
        return images

    monkeypatch.setattr(Unrolled, "__call__", spoilt)
    images = reconstruct(found.items, "cartesian_varnet", header=found.header, **weights["cartesian_varnet"])
    failed = [n for n, image in enumerate(images) if "NetworkFailed" in image.meta]
    assert failed == [2, 4]  # the third of both clips: of the first, the frames 0 to 2 leave, of 2 to 5 the rest
    assert [one.data.tobytes() == other.data.tobytes() for one, other in zip(images, plain, strict=True)] == [
        n not in failed for n in range(6)
    ]
    assert all(np.isfinite(images[n].data).all() for n in failed)


def test_a_network_slower_than_the_scan_skips_frames_and_counts_them(scan: simulate.Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stands still at the first frame until the scan is over; of the others, the newest two are left."""
    entered, proceed = threading.Event(), threading.Event()

    def newest(window: Any) -> Any:
        if np.any(window):  # not when it is warmed up
            entered.set()
            assert proceed.wait(DEADLINE)
        return window[..., -1:]

    def source() -> Iterator[Item]:
        imaging = 0
        for item in scan.items:
            assert isinstance(item, Acquisition)
            if imaging == SPOKES:
                assert entered.wait(DEADLINE)
            imaging += not item.is_flag_set(Flag.IS_NOISE_MEASUREMENT)
            yield item
        proceed.set()

    monkeypatch.setattr(NetworkDenoise, "denoiser", lambda self: Denoiser("slow", newest, 5, "none"))
    recon = RealtimeRecon(newest_wins=True, queue_frames=2, method="root_sum_of_squares", output="magnitude")
    context = Context(header=Header(scan.header))
    found = list(run([recon, NetworkDenoise(weights="any.keras", first_images="repeat")], source(), context))
    assert [int(image.repetition) for image in found if isinstance(image, Image)] == [0, FRAMES - 2, FRAMES - 1]
    assert context.counts == {"readouts skipped: noise": 4, "frames skipped": FRAMES - 3}
