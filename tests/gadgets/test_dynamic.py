"""DynamicRecon: which image leaves when, what it may depend on, quality, and odd scans."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gadgets.base import Context, GadgetError, ParameterError, run
from gadgets.dynamic import DynamicRecon
from gadgets.header import Header
from gadgets.items import Acquisition, Image, Item, Waveform
from gadgets.layout import Flag
from gadgets.realtime import RealtimeRecon
from recon.moving_window import MovingWindow
from tests.gadgets.scans import asymmetric_object, coil_maps, frame, header_xml, nrmse, readout, spokes

N, COILS, SPOKES, SAMPLES, FRAMES = 32, 6, 7, 48, 12
TINY = 180 / ((1 + 5**0.5) / 2 + 6)
HEADER = header_xml((N, N), trajectory="goldenangle", views=SPOKES, increment=TINY)
METHODS = ("grasp", "locally_low_rank", "low_rank_plus_sparse")
DEADLINE = 20.0


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    """A blob that moves a little from frame to frame over an object at rest."""
    y, x = np.mgrid[:N, :N]
    moving = [np.exp(-(((y - 11 - 0.8 * t) / 3) ** 2) - ((x - 18) / 4) ** 2) for t in range(FRAMES)]
    return np.stack([asymmetric_object(N) + 0.5 * one for one in moving])


@pytest.fixture(scope="module")
def scan(truth: np.ndarray) -> list[Acquisition]:
    maps, random = coil_maps(COILS, N), np.random.default_rng(3)
    items: list[Acquisition] = []
    for t, image in enumerate(truth):
        items += frame(image, maps, spokes((np.arange(SPOKES) + t * SPOKES) * TINY, SAMPLES), len(items), repetition=t)
    for item in items:
        item.data += (random.standard_normal(item.data.shape) + 1j * random.standard_normal(item.data.shape)).astype(np.complex64)
    return items


def chain(
    items: Iterable[Item], context: Context | None = None, gadget: RealtimeRecon | DynamicRecon | None = None, **properties: Any
) -> Iterator[Item]:
    context = context or Context()
    context.header = Header(HEADER)
    return run([gadget or DynamicRecon("Together", **properties)], items, context)


def images(items: Iterable[Item], context: Context | None = None, **properties: Any) -> list[Image]:
    found = list(chain(items, context, **properties))
    assert all(isinstance(item, Image) for item in found)
    return found  # type: ignore[return-value]


def repetitions(found: Sequence[Image]) -> list[int]:
    return [int(one.repetition) for one in found]


def changed(one: Acquisition, factor: complex) -> Acquisition:
    return one.with_data(one.data * np.complex64(factor), one.trajectory)


# -- which image leaves when ---------------------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 5), st.integers(1, 4), st.integers(0, 4), st.integers(0, 9))
def test_every_frame_leaves_once_in_order_as_soon_as_it_may(size: int, stride: int, delay: int, frames: int) -> None:
    """Whatever the window and however short the series."""
    if size == 0:
        stride, delay = 1, 0
    elif stride + delay > size:
        size = stride + delay
    ones = np.ones((2, 8), np.complex64)
    items = [
        readout(ones, spokes([90 * view], 8)[0], 2 * t + view, [Flag.LAST_IN_REPETITION] * view, repetition=t)
        for t in range(frames)
        for view in range(2)
    ]
    taken = 0

    def source() -> Iterator[Item]:
        nonlocal taken
        for item in items:
            taken += 1
            yield item
        taken += 1  # the end of the scan is seen

    leaving: list[tuple[int, int]] = []
    for one in chain(source(), window_frames=size, stride_frames=stride, delay_frames=delay, iterations=1):
        assert isinstance(one, Image)
        leaving.append((taken // 2 if taken <= len(items) else frames + 1, int(one.repetition)))
    expected = []
    for number in range(frames):
        due = -(-(number + 1 + delay) // stride) * stride  # the first window that ends late enough
        expected.append((due if size and due <= frames else frames + 1, number))
    if items:
        assert leaving == expected
    else:
        assert not leaving


@pytest.mark.parametrize("method", METHODS)
def test_what_has_left_depends_on_no_later_readout(scan: list[Acquisition], method: str) -> None:
    cut = 6 * SPOKES
    other = scan[:cut] + [changed(one, 3j) for one in scan[cut:]]
    ones, others = (images(each, method=method, window_frames=4, iterations=2) for each in (scan, other))
    same = [a.data.tobytes() == b.data.tobytes() for a, b in zip(ones, others, strict=True)]
    assert same == [True] * 6 + [False] * (FRAMES - 6)
    delayed = [images(each, method=method, window_frames=4, iterations=2, delay_frames=2) for each in (scan, other)]
    same = [a.data.tobytes() == b.data.tobytes() for a, b in zip(*delayed, strict=True)]
    assert same == [True] * 4 + [False] * (FRAMES - 4)  # the fifth and sixth had seen two frames more


def test_images_carry_the_headers_and_times_of_their_own_frames(scan: list[Acquisition]) -> None:
    for number, item in enumerate(scan):
        item.received = float(number)
    found = images(scan, delay_frames=3)
    assert repetitions(found) == list(range(FRAMES))
    assert [int(one.image_index) for one in found] == list(range(1, FRAMES + 1))
    assert [int(one.acquisition_time_stamp) for one in found] == [1000 + t * SPOKES + SPOKES // 2 for t in range(FRAMES)]
    assert [one.received for one in found] == [float(t * SPOKES + SPOKES - 1) for t in range(FRAMES)]
    assert all(a.triggered < b.triggered for a, b in pairwise(found))
    assert found[0].meta["GADGETRON_ImageComment"] == "grasp"


def test_waveforms_pass_in_between(scan: list[Acquisition]) -> None:
    waveform = Waveform(None, np.zeros((1, 4), np.uint32))
    items = [*scan[:SPOKES], waveform, *scan[SPOKES : 2 * SPOKES], waveform]
    assert [type(item) for item in chain(items)] == [Image, Waveform, Image, Waveform]
    assert [type(item) for item in chain(items, window_frames=0)] == [Waveform, Waveform, Image, Image]


# -- quality -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def alone(scan: list[Acquisition], truth: np.ndarray) -> float:
    """Median error of CG-SENSE frame by frame."""
    found = [image for image in chain(scan, gadget=RealtimeRecon(iterations=10)) if isinstance(image, Image)]
    return float(np.median([nrmse(image.data[0, 0], one) for image, one in zip(found, truth, strict=True)]))


@pytest.mark.parametrize("method", METHODS)
def test_frames_together_show_more_than_each_alone(scan: list[Acquisition], truth: np.ndarray, alone: float, method: str) -> None:
    def error(**properties: Any) -> float:
        found = images(scan, method=method, **properties)
        return float(np.median([nrmse(image.data[0, 0], one) for image, one in zip(found, truth, strict=True)][2:]))

    newest, later, whole = error(), error(delay_frames=3), error(window_frames=0, iterations=30)
    assert newest < 0.8 * alone
    assert later < newest
    assert whole < 0.8 * alone


def test_images_follow_the_motion(scan: list[Acquisition], truth: np.ndarray) -> None:
    found = images(scan)
    for t in (6, 11):
        own = nrmse(found[t].data[0, 0], truth[t])
        assert min(nrmse(found[t].data[0, 0], truth[other]) for other in range(FRAMES) if abs(other - t) > 2) > 1.3 * own
    flips = [truth[9][::-1], truth[9][:, ::-1], truth[9].T, np.roll(truth[9], 1, 0), np.roll(truth[9], 1, 1)]
    assert min(nrmse(found[9].data[0, 0], flip) for flip in flips) > 1.5 * nrmse(found[9].data[0, 0], truth[9])


@pytest.mark.parametrize("method", METHODS)
def test_weights_are_relative_and_brightness_is_kept(scan: list[Acquisition], method: str) -> None:
    ones, louder = (images([changed(one, factor) for one in scan], method=method) for factor in (1, 4096))
    for a, b in zip(ones, louder, strict=True):
        np.testing.assert_allclose(b.data, 4096 * a.data, rtol=0, atol=2e-3 * np.abs(b.data).max())


def test_more_weight_means_less_change(scan: list[Acquisition]) -> None:
    def change(weight: float) -> float:
        found = np.stack([one.data[0, 0] for one in images(scan, weight=weight)])
        return float(np.abs(np.diff(found[4:], axis=0)).sum())

    assert change(0.1) < 0.7 * change(0.01) < 0.7 * change(0)


# -- odd scans -----------------------------------------------------------------------------------------------------------


def test_slices_have_windows_of_their_own(scan: list[Acquisition]) -> None:
    both = []
    for one in scan:
        for slice_, factor in enumerate((1, 5)):
            item = changed(one, factor)
            item.header["idx"]["slice"] = slice_
            both.append(item)
    found = images(both, frame_readouts=SPOKES, delay_frames=1)
    for slice_, factor in enumerate((1, 5)):
        single = images([changed(one, factor) for one in scan], frame_readouts=SPOKES, delay_frames=1)
        mine = [one for one in found if int(one.header["slice"]) == slice_]
        assert [one.data.tobytes() for one in mine] == [one.data.tobytes() for one in single]


def test_a_moved_slice_begins_anew_and_loses_no_image(scan: list[Acquisition]) -> None:
    moved = [changed(one, 1) for one in scan]
    for number, one in enumerate(moved):
        one.header["position"] = (0, 0, 100 if number >= 5 * SPOKES else 0)
    found = images(moved, delay_frames=2)
    assert repetitions(found) == list(range(FRAMES))
    fresh = images(moved[5 * SPOKES :], delay_frames=2)
    assert [one.data.tobytes() for one in found[5:]] == [one.data.tobytes() for one in fresh]


def test_samples_that_are_not_finite_cost_only_themselves(scan: list[Acquisition], truth: np.ndarray) -> None:
    spoilt = [changed(one, 1) for one in scan]
    spoilt[3 * SPOKES + 2].data[:, 10:20] = np.nan
    context = Context()
    found = images(spoilt[: 5 * SPOKES], context, calibration_frames=1)
    assert context.counts["samples not finite"] == 10 * COILS
    expected = images(scan[: 5 * SPOKES], calibration_frames=1)
    assert nrmse(found[3].data[0, 0], truth[3]) < 1.5 * nrmse(expected[3].data[0, 0], truth[3])


def test_a_frame_beyond_all_bounds_does_not_spoil_the_later_ones(scan: list[Acquisition], truth: np.ndarray) -> None:
    """Samples near the largest single-precision number overflow in the reconstruction."""
    spoilt = [changed(one, 1) for one in scan]
    for one in spoilt[3 * SPOKES : 4 * SPOKES]:
        one.data[:] = 3e38
    context = Context()
    with np.errstate(over="ignore", invalid="ignore"):
        found = images(spoilt, context, calibration_frames=1, refresh_frames=0)
    assert repetitions(found) == list(range(FRAMES))
    assert context.counts["pixels not finite, replaced by 0"] >= 1
    assert all(np.isfinite(one.data).all() for one in found)
    assert nrmse(found[-1].data[0, 0], truth[-1]) < 0.25


def test_frames_without_signal_come_out_dark_and_spoil_nothing(scan: list[Acquisition], truth: np.ndarray) -> None:
    found = images([changed(one, number >= 2 * SPOKES) for number, one in enumerate(scan)], calibration_frames=4)
    assert not found[0].data.any()
    assert nrmse(found[-1].data[0, 0], truth[-1]) < 0.25


def test_one_coil_and_noise_readouts_and_magnitude(scan: list[Acquisition]) -> None:
    noise = readout(np.ones((1, 64)), None, 0, [Flag.IS_NOISE_MEASUREMENT])
    single = [one.with_data(one.data[:1], one.trajectory) for one in scan[: 4 * SPOKES]]
    found = images([noise, *single], output="magnitude")
    assert repetitions(found) == [0, 1, 2, 3]
    assert all(one.data.dtype == np.float32 and one.data.any() for one in found)


@pytest.mark.parametrize("window", [8, 0])
def test_a_series_that_ends_early_keeps_its_frames_and_counts_the_rest(scan: list[Acquisition], window: int) -> None:
    context = Context()
    assert repetitions(images(scan[: 2 * SPOKES + 3], context, frame_readouts=SPOKES, window_frames=window)) == [0, 1]
    assert context.counts["readouts in no frame"] == 3
    assert images([], window_frames=window) == []


def test_frames_of_different_lengths(scan: list[Acquisition], truth: np.ndarray) -> None:
    """Without flags and by repetition, the last frame is short."""
    found = images(scan[: 5 * SPOKES + 4])
    assert repetitions(found) == [0, 1, 2, 3, 4, 5]
    assert nrmse(found[5].data[0, 0], truth[5]) < 0.2


def test_a_slow_reconstruction_skips_to_the_newest_frames(scan: list[Acquisition], monkeypatch: pytest.MonkeyPatch) -> None:
    entered, proceed = threading.Event(), threading.Event()
    original = MovingWindow.solve

    def solve(self: MovingWindow, iterations: int, tolerance: float = 0.0) -> np.ndarray:
        entered.set()
        assert proceed.wait(DEADLINE)
        return original(self, iterations, tolerance)

    monkeypatch.setattr(MovingWindow, "solve", solve)

    def source() -> Iterator[Item]:
        for number, one in enumerate(scan):
            if number == SPOKES:
                assert entered.wait(DEADLINE)
            yield one
        proceed.set()

    context = Context()
    found = images(source(), context, newest_wins=True, queue_frames=2, frame_readouts=SPOKES, iterations=1)
    assert repetitions(found) == [0, FRAMES - 2, FRAMES - 1]
    assert context.counts["frames skipped"] == FRAMES - 3


def test_a_queue_that_holds_everything_changes_no_bit(scan: list[Acquisition]) -> None:
    ones = [one.data.tobytes() for one in images(scan, method="locally_low_rank")]
    assert ones == [one.data.tobytes() for one in images(scan, method="locally_low_rank", newest_wins=True, queue_frames=FRAMES)]


@pytest.mark.parametrize(
    ("properties", "words"),
    [
        ({"window_frames": "4", "stride_frames": "3", "delay_frames": "2"}, "Together: .*raise window_frames to 5"),
        ({"window_frames": "0", "delay_frames": "2"}, "Together: .*need a window"),
        ({"method": "cg_sense"}, "method"),
        ({"stride": "3"}, "stride needs window or frame_readouts"),
    ],
)
def test_settings_that_make_no_sense_are_refused_at_once(properties: dict[str, str], words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        DynamicRecon("Together", **properties)


def test_errors_name_the_gadget(scan: list[Acquisition]) -> None:
    spoilt = [changed(one, np.nan) for one in scan]
    with pytest.raises(GadgetError, match=r"Together.*NaN or infinite"):
        images(spoilt)
