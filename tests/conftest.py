"""Fixtures for all tests: the folder of shared reference material, which not every checkout has beside it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("RECONSTREAM_SHARED", ROOT.parent / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with raw data and reference arrays; the test is skipped where it is missing."""
    if not SHARED.is_dir():
        pytest.skip(f"no reference material at {SHARED} (set RECONSTREAM_SHARED to its folder)")
    return SHARED


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that uses the fixture, so that `-m 'not shared'` leaves these tests out."""
    for item in items:
        if "shared" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.shared)
