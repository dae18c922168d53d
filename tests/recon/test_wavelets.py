"""Wavelet transforms against PyWavelets, against convolutions written out, and against themselves backwards."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import pywt
from hypothesis import given, settings
from hypothesis import strategies as st

from recon.operators.wavelet import Wavelet
from recon.wavelets import dwt, idwt, max_level, wavedec, waverec
from tests.recon.conftest import random_complex, relative_error

WAVELETS = ("haar", "db2", "db4", "sym4", "coif1", "bior2.2", "bior4.4")


@pytest.mark.parametrize("wavelet", ["haar", "db4", "bior4.4"])
@pytest.mark.parametrize("mode", pywt.Modes.modes)
@pytest.mark.filterwarnings("ignore:Level value:UserWarning")
@pytest.mark.parametrize(("shape", "axes"), [((3, 24, 21), (-2, -1)), ((17, 12, 2), (0,)), ((9, 10, 11), None)])
def test_coefficients_equal_those_of_pywavelets(wavelet: str, mode: str, shape: Any, axes: Any) -> None:
    x = random_complex(shape, 1, "complex128")
    expected, found = pywt.wavedecn(x, wavelet, mode, 2, axes), wavedec(x, wavelet, mode, 2, axes)
    assert relative_error(expected[0], found[0]) < 1e-12
    for theirs, ours in zip(expected[1:], found[1:], strict=True):
        assert theirs.keys() == ours.keys()
        for key, value in theirs.items():
            assert relative_error(value, ours[key]) < 1e-12
    chosen = range(len(shape)) if axes is None else axes
    assert relative_error(x, waverec(found, wavelet, mode, axes, [shape[axis] for axis in chosen])) < 1e-10  # as good as the filters


def test_filters_and_downsampling_are_those_of_daubechies() -> None:
    root = math.sqrt(3)
    low = np.array([1 + root, 3 + root, 3 - root, 1 - root]) / (4 * math.sqrt(2))
    high = np.array([1, -1, 1, -1]) * low[::-1]
    x = np.random.default_rng(1).standard_normal(19)
    found = dwt(x, "db2", "zero")
    assert np.allclose(found["a"], np.convolve(x, low[::-1])[1::2], atol=1e-12)
    # The sign of a high-pass filter is a convention.
    detail = np.convolve(x, high[::-1])[1::2]
    assert min(np.abs(found["d"] - detail).max(), np.abs(found["d"] + detail).max()) < 1e-12


def test_details_of_a_ramp_vanish_for_two_vanishing_moments() -> None:
    ramp = np.add.outer(np.arange(24.0), 2 * np.arange(24.0))
    subbands = dwt(ramp, "db2", "reflect")
    assert all(np.abs(subbands[key][3:-3, 3:-3]).max() < 1e-10 for key in ("ad", "da", "dd"))
    assert np.abs(dwt(ramp, "haar")["ad"]).min() > 0.5


@pytest.mark.parametrize("wavelet", ["haar", "db2", "db4", "sym4"])
def test_oracle(oracle: Any, wavelet: str) -> None:
    coefficients = wavedec(np.abs(oracle["phantom64"]), wavelet, "symmetric", 2)
    assert relative_error(oracle[f"wavedec_{wavelet}_approx"], coefficients[0]) < 1e-6
    assert relative_error(oracle[f"wavedec_{wavelet}_detail_coarsest_ad"], coefficients[1]["ad"]) < 1e-5
    assert coefficients[0].dtype == np.float32


@settings(deadline=None, max_examples=40)
@given(
    shape=st.lists(st.integers(5, 40), min_size=1, max_size=3),
    wavelet=st.sampled_from(WAVELETS),
    mode=st.sampled_from(pywt.Modes.modes),
    level=st.integers(0, 3),
)
def test_any_image_comes_back(shape: list[int], wavelet: str, mode: str, level: int) -> None:
    operator = Wavelet(shape, wavelet, mode, level)
    x = random_complex((2, *shape), 1, "complex128")
    assert relative_error(x, operator.inverse(operator(x))) < 1e-9


@pytest.mark.parametrize(
    ("arguments", "orthonormal"),
    [
        (((32, 16), "db4", "periodization", 2), True),
        (((32, 16), "haar", "symmetric", 2), True),
        (((32, 18), "haar", "periodization", 2), False),
        (((32, 16), "db4", "symmetric", 2), False),
        (((32, 16), "bior4.4", "periodization", 2), False),
        (((16, 16), "db2", "periodization", None), True),
        (((15,), "db2", "periodization", 0), True),
    ],
)
def test_orthonormal_says_whether_the_adjoint_is_the_inverse(arguments: Any, orthonormal: bool) -> None:
    operator = Wavelet(*arguments)
    x = random_complex(operator.image_shape, 1, "complex128")
    assert operator.orthonormal == orthonormal
    assert (relative_error(x, operator.adjoint(operator(x))) < 1e-10) == orthonormal


def test_coefficients_can_be_packed_and_unpacked() -> None:
    operator = Wavelet((20, 17), "db2", "symmetric", 2)
    x = random_complex((3, 20, 17), 1)
    coefficients = wavedec(x, "db2", "symmetric", 2, (-2, -1))
    packed = operator(x)
    assert packed.shape == (3, operator.count)
    assert np.array_equal(packed[:, : operator.approximations], coefficients[0].reshape(3, -1))
    back = operator.unpack(packed)
    assert np.array_equal(back[2]["da"], coefficients[2]["da"])
    assert np.array_equal(operator.pack(back), packed)


@pytest.mark.parametrize("xla", [False, True])
def test_a_graph_of_any_batch_transforms_there_and_back(tf: Any, xla: bool) -> None:
    """TensorFlow MRI's `waverec` cannot do this in a graph."""

    @tf.function(jit_compile=xla, input_signature=[tf.TensorSpec([None, 24, 21], tf.complex64)])
    def there_and_back(x: Any) -> Any:
        coefficients = wavedec(x, "sym4", "symmetric", 2, (-2, -1))
        return coefficients[1]["ad"], waverec(coefficients, "sym4", "symmetric", (-2, -1), (24, 21))

    x = random_complex((2, 24, 21), 1)
    detail, back = there_and_back(tf.constant(x))
    assert relative_error(pywt.wavedecn(x, "sym4", "symmetric", 2, (-2, -1))[1]["ad"], detail.numpy()) < 1e-5
    assert relative_error(x, back.numpy()) < 1e-5


