"""The packaged chain for spirals in an inhomogeneous field, as shipped."""

from __future__ import annotations

import numpy as np

from gadgets.items import Acquisition
from service.local import reconstruct
from tests.gadgets.field_scan import FieldScan, nrmse


def test_the_chain_takes_out_the_blur() -> None:
    scan = FieldScan()
    items: list[Acquisition] = []
    for repetition in range(2):
        for contrast in range(2):
            items += scan.image(contrast, len(items), repetition=repetition)
    corrected, blurred = (reconstruct(items, config, header=scan.header.xml) for config in ("spiral_b0", "spiral_cgsense"))
    assert [(int(i.repetition), int(i.contrast)) for i in corrected] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert {image.data.dtype.type for image in corrected} == {np.uint16}
    errors = [[nrmse(image.data[0, 0], scan.truth) for image in images] for images in (corrected, blurred)]
    assert max(errors[0]) < 0.08
    assert min(errors[1]) > 2.5 * max(errors[0])
