"""Fits in blocks of slices against the fit of the whole volume; memory, devices and what cannot be cut."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recon.fourier import fftc
from recon.nufft import Nufft
from recon.phantoms import birdcage_coils
from recon.quantitative import data_term, replicas, slices
from recon.quantitative.block_passes import passes
from recon.quantitative.blocks import Halves
from recon.quantitative.copies import TensorFlowCopies, aligned
from recon.quantitative.data_term import DataTerm
from recon.quantitative.irgn import RegularisedFit, Step, fit
from recon.quantitative.lanes import Blocks, Lanes, Span
from recon.quantitative.linearised import PrimalDual
from recon.quantitative.model import ModelError
from recon.quantitative.models.image_reco import ImageReco
from recon.quantitative.real_unknowns import Components
from recon.quantitative.regularisers import build
from recon.quantitative.settings import Regularisation, Settings
from recon.quantitative.slices import SliceData
from tests.recon.conftest import relative_error
from tests.recon.quantitative.small_models import Decay, FlipAngles, add_noise, tubes

SLICES, SIZE = 7, 12
STEPS: dict[str, Any] = {"max_gn_it": 2, "start_iters": 12, "dz": 0.6, "rtol": 0, "atol": 0, "stag": 0, "replicas": 0}


def volume(count: int = SLICES, size: int = SIZE) -> np.ndarray:
    """Noisy images `[flip angle, slice, y, x]` of tubes whose T1 grows from slice to slice."""
    m0, t1, _ = tubes(size)
    growth = 1 + 0.1 * np.arange(count).reshape(-1, 1, 1)
    clean = FlipAngles()(np.stack([m0 * np.ones_like(growth), t1 * growth])).numpy()
    return add_noise(clean, 2e-3).astype(np.complex64)


def same(whole: RegularisedFit, blocks: RegularisedFit, limit: float = 1e-4) -> None:
    for one, other in zip(whole.parameters, blocks.parameters, strict=True):
        assert np.abs(one - other).max() <= limit * np.abs(one).max()
    assert [step.iterations for step in whole.steps] == [step.iterations for step in blocks.steps]
    for name in ("data_cost", "regularisation_cost", "gap"):
        wanted, found = ([getattr(step, name) for step in result.steps] for result in (whole, blocks))
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(blocks.deviation, whole.deviation, rtol=1e-2)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return volume()


@pytest.fixture(scope="module")
def tgv(images: np.ndarray) -> RegularisedFit:
    return fit(FlipAngles(), data_term.from_images(images), Settings("TGV", **STEPS))


@pytest.mark.parametrize("blocks", [2, SLICES, Blocks(2, ahead=1)], ids=["two", "all", "threads"])
def test_blocks_equal_the_whole_volume(images: np.ndarray, tgv: RegularisedFit, blocks: Any) -> None:
    """Seven slices: the last block has one. Slices are farther apart than pixels."""
    told: list[Step] = []
    result = fit(FlipAngles(), data_term.from_images(images), Settings("TGV", **STEPS), callback=told.append, block_slices=blocks)
    same(tgv, result)
    assert tuple(told) == result.steps
    times = told[-1].times
    assert times is not None
    assert times.hidden is not None
    assert 0 <= times.hidden <= 1
    assert min(times.up, times.down, times.computed, times.waited) > 0
    # Each iteration needs the unknowns, fields and duals at least, and gives them back.
    assert min(times.bytes_up, times.bytes_down) > told[-1].iterations * 12 * images[0].size * 4
    if blocks != Blocks(2, ahead=1):
        assert times.hidden == pytest.approx(0, abs=0.05)  # nothing at the same time


def test_graphs_serve_the_next_volume(images: np.ndarray) -> None:
    """Which has other numbers: three times the signal is three times M0."""
    model, settings = FlipAngles(), Settings("TGV", **{**STEPS, "max_gn_it": 1})
    first = fit(model, slices.images(images), settings, block_slices=4)
    graphs = passes(model, slices.images(images), settings)
    traced = graphs.evaluate.experimental_get_tracing_count()
    assert traced > 0
    second = fit(model, slices.images(3 * images), settings, block_slices=4)
    assert graphs.evaluate.experimental_get_tracing_count() == traced
    for one, other, factor in zip(first.parameters, second.parameters, (3, 1), strict=True):
        assert np.abs(factor * one - other).max() <= 1e-4 * np.abs(other).max()


def test_slices_alone_differ(images: np.ndarray, tgv: RegularisedFit) -> None:
    """What the comparison would show if blocks did not know of one another."""
    alone = fit(FlipAngles(), data_term.from_images(images[:, :2]), Settings("TGV", **STEPS))
    assert np.abs(alone.parameters[1] - tgv.parameters[1, :2]).max() > 1e-2 * np.abs(tgv.parameters[1]).max()


@pytest.mark.parametrize("precond", [True, False])
def test_total_variation(images: np.ndarray, precond: bool) -> None:
    """With a gain in each voxel, and with one metric for all voxels."""
    times = (5.0, 15.0, 30.0, 50.0, 80.0)
    gain = np.linspace(0.7, 1.2, SLICES).reshape(-1, 1, 1)
    m0, t1, _ = tubes(SIZE)
    model = Decay(times, np.broadcast_to(gain, (SLICES, SIZE, SIZE)))
    truth = np.stack([m0 * np.ones_like(gain), 20 / t1 * np.ones_like(gain)])
    term = data_term.from_images(add_noise(model(truth).numpy(), 2e-3))
    settings = Settings("TV", precond=precond, **STEPS)
    same(fit(model, term, settings), fit(model, term, settings, block_slices=3), 1e-9)


@pytest.mark.parametrize("kind", ["none", "H1", "ICTV"])
def test_other_regularisers(kind: Regularisation) -> None:
    model = ImageReco(3) if kind == "ICTV" else FlipAngles()
    data, settings = slices.images(volume(4, 6)[: model.contrasts]), Settings(kind, **{**STEPS, "max_gn_it": 1, "start_iters": 5})
    same(fit(model, data, settings), fit(model, data, settings, block_slices=2))


def undersampled(count: int, size: int) -> tuple[SliceData, list[DataTerm]]:
    """Every other line, other ones in each slice, and sensitivities that change from slice to slice; and each slice by itself."""
    maps = np.stack([birdcage_coils(3, (size, size)) * np.exp(0.2j * n) for n in range(count)], 1).astype(np.complex64)
    mask = np.zeros((5, count, size, 1), bool)
    for contrast in range(5):
        for n in range(count):
            mask[contrast, n, (contrast + n) % 2 :: 2] = True
    mask[..., 4:7, :] = True
    kspace = fftc(maps * volume(count, size)[:, None], (-2, -1)) * mask[:, None]
    data = slices.cartesian(kspace.astype(np.complex64), maps, mask)
    return data, [data_term.cartesian(kspace[:, :, n].astype(np.complex64), maps[:, n], mask[:, n]) for n in range(count)]


def test_undersampled_planes() -> None:
    """The Gram operator and its sensitivities travel too. Start images included."""
    data, pieces = undersampled(6, 10)
    images = volume(6, 10)
    wanted = np.stack([piece.gram(images[:, n]).numpy() for n, piece in enumerate(pieces)], 1)
    assert relative_error(wanted, data.whole().gram(images).numpy()) < 1e-5
    settings = Settings("TV", **{**STEPS, "max_gn_it": 1})
    same(fit(FlipAngles(), data, settings), fit(FlipAngles(), data, settings, block_slices=3))


def in_images(count: int, size: int) -> DataTerm:
    return data_term.from_images(volume(count, size), np.linspace(0.5, 2, count).reshape(1, -1, 1, 1))


def on_the_host(count: int, size: int) -> SliceData:
    return slices.images(volume(count, size))


def half_sampled(count: int, size: int) -> SliceData:
    return undersampled(count, size)[0]


@pytest.mark.parametrize("make", [in_images, on_the_host, half_sampled])
def test_deviations_by_replicas_are_those_of_the_whole_volume(
    make: Callable[[int, int], DataTerm | SliceData], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The same noise, drawn and solved for again from below and above. The average over the neighbourhood goes on behind the cuts."""
    monkeypatch.setattr(replicas, "_LEAST", 8)
    data, settings = make(6, 10), Settings("TGV", **{**STEPS, "max_gn_it": 1, "replicas": 2})
    whole = fit(FlipAngles(), data, settings)
    blocks = fit(FlipAngles(), data, settings, block_slices=Blocks(2, ahead=1, folder=tmp_path))
    same(whole, blocks)
    np.testing.assert_allclose(blocks.covariance, whole.covariance, rtol=1e-4, atol=1e-4 * np.abs(whole.covariance[0, 1]).max())
    np.testing.assert_allclose(blocks.deviation, whole.deviation, rtol=1e-4)
    bound = fit(FlipAngles(), data, replace(settings, replicas=0), block_slices=3)
    np.testing.assert_array_equal(bound.steps[-1].iterations, blocks.steps[-1].iterations)
    assert np.median(blocks.deviation / bound.deviation) < 0.9  # what regularisation takes away


