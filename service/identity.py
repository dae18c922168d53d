"""Ids of sessions."""

from __future__ import annotations

import uuid


def new_session() -> str:
    """An id for one connection: it stands in every log line and in the name of the spool file."""
    return uuid.uuid4().hex[:8]