def test_even_sizes_need_no_shape_and_odd_ones_get_one_more() -> None:
    x = np.random.default_rng(1).standard_normal((2, 9))
    for mode in ("symmetric", "periodization"):
        back = idwt(dwt(x, "db2", mode, [1]), "db2", mode, [1])
        assert back.shape == (2, 10)
        assert np.allclose(back[:, :9], x)
        assert waverec(wavedec(x[:, :8], "db2", mode, 2, [1]), "db2", mode, [1]).shape == (2, 8)


def test_integers_become_floating_point_numbers() -> None:
    assert np.allclose(dwt(np.arange(6), "haar")["d"], -math.sqrt(0.5))


def test_max_level_is_that_of_the_filter() -> None:
    assert [max_level(64, wavelet) for wavelet in ("haar", "db2", "db4")] == [6, 4, 3]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: dwt(x, "nonsense"), "no discrete wavelet is named 'nonsense'"),
        (lambda x: dwt(x, "haar", "nonsense"), "mode must be one of"),
        (lambda x: dwt(x, "haar", axes=[0, 0]), "each only once"),
        (lambda x: dwt(x, "haar", axes=[0, -2]), "each only once"),
        (lambda x: dwt(x, "haar", axes=[2]), "do not exist"),
        (lambda x: wavedec(x, "haar", level=-1), "level must be 0 or more"),
        (lambda x: wavedec(x, "haar", "reflect", 5), "take fewer levels"),
        (lambda x: idwt({"aa": x, "ad": x, "dd": x}, "haar"), r"\['da'\] are missing"),
        (lambda x: idwt(dwt(x, "haar"), "haar", shape=(8, 13)), "do not fit 13 samples"),
        (lambda x: Wavelet((8, 8), "haar")(x), "expects the last axes"),
        (lambda x: Wavelet((8, 9), "haar").H(x), "expects the last axes"),
        (lambda x: Wavelet((), "haar"), "one or more positive"),
    ],
)
def test_errors_name_the_argument(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(np.zeros((8, 9)))


def test_unknown_sizes_in_a_graph_are_refused(tf: Any) -> None:
    with pytest.raises(ValueError, match="must be known"):
        tf.function(lambda x: dwt(x, "haar"), input_signature=[tf.TensorSpec([None, 8], tf.float32)])(tf.zeros([8, 8]))


@pytest.mark.parametrize("shape", [(16, 24), (3, 16, 32)])
@pytest.mark.parametrize("wavelet", ["haar", "db2"])
def test_nested_coefficients_are_the_same_in_another_order(shape: tuple[int, ...], wavelet: str) -> None:
    x = random_complex(shape, 1, "complex128")
    operator = Wavelet(shape[-2:], wavelet, level=2)
    nested = operator.nested(x)
    expected = operator(x).reshape(*shape[:-2], -1)
    found = nested.reshape(*shape[:-2], -1)
    assert np.allclose(np.sort(np.abs(found), -1), np.sort(np.abs(expected), -1), atol=1e-12)
    assert np.allclose(nested[..., : shape[-2] // 4, : shape[-1] // 4].ravel(), expected[..., : operator.approximations].ravel())
    assert relative_error(x, operator.nested(nested, inverse=True)) < 1e-12
