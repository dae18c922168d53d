"""PCACoil and CoilReduction."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gadgets.base import Context, GadgetError, ParameterError
from gadgets.coils import CoilReduction, PCACoil
from gadgets.layout import Flag
from tests.gadgets.readouts import make_header, noise_like, readout, through

RNG = np.random.default_rng(3)
MIXING = noise_like(RNG, 5, 5)


def scan(readouts: int, *, channels: int = 5, samples: int = 24, slices: int = 1):
    """Readouts slice after slice, the last of each flagged; the scan counter numbers them."""
    items = []
    for number in range(readouts * slices):
        last = [Flag.LAST_IN_SLICE] if number % readouts == readouts - 1 else []
        data = MIXING[:channels, :channels] @ noise_like(RNG, channels, samples)
        items.append(readout(data, last, slice=number // readouts, fields={"scan_counter": number}))
    return items


def test_components_are_uncorrelated_and_sorted():
    out = through(PCACoil(), scan(12))
    data = np.concatenate([one.data for one in out], axis=1).astype(np.complex128)
    data -= data.mean(axis=1, keepdims=True)
    covariance = data @ data.conj().T
    power = covariance.diagonal().real
    assert (np.diff(power) < 0).all()
    assert np.abs(covariance - np.diag(power)).max() < 1e-4 * power[0]


def test_rotation_keeps_energy_and_order():
    items = scan(30, slices=2)
    out = through(PCACoil(), items)
    assert [int(one.header["scan_counter"]) for one in out] == list(range(60))
    for before, after in zip(items, out, strict=True):
        np.testing.assert_allclose(np.sum(np.abs(after.data) ** 2, 0), np.sum(np.abs(before.data) ** 2, 0), rtol=1e-4)


def test_components_come_from_the_samples_around_the_echo():
    items = scan(20, samples=64)
    for item in items:
        item.data[:, :20] = 1e3 * item.data[0, :20]  # strong, correlated, outside the 16 samples around the echo
    (matrix,) = {_matrix(before.data, after.data).tobytes() for before, after in zip(items[:1], through(PCACoil(), items)[:1], strict=True)}
    central = np.concatenate([item.data[:, 24:40] for item in items], axis=1).astype(np.complex128)
    central -= central.mean(axis=1, keepdims=True)
    mixed = np.frombuffer(matrix, np.complex128).reshape(5, 5) @ central
    covariance = mixed @ mixed.conj().T
    assert np.abs(covariance - np.diag(covariance.diagonal())).max() < 1e-3 * np.abs(covariance).max()


def _matrix(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return after.astype(np.complex128) @ np.linalg.pinv(before.astype(np.complex128))


def test_rotation_starts_after_so_many_readouts_and_stays():
    items = scan(40)
    items[-1].header["flags"] = 0
    out = through(PCACoil(readouts="20"), items)
    np.testing.assert_allclose(_matrix(items[0].data, out[0].data), _matrix(items[39].data, out[39].data), atol=1e-4)
    first = through(PCACoil(readouts="20"), items[:20])
    np.testing.assert_array_equal(first[3].data, out[3].data)


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), max_size=30), st.integers(1, 6))
def test_no_readout_is_lost(order, readouts):
    items = [
        readout(np.full((2, 4), n + 1), [Flag.LAST_IN_SLICE] if last else [], slice=number, fields={"scan_counter": n})
        for n, (number, last) in enumerate(order)
    ]
    out = through(PCACoil(readouts=readouts), items)
    assert sorted(int(one.header["scan_counter"]) for one in out) == list(range(len(items)))
    for wanted in range(3):
        counters = [int(one.header["scan_counter"]) for one in out if one.header["idx"]["slice"] == wanted]
        assert counters == sorted(counters)


def test_uncombined_channels_come_first_unchanged():
    items = scan(20)
    header = make_header(coils=["a", "b", "c", "d", "e"])
    out = through(PCACoil(uncombined_channels_by_name="d, b"), items, header)
    for before, after in zip(items, out, strict=True):
        np.testing.assert_array_equal(after.data[:2], before.data[[3, 1]])
    np.testing.assert_allclose(_matrix(items[0].data, out[0].data)[2:, [1, 3]], 0, atol=1e-4)


def test_noise_is_dropped_and_counted():
    context = Context()
    assert through(PCACoil(), [readout(noise_like(RNG, 2, 8), [Flag.IS_NOISE_MEASUREMENT])], context) == []
    assert context.counts == {"noise readouts ignored": 1}


@pytest.mark.parametrize(
    ("properties", "kept"),
    [
        ({"coils_out": "2"}, [0, 1]),
        ({"coils_out": "9"}, [0, 1, 2, 3]),
        ({"coil_mask": "1 0 1"}, [0, 2]),
        ({"coil_mask": "0101"}, [1, 3]),
        ({"coil_mask": "0 0 0 1 1 1"}, [3]),
        ({}, [0, 1, 2, 3]),
    ],
)
def test_coil_reduction(properties, kept):
    data = noise_like(RNG, 4, 6)
    (out,) = through(CoilReduction(**properties), [readout(data)])
    np.testing.assert_array_equal(out.data, data[kept])
    assert out.header["active_channels"] == len(kept)


def test_coil_reduction_says_what_is_wrong():
    with pytest.raises(ParameterError, match="expected 0 and 1"):
        CoilReduction(coil_mask="1 2")
    with pytest.raises(ParameterError, match="keeps no channel"):
        CoilReduction(coil_mask="000")
    with pytest.raises(GadgetError, match="none of the 2 channels"):
        through(CoilReduction(coil_mask="0001"), [readout(noise_like(RNG, 2, 4))])
