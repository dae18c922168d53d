"""NonCartesianRecon on simulated scans with known truth."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pytest

from gadgets.base import Context, GadgetError, run
from gadgets.header import Header
from gadgets.items import Acquisition, AcquisitionBucket, Image, Item, Waveform
from gadgets.layout import Flag, ImageType
from gadgets.noncartesian import NonCartesianRecon
from gadgets.reconstruction import Reconstruction
from tests.gadgets.scans import asymmetric_object, coil_maps, frame, header_xml, measure, nrmse, readout, spiral, spokes

N, COILS, VIEWS, SAMPLES = 32, 5, 52, 48
GOLDEN = 180 * 2 / (1 + 5**0.5)


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    return asymmetric_object(N)


@pytest.fixture(scope="module")
def maps() -> np.ndarray:
    return coil_maps(COILS, N)


@pytest.fixture(scope="module")
def radial(truth: np.ndarray, maps: np.ndarray) -> list[Acquisition]:
    return frame(truth, maps, spokes(np.arange(VIEWS) * 180 / VIEWS, SAMPLES))


RADIAL = header_xml((N, N), trajectory="radial", views=VIEWS)


def reconstruct(header: bytes, items: Iterable[Item], context: Context | None = None, **properties: object) -> list[Image]:
    context = context or Context()
    context.header = Header(header)
    outputs = list(run([NonCartesianRecon(**properties)], items, context))
    assert all(isinstance(item, Image) for item in outputs)
    return outputs  # type: ignore[return-value]


def pixels(images: Sequence[Image]) -> np.ndarray:
    return np.stack([image.data[0, 0] for image in images])


@pytest.mark.parametrize(("properties", "bound"), [({"method": "gridding"}, 0.03), ({"method": "cg_sense", "iterations": 20}, 0.03)])
def test_amplitude_orientation_and_phase_of_a_radial_scan(
    radial: list[Acquisition], truth: np.ndarray, properties: dict[str, object], bound: float
) -> None:
    (image,) = reconstruct(RADIAL, radial, **properties)
    found = image.data[0, 0]
    assert image.data.shape == (1, 1, N, N)
    assert nrmse(found, truth) < bound
    # No flip, transpose or shift comes closer.
    others = [truth[::-1], truth[:, ::-1], truth[::-1, ::-1], truth.T, np.roll(truth, 1, 0), np.roll(truth, 1, 1), np.roll(truth, -1, 0)]
    assert min(nrmse(found, other) for other in others) > 3 * bound


def test_a_spiral_scan(truth: np.ndarray, maps: np.ndarray) -> None:
    (image,) = reconstruct(header_xml((N, N), trajectory="spiral"), frame(truth, maps, spiral(8, 2.2, 300)))
    assert nrmse(image.data[0, 0], truth) < 0.04


def test_undersampled_cg_sense_beats_gridding(truth: np.ndarray, maps: np.ndarray) -> None:
    few = frame(truth, maps, spokes(np.arange(13) * GOLDEN, SAMPLES))
    gridded, sense = (reconstruct(RADIAL, few, method=method, iterations=20)[0].data[0, 0] for method in ("gridding", "cg_sense"))
    assert nrmse(sense, truth) < 0.12
    assert nrmse(gridded, truth) > 1.5 * nrmse(sense, truth)


def test_cg_sense_solves_the_regularised_normal_equation(truth: np.ndarray, maps: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a direct solution with dense matrices, same sensitivities."""
    n = 12
    small, sensitivities = asymmetric_object(n), coil_maps(3, n)
    trajectory = spokes(np.arange(9) * GOLDEN, 16)
    calls = []

    def calibrate(self: Reconstruction, readouts: Sequence[object]) -> None:
        calls.append(len(readouts))
        self.maps[0, 0] = sensitivities.astype(np.complex64)

    monkeypatch.setattr(Reconstruction, "calibrate", calibrate)
    items = frame(small, sensitivities, trajectory)
    (image,) = reconstruct(header_xml((n, n)), items, iterations=200, regularization=0.1)
    k = trajectory.reshape(-1, 2)
    basis = np.eye(n * n).reshape(n * n, n, n)
    encoding = np.stack([measure(one, sensitivities, k).ravel() for one in basis], axis=1)
    data = np.concatenate([item.data for item in items], axis=1).ravel()
    weight = 0.1 * len(k)  # the mean diagonal of F^H F
    expected = np.linalg.solve(encoding.conj().T @ encoding + weight * np.eye(n * n), encoding.conj().T @ data).reshape(n, n)
    assert calls == [9]
    assert np.linalg.norm(image.data[0, 0] - expected) < 5e-3 * np.linalg.norm(expected)


