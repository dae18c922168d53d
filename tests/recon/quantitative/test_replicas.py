"""Standard deviations of regularised maps against the scatter of fits to data with other noise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from recon.fourier import fftc
from recon.nufft import Nufft
from recon.operators import Encoding
from recon.operators.frames import Frames
from recon.phantoms import birdcage_coils
from recon.quantitative import data_term, measured, slices
from recon.quantitative.data_term import DataTerm
from recon.quantitative.irgn import fit
from recon.quantitative.replicas import iterations, scattered
from recon.quantitative.settings import Settings
from tests.recon.conftest import random_complex
from tests.recon.quantitative.small_models import FlipAngles, add_noise, tubes

SIZE, NOISE, REPEATS, DRAWS = 24, 2e-3, 20, 400
MAPS = birdcage_coils(3, (SIZE, SIZE)).astype(np.complex64)


def clean() -> np.ndarray:
    m0, t1, _ = tubes(SIZE)
    values: np.ndarray = FlipAngles()(np.stack([m0, t1])).numpy()
    return values


def spokes(count: int) -> np.ndarray:
    """Golden-angle spokes of five flip angles, rad/pixel `[flip, sample, axis]`."""
    angles = np.arange(5 * count)[:, None] * np.pi * (np.sqrt(5) - 1) / 2
    radius = (np.arange(2 * SIZE) - SIZE) / SIZE * np.pi
    return np.stack([np.sin(angles) * radius, np.cos(angles) * radius], -1).reshape(5, -1, 2).astype(np.float32)


def density(points: np.ndarray) -> np.ndarray:
    weights: np.ndarray = np.linalg.norm(points, axis=-1) + np.pi / SIZE / 4
    return weights


def encoded(points: np.ndarray, images: np.ndarray) -> np.ndarray:
    return np.stack([Nufft(p, (SIZE, SIZE), 1e-6).forward(MAPS * x) for p, x in zip(points, images.astype(np.complex64), strict=True)])


def cartesian(seed: int) -> DataTerm:
    return data_term.cartesian(add_noise(fftc(MAPS * clean()[:, None], (-2, -1)), NOISE, seed).astype(np.complex64), MAPS)


def radial(seed: int) -> DataTerm:
    """A third of the spokes that one image needs."""
    points = spokes(13)
    kspace = add_noise(encoded(points, clean()), NOISE, seed).astype(np.complex64)
    return data_term.noncartesian(kspace, points, MAPS, density(points), toeplitz=True)


def unweighted(seed: int) -> DataTerm:
    """The same, the dense centre of k-space as it is: iterations converge slowly."""
    points = spokes(13)
    kspace = add_noise(encoded(points, clean()), NOISE, seed).astype(np.complex64)
    return data_term.noncartesian(kspace, points, MAPS, toeplitz=True)


@pytest.mark.parametrize(("make", "steps"), [(cartesian, 2), (radial, 2), (unweighted, 3)])
def test_deviation_is_the_scatter_of_repeated_fits(make: Callable[[int], DataTerm], steps: int) -> None:
    """Median ratio within 0.7 to 1.4; the bound without regularisation is far above it."""
    _, _, inside = tubes(SIZE)
    model = FlipAngles()
    found = fit(model, make(0), Settings("TGV", max_gn_it=steps))
    results = [fit(model, make(seed), Settings("TGV", max_gn_it=steps, replicas=0)) for seed in range(REPEATS)]
    np.testing.assert_array_equal(found.parameters, results[0].parameters)
    for n, part in ((0, np.abs), (1, np.real)):
        scatter = np.std([part(one.parameters[n]) for one in results], 0, ddof=1)[inside]
        assert 0.7 < np.median(found.deviation[n][inside] / scatter) < 1.4
        assert np.median(results[0].deviation[n][inside] / scatter) > 1.5


def masked(points: np.ndarray) -> tuple[DataTerm, Callable[[np.ndarray], np.ndarray]]:
    mask = np.zeros((5, SIZE, 1), bool)
    mask[:, ::2] = mask[:, 8:16] = True
    term = data_term.cartesian(np.zeros((5, *MAPS.shape), np.complex64), MAPS, mask)
    return term, lambda x: fftc(MAPS * x[:, None], (-2, -1)) * mask[:, None]


def weighted(points: np.ndarray) -> tuple[DataTerm, Callable[[np.ndarray], np.ndarray]]:
    term = data_term.noncartesian(np.zeros((5, 3, points.shape[1]), np.complex64), points, MAPS, density(points))
    return term, lambda x: encoded(points, x) * density(points)[:, None]


def images(points: np.ndarray) -> tuple[DataTerm, Callable[[np.ndarray], np.ndarray]]:
    weights = np.linspace(0.1, 3, 5 * SIZE**2, dtype=np.float32).reshape(5, SIZE, SIZE)
    return data_term.from_images(np.zeros((5, SIZE, SIZE), np.complex64), weights), lambda x: np.sqrt(weights) * x


def operator(points: np.ndarray) -> tuple[DataTerm, Callable[[np.ndarray], np.ndarray]]:
    encoding = Frames([Encoding(MAPS)] * 5)
    return data_term.from_operator(encoding, np.zeros((5, *MAPS.shape), np.complex64)), lambda x: fftc(MAPS * x[:, None], (-2, -1))


@pytest.mark.parametrize("make", [masked, weighted, images, operator])
def test_drawn_noise_is_what_the_encoding_makes_of_white_noise(make: Callable[..., tuple[DataTerm, Callable[..., np.ndarray]]]) -> None:
    """Its variance along any x is |W E x|^2. And the residual of noise alone has the energy that `samples` promises."""
    term, encode = make(spokes(5))
    assert term.noise is not None
    x = random_complex((5, SIZE, SIZE), 3, "complex64")
    random = np.random.default_rng(0)
    products = [np.vdot(x, term.noise(random)) for _ in range(DRAWS)]
    assert np.mean(np.abs(products) ** 2) == pytest.approx(np.linalg.norm(encode(x)) ** 2, rel=4 / np.sqrt(DRAWS))
    assert np.abs(np.mean(products)) < 4 / np.sqrt(DRAWS) * np.linalg.norm(encode(x))


def test_real_images_have_noise_in_one_part_and_count_half() -> None:
    data = np.random.default_rng(4).standard_normal((5, 1, SIZE, SIZE)).astype(np.float32)
    for term in (data_term.from_images(data), slices.images(data.astype(np.complex64)).whole()):
        assert term.noise is not None
        drawn = term.noise(np.random.default_rng(0))
        assert not drawn.imag.any()
        assert np.sum(np.abs(drawn) ** 2) == pytest.approx(term.samples, rel=0.1)
        # Of noise of variance 1 in the real part, the complex noise that it is a part of has 2.
        assert term.energy / term.samples == pytest.approx(2, rel=0.1)


def test_weights_count_as_samples() -> None:
    """Twice the weight, twice the energy, the same noise."""
    points = spokes(13)
    kspace = add_noise(np.zeros((5, 3, points.shape[1])), 1).astype(np.complex64)
    for factor in (1, 2):
        term = data_term.noncartesian(kspace, points, MAPS, factor * density(points))
        assert term.energy / term.samples == pytest.approx(2, rel=0.05)


def test_stacks_draw_the_noise_of_each_slice() -> None:
    one, other = (data_term.from_images(np.zeros((5, 8, 8), np.complex64), np.full((1, 1, 1), w)) for w in (1.0, 4.0))
    both = measured.stacked([one, other])
    assert both.noise is not None
    drawn = both.noise(np.random.default_rng(0))
    assert drawn.shape == (5, 2, 8, 8)
    np.testing.assert_allclose(np.std(drawn, (0, 2, 3)), [1, 2], rtol=0.2)
    whole = slices.images(np.ones((5, 2, 8, 8), np.complex64)).whole()
    assert whole.noise is not None
    assert whole.noise(np.random.default_rng(0)).shape == (5, 2, 8, 8)


def test_scatter_is_pooled_relative_to_the_bound() -> None:
    """Replicas whose noise is a fifth of the bound's, which differs from half to half; what all share does not count."""
    random, half = np.random.default_rng(0), np.arange(32) < 16
    scale = np.where(half, 1.0, 10.0)
    deviation = np.stack([scale * np.ones((32, 32)), 3 * np.ones((32, 32))])
    bound = deviation[:, None] * deviation[None] * np.eye(2)[:, :, None, None]
    parameters = np.stack([100 * np.exp(1j) * np.ones((32, 32)), 50 * np.ones((32, 32), complex)])

    def drawn(size: float) -> np.ndarray:
        shift = random.standard_normal((6, 2, 32, 32)) * deviation * size
        shift[:, 1] = shift[:, 0] * deviation[1] / deviation[0]  # fully correlated
        shift = shift.astype(complex)
        shift[:, 0] *= np.exp(1j)
        return parameters + 7 + shift

    found = scattered(parameters, drawn(0.1), drawn(0.4), bound, [0])
    sizes = np.sqrt(np.einsum("uuyx->uyx", found)) / deviation
    np.testing.assert_allclose(np.median(sizes, (1, 2)), 0.2, rtol=0.05)
    assert np.abs(np.log(sizes / 0.2)).max() < 0.6
    assert np.median(found[0, 1] / (deviation[0] * deviation[1])) == pytest.approx(0.04, rel=0.1)
    bound[1, 1, 3, 3] = np.inf
    unknown = np.isinf(scattered(parameters, drawn(0.1), drawn(0.4), bound, [0]))
    assert unknown[1, 1, 3, 3]
    assert unknown.sum() == 1
    with pytest.raises(ValueError, match="1 replicas say nothing"):
        scattered(parameters, drawn(1)[:1], drawn(1)[:1], bound)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("silent", [0.0, 1e-30, 1e12, 1e20])
