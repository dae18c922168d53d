"""Where an image lies in the patient: image headers made from the readouts that went into them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gadgets.layout import IMAGE_HEADER, ImageType, blank

_COPIED = (
    "measurement_uid",
    "position",
    "read_dir",
    "phase_dir",
    "slice_dir",
    "patient_table_position",
    "acquisition_time_stamp",
    "physiology_time_stamp",
)
_COUNTERS = ("average", "slice", "contrast", "phase", "repetition", "set")


def image_header(
    acquisition_header: np.void,
    matrix_xyz: Sequence[int],
    field_of_view_mm_xyz: Sequence[float],
    *,
    series: int = 1,
    index: int = 1,
    image_type: ImageType = ImageType.COMPLEX,
) -> np.void:
    """Image header with the geometry, counters and time stamps of a readout.

    Args:
        acquisition_header: `ACQUISITION_HEADER` of a readout of the image, best the one nearest the k-space centre (`central_header`).
        matrix_xyz: pixels along x, y, z.
        field_of_view_mm_xyz: field of view along x, y, z in mm.
        series: ``image_series_index``; images of one series must agree in shape and element type.
        index: ``image_index``, counted from 1.
        image_type: what the pixels are.

    Returns:
        Writable `IMAGE_HEADER` for complex64 pixels and one channel (`gadgets.items.Image` makes both agree with its data).
    """
    header = blank(IMAGE_HEADER)
    header["version"] = 1
    header["data_type"] = 7
    header["channels"] = 1
    header["matrix_size"] = matrix_xyz
    header["field_of_view"] = field_of_view_mm_xyz
    for name in _COPIED:
        header[name] = acquisition_header[name]
    counters = acquisition_header["idx"]
    for name in _COUNTERS:
        header[name] = counters[name]
    header["image_type"] = image_type
    header["image_index"] = index
    header["image_series_index"] = series
    return header


def central_header(headers: np.ndarray, center_e1: int, center_e2: int = 0) -> np.void | None:
    """Header of the acquired readout nearest the k-space centre.

    Gadgetron's simple reconstruction takes the header at the centre itself, which is empty when an accelerated scan leaves that
    line out; its images then lose position, time stamps and counters.

    Args:
        headers: `ACQUISITION_HEADER` ``[E2, E1]``, zero where no readout was.
        center_e1: centre along E1.
        center_e2: centre along E2.

    Returns:
        The header, or None when `headers` holds no readout.
    """
    e2, e1 = np.nonzero(headers["number_of_samples"])
    if not e1.size:
        return None
    nearest = np.argmin((e1 - float(center_e1)) ** 2 + (e2 - float(center_e2)) ** 2)
    header: np.void = headers[e2[nearest], e1[nearest]]
    return header
