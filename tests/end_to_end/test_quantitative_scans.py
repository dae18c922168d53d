"""Maps of every kind of scan, streamed through the packaged chains: truth, order, what is left out and what is said of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import configs
from gadgets.base import Context, GadgetError, run
from gadgets.header import Header
from gadgets.items import Acquisition, Image, Item
from gadgets.layout import Flag
from gadgets.quantitative import QuantitativeFit
from recon.cache import Cache
from recon.quantitative import data_term, irgn, pixelwise, subspace
from service.local import ReconstructionError, reconstruct
from tests.gadgets.contrast_scan import ContrastScan

FEW = {"steps": 1, "inner_iterations": 60, "minimum_contrasts": 0, "deviations": "false"}
"""Far fewer iterations than shipped."""
MAPS = {"t1": "T1", "t2": "T2"}


def made(scan: ContrastScan, config: str | bytes, items: Iterable[Acquisition] | None = None, **properties: object) -> list[Image]:
    """The maps of T1 or T2, in the order in which they left."""
    taken = scan.items() if items is None else items
    return only_maps(reconstruct(taken, config, header=scan.header, **(FEW | {"maps": MAPS[scan.kind]} | properties)))


def only_maps(images: list[Image]) -> list[Image]:
    return [image for image in images if "QuantityName" in image.meta]


def method(image: Image) -> str:
    return str(image.meta["ImageComment"]).partition(", map, ")[2]


def errors(scan: ContrastScan, maps: list[Image]) -> dict[str, list[float]]:
    """Median absolute errors in percent by method, slice by slice in the order of their counters."""
    found: dict[str, list[float]] = {}
    for image in sorted(maps, key=lambda one: (int(one.header["repetition"]), int(one.header["slice"]))):
        values = image.data[0] if scan.volume else image.data[0, 0]
        found.setdefault(method(image), []).append(scan.error(values, slice(None) if scan.volume else int(image.header["slice"])))
    return found


def without(config: str, gadget: str) -> bytes:
    """A packaged chain without one of its gadgets."""
    xml = (Path(configs.__file__).parent / f"{config}.xml").read_text()
    plain = re.sub(rf"<gadget>\s*<dll>reconstream</dll><classname>{gadget}</classname>\s*(<property[^>]*>\s*)*</gadget>", "", xml)
    assert plain != xml
    return plain.encode()


PLAIN = {"regularization@QuantitativeFit": "none"}
"""No regularised maps."""
QUICK = {"iterations": 2}
"""Of the ordinary images, which are not looked at."""
CASES = {
    "spirals": (ContrastScan(sampling="spirals", readouts=8, shape=(1, 24, 24), noise=0.02), "t1_vfa_radial", QUICK, 6, 0.6),
    "wide spokes": (
        ContrastScan(sampling="spokes", readouts=30, shape=(1, 24, 24), oversampling=2, noise=0.03), "t1_vfa_radial", QUICK, 5, 0.95
    ),
    "volume": (ContrastScan(kind="t2", shape=(6, 24, 24), volume=True, noise=0.02, varying=0.3), "t2_multi_echo", {}, 4, 0.6),
    "stack of stars": (
        ContrastScan(sampling="spokes", readouts=16, shape=(6, 16, 16), volume=True, noise=0.02, varying=0.3),
        "t1_vfa_radial",
        QUICK | {"inner_iterations": 30},
        5,
        0.85,
    ),
    "multiband": (
        ContrastScan(kind="t2", shape=(4, 24, 24), bands=2, coils=8, noise=0.02), "t2star_sms", {"signal_model": "ExpDecay"}, 5, 0.6
    ),
}  # fmt: skip
"""Scan, chain, its properties, largest error of pixel-wise maps in percent, and that of regularised ones by it."""


@pytest.mark.parametrize("kind", CASES)
def test_maps_of_every_kind_of_scan(kind: str) -> None:
    scan, config, properties, most, share = CASES[kind]
    images = made(scan, config, **properties)
    found = errors(scan, images)
    slices = 1 if scan.volume else scan.shape[0]
    assert {name: len(values) for name, values in found.items()} == {"pixel-wise": slices, "TGV": slices}
    assert max(found["pixel-wise"]) < most
    assert np.mean(found["TGV"]) < share * np.mean(found["pixel-wise"])
    for image in images:
        assert image.data.shape[1:] == ((scan.shape[0] if scan.volume else 1), *scan.shape[1:])
        assert image.header["position"].tolist() == [0, 0, 5.0 * int(image.header["slice"])]
        np.testing.assert_allclose(image.header["field_of_view"], (4 * scan.shape[2], 4 * scan.shape[1], 5 * image.data.shape[1]))


def test_slices_in_order_alone_and_as_a_volume() -> None:
    """Tubes through three slices, in two repetitions."""
    scan = ContrastScan(kind="t2", shape=(3, 24, 24), noise=0.02, varying=0.0, repetitions=2)
    alone = made(scan, "t2_multi_echo")
    order = [(repetition, slice_) for repetition in range(2) for slice_ in range(3)]
    for name in ("pixel-wise", "TGV"):
        assert [(int(one.header["repetition"]), int(one.header["slice"])) for one in alone if method(one) == name] == order
    joined = made(scan, "t2_multi_echo", slices_together=True)
    assert [(int(one.header["repetition"]), int(one.header["slice"])) for one in joined if method(one) == "TGV"] == order
    found, together = errors(scan, alone), errors(scan, joined)
    assert found["pixel-wise"] == together["pixel-wise"]
    assert np.mean(together["TGV"]) < np.mean(found["TGV"]) < 0.65 * np.mean(found["pixel-wise"])


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of functions, as often as TensorFlow traced them; of those that were made before, none are left."""
    for module in (data_term, irgn, pixelwise, subspace):
        for cache in [one for one in vars(module).values() if isinstance(one, Cache)]:
            cache.clear()
    found: list[str] = []
    original = tf.function

    def counting(python: Callable[..., Any] | None = None, **options: Any) -> Any:
        if python is None:
            return lambda late: counting(late, **options)

        def traced(*arguments: Any, **named: Any) -> Any:
            found.append(python.__qualname__)
            return python(*arguments, **named)

        return original(traced, **options)

    monkeypatch.setattr(tf, "function", counting)
    return found


