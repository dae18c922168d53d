"""Headers as they lie in memory and on the wire (ISMRMRD 1.x), and the acquisition flags.

NumPy structured types, little-endian, packed exactly as in the ISMRMRD C structures: an acquisition header has 340 bytes, an
image header 198, a waveform header 40, a sampling description 56. Every code path that touches a header uses these types, so
that reading a header is a view on the received bytes and never a copy.
"""

from __future__ import annotations

import enum

import numpy as np

COUNTERS: np.dtype = np.dtype(
    [
        ("kspace_encode_step_1", "<u2"),
        ("kspace_encode_step_2", "<u2"),
        ("average", "<u2"),
        ("slice", "<u2"),
        ("contrast", "<u2"),
        ("phase", "<u2"),
        ("repetition", "<u2"),
        ("set", "<u2"),
        ("segment", "<u2"),
        ("user", "<u2", 8),
    ]
)
"""Encoding counters of an acquisition (34 bytes)."""

ACQUISITION_HEADER: np.dtype = np.dtype(
    [
        ("version", "<u2"),
        ("flags", "<u8"),
        ("measurement_uid", "<u4"),
        ("scan_counter", "<u4"),
        ("acquisition_time_stamp", "<u4"),
        ("physiology_time_stamp", "<u4", 3),
        ("number_of_samples", "<u2"),
        ("available_channels", "<u2"),
        ("active_channels", "<u2"),
        ("channel_mask", "<u8", 16),
        ("discard_pre", "<u2"),
        ("discard_post", "<u2"),
        ("center_sample", "<u2"),
        ("encoding_space_ref", "<u2"),
        ("trajectory_dimensions", "<u2"),
        ("sample_time_us", "<f4"),
        ("position", "<f4", 3),
        ("read_dir", "<f4", 3),
        ("phase_dir", "<f4", 3),
        ("slice_dir", "<f4", 3),
        ("patient_table_position", "<f4", 3),
        ("idx", COUNTERS),
        ("user_int", "<i4", 8),
        ("user_float", "<f4", 8),
    ]
)
"""Acquisition header (340 bytes)."""

WAVEFORM_HEADER: np.dtype = np.dtype(
    {
        "names": [
            "version",
            "flags",
            "measurement_uid",
            "scan_counter",
            "time_stamp",
            "number_of_samples",
            "channels",
            "sample_time_us",
            "waveform_id",
        ],
        "formats": ["<u2", "<u8", "<u4", "<u4", "<u4", "<u2", "<u2", "<f4", "<u2"],
        "offsets": [0, 8, 16, 20, 24, 28, 30, 32, 36],
        "itemsize": 40,
    }
)
"""Waveform header (40 bytes, naturally aligned)."""

IMAGE_HEADER: np.dtype = np.dtype(
    [
        ("version", "<u2"),
        ("data_type", "<u2"),
        ("flags", "<u8"),
        ("measurement_uid", "<u4"),
        ("matrix_size", "<u2", 3),
        ("field_of_view", "<f4", 3),
        ("channels", "<u2"),
        ("position", "<f4", 3),
        ("read_dir", "<f4", 3),
        ("phase_dir", "<f4", 3),
        ("slice_dir", "<f4", 3),
        ("patient_table_position", "<f4", 3),
        ("average", "<u2"),
        ("slice", "<u2"),
        ("contrast", "<u2"),
        ("phase", "<u2"),
        ("repetition", "<u2"),
        ("set", "<u2"),
        ("acquisition_time_stamp", "<u4"),
        ("physiology_time_stamp", "<u4", 3),
        ("image_type", "<u2"),
        ("image_index", "<u2"),
        ("image_series_index", "<u2"),
        ("user_int", "<i4", 8),
        ("user_float", "<f4", 8),
        ("attribute_string_len", "<u4"),
    ]
)
"""Image header (198 bytes). ``matrix_size`` and ``field_of_view`` (mm) are in x, y, z order."""

