"""Real-time images that stay on a GPU from readout to network; the GPU is a stand-in (`scripts/gpu_chains.py` has a real one)."""

from __future__ import annotations

import copy
import sys
import threading
from typing import Any

import numpy as np
import pytest

from gadgets.frames import Frame, Readout
from gadgets.gathered import Gathered
from gadgets.items import Acquisition, Image, Resident
from recon import device, gpu_plans
from recon.networks import denoiser as module
from recon.networks.denoiser import Denoiser
from scripts import simulate
from service.local import ReconstructionError, reconstruct
from tests.recon import strict_cupy
from tests.recon.conftest import relative_error

CHAIN = "radial_realtime.xml"
OPTIONS: dict[str, Any] = {"method": "root_sum_of_squares", "output": "magnitude", "coils": ""}


@pytest.fixture(scope="module")
def scan() -> simulate.Scan:
    return simulate.radial(32, coils=4, spokes=7, frames=4)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    for name, fake in strict_cupy.modules().items():
        monkeypatch.setitem(sys.modules, name, fake)
    monkeypatch.setattr(device, "_gpu", True)
    yield sys.modules["cupy"]
    gpu_plans.clear_pool()


def pixels(scan: simulate.Scan, **options: Any) -> list[np.ndarray]:
    return [image.data for image in reconstruct(scan.items, CHAIN, header=scan.header, **{**OPTIONS, **options})]


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Resident]:
    """What is fetched from now on."""
    fetched: list[Resident] = []
    fetch = Resident.fetch

    def noted(self: Resident) -> np.ndarray:
        fetched.append(self)
        return fetch(self)

    monkeypatch.setattr(Resident, "fetch", noted)
    return fetched


@pytest.fixture(scope="module")
def expected(scan: simulate.Scan) -> list[np.ndarray]:
    return pixels(scan)


