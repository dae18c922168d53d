"""What can go wrong on the wire."""

from __future__ import annotations


class WireError(ValueError):
    """A message cannot be decoded or encoded; the text says which, where in the stream, why, and what to do.

    After a decoding error the stream is lost, because messages carry no length: the decoder raises the same error again.
    """


class EndOfStream(WireError):
    """The bytes ended without CLOSE, or in the middle of a message."""
