"""Splitting, extraction, scaling and integers, against a pixel-by-pixel telling of the rules."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gadgets.base import Context, GadgetError
from gadgets.images import (
    AutoScale,
    ComplexToFloat,
    Extract,
    FloatToInt,
    FloatToShort,
    FloatToUInt,
    FloatToUShort,
    ImageArraySplit,
    ImageFinish,
)
from gadgets.items import Image, ImageArray, Text
from gadgets.layout import IMAGE_HEADER, ImageType
from tests.gadgets.readouts import noise_like, readout, through

RNG = np.random.default_rng(5)
PIXELS = noise_like(RNG, 1, 1, 4, 5)


def image(data: np.ndarray, kind: ImageType | int | None = None, meta=None, series: int = 1) -> Image:
    made = Image(None, data, meta)
    made.header["image_series_index"] = series
    if kind is not None:
        made.header["image_type"] = kind
    return made


def test_arrays_are_split_with_n_fastest():
    data = noise_like(RNG, 2, 3, 4, 1, 1, 5, 6)
    headers = np.zeros((2, 3, 4), IMAGE_HEADER)
    headers["image_index"] = np.arange(24).reshape(2, 3, 4)
    out = through(ImageArraySplit(), [ImageArray(data, headers, [{"n": str(n)} for n in range(24)])])
    assert [int(one.header["image_index"]) for one in out] == list(range(24))
    assert [one.meta["n"] for one in out] == [str(n) for n in range(24)]
    np.testing.assert_array_equal(out[17].data, data[1, 1, 1])
    assert out[17].header["matrix_size"].tolist() == [6, 5, 1]
    out[0].header["image_index"] = 99
    assert headers["image_index"][0, 0, 0] == 0


def test_extract_order_series_and_values():
    source = image(PIXELS, series=2, meta={"a": "b"})
    gadget = Extract(extract_real="true", extract_imag="true", extract_phase="true", real_imag_offset="7")
    out = through(gadget, [source])
    assert [int(one.header["image_type"]) for one in out] == [1, 2, 3, 4]
    assert [int(one.header["image_series_index"]) for one in out] == [2, 3002, 1002, 2002]
    expected = [np.abs(PIXELS), np.angle(PIXELS) + np.pi, PIXELS.real + 7, PIXELS.imag + 7]
    for one, pixels in zip(out, expected, strict=True):
        assert one.data.dtype == np.float32
        np.testing.assert_allclose(one.data, pixels, rtol=1e-5, atol=1e-6)
        assert one.meta["a"] == "b"
    assert [one.meta.get("RescaleIntercept") for one in out] == [None, "-3.14159265", "-7", "-7"]


def test_extract_mask_and_nothing():
    out = through(Extract(extract_mask="6", extract_magnitude="false"), [image(PIXELS)])
    assert [int(one.header["image_type"]) for one in out] == [3, 4]
    with pytest.raises(GadgetError, match="nothing to extract"):
        through(Extract(extract_magnitude="false"), [image(PIXELS)])


def test_real_images_pass_what_takes_complex_ones():
    real = image(np.abs(PIXELS))
    assert through([Extract(), ComplexToFloat()], [real]) == [real]


@pytest.mark.parametrize(
    ("kind", "expected", "becomes"),
    [
        (ImageType.MAGNITUDE, np.abs(PIXELS), 1),
        (ImageType.PHASE, np.angle(PIXELS), 2),
        (ImageType.REAL, PIXELS.real, 3),
        (ImageType.IMAG, PIXELS.imag, 4),
        (ImageType.COMPLEX, np.abs(PIXELS), 1),
        (0, np.abs(PIXELS), 1),
    ],
)
def test_complex_to_float_by_image_type(kind, expected, becomes):
    (out,) = through(ComplexToFloat(), [image(PIXELS, kind)])
    np.testing.assert_allclose(out.data, expected, rtol=1e-5, atol=1e-6)
    assert (int(out.header["image_type"]), int(out.header["data_type"])) == (becomes, 5)


def percentile_by_counting(pixels: np.ndarray, bins: int) -> float:
    """The scaling rule, one pixel at a time."""
    top = np.float32(max(pixels))
    histogram = [0] * bins
    for pixel in pixels:
        histogram[min(int(np.floor(np.float32(np.float32(pixel / top) * np.float32(bins)))), bins - 1)] += 1
    counted = used = 0
    while counted < 0.99 * len(pixels):
        counted += histogram[used]
        used += 1
    return float((used + 1) * (top / np.float32(bins)))


MAGNITUDES = st.just(0.0) | st.floats(2.0**-100, 1e4, width=32)
"""Smaller ones, divided by the number of bins, are no normal float32 any more."""


@given(arrays(np.float32, st.integers(1, 300), elements=MAGNITUDES), st.sampled_from([1, 10, 100]))
def test_autoscale_by_its_rule(pixels, bins):
    (out,) = through(AutoScale(histogram_bins=bins, max_value="1000"), [image(pixels.reshape(1, 1, 1, -1))])
    if pixels.max() > 0:
        factor = 1000 / percentile_by_counting(pixels, bins)
        np.testing.assert_allclose(out.data.ravel(), pixels.astype(np.float64) * factor, rtol=1e-5)
        assert float(out.meta["GADGETRON_ScaleRatio"]) == pytest.approx(factor, rel=1e-6)
    else:
        np.testing.assert_array_equal(out.data.ravel(), pixels)


def test_autoscale_does_not_count_what_is_no_number():
    pixels = np.linspace(0, 1, 200, dtype=np.float32).reshape(1, 1, 1, 200)
    spoilt = np.concatenate([pixels, np.array([np.nan, np.inf], np.float32).reshape(1, 1, 1, 2)], axis=3)
    (clean,), (out,) = (through(AutoScale(), [image(one)]) for one in (pixels, spoilt))
    np.testing.assert_array_equal(out.data[..., :200], clean.data)


def test_autoscale_leaves_other_images_alone():
    others = [image(PIXELS), image(np.abs(PIXELS), ImageType.PHASE), image(np.zeros((1, 1, 2, 2), np.float32))]
    assert through(AutoScale(), others) == others


def test_autoscale_of_integers():
    pixels = np.arange(200, dtype=np.uint16).reshape(1, 1, 10, 20)
    (out,) = through(AutoScale(max_value="100"), [image(pixels)])
    assert out.data.dtype == np.uint16
    assert 95 < out.data.max() < 101


CONVERTERS = [
    (FloatToUShort, np.uint16, 0, 4095, 2048),
    (FloatToShort, np.int16, -32768, 32767, 0),
    (FloatToInt, np.int32, 0, 4095, 2048),
    (FloatToUInt, np.uint32, 0, 4095, 2048),
]


def converted(value: float, kind: ImageType, low: int, high: int, offset: int) -> int:
    """One pixel by the rule, halves away from zero."""
    if kind == ImageType.MAGNITUDE:
        value = abs(value)
    elif kind == ImageType.PHASE:
        value = float(np.float32(np.float32(np.float32(value) * np.float32(offset)) / np.float32(math.pi)) + np.float32(offset))
    else:
        value = float(np.float32(value) + np.float32(offset))
    value = min(max(value, low), high)
    return math.floor(value + 0.5) if value >= 0 else math.ceil(value - 0.5)


@pytest.mark.parametrize(("gadget", "dtype", "low", "high", "offset"), CONVERTERS)
@pytest.mark.parametrize("kind", [ImageType.MAGNITUDE, ImageType.PHASE, ImageType.REAL, ImageType.IMAG])
def test_integers_by_their_rule(gadget, dtype, low, high, offset, kind):
    special = [0, 0.5, -0.5, 1.5, 2.5, -2.5, 4094.5, 4095.5, 1e9, -1e9, 0.49999997, math.pi, -math.pi]
    values = np.array([*special, *(RNG.standard_normal(60) * 3000), *RNG.uniform(-math.pi, math.pi, 60)], np.float32)
    (out,) = through(gadget(), [image(values.reshape(1, 1, 1, -1), kind)])
    assert out.data.dtype == dtype
    np.testing.assert_array_equal(out.data.ravel(), [converted(float(value), kind, low, high, offset) for value in values])


def test_bounds_and_offset_can_be_set():
    values = np.array([[[[-50.0, 5.0, 90.0]]]], np.float32)
    (out,) = through(FloatToShort(min_intensity="-20", max_intensity="20", intensity_offset="10"), [image(values, ImageType.REAL)])
    assert out.data.ravel().tolist() == [-20, 15, 20]


def test_attributes_say_how_to_undo_it():
    meta = {"GADGETRON_WindowCenter": "100", "GADGETRON_ScaleRatio": "2"}
    (real,) = through(FloatToUShort(), [image(np.ones((1, 1, 1, 1), np.float32), ImageType.REAL, meta)])
    assert real.meta["GADGETRON_WindowCenter"] == "2148"
    assert (real.meta["RescaleSlope"], real.meta["RescaleIntercept"]) == ("0.5", "-1024")
    (phase,) = through(FloatToUShort(), [image(np.full((1, 1, 1, 1), 1.25, np.float32), ImageType.PHASE)])
    undone = float(phase.meta["RescaleSlope"]) * int(phase.data[0, 0, 0, 0]) + float(phase.meta["RescaleIntercept"])
    assert undone == pytest.approx(1.25, abs=math.pi / 4096)


def test_what_is_no_number_becomes_zero_and_is_counted(caplog):
    values = np.array([[[[np.nan, np.inf, -np.inf, 3.0]]]], np.float32)
    context = Context()
    with caplog.at_level(logging.WARNING, "reconstream"):
        (out,) = through(FloatToUShort("ToUShort", min_intensity="5"), [image(values, ImageType.REAL)], context)
    assert out.data.ravel().tolist() == [0, 4095, 5, 2051]
    assert context.counts == {"pixels that were NaN or infinite": 3}
    assert "ToUShort: 3 of 4 pixels" in caplog.text


def test_images_that_are_no_floats_pass_and_unknown_types_are_refused():
    others = [image(PIXELS), image(np.ones((1, 1, 2, 2), np.uint16))]
    assert through(FloatToUShort(), others) == others
    with pytest.raises(GadgetError, match=r"image_type 0.*put ComplexToFloat or Extract in front"):
        through(FloatToUShort(), [image(np.abs(PIXELS), 0)])


def test_the_end_passes_everything_but_text(caplog):
    items = [readout(np.ones((1, 2))), image(PIXELS)]
    with caplog.at_level(logging.INFO, "reconstream"):
        assert through(ImageFinish(), [items[0], Text("half time"), items[1]]) == items
    assert "half time" in caplog.text