@pytest.mark.parametrize(("sampling", "together"), [("spirals", False), ("lines", True)])
def test_another_slice_repetition_or_scan_does_not_compile_again(sampling: str, together: bool, traces: list[str]) -> None:
    """Whatever its trajectory or the lines that it leaves out."""

    def streamed(turned: bool, slices: int) -> None:
        scan = ContrastScan(sampling=sampling, readouts=8, shape=(slices, 16, 16), repetitions=2, noise=0.01)  # type: ignore[arg-type]
        items = [one for one in scan.items() if sampling == "spirals" or one.header["idx"]["kspace_encode_step_1"] % 5 != turned]
        for item in items:
            if item.trajectory is not None and turned:
                item.trajectory = np.ascontiguousarray(item.trajectory[:, ::-1])
        config = "t1_vfa_radial" if sampling == "spirals" else "t2_multi_echo"
        made(scan, config, items, signal_model="VFA", inner_iterations=10, slices_together=together)

    streamed(False, 2 if together else 1)
    before = len(traces)
    assert before
    streamed(True, 2)
    assert traces[before:] == []


def test_oversampling_that_nobody_removed_is_cropped() -> None:
    scan = ContrastScan(kind="t2", oversampling=2, noise=0.01, shape=(1, 24, 24))
    removed = made(scan, "t2_multi_echo", **PLAIN)
    left = made(scan, without("t2_multi_echo", "RemoveROOversampling"), **PLAIN)
    for one, other in zip(removed, left, strict=True):
        assert one.data.shape == other.data.shape
        inside = scan.interior[0]
        np.testing.assert_allclose(one.data[0, 0][inside], other.data[0, 0][inside], rtol=2e-3)
    assert errors(scan, left)["pixel-wise"][0] < 2


