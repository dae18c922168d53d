"""RealtimeRecon: promptness, windows, sensitivity maps over time, and the newest-wins policy."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pytest

from gadgets.base import Context, GadgetError, ParameterError, run
from gadgets.frames import Frame, Readout
from gadgets.header import Header
from gadgets.items import Acquisition, Image, Item, Waveform
from gadgets.layout import Flag, ImageType
from gadgets.realtime import RealtimeRecon
from gadgets.reconstruction import Reconstruction
from tests.gadgets.scans import asymmetric_object, coil_maps, frame, header_xml, nrmse, readout, spokes

N, COILS, SPOKES, SAMPLES, FRAMES = 32, 6, 7, 48, 12
TINY = 180 / ((1 + 5**0.5) / 2 + 6)
HEADER = header_xml((N, N), trajectory="goldenangle", views=SPOKES, increment=TINY)
DEADLINE = 20.0


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    """Frames that brighten from one to the next."""
    return np.stack([asymmetric_object(N) * (1 + 0.1 * t) for t in range(FRAMES)])


@pytest.fixture(scope="module")
def scan(truth: np.ndarray) -> list[Acquisition]:
    maps = coil_maps(COILS, N)
    items = []
    for t, image in enumerate(truth):
        trajectory = spokes((np.arange(SPOKES) + t * SPOKES) * TINY, SAMPLES)
        items += frame(image, maps, trajectory, len(items), repetition=t)
    return items


def chain(
    items: Iterable[Item], context: Context | None = None, gadget: RealtimeRecon | None = None, **properties: object
) -> Iterator[Item]:
    context = context or Context()
    context.header = Header(HEADER)
    return run([gadget or RealtimeRecon(**properties)], items, context)


def images(items: Iterable[Item], context: Context | None = None, **properties: object) -> list[Image]:
    found = list(chain(items, context, **properties))
    assert all(isinstance(item, Image) for item in found)
    return found  # type: ignore[return-value]


class Source:
    """Items, and how many have been taken so far."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.items = items
        self.taken = 0

    def __iter__(self) -> Iterator[Item]:
        for item in self.items:
            self.taken += 1
            item.received = float(self.taken)
            yield item


@pytest.mark.parametrize("properties", [{}, {"frame_readouts": SPOKES}, {"window": SPOKES}])
def test_an_image_comes_with_its_last_readout_and_never_waits(scan: list[Acquisition], properties: dict[str, object]) -> None:
    source = Source(scan)
    count = 0
    for item in chain(source, **properties):
        assert isinstance(item, Image)
        count += 1
        assert source.taken == count * SPOKES
        assert item.received == source.taken
        assert 0 < item.triggered <= time.perf_counter()
    assert count == FRAMES


def test_frames_match_the_truth_in_place_and_brightness(scan: list[Acquisition], truth: np.ndarray) -> None:
    found = images(scan, iterations=20)
    errors = [nrmse(image.data[0, 0], one) for image, one in zip(found, truth, strict=True)]
    assert max(errors) < 0.2
    assert np.median(errors) < 0.12
    flips = [truth[5][::-1], truth[5][:, ::-1], truth[5].T, np.roll(truth[5], 1, 1), np.roll(truth[5], 1, 0)]
    assert min(nrmse(found[5].data[0, 0], other) for other in flips) > 1.5 * errors[5]


