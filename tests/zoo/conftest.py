"""A cache of each test's own, and a server for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from caffetools.zoo.fetch import MIRROR
from tests.zoo.fetching import CONTENT
from tests.zoo.server import Server, serving


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(MIRROR, raising=False)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(CONTENT) as server:
        yield server
