"""Image attributes in both dialects: Gadgetron's (``GADGETRON_...``) and the one Siemens scanners act on (FIRE, OpenRecon)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from gadgets.header import Header
from gadgets.items import Meta

PAIRS: dict[str, tuple[str, ...]] = {
    "role": ("GADGETRON_DataRole", "DataRole"),
    "comment": ("GADGETRON_ImageComment", "ImageComment"),
    "history": ("GADGETRON_ImageProcessingHistory", "ImageProcessingHistory"),
    "series_description": ("GADGETRON_SeqDescription", "SequenceDescriptionAdditional"),
    "window_center": ("GADGETRON_WindowCenter", "WindowCenter"),
    "window_width": ("GADGETRON_WindowWidth", "WindowWidth"),
    "echo_time": ("GADGETRON_TE", "EchoTime"),
    "inversion_time": ("GADGETRON_TI", "InversionTime"),
    "color_map": ("GADGETRON_ColorMap", "LUTFileName"),
    "image_number": ("GADGETRON_ImageNumber",),
}
"""What we call it -> the names it has in the two dialects. Times in ms."""

QUANTITY = "QuantityName"
"""Attribute of maps whose pixels are values of a tissue parameter: nothing may scale them."""

_LIMITS = ("sampling_limits_RO", "sampling_limits_E1", "sampling_limits_E2")


def describe(
    header: Header,
    *,
    role: str = "Image",
    comment: str | Iterable[str] = "",
    history: str | Iterable[str] = "reconstream",
    series_description: str = "",
    sampling: np.void | None = None,
    acquisition_header: np.void | None = None,
    **more: Any,
) -> Meta:
    """Attributes of a reconstructed image.

    Args:
        header: measurement header; gives protocol name, measurement id, patient position and, by contrast, the echo time.
        role: what the pixels are: ``Image``, ``T1``, ``T2``, ``Gfactor``, ``SNR_MAP``, ...
        comment: one or several comments.
        history: processing steps.
        series_description: appended to the series' name by the scanner.
        sampling: `SAMPLING_DESCRIPTION` of the k-space: fields of view, matrices, sampling limits.
        acquisition_header: `ACQUISITION_HEADER` of a readout of the image: position, directions, time stamps.
        more: further attributes: a name of `PAIRS` is written in both dialects, any other under its own name.

    Returns:
        Meta; empty values are left out.
    """
    meta: Meta = {}
    named = {"role": role, "comment": comment, "history": history, "series_description": series_description}
    for name, value in named.items():
        put(meta, name, value)
    put(meta, "Keep_image_geometry", 1)
    put(meta, "measurementID", header.measurement_id)
    put(meta, "protocolName", header.protocol_name)
    put(meta, "patient_position", header.patient_position)
    if sampling is not None:
        _put_sampling(meta, sampling)
    if acquisition_header is not None:
        _put_acquisition(meta, header, acquisition_header)
    for name, value in more.items():
        put(meta, name, value)
    return meta


def put(meta: Meta, name: str, value: Any) -> None:
    """Set an attribute: in both dialects for a name of `PAIRS`, else under its own name. An empty value changes nothing."""
    text = _text(value)
    if text not in ("", []):
        for key in PAIRS.get(name, (name,)):
            meta[key] = list(text) if isinstance(text, list) else text


def record_scaling(meta: Meta, factor: float, offset: float = 0.0) -> None:
    """Note that the pixels became ``factor * pixel + offset``.

    Successive calls compose, so that value = RescaleSlope * pixel + RescaleIntercept (Siemens, DICOM) and
    pixel = GADGETRON_ScaleRatio * value + GADGETRON_ScaleOffset hold for the unscaled value throughout. A display window in the
    attributes moves along.
    """
    ratio = number(meta, "GADGETRON_ScaleRatio", 1.0) * factor
    shift = number(meta, "GADGETRON_ScaleOffset", 0.0) * factor + offset
    put(meta, "GADGETRON_ScaleRatio", ratio)
    put(meta, "GADGETRON_ScaleOffset", shift)
    if ratio:
        put(meta, "RescaleSlope", 1.0 / ratio)
        put(meta, "RescaleIntercept", -shift / ratio)
    for name, scale, move in (("window_center", factor, offset), ("window_width", abs(factor), 0.0)):
        for key in PAIRS[name]:
            if key in meta:
                put(meta, key, number(meta, key, 0.0) * scale + move)


def is_quantitative(meta: Meta) -> bool:
    """Whether the pixels are values of a tissue parameter, so that they must stay as they are."""
    return QUANTITY in meta


def number(meta: Meta, name: str, default: float) -> float:
    """The attribute's first value as a number; `default` when it is absent or no number."""
    value = meta.get(name, "")
    try:
        return float(value[0] if isinstance(value, list) else value)
    except (ValueError, IndexError):
        return default


def _put_sampling(meta: Meta, sampling: np.void) -> None:
    put(meta, "encoding_FOV", sampling["encoded_FOV"])
    put(meta, "recon_FOV", sampling["recon_FOV"])
    put(meta, "encoded_matrix", sampling["encoded_matrix"])
    put(meta, "recon_matrix", sampling["recon_matrix"])
    for name, limit in zip(_LIMITS, sampling["sampling_limits"], strict=True):
        put(meta, name, [limit["min"], limit["center"], limit["max"]])


def _put_acquisition(meta: Meta, header: Header, acquisition: np.void) -> None:
    put(meta, "PatientPosition", acquisition["position"])
    for name in ("read_dir", "phase_dir", "slice_dir", "patient_table_position"):
        put(meta, name, acquisition[name])
    put(meta, "ImageRowDir", acquisition["read_dir"])
    put(meta, "ImageColumnDir", acquisition["phase_dir"])
    put(meta, "acquisition_time_stamp", acquisition["acquisition_time_stamp"])
    put(meta, "physiology_time_stamp", acquisition["physiology_time_stamp"])
    echo_times, contrast = header.sequence("TE"), int(acquisition["idx"]["contrast"])
    if contrast < len(echo_times):
        put(meta, "echo_time", echo_times[contrast])


def _text(value: Any) -> str | list[str]:
    if isinstance(value, str):
        return value
    if isinstance(value, (float, np.floating)):
        return f"{value:.9g}"
    if isinstance(value, Iterable):
        return [str(_text(one)) for one in value]
    return str(value)
