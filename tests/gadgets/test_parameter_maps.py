"""Maps as images: values, scale, window, role, geometry."""

from __future__ import annotations

import numpy as np
import pytest

from gadgets.base import Context, run
from gadgets.header import Header
from gadgets.images import AutoScale, FloatToUShort
from gadgets.items import Image
from gadgets.layout import ACQUISITION_HEADER, ImageType, blank
from gadgets.parameter_maps import MapImages, Place
from recon.quantitative.model import Map

MASK = np.array([[True, True, True], [True, True, False]])


def place() -> Place:
    head = blank(ACQUISITION_HEADER)
    head["position"], head["read_dir"], head["idx"]["slice"], head["idx"]["contrast"] = (1, 2, 3), (0, 1, 0), 4, 0
    return Place(head, (30.0, 20.0, 5.0))


def maps() -> dict[str, Map]:
    t1 = np.array([[100.0, 800.0, 3000.06], [1200.0, np.nan, 77.0]])
    return {
        "M0": Map(np.full((2, 3), 3e-4 + 4e-4j), ""),
        "T1": Map(t1, "ms"),
        "T1_sd": Map(np.array([[1.0, 2.0, 3.0], [np.inf, 5.0, 6.0]]), "ms"),
        "B0": Map(np.array([[-30.0, 20.0, 0.0], [1.0, 2.0, 3.0]]), "Hz"),
    }


def images(pixels: str = "float", wanted: tuple[str, ...] = ("M0", "T1", "T1_sd", "B0")) -> list[Image]:
    header = Header(b"<ismrmrdHeader><sequenceParameters><TE>5</TE></sequenceParameters></ismrmrdHeader>")
    return MapImages(header, 100, pixels, "Hot.pal").images(maps(), MASK, place(), list(wanted), "TGV")  # type: ignore[arg-type]


def value(image: Image) -> np.ndarray:
    slope, offset = (float(str(image.meta.get(name, default))) for name, default in (("RescaleSlope", 1), ("RescaleIntercept", 0)))
    return image.data[0, 0] * slope + offset


@pytest.mark.parametrize(("pixels", "step"), [("float", 1e-3), ("uint16", 0.051)])
def test_pixels_are_values_in_the_unit(pixels: str, step: float) -> None:
    m0, t1, deviation, b0 = images(pixels)
    assert {image.data.dtype for image in (m0, t1, deviation, b0)} == {np.dtype("float32" if pixels == "float" else "uint16")}
    np.testing.assert_allclose(value(t1), [[100, 800, 3000.06], [1200, 3000.06, 0]], atol=step)
    np.testing.assert_allclose(value(deviation), [[1, 2, 3], [5, 5, 0]], atol=step)
    np.testing.assert_allclose(value(b0), [[-30, 20, 0], [1, 2, 0]], atol=step)
    np.testing.assert_allclose(value(m0), 5e-4 * MASK, rtol=1e-4, atol=1e-9)


def test_attributes_in_both_dialects() -> None:
    _, t1, deviation, b0 = images()
    assert (t1.meta["GADGETRON_DataRole"], t1.meta["DataRole"], deviation.meta["DataRole"]) == ("T1", "T1", "T1SD")
    assert t1.meta["ImageComment"] == "T1 [ms], map, TGV"
    assert (t1.meta["GADGETRON_ColorMap"], t1.meta["LUTFileName"]) == ("Hot.pal", "Hot.pal")
    assert "LUTFileName" not in deviation.meta
    assert "EchoTime" not in t1.meta
    top = float(str(t1.meta["WindowWidth"]))
    assert 2900 < top < 3100
    assert float(str(t1.meta["WindowCenter"])) == top / 2
    assert float(str(b0.meta["WindowCenter"])) == 0
    assert b0.header["image_type"] == ImageType.REAL


def test_the_window_moves_with_the_scale() -> None:
    _, t1, _, _ = images("uint16")
    whole = images()[1]
    for name in ("WindowCenter", "WindowWidth"):
        assert float(str(t1.meta[name])) == pytest.approx(10 * float(str(whole.meta[name])))


def test_each_map_is_a_series_with_the_geometry_of_the_slice() -> None:
    found = images(wanted=("T1", "B0"))
    assert [int(image.header["image_series_index"]) for image in found] == [101, 103]
    for image in found:
        assert image.header["matrix_size"].tolist() == [3, 2, 1]
        assert image.header["field_of_view"].tolist() == [30, 20, 5]
        assert image.header["position"].tolist() == [1, 2, 3]
        assert (int(image.header["slice"]), int(image.header["image_index"])) == (4, 1)


def test_the_scale_holds_for_all_slices_unless_values_do_not_fit() -> None:
    series = MapImages(Header(), 1, "uint16", "")
    slopes = []
    for largest in (1000.0, 5000.0, 20000.0):
        one = {"T1": Map(np.full((2, 3), largest), "ms")}
        [image] = series.images(one, MASK, place(), ["T1"], "")
        slopes.append(float(str(image.meta["RescaleSlope"])))
        np.testing.assert_allclose(value(image)[MASK], largest, rtol=1e-3)
    assert slopes[0] == slopes[1] == pytest.approx(0.1)


def test_nothing_scales_maps_on_their_way() -> None:
    found = images()
    out = list(run([AutoScale(), FloatToUShort()], found, Context()))
    assert out == found
    plain = Image(None, np.ones((1, 1, 2, 2), np.float32))
    [scaled] = run([AutoScale(), FloatToUShort()], [plain], Context())
    assert isinstance(scaled, Image)
    assert scaled.data.dtype == np.uint16
