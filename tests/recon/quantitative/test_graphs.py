"""Graphs that one fit makes serve the next only where they are the same function."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from recon.quantitative import data_term
from recon.quantitative.catalogue import model_from
from recon.quantitative.measured import stacked
from recon.quantitative.model import SignalModel

VFA: dict[str, Any] = {"TR": 12.0, "flip_angle": [2.0, 6.0, 14.0]}


def vfa(**changes: Any) -> SignalModel:
    return model_from("VFA", VFA | changes)


def test_models_of_the_same_parameters_are_alike_whatever_their_fields() -> None:
    assert vfa().structure() == vfa().structure()
    with_map = model_from("VFA", VFA, {"fa_corr": np.full((4, 4), 1.1)})
    other_map = model_from("VFA", VFA, {"fa_corr": np.full((4, 4), 0.9)})
    assert with_map.structure() == other_map.structure()
    assert hash(with_map.structure()) == hash(other_map.structure())


@pytest.mark.parametrize(
    "other",
    [
        lambda: vfa(TR=13.0),
        lambda: vfa(flip_angle=[2.0, 6.0, 15.0]),
        lambda: model_from("VFA", VFA, magnitudes=True),
        lambda: model_from("ExpDecay", {"TE": [2.0, 6.0, 14.0]}),
    ],
)
def test_other_models_are_not(other: Any) -> None:
    assert vfa().structure() != other().structure()


def test_bounds_count() -> None:
    from dataclasses import replace

    narrow = vfa()
    narrow.unknowns = (narrow.unknowns[0], replace(narrow.unknowns[1], lower=100.0))
    assert narrow.structure() != vfa().structure()


def test_formulas_and_magnitudes_are_compared_by_what_they_say() -> None:
    from gadgets.quantitative_fit import model_path

    parameters = {"TI": [50.0, 400.0, 1100.0, 2500.0]}
    pairs = [model_from(model_path("ir.yaml"), parameters) for _ in range(2)]
    assert pairs[0].structure() == pairs[1].structure()
    pairs = [model_from("IR", parameters, magnitudes=True) for _ in range(2)]
    assert pairs[0].structure() == pairs[1].structure()


def test_data_of_the_same_kind_share_their_graph_and_not_their_numbers() -> None:
    random = np.random.default_rng(2)

    def noise(*shape: int) -> np.ndarray:
        values: np.ndarray = random.standard_normal(shape) + 1j * random.standard_normal(shape)
        return values

    terms = []
    for _ in range(2):
        points = random.uniform(-np.pi, np.pi, (2, 300, 2))
        terms.append(data_term.noncartesian(noise(2, 3, 300), points, noise(3, 8, 8), toeplitz=False))
    grams = [data_term.as_shared(term.gram) for term in terms]
    assert grams[0].key == grams[1].key is not None
    x = tf.constant(noise(2, 8, 8))
    for one, other in ((terms[0], grams[1]), (terms[1], grams[0])):
        own = data_term.as_shared(one.gram).operands
        np.testing.assert_array_equal(other.apply(x, *own), one.gram(x))
    assert np.abs((terms[0].gram(x) - terms[1].gram(x)).numpy()).max() > 0.1
    both = stacked(terms)
    images = tf.stack([x, 2 * x], 1)
    np.testing.assert_allclose(both.gram(images)[:, 1], 2 * terms[1].gram(x))
    assert data_term.as_shared(both.gram).key is not None
