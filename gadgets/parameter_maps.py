"""Maps of tissue parameters as ISMRMRD images: values with unit, scale, window, colours and role."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from gadgets.geometry import image_header
from gadgets.header import Header
from gadgets.items import Image, Meta
from gadgets.layout import ImageType, clone
from gadgets.meta import QUANTITY, describe, put, record_scaling
from recon.quantitative.model import Map

Pixels = Literal["float", "uint16"]
SUFFIX = "_sd"
"""Of the name of a standard deviation."""

_ROLES = {"T1": "T1", "T2": "T2", "T2star": "T2STAR", "T1star": "T1STAR", "B0": "FREQMAP", "B1": "B1MAP", "M0": "PD"}
"""Gadgetron's names of roles, where it has one; else the name itself in capitals."""
_STEPS = {"ms": 0.1, "Hz": 0.1}
"""Value of a step of 16-bit pixels by unit; else a power of ten that the largest value leaves room for."""
_WINDOW = 99.0
"""Percentile of the values up to which the window reaches."""


@dataclass(frozen=True, eq=False)
class Place:
    """Where maps lie: what their image headers and attributes are made from.

    head: header of a readout (`ACQUISITION_HEADER`) or of an image (`IMAGE_HEADER`) of the slice; field_of_view: (x, y, z) in mm.
    """

    head: np.void
    field_of_view: tuple[float, float, float]

    @property
    def slice(self) -> int:
        """The slice counter."""
        return int(self.head["slice"] if self._is_image else self.head["idx"]["slice"])

    @property
    def _is_image(self) -> bool:
        return "image_type" in (self.head.dtype.names or ())

    def header(self, matrix_xyz: tuple[int, ...], series: int, index: int, kind: ImageType) -> np.void:
        """Image header of a map."""
        if not self._is_image:
            header = image_header(self.head, matrix_xyz, self.field_of_view, series=series, index=index, image_type=kind)
        else:
            header = clone(self.head)
            header["image_series_index"], header["image_index"], header["image_type"] = series, index, kind
            header["attribute_string_len"] = 0
        return header

    def attributes(self, header: Header, **named: str) -> Meta:
        """Attributes of a map."""
        acquisition = None if self._is_image else self.head
        meta = describe(header, role=named["role"], comment=named["comment"], history=["reconstream", named["history"]],
                        series_description=named["description"], acquisition_header=acquisition)  # fmt: skip
        for name in ("GADGETRON_TE", "EchoTime"):  # a map has none
            meta.pop(name, None)
        return meta


class MapImages:
    """Images of one series of fits: series numbers, image numbers, scale and window, fixed by the first map of each name.

    Args:
        header: of the measurement.
        first_series: series index of the first name.
        pixels: float32, or uint16 with the scale in RescaleSlope and RescaleIntercept.
        color_map: file name of the colour table of maps with a unit; "" for none.
    """

    def __init__(self, header: Header, first_series: int, pixels: Pixels, color_map: str) -> None:
        self.header, self.first_series, self.pixels, self.color_map = header, first_series, pixels, color_map
        self._scales: dict[str, tuple[float, float]] = {}
        self._windows: dict[str, float] = {}
        self._count = 0

    def images(self, maps: dict[str, Map], mask: np.ndarray, place: Place, wanted: list[str], method: str) -> list[Image]:
        """Images of the maps `[*voxels]`, 0 outside the mask; values that are not finite within become the largest of the map.

        Args:
            maps: with their standard deviations, in the order of the series.
            mask: bool `[*voxels]`.
            place: of the slice.
            wanted: names of those to send.
            method: how they were found, for comment and history.
        """
        self._count += 1
        return [
            self._image(name, one, mask, place, self.first_series + number, method)
            for number, (name, one) in enumerate(maps.items())
            if name in wanted
        ]

    def _image(self, name: str, one: Map, mask: np.ndarray, place: Place, series: int, method: str) -> Image:
        values = np.abs(one.values) if np.iscomplexobj(one.values) else one.values
        finite = mask & np.isfinite(values)
        largest = float(np.abs(values[finite]).max(initial=0.0))
        filled = np.where(finite, values, np.where(mask, largest, 0.0)).astype(np.float32)
        signed = bool((filled < 0).any()) or (one.unit == "Hz" and not name.endswith(SUFFIX))
        base = name.removesuffix(SUFFIX)
        unit = f" [{one.unit}]" if one.unit else ""
        what = f"{base}{unit}, {'standard deviation' if base != name else 'map'}"
        volume = filled.reshape((1,) * (4 - filled.ndim) + filled.shape)
        kind = ImageType.REAL if signed else ImageType.MAGNITUDE
        meta = place.attributes(
            self.header,
            role=_ROLES.get(base, base.upper()) + ("SD" if base != name else ""),
            comment=f"{what}, {method}",
            history=method,
            description=f"_{name}_{method.split(',')[0].replace(' ', '_')}",
        )
        meta[QUANTITY] = name
        put(meta, "QuantityUnit", one.unit)
        put(meta, "image_number", self._count)
        top = self._windows.setdefault(name, _rounded(np.percentile(np.abs(filled[finite]), _WINDOW) if finite.any() else 1.0))
        put(meta, "window_center", 0.0 if signed else top / 2)
        put(meta, "window_width", 2 * top if signed else top)
        if one.unit and base == name:
            put(meta, "color_map", self.color_map)
        if self.pixels == "uint16":
            factor, offset = self._scale(name, one.unit, largest, signed)
            record_scaling(meta, factor, offset)
            volume = np.clip(np.rint(volume.astype(np.float64) * factor + offset), 0, 65535).astype(np.uint16)
        return Image(place.header(volume.shape[:0:-1], series, self._count & 0xFFFF, kind), np.ascontiguousarray(volume), meta)

    def _scale(self, name: str, unit: str, largest: float, signed: bool) -> tuple[float, float]:
        """The scale of the maps before, as long as the values fit."""
        known = self._scales.get(name)
        if known is None or largest * known[0] + known[1] > 65535 or (signed and not known[1]):
            known = self._scales[name] = _scale(unit, largest, signed)
        return known


def _scale(unit: str, largest: float, signed: bool) -> tuple[float, float]:
    """Factor and offset from values to 16-bit pixels."""
    room = 32767.0 if signed else 65535.0
    step = _STEPS.get(unit)
    if step is not None and largest / step <= room:
        factor = 1 / step
    else:
        factor = 10.0 ** math.floor(math.log10(room / 2 / largest)) if largest > 0 else 1.0
    return factor, 32768.0 if signed else 0.0


def _rounded(value: float) -> float:
    """Up to two digits, so that windows are numbers that people would choose."""
    if not value > 0:
        return 1.0
    digit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / digit) * digit:.6g}")
