"""Image headers from readout headers."""

from __future__ import annotations

import numpy as np

from gadgets.geometry import central_header, image_header
from gadgets.layout import ACQUISITION_HEADER, ImageType, blank


def test_everything_that_places_the_image_is_copied():
    source = blank(ACQUISITION_HEADER)
    for number, name in enumerate(("position", "read_dir", "phase_dir", "slice_dir", "patient_table_position")):
        source[name] = np.arange(3) + 10 * number
    source["measurement_uid"], source["acquisition_time_stamp"], source["physiology_time_stamp"] = 7, 8, (1, 2, 3)
    for number, name in enumerate(("average", "slice", "contrast", "phase", "repetition", "set"), start=20):
        source["idx"][name] = number
    header = image_header(source, (4, 5, 6), (40.0, 50.0, 60.0), series=3, index=9, image_type=ImageType.PHASE)
    for name in header.dtype.names:
        if name in source.dtype.names and name not in ("version", "flags", "user_int", "user_float"):
            np.testing.assert_array_equal(header[name], source[name], name)
        elif name in source["idx"].dtype.names:
            assert header[name] == source["idx"][name], name
    assert header["matrix_size"].tolist() == [4, 5, 6]
    assert header["field_of_view"].tolist() == [40, 50, 60]
    assert [int(header[n]) for n in ("version", "image_series_index", "image_index", "image_type")] == [1, 3, 9, 2]
    header["position"] = 0
    assert source["position"].tolist() == [0, 1, 2]


def test_the_acquired_readout_nearest_the_centre():
    headers = np.zeros((4, 8), ACQUISITION_HEADER)
    for e2, e1 in ((0, 4), (2, 6), (3, 4)):
        headers[e2, e1]["number_of_samples"] = 16
        headers[e2, e1]["scan_counter"] = 10 * e2 + e1
    assert central_header(headers, 4, 2)["scan_counter"] == 34
    assert central_header(headers, 7, 2)["scan_counter"] == 26
    assert central_header(np.zeros((1, 8), ACQUISITION_HEADER), 4) is None
