"""The other end of a session in tests: a client, or a Gadgetron, made of a socket and the wire codec."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest

from gadgets.items import Acquisition, Image, Text
from service.transport import Connection
from service.wire import Close, Config, EndOfStream, HeaderXml, Message

ROOT = Path(__file__).resolve().parents[2]
GADGETS = "tests.service.fixture_gadgets"
_SPACE = "<matrixSize><x>8</x><y>4</y><z>1</z></matrixSize><fieldOfView_mm><x>80</x><y>40</y><z>5</z></fieldOfView_mm>"
HEADER = HeaderXml(
    f"""<?xml version="1.0"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
  <measurementInformation><measurementID>m 17</measurementID><patientPosition>HFS</patientPosition></measurementInformation>
  <experimentalConditions><H1resonanceFrequency_Hz>63500000</H1resonanceFrequency_Hz></experimentalConditions>
  <encoding><encodedSpace>{_SPACE}</encodedSpace><reconSpace>{_SPACE}</reconSpace><encodingLimits/><trajectory>cartesian</trajectory></encoding>
</ismrmrdHeader>""".encode()
)
LIMIT = 20.0
"""Seconds after which a test that waits has failed."""


def config(*gadgets: str, writers: Iterable[str] = (), readers: Iterable[str] = ()) -> Config:
    """A config of test gadgets, each given as ``"Name property=value ..."``; ``dll/Name`` for those of other modules."""
    parts = []
    for gadget in gadgets:
        name, *properties = gadget.split()
        dll, _, classname = name.rpartition("/")
        inner = "".join(f'<property name="{p.split("=")[0]}" value="{p.split("=")[1]}"/>' for p in properties)
        parts.append(f"<gadget><dll>{dll or GADGETS}</dll><classname>{classname}</classname>{inner}</gadget>")
    slots = _slots("reader", list(readers)) + _slots("writer", list(writers))
    return Config(f"<configuration><version>2</version>{slots}<stream>{''.join(parts)}</stream></configuration>".encode())


def _slots(kind: str, names: list[str]) -> str:
    inner = "".join(f"<{kind}><dll>gadgetron_core_{kind}s</dll><classname>{name}</classname></{kind}>" for name in names)
    return f"<{kind}s>{inner}</{kind}s>" if names else ""


ECHO = config(writers=["AcquisitionWriter"])
IMAGES = config("ToImage")


def readouts(number: int, channels: int = 2, samples: int = 8) -> list[Acquisition]:
    """Readouts that know their number (`scan_counter`, and the value of all samples)."""
    made = []
    for counter in range(number):
        acquisition = Acquisition(None, np.full((channels, samples), counter + 1, np.complex64))
        acquisition.header["scan_counter"] = counter
        made.append(acquisition)
    return made


class Peer:
    """Sends messages and collects what comes back."""

    def __init__(self, sock: socket.socket) -> None:
        sock.settimeout(LIMIT)
        self.socket = sock
        self.connection = Connection.from_socket(sock, read_timeout=LIMIT, write_timeout=LIMIT)

    @classmethod
    def connect(cls, port: int, host: str = "127.0.0.1") -> Peer:
        """To a server on this machine."""
        return cls(socket.create_connection((host, port), LIMIT))

    def send(self, *messages: Message) -> Peer:
        for message in messages:
            self.connection.write(message)
        return self

    def raw(self, data: bytes) -> Peer:
        self.connection.write_raw([data])
        return self

    def answers(self) -> list[Message]:
        """All that the other side sends up to its CLOSE; then it must end the stream properly, without a reset."""
        found = list(self.connection)
        with pytest.raises(EndOfStream) as end:
            self.connection.read()
        assert "broke" not in str(end.value), end.value
        self.connection.close()
        return found

    def error(self) -> str:
        """The error that the other side reports before its CLOSE."""
        found = self.answers()
        assert found, "CLOSE came without a reason"
        assert isinstance(found[-1], Text), found
        assert "ERROR: " in found[-1].text, found[-1].text
        return found[-1].text


def images(messages: Iterable[Message]) -> list[Image]:
    return [message for message in messages if isinstance(message, Image)]


def texts(messages: Iterable[Message]) -> list[str]:
    return [message.text for message in messages if isinstance(message, Text)]


def measure(peer: Peer, number: int = 3, chain: Message = IMAGES) -> list[Message]:
    """A whole small measurement."""
    return peer.send(chain, HEADER, *readouts(number), Close()).answers()


def wait_for(condition: Callable[[], object], what: str) -> None:
    """Wait until `condition` holds."""
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline, f"waited {LIMIT} s in vain for {what}"
        threading.Event().wait(0.01)


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    """Two connected TCP sockets on this machine."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    return one, other
