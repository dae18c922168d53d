"""A session without a socket: the peer is this process.

The session that serves a client runs over any source of messages and any sink, so that files and pipes go the very way that a scanner's
data go, and give the same images bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from service.dialects import serve_client
from service.session import Outcome
from service.settings import Settings
from service.wire import Close, EndOfStream, Message


def run_inside(
    source: Iterator[Message],
    sink: Callable[[Message], None],
    *,
    allow_external: bool,
    hear_out: bool,
    interrupt: Callable[[], None] = lambda: None,
) -> Outcome:
    """Run one measurement in this process.

    Args:
        source: config, header, parameters, data, CLOSE.
        sink: takes what a client would get, from a thread of its own.
        allow_external: let the config start programs.
        hear_out: after an error read `source` to its end, as for a peer that still sends.
        interrupt: wakes a `source` that waits for input; called when the session is over.

    Returns:
        The session's outcome; a chain that failed is in its ``error``.

    Raises:
        Exception: what `source` or `sink` raised (the file cannot be read, the images cannot be written).
    """
    link = _Link(source, sink, interrupt, hear_out)
    outcome = serve_client(link, settings=Settings.load(allow_external=allow_external))
    if link.failure is not None:
        raise link.failure
    return outcome


class _Link:
    def __init__(self, source: Iterator[Message], sink: Callable[[Message], None], interrupt: Callable[[], None], hear_out: bool) -> None:
        self._source = source
        self._sink = sink
        self._interrupt = interrupt
        self._hear_out = hear_out
        self._over = False
        self.failure: Exception | None = None
        self.bytes_received = 0

    def read(self) -> Message:
        if not self._over:
            try:
                return next(self._source)
            except StopIteration:
                self._over = True
            except Exception as error:
                if not self._over:  # a source that is interrupted may well complain
                    self.failure = self.failure or error
                self._over = True
                raise
        raise EndOfStream("the session is over")

    def write(self, message: Message) -> None:
        if isinstance(message, Close) and not self._hear_out:
            self._over = True
        try:
            self._sink(message)
        except Exception as error:
            self.failure = self.failure or error
            raise

    def drain(self, seconds: float, limit_bytes: int, silence: float) -> bool:
        """The rest of the input is nobody's concern."""
        return True

    def shutdown(self, *, writing_only: bool = False) -> None:
        self._over = True
        self._interrupt()

    def close(self) -> None:
        self.shutdown()
