"""The doors for a real Gadgetron: a warm endpoint for ``<connect>``, and the module that ``<execute>`` starts.

Warm: ``reconstream worker --port 18000``, and in the Gadgetron's config::

    <external><connect address="localhost" port="18000"/>
      <configuration><property name="config" value="radial_cgsense.xml"/></configuration></external>

Cold, a process for each measurement::

    <external><execute name="gadgets" target="radial_cgsense" type="python"/><configuration/></external>
"""

from __future__ import annotations

import logging
from typing import Any

from service.settings import Settings

logger = logging.getLogger(__name__)


def serve_worker(settings: Settings) -> None:
    """Serve ``<connect>`` until SIGTERM: many measurements, one after another and at once. Raises `service.server.ListenError`."""
    from service.server import serve

    serve(settings, "gadgetron")


def handle(connection: Any, target: str) -> None:
    """Take over the connection of ``python -m gadgetron PORT gadgets TARGET`` (a `gadgetron.external.Connection`).

    That package reads exactly what it parses, so after config and header nothing of the data is in a buffer of its own; and it sends the
    last CLOSE and closes the socket when this function has returned.

    Raises SystemExit with status 1 when the measurement failed; the Gadgetron has been told why.
    """
    # Not needed by the warm worker, whose first duty is to listen.
    from service.dialects import serve_gadgetron
    from service.transport import Connection
    from service.wire import Config, HeaderXml

    for name in ("reconstream", "service", "gadgets", "recon"):
        logging.getLogger(name).setLevel(logging.INFO)
    settings = Settings.load()
    raw = connection.raw_bytes
    link = Connection.from_socket(connection.socket.socket, write_timeout=settings.send_seconds)
    outcome = serve_gadgetron(
        link, settings=settings, target=target, ahead=[Config(bytes(raw.config)), HeaderXml(bytes(raw.header))], close=False
    )
    if outcome.error is not None:
        raise SystemExit(1)
