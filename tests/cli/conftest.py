"""What the tests of bad input share: a folder of good and bad files, to stand in."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.materials import make_materials


@pytest.fixture(scope="session")
def made_materials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files, made once."""
    folder = tmp_path_factory.mktemp("made materials")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_materials(folder)
    return folder


@pytest.fixture(scope="module")
def materials(made_materials: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of them that is the working directory."""
    folder = tmp_path_factory.mktemp("bad input") / "files"
    shutil.copytree(made_materials, folder, symlinks=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder
