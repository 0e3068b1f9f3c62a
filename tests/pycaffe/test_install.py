"""install_as_caffe and ``caffetools run``: scripts and notebooks, unchanged, and a real Caffe that is left alone."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import caffetools
from caffetools.errors import CaffeToolsError, DataError
from caffetools.pycaffe.install import is_installed
from caffetools.pycaffe.notebook import read_cells
from caffetools.pycaffe.script import run_script
from tests.children import run_child

Write = Callable[[str, str], str]
NET = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 2 } } }\n'
SCRIPT = """
import sys
import numpy as np
import caffe
from caffe import layers as L, params as P
from caffe.proto import caffe_pb2
import helper
caffe.set_mode_gpu()
net = caffe.Net(sys.argv[1], caffe.TEST)
net.blobs['data'].data[...] = [[1, 2]]
if __name__ == '__main__':
    print(helper.format_shape(net), L.ReLU.__name__, P.Pooling.MAX, caffe_pb2.TEST, caffe.__name__)
"""


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return run_child(arguments, cwd=cwd)


def run_file(script: str, *arguments: str, cwd: Path, before: str = "") -> subprocess.CompletedProcess[str]:
    code = f"{before}\nimport sys; from pathlib import Path; from caffetools.pycaffe.script import run_script; import caffetools\n"
    code += f"caffetools.install_as_caffe(); run_script(Path({script!r}), {list(arguments)!r})"
    return python("-c", code, cwd=cwd)


def test_a_script_runs_as_python_would_run_it(write: Write, tmp_path: Path) -> None:
    folder = tmp_path / "scripts"
    folder.mkdir()
    (folder / "helper.py").write_text("def format_shape(net): return net.blobs['data'].data.tolist()\n")
    (folder / "script.py").write_text(SCRIPT)
    done = run_file("scripts/script.py", write("net.prototxt", NET), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "[[1.0, 2.0]] make 0 1 caffe"


def test_a_notebook_runs_cell_by_cell(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# not code"]},
        {"cell_type": "code", "source": ["%matplotlib inline\n", "import sys\n", "x = 20\n"]},
        {"cell_type": "code", "source": "%%javascript\nnot(python)"},
        {"cell_type": "code", "source": "print(__name__, x + 1, sys.argv[1:])\nsys?"},
    ]
    path = tmp_path / "book.ipynb"
    path.write_text(json.dumps({"cells": cells, "nbformat": 4}))
    before = list(sys.argv)
    run_script(path, ["a", "b"])
    assert capsys.readouterr().out == "__main__ 21 ['a', 'b']\n"
    assert sys.argv == before
    path.write_text(json.dumps({"worksheets": [{"cells": [{"cell_type": "code", "input": ["y = 1"]}]}], "nbformat": 3}))
    assert read_cells(path) == ["y = 1"]
    path.write_text("{}")
    with pytest.raises(DataError, match=r"book\.ipynb: not a Jupyter notebook"):
        run_script(path)


def test_an_error_that_a_script_runs_into_names_its_line(write: Write, tmp_path: Path) -> None:
    script = write("script.py", "import caffe\n\nnet = caffe.Net('none.prototxt', caffe.TEST)\n")
    done = run_file(script, cwd=tmp_path)
    assert f"{script}:3: none.prototxt: cannot read" in done.stderr
    with pytest.raises(DataError, match=r"none\.py: the script does not exist"):
        run_script(tmp_path / "none.py")


@pytest.fixture
def real_caffe(tmp_path: Path) -> str:
    """A folder in which another module called caffe lies."""
    (tmp_path / "real" / "caffe").mkdir(parents=True)
    (tmp_path / "real" / "caffe" / "__init__.py").write_text("REAL = True\n")
    return str(tmp_path / "real")


def test_a_real_caffe_is_refused_politely_unless_forced(real_caffe: str, monkeypatch: pytest.MonkeyPatch, no_caffe_yet: None) -> None:
    monkeypatch.syspath_prepend(real_caffe)
    with pytest.raises(CaffeToolsError, match=r"a Caffe is installed here already \(.*__init__\.py\).*force=True.*--force"):
        caffetools.install_as_caffe()
    assert not is_installed()
    import caffe

    assert caffe.REAL
    with pytest.raises(CaffeToolsError, match="installed here already"):
        caffetools.install_as_caffe()
    caffetools.install_as_caffe(force=True)
    import caffe

    assert caffe.__name__ == "caffe"
    caffetools.install_as_caffe()  # again is no matter


def test_python_layers_use_caffetools_and_leave_a_real_caffe_alone(
    real_caffe: str, tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch, no_caffe_yet: None
) -> None:
    monkeypatch.syspath_prepend(real_caffe)
    monkeypatch.syspath_prepend(str(tmp_path))
    write("layer_beside_a_real_caffe.py", "import caffe\nclass One(caffe.Layer):\n    def reshape(self, bottom, top): top[0].reshape(1)\n")
    from caffetools.pycaffe.net import Net

    text = "layer { name: 'one' type: 'Python' top: 'x' python_param { module: 'layer_beside_a_real_caffe' layer: 'One' } }"
    assert Net(write("net.prototxt", text)).blobs["x"].data.shape == (1,)
    import caffe

    assert caffe.REAL


def test_a_folder_that_is_called_caffe_is_not_a_caffe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_caffe_yet: None) -> None:
    (tmp_path / "caffe" / "build").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path))
    caffetools.install_as_caffe()
    assert is_installed()


def test_importing_the_package_is_light() -> None:
    code = "import sys, caffetools.pycaffe, caffetools.pycaffe.install\nprint(sorted({'torch', 'cv2', 'h5py'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_command_runs_a_script_with_its_own_options(write: Write, tmp_path: Path) -> None:
    script = write("script.py", "import sys, caffe\nprint(sys.argv[1:], caffe.__name__)\n")
    command = ("-m", "caffetools", "run")
    done = python(*command, script, "--force", "-v", "x", cwd=tmp_path)
    assert done.stdout == "['--force', '-v', 'x'] caffe\n", done.stderr
    (tmp_path / "caffe.py").write_text("")
    done = python(*command, script, cwd=tmp_path)
    assert done.returncode != 0
    assert "a Caffe is installed here already" in done.stderr
    assert python(*command, "--force", script, cwd=tmp_path).stdout == "[] caffe\n"


def test_sources_of_a_caffe_that_was_never_compiled_are_no_caffe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_caffe_yet: None
) -> None:
    (tmp_path / "caffe").mkdir()
    for name in ("__init__.py", "pycaffe.py"):
        (tmp_path / "caffe" / name).write_text("from ._caffe import Net\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    caffetools.install_as_caffe()
    assert is_installed()


def test_sys_modules_is_given_back_after_a_net_with_a_python_layer(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch, no_caffe_yet: None
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    text = (
        "import caffe\nclass One(caffe.Layer):\n    def reshape(self, bottom, top):\n        import caffe.io\n        top[0].reshape(1)\n"
    )
    write("layer_of_a_net.py", text)
    from caffetools.pycaffe.net import Net

    net = Net(write("net.prototxt", "layer { name: 'one' type: 'Python' top: 'x' python_param { module: 'layer_of_a_net' layer: 'One' } }"))
    assert "caffe" not in sys.modules
    net.forward()
    assert not [name for name in sys.modules if name.split(".")[0] == "caffe"]
