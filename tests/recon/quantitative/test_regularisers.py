"""Regularisers of maps: adjoints, values against formulas, and the proximal maps of their duals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.integrate import quad

from recon.quantitative import regularisers
from recon.quantitative.model import ModelError
from recon.quantitative.settings import Settings

SHAPE, VOLUME = (16, 24), (4, 8, 12)
KINDS = ("TV", "TGV", "H1", "wavelet", "ICTV", "ICTGV")


def build(kind: str, shape: tuple[int, ...] = SHAPE, complex_unknowns: int = 3, **settings: Any) -> regularisers.Regulariser:
    return regularisers.build(Settings.of(kind, wavelet="haar", **settings), shape, [False] * complex_unknowns)  # type: ignore[arg-type]


def random(shape: Any, seed: int, tf: Any) -> Any:
    return tf.constant(np.random.default_rng(seed).standard_normal(tuple(shape)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [SHAPE, VOLUME], ids=["slice", "volume"])
def test_adjoint(tf: Any, kind: str, shape: tuple[int, ...]) -> None:
    regulariser = build(kind, shape, dz=0.7)
    maps = random((6, *shape), 0, tf)
    x = (maps, *(random(field.shape, 1 + n, tf) for n, field in enumerate(regulariser.fields(maps))))
    forward = regulariser.forward(x)
    y = tuple(random(part.shape, 9 + n, tf) for n, part in enumerate(forward))
    back = regulariser.adjoint(y)
    left = sum(float(tf.reduce_sum(a * b)) for a, b in zip(forward, y, strict=True))
    right = sum(float(tf.reduce_sum(a * b)) for a, b in zip(x, back, strict=True))
    assert left == pytest.approx(right, rel=1e-12)
    assert len(regulariser.radii) == len(forward)


@pytest.mark.parametrize("kind", KINDS)
def test_dual_step_is_moreaus(tf: Any, kind: str) -> None:
    """The dual point belongs to the subdifferential at what Moreau's identity leaves: value + conjugate = inner product."""
    regulariser = build(kind)
    maps = random((6, *SHAPE), 0, tf)
    fields = tuple(random(field.shape, 3, tf) for field in regulariser.fields(maps))
    y = tuple(2 * part for part in regulariser.forward((maps, *fields)))
    weight, step = tf.constant(0.8, tf.float64), 0.5
    dual = regulariser.dual(y, weight, tf.constant(step, tf.float64))
    rest = tuple((a - b) / step for a, b in zip(y, dual, strict=True))
    inner = sum(float(tf.reduce_sum(a * b)) for a, b in zip(dual, rest, strict=True))
    value = float(weight * regulariser.value(rest)) + float(regulariser.conjugate(dual, weight))
    assert value == pytest.approx(inner, rel=1e-9)


def test_tgv_of_ramps_is_nothing_beside_their_tv(tf: Any) -> None:
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    maps = tf.constant(np.stack([0.3 * y + 0.1 * x, 2 - 0.2 * y, 0.05 * x]))
    tgv = regularisers.build(Settings("TGV"), SHAPE, [True] * 3)
    # The field that makes it cheap is the ramp's slope everywhere, also where forward differences end.
    slope = np.zeros((3, 2, *SHAPE))
    slope[0, 0], slope[0, 1], slope[1, 0], slope[2, 1] = 0.3, 0.1, -0.2, 0.05
    first, second = tgv.forward((maps, tf.constant(slope)))
    inside = (..., slice(-1), slice(-1))
    total = float(tgv.value((first[inside], second)))
    tv = float(build("TV").value((regularisers.TotalVariation(2).forward((maps,))[0],)))
    assert total <= 1e-6 * tv


def test_joint_norms_prefer_edges_at_one_place(tf: Any) -> None:
    edge = np.zeros((2, *SHAPE))
    edge[0, :, 10:] = edge[1, :, 10:] = 1
    apart = edge.copy()
    apart[1] = np.roll(apart[1], 5, 1)
    apart[1, :, :6] = 0
    tv = build("TV")
    together = float(tv.value(tv.forward((tf.constant(edge),))))
    assert together == pytest.approx(np.sqrt(2) * SHAPE[0])
    assert float(tv.value(tv.forward((tf.constant(apart),)))) > 1.3 * together


@pytest.mark.parametrize("ratio", [4.0, 0.5, 1.0])
def test_weights_of_space_and_time(ratio: float) -> None:
    space, time = regularisers.balance(ratio)
    assert time / space == pytest.approx(ratio)
    mean = quad(lambda angle: 1 / np.hypot(space * np.cos(angle), time * np.sin(angle)), 0, np.pi / 2)[0] * 2 / np.pi
    assert mean == pytest.approx(1, rel=1e-6)


def test_infimal_convolution_uses_both_weightings(tf: Any) -> None:
    """PyQMRI's ICTV applies the first weighting to both parts: then what only changes in time would cost the same in each."""
    settings = Settings("ICTV", t1=4.0, t2=0.5, s=0.4)
    regulariser = regularisers.build(settings, SHAPE, [True] * 5)
    flicker = np.zeros((5, *SHAPE))
    flicker[::2] = 1
    maps = tf.constant(flicker)
    costs = []
    for other in (tf.zeros_like(maps), maps):
        costs.append(float(regulariser.value(regulariser.forward((maps, other)))))
    jumps = 4 * np.prod(SHAPE)
    first, second = regularisers.balance(4.0)[1], regularisers.balance(0.5)[1]
    np.testing.assert_allclose(costs, [jumps * first * 1.0, jumps * second * 1.5], rtol=1e-12)
    # And both dual variables count in what the line search compares.
    assert len(regulariser.forward((maps, maps))) == 2


def test_series_are_differenced_along_frames_not_along_real_and_imaginary_parts(tf: Any) -> None:
    regulariser = regularisers.build(Settings("ICTV"), SHAPE, [False] * 4)
    constant = np.zeros((8, *SHAPE))
    constant[0::2], constant[1::2] = 3.0, -1.0
    maps = tf.constant(constant)
    assert float(regulariser.value(regulariser.forward((maps, tf.zeros_like(maps))))) == 0


def test_slices_further_apart_count_less(tf: Any) -> None:
    steps = np.zeros((1, *VOLUME))
    steps[:, 2:] = 1
    costs = [
        float(tv.value(tv.forward((tf.constant(steps),))))
        for tv in (regularisers.build(Settings("TV", dz=dz), VOLUME, [True]) for dz in (1.0, 0.25))
    ]
    assert costs[1] == pytest.approx(0.25 * costs[0])


def test_unknowns_that_are_no_series() -> None:
    with pytest.raises(ModelError, match="all unknowns must be of one kind"):
        regularisers.build(Settings("ICTGV"), SHAPE, [False, True])


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"reg_type": "L7"}, "reg_type"), ({"max_gn_it": 0}, "max_gn_it"), ({"s": 1.0}, "s must lie"), ({"gamma": -1}, "gamma")],
)
def test_settings_out_of_range(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**settings)
