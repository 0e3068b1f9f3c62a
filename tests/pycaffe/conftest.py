"""Small nets for the tests of pycaffe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from caffetools.pycaffe.install import MODULES


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Write a text under a name in a temporary folder; the path."""

    def to_file(name: str, text: str) -> str:
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return to_file


@pytest.fixture
def no_caffe_yet() -> Iterator[None]:
    """``caffe`` means nothing before the test, and nothing after it."""
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if name in MODULES}
    yield
    for name in MODULES:
        sys.modules.pop(name, None)
    sys.modules.update(before)
