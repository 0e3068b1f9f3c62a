"""The files that pages and examples name, as the working directory."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from caffetools.zoo import resources
from caffetools.zoo.cards import get_card
from tests.documents.world import make_world, make_zoo

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files, made once: ``world`` for the working directory, ``zoo`` with the cards."""
    folder = tmp_path_factory.mktemp("documents")
    (folder / "world").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder / "world")
        make_world(Path())
        make_zoo(folder / "zoo")
    return folder


@pytest.fixture
def world(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the files that is the working directory; the zoo's publisher is a folder of this machine."""
    folder = tmp_path / "world"
    shutil.copytree(made / "world", folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(resources, "_folders", lambda name: [made / "zoo" if name == "zoo" else ROOT / name])
    get_card.cache_clear()
    yield folder
    get_card.cache_clear()
