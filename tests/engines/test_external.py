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


@pytest.mark.skipif(sys.version_info[:2] == (3, 9), reason="our own Python would be taken")
def test_an_environment_that_cannot_be_made_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = add_environment("caffe", interpreter(tmp_path))
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("PYENV_ROOT", str(tmp_path / "pyenv"))
    with pytest.raises(EngineError, match=r"needs Python 3\.9, which is not on PATH; install it or uv"):
        add_environment("caffe")
    # As a shim of pyenv of a version that is not active: it is on PATH and does not start.
    shim = folder / "python3.9"
    shim.write_text("#!/bin/sh\nexit 127\n")
    shim.chmod(0o755)
    with pytest.raises(EngineError, match="which is not on PATH as one that starts"):
        add_environment("caffe")
    # One that starts, and makes a folder as `-m venv` does, but cannot install anything.
    python = tmp_path / "pyenv" / "versions" / "3.9.1" / "bin" / "python3.9"
    python.parent.mkdir(parents=True)
    python.write_text(
        '#!/bin/sh\nif [ "$2" = venv ]; then /bin/mkdir -p "$3/bin"; /bin/cp "$0" "$3/bin/python"; fi\n'
        'if [ "$2" = pip ]; then echo "ERROR: no matching distribution" >&2; echo "WARNING: advice" >&2; exit 1; fi\n'
    )
    python.chmod(0o755)
    with pytest.raises(EngineError, match="failed: ERROR: no matching distribution; are the package index and the network reachable"):
        add_environment("caffe")
    assert find_environment("caffe") == made
    assert [path.name for path in (tmp_path / "data" / "caffetools" / "engines" / "caffe").iterdir()] == ["engine.json"]


def test_a_comparison_has_a_row_for_each_output_of_each_engine(tmp_path: Path) -> None:
    deploy, weights = write_net(tmp_path)
    pictures = write_pictures(tmp_path)
    rows = compare_engines(Candidate(deploy, weights), [Candidate(deploy, weights, "onnxruntime"), Candidate(deploy, weights, "caffe")])
    assert [row.candidate.partition(":")[0] for row in rows] == ["torch", "onnxruntime", "caffe"]
    assert rows[1].relative < 1e-5 and rows[1].cosine == pytest.approx(1) and rows[1].top1 == 1.0
    assert "no environment here" in rows[2].reason
    by_pictures = compare_engines(Candidate(deploy, weights), [Candidate(deploy, weights, "onnxruntime")], images=pictures)
    assert by_pictures[1].top1 == 1.0
