"""The house holds: who may import whom, how long files and functions are, and that start-up stays light."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "caffetools"

# From the ground up; a room may import rooms of a lower rank, and of its own rank those on its left.
RANKS: list[list[str]] = [
    ["errors", "files", "locks", ""],
    ["proto"],
    ["layers"],
    ["data", "net"],
    ["engines", "surgery", "zoo", "solver", "onnx"],
    ["deploy", "visualize", "pycaffe"],
    ["pipeline"],
    ["cli"],
]
HEAVY = {"torch", "cv2", "onnx", "onnxruntime", "matplotlib", "h5py", "lmdb", "sklearn", "torchvision"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return "" if parts in (("__init__",), ("__main__",)) else parts[0]


def imported(path: Path, *, top_level: bool) -> Iterator[str]:
    tree = ast.parse(path.read_text())
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def place(name: str) -> tuple[int, int]:
    for rank, rooms in enumerate(RANKS):
        if name in rooms:
            return rank, rooms.index(name)
    raise AssertionError(f"the room '{name}' has no rank: add it to RANKS where it belongs")


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_downwards_only(path: Path) -> None:
    here = room(path)
    # The package's own front doors lead anywhere, but only when they are opened.
    front_door = path in (PACKAGE / "__init__.py", PACKAGE / "__main__.py")
    for name in imported(path, top_level=front_door):
        if path == PACKAGE / "__main__.py":
            continue
        if name.split(".")[0] != "caffetools":
            continue
        there = name.split(".")[1] if "." in name else ""
        assert there == here or place(there) < place(here), f"{here} may not import {name}"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 320, "more than a room holds: split it"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno + 1 <= 60, f"{node.name} is too long"


@pytest.mark.parametrize(
    "path", [p for p in modules() if room(p) == "cli" or p.name == "__init__.py"], ids=lambda p: str(p.relative_to(ROOT))
)
def test_commands_and_packages_import_nothing_heavy(path: Path) -> None:
    assert not {name.split(".")[0] for name in imported(path, top_level=True)} & HEAVY


def test_help_loads_neither_torch_nor_onnx_nor_opencv_nor_matplotlib() -> None:
    script = (
        "import sys; sys.argv = ['caffetools', '--help']\ntry:\n    import caffetools.cli.app as a; a.main()\nexcept SystemExit: pass\n"
    )
    script += f"print('LOADED', sorted(set(sys.modules) & {HEAVY!r}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.rstrip().endswith("LOADED []")


def test_every_dependency_has_a_reason() -> None:
    named = importlib.metadata.requires("caffetools") or []
    reasons = (ROOT / "docs" / "dependencies.md").read_text()
    for requirement in named:
        name = re.split(r"[\s;<>=\[]", requirement)[0]
        assert name == "caffetools" or f"`{name}`" in reasons, f"docs/dependencies.md gives no reason for {name}"


def test_nothing_unpickles_or_evaluates() -> None:
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                assert name not in {"eval", "exec", "pickle.load", "pickle.loads", "os.system", "torch.load"}, f"{path}: {name}"
                assert not any(k.arg == "shell" for k in node.keywords), f"{path}: a shell string"