SAMPLING_DESCRIPTION: np.dtype = np.dtype(
    {
        "names": [
            "encoded_FOV",
            "recon_FOV",
            "encoded_matrix",
            "recon_matrix",
            "sampling_limits",
        ],
        "formats": [
            ("<f4", 3),
            ("<f4", 3),
            ("<u2", 3),
            ("<u2", 3),
            (np.dtype([("min", "<u2"), ("center", "<u2"), ("max", "<u2")]), 3),
        ],
        "offsets": [0, 12, 24, 30, 36],
        "itemsize": 56,
    }
)
"""Gadgetron's SamplingDescription (56 bytes): fields of view in mm, matrices and limits in x/RO, y/E1, z/E2 order."""

assert (ACQUISITION_HEADER.itemsize, IMAGE_HEADER.itemsize) == (340, 198)

ELEMENT_TYPES: dict[int, np.dtype] = {
    1: np.dtype("<u2"),
    2: np.dtype("<i2"),
    3: np.dtype("<u4"),
    4: np.dtype("<i4"),
    5: np.dtype("<f4"),
    6: np.dtype("<f8"),
    7: np.dtype("<c8"),
    8: np.dtype("<c16"),
}
"""ISMRMRD ``data_type`` of an image -> element type."""

DATA_TYPES: dict[np.dtype, int] = {dtype: code for code, dtype in ELEMENT_TYPES.items()}


class ImageType(enum.IntEnum):
    """ISMRMRD ``image_type``."""

    MAGNITUDE = 1
    PHASE = 2
    REAL = 3
    IMAG = 4
    COMPLEX = 5
    RGB = 6


class Flag(enum.IntEnum):
    """Acquisition flags, numbered from 1 as in ISMRMRD; ``Flag.X.mask`` is the bit."""

    FIRST_IN_ENCODE_STEP1 = 1
    LAST_IN_ENCODE_STEP1 = 2
    FIRST_IN_ENCODE_STEP2 = 3
    LAST_IN_ENCODE_STEP2 = 4
    FIRST_IN_AVERAGE = 5
    LAST_IN_AVERAGE = 6
    FIRST_IN_SLICE = 7
    LAST_IN_SLICE = 8
    FIRST_IN_CONTRAST = 9
    LAST_IN_CONTRAST = 10
    FIRST_IN_PHASE = 11
    LAST_IN_PHASE = 12
    FIRST_IN_REPETITION = 13
    LAST_IN_REPETITION = 14
    FIRST_IN_SET = 15
    LAST_IN_SET = 16
    FIRST_IN_SEGMENT = 17
    LAST_IN_SEGMENT = 18
    IS_NOISE_MEASUREMENT = 19
    IS_PARALLEL_CALIBRATION = 20
    IS_PARALLEL_CALIBRATION_AND_IMAGING = 21
    IS_REVERSE = 22
    IS_NAVIGATION_DATA = 23
    IS_PHASECORR_DATA = 24
    LAST_IN_MEASUREMENT = 25
    IS_HPFEEDBACK_DATA = 26
    IS_DUMMYSCAN_DATA = 27
    IS_RTFEEDBACK_DATA = 28
    IS_SURFACECOILCORRECTIONSCAN_DATA = 29
    IS_PHASE_STABILIZATION_REFERENCE = 30
    IS_PHASE_STABILIZATION = 31
    COMPRESSION1 = 53
    COMPRESSION2 = 54
    COMPRESSION3 = 55
    COMPRESSION4 = 56
    USER1 = 57
    USER2 = 58
    USER3 = 59
    USER4 = 60
    USER5 = 61
    USER6 = 62
    USER7 = 63
    USER8 = 64

    @property
    def mask(self) -> int:
        """The flag as a bit of the 64-bit ``flags`` field."""
        return 1 << (self.value - 1)


def blank(dtype: np.dtype) -> np.void:
    """A writable header of ``dtype`` with every field zero."""
    header: np.void = np.ndarray((), dtype, bytearray(dtype.itemsize))[()]
    return header


def clone(header: np.void) -> np.void:
    """A writable copy of its own. (``header.copy()`` goes field by field: 10 us for an acquisition, this 0.6 us.)"""
    other: np.void = np.ndarray((), header.dtype, bytearray(header.tobytes()))[()]
    return other
