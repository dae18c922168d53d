"""Windows against their formulas, written out sample by sample, and against what they are for."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recon.filters import apply_windows, partial_fourier_window, reference_window, taper, window

KINDS = ("Gaussian", "Hanning", "TaperedHanning", "None")


def expected(n, kind, sigma, width):
    """The window before scaling, from the distance of each sample to the centre."""
    values = []
    half = (n - 1) // 2
    for i in range(n):
        distance = abs(i - n // 2)
        if kind == "None":
            values.append(1.0)
        elif distance > half:
            values.append(0.0)
        elif kind == "Gaussian":
            values.append(math.exp(-0.5 * (sigma * distance / half) ** 2))
        elif kind == "Hanning":
            values.append(0.5 * (1 + math.cos(math.pi * distance / (half + 1))))
        else:
            inside = half - distance
            values.append(0.5 * (1 - math.cos(2 * math.pi * (inside + 1) / (2 * width + 1))) if inside < width else 1.0)
    return np.array(values)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [9, 64, 127])
def test_window_follows_its_formula(kind, n):
    width = 3
    values = expected(n, kind, 1.7, width)
    np.testing.assert_allclose(window(n, kind, sigma=1.7, width=width), values / np.sqrt(np.mean(values**2)), rtol=1e-12, atol=1e-12)


@given(n=st.integers(3, 200), kind=st.sampled_from(KINDS[:3]), sigma=st.floats(0, 4), width=st.integers(0, 300))
def test_window_is_symmetric_and_keeps_the_noise(n, kind, sigma, width):
    values = window(n, kind, sigma=sigma, width=width)
    center = n // 2
    half = (n - 1) // 2
    np.testing.assert_allclose(values[center - half : center + half + 1], values[center - half : center + half + 1][::-1], atol=1e-12)
    assert np.mean(values**2) == pytest.approx(1)


def test_window_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="Gaussian, Hanning"):
        window(8, "Hamming")
    with pytest.raises(ValueError, match="at least 1"):
        window(0)


@given(n=st.integers(16, 200), data=st.data())
def test_partial_fourier_window_tapers_inner_borders_only(n, data):
    start = data.draw(st.integers(0, n // 4))
    end = data.draw(st.integers(3 * n // 4, n - 1))
    width = data.draw(st.integers(1, n // 4))
    values = partial_fourier_window(n, start, end, width=width)
    assert not values[:start].any()
    assert not values[end + 1 :].any()
    assert np.sum(values**2) == pytest.approx(end - start + 1)
    middle = values[n // 2]
    ramp = 0.5 * (1 - np.cos(2 * np.pi * np.arange(1, width + 1) / (2 * width + 1)))
    whole = start == 0 and end == n - 1
    np.testing.assert_allclose(values[start : start + width] / middle, ramp if start or whole else 1, atol=1e-12)
    np.testing.assert_allclose(values[end - width + 1 : end + 1] / middle, ramp[::-1] if end < n - 1 or whole else 1, atol=1e-12)


@pytest.mark.parametrize(("start", "end"), [(20, 63), (0, 44), (20, 64), (0, 43)])
def test_density_compensation_counts_unpaired_samples_twice(start, end):
    n = 64 if end < 64 else 65
    values = partial_fourier_window(n, start, end, width=6, density_compensation=True)
    values = values / values[n // 2]
    center = n // 2
    for k in range(1, n // 2):
        sum_of_pair = (values[center + k] if center + k < n else 0) + (values[center - k] if center - k >= 0 else 0)
        # The ramp and its mirror image, shifted by one, do not add up to 1 exactly: less than 1 / width remains.
        assert sum_of_pair == pytest.approx(2, abs=1 / 6)


def test_taper_lies_between_zero_and_one():
    np.testing.assert_allclose(taper(2), [0.5 * (1 - math.cos(2 * math.pi / 5)), 0.5 * (1 - math.cos(4 * math.pi / 5))])


@given(n=st.integers(8, 200), data=st.data())
def test_reference_window_does_not_shift_the_phase(n, data):
    start = data.draw(st.integers(0, n // 2 - 1))
    end = data.draw(st.integers(n // 2 + 1, n - 1))
    values = reference_window(n, start, end)
    assert not values[:start].any()
    assert not values[end + 1 :].any()
    spectrum = np.fft.fft(np.fft.ifftshift(values))
    np.testing.assert_allclose(spectrum.imag, 0, atol=1e-9)
    assert np.argmax(values) == n // 2


def test_reference_window_needs_the_centre():
    with pytest.raises(ValueError, match="centre 8"):
        reference_window(16, 10, 15)
    with pytest.raises(ValueError, match="not inside"):
        reference_window(16, 3, 16)


def test_windows_are_applied_along_their_axes():
    rng = np.random.default_rng(0)
    kspace = rng.normal(size=(2, 3, 4, 5)).astype(np.complex64)
    along_y, along_x = rng.normal(size=4), rng.normal(size=5)
    result = apply_windows(kspace, [None, along_y, along_x])
    np.testing.assert_allclose(result, kspace * np.outer(along_y, along_x), rtol=1e-5)
    assert result.dtype == np.complex64
