"""How large a message may be.

Lengths come from the peer and up to 2^64 can be declared in eight bytes. They are checked before any memory is taken, so a
hostile or shifted stream costs an error message, not the machine.
"""

from __future__ import annotations

from dataclasses import dataclass

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


@dataclass(frozen=True)
class Limits:
    """Upper bounds in bytes; each default is far above what scanners send (reasons beside them)."""

    config: int = 16 * MIB
    """CONFIG. The longest stock chain has 30 KiB."""
    header: int = 64 * MIB
    """HEADER. Real ones have 3 to 200 KiB; vendors embed protocols of some MiB in user parameters."""
    text: int = 16 * MIB
    """TEXT, QUERY, RESPONSE, ERROR, file names. Log lines and JSON parameters; a traceback has some KiB."""
    meta: int = 16 * MIB
    """Attributes of one image, or the counter statistics of a bucket. A few KiB; Siemens' IceMiniHead in base64 takes up to 1 MiB."""
    acquisition: int = 256 * MIB
    """Samples and trajectory of one readout. 65,535 samples of 128 channels are 64 MiB."""
    waveform: int = 64 * MIB
    """Samples of one waveform. An hour of 1 kHz on 4 channels is 55 MiB."""
    image: int = 4 * GIB
    """Pixels of one image. 512 x 512 x 512 complex64 is 1 GiB."""
    dicom: int = 1 * GIB
    """A DICOM file (an enhanced multi-frame one may be large)."""
    collection: int = 32 * GIB
    """All of one bucket, buffer or image array. A 3D scan of 64 channels at 256 x 256 x 256 is 8 GiB."""
