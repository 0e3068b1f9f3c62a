"""Engines in an interpreter of their own: here our own Python, with a stand-in for the library that Caffe nets run in."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from caffetools.engines import environments
from caffetools.engines.base import EngineError
from caffetools.engines.environments import add_environment, find_environment
from caffetools.engines.external import CaffeEngine
from caffetools.engines.torch import TorchEngine
from caffetools.infer.compare import Candidate, compare_engines
from tests.infer.colours import write_net, write_pictures

# pycaffe's interface over our own net, in a folder of its own that only the external interpreter sees.
STAND_IN = """
from caffetools.pycaffe import *
from caffetools.pycaffe import Net, TEST, set_mode_cpu
__version__ = "stand-in"
"""


@pytest.fixture(autouse=True)
def data_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data"


def interpreter(folder: Path) -> Path:
    """A script that starts our Python with a module called caffe on its path."""
    modules = folder / "modules"
    modules.mkdir()
    (modules / "caffe.py").write_text(STAND_IN)
    python = folder / "python"
    paths = os.pathsep.join([str(modules), str(Path(environments.__file__).parents[2])])
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{paths}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return python


def test_another_interpreter_runs_the_net_and_gives_its_numbers(tmp_path: Path) -> None:
    deploy, weights = write_net(tmp_path)
    add_environment("caffe", interpreter(tmp_path))
    engine = CaffeEngine.load(deploy, weights)
    try:
        own = TorchEngine.load(deploy, weights)
        assert (engine.inputs, engine.outputs, engine.version) == (own.inputs, own.outputs, "Caffe stand-in")
        batch = {name: np.random.RandomState(0).rand(2, *shape[1:]).astype(np.float32) for name, shape in own.inputs.items()}
        for name, value in engine.predict(batch).items():
            np.testing.assert_allclose(value, own.predict(batch)[name], atol=1e-6)
        assert engine.seconds > 0
        with pytest.raises(EngineError, match="the engine 'caffe' cannot run the net: "):
            engine.predict({"none": np.zeros((1, 2), np.float32)})
    finally:
        engine.close()


def test_an_engine_that_was_not_added_names_how_to_add_it(tmp_path: Path) -> None:
    deploy, weights = write_net(tmp_path)
    with pytest.raises(EngineError, match="no environment here; make one with `caffetools engine add caffe`"):
        CaffeEngine.load(deploy, weights)
    with pytest.raises(EngineError, match="weights"):
        CaffeEngine.load(deploy)
    with pytest.raises(EngineError, match="no recipe for an engine 'mxnet'; there are ones for opencv4, caffe"):
        find_environment("mxnet")


def test_an_interpreter_without_the_library_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="failed: ModuleNotFoundError: No module named 'caffe'"):
        add_environment("caffe", sys.executable)
    with pytest.raises(EngineError, match="cannot be started"):
        add_environment("caffe", tmp_path / "python")
    with pytest.raises(EngineError, match="has no environment"):
        find_environment("caffe")


def test_a_comparison_has_a_row_for_each_output_of_each_engine(tmp_path: Path) -> None:
    deploy, weights = write_net(tmp_path)
    pictures = write_pictures(tmp_path)
    rows = compare_engines(Candidate(deploy, weights), [Candidate(deploy, weights, "onnxruntime"), Candidate(deploy, weights, "caffe")])
    assert [row.candidate.partition(":")[0] for row in rows] == ["torch", "onnxruntime", "caffe"]
    assert rows[1].relative < 1e-5 and rows[1].cosine == pytest.approx(1) and rows[1].top1 == 1.0
    assert "no environment here" in rows[2].reason
    by_pictures = compare_engines(Candidate(deploy, weights), [Candidate(deploy, weights, "onnxruntime")], images=pictures)
    assert by_pictures[1].top1 == 1.0
