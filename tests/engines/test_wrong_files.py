"""Files of another kind given as ONNX models are named for what they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from caffetools.engines.onnxruntime import OnnxRuntimeEngine
from caffetools.errors import ModelFileError


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("<!DOCTYPE html><html>404</html>", "this is a web page, and an ONNX model is expected"),
        ("version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
    ],
)
def test_a_page_or_pointer_in_place_of_a_model_is_named(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text(content)
    with pytest.raises(ModelFileError, match=message):
        OnnxRuntimeEngine.load(tmp_path / "model.onnx")
