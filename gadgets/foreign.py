"""Items <-> the objects that other packages' functions know: ismrmrd's, and gadgetron-python's for buckets, buffers and image arrays.

gadgetron-python indexes arrays as Gadgetron does (``[E0, E1, E2, CHA, N, S, LOC]``); ours are the same bytes with the dimensions
reversed, so one is the transpose of the other.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gadgets.items import (
    Acquisition,
    AcquisitionBucket,
    Image,
    ImageArray,
    Item,
    ReconBit,
    ReconBuffer,
    ReconData,
    Stats,
    Text,
    Waveform,
    meta_from_xml,
    meta_to_xml,
)
from gadgets.layout import ACQUISITION_HEADER, IMAGE_HEADER, SAMPLING_DESCRIPTION

_IDS: dict[type[Item], int] = {Acquisition: 1008, Image: 1022, ReconData: 1023, ImageArray: 1024, Waveform: 1026, AcquisitionBucket: 1050}


def knows(item: Item) -> bool:
    """Whether there is a foreign object for the item."""
    return type(item) in _IDS


def message_id(item: Item) -> int:
    """The item's message id on the wire."""
    return _IDS[type(item)]


def convert(item: Item) -> Any:
    """The item as `ismrmrd` or `gadgetron.types` object (a copy). Raises TypeError when there is none."""
    if isinstance(item, (Acquisition, Image, Waveform)):
        return item.to_ismrmrd()
    if isinstance(item, AcquisitionBucket):
        return _bucket(item)
    if isinstance(item, ReconData):
        return _recon_data(item)
    if isinstance(item, ImageArray):
        return _image_array(item)
    raise TypeError(f"{type(item).__name__} has no counterpart in ismrmrd or gadgetron-python")


def restore(item: Any) -> Item:
    """The reverse of `convert`; our own items pass. Raises TypeError for anything else."""
    import ismrmrd

    if isinstance(item, Item):
        return item
    for kind, ours in ((ismrmrd.Acquisition, Acquisition), (ismrmrd.Image, Image), (ismrmrd.Waveform, Waveform)):
        if isinstance(item, kind):
            made: Item = ours.from_ismrmrd(item)
            return made
    if isinstance(item, str):
        return Text(item)
    import gadgetron

    if isinstance(item, gadgetron.types.ReconData):
        return ReconData([ReconBit(_our_buffer(bit.data), None if bit.ref is None else _our_buffer(bit.ref)) for bit in item.bits])
    if isinstance(item, gadgetron.types.ImageArray):
        return _our_image_array(item)
    if isinstance(item, gadgetron.types.AcquisitionBucket):
        return _our_bucket(item)
    raise TypeError(
        f"cannot send a {type(item).__name__}: expected an ismrmrd Acquisition, Image or Waveform, "
        "or a gadgetron ReconData, ImageArray or AcquisitionBucket"
    )


def _theirs(array: np.ndarray | None) -> np.ndarray | None:
    return None if array is None else array.T.copy(order="F")


def _ours(array: Any, dtype: Any) -> np.ndarray:
    ours: np.ndarray = np.array(np.asarray(array).T, dtype, order="C")
    return ours


def _header_objects(headers: np.ndarray, kind: Any) -> np.ndarray:
    """Structured headers -> array of ctypes objects in Gadgetron's index order."""
    out = np.empty(headers.size, object)
    for i, header in enumerate(headers.ravel()):
        out[i] = kind.from_buffer_copy(header.tobytes())
    theirs: np.ndarray = out.reshape(headers.shape).T
    return theirs


def _our_headers(headers: Any, dtype: np.dtype) -> np.ndarray:
    objects = np.asarray(headers, dtype=object).T
    ours: np.ndarray = np.frombuffer(bytearray(b"".join(bytes(header) for header in objects.ravel())), dtype).reshape(objects.shape)
    return ours


def _bucket(item: AcquisitionBucket) -> Any:
    from gadgetron.types.acquisition_bucket import AcquisitionBucket as Theirs
    from gadgetron.types.acquisition_bucket import AcquisitionBucketStats

    def stats(ours: list[Stats]) -> list[Any]:
        return [AcquisitionBucketStats(**{name: set(values) for name, values in one.values.items()}) for one in ours]

    return Theirs(
        [one.to_ismrmrd() for one in item.data],
        stats(item.datastats),
        [one.to_ismrmrd() for one in item.ref],
        stats(item.refstats),
        [one.to_ismrmrd() for one in item.waveforms],
    )


def _our_bucket(item: Any) -> AcquisitionBucket:
    def stats(theirs: list[Any]) -> list[Stats]:
        return [Stats({name: {int(value) for value in getattr(one, name)} for name in Stats.FIELDS}) for one in theirs]

    return AcquisitionBucket(
        [Acquisition.from_ismrmrd(one) for one in item.data],
        [Acquisition.from_ismrmrd(one) for one in item.ref],
        [Waveform.from_ismrmrd(one) for one in item.waveforms or []],
        stats(item.datastats),
        stats(item.refstats),
    )


def _recon_data(item: ReconData) -> Any:
    from gadgetron.types.recon_data import ReconBit as Bit
    from gadgetron.types.recon_data import ReconData as Theirs

    return Theirs([Bit(_buffer(bit.data), None if bit.ref is None else _buffer(bit.ref)) for bit in item.bits])


def _buffer(buffer: ReconBuffer) -> Any:
    import ismrmrd
    from gadgetron.types.recon_data import ReconBuffer as Theirs
    from gadgetron.types.recon_data import SamplingDescription

    return Theirs(
        _theirs(buffer.data),
        _theirs(buffer.trajectory),
        _theirs(buffer.density),
        _header_objects(buffer.headers, ismrmrd.AcquisitionHeader),
        SamplingDescription.from_buffer_copy(buffer.sampling.tobytes()),
    )


def _our_buffer(buffer: Any) -> ReconBuffer:
    sampling = np.frombuffer(bytearray(bytes(buffer.sampling)), SAMPLING_DESCRIPTION)[0]
    return ReconBuffer(
        _ours(buffer.data, np.complex64),
        _our_headers(buffer.headers, ACQUISITION_HEADER),
        sampling,
        None if buffer.trajectory is None else _ours(buffer.trajectory, np.float32),
        None if buffer.density is None else _ours(buffer.density, np.float32),
    )


def _image_array(item: ImageArray) -> Any:
    import ismrmrd
    from gadgetron.types.image_array import ImageArray as Theirs

    return Theirs(
        _theirs(item.data),
        _header_objects(item.headers, ismrmrd.ImageHeader),
        [meta_to_xml(meta).decode() for meta in item.meta],
        None if item.waveforms is None else [one.to_ismrmrd() for one in item.waveforms],
        None if item.acquisition_headers is None else _header_objects(item.acquisition_headers, ismrmrd.AcquisitionHeader),
    )


def _our_image_array(item: Any) -> ImageArray:
    return ImageArray(
        _ours(item.data, np.complex64),
        _our_headers(item.headers, IMAGE_HEADER),
        [meta_from_xml(meta.encode() if isinstance(meta, str) else bytes(meta)) for meta in item.meta],
        None if item.waveform is None else [Waveform.from_ismrmrd(one) for one in item.waveform],
        None if item.acq_headers is None else _our_headers(item.acq_headers, ACQUISITION_HEADER),
    )
