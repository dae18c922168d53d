"""Trajectories: acquired in several units, computed for radial orderings; the grid images are reconstructed on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gadgets.header import Encoding, Header, HeaderError, Limit, Space
from gadgets.layout import Flag
from gadgets.trajectories import Grid, Trajectories, is_radial, to_grid
from recon.realtime_spiral import RealtimeSpiral
from tests.gadgets.scans import header_xml, readout, spiral, spokes

GOLDEN_DEG = 180 * 2 / (1 + 5**0.5)


def encoding(**properties: object) -> Encoding:
    return Header(header_xml((32, 32), **properties)).encoding()  # type: ignore[arg-type]


def blank_readout(samples: int = 8, **properties: object):  # type: ignore[no-untyped-def]
    return readout(np.zeros((1, samples)), None, **properties)  # type: ignore[arg-type]


def angle_of(trajectory: np.ndarray) -> float:
    kx, ky = trajectory[-1] - trajectory[0]
    return float(np.degrees(np.arctan2(ky, kx)) % 360)


def angles(trajectories: Trajectories, counters: list[tuple[int, int]]) -> list[float]:
    return [angle_of(trajectories.of(blank_readout(kspace_encode_step_1=line, repetition=repetition))) for line, repetition in counters]


def test_a_linear_ordering_spreads_the_header_s_views_over_180_degrees() -> None:
    found = angles(Trajectories(encoding(trajectory="radial", views=6)), [(0, 0), (1, 0), (5, 0), (1, 1)])
    assert found == pytest.approx([0, 30, 150, 30], abs=1e-4)


def test_full_range_offset_and_views_by_property() -> None:
    trajectories = Trajectories(encoding(trajectory="radial", views=6), views=9, angle_range=360, offset=10)
    assert angles(trajectories, [(0, 0), (2, 0)]) == pytest.approx([10, 90], abs=1e-4)


def test_golden_angles_count_on_through_repetitions() -> None:
    found = angles(Trajectories(encoding(trajectory="goldenangle", views=5)), [(0, 0), (1, 0), (2, 3)])
    assert found == pytest.approx([0, GOLDEN_DEG, 17 * GOLDEN_DEG % 360], abs=1e-3)


def test_golden_angles_count_on_beyond_16_bits() -> None:
    trajectories = Trajectories(encoding(trajectory="goldenangle", views=5))
    found = angles(trajectories, [(4, 65534), (4, 65535), (0, 0), (4, 65535), (0, 0), (3, 1), (0, 20000), (0, 50000), (0, 3)])
    views = [65534 * 5 + 4, 65535 * 5 + 4, 65536 * 5, 65535 * 5 + 4, 65536 * 5, 65537 * 5 + 3, 85536 * 5, 115536 * 5, 131075 * 5]
    assert found == pytest.approx([view * GOLDEN_DEG % 360 for view in views], abs=1e-3)


def test_rotations_of_the_published_spiral_go_on_after_an_hour() -> None:
    """65,536 frames are no multiple of its twelve phases."""
    protocol = RealtimeSpiral()
    trajectories = Trajectories(Header(header_xml((240, 240), encoded_mm=(400.0, 400.0))).encoding(), source="hyperslice")
    arms = protocol.trajectory
    for frame in (65534, 65535, 65536, 65537):
        one = blank_readout(arms.shape[2], kspace_encode_step_1=3, repetition=frame % 65536)
        found = trajectories.of(one)
        assert np.abs(2 * np.pi * found - arms[frame % 12, 3]).max() < 1e-5
        assert np.abs(2 * np.pi * found - arms[frame % 65536 % 12 if frame > 65535 else (frame + 1) % 12, 3]).max() > 0.01


def test_other_slices_and_restarts_are_no_new_round() -> None:
    trajectories = Trajectories(encoding(trajectory="goldenangle", views=5))
    counters = [(0, 65535), (1, 0), (0, 40000), (0, 0), (0, 40000)]
    readouts = [blank_readout(slice=slice_, repetition=repetition) for slice_, repetition in counters]
    found = [angle_of(trajectories.of(one)) for one in readouts]
    assert found == pytest.approx([repetition * 5 * GOLDEN_DEG % 360 for _, repetition in counters], abs=1e-3)


def test_the_header_s_increment_and_the_property_s() -> None:
    described = encoding(trajectory="goldenangle", views=5, increment=23.6281)
    assert angles(Trajectories(described), [(1, 1)]) == pytest.approx([6 * 23.6281], abs=1e-3)
    assert angles(Trajectories(described, increment=40), [(1, 1)]) == pytest.approx([240], abs=1e-3)
    tiny = Trajectories(described, ordering="tiny_golden", tiny_number=7)
    assert angles(tiny, [(1, 0)]) == pytest.approx([180 / ((1 + 5**0.5) / 2 + 6)], abs=1e-3)


def test_running_counter_ignores_the_line_counter() -> None:
    trajectories = Trajectories(encoding(trajectory="goldenangle", views=5), increment=10, counter="running")
    assert angles(trajectories, [(4, 0), (4, 0), (0, 7)]) == pytest.approx([0, 10, 20], abs=1e-4)


def test_samples_lie_as_defined() -> None:
    trajectory = Trajectories(encoding(trajectory="radial", views=4)).of(blank_readout(8, kspace_encode_step_1=1))
    assert trajectory == pytest.approx(spokes([45], 8)[0], abs=1e-6)


def test_asymmetric_echo_discarded_samples_and_reversed_readout() -> None:
    trajectories = Trajectories(encoding(trajectory="radial", views=2))
    short = trajectories.of(blank_readout(6, center=2))  # two samples short of a full readout of 8
    assert short[:, 0] == pytest.approx((np.arange(6) - 2) / 8)
    trimmed = blank_readout(12)
    trimmed.header["discard_pre"], trimmed.header["discard_post"] = 2, 2
    assert trajectories.of(trimmed)[:, 0] == pytest.approx((np.arange(8) - 4) / 8)
    assert trajectories.of(blank_readout(8, flags=(Flag.IS_REVERSE,)))[:, 0] == pytest.approx(-(np.arange(8) - 4) / 8)


def test_acquired_trajectories_win_and_lose_their_discarded_samples() -> None:
    k = spiral(1, 2, 10)[0]
    acquisition = readout(np.zeros((1, 10)), k)
    acquisition.header["discard_pre"] = 3
    assert Trajectories(encoding(trajectory="spiral")).of(acquisition) == pytest.approx(k[3:], abs=1e-6)
    computed = Trajectories(encoding(trajectory="spiral"), source="radial", increment=0).of(readout(np.zeros((1, 10)), k))
    assert computed == pytest.approx(spokes([0], 10)[0], abs=1e-6)


def test_a_third_column_of_a_two_dimensional_scan_is_no_coordinate() -> None:
    k = np.column_stack([spiral(1, 2, 10)[0], np.arange(10)])
    assert Trajectories(encoding(trajectory="spiral")).of(readout(np.zeros((1, 10)), k)) == pytest.approx(k[:, :2], abs=1e-6)


def test_a_stack_gets_kz_from_its_partition() -> None:
    matrix, field = (16, 16, 8), (200.0, 200.0, 80.0)
    stack = Encoding(Space(matrix, field), Space(matrix, field), {"kspace_encoding_step_2": Limit(0, 7, 4)})
    k = spokes([30], 16)[0]
    pixel = Trajectories(stack).of(readout(np.zeros((1, 16)), k, kspace_encode_step_2=6))
    assert pixel == pytest.approx(np.column_stack([k, np.full(16, 2 / 8)]), abs=1e-6)
    field_of_view = Trajectories(stack).of(readout(np.zeros((1, 16)), k * 16, kspace_encode_step_2=6))
    assert field_of_view[:, 2] == pytest.approx(np.full(16, 2))


@pytest.mark.parametrize(
    ("header", "properties", "words"),
    [
        ({"trajectory": "spiral"}, {}, ["no trajectory", "'spiral'", "converter", "trajectory=radial"]),
        ({"trajectory": "cartesian"}, {}, ["no trajectory", "'cartesian'"]),
        ({"trajectory": "radial"}, {"source": "acquired"}, ["readout 5", "trajectory=radial"]),
        ({"trajectory": "radial"}, {}, ["number of radial views", "`views`"]),
    ],
)
def test_a_missing_trajectory_is_an_error_with_its_remedy(header: dict, properties: dict, words: list[str]) -> None:
    with pytest.raises(ValueError, match=words[0]) as caught:
        Trajectories(encoding(**header), **properties).of(blank_readout(number=5))
    assert all(word in str(caught.value) for word in words)


def test_three_dimensional_radial_trajectories_are_not_made_up() -> None:
    space = Space((8, 8, 8), (200.0, 200.0, 200.0))
    with pytest.raises(ValueError, match="let the acquisitions carry theirs"):
        Trajectories(Encoding(space, space, trajectory="radial"), views=4).of(blank_readout())


@given(
    st.sampled_from(["cycles_per_pixel", "cycles_per_fov", "rad_per_pixel"]),
    st.integers(8, 64),
    st.integers(8, 64),
)
def test_units_agree(unit: str, nx: int, ny: int) -> None:
    space = Encoding(Space((nx, ny, 1), (200, 200, 5)), Space((nx, ny, 1), (200, 200, 5)))
    k = spokes([20, 70], 16).reshape(-1, 2)
    given_as = {"cycles_per_pixel": k, "cycles_per_fov": k * [nx, ny], "rad_per_pixel": k * 2 * np.pi}[unit]
    expected = 2 * np.pi * k[:, ::-1]  # columns (ky, kx)
    assert to_grid(given_as, unit, space, Grid.of(space)) == pytest.approx(expected, abs=1e-5)  # type: ignore[arg-type]
    if unit != "rad_per_pixel":
        assert to_grid(given_as, "auto", space, Grid.of(space)) == pytest.approx(expected, abs=1e-5)


def test_a_unit_that_does_not_fit_is_an_error() -> None:
    space = encoding()
    with pytest.raises(ValueError, match="trajectory_unit"):
        to_grid(spokes([0], 16)[0] * 32, "cycles_per_pixel", space, Grid.of(space))


def test_grid_covers_the_encoded_field_of_view_at_the_image_s_pixel_size() -> None:
    twice = Header(header_xml((64, 32), (32, 32), (400, 200), (200, 200))).encoding()
    grid = Grid.of(twice)
    assert (grid.shape, grid.crop, grid.radians, grid.amplitude) == ((32, 64), (32, 32), pytest.approx((2 * np.pi,) * 2), 1)
    finer = Grid.of(Header(header_xml((32, 32), (64, 64))).encoding())
    assert (finer.shape, finer.radians, finer.amplitude) == ((64, 64), pytest.approx((np.pi,) * 2), pytest.approx(4))
    assert Grid.of(twice, factor=1.5).shape == (48, 48)
    assert Grid.of(twice, samples=32).shape == (32, 32)  # readout oversampling already removed
    assert Grid.of(twice, samples=64).shape == (32, 64)


def test_a_field_of_view_of_zero_is_an_error() -> None:
    with pytest.raises(HeaderError, match="fieldOfView_mm along x is 0"):
        Grid.of(Header(header_xml((8, 8), None, (0.0, 200.0))).encoding())


@given(st.integers(1, 40), st.integers(0, 40), st.integers(1, 40), st.integers(0, 40))
def test_the_cut_keeps_the_origin(crop_y: int, more_y: int, crop_x: int, more_x: int) -> None:
    shape, crop = (crop_y + more_y, crop_x + more_x), (crop_y, crop_x)
    image = np.zeros(shape)
    image[shape[0] // 2, shape[1] // 2] = 1
    cut = Grid(shape, crop, (1, 1), 1).cut(image)
    assert cut.shape == crop
    assert cut[crop_y // 2, crop_x // 2] == 1


def test_spokes_are_told_from_other_curves() -> None:
    assert is_radial(spokes([0, 50, 170], 33))
    assert is_radial(spokes([0, 50], 32)[:, 5:])
    assert not is_radial(spiral(3, 2, 64))
    assert not is_radial(spokes([0, 50], 32) + np.array([0.1, 0]))  # parallel lines beside the centre
    assert not is_radial(np.repeat(spokes([0], 32)[:, :1], 32, axis=1))
