"""The native kernels are built where there is a compiler, and skipped in one line where there is none."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from caffetools.layers import native

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """What the build needs, somewhere else."""
    folder = tmp_path / "a tree"
    folder.mkdir()
    for name in ("setup.py", "pyproject.toml", "CMakeLists.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    shutil.copytree(ROOT / "native", folder / "native")
    (folder / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "absolute_links.py", folder / "docs")
    (folder / "caffetools").mkdir()
    shutil.copy(ROOT / "caffetools" / "__init__.py", folder / "caffetools" / "__init__.py")
    return folder


def build(tree: Path, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", "out", *options]
    return subprocess.run(command, cwd=tree, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


def said(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if "native kernels" in line]


def test_without_a_compiler_one_line_reports_that_they_are_skipped(tree: Path) -> None:
    stale = tree / "out" / "caffetools" / native._FILE.name
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"of an earlier build")
    done = build(tree, CXX="/nowhere/g++")
    assert done.returncode == 0
    assert said(done) == [
        "caffetools: native kernels are skipped (CXX names /nowhere/g++, which does not exist); all works without them, LRN more slowly"
    ]
    assert not stale.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="CMake looks for the compiler there")
def test_with_an_empty_path_too(tree: Path, tmp_path: Path) -> None:
    done = build(tree, PATH=str(tmp_path), CXX="")
    assert done.returncode == 0
    assert len(said(done)) == 1 and "no C++ compiler found" in said(done)[0]


@pytest.mark.skipif(not (shutil.which("cmake") and shutil.which("c++")), reason="no cmake or no compiler here")
def test_sources_that_do_not_compile_do_not_stop_the_installation(tree: Path) -> None:
    for source in (tree / "native").glob("*.cpp"):  # all of them, so that none takes the time to compile
        source.write_text("#error broken\n")
    done = build(tree)
    assert done.returncode == 0
    assert len(said(done)) == 1 and "do not compile here, see " in said(done)[0]
    log = Path(said(done)[0].split("see ")[1].split(")")[0])
    assert "broken" in log.read_text()


@pytest.mark.skipif(not (shutil.which("cmake") and shutil.which("c++")), reason="no cmake or no compiler here")
def test_with_a_compiler_the_library_is_built_next_to_the_package(tree: Path, tmp_path: Path) -> None:
    # What the compiler makes without optimizing is the same library, after a third of the time.
    quick = tmp_path / "c++"
    quick.write_text(f'#!/bin/sh\nexec {shutil.which("c++")} "$@" -O0\n')
    quick.chmod(0o755)
    done = build(tree, "--inplace", CXX=str(quick))
    assert done.returncode == 0 and said(done) == []
    built = tree / "caffetools" / native._FILE.name
    library = ctypes.CDLL(str(built))
    assert library.caffetools_native_version() == native._VERSION
    assert library.caffetools_native_use(0) == 1
    libraries = sorted(path.name for path in (tree / "caffetools").iterdir() if path.suffix != ".py")
    expected = ["_kernels.dll", "_pixels.dll"] if sys.platform == "win32" else ["_kernels.so", "_lmdb.so", "_pixels.so"]
    assert libraries == expected