def test_headers_count_frames_and_carry_the_middle_readout_s_time(scan: list[Acquisition]) -> None:
    for properties in ({}, {"frame_readouts": SPOKES}):
        found = images(scan, **properties)
        assert [int(image.repetition) for image in found] == list(range(FRAMES))
        assert [int(image.image_index) for image in found] == list(range(1, FRAMES + 1))
        assert [int(image.acquisition_time_stamp) for image in found] == [1000 + t * SPOKES + SPOKES // 2 for t in range(FRAMES)]
        assert found[0].header["position"].tolist() == [10, -20, 30]
        assert found[0].meta["DataRole"] == "Image"


def test_a_window_slides_over_the_readouts(scan: list[Acquisition], monkeypatch: pytest.MonkeyPatch) -> None:
    windows: list[list[int]] = []
    original = Reconstruction.image

    def spy(self: Reconstruction, one: Frame) -> np.ndarray:
        windows.append([int(each.header["scan_counter"]) for each in one.readouts])
        return original(self, one)

    monkeypatch.setattr(Reconstruction, "image", spy)
    source, seen = Source(scan), []
    for _ in chain(source, window=14, stride=5, iterations=1):
        seen.append(source.taken)
    ends = list(range(14, len(scan) + 1, 5))
    assert seen == ends
    assert windows == [list(range(end - 14, end)) for end in ends]


def test_a_sliding_window_reconstructs_what_its_readouts_measured(scan: list[Acquisition], truth: np.ndarray) -> None:
    """Three frames wide: the object of the middle one, as it brightens evenly."""
    found = images(scan, window=3 * SPOKES, stride=SPOKES, iterations=20)
    assert len(found) == FRAMES - 2
    assert nrmse(found[4].data[0, 0], truth[5]) < 0.06


def test_left_over_readouts_are_counted_and_said(scan: list[Acquisition], caplog: pytest.LogCaptureFixture) -> None:
    context = Context()
    assert len(images(scan[: 2 * SPOKES + 3], context, frame_readouts=SPOKES)) == 2
    assert context.counts["readouts in no frame"] == 3
    assert "the last 3 readouts do not fill a frame" in caplog.text


def test_missing_flags_are_said(scan: list[Acquisition], caplog: pytest.LogCaptureFixture) -> None:
    bare = [readout(one.data, one.trajectory, n, repetition=n // SPOKES) for n, one in enumerate(scan[: 3 * SPOKES])]
    found = images(bare)
    assert [int(image.repetition) for image in found] == [0, 1, 2]
    assert "set frame_readouts to get images without delay" in caplog.text


@pytest.mark.parametrize(
    ("properties", "words"),
    [({"window": "5", "stride": "6"}, "stride of 6 .* window of 5"), ({"stride": "6"}, "stride needs window or frame_readouts")],
)
def test_windows_that_make_no_sense_are_refused_at_once(properties: dict[str, str], words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        RealtimeRecon("Live", **properties)


def test_waveforms_pass_in_order_between_images(scan: list[Acquisition]) -> None:
    waveform = Waveform(None, np.zeros((1, 4), np.uint32))
    items = [*scan[:SPOKES], waveform, *scan[SPOKES : 2 * SPOKES], waveform]
    for newest_wins in (False, True):
        kinds = [type(item) for item in chain(items, newest_wins=newest_wins, queue_frames=4)]
        assert kinds == [Image, Waveform, Image, Waveform]


def test_the_same_readouts_give_the_same_bits_whatever_the_pace(scan: list[Acquisition]) -> None:
    at_once = [image.data.tobytes() for image in images(scan)]
    paced = [item.data.tobytes() for item in chain(Source(scan)) if isinstance(item, Image)]
    unhurried = [image.data.tobytes() for image in images(scan, newest_wins=True, queue_frames=FRAMES)]
    assert at_once == paced == unhurried


def test_computed_trajectories_equal_acquired_ones(scan: list[Acquisition]) -> None:
    bare = []
    for one in scan:
        bare.append(one.with_data(one.data, None))
    for computed, acquired in zip(images(bare), images(scan), strict=True):
        assert np.linalg.norm(computed.data - acquired.data) < 2e-3 * np.linalg.norm(acquired.data)


# -- sensitivity maps ----------------------------------------------------------------------------------------------------


def calibrations(scan: Sequence[Item], monkeypatch: pytest.MonkeyPatch, **properties: object) -> list[tuple[int, int, int]]:
    """(images so far, first readout, readouts) of every calibration."""
    found: list[tuple[int, int, int]] = []
    done = [0]
    original = Reconstruction.calibrate

    def spy(self: Reconstruction, readouts: Sequence[Readout]) -> None:
        found.append((done[0], int(readouts[0].header["scan_counter"]), len(readouts)))
        original(self, readouts)

    with monkeypatch.context() as patch:
        patch.setattr(Reconstruction, "calibrate", spy)
        for _ in chain(scan, **properties):
            done[0] += 1
    return found


def test_maps_grow_with_the_first_frames_and_are_renewed(scan: list[Acquisition], monkeypatch: pytest.MonkeyPatch) -> None:
    found = calibrations(scan, monkeypatch, calibration_frames=4, refresh_frames=5)
    assert found == [(0, 0, SPOKES), (2, 0, 2 * SPOKES), (4, 0, 4 * SPOKES), (9, 5 * SPOKES, 4 * SPOKES)]
    assert calibrations(scan, monkeypatch, calibration_frames=1, refresh_frames=0) == [(0, 0, SPOKES)]


def test_overlapping_windows_calibrate_with_every_readout_once(scan: list[Acquisition], monkeypatch: pytest.MonkeyPatch) -> None:
    found = calibrations(scan[: 5 * SPOKES], monkeypatch, window=2 * SPOKES, stride=SPOKES, calibration_frames=2)
    assert found == [(0, 0, 2 * SPOKES), (2, 0, 3 * SPOKES)]  # all of the first window was new


def test_a_moved_slice_gets_new_maps(scan: list[Acquisition], monkeypatch: pytest.MonkeyPatch) -> None:
    moved = []
    for number, one in enumerate(scan):
        other = one.with_data(one.data, one.trajectory)
        other.header["position"] = (0, 0, 100 if number >= 5 * SPOKES else 0)
        moved.append(other)
    found = calibrations(moved, monkeypatch, calibration_frames=1, refresh_frames=0)
    assert found == [(0, 0, SPOKES), (5, 5 * SPOKES, SPOKES)]


def test_slices_have_maps_and_frames_of_their_own(scan: list[Acquisition], truth: np.ndarray) -> None:
    items = []
    for one in scan:
        for slice_, factor in enumerate((1, 3)):
            item = one.with_data(one.data * np.float32(factor), one.trajectory)
            item.header["idx"]["slice"] = slice_
            items.append(item)
    found = images(items, frame_readouts=SPOKES, iterations=20)
    assert [(int(one.header["slice"]), int(one.repetition)) for one in found] == [(s, t) for t in range(FRAMES) for s in range(2)]
    assert nrmse(found[-1].data[0, 0] / 3, truth[-1]) < 0.2


# -- newest wins ---------------------------------------------------------------------------------------------------------


class Slow(RealtimeRecon):
    """A reconstruction that waits at its first frame until told to go on."""

    entered: threading.Event
    proceed: threading.Event


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Slow:
    gadget = Slow("Live", newest_wins=True, queue_frames=2, frame_readouts=SPOKES, iterations=1)
    gadget.entered, gadget.proceed = threading.Event(), threading.Event()
    original = Reconstruction.image

    def image(self: Reconstruction, one: Frame) -> np.ndarray:
        gadget.entered.set()
        assert gadget.proceed.wait(DEADLINE)
        return original(self, one)

    monkeypatch.setattr(Reconstruction, "image", image)
    return gadget


def test_a_slow_reconstruction_skips_to_the_newest_frames_and_counts(scan: list[Acquisition], slow: Slow) -> None:
    context = Context()

    def source() -> Iterator[Item]:
        for number, one in enumerate(scan):
            if number == SPOKES:
                assert slow.entered.wait(DEADLINE)  # frame 0 is being reconstructed; all others arrive meanwhile
            yield one
        slow.proceed.set()

    found = [item for item in chain(source(), context, slow) if isinstance(item, Image)]
    assert [int(one.repetition) for one in found] == [0, FRAMES - 2, FRAMES - 1]
    assert [int(one.image_index) for one in found] == [1, FRAMES - 1, FRAMES]
    assert context.counts["frames skipped"] == FRAMES - 3
    assert context.seconds["Live"] >= 0


def test_readouts_are_taken_while_a_frame_is_reconstructed(scan: list[Acquisition], slow: Slow) -> None:
    """What newest_wins is for: the socket is read although the reconstruction stands still."""
    source = Source(scan)
    exhausted = threading.Event()

    def items() -> Iterator[Item]:
        yield from source
        exhausted.set()

    outputs = chain(items(), None, slow)
    first: list[Item] = []
    consumer = threading.Thread(target=lambda: first.append(next(iter(outputs))), daemon=True)
    consumer.start()
    assert exhausted.wait(DEADLINE)
    assert source.taken == len(scan)
    assert not first
    slow.proceed.set()
    consumer.join(DEADLINE)
    assert isinstance(first[0], Image)


def test_an_error_of_the_source_and_of_a_frame_reach_the_consumer(scan: list[Acquisition]) -> None:
    class Lost(ConnectionError):
        pass

    def broken() -> Iterator[Item]:
        yield from scan[: SPOKES + 2]
        raise Lost

    outputs = chain(broken(), newest_wins=True, queue_frames=4, frame_readouts=SPOKES)
    assert isinstance(next(outputs), Image)
    with pytest.raises(Lost):
        next(outputs)
    spoilt = [one.with_data(one.data * np.float32(np.nan), one.trajectory) for one in scan]
    with pytest.raises(GadgetError, match="NaN or infinite"):
        list(chain(spoilt, newest_wins=True))


def test_giving_up_stops_the_reader(scan: list[Acquisition]) -> None:
    closed = threading.Event()

    def endless() -> Iterator[Item]:
        try:
            while True:
                yield from scan
        finally:
            closed.set()

    outputs = chain(endless(), None, RealtimeRecon("Stopped", newest_wins=True, frame_readouts=SPOKES, iterations=1))
    assert isinstance(next(outputs), Image)
    outputs.close()  # type: ignore[attr-defined]
    assert closed.wait(DEADLINE)
    deadline = time.monotonic() + DEADLINE
    while any(thread.name == "Stopped-reader" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        threading.Event().wait(0.005)


def test_magnitude_images_are_floats(scan: list[Acquisition]) -> None:
    image = images(scan[:SPOKES], output="magnitude")[0]
    assert image.data.dtype == np.float32
    assert image.image_type == ImageType.MAGNITUDE


def test_noise_readouts_are_in_no_frame(scan: list[Acquisition]) -> None:
    noise = readout(np.ones((COILS, 64)), None, 0, [Flag.IS_NOISE_MEASUREMENT])
    found = images([noise, *scan[:3], noise, *scan[3:SPOKES]], frame_readouts=SPOKES)
    assert [one.data.tobytes() for one in found] == [images(scan[:SPOKES])[0].data.tobytes()]


def test_the_rehearsal_before_the_first_frame_changes_no_image(scan: list[Acquisition], monkeypatch: pytest.MonkeyPatch) -> None:
    rehearsed = []
    original = Reconstruction.rehearse
    monkeypatch.setattr(Reconstruction, "rehearse", lambda self, readout: (rehearsed.append(1), original(self, readout)))
    with_rehearsal = [image.data for image in images(scan)]
    monkeypatch.setattr(Reconstruction, "rehearse", lambda self, readout: None)
    without = [image.data for image in images(scan)]
    assert rehearsed == [1]
    np.testing.assert_array_equal(with_rehearsal, without)
