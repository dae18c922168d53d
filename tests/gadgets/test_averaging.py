"""Averages of readouts: the mean, where it leaves, what is lost and what is not."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from gadgets.averaging import AverageReadouts
from gadgets.base import Context, GadgetError, run
from gadgets.header import Header
from gadgets.items import Acquisition, Item, Text
from gadgets.layout import Flag
from tests.gadgets.scans import header_xml, readout

RANDOM = np.random.default_rng(0)
TRAJECTORY = RANDOM.uniform(-0.5, 0.5, (16, 2)).astype(np.float32)


def header(averages: int) -> Header:
    """With this limit of the average counter."""
    xml = header_xml((16, 16)).decode()
    limit = f"<average><minimum>0</minimum><maximum>{averages - 1}</maximum><center>0</center></average>"
    return Header(xml.replace("</encodingLimits>", f"{limit}</encodingLimits>"))


def scan(averages: int, arms: int, outer: str = "average", channels: int = 2) -> list[Acquisition]:
    """Noise of variance 1 a sample; `outer` counts the averages."""
    found = []
    for average in range(averages):
        for arm in range(arms):
            noise = RANDOM.standard_normal((channels, 16)) + 1j * RANDOM.standard_normal((channels, 16))
            flags = [Flag.LAST_IN_REPETITION] if arm == arms - 1 else []
            found.append(readout(noise / np.sqrt(2), TRAJECTORY, len(found), flags, kspace_encode_step_1=arm, **{outer: average}))
    return found


def averaged(items: Sequence[Item], count: int, context: Context | None = None, **properties: Any) -> list[Any]:
    """What comes out."""
    return list(run([AverageReadouts(**properties)], items, context or Context(header=header(count))))


def test_the_noise_of_thirty_averages_is_less_by_the_root_of_thirty() -> None:
    readouts = scan(30, 100)
    found = averaged(readouts, 30)
    assert len(found) == 100
    ratio = np.std([one.data for one in found]) / np.std([one.data for one in readouts])
    assert ratio == pytest.approx(1 / np.sqrt(30), rel=0.05)


def test_it_is_the_mean_with_the_header_and_the_trajectory_of_the_last() -> None:
    readouts = scan(4, 3)
    found = averaged(readouts, 4)
    for arm, one in enumerate(found):
        np.testing.assert_allclose(one.data, np.mean([other.data for other in readouts[arm::3]], 0), rtol=1e-6, atol=1e-7)
        assert one.header == readouts[9 + arm].header
        np.testing.assert_array_equal(one.trajectory, TRAJECTORY)


def test_a_mean_leaves_in_the_place_of_its_last_readout() -> None:
    readouts = scan(2, 2)
    noise = readout(np.ones((2, 8)), None, 99, [Flag.IS_NOISE_MEASUREMENT])
    items: list[Item] = [noise, *readouts[:3], Text("between"), readouts[3]]
    found = averaged(items, 2)
    assert [type(item) for item in found] == [Acquisition, Acquisition, Text, Acquisition]
    assert found[0] is noise


def test_repetitions_may_be_averages() -> None:
    readouts = scan(6, 2, "repetition")
    found = averaged(readouts, 1, averages=3, counter="repetition")
    assert [int(one.header["idx"]["repetition"]) for one in found] == [0, 0, 1, 1]
    np.testing.assert_allclose(found[3].data, np.mean([readouts[n].data for n in (7, 9, 11)], 0), rtol=1e-6, atol=1e-7)


def test_counters_that_say_nothing() -> None:
    readouts = scan(6, 2)
    for one in readouts:
        one.header["idx"]["average"] = 0
    found = averaged(readouts, 1, averages=3, counter="arrival")
    assert len(found) == 4
    np.testing.assert_allclose(found[0].data, np.mean([readouts[n].data for n in (0, 2, 4)], 0), rtol=1e-6, atol=1e-7)


def test_a_scan_without_averages_passes() -> None:
    readouts = scan(1, 4)
    assert averaged(readouts, 1) == readouts


def test_nothing_is_lost_when_readouts_are_missing(caplog: pytest.LogCaptureFixture) -> None:
    """One readout lost on the way, one sent twice, the scan stopped in the second of two repetitions."""
    first, second = scan(4, 2), scan(2, 2)
    for one in second:
        one.header["idx"]["repetition"] = 1
    del first[2]
    first.insert(2, first[2])
    context = Context(header=header(4))
    with caplog.at_level(logging.WARNING, "reconstream"):
        found = averaged([*first, *second], 4, context)
    assert [int(one.header["idx"]["repetition"]) for one in found] == [0, 0, 1, 1]
    np.testing.assert_allclose(found[2].data, (second[0].data + second[2].data) / 2, rtol=1e-6, atol=1e-7)
    assert context.counts["readouts averaged fewer times than asked for"] == 3
    assert len(caplog.records) == 1


def test_bad_samples_are_left_out_of_the_mean() -> None:
    readouts = scan(3, 1)
    readouts[1].data[0, 5] = np.nan
    for one in readouts:
        one.data[1, 7] = np.inf
    context = Context(header=header(3))
    (found,) = averaged(readouts, 3, context)
    assert found.data[0, 5] == pytest.approx((readouts[0].data[0, 5] + readouts[2].data[0, 5]) / 2)
    assert np.isnan(found.data[1, 7])
    assert np.isfinite(found.data).sum() == found.data.size - 1
    assert context.counts["samples not finite"] == 4


def test_samples_that_were_not_taken_are_left_out_of_the_mean() -> None:
    """A session hands on NaN as 0: a readout lost that way must not darken its line."""
    readouts = scan(3, 1)
    readouts[1].data[:] = 0
    readouts[2].data[0, 5] = 0
    for one in readouts:
        one.data[1, 7] = 0
    (found,) = averaged(readouts, 3)
    expected = (readouts[0].data + readouts[2].data) / 2
    expected[0, 5], expected[1, 7] = readouts[0].data[0, 5], 0
    np.testing.assert_allclose(found.data, expected, rtol=1e-6)


def test_repetitions_that_begin_anew_go_on_being_averages() -> None:
    """The counter has 16 bits, and 65,536 is no multiple of 6."""
    readouts = scan(18, 1, "repetition")
    for n, one in enumerate(readouts):
        one.header["idx"]["repetition"] = (65526 + n) % 65536
    context = Context(header=header(6))
    found = averaged(readouts, 6, context, counter="repetition", averages=6)
    assert [int(one.header["idx"]["repetition"]) for one in found] == [10921, 10922, 10923]
    for n, one in enumerate(found):
        np.testing.assert_allclose(one.data, np.mean([each.data for each in readouts[6 * n : 6 * n + 6]], 0), rtol=1e-5, atol=1e-6)
    assert not context.counts


def test_averages_that_the_header_does_not_tell_of_are_said(caplog: pytest.LogCaptureFixture) -> None:
    context = Context(header=Header(header_xml((16, 16))))
    with caplog.at_level(logging.WARNING, "reconstream"):
        assert len(averaged(scan(3, 2), 3, context)) == 6
    assert context.counts == {"readouts not averaged, for the header tells of no averages": 4}
    assert [record.message for record in caplog.records if "set averages" in record.message] == [
        record.message for record in caplog.records
    ]
    assert len(caplog.records) == 1
    alone = Context(header=Header(header_xml((16, 16))))
    averaged(scan(3, 2), 3, alone, averages=1)
    assert not alone.counts


def test_what_is_no_average_is_refused() -> None:
    longer, turned = scan(2, 1), scan(2, 1)
    longer[1] = readout(np.ones((2, 8)), TRAJECTORY[:8], 1, average=1)
    turned[1].trajectory = -TRAJECTORY
    for readouts, message in ((longer, "all averages must be alike"), (turned, "has another trajectory")):
        with pytest.raises(GadgetError, match=message):
            averaged(readouts, 2)
