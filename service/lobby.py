"""Clients before they get a worker: what has arrived from them is looked at, not taken; queries are answered without a worker.

So a health check or an idle connection never occupies a worker, and is answered while all are busy or none is warm yet.
"""

from __future__ import annotations

import enum
import socket
import struct

from service.queries import answer
from service.wire import Decoder, MessageId, Query, Response, encode

SECONDS = 5.0
"""For the rest of a query that has begun to arrive."""

LONGEST_KEY = 4096
"""Bytes; the keys that exist have about 30."""


class Arrival(enum.Enum):
    """What a client has sent so far."""

    NOTHING = enum.auto()
    QUERY = enum.auto()
    MEASUREMENT = enum.auto()
    GONE = enum.auto()


def arrival(client: socket.socket) -> Arrival:
    """Look at the first two bytes, the message id; they stay where they are."""
    try:
        start = client.recv(2, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return Arrival.NOTHING
    except OSError:
        return Arrival.GONE
    if not start:
        return Arrival.GONE
    return Arrival.QUERY if start == struct.pack("<H", MessageId.QUERY) else Arrival.MEASUREMENT


def answer_query(client: socket.socket) -> None:
    """Take exactly one QUERY from the client and answer it. Raises OSError or `service.wire.WireError`."""
    client.settimeout(SECONDS)
    head = _receive(client, 26)
    (length,) = struct.unpack_from("<Q", head, 18)
    if length > LONGEST_KEY:
        raise ConnectionError(f"a query of {length} bytes")
    (query,) = Decoder().feed(head + _receive(client, length))
    assert isinstance(query, Query)
    client.sendall(b"".join(encode(Response(answer(query.key), query.correlation))))
    client.settimeout(None)


def _receive(client: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = client.recv(size - len(data))
        if not more:
            raise ConnectionError("it ended within a query")
        data += more
    return data
