"""Branches and merges of parallel blocks."""

from __future__ import annotations

from gadgets.composite import Branch, Merge
from gadgets.items import Acquisition, Image, Waveform


class AcquisitionFanout(Branch):
    """Every stream gets a copy of every acquisition."""

    stock = (("gadgetron_core_parallel", "AcquisitionFanout"), ("gadgetron_grappa", "AcquisitionFanout"))
    accepts = (Acquisition,)


class WaveformFanout(Branch):
    """Every stream gets a copy of every waveform."""

    stock = (("gadgetron_core_parallel", "WaveformFanout"),)
    accepts = (Waveform,)


class ImageFanout(Branch):
    """Every stream gets a copy of every image."""

    stock = (("gadgetron_core_parallel", "ImageFanout"),)
    accepts = (Image,)


class UnorderedMerge(Merge):
    """Brings the streams together. Gadgetron does so as they come; here the order does not depend on timing (`Parallel`)."""

    stock = (("gadgetron_core_parallel", "UnorderedMerge"),)