def test_voxels_without_signal_do_not_spoil_their_neighbours(silent: float) -> None:
    """An amplitude of nothing, or of whatever, with unknowns that nothing tells."""
    random = np.random.default_rng(0)
    found = np.ones((2, 9, 9), np.complex64)
    draws = [found + 0.1 * random.standard_normal((3, *found.shape)).astype(np.complex64) for _ in range(2)]
    bound = np.tile(np.float32(0.01) * np.eye(2, dtype=np.float32)[:, :, None, None], (1, 1, 9, 9))
    expected = scattered(found, *draws, bound, [0])
    for array in (found, *draws):
        array[..., 4, 4] = silent
    bound[:, :, 4, 4] = np.inf if silent > 1 else 0
    result = scattered(found, *draws, bound, [0])
    away = np.ones((9, 9), bool)
    away[3:6, 3:6] = False
    assert result.dtype == np.float32
    assert np.isfinite(result[..., away]).all()
    np.testing.assert_allclose(result[0, 0, away], expected[0, 0, away], rtol=0.5)


def test_replicas_cost_a_third() -> None:
    assert iterations(3600, 3) == 200
    assert iterations(100, 3) == 40
    with pytest.raises(ValueError, match="replicas must be 0 or at least 2"):
        Settings(replicas=1)
