"""Triggers: nothing lost, nothing doubled, released in time; flag expressions against Python's own."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gadgets.accumulate import FLAG_NAMES, AcquisitionAccumulateTrigger, FlagTrigger, flag_expression
from gadgets.base import Context, ParameterError, run
from gadgets.items import AcquisitionBucket, Text, Waveform
from gadgets.layout import Flag
from tests.gadgets.readouts import make_header, readout, through

DATA = np.ones((1, 2), np.complex64)


def numbered(number: int, flags=(), **counters):
    return readout(DATA, flags, fields={"scan_counter": number}, **counters)


def counters_of(bucket: AcquisitionBucket) -> list[int]:
    return [int(one.header["scan_counter"]) for one in bucket.data]


def reference(items, trigger: str, sort: str) -> list[list[int]]:
    """Buckets by their definition: runs of equal trigger counter, each split by the sorting counter."""
    buckets = []
    for _, group in itertools.groupby(items, key=lambda item: int(item.header["idx"][trigger])):
        run_of = list(group)
        for value in sorted({int(item.header["idx"][sort]) for item in run_of}):
            buckets.append([int(item.header["scan_counter"]) for item in run_of if item.header["idx"][sort] == value])
    return buckets


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=40))
def test_splits_at_each_change_and_sorts(order):
    items = [numbered(n, repetition=repetition, slice=number) for n, (repetition, number) in enumerate(order)]
    out = through(AcquisitionAccumulateTrigger(trigger_dimension="repetition", sorting_dimension="slice"), items)
    assert [counters_of(bucket) for bucket in out] == reference(items, "repetition", "slice")


@given(st.integers(0, 30), st.integers(1, 7), st.integers(1, 7))
def test_counted_readouts(total, first, ongoing):
    gadget = AcquisitionAccumulateTrigger(
        trigger_dimension="n_acquisitions", n_acquisitions_before_trigger=first, n_acquisitions_before_ongoing_trigger=ongoing
    )
    out = [counters_of(bucket) for bucket in through(gadget, [numbered(n) for n in range(total)])]
    edges = [0, *range(first, total, ongoing), total] if total > first else [0, total]
    assert out == [list(range(a, b)) for a, b in itertools.pairwise(edges) if b > a]


@pytest.mark.parametrize(
    "dimension",
    [
        "kspace_encode_step_1",
        "kspace_encode_step_2",
        "average",
        "slice",
        "contrast",
        "phase",
        "repetition",
        "set",
        "segment",
        "user_0",
        "user_7",
    ],
)
def test_every_dimension(dimension):
    items = [numbered(0), numbered(1), numbered(2)]
    for item, value in zip(items, (4, 4, 5), strict=True):
        if dimension.startswith("user_"):
            item.header["idx"]["user"][int(dimension[-1])] = value
        else:
            item.header["idx"][dimension] = value
    out = through(AcquisitionAccumulateTrigger(trigger_dimension=dimension.upper()), items)
    assert [counters_of(bucket) for bucket in out] == [[0, 1], [2]]


def test_without_dimension_one_bucket_at_the_end():
    out = through(AcquisitionAccumulateTrigger(trigger_dimension=""), [numbered(n, repetition=n) for n in range(3)])
    assert [counters_of(bucket) for bucket in out] == [[0, 1, 2]]


def test_unknown_dimension_is_named():
    with pytest.raises(ParameterError, match="trigger_dimension"):
        AcquisitionAccumulateTrigger(trigger_dimension="repetitions")


def frames(repetitions: int, lines: int, *, last: tuple[Flag, ...], trailing=()):
    """`repetitions` frames; the last readout of each carries `last`, the very last also `trailing`."""
    return [
        numbered(
            r * lines + line,
            [*(last if line == lines - 1 else ()), *(trailing if (r, line) == (repetitions - 1, lines - 1) else ())],
            repetition=r,
        )
        for r in range(repetitions)
        for line in range(lines)
    ]


def released_after(gadget, items, header) -> list[int]:
    """How many readouts had gone in when each bucket came out."""
    taken = 0

    def source() -> Iterator:
        nonlocal taken
        for item in items:
            taken += 1
            yield item
        taken += 1  # the end of the stream

    return [taken for _ in run([gadget], source(), Context(header=header))]


MANY = make_header(limits={"repetition": (0, 2, 0)})
ONE = make_header(limits={"repetition": (0, 0, 0)})


@pytest.mark.parametrize(
    ("repetitions", "header", "last", "trailing", "times"),
    [
        (3, MANY, (Flag.LAST_IN_REPETITION,), (), [4, 8, 12]),
        (3, MANY, (), (Flag.LAST_IN_MEASUREMENT,), [5, 9, 12]),
        (1, ONE, (Flag.LAST_IN_REPETITION,), (), [4]),
        (1, make_header(), (Flag.LAST_IN_REPETITION,), (), [4]),
        (3, MANY, (Flag.LAST_IN_SLICE,), (), [5, 9, 13]),
    ],
)
def test_flags_release_before_the_next_readout_comes(repetitions, header, last, trailing, times):
    items = frames(repetitions, 4, last=last, trailing=trailing)
    gadget = AcquisitionAccumulateTrigger(trigger_dimension="repetition")
    assert released_after(gadget, items, header) == times
    with_flags = [counters_of(b) for b in through(gadget, items, header)]
    without = AcquisitionAccumulateTrigger(trigger_dimension="repetition", trigger_on_flags="false")
    assert with_flags == [counters_of(b) for b in through(without, items, header)]
    assert released_after(without, items, header)[-1] == len(items) + 1


def test_a_flag_that_does_not_end_the_bucket_does_not_split_it():
    """One slice, repeated: LAST_IN_SLICE comes in every repetition, the slice counter never changes."""
    header = make_header(limits={"slice": (0, 0, 0), "repetition": (0, 2, 0)})
    items = frames(3, 4, last=(Flag.LAST_IN_SLICE,))
    assert released_after(AcquisitionAccumulateTrigger(trigger_dimension="slice"), items, header) == [12]


def test_a_flag_that_lies_is_warned_of_and_not_believed_again(caplog):
    items = [numbered(n, [Flag.LAST_IN_REPETITION], repetition=0) for n in range(4)]
    context = Context(header=MANY)
    with caplog.at_level(logging.WARNING, "reconstream"):
        out = through(AcquisitionAccumulateTrigger(trigger_dimension="repetition"), items, context)
    assert [counters_of(bucket) for bucket in out] == [[0], [1, 2, 3]]
    assert context.counts == {"last-of flags belied by a further readout": 1}
    assert "trigger_on_flags=false" in caplog.text


def test_calibration_imaging_and_phase_correction_are_told_apart():
    items = [
        numbered(0),
        numbered(1, [Flag.IS_PARALLEL_CALIBRATION]),
        numbered(2, [Flag.IS_PARALLEL_CALIBRATION_AND_IMAGING], line=5),
        numbered(3, [Flag.IS_PHASECORR_DATA]),
    ]
    context = Context()
    (bucket,) = through(AcquisitionAccumulateTrigger(), items, context)
    assert counters_of(bucket) == [0, 2]
    assert [int(one.header["scan_counter"]) for one in bucket.ref] == [1, 2]
    assert bucket.datastats[0].values["kspace_encode_step_1"] == {0, 5}
    assert bucket.refstats[0].values["kspace_encode_step_1"] == {0, 5}
    assert context.counts == {"phase correction readouts left out of buckets": 1}


def test_readouts_that_are_no_image_data_are_left_out_as_configured():
    items = [numbered(0), numbered(1, [Flag.IS_NAVIGATION_DATA]), numbered(2, [Flag.IS_NOISE_MEASUREMENT]), numbered(3, [Flag.USER1])]
    context = Context()
    (bucket,) = through(AcquisitionAccumulateTrigger(), items, context)
    assert counters_of(bucket) == [0, 3]
    assert sum(context.counts.values()) == 2
    (bucket,) = through(AcquisitionAccumulateTrigger(ignore_flags="user1"), items)
    assert counters_of(bucket) == [0, 1]
    (bucket,) = through(AcquisitionAccumulateTrigger(ignore_flags=""), items)
    assert counters_of(bucket) == [0, 1, 3]
    with pytest.raises(ParameterError, match="did you mean 'is_navigation_data'"):
        AcquisitionAccumulateTrigger(ignore_flags="is_navigator_data")


def test_stats_know_the_encoding_space():
    items = [readout(DATA, fields={"encoding_space_ref": 1}, slice=3), numbered(1, slice=2)]
    (bucket,) = through(AcquisitionAccumulateTrigger(), items, make_header(encodings=2))
    assert [stats.values["slice"] for stats in bucket.datastats] == [{2}, {3}]


def test_waveforms_leave_with_the_first_bucket_and_other_items_pass():
    waveform, late, text = Waveform(None, np.zeros((1, 4), np.uint32)), Waveform(None, np.zeros((1, 4), np.uint32)), Text("hello")
    items = [waveform, numbered(0, slice=1), numbered(1, slice=0), text, numbered(2, [Flag.LAST_IN_MEASUREMENT]), late]
    context = Context()
    out = through(AcquisitionAccumulateTrigger(sorting_dimension="slice"), items, context)
    assert out[0] is text
    assert [bucket.waveforms for bucket in out[1:]] == [[waveform], []]
    assert context.counts == {"waveforms after the last trigger": 1}


def test_bucket_carries_the_time_of_its_own_last_readout():
    items = frames(2, 2, last=())
    for item in items:
        item.received = 10.0 + float(item.header["scan_counter"])
    out = through(AcquisitionAccumulateTrigger(trigger_dimension="repetition"), items, MANY)
    assert [bucket.received for bucket in out] == [11.0, 13.0]
    assert all(bucket.triggered > 0 for bucket in out)


# -- flag expressions --------------------------------------------------------------------------------------------------

names = st.sampled_from(sorted(FLAG_NAMES))
expressions = st.recursive(
    names,
    lambda inner: st.one_of(
        inner.map(lambda a: f"!{a}"),
        inner.map(lambda a: f"({a})"),
        st.tuples(inner, st.sampled_from(["&&", " || ", " && ", "||"]), inner).map("".join),
    ),
    max_leaves=8,
)


@given(expressions, st.integers(0, 2**64 - 1))
def test_expressions_mean_what_they_mean_in_python(text, flags):
    python = text.replace("&&", " and ").replace("||", " or ").replace("!", " not ")
    values = {name: bool(flags >> (flag - 1) & 1) for name, flag in FLAG_NAMES.items()}
    assert flag_expression(text)(flags) == eval(python, {}, values)


def test_the_bit_of_each_flag_is_ismrmrds():
    ismrmrd = pytest.importorskip("ismrmrd")
    for name, flag in FLAG_NAMES.items():
        number = getattr(ismrmrd, f"ACQ_{name.upper()}", None)
        if number is not None:
            assert flag == number, name
    assert flag_expression("is_surfacecoilcorrectionscan_data")(1 << 28)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a flag name, '!' or '\\(' at character 1, found 'nothing'"),
        ("last_in_slice &&", "at character 17, found 'nothing'"),
        ("last_in_slice & user1", "expected '&&', '\\|\\|' or the end at character 15, found '&'"),
        ("(last_in_slice", "expected '\\)' at character 15"),
        ("last_in_slice user1", "at character 15, found 'user1'"),
        ("last_in_slices", "did you mean 'last_in_slice'"),
        ("!!)", "at character 3, found '\\)'"),
    ],
)
def test_a_wrong_expression_says_where(text, message):
    with pytest.raises(ParameterError, match=message):
        FlagTrigger(trigger_flags=text)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=30))
def test_flag_trigger_splits_after_each_match(order):
    items = [numbered(n, [*([Flag.USER1] if a else []), *([Flag.IS_NAVIGATION_DATA] if b else [])]) for n, (a, b) in enumerate(order)]
    out = through(FlagTrigger(trigger_flags="user1 && !is_navigation_data"), items)
    expected: list[list[int]] = [[]]
    for n, (a, b) in enumerate(order):
        expected[-1].append(n)
        if a and not b:
            expected.append([])
    assert [counters_of(bucket) for bucket in out] == [numbers for numbers in expected if numbers]


def test_flag_trigger_leaves_noise_out():
    items = [numbered(0, [Flag.IS_NOISE_MEASUREMENT]), numbered(1), numbered(2, [Flag.LAST_IN_SLICE])]
    context = Context()
    (bucket,) = through(FlagTrigger(trigger_flags="last_in_slice"), items, context)
    assert counters_of(bucket) == [1, 2]
    assert context.counts == {"noise readouts left out of buckets": 1}