def test_spirals_that_see_more_than_the_image() -> None:
    scan = ContrastScan(sampling="spirals", readouts=16, shape=(1, 24, 24), oversampling=2, noise=0.01)
    assert errors(scan, made(scan, "t1_vfa_radial", **PLAIN, **QUICK))["pixel-wise"][0] < 2


def test_readouts_that_lack_or_hold_nan_cost_little() -> None:
    """Of spirals a readout lacks, of lines some hold NaN: the fit takes what there is, in all repetitions."""
    spirals = ContrastScan(sampling="spirals", readouts=12, shape=(1, 24, 24), repetitions=2, noise=0.01)
    items = spirals.items()
    items[3].data[1, 20:30] = np.nan
    del items[40]
    found = errors(spirals, made(spirals, "t1_vfa_radial", items, **PLAIN, **QUICK))["pixel-wise"]
    assert len(found) == 2
    assert max(found) < 5
    lines = ContrastScan(kind="t2", shape=(1, 24, 24), noise=0.01)
    items = lines.items()
    for number in (4, 40, 90):
        items[number].data[:, 3] = np.nan
    assert errors(lines, made(lines, "t2_multi_echo", items, **PLAIN))["pixel-wise"][0] < 3


def told(scan: ContrastScan, config: str | bytes, items: Iterable[Acquisition] | None = None, **properties: object) -> str:
    """What is said where maps cannot be made."""
    with pytest.raises(ReconstructionError) as caught:
        made(scan, config, items, **(PLAIN | properties))
    return str(caught.value)


def test_contrasts_of_other_sizes_are_told() -> None:
    scan = ContrastScan(kind="t2", shape=(1, 24, 24))
    items = scan.items()
    for item in items[-24:]:
        item.header["encoding_space_ref"] = 1
    xml = scan.header.decode()
    (encoding,) = re.findall("<encoding>.*</encoding>", xml)
    twice = xml.replace(encoding, 2 * encoding).encode()
    with pytest.raises(ReconstructionError, match=r"contrast 3 never came.*several encoding spaces are not fitted together"):
        reconstruct(items, "t2_multi_echo", header=twice, **PLAIN)


def by_gadget(scan: ContrastScan, items: list[Acquisition], header: bytes = b"", **properties: object) -> tuple[list[Image], str]:
    """The maps of T2 from the gadget alone, and the error that follows them; no readout is lost."""
    gadget = QuantitativeFit(model="ExpDecay", regularization="none", minimum_contrasts=0, maps=["T2"], deviations=False, **properties)
    left: list[Item] = []

    def collect() -> None:
        for item in run([gadget], items, Context(header=Header(header or scan.header))):
            left.append(item)

    with pytest.raises(GadgetError) as caught:
        collect()
    assert [one for one in left if isinstance(one, Acquisition)] == items
    return only_maps([one for one in left if isinstance(one, Image)]), str(caught.value)


@pytest.mark.parametrize(
    ("count", "said", "used"),
    [
        (7 * 24, "slice 1: contrast 3 never came", {0: "pixel-wise", 1: "pixel-wise, 3 of 4 contrasts"}),
        (
            6 * 24 + 12,
            "slice 1: contrast 3 never came and contrast 2 ended after 12 of 24 readouts",
            {0: "pixel-wise", 1: "pixel-wise, 2 of 4"},
        ),
        (4 * 24 + 9, "slice 1: contrast 1, 2, 3 never came and contrast 0 ended after 9 of 24 readouts", {0: "pixel-wise"}),
        (9, "slice 0: contrast 1, 2, 3 never came and contrast 0 ended after 9 of 24 readouts", {}),
    ],
)
def test_a_scan_that_ends_early(count: int, said: str, used: dict[int, str]) -> None:
    """Contrast after contrast, in two slices: what is complete becomes maps, what is not is told, and no readout is lost."""
    scan = ContrastScan(kind="t2", shape=(2, 24, 24), noise=0.0005)
    items = scan.items()[:count]
    maps, text = by_gadget(scan, items)
    assert said in text
    assert sorted(int(one.header["slice"]) for one in maps) == sorted(used)
    for one in maps:
        number = int(one.header["slice"])
        assert method(one).startswith(used[number])
        assert scan.error(one.data[0, 0], number) < 3


