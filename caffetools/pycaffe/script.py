"""Running a script or a notebook as Python itself would."""

from __future__ import annotations

import json
import runpy
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from caffetools.errors import CaffeToolsError, DataError


def run_script(path: Path, arguments: Sequence[str] = ()) -> None:
    """Run a .py script, or the code cells of a .ipynb notebook in order, as ``__main__``; what it raises is passed on.

    Lines of a notebook that are not Python (``%matplotlib inline``, ``!ls``) are skipped.

    Raises:
        DataError: the file is missing, or not a notebook. CaffeToolsError: what the script ran into, with the line in it.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such script")
    with _as_main(path, arguments), _placed(path):
        if path.suffix != ".ipynb":
            runpy.run_path(str(path), run_name="__main__")
            return
        module = ModuleType("__main__")
        module.__file__ = str(path)
        before, sys.modules["__main__"] = sys.modules["__main__"], module
        try:
            _NotebookLoader("__main__", str(path)).exec_module(module)
        finally:
            sys.modules["__main__"] = before


def notebook_source(path: Path) -> str:
    """The code cells of a notebook as one script. Raises :class:`DataError` where it is none."""
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        cells = notebook["cells"] if "cells" in notebook else [cell for sheet in notebook["worksheets"] for cell in sheet["cells"]]
        code = [cell.get("source", cell.get("input", "")) for cell in cells if cell["cell_type"] == "code"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a Jupyter notebook ({type(error).__name__}: {error})") from None
    return "\n\n".join(_python_of(cell) for cell in code) + "\n"


class _NotebookLoader(SourceFileLoader):
    """Loads a notebook's code cells; nothing is cached."""

    def get_data(self, path: Any) -> bytes:
        return notebook_source(Path(path)).encode()

    def path_stats(self, path: Any) -> Any:
        raise OSError("a notebook's code is not cached")


def _python_of(cell: str | list[str]) -> str:
    text = cell if isinstance(cell, str) else "".join(cell)
    if text.lstrip().startswith("%%"):
        return ""
    return "\n".join("" if line.startswith(("%", "!", "?")) or line.rstrip().endswith("?") else line for line in text.splitlines())


@contextmanager
def _placed(path: Path) -> Iterator[None]:
    """Errors of caffetools that the script does not catch name the script's line, which a reader needs in place of a traceback."""
    try:
        yield
    except CaffeToolsError as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
        if not lines:
            raise
        placed = CaffeToolsError(f"{path}:{lines[-1]}: {error}")
        placed.exit_code = error.exit_code
        raise placed from error


@contextmanager
def _as_main(path: Path, arguments: Sequence[str]) -> Iterator[None]:
    """The script's folder leads sys.path and its arguments are sys.argv, as when Python runs it."""
    argv, search = sys.argv, list(sys.path)
    sys.argv = [str(path), *arguments]
    sys.path.insert(0, str(path.resolve().parent))
    try:
        yield
    finally:
        sys.argv, sys.path[:] = argv, search
