"""The architecture holds: who may import whom, file and function sizes, light start-up."""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "caffetools"

# From the bottom up. A room may import rooms of a lower rank, and of its own rank those to its left.
RANKS: list[list[str]] = [
    ["_deprecation", "errors", "builtin", "cancel", "events", "results", "util", ""],
    ["proto"],
    ["layers"],
    ["net"],
    ["data", "graph"],
    ["surgery", "zoo", "engines", "solver", "onnx", "quant"],
    ["infer"],
    ["bundle", "visualize"],
    ["project"],
    ["pycaffe", "faces"],
    ["_api", "jobs"],
    ["cli", "web"],
]
HEAVY = {"torch", "cv2", "onnx", "onnxruntime", "matplotlib", "h5py", "lmdb", "sklearn", "torchvision"}
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_BODY_LINES = 500, 60, 40


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(name: str) -> str:
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] != "__main__" else ""


def imported(path: Path, *, top_level: bool = False) -> Iterator[str]:
    """Modules that ``path`` imports, ``importlib.import_module("literal")`` included."""
    tree = ast.parse(path.read_text())
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names if _is_module(f"{node.module}.{alias.name}"))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from (str(argument.value) for argument in node.args[:1] if isinstance(argument, ast.Constant))


def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def rank(name: str) -> tuple[int, int]:
    for level, rooms in enumerate(RANKS):
        if name in rooms:
            return level, rooms.index(name)
    raise AssertionError(f"the room '{name}' has no rank: add it to RANKS where it belongs")


def test_imports_go_downwards_and_in_no_circle() -> None:
    graph: dict[str, set[str]] = {}
    wrong = []
    for path in modules():
        here = module_name(path)
        # The package's public API and __main__ import anything, lazily.
        # builtin.py imports the rooms that hold layers, and does nothing else.
        if path.parent == PACKAGE and path.name in ("__init__.py", "__main__.py", "builtin.py"):
            continue
        graph[here] = {name for name in imported(path) if name.split(".")[0] == "caffetools" and _is_module(name) and name != here}
        for name in graph[here]:
            if room(name) != room(here) and rank(room(name)) >= rank(room(here)):
                wrong.append(f"{here} may not import {name}")
    assert not wrong, "\n".join(wrong)
    assert not (circles := find_circles(graph)), circles


def find_circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected components of more than one module (Tarjan's algorithm)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for successor in graph.get(node, ()):
            if successor not in graph:
                continue
            if successor not in index:
                visit(successor)
                low[node] = min(low[node], low[successor])
            elif successor in stack:
                low[node] = min(low[node], index[successor])
        if low[node] == index[node]:
            component = []
            while True:
                component.append(stack.pop())
                if component[-1] == node:
                    break
            if len(component) > 1:
                found.append(sorted(component))

    sys.setrecursionlimit(10_000)
    for node in graph:
        if node not in index:
            visit(node)
    return found


def test_files_and_functions_have_a_readable_size() -> None:
    wrong = []
    for path in modules():
        text = path.read_text()
        if (lines := text.count("\n")) > MAX_FILE_LINES:
            wrong.append(f"{path.relative_to(ROOT)}: {lines} lines; split it by subject")
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.FunctionDef):
                continue
            signature, body = _code_lines(node)
            if signature + body > MAX_FUNCTION_LINES or body > MAX_BODY_LINES:
                limits = f"{MAX_FUNCTION_LINES} lines, {MAX_BODY_LINES} without the signature"
                wrong.append(f"{path.relative_to(ROOT)}:{node.lineno}: {node.name} is over {limits}")
    assert not wrong, "\n".join(wrong)


def _code_lines(function: ast.FunctionDef) -> tuple[int, int]:
    """Lines of a function's signature and of its body; its docstring does not count."""
    statements = function.body if ast.get_docstring(function) is None else function.body[1:]
    first = function.body[0].lineno
    body = (function.end_lineno or 0) - statements[0].lineno + 1 if statements else 0
    return first - function.lineno, body


def test_start_up_is_light_and_nothing_unpickles_or_evaluates() -> None:
    for path in modules():
        if room(module_name(path)) == "cli" or path.name == "__init__.py":
            heavy = {name.split(".")[0] for name in imported(path, top_level=True)} & HEAVY
            assert not heavy, f"{path}: imports {heavy} at its top"
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                assert name not in {"eval", "exec", "pickle.load", "pickle.loads", "os.system", "torch.load"}, f"{path}: {name}"
                assert not any(k.arg == "shell" for k in node.keywords), f"{path}: a shell string"
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