@pytest.mark.parametrize("toeplitz", [False, True])
def test_stacks_of_stars(toeplitz: bool) -> None:
    count, size = 4, 10
    maps = np.stack([birdcage_coils(2, (size, size)) * np.exp(0.2j * n) for n in range(count)], 1)
    angles = np.arange(5 * 9).reshape(5, 9, 1) * np.pi * (np.sqrt(5) - 1) / 2
    radius = np.linspace(-np.pi, np.pi, 2 * size, endpoint=False)
    points = np.stack([np.sin(angles) * radius, np.cos(angles) * radius], -1).reshape(5, -1, 2)
    images = volume(count, size).astype(np.complex128)
    plans = [Nufft(one, (size, size), 1e-9, "complex128") for one in points]
    kspace = np.stack([plan.forward(maps * one) for plan, one in zip(plans, images, strict=True)])
    weights = np.linalg.norm(points, axis=-1) + 0.05
    data = slices.noncartesian(kspace, points, maps, weights, toeplitz, tolerance=1e-8)
    back = [(maps.conj() * plan.adjoint(one * w)).sum(0) for plan, one, w in zip(plans, kspace, weights, strict=True)]
    # The data are those of the images: E^H E x = E^H d.
    assert relative_error(np.stack(back), data.whole().gram(images).numpy()) < 1e-5
    assert relative_error(np.stack(back), data.rhs) < 1e-6
    if not toeplitz:
        settings = Settings("TV", **{**STEPS, "max_gn_it": 1})
        same(fit(FlipAngles(), data, settings), fit(FlipAngles(), data, settings, block_slices=2), 1e-6)


