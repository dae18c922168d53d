"""QuantitativeFit on images: what is fitted, what is refused and how, and that nothing else is lost or held up."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator

import numpy as np
import pytest

from gadgets.base import Context, GadgetError, ParameterError, run
from gadgets.composite import Parallel
from gadgets.contrast_gathering import Due
from gadgets.header import Header
from gadgets.images import AutoScale, FloatToUShort
from gadgets.items import Image, Item, Text
from gadgets.parallel import ImageFanout, UnorderedMerge
from gadgets.quantitative import QuantitativeFit
from gadgets.quantitative_fit import Data, Fits

ECHOES = (10.0, 25.0, 50.0, 90.0)
SIZE = 12


def context(sequence: str = "".join(f"<TE>{te}</TE>" for te in ECHOES)) -> Context:
    return Context(header=Header(f"<ismrmrdHeader><sequenceParameters>{sequence}</sequenceParameters></ismrmrdHeader>"))


def truth() -> np.ndarray:
    return np.linspace(30, 120, SIZE)[:, None] * np.ones(SIZE)


def echoes(magnitude: bool = False, noise: float = 0.002, **counters: int) -> list[Image]:
    """T2 from 30 to 120 ms along y, a phase along x; air in the first two columns."""
    random = np.random.default_rng(3)
    density = np.exp(1j * np.linspace(0, 3, SIZE)) * (np.arange(SIZE) > 1)
    images = []
    for number, te in enumerate(ECHOES):
        pixels = density * np.exp(-te / truth())
        pixels = pixels + noise * (random.standard_normal(pixels.shape) + 1j * random.standard_normal(pixels.shape))
        data = (100 * (np.abs(pixels) if magnitude else pixels)).astype(np.float32 if magnitude else np.complex64)
        image = Image(None, data[None, None])
        for name, value in {"contrast": number, "image_series_index": 1, "image_index": number + 1, **counters}.items():
            image.header[name] = value
        images.append(image)
    return images


def fit(items: list[Image], *front: object, **properties: object) -> tuple[list[Item], dict[str, np.ndarray]]:
    """All that leaves, and the last map of each name (pixel-wise)."""
    gadget = QuantitativeFit(**({"model": "ExpDecay", "regularization": "none", "minimum_contrasts": 0} | properties))
    left = list(run([*front, gadget], items, context()))  # type: ignore[list-item]
    return left, {str(one.meta["QuantityName"]): one.data[0, 0] for one in left if isinstance(one, Image) and "QuantityName" in one.meta}


def check(maps: dict[str, np.ndarray], limit: float) -> None:
    inside = np.arange(SIZE) > 2
    relative = (maps["T2"] / truth() - 1)[1:-1, inside][:, :-1]
    assert np.median(np.abs(relative)) < limit
    assert not maps["T2"][:, 0].any()


@pytest.mark.parametrize("kind", ["complex", "magnitude", "asked", "scaled", "yaml"])
def test_t2_of_images_whatever_they_come_as(kind: str) -> None:
    properties = {"asked": {"magnitude": True}, "yaml": {"model": "monoexponential.yaml"}}.get(kind, {})
    front = [AutoScale(), FloatToUShort(max_intensity=65535)] if kind == "scaled" else []
    items = echoes(magnitude=kind in ("magnitude", "scaled"))
    left, maps = fit(items, *front, **properties)
    check(maps, 0.02)
    assert set(maps) == {"M0", "M0_sd", "T2", "T2_sd"}
    if not front:
        assert left[: len(items)] == items


def test_what_is_sent_can_be_chosen() -> None:
    _, maps = fit(echoes(), maps=["T2"], deviations=False)
    assert set(maps) == {"T2"}


def test_bounds_and_sequence_of_ones_own() -> None:
    _, maps = fit(echoes(), bounds="R2=5:20", sequence="TE=" + ",".join(str(te) for te in ECHOES))
    shown = maps["T2"][maps["T2"] > 0]
    assert 1000 / 20 - 0.01 <= shown.min() < 1000 / 19
    assert shown.max() < 125


def test_first_maps_then_whole_ones_then_regularised_ones_each_a_series() -> None:
    left, _ = fit(echoes(noise=0.02), regularization="TGV", minimum_contrasts=None, steps=1, inner_iterations=20, maps=["T2"])
    made = [one for one in left if isinstance(one, Image) and "QuantityName" in one.meta]
    found = [(int(one.header["image_series_index"]), int(one.header["image_index"])) for one in made]
    assert found == [(152, 1), (153, 1), (152, 2), (153, 2), (102, 1), (103, 1)]
    first, whole, smooth = (np.abs(one.data[0, 0] / truth() - 1)[1:-1, 3:-1].mean() for one in made[::2])
    assert smooth < whole < first


@pytest.mark.parametrize(
    ("properties", "words"),
    [
        ({"model": "R2Starr"}, ["maps", "R2Starr", "did you mean R2Star"]),
        ({"model": "../secret.yaml"}, ["configs/models", "ir.yaml"]),
        ({"bounds": "R2"}, ["bounds", "NAME=number:number"]),
        ({"sequence": "TE=a"}, ["sequence", "NAME=number"]),
    ],
)
def test_faults_of_the_config_are_found_before_the_scan(properties: dict[str, object], words: list[str]) -> None:
    with pytest.raises(ParameterError) as caught:
        QuantitativeFit("maps", **({"model": "ExpDecay"} | properties))
    assert all(word in str(caught.value) for word in words)


def collected(stream: Iterable[Item]) -> tuple[list[Item], Exception]:
    """What leaves, and the error after it."""
    left: list[Item] = []
    try:
        for item in stream:
            left.append(item)
    except (GadgetError, OSError) as error:
        return left, error
    raise AssertionError("no error")


def failing(items: list[Image], about: Context, **properties: object) -> str:
    """The text of the error; all items must have left before it, and nothing else."""
    gadget = QuantitativeFit("maps", **({"model": "ExpDecay", "regularization": "none", "minimum_contrasts": 0} | properties))
    left, error = collected(run([gadget], items, about))
    assert left == items
    assert isinstance(error, GadgetError)
    assert error.gadget == "maps"
    return str(error)


@pytest.mark.parametrize(
    ("sequence", "properties", "words"),
    [
        ("", {}, ["needs TE", "sequenceParameters/TE", "userParameterDouble", "TE_0_ms", "property sequence"]),
        ("<TE>0.01</TE><TE>0.02</TE><TE>0.05</TE><TE>0.09</TE>", {}, ["seconds", "ms"]),
        ("<TR>0.012</TR><flipAngle_deg>2</flipAngle_deg><flipAngle_deg>9</flipAngle_deg>", {"model": "VFA"}, ["TR", "seconds"]),
        ("<TE>10</TE>", {}, ["TE has 1 different values"]),
        ("<TE>10</TE><TE>20</TE>", {"maps": ["T1"]}, ["no map T1", "T2"]),
        ("<TE>10</TE><TE>20</TE>", {"bounds": "T2=5:9"}, ["T2", "R2 [1/s]"]),
        ("<TR>3</TR>", {"model": "LookLocker", "readouts_per_frame": 10}, ["TI", "TI_first_ms"]),
    ],
)
def test_a_header_that_does_not_do(sequence: str, properties: dict[str, object], words: list[str]) -> None:
    text = failing(echoes(), context(sequence), **properties)
    assert all(word in text for word in words), text


def test_contrasts_that_do_not_do() -> None:
    def text(images: list[Image], **properties: object) -> str:
        return failing(images, context(), **properties)

    assert "contrast 1, 2, 3 never came" in text(echoes()[:1])
    assert "slice 0, repetition 2" in text(echoes(repetition=2)[:1])
    surplus = [*echoes(), echoes(contrast=9)[0]]
    assert "contrast" in text(surplus[::-1])
    small = echoes()
    small[2] = small[2].with_data(small[2].data[..., ::2])
    assert "differ in matrix: 0 has (12, 12)" in text(small)
    broken = echoes()
    broken[1].data[..., 5, 5] = np.nan
    assert "contrast 1 (counted from 0)" in text(broken)
    assert "mask is empty" in text([one.with_data(0 * one.data) for one in echoes()])
    assert "channels" in text([one.with_data(np.concatenate([one.data, one.data])) for one in echoes()])


def test_a_failed_repetition_does_not_keep_the_others_from_their_maps() -> None:
    items = [*echoes(repetition=0)[:1], *echoes(repetition=1)]
    gadget = QuantitativeFit(model="ExpDecay", regularization="none", minimum_contrasts=0)
    left, error = collected(run([gadget], items, context()))
    assert "contrast 1, 2, 3 never came" in str(error)
    maps = [one for one in left if isinstance(one, Image) and "QuantityName" in one.meta]
    assert {int(one.header["repetition"]) for one in maps} == {1}
    assert [one for one in left if one not in maps] == items


def test_enough_contrasts_of_a_scan_that_ended_early_become_maps_and_the_error_follows() -> None:
    items = echoes()[:3]
    gadget = QuantitativeFit(model="ExpDecay", regularization="TGV", minimum_contrasts=0, steps=1, inner_iterations=20, maps=["T2"])
    left, error = collected(run([gadget], items, context()))
    assert "contrast 3 never came (counted from 0), but the sequence has 4 contrasts" in str(error)
    assert "Its maps are made from contrast 0, 1, 2 only" in str(error)
    maps = [one for one in left if isinstance(one, Image) and "QuantityName" in one.meta]
    comments = [str(one.meta["ImageComment"]).partition(", map, ")[2] for one in maps if one.meta["QuantityName"] == "T2"]
    assert comments == ["pixel-wise, 3 of 4 contrasts", "TGV, 3 of 4 contrasts"]
    check({"T2": maps[0].data[0, 0]}, 0.02)
    assert left[:3] == items


def test_other_items_pass_and_a_failing_source_is_heard() -> None:
    def source() -> Iterator[Item]:
        yield Text("before")
        yield from echoes()[:2]
        raise OSError("the scanner is gone")

    left, error = collected(run([QuantitativeFit(model="ExpDecay", regularization="none")], source(), context()))
    assert str(error) == "the scanner is gone"
    assert [type(one) for one in left[:3]] == [Text, Image, Image]


def test_threads_end_when_nobody_listens_any_more() -> None:
    stream = run([QuantitativeFit("leaving", model="ExpDecay", regularization="none")], echoes(), context())
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    for thread in [one for one in threading.enumerate() if one.name.startswith("leaving")]:
        thread.join(20)
        assert not thread.is_alive()


@pytest.mark.parametrize("complete", [True, False])
def test_beside_another_stream(complete: bool) -> None:
    """In a parallel block nothing waits for the maps for ever, and a failure comes out behind all images."""
    gadget = QuantitativeFit("maps", model="ExpDecay", regularization="none", minimum_contrasts=0)
    block = Parallel("block", ImageFanout(), {"plain": [], "fitted": [gadget]}, UnorderedMerge())
    items = echoes()[: None if complete else 1]
    if complete:
        left = list(run([block], items, context()))
        assert len(left) == 2 * len(items) + 4
    else:
        left, error = collected(run([block], items, context()))
        assert len(left) == 2 * len(items)
        assert "contrast 1, 2, 3 never came" in str(error)


def test_images_do_not_wait_for_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    gate, prepare = threading.Event(), Fits.prepare

    def held_up(self: Fits, due: Due, about: Context, angles: object) -> Data:
        assert gate.wait(60)
        return prepare(self, due, about)

    monkeypatch.setattr(Fits, "prepare", held_up)
    items = [*echoes(), *echoes(repetition=1)]
    stream = run([QuantitativeFit(model="ExpDecay", regularization="none", minimum_contrasts=0)], items, context())
    assert [next(stream) for _ in items] == items
    gate.set()
    assert [int(one.header["repetition"]) for one in stream if isinstance(one, Image)] == [0] * 4 + [1] * 4
