"""What the weights that are shipped gain in their chains, on objects that no training has seen."""

from __future__ import annotations

import numpy as np
import pytest

from gadgets.items import Acquisition, Image, Item
from gadgets.layout import Flag
from recon.fourier import fftc
from recon.networks.unrolled import Unrolled
from recon.phantoms import birdcage_coils, moving_heart, phantom
from scripts import simulate
from service.local import reconstruct
from tests.end_to_end import test_network_chains
from tests.end_to_end.test_network_chains import sodium, without_network
from tests.end_to_end.test_noncartesian_chains import error

N, COILS, FRAMES = 128, 8, 12


def sampled_lines(rng: np.random.Generator) -> set[int]:
    """16 of 128: the middle eight and others, denser towards them."""
    outer = np.setdiff1d(np.arange(N), np.arange(N // 2 - 4, N // 2 + 4))
    odds = 1 / (0.2 + np.abs(outer - N // 2) / N)
    return {*range(N // 2 - 4, N // 2 + 4), *(int(n) for n in rng.choice(outer, 8, replace=False, p=odds / odds.sum()))}


@pytest.fixture(scope="module")
def cartesian() -> tuple[simulate.Scan, list[np.ndarray]]:
    """A beating heart, eightfold undersampled, and its frames."""
    rng = np.random.default_rng(0)
    scan = simulate.cartesian((N, N), COILS, 1, noise=0.01, repetitions=FRAMES)
    noise_only = simulate.cartesian((N, N), COILS, 1, noise=0.0, noise_readouts=0).items
    maps = birdcage_coils(COILS, (N, N))
    frames = [moving_heart((N, N), 45.0 * frame) for frame in range(FRAMES)]
    wide = np.zeros((FRAMES, COILS, N, 2 * N), np.complex64)
    wide[..., N // 2 : N // 2 + N] = np.stack(frames)[:, None] * maps
    kspace = fftc(wide, (-2, -1))
    lines = [sampled_lines(rng) for _ in frames]
    items: list[Item] = []
    for item in scan.items:
        assert isinstance(item, Acquisition)
        line, frame = int(item.header["idx"]["kspace_encode_step_1"]), int(item.header["idx"]["repetition"])
        if item.is_flag_set(Flag.IS_NOISE_MEASUREMENT):
            items.append(item)
        elif line in lines[frame]:
            at_rest = noise_only[line]
            assert isinstance(at_rest, Acquisition)
            items.append(item.with_data((item.data - at_rest.data + kspace[frame, :, line]).astype(np.complex64)))
    return simulate.Scan(scan.header, items, scan.truth), frames


def test_varnet_against_cg_sense(cartesian: tuple[simulate.Scan, list[np.ndarray]], monkeypatch: pytest.MonkeyPatch) -> None:
    scan, frames = cartesian

    def errors(found: list[Image]) -> np.ndarray:
        assert [int(image.repetition) for image in found] == list(range(FRAMES))
        return np.array([error(image, frame) for image, frame in zip(found, frames, strict=True)])

    network = reconstruct(scan.items, "cartesian_varnet", header=scan.header, overlap=0)
    assert {str(image.meta["NetworkWeights"]) for image in network} == {"varnet_cartesian"}
    monkeypatch.setattr(Unrolled, "__call__", lambda self, *arrays: np.full((FRAMES, N, N), np.nan))
    linear = reconstruct(scan.items, "cartesian_varnet", header=scan.header, overlap=0)
    assert (errors(network) < 0.6 * errors(linear)).all()
    assert np.median(errors(network)) < 0.11


@pytest.mark.parametrize("averages", [4, 16])
def test_dncnn_against_gridding(averages: int) -> None:
    header, items, truth = sodium(averages, 20.0)
    (gridded,) = reconstruct(items, without_network("sodium_dncnn"), header=header)
    (found,) = reconstruct(items, "sodium_dncnn", header=header)
    assert found.meta["NetworkWeights"] == "dncnn_sodium"
    assert error(found, truth) < min(0.6 * error(gridded, truth), 0.15)


def test_dncnn_keeps_a_bright_rim(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thin, and five times as bright as what is inside."""
    monkeypatch.setattr(test_network_chains, "moving_heart", lambda shape, _: phantom("modified_shepp_logan", shape))
    header, items, truth = sodium(4, 20.0)
    (gridded,) = reconstruct(items, without_network("sodium_dncnn"), header=header)
    (found,) = reconstruct(items, "sodium_dncnn", header=header)
    assert error(found, truth) < 0.8 * error(gridded, truth)
    rim, inside = truth > 0.9, (truth > 0.15) & (truth < 0.25)
    pixels, before = (image.data[0, 0].astype(np.float64) for image in (found, gridded))
    assert pixels[rim].mean() > 0.85 * before[rim].mean()
    assert pixels[inside].mean() == pytest.approx(0.2, abs=0.03)
    assert np.std(pixels[inside]) < 0.7 * np.std(before[inside])
