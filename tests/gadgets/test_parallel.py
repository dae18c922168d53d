"""Parallel streams and parallel workers: order, copies, errors, bounds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gadgets.base import Context, Gadget, GadgetError, Stream, run
from gadgets.channel import Channel, Closed, in_background
from gadgets.composite import Parallel, ParallelProcess
from gadgets.items import Acquisition, Item, Text, Waveform
from gadgets.parallel import AcquisitionFanout, ImageFanout, UnorderedMerge, WaveformFanout


def readout(number: int) -> Acquisition:
    acquisition = Acquisition(None, np.full((1, 4), number, np.complex64))
    acquisition.scan_counter = number
    return acquisition


def until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    return condition()


class Report(Gadget):
    """After every `every` readouts one text a readout of the group; at the end one with the rest."""

    every = 1

    def __call__(self, items: Stream) -> Iterator[Item]:
        group: list[int] = []
        for acquisition in items.of(Acquisition):
            group.append(int(acquisition.scan_counter))
            if len(group) == self.every:
                for number in group:
                    yield Text(f"{self.name} {number}")
                group = []
        yield Text(f"{self.name} rest {group}")


def report(name: str, every: int) -> Report:
    gadget = Report(name)
    gadget.every = every
    return gadget


def block(*streams: list[Gadget]) -> Parallel:
    return Parallel("block", AcquisitionFanout(), {str(n): stream for n, stream in enumerate(streams)}, UnorderedMerge())


def words(item: Item) -> str:
    return item.text if isinstance(item, Text) else f"{type(item).__name__} {int(getattr(item, 'scan_counter', -1))}"


def expected(kinds: list[bool], every: list[int]) -> list[str]:
    """The documented order, worked out one input item at a time."""
    out: list[str] = []
    groups: list[list[int]] = [[] for _ in every]
    for number, is_readout in enumerate(kinds):
        if not is_readout:
            out.append(f"Waveform {number}")
            continue
        for lane, size in enumerate(every):
            groups[lane].append(number)
            if len(groups[lane]) == size:
                out += [f"s{lane} {one}" for one in groups[lane]]
                groups[lane] = []
    return [*out, *(f"s{lane} rest {group}" for lane, group in enumerate(groups))]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.booleans(), max_size=60), st.lists(st.integers(1, 7), min_size=1, max_size=4))
def test_the_order_does_not_depend_on_timing(kinds: list[bool], every: list[int]) -> None:
    def items() -> Iterator[Item]:
        for number, is_readout in enumerate(kinds):
            waveform = Waveform(None, np.zeros((1, 1), np.uint32))
            waveform.scan_counter = number
            yield readout(number) if is_readout else waveform

    chain = [block(*[[report(f"s{lane}", size)] for lane, size in enumerate(every)])]
    assert [words(item) for item in run(chain, items(), Context())] == expected(kinds, every)


def test_an_empty_stream_passes_items_and_each_stream_has_its_own_copy() -> None:
    class Spoil(Gadget):
        """Overwrites what it gets."""

        def __call__(self, items: Stream) -> Iterator[Item]:
            for acquisition in items.of(Acquisition):
                acquisition.data[:] = -1
                acquisition.scan_counter = 99
                yield acquisition

    out = list(run([block([Spoil("spoil")], [], [Spoil("spoil too")])], [readout(7)], Context()))
    assert [(int(item.scan_counter), complex(item.data[0, 0])) for item in out] == [(99, -1), (7, 7), (99, -1)]
    assert len({item.data.ctypes.data for item in out}) == 3


@pytest.mark.parametrize(("fanout", "kind"), [(AcquisitionFanout, Acquisition), (WaveformFanout, Waveform)])
def test_a_fanout_takes_its_own_type_only(fanout: type, kind: type) -> None:
    made: list[Item] = [readout(0), Waveform(None, np.zeros((1, 1), np.uint32)), Text("t")]
    parallel = Parallel("p", fanout(), {"a": [], "b": []}, UnorderedMerge())
    out = list(run([parallel], made, Context()))
    assert sum(isinstance(item, kind) for item in out) == 2
    assert len(out) == 4


def test_an_image_fanout_leaves_readouts_alone() -> None:
    parallel = Parallel("p", ImageFanout(), {"a": [report("never", 1)]}, UnorderedMerge())
    out = list(run([parallel], [readout(0), readout(1)], Context()))
    assert [words(item) for item in out] == ["Acquisition 0", "Acquisition 1", "never rest []"]


class Failing(Gadget):
    """Raises at readout 5."""

    def __call__(self, items: Stream) -> Iterator[Item]:
        for acquisition in items.of(Acquisition):
            if acquisition.scan_counter == 5:
                raise ValueError("coil 3 is missing")
            yield acquisition


def test_an_error_in_a_stream_arrives_in_its_place_and_stops_everything() -> None:
    stopped = threading.Event()

    def endless() -> Iterator[Item]:
        try:
            number = 0
            while True:
                yield readout(number)
                number += 1
        finally:
            stopped.set()

    out: list[str] = []
    before = threading.active_count()
    with pytest.raises(GadgetError, match=r"\[bad\] ValueError: coil 3") as caught:
        out.extend(map(words, run([block([report("good", 1)], [Failing("bad")])], endless(), Context())))
    assert caught.value.gadget == "bad"
    assert out == [text for n in range(5) for text in (f"good {n}", f"Acquisition {n}")] + ["good 5"]
    assert stopped.wait(20)
    assert until(lambda: threading.active_count() <= before)


def test_an_error_of_the_source_is_not_taken_for_the_end() -> None:
    def broken() -> Iterator[Item]:
        yield readout(0)
        raise ConnectionResetError("client gone")

    out: list[str] = []
    with pytest.raises(ConnectionResetError, match="client gone"):
        out.extend(map(words, run([block([report("a", 2)], [report("b", 1)])], broken(), Context())))
    assert "a rest [0]" not in out


def test_giving_up_ends_all_threads_and_the_source() -> None:
    closed = threading.Event()

    def endless() -> Iterator[Item]:
        try:
            while True:
                yield readout(1)
        finally:
            closed.set()

    before = threading.active_count()
    chain = run([block([report("a", 1)], [report("b", 3)], [block([], [report("c", 1)])])], endless(), Context())
    next(chain)
    chain.close()  # type: ignore[attr-defined]
    assert closed.wait(20)
    assert until(lambda: threading.active_count() <= before)


def test_a_stream_that_stops_taking_stops_the_source() -> None:
    go = threading.Event()
    given_out = 0
    furthest = 0

    class Stuck(Gadget):
        """Waits at its first readout until told to go on."""

        def __call__(self, items: Stream) -> Iterator[Item]:
            for acquisition in items.of(Acquisition):
                assert go.wait(20)
                yield acquisition

    def counted() -> Iterator[Item]:
        nonlocal given_out, furthest
        for number in range(500):
            given_out += 1
            if not go.is_set():
                furthest = given_out
            yield readout(number)

    chain = run([block([], [Stuck("stuck")])], counted(), Context())
    out = [next(chain)]
    assert until(lambda: given_out > Parallel.queue)
    before = furthest
    go.set()
    out += list(chain)
    assert before <= 3 * Parallel.queue
    assert len(out) == 1000


def test_accounts_of_the_streams_are_kept() -> None:
    class Counting(Gadget):
        """Counts readouts."""

        def __call__(self, items: Stream) -> Iterator[Item]:
            for acquisition in items.of(Acquisition):
                items.context.count("readouts")
                yield acquisition

    context = Context()
    list(run([block([Counting("one")], [Counting("two")])], [readout(n) for n in range(50)], context))
    assert context.counts == {"readouts": 100}
    assert {"one", "two"} <= set(context.seconds)


class Square(Gadget):
    """Readout -> its number squared, twice."""

    pure = True

    def __call__(self, items: Stream) -> Iterator[Item]:
        for acquisition in items.of(Acquisition):
            yield Text(str(int(acquisition.scan_counter) ** 2))
            yield Text("again")


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 40), st.integers(0, 5))
def test_workers_keep_the_order(count: int, workers: int) -> None:
    out = [words(item) for item in run([ParallelProcess("p", [Square("s")], workers)], map(readout, range(count)), Context())]
    assert out == [text for n in range(count) for text in (str(n * n), "again")]


def test_workers_work_at_the_same_time() -> None:
    both = threading.Barrier(2)

    class Meet(Gadget):
        """Goes on only when two readouts are being worked on."""

        pure = True

        def __call__(self, items: Stream) -> Iterator[Item]:
            for acquisition in items:
                both.wait(20)
                yield acquisition

    out = list(run([ParallelProcess("p", [Meet("m")], 2)], map(readout, range(4)), Context()))
    assert [int(item.scan_counter) for item in out] == [0, 1, 2, 3]


def test_a_worker_delivers_before_the_source_has_ended() -> None:
    delivered = threading.Event()

    def waiting() -> Iterator[Item]:
        yield readout(3)
        assert delivered.wait(20), "nothing came while the source was open"

    chain = run([ParallelProcess("p", [Square("s")], 4)], waiting(), Context())
    assert words(next(chain)) == "9"
    delivered.set()
    assert [words(item) for item in chain] == ["again"]


def test_a_failing_worker_names_its_gadget() -> None:
    chain = run([ParallelProcess("p", [Failing("bad")], 3)], map(readout, range(50)), Context())
    out: list[int] = []
    with pytest.raises(GadgetError, match=r"\[bad\] ValueError"):
        out.extend(int(item.scan_counter) for item in chain)
    assert out == [0, 1, 2, 3, 4]


def test_a_channel_is_bounded_and_tells_its_producer_that_it_is_closed() -> None:
    put: list[int] = []
    refused = threading.Event()

    def work(give: Callable[[int], None]) -> None:
        try:
            for number in range(1000):
                give(number)
                put.append(number)
        except Closed:
            refused.set()
            raise

    numbers = in_background(work, 4, "test")
    assert [next(numbers), next(numbers)] == [0, 1]
    assert until(lambda: len(put) == 6)
    numbers.close()  # type: ignore[attr-defined]
    assert refused.wait(20)
    assert put == [0, 1, 2, 3, 4, 5]


def test_a_channel_delivers_what_came_before_an_error() -> None:
    channel: Channel[int] = Channel(3)
    channel.put(1)
    channel.finish(KeyError("x"))
    assert next(channel) == 1
    with pytest.raises(KeyError):
        next(channel)
