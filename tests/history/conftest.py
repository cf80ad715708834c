"""No file stays open behind a test: from 3.13 on SQLite's connections say so."""

from collections.abc import Iterator

import pytest
from history_rig import House


@pytest.fixture(autouse=True)
def _closed_houses() -> Iterator[None]:
    yield
    for recorder in House.recorders:
        recorder._close()
    House.recorders.clear()
