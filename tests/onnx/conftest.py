"""What several tests of the import share."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import pytest

from caffetools.engines.base import EngineError
from caffetools.engines.environments import add_environment
from caffetools.onnx.import_graph import ImportFailed
from caffetools.onnx.importer import import_model


def expect_refusal(proto: onnx.ModelProto, message: str) -> None:
    """Import a model whose one node ``n`` has no layers: the error names the node, and has ``message``."""
    with pytest.raises(ImportFailed, match=rf"node 'n' \({proto.graph.node[0].op_type}\): .*") as error:
        import_model(proto)
    assert message in str(error.value)


@pytest.fixture
def real_caffe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the engine ``caffe`` the interpreter that CAFFE_PYTHON names; skips where there is none."""
    python = os.environ.get("CAFFE_PYTHON", "")
    if not python:
        pytest.skip("no real Caffe here: set CAFFE_PYTHON to an interpreter that can import caffe")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    try:
        add_environment("caffe", python)
    except EngineError as error:
        pytest.skip(str(error))
