"""Fixtures for all tests: the folder of shared reference material, which not every checkout has beside it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from service import logs

# The same examples in every run of continuous integration, new ones at a developer's: a find is made where it can be looked into.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("dev", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "dev")

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("SHARED_MATERIAL", ROOT.parent / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with raw data and reference arrays; the test is skipped where it is missing."""
    if not SHARED.is_dir():
        pytest.skip(f"no reference material at {SHARED} (set SHARED_MATERIAL to its folder)")
    return SHARED


@pytest.fixture(autouse=True)
def log_as_before() -> Iterator[None]:
    """What a command that ran in this process did to the log, undone."""
    loggers = [logging.getLogger(name) for name in (None, *logs.OURS)]
    levels = [logger.level for logger in loggers]
    yield
    loggers[0].handlers[:] = [handler for handler in loggers[0].handlers if not isinstance(handler, logs.StandardError)]
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
    logging.captureWarnings(False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test that uses the fixture, so that `-m 'not shared'` leaves these tests out."""
    for item in items:
        if "shared" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.shared)
