"""The packaged chain for simultaneous slices, as shipped, from readouts to the client's images."""

from __future__ import annotations

import numpy as np
import pytest

from service.local import reconstruct
from tests.gadgets.field_scan import nrmse
from tests.gadgets.sms_scan import SMSScan


@pytest.mark.parametrize("scan", [SMSScan(repetitions=2), SMSScan(factor=3, shift=1 / 3, acceleration=2)])
def test_the_chain_shows_every_slice_as_it_is(scan: SMSScan) -> None:
    images = reconstruct(scan.items(), "cartesian_sms", header=scan.header.xml)
    assert sorted((int(i.repetition), int(i.slice)) for i in images) == [
        (r, s) for r in range(scan.repetitions) for s in range(scan.slices)
    ]
    for image in images:
        number = int(image.slice)
        assert image.data.dtype == np.uint16
        assert image.position.tolist() == [1.0, 2.0, 4.0 * number]
        found = [nrmse(image.data[0, 0], truth) for truth in scan.truth]
        assert found[number] < (0.03 if scan.factor == 2 else 0.12)
        assert int(np.argmin(found)) == number
