"""Message ids, and the messages that control a measurement (what flows through chains is in `gadgets.items`)."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from gadgets.items import Item


class MessageId(enum.IntEnum):
    """The 16-bit id that begins every message."""

    FILENAME = 1
    CONFIG = 2
    HEADER = 3
    CLOSE = 4
    TEXT = 5
    QUERY = 6
    RESPONSE = 7
    ERROR = 8
    ACQUISITION = 1008
    DICOM = 1018
    DEPENDENCY_QUERY = 1019
    IMAGE = 1022
    RECON_DATA = 1023
    IMAGE_ARRAY = 1024
    WAVEFORM = 1026
    BUCKET = 1050


@dataclass(frozen=True)
class Filename:
    """Name of a config on the server (message 1)."""

    name: str


@dataclass(frozen=True)
class Config:
    """A config as XML, without trailing NULs (message 2)."""

    xml: bytes


@dataclass(frozen=True)
class HeaderXml:
    """The measurement header as XML, without trailing NULs (message 3)."""

    xml: bytes


@dataclass(frozen=True)
class Close:
    """No more messages from this side (message 4)."""


@dataclass(frozen=True)
class Query:
    """A question about the server, such as ``gadgetron::version`` (message 6)."""

    key: str
    correlation: int = 0


@dataclass(frozen=True)
class Response:
    """The answer to the `Query` with the same correlation id (message 7)."""

    text: str
    correlation: int = 0


@dataclass(frozen=True)
class ErrorReport:
    """Why a module failed (message 8; from an external module to Gadgetron, never to a client)."""

    text: str


Control = Filename | Config | HeaderXml | Close | Query | Response | ErrorReport
Message = Control | Item