# -- flip angles -----------------------------------------------------------------------------------------------------------------------

T1 = PLAIN | {"signal_model": "VFA"}


@pytest.mark.parametrize("volume", [False, True])
def test_t1_with_a_map_of_the_flip_angle_that_is_off_by_a_fifth(volume: bool, tmp_path: Path) -> None:
    scan = ContrastScan(shape=(6 if volume else 2, 24, 24), volume=volume, relative=0.2, noise=0.004)
    assert np.ptp(scan.b1[scan.truth > 0]) > 0.3
    np.save(tmp_path / "b1.npy", scan.b1.astype(np.float32))
    nominal = errors(scan, made(scan, "t2_multi_echo", **T1))["pixel-wise"]
    corrected = errors(scan, made(scan, "t2_multi_echo", b1_map=tmp_path / "b1.npy", **T1))["pixel-wise"]
    assert min(nominal) > 15
    assert max(corrected) < 1.5


def test_a_map_of_the_flip_angle_for_spokes_that_see_more_than_the_image(tmp_path: Path) -> None:
    scan = ContrastScan(sampling="spokes", shape=(1, 24, 24), readouts=24, oversampling=2, relative=0.2, noise=0.01)
    np.save(tmp_path / "b1.npy", scan.b1[0])
    assert errors(scan, made(scan, "t1_vfa_radial", b1_map=tmp_path / "b1.npy", **T1, **QUICK))["pixel-wise"][0] < 3


@pytest.mark.parametrize("sampling", ["lines", "spirals"])
def test_t1_with_a_double_angle_pair_in_the_same_scan(sampling: str) -> None:
    """The header announces the pair: its images leave with the others, and its flip angles correct T1."""
    scan = ContrastScan(sampling=sampling, shape=(2, 24, 24), readouts=16, relative=0.2, pair=60.0, noise=0.004)  # type: ignore[arg-type]
    config, more = ("t1_vfa_radial", T1 | QUICK) if sampling == "spirals" else ("t2_multi_echo", T1)
    images = reconstruct(scan.items(), config, header=scan.header, **(FEW | more | {"maps": "T1", "b1_smoothing": 1}))
    ordinary = [one for one in images if "QuantityName" not in one.meta]
    assert len(ordinary) == 2 * (2 + 5)
    found = errors(scan, only_maps(images))["pixel-wise"]
    assert len(found) == 2
    assert max(found) < 2.5
    # Without what the header says, the pair would be two contrasts of a series that lacks three.
    plain = scan.header.replace(b"double_angle_deg", b"something_else")
    with pytest.raises(ReconstructionError, match="contrast 2, 3, 4 never came"):
        reconstruct(scan.items(), config, header=plain, **(FEW | more))


def test_a_double_angle_pair_that_comes_last_or_never() -> None:
    scan = ContrastScan(shape=(1, 24, 24), relative=0.2, pair=60.0)
    items = scan.items()
    pair = [one for one in items if one.header["idx"]["set"] == 1]
    others = [one for one in items if one.header["idx"]["set"] == 0]
    first, last = (made(scan, "t2_multi_echo", order, **T1) for order in (items, [*others, *pair]))
    assert [one.data.tobytes() for one in first] == [one.data.tobytes() for one in last]
    assert "slice 0: its double-angle pair (set 1) never came" in told(scan, "t2_multi_echo", others, **T1)
    assert "lacks contrast 1 of its set" in told(scan, "t2_multi_echo", [*pair[:24], *others], **T1)
    backwards = [*others, *_swapped(pair)]
    assert "contrast 1 twice it" in told(scan, "t2_multi_echo", backwards, **T1, double_angle=15)