def test_each_slice_belongs_to_one_block_and_sees_its_neighbours() -> None:
    for total in (1, 2, 5, 8, 13):
        for width in (1, 2, 3, 20):
            spans = Blocks(width).spans(total)
            assert [n for span in spans for n in range(span.first, span.last)] == list(range(total))
            for span in spans:
                assert span.start <= max(0, span.first - 2)
                assert span.stop >= min(total, span.last + 2)
            assert len({(span.width, span.stop - span.start) for span in spans}) <= 2  # graphs


@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_copies_in_threads_keep_the_order_and_tell_what_fails(ahead: int) -> None:
    source, target = np.arange(24.0).reshape(6, 2, 2), np.zeros((6, 2, 2))
    spans = Blocks(1).spans(6)

    def store(span: Span, results: list[np.ndarray]) -> None:
        target[span.first : span.last] = results[0]

    def broken(span: Span) -> Any:
        if span.first == 3:
            raise OSError("the disk is gone")
        return span.own(source)

    with Lanes(["CPU:0"], ahead) as lanes:
        totals = lanes.sweep(spans, lambda span: span.own(source), lambda span, one: ([one * 2], one[0, 0, 0]), store)
        np.testing.assert_array_equal(target, 2 * source)
        np.testing.assert_array_equal(totals, source[:, 0, 0])
        assert lanes.held >= source[0].nbytes
        assert lanes.times.hidden is not None
        assert lanes.times.bytes_up == lanes.times.bytes_down == source.nbytes
        with pytest.raises(OSError, match="the disk is gone"):
            lanes.sweep(spans, broken, lambda span, one: ([one], one), store)


