"""Pictures that several tests build datasets of."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.drawing import CLASSES, draw_classes


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Four classes of small pictures of different sizes; see CLASSES."""
    return draw_classes(tmp_path / "pictures", CLASSES)
