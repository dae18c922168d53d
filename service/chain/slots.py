"""Readers and writers by their Gadgetron names, and what travels under each message id."""

from __future__ import annotations

from gadgets.items import Acquisition, AcquisitionBucket, DependencyQuery, Dicom, Image, ImageArray, Item, ReconData, Text, Waveform
from service.chain.document import Element
from service.chain.errors import nearest
from service.wire.messages import MessageId

ITEMS: dict[int, type[Item]] = {
    5: Text,
    1008: Acquisition,
    1018: Dicom,
    1019: DependencyQuery,
    1022: Image,
    1023: ReconData,
    1024: ImageArray,
    1026: Waveform,
    1050: AcquisitionBucket,
}
"""Message id -> type of item."""

READERS: dict[str, int] = {
    "AcquisitionReader": 1008,
    "WaveformReader": 1026,
    "ImageReader": 1022,
    "BufferReader": 1023,
    "IsmrmrdImageArrayReader": 1024,
    "AcquisitionBucketReader": 1050,
    "TextReader": 5,
    "GadgetIsmrmrdAcquisitionMessageReader": 1008,
    "GadgetIsmrmrdWaveformMessageReader": 1026,
    "MRIImageReader": 1022,
}
"""Class names of Gadgetron 4's readers."""

WRITERS: dict[str, int] = {
    "AcquisitionWriter": 1008,
    "WaveformWriter": 1026,
    "ImageWriter": 1022,
    "BufferWriter": 1023,
    "IsmrmrdImageArrayWriter": 1024,
    "AcquisitionBucketWriter": 1050,
    "TextWriter": 5,
    "GadgetIsmrmrdAcquisitionMessageWriter": 1008,
    "GadgetIsmrmrdWaveformMessageWriter": 1026,
    "MRIImageWriter": 1022,
    "MRIImageWriterCPLX": 1022,
    "MRIImageWriterFLOAT": 1022,
    "MRIImageWriterUSHORT": 1022,
    "DependencyQueryWriter": 1019,
    "DicomImageWriter": 1018,
}
"""Class names of Gadgetron 4's writers, and of its predecessors' image writers."""

ALL_READERS = frozenset(MessageId(slot) for slot in (5, 1008, 1022, 1023, 1024, 1026, 1050))
"""What Gadgetron reads from an external module whose configuration does not say."""

ALL_WRITERS = ALL_READERS - {MessageId(5)}
"""What Gadgetron writes to an external module whose configuration does not say."""


def slot_of(element: Element) -> MessageId:
    """Message id of a ``<reader>`` or ``<writer>``.

    A reader's ``<slot>`` decides; a writer's is overlooked where the class is known, as in Gadgetron (old files have slots of messages
    that no longer exist). Raises ValueError naming the nearest class or the known slots.
    """
    reader = element.tag == "reader"
    names = READERS if reader else WRITERS
    classname, slot = element.child_words("classname"), element.child_words("slot")
    if slot and (reader or classname not in names):
        known = {str(number) for number in ITEMS}
        if slot not in known:
            raise ValueError(f"slot {slot!r} is none of the messages that carry items ({', '.join(sorted(known, key=int))})")
        if classname in names and names[classname] != int(slot):
            raise ValueError(f"{classname} reads message {names[classname]}, not slot {slot}")
        return MessageId(int(slot))
    if classname in names:
        return MessageId(names[classname])
    if not classname:
        raise ValueError("needs a <classname> or a <slot>")
    raise ValueError(f"unknown {element.tag} {classname!r}{nearest(classname, names)}")


def items_of(slots: frozenset[MessageId] | set[MessageId]) -> tuple[type[Item], ...]:
    """Types of item that travel under these message ids."""
    return tuple(ITEMS[slot] for slot in sorted(slots))