def test_the_next_block_comes_and_the_last_one_goes_while_one_is_computed() -> None:
    """Each computation waits for the copy to the device of the block after it, and for that from the device of the block before."""
    spans, patience = Blocks(1).spans(5), 30.0
    come, gone = ([threading.Event() for _ in spans] for _ in range(2))

    def gather(span: Span) -> Any:
        come[span.first].set()
        return np.full((1, 1, 1), span.first, float)

    def compute(span: Span, given: Any) -> Any:
        assert span.last == len(spans) or come[span.last].wait(patience)
        assert span.first == 0 or gone[span.first - 1].wait(patience)
        return [given], given

    with Lanes(["CPU:0"], 1) as lanes:
        order = lanes.sweep(spans, gather, compute, lambda span, results: gone[span.first].set())
    np.testing.assert_array_equal(np.ravel(order), range(5))


@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_a_device_holds_as_many_blocks_of_a_long_volume_as_of_a_short_one(ahead: int) -> None:
    """One that is computed with its results, and both for each that comes or goes."""
    block = np.zeros((1, 8, 8))
    for count in (10, 60):
        with Lanes(["CPU:0"], ahead) as lanes:
            lanes.sweep(Blocks(1).spans(count), lambda span: block, lambda span, given: ([given + 1], ()))
            assert lanes.held <= (2 + 2 * ahead + 1) * block.nbytes
            assert lanes.times.bytes_up == count * block.nbytes


def test_copies_are_contiguous_and_aligned() -> None:
    volume = np.arange(48.0).reshape(2, 6, 4)
    larger = np.broadcast_to(volume[:1].astype(np.complex64), (3, 6, 4))
    for part in (volume[:, 1:5], volume[:, 3:5], volume, larger):
        copy = aligned(part)
        assert copy.flags.c_contiguous
        assert copy.ctypes.data % 64 == 0
        assert not np.shares_memory(copy, part)
        np.testing.assert_array_equal(copy, part)


@pytest.mark.parametrize("dtype", ["float32", "complex128", "int32", "bool"])
def test_tensors_on_the_host_keep_their_memory(dtype: str) -> None:
    copies, volume = TensorFlowCopies("CPU:0"), (np.arange(48) % 5).astype(dtype).reshape(2, 6, 4)
    given = volume.copy()
    tensors = [tensor for n in range(5) for tensor in copies.to_device([given[:, n : n + 2]])]
    given[...] = 0
    for n, tensor in enumerate(tensors):
        assert tensor.dtype == dtype
        np.testing.assert_array_equal(tensor, volume[:, n : n + 2])


def test_one_compilation_serves_all_blocks() -> None:
    """The first, the middle and the last ones, which cut their slices at other places: the same program for XLA."""
    settings, flags, width = Settings("TGV"), [False, True], 2
    components = Components(FlipAngles())
    solver = PrimalDual(components, flags, build(settings, (6, 4, 4), flags), None, [1.0] * len(components), settings, True)
    wide, back = solver.start(np.zeros((len(components), 6, 4, 4), np.float32))[0], [np.zeros((len(components), width, 4, 4), np.float32)]
    back.append(np.zeros((len(components), 3, width, 4, 4), np.float32))
    numbers = [np.float32(1)] * 3
    given = [list(wide), list(wide), list(solver.regulariser.forward(wide)), back]
    dual = Halves(solver, None, True).dual
    compiled = dual.experimental_get_compiler_ir
    programs = {compiled(given, numbers, np.float32(1), np.float32(1), np.int32(offset))(stage="hlo") for offset in (0, 2, 4)}
    assert len(programs) == 1


