"""Parameters, streams and the chain runner."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gadgets.base import Context, Gadget, GadgetError, ParameterError, Stream, parameter, run
from gadgets.items import Acquisition, Image, Item, Text, Waveform


class Sum(Gadget):
    """Adds up every `length` readouts."""

    length: int = parameter(2, help="readouts a sum", unit="readouts", ge=1)
    scale: float = parameter(1.0, help="factor")
    mode: Literal["sum", "mean"] = parameter("sum", help="what to do")
    channels: list[int] | None = parameter(None, help="channels to keep")
    fast: bool = parameter(False, help="faster", aliases=("quick",))
    ignored = ("debug_folder",)

    def __call__(self, items: Stream) -> Iterator[Item]:
        group: list[np.ndarray] = []
        for acquisition in items.of(Acquisition):
            group.append(acquisition.data)
            if len(group) == self.length:
                yield Image(None, np.sum(group, 0)[:, None, None] * np.float32(self.scale))
                group = []


def readout(number: int = 0) -> Acquisition:
    acquisition = Acquisition(None, np.full((1, 4), number, np.complex64))
    acquisition.scan_counter = number
    return acquisition


def test_properties_parse_from_xml_strings() -> None:
    gadget = Sum("s", length="3", scale="2.5", mode="mean", channels="0, 2 5", quick="true", debug_folder="/x")
    assert (gadget.name, gadget.length, gadget.scale, gadget.mode, gadget.channels, gadget.fast) == ("s", 3, 2.5, "mean", [0, 2, 5], True)
    assert Sum(channels="").channels is None


@pytest.mark.parametrize(
    ("properties", "words"),
    [
        ({"lenght": "3"}, ["no property 'lenght'", "did you mean 'length'"]),
        ({"length": "0"}, ["'length'", "greater than or equal to 1", "'0'"]),
        ({"length": "12abc"}, ["'length'", "'12abc'"]),
        ({"mode": "max"}, ["'mode'", "'sum'", "'mean'"]),
        ({"fast": "perhaps"}, ["'fast'", "'perhaps'"]),
    ],
)
def test_wrong_properties_are_named(properties: dict[str, str], words: list[str]) -> None:
    with pytest.raises(ParameterError) as caught:
        Sum(**properties)
    assert all(word in str(caught.value) for word in ["Sum", *words])


def test_parameters_are_listed_with_unit_and_bounds() -> None:
    row = next(row for row in Sum.parameters() if row["name"] == "length")
    assert row == {
        "name": "length",
        "type": "int",
        "default": 2,
        "required": False,
        "unit": "readouts",
        "help": "readouts a sum",
        "bounds": ">= 1",
    }


def test_a_subclass_keeps_its_own_model() -> None:
    class More(Sum):
        """More parameters."""

        extra: int = parameter(7, help="one more")

    assert (More(extra="8").extra, More().length) == (8, 2)
    with pytest.raises(ParameterError):
        Sum(extra="8")


@given(st.lists(st.sampled_from("awt"), max_size=30), st.integers(1, 4))
def test_items_not_asked_for_pass_in_order(kinds: list[str], length: int) -> None:
    made: list[Item] = [
        readout(i) if kind == "a" else Waveform(None, np.zeros((1, 1), np.uint32)) if kind == "w" else Text(str(i))
        for i, kind in enumerate(kinds)
    ]
    out = list(run([Sum(length=length), Sum(length=1)], made, Context()))
    assert [item for item in out if not isinstance(item, Image)] == [item for item in made if not isinstance(item, Acquisition)]
    assert sum(isinstance(item, Image) for item in out) == kinds.count("a") // length


class Impatient(Gadget):
    """Returns after the first readout."""

    def __call__(self, items: Stream) -> Iterator[Item]:
        yield next(iter(items))


def test_input_left_unread_is_passed_on() -> None:
    made = [readout(i) for i in range(5)]
    assert list(run([Impatient()], made, Context())) == made


class Failing(Gadget):
    """Raises on the third readout."""

    def __call__(self, items: Stream) -> Iterator[Item]:
        for acquisition in items.of(Acquisition):
            if acquisition.scan_counter == 2:
                raise ValueError("bad coil 7")
            yield acquisition


def test_an_error_names_the_gadget_after_what_was_made() -> None:
    received: list[Item] = []
    chain = run([Impatient(), Failing("recon"), Impatient("behind")], [readout(i) for i in range(5)], Context())
    with pytest.raises(GadgetError, match=r"\[recon\] ValueError: bad coil 7") as caught:
        received.extend(chain)
    assert caught.value.gadget == "recon"
    assert [item.scan_counter for item in received] == [0, 1]


def test_closing_the_chain_closes_every_generator() -> None:
    closed = []

    class Watching(Gadget):
        """Notes that it was closed."""

        def __call__(self, items: Stream) -> Iterator[Item]:
            try:
                yield from items.of(Acquisition)
            finally:
                closed.append(self.name)

    def source() -> Iterator[Item]:
        try:
            while True:
                yield readout()
        finally:
            closed.append("source")

    chain = run([Watching("one"), Watching("two")], source(), Context())
    next(chain)
    chain.close()  # type: ignore[attr-defined]
    assert sorted(closed) == ["one", "source", "two"]


def test_time_of_the_newest_readout_travels_to_the_image() -> None:
    made = [readout(i) for i in range(4)]
    for i, acquisition in enumerate(made):
        acquisition.received = 10.0 + i
    images = list(run([Sum(length=2)], made, Context()))
    assert [image.received for image in images] == [11.0, 13.0]
    assert all(image.triggered > 0 for image in images)


def test_seconds_are_exclusive() -> None:
    context = Context()
    list(run([Sum("a", length=1), Sum("b", length=1)], [readout(i) for i in range(10)], context))
    assert set(context.seconds) == {"a", "b"}
    assert all(value >= 0 for value in context.seconds.values())
