"""``caffetools shims``: old shell and Python scripts run in an environment of its own, and removing leaves it as it was."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import caffetools
from caffetools.pycaffe.shims import PROGRAMS

ROOT = Path(caffetools.__file__).parent.parent
Environment = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment that sees the packages of this one and this checkout."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    site = next(folder.glob("lib/python*/site-packages"))
    others = [path for path in sys.path if "site-packages" in path]
    (site / "others.pth").write_text("\n".join([str(ROOT), *others]) + "\n")
    return folder


@pytest.fixture
def environment(base: Path, tmp_path: Path) -> Environment:
    """Runs a program in that environment, whose programs come first on PATH."""

    def run(*words: object, **more: str) -> subprocess.CompletedProcess[str]:
        path = f"{base / 'bin'}{os.pathsep}/usr/bin{os.pathsep}/bin"
        variables = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "PYTHONNOUSERSITE": "1", **more}
        variables.pop("PYTHONPATH", None)
        return subprocess.run([str(word) for word in words], cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)

    return run


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if "__pycache__" not in path.parts}


def caffetools_in(base: Path, *words: object) -> list[object]:
    return [base / "bin" / "python", "-m", "caffetools", *words]


def test_old_scripts_run_and_removing_leaves_the_environment_as_it_was(base: Path, environment: Environment, tmp_path: Path) -> None:
    before = files(base)
    done = environment(*caffetools_in(base, "shims", "install"))
    assert done.returncode == 0, done.stderr
    assert all((base / "bin" / name).is_file() for name in PROGRAMS)
    (tmp_path / "net.prototxt").write_text(
        'name: "n" layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 4 dim: 4 } } } '
        'layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 2 } }'
    )
    (tmp_path / "script.py").write_text(
        "import caffe\nfrom caffe.proto import caffe_pb2\nnet = caffe.Net('net.prototxt', caffe.TEST)\n"
        "print(net.blobs['ip'].data.shape, caffe_pb2.TEST, caffe.__name__)\n"
    )
    script = environment(base / "bin" / "python", "script.py")
    assert script.returncode == 0, script.stderr
    assert script.stdout.startswith("(1, 2) 1")
    (tmp_path / "old.sh").write_text("set -e\ncaffe time -model net.prototxt -iterations 1\ndraw_net.py net.prototxt net.dot\n")
    shell = environment("sh", "old.sh")
    assert shell.returncode == 0, shell.stderr
    assert "*** Benchmark begins ***" in shell.stderr
    assert (tmp_path / "net.dot").is_file()
    # caffetools run does not take the shim for a real Caffe.
    assert environment(*caffetools_in(base, "run", "script.py")).stdout.startswith("(1, 2) 1")
    again = environment(*caffetools_in(base, "shims", "install"))
    assert again.returncode == 0, again.stderr
    facts = json.loads(environment(*caffetools_in(base, "shims", "status", "--json")).stdout)
    assert len(facts["files"]) == len(PROGRAMS) + 1 and facts["package"] and facts["real_caffe"] is None
    removed = environment(*caffetools_in(base, "shims", "remove"))
    assert removed.returncode == 0 and f"Removed {len(PROGRAMS) + 1} files" in removed.stdout
    assert files(base) == before
    assert environment(base / "bin" / "python", "-c", "import caffe").returncode == 1


def test_a_folder_of_ones_own_and_a_file_that_was_changed(base: Path, environment: Environment, tmp_path: Path) -> None:
    before = files(base)
    done = environment(*caffetools_in(base, "shims", "install", "--bin", "build/my tools"))
    assert done.returncode == 0 and "add it: export PATH='" in done.stderr, "with a space the path is quoted"
    assert environment(*caffetools_in(base, "shims", "remove")).returncode == 0
    assert environment(*caffetools_in(base, "shims", "install", "--bin", "build/tools")).returncode == 0
    caffe = tmp_path / "build" / "tools" / "caffe"
    assert "device_query" in environment(caffe, "device_query", "--help").stdout.replace("-", "_")
    caffe.write_text("#!/bin/sh\necho mine\n")
    done = environment(*caffetools_in(base, "shims", "remove"))
    assert done.returncode == 0 and f"{caffe}: changed since it was written" in done.stderr
    assert caffe.read_text().endswith("mine\n") and not (caffe.parent / "convert_imageset").exists()
    caffe.unlink()
    environment(*caffetools_in(base, "shims", "remove"))
    assert files(base) == before


def test_refused_where_a_real_caffe_or_a_file_of_the_users_is(base: Path, environment: Environment, tmp_path: Path) -> None:
    before = files(base)
    real = next(base.glob("lib/python*/site-packages")) / "caffe"
    real.mkdir()
    (real / "__init__.py").write_text("__version__ = '1.0.0'\n")
    done = environment(*caffetools_in(base, "shims", "install"))
    assert done.returncode == 2 and "a real Caffe is installed in this environment" in done.stderr
    shutil.rmtree(real)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "parse_log.py").write_text("print('mine')\n")
    done = environment(*caffetools_in(base, "shims", "install", "--bin", "bin"))
    assert done.returncode == 2 and "exists and was not written by caffetools" in done.stderr
    program = base / "bin" / "caffe"
    program.write_text("#!/bin/sh\necho real\n")
    program.chmod(0o755)
    done = environment(*caffetools_in(base, "shims", "install"))
    assert done.returncode == 2 and "a program of this name is on PATH" in done.stderr
    program.unlink()
    assert files(base) == before