def test_what_cannot_be_cut_is_named(images: np.ndarray) -> None:
    model, term = FlipAngles(), data_term.from_images(images)
    maps = birdcage_coils(2, images.shape[1:])
    mask = np.random.default_rng(0).random((5, *images.shape[1:])) < 0.5
    coupled = data_term.cartesian(fftc(maps * images[:, None], (-3, -2, -1)).astype(np.complex64), maps, mask)
    with pytest.raises(ModelError, match=r"couple voxels, perhaps across slices .* without block_slices"):
        fit(model, coupled, block_slices=2)
    with pytest.raises(ModelError, match=r"need data \[contrast, slice, y, x\]"):
        fit(model, data_term.from_images(images[:, 0]), block_slices=2)
    with pytest.raises(ModelError, match="wavelet coefficients belong to the whole volume"):
        fit(model, term, Settings("wavelet", wavelet="haar"), block_slices=2)
    with pytest.raises(ModelError, match="5 contrasts, the data 4"):
        fit(model, data_term.from_images(images[:4]), block_slices=2)
    with pytest.raises(ValueError, match="at least 1 slice"):
        fit(model, term, block_slices=0)
    with pytest.raises(ValueError, match=r"do not fit k-space .*\[contrast, coil, slice, y, x\]"):
        slices.cartesian(images, maps)


_DEVICES = """
import json, sys
import numpy as np
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from recon.quantitative import slices
from recon.quantitative.irgn import fit
from recon.quantitative.lanes import Blocks, Lanes
from recon.quantitative.settings import Settings
from tests.recon.quantitative.test_blocks import STEPS, volume
from tests.recon.quantitative.small_models import FlipAngles
places = []
lane = Lanes._lane
def noted(self, number, spans, gather, compute, *rest):
    def told(span, given):
        results, numbers = compute(span, given)
        places.append((span.first, [one.device for one in tf.nest.flatten(given)], [one.device for one in results]))
        return results, numbers
    return lane(self, number, spans, gather, told, *rest)
Lanes._lane = noted
data, settings = slices.images(volume(4)), Settings("TV", max_gn_it=1, start_iters=4, replicas=0)
blocks = [Blocks(2, ("CPU:0",)), Blocks(2, ("CPU:0", "CPU:1"), ahead=1)]
one, two = (fit(FlipAngles(), data, settings, block_slices=each).parameters for each in blocks)
right = all(name.endswith("CPU:%d" % (first // 2 % 2)) for first, given, results in places[len(places) // 2 :] for name in given + results)
print(json.dumps([bool((one == two).all()), right, len(places)]))
"""


def test_two_devices_take_turns() -> None:
    """Bit for bit what one device finds, as sums are taken in the order of the blocks."""
    done = subprocess.run([sys.executable, "-c", _DEVICES], capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert done.returncode == 0, done.stderr[-2000:]
    equal, right, count = json.loads(done.stdout.splitlines()[-1])
    assert equal
    assert right
    assert count > 30


_MEMORY = """
import json, sys
from pathlib import Path
import numpy as np
sys.path.insert(0, sys.argv[1])
from bench_blocks import peak, resident
from recon.quantitative import data_term, replicas, slices
from recon.quantitative.irgn import fit
from recon.quantitative.lanes import Blocks
from recon.quantitative.settings import Settings
from tests.recon.quantitative.small_models import FlipAngles
replicas._LEAST = 1
settings = Settings("TGV", max_gn_it=1, start_iters=1, replicas=2)
def one(count, size, blocks):
    random = np.random.default_rng(0)
    images = random.random((5, count, size, size), np.float32).astype(np.complex64)
    start = np.full((2, count, size, size), 1000, np.complex64)
    given = data_term.from_images(images) if blocks is None else slices.images(images)
    before = resident()
    fit(FlipAngles(), given, settings, start=start, block_slices=blocks)
    return (peak() - before) / 1e6
one(7, 8, 2)  # libraries
blocks = one(24, 64, Blocks(2, folder=Path(sys.argv[2])))
print(json.dumps([blocks, one(24, 64, None)]))
"""


def test_memory_is_bounded(tmp_path: Path) -> None:
    """Peak of a fit of 24 slices in blocks of 2, with arrays in files, beside that of the whole; both with replicas."""
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", _MEMORY, str(root / "scripts"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr[-2000:]
    blocks, whole = json.loads(done.stdout.splitlines()[-1])
    assert blocks <= 0.5 * whole, (blocks, whole)