def test_a_pair_of_larger_pixels_in_an_encoding_of_its_own() -> None:
    scan = ContrastScan(shape=(2, 32, 32), relative=0.2, noise=0.004)
    coarse = ContrastScan(shape=(2, 16, 16), relative=0.2, noise=0.004, pair=60.0)
    pair = [one for one in coarse.items() if one.header["idx"]["set"] == 1]
    for item in pair:
        item.header["encoding_space_ref"] = 1
    xml = scan.header.decode()
    (fine,) = re.findall("<encoding>.*</encoding>", xml)
    other = re.sub("<([xy])>32</", r"<\1>16</", fine).replace("<maximum>31</maximum><center>16<", "<maximum>15</maximum><center>8<")
    gadget = QuantitativeFit(model="VFA", regularization="none", minimum_contrasts=0, double_angle=60, b1_smoothing=2, maps=["T1"])
    left = run([gadget], [*pair, *scan.items()], Context(header=Header(xml.replace(fine, fine + other))))
    maps = [one for one in only_maps([one for one in left if isinstance(one, Image)]) if one.meta["QuantityName"] == "T1"]
    assert len(maps) == 2
    assert max(errors(scan, maps)["pixel-wise"]) < 2


def _swapped(pair: list[Acquisition]) -> list[Acquisition]:
    for item in pair:
        item.header["idx"]["contrast"] = 1 - item.header["idx"]["contrast"]
    return pair


# -- simultaneous slices ---------------------------------------------------------------------------------------------------------------


def test_simultaneous_slices_before_and_behind_their_reconstruction() -> None:
    """Before it, the images are those of the chain without maps; behind it, maps are fitted to images: here as good."""
    scan = ContrastScan(kind="t2", shape=(4, 24, 24), bands=2, coils=8, noise=0.01)
    own = {"signal_model": "ExpDecay"} | PLAIN
    images = reconstruct(scan.items(), "t2star_sms", header=scan.header, **(FEW | own))
    plain = without("t2star_sms", "QuantitativeFit")
    expected = reconstruct(scan.items(), plain, header=scan.header)
    ordinary = [one for one in images if "QuantityName" not in one.meta]
    assert [(one.header.tobytes(), one.data.tobytes()) for one in ordinary] == [
        (one.header.tobytes(), one.data.tobytes()) for one in expected
    ]
    xml = (Path(configs.__file__).parent / "t2star_sms.xml").read_text()
    (fit,) = re.findall(r"<gadget>\s*<dll>reconstream</dll><classname>QuantitativeFit</classname>.*?</gadget>", xml, re.DOTALL)
    last = "<gadget><dll>reconstream</dll><classname>ComplexToFloat"
    behind = errors(scan, made(scan, plain.replace(last.encode(), f"{fit}{last}".encode()), **own))["pixel-wise"]
    before = errors(scan, [one for one in only_maps(images) if one.meta["QuantityName"] == "T2"])["pixel-wise"]
    assert max(before + behind) < 3
    np.testing.assert_allclose(before, behind, rtol=0.1)


def test_what_simultaneous_slices_need_is_told() -> None:
    scan = ContrastScan(kind="t2", shape=(4, 16, 16), bands=2, coils=8)
    items = scan.items()
    assert "no single-band reference" in by_gadget(scan, [one for one in items if not one.is_flag_set(Flag.IS_PARALLEL_CALIBRATION)])[1]
    three = [one for one in items if one.header["idx"]["slice"] != 3]
    assert "3 slices with a single-band reference cannot be in bands of 2" in by_gadget(scan, three)[1]
    assert "multiband_factor is 2, the property multiband 4" in by_gadget(scan, items, multiband=4)[1]
    spiral = ContrastScan(kind="t2", shape=(4, 16, 16), bands=2, coils=8, sampling="spirals", readouts=16)
    assert "only Cartesian ones are" in by_gadget(spiral, spiral.items())[1]
    header = scan.header.replace(b"<z>1</z>", b"<z>2</z>")
    assert "the encoded matrix must have z = 1" in by_gadget(scan, items, header)[1]