def test_geometry_counters_times_and_attributes(radial: list[Acquisition]) -> None:
    (image,) = reconstruct(RADIAL, radial, image_series=4)
    middle = radial[VIEWS // 2].header
    for name in ("position", "read_dir", "phase_dir", "slice_dir", "measurement_uid", "acquisition_time_stamp"):
        assert np.array_equal(image.header[name], middle[name]), name
    assert image.header["field_of_view"].tolist() == [200, 200, 5]
    assert image.header["matrix_size"].tolist() == [N, N, 1]
    assert (image.image_series_index, image.image_index, image.image_type, image.data_type) == (4, 1, ImageType.COMPLEX, 7)
    assert image.meta["GADGETRON_ImageComment"] == image.meta["ImageComment"] == "cg_sense"
    assert image.meta["GADGETRON_DataRole"] == image.meta["DataRole"] == "Image"
    assert image.meta["EchoTime"] == "2"


def test_magnitude_output(radial: list[Acquisition]) -> None:
    (complex_image,), (magnitude,) = (reconstruct(RADIAL, radial, output=output) for output in ("complex", "magnitude"))
    assert magnitude.data.dtype == np.float32
    assert magnitude.image_type == ImageType.MAGNITUDE
    assert np.allclose(magnitude.data, np.abs(complex_image.data))


def test_computed_trajectories_equal_acquired_ones(radial: list[Acquisition]) -> None:
    bare = [readout(one.data, None, n, _flags(one), kspace_encode_step_1=n) for n, one in enumerate(radial)]
    computed, acquired = (pixels(reconstruct(RADIAL, items)) for items in (bare, radial))
    assert np.linalg.norm(computed - acquired) < 1e-3 * np.linalg.norm(acquired)


def _flags(acquisition: Acquisition) -> list[Flag]:
    return [flag for flag in Flag if acquisition.is_flag_set(flag)]


def test_a_missing_trajectory_reaches_the_operator_with_its_remedy(radial: list[Acquisition]) -> None:
    bare = [readout(one.data, None) for one in radial]
    with pytest.raises(GadgetError, match=r"\[NonCartesianRecon\] ValueError: .*no trajectory.*'spiral'.*trajectory=radial"):
        reconstruct(header_xml((N, N), trajectory="spiral"), bare)


def test_buckets_and_acquisitions_give_the_same_bits(radial: list[Acquisition]) -> None:
    assert pixels(reconstruct(RADIAL, radial)).tobytes() == pixels(reconstruct(RADIAL, [AcquisitionBucket(radial)])).tobytes()


def test_slices_contrasts_and_repetitions_become_images_of_their_own(truth: np.ndarray, maps: np.ndarray) -> None:
    trajectory = spokes(np.arange(32) * 180 / 32, SAMPLES)
    scale = {(r, s, c): (1 + r) * (1 + 2 * s) * 0.5**c for r in range(2) for s in range(2) for c in range(2)}
    measured = frame(truth, maps, trajectory, last=())
    items = []
    for repetition in range(2):
        for slice_ in range(2):
            for view, one in enumerate(measured):  # contrasts interleaved
                for contrast in range(2):
                    end = contrast == 1 and view == len(measured) - 1
                    flags = [Flag.LAST_IN_SLICE] if end else []
                    value = one.data * scale[repetition, slice_, contrast]
                    items.append(
                        readout(value, trajectory[view], len(items), flags, repetition=repetition, slice=slice_, contrast=contrast)
                    )
    images = reconstruct(RADIAL, items, iterations=20)
    where = [(int(one.repetition), int(one.header["slice"]), int(one.contrast)) for one in images]
    assert where == [(r, s, c) for r in range(2) for s in range(2) for c in range(2)]
    assert [int(one.image_index) for one in images] == list(range(1, 9))
    for key, image in zip(where, images, strict=True):
        assert nrmse(image.data[0, 0] / scale[key], truth) < 0.04
    assert images[1].meta["EchoTime"] == "4"


def test_maps_are_reused_unless_told_otherwise(radial: list[Acquisition], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = Reconstruction.calibrate
    monkeypatch.setattr(Reconstruction, "calibrate", lambda self, readouts: (calls.append(len(readouts)), original(self, readouts))[1])
    assert len(reconstruct(RADIAL, radial * 3)) == 3
    assert calls == [VIEWS]
    assert len(reconstruct(RADIAL, radial * 3, reuse_maps=False)) == 3
    assert calls == [VIEWS] * 4


def test_calibration_readouts_give_the_maps_and_no_image(truth: np.ndarray, maps: np.ndarray) -> None:
    """An object that fills the slice for the calibration; the image shows a corner that alone would give poor maps."""
    calibration = frame(np.ones((N, N)), maps, spokes(np.arange(52) * 180 / 52, SAMPLES), last=())
    for one in calibration:
        one.set_flag(Flag.IS_PARALLEL_CALIBRATION)
    imaging = frame(truth, maps, spokes(np.arange(11) * GOLDEN, SAMPLES))
    (with_calibration,) = reconstruct(RADIAL, calibration + imaging, iterations=20)
    (bucket,) = reconstruct(RADIAL, [AcquisitionBucket(imaging, calibration)], iterations=20)
    (without,) = reconstruct(RADIAL, imaging, iterations=20)
    assert np.array_equal(with_calibration.data, bucket.data)
    assert nrmse(with_calibration.data[0, 0], truth) < nrmse(without.data[0, 0], truth)


def test_oversampled_field_of_view_is_cut_at_its_centre(maps: np.ndarray) -> None:
    """Readout over twice the field of view, with signal outside the image: what is inside comes out in place."""
    wide = asymmetric_object(2 * N)
    wide_maps = coil_maps(COILS, 2 * N)
    header = header_xml((2 * N, 2 * N), (N, N), (400, 400), (200, 200), trajectory="radial", views=110)
    (image,) = reconstruct(header, frame(wide, wide_maps, spokes(np.arange(110) * 180 / 110, 2 * N)), method="gridding")
    assert image.data.shape == (1, 1, N, N)
    assert nrmse(image.data[0, 0], wide[N // 2 : N // 2 + N, N // 2 : N // 2 + N]) < 0.05


def test_amplitude_does_not_depend_on_the_pixel_size(radial: list[Acquisition], truth: np.ndarray) -> None:
    finer = header_xml((N, N), (2 * N, 2 * N), trajectory="radial", views=VIEWS)
    coarser = header_xml((N, N), (N // 2, N // 2), trajectory="radial", views=VIEWS)
    fine, coarse = (reconstruct(header, radial, method="gridding")[0].data[0, 0] for header in (finer, coarser))
    assert nrmse(fine[::2, ::2], truth) < 0.03
    kspace = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(truth)))[N // 4 : -N // 4, N // 4 : -N // 4]
    low_pass = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace))) / 4
    assert nrmse(coarse, low_pass) < 0.05


def test_three_dimensional_trajectories() -> None:
    n = 12
    axis = np.arange(n) / n - 0.5
    z, y, x = np.meshgrid(axis, axis, axis, indexing="ij")
    volume = np.exp(-((z / 0.2) ** 2) - ((y + 0.1) / 0.25) ** 2 - ((x - 0.1) / 0.15) ** 2)
    rng = np.random.default_rng(3)
    directions = rng.standard_normal((300, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    k = directions[:, None] * ((np.arange(16) - 8) / 16)[None, :, None]
    flat = k.reshape(-1, 3)
    grid = np.arange(n) - n // 2
    ex, ey, ez = (np.exp(-2j * np.pi * np.outer(flat[:, axis], grid)) for axis in range(3))
    data = np.einsum("sz,sy,sx,zyx->s", ez, ey, ex, volume, optimize=True).reshape(300, 1, 16)
    header = header_xml((n, n)).replace(b"<z>1</z>", f"<z>{n}</z>".encode())
    items = [readout(data[v], k[v], v, [Flag.LAST_IN_MEASUREMENT] if v == 299 else []) for v in range(300)]
    (image,) = reconstruct(header, items, iterations=20, map_bandwidth=0.5)
    assert image.data.shape == (1, n, n, n)
    assert nrmse(image.data[0], volume) < 0.1


def test_noise_and_navigators_belong_to_no_image(radial: list[Acquisition]) -> None:
    noise = readout(np.ones((COILS, 64)), None, 0, [Flag.IS_NOISE_MEASUREMENT])
    navigator = readout(np.ones((COILS, 64)), None, 0, [Flag.IS_NAVIGATION_DATA])
    context = Context()
    images = reconstruct(RADIAL, [noise, noise, *radial[:9], navigator, *radial[9:]], context)
    assert np.array_equal(pixels(images), pixels(reconstruct(RADIAL, radial)))
    assert context.counts == {"readouts skipped: noise": 2, "readouts skipped: navigator": 1}


def test_values_that_are_not_finite_are_left_out_and_counted(radial: list[Acquisition], truth: np.ndarray) -> None:
    spoilt = [one.with_data(one.data.copy(), one.trajectory) for one in radial]
    spoilt[3].data[1, 5] = np.nan
    spoilt[20].data[:, 7] = np.inf
    context = Context()
    (image,) = reconstruct(RADIAL, spoilt, context, iterations=20)
    assert np.isfinite(image.data).all()
    assert nrmse(image.data[0, 0], truth) < 0.04
    assert context.counts["samples not finite"] == 2 * (1 + COILS)  # of the maps and of the image


def test_a_dead_channel_does_not_spoil_the_others(radial: list[Acquisition], truth: np.ndarray, maps: np.ndarray) -> None:
    spoilt = [one.with_data(one.data.copy(), one.trajectory) for one in radial]
    for one in spoilt:
        one.data[2] = np.nan
    (image,) = reconstruct(RADIAL, spoilt, iterations=20)
    rest = np.sqrt((np.abs(np.delete(maps, 2, 0)) ** 2).sum(0))
    assert nrmse(image.data[0, 0], truth * rest) < 0.05


def test_nothing_finite_is_an_error(radial: list[Acquisition]) -> None:
    spoilt = [one.with_data(one.data * np.nan, one.trajectory) for one in radial]
    with pytest.raises(GadgetError, match="every sample of a frame is NaN or infinite; check the receiver"):
        reconstruct(RADIAL, spoilt)


def test_different_numbers_of_channels_in_an_image_are_an_error(radial: list[Acquisition]) -> None:
    fewer = radial[5].with_data(radial[5].data[:3], radial[5].trajectory)
    with pytest.raises(GadgetError, match="different numbers of channels: 3, 5"):
        reconstruct(RADIAL, [*radial[:5], fewer, *radial[6:]])


def test_coil_compression_changes_little(radial: list[Acquisition], truth: np.ndarray) -> None:
    (image,) = reconstruct(RADIAL, radial, coils=4, iterations=20)
    assert nrmse(image.data[0, 0], truth) < 0.05
    assert not np.array_equal(image.data, reconstruct(RADIAL, radial, iterations=20)[0].data)


def test_density_radial_is_refused_for_spirals(truth: np.ndarray, maps: np.ndarray) -> None:
    items = frame(truth, maps, spiral(4, 2, 100))
    with pytest.raises(GadgetError, match="density=radial"):
        reconstruct(header_xml((N, N)), items, density="radial", method="gridding")


def test_pipe_and_exact_density_agree_for_spokes(radial: list[Acquisition], truth: np.ndarray) -> None:
    (pipe,) = reconstruct(RADIAL, radial, density="pipe", method="gridding")
    assert nrmse(pipe.data[0, 0], truth) < 0.05


def test_an_image_comes_before_the_next_readout_and_other_items_pass(radial: list[Acquisition]) -> None:
    taken: list[int] = []

    def source() -> Iterator[Item]:
        for number, item in enumerate([*radial, Waveform(None, np.zeros((1, 4), np.uint32)), *radial]):
            taken.append(number)
            yield item

    outputs = run([NonCartesianRecon()], source(), Context(header=Header(RADIAL)))
    assert isinstance(next(outputs), Image)
    assert taken[-1] == VIEWS - 1
    assert [type(item) for item in outputs] == [Waveform, Image]


def test_a_scan_cut_short_still_gives_its_image(radial: list[Acquisition]) -> None:
    (image,) = reconstruct(RADIAL, radial[: VIEWS // 2])
    assert image.image_index == 1


def test_plans_and_weights_are_reused_when_the_trajectory_repeats(
    truth: np.ndarray, maps: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recon import density, nufft

    iterated = []
    original = density._pipe_one
    monkeypatch.setattr(density, "_pipe_one", lambda *arguments: (iterated.append(1), original(*arguments))[1])
    items = [one for repetition in range(4) for one in frame(truth, maps, spiral(8, 2.21, 200), repetition=repetition)]
    outputs = run([NonCartesianRecon(method="gridding")], items, Context(header=Header(header_xml((N, N)))))
    next(outputs)
    plans = nufft.cached_plans()
    assert len(list(outputs)) == 3
    assert len(iterated) == 1
    assert nufft.cached_plans() == plans


def test_only_small_frames_leave_their_trajectory_behind(radial: list[Acquisition], monkeypatch: pytest.MonkeyPatch) -> None:
    """A volume's trajectory, kept 32 times, would fill the memory."""
    kept: list[int] = []
    located = Reconstruction._located

    def noted(self: Reconstruction, *arguments: object) -> object:
        kept.append(len(self._geometries))
        return located(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Reconstruction, "_located", noted)
    twice = [*radial, *(item.with_data(item.data) for item in radial)]
    for item in twice[len(radial) :]:
        item.header["idx"]["repetition"] = 1
    small = pixels(reconstruct(RADIAL, twice, method="gridding"))
    assert kept == [0]  # one trajectory for the maps and both frames
    kept.clear()
    monkeypatch.setattr("gadgets.reconstruction.KEPT_SAMPLES", VIEWS * SAMPLES - 1)
    assert np.array_equal(pixels(reconstruct(RADIAL, twice, method="gridding")), small)
    assert len(kept) >= 2
    assert set(kept) == {0}
