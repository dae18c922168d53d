"""Readout cropping against matrices written out and against a point whose signal is known; asymmetric echoes."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gadgets.base import GadgetError
from gadgets.items import Acquisition
from gadgets.layout import Flag
from gadgets.oversampling import AsymmetricEchoAdjustRO, RemoveROOversampling
from tests.gadgets.readouts import dft, make_header, noise_like, readout, through

RNG = np.random.default_rng(2)


def header_for(samples: int, kept: int, trajectory: str = "cartesian"):
    return make_header((samples, 8, 1), (kept, 8, 1), encoded_mm=(samples, 8.0, 1.0), recon_mm=(kept, 8.0, 1.0), trajectory=trajectory)


def point(k: np.ndarray, position: np.ndarray) -> np.ndarray:
    """Signal of a point; `k` [sample, axis] in cycles per pixel."""
    return np.exp(-2j * np.pi * (k @ position))[None]


@given(st.integers(2, 40), st.integers(1, 40))
def test_equals_transform_crop_transform(samples, kept):
    kept = min(kept, samples)
    data = noise_like(RNG, 3, samples)
    (out,) = through(RemoveROOversampling(), [readout(data)], header_for(samples, kept))
    first = samples // 2 - kept // 2
    image = (dft(samples).conj().T @ data.T)[first : first + kept]
    np.testing.assert_allclose(out.data, (dft(kept) @ image).T, rtol=2e-4, atol=2e-5)
    assert out.data.shape == (3, int(out.header["number_of_samples"])) == (3, kept)


def test_header_is_scaled_and_the_received_one_kept():
    item = readout(noise_like(RNG, 2, 64), fields={"center_sample": 30, "discard_pre": 5, "discard_post": 8})
    (out,) = through(RemoveROOversampling(), [item], header_for(64, 32))
    assert [int(out.header[n]) for n in ("number_of_samples", "center_sample", "discard_pre", "discard_post")] == [32, 15, 2, 4]
    assert int(item.header["number_of_samples"]) == 64


def test_nothing_to_crop_passes_the_very_item():
    item = readout(noise_like(RNG, 2, 64))
    assert through(RemoveROOversampling(), [item], header_for(64, 64)) == [item]
    wider = make_header((64, 8, 1), encoded_mm=(64, 8, 1), recon_mm=(128, 8, 1))
    assert through(RemoveROOversampling(), [item], wider) == [item]


def test_each_readout_by_its_own_encoding_space():
    item = readout(noise_like(RNG, 2, 64), fields={"encoding_space_ref": 1})
    with pytest.raises(GadgetError, match="encoding space 1"):
        through(RemoveROOversampling(), [item], header_for(64, 32))


@pytest.mark.parametrize("samples", [256, 255])
def test_spoke_and_its_trajectory_stay_consistent(samples):
    direction, position = np.array([0.8, 0.6]), np.array([8.0, 6.0])  # 10 pixels along the spoke: on the grid of its projection
    steps = np.arange(samples) - samples // 2
    spoke = (steps[:, None] / samples * direction).astype(np.float32)
    item = readout(point(spoke, position), trajectory=spoke)
    kept = samples // 2
    (out,) = through(RemoveROOversampling(), [item], header_for(samples, kept, "radial"))
    assert out.trajectory.shape == (kept, 2)
    assert out.header["trajectory_dimensions"] == 2
    np.testing.assert_allclose(out.trajectory[kept // 2], 0, atol=1e-7)
    np.testing.assert_allclose(out.data, np.sqrt(samples / kept) * point(out.trajectory, position), atol=2e-4)


def test_trajectory_of_a_line_beside_the_centre():
    k = np.stack([(np.arange(32) - 16) / 32, np.full(32, 0.25)], axis=1).astype(np.float32)
    position = np.array([3.0, 5.0])
    (out,) = through(RemoveROOversampling(), [readout(point(k, position), trajectory=k)], header_for(32, 16))
    np.testing.assert_allclose(out.data, np.sqrt(2) * point(out.trajectory, position), atol=1e-5)


def test_spirals_pass_untouched_with_one_warning(caplog):
    turn = np.linspace(0, 12, 64)
    spiral = (turn[:, None] / 24 * np.stack([np.cos(turn), np.sin(turn)], axis=1)).astype(np.float32)
    items: list[Acquisition] = [readout(noise_like(RNG, 2, 64), trajectory=spiral) for _ in range(3)]
    with caplog.at_level(logging.WARNING, "reconstream"):
        assert through(RemoveROOversampling(), items, header_for(64, 32, "spiral")) == items
    assert sum("not straight" in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize("bend", ["steps", "direction"])
def test_ramp_sampled_and_bent_lines_pass_untouched(bend):
    even = np.linspace(-0.5, 0.5, 64)
    x = 0.5 * np.sin(np.pi * even) if bend == "steps" else even
    y = 0 * even if bend == "steps" else 0.1 * even**2
    item = readout(noise_like(RNG, 2, 64), trajectory=np.stack([x, y], axis=1).astype(np.float32))
    assert through(RemoveROOversampling(), [item], header_for(64, 32, "radial")) == [item]


def test_spiral_whose_trajectory_is_known_by_name_only():
    item = readout(noise_like(RNG, 2, 64))
    assert through(RemoveROOversampling(), [item], header_for(64, 32, "spiral")) == [item]
    assert through(RemoveROOversampling(), [item], header_for(64, 32, "goldenangle"))[0].data.shape == (2, 32)


def test_missing_recon_field_of_view_is_an_error():
    header = make_header((64, 8, 1), (32, 8, 1), recon_mm=(0.0, 8.0, 1.0))
    with pytest.raises(GadgetError, match="recon field of view along x is 0"):
        through(RemoveROOversampling(), [readout(noise_like(RNG, 1, 64))], header)


@pytest.mark.parametrize(("center", "before"), [(12, 20), (40, 0), (30, 2), (4, 20)])
def test_asymmetric_echo_is_moved_to_the_middle(center, before):
    data = noise_like(RNG, 2, 44)
    (out,) = through(AsymmetricEchoAdjustRO(), [readout(data, fields={"center_sample": center})], make_header((64, 8, 1)))
    after = 64 - 44 - before
    np.testing.assert_array_equal(out.data, np.pad(data, ((0, 0), (before, after))))
    fields = ("number_of_samples", "center_sample", "discard_pre", "discard_post")
    assert [int(out.header[name]) for name in fields] == [64, 32, before, after]


def test_symmetric_noise_full_and_trajectory_readouts_pass():
    short = noise_like(RNG, 2, 44)
    items = [
        readout(short),
        readout(short, [Flag.IS_NOISE_MEASUREMENT], fields={"center_sample": 12}),
        readout(noise_like(RNG, 2, 64), fields={"center_sample": 12}),
        readout(short, fields={"center_sample": 12}, trajectory=np.zeros((44, 2), np.float32)),
        readout(short, fields={"center_sample": 44}),
    ]
    assert through(AsymmetricEchoAdjustRO(), items, make_header((64, 8, 1))) == items
