"""Bytes between the fields of a header never decide anything."""

from __future__ import annotations

import numpy as np

from gadgets.grappa import _same
from gadgets.items import ReconBit, ReconBuffer, ReconData
from gadgets.layout import ACQUISITION_HEADER, SAMPLING_DESCRIPTION
from service.wire import encode


def buffer(padding: bytes) -> ReconBuffer:
    sampling = np.frombuffer(bytearray(54 * b"\1" + padding), SAMPLING_DESCRIPTION)[0]
    return ReconBuffer(np.ones((1, 1, 1, 2, 1, 3, 4), np.complex64), np.zeros((1, 1, 1, 1, 3), ACQUISITION_HEADER), sampling)


def test_a_calibration_is_the_same_whatever_lies_between_its_fields() -> None:
    weights = np.zeros((1, 1, 1, 2, 1, 3, 4))
    assert _same((buffer(b"ab"), weights), buffer(b"cd"), weights.shape)


def test_what_is_sent_is_the_same_whatever_lies_between_the_fields() -> None:
    one, other = (b"".join(bytes(part) for part in encode(ReconData([ReconBit(buffer(padding))]))) for padding in (b"ab", b"cd"))
    assert one == other