def test_images_are_those_of_the_cpu(scan: simulate.Scan, expected: list[np.ndarray], gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = counted(monkeypatch)
    found = pixels(scan)
    assert len(found) == len(fetched) == 4
    for one, other in zip(found, expected, strict=True):
        assert isinstance(one, np.ndarray)
        assert one.dtype == np.float32
        assert relative_error(other, one) < 2e-3


def test_samples_whose_sum_overflows_take_the_long_way(scan: simulate.Scan, gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    spoilt = [item.with_data(item.data.copy()) if isinstance(item, Acquisition) else item for item in scan.items]
    readouts = [item for item in spoilt if isinstance(item, Acquisition)]
    readouts[-3].data[1, 5] = np.float32(3e38)  # finite, but the sum is not
    readouts[-3].data[1, 6] = np.float32(3e38)
    fetched = counted(monkeypatch)
    found = pixels(simulate.Scan(scan.header, spoilt, scan.truth), perform_noise_adjust=False)
    assert len(found) == 4
    assert len(fetched) == 3
    assert all(np.isfinite(one).all() for one in found)


@pytest.fixture(scope="module")
def of_two_coils(scan: simulate.Scan) -> list[np.ndarray]:
    return pixels(scan, coils=2)


def test_virtual_coils_are_made_there(
    scan: simulate.Scan, of_two_coils: list[np.ndarray], expected: list[np.ndarray], gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = counted(monkeypatch)
    for one, other, whole in zip(pixels(scan, coils=2), of_two_coils, expected, strict=True):
        assert relative_error(other, one) < 2e-3
        assert relative_error(whole, one) > 0.01
    assert len(fetched) == 4


def test_what_does_not_fit_is_computed_from_the_host(
    scan: simulate.Scan, expected: list[np.ndarray], gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise MemoryError("out of memory")

    monkeypatch.setattr("gadgets.gathered._joined", full)
    for one, other in zip(pixels(scan), expected, strict=True):
        assert relative_error(other, one) < 2e-3
    monkeypatch.undo()


@pytest.mark.parametrize("sizes", [[(3, 3)] * 3, [(3, 3), (4, 3), (3, 3)], [(2, 2), (3, 2), (2, 2)]], ids=["equal", "samples", "readouts"])
def test_readouts_are_side_by_side(sizes: list[tuple[int, int]], gpu: Any) -> None:
    """Frames of (samples, readouts); each is as if put together at its end, also when asked for again later."""
    gathered, random = Gathered(), np.random.default_rng(0)
    before: tuple[Frame, np.ndarray] | None = None
    for number, (samples, count) in enumerate(sizes):
        frame = paced(number, 0.01, count)
        for readout in frame.readouts:
            readout.resident = strict_cupy.DeviceArray(random.random((2, samples)) + 0j)
            gathered.add(readout)
            if before is not None:  # computed once more in between
                assert np.array_equal(gathered.take(before[0]).get(), before[1])
        expected = np.concatenate([readout.resident.get() for readout in frame.readouts], 1)
        found = gathered.take(frame)
        assert np.array_equal(found.get(), expected)
        before = frame, expected


def test_a_reader_thread_does_not_touch_what_is_being_gridded(
    scan: simulate.Scan, expected: list[np.ndarray], gpu: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With newest_wins readouts come in another thread than the one that grids."""

    def touched(self: Gathered, readout: Readout) -> None:
        raise AssertionError("a shared array is written to")

    monkeypatch.setattr(Gathered, "add", touched)
    found = pixels(scan, newest_wins=True, queue_frames=9)
    assert len(found) == 4
    for one, other in zip(found, expected, strict=True):
        assert relative_error(other, one) < 2e-3
    with pytest.raises(ReconstructionError, match="a shared array"):
        pixels(scan)


def test_readouts_of_different_channels_are_refused_in_words(scan: simulate.Scan, gpu: Any) -> None:
    items = list(scan.items)
    last = items[-1]
    assert isinstance(last, Acquisition)
    items[-1] = last.with_data(last.data[:3])
    with pytest.raises(ReconstructionError, match=r"different numbers of channels: 3, 4"):
        pixels(simulate.Scan(scan.header, items, scan.truth), perform_noise_adjust=False)


def paced(number: int, gap_s: float, fresh: int = 10) -> Frame:
    header = Acquisition(None, np.zeros((1, 2), np.complex64)).header
    points = np.zeros((2, 2), np.float32)
    return Frame([Readout(header, np.zeros((1, 2), np.complex64), points, 100 + gap_s * n) for n in range(fresh)], fresh, number)


class FakeBuffer:
    """`recon.hand_over.Buffer` without a GPU."""

    def __init__(self, shape: Any, dtype: Any) -> None:
        self.array = strict_cupy.DeviceArray(np.zeros(shape, dtype))

    def call(self, function: Any) -> np.ndarray:
        return np.asarray(function(self.array.host))


class Mean:
    """A network that could be compiled."""

    weights = ()

    def __call__(self, inputs: Any) -> Any:
        import tensorflow as tf

        return tf.reduce_mean(inputs, -1, keepdims=True)


def test_windows_stay_there_on_their_way_into_the_network(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "Buffer", FakeBuffer)
    monkeypatch.setattr("recon.networks.compiled.Compiled._compile", lambda self, arrays: self._function)
    mean = Denoiser("mean", Mean(), 3, "none")
    assert mean.on_gpu
    random = np.random.default_rng(0)
    images = [random.random((1, 8, 8), np.float32) for _ in range(4)]
    for n in (0, 1):  # the buffer of the first is used again
        window = images[n : n + 3]
        found = mean([strict_cupy.DeviceArray(one) if m else one for m, one in enumerate(window)])
        assert isinstance(found, np.ndarray)
        assert np.allclose(found, np.mean(window, 0), atol=1e-6)
    assert len(mean._buffers) == 1


class Reconstructing:
    """Something that cannot be copied."""

    def __init__(self) -> None:
        self.lock = threading.Lock()

    def finish(self, pixels: np.ndarray) -> np.ndarray:
        return pixels


def test_pixels_are_fetched_once_when_touched() -> None:
    array = strict_cupy.DeviceArray(np.ones((1, 1, 2, 3), np.float32))
    fetched: list[int] = []

    def doubled(pixels: np.ndarray) -> np.ndarray:
        fetched.append(1)
        return 2 * pixels

    image = Image(None, Resident(array, doubled))
    assert (int(image.matrix_size[0]), int(image.matrix_size[1]), int(image.channels)) == (3, 2, 1)
    assert not fetched
    assert image.data.sum() == image.data.sum() == 12
    assert fetched == [1]
    resident = Resident(array, Reconstructing().finish)
    assert copy.deepcopy(Image(None, resident)).resident is resident
    image.data = np.zeros((1, 1, 2, 3), np.float32)
    assert image.resident is None
    assert image.data.sum() == 0
