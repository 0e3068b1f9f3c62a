"""Running a script or a notebook as Python itself would, and showing its errors as Python does."""

from __future__ import annotations

import ast
import asyncio
import builtins
import inspect
import linecache
import os
import re
import runpy
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import InspectLoader
from pathlib import Path
from types import CodeType, FunctionType, ModuleType

from caffetools.errors import CaffeToolsError, DataError
from caffetools.proto.sniff import Kind, wrong_kind
from caffetools.pycaffe import old_names, python2
from caffetools.pycaffe.notebook import read_cells, transform_cell
from caffetools.pycaffe.notebook_display import provided
from caffetools.pycaffe.notebook_magics import Magics

_PACKAGE = Path(__file__).parent.parent
# Frames of these are left out of a traceback: they run the script.
_RUNNERS = ("runpy", "importlib._bootstrap", "importlib._bootstrap_external")


# Kinds that a script may look like: a notebook is JSON, and a prototxt in a string makes a script look like a net.
_TEXTS = (Kind.PYTHON, Kind.TEXT, Kind.JSON, Kind.EMPTY)
_SCRIPTS = (*_TEXTS, Kind.NET_TEXT, Kind.SOLVER_TEXT)


class ScriptFailed(CaffeToolsError):
    """An exception that a script did not catch; the text is its traceback, without the frames that ran the script."""

    exit_code = 1


def run_script(path: Path, arguments: Sequence[str] = (), *, convert_python2: bool = False) -> None:
    """Run a .py script, or the code cells of a .ipynb notebook in order, as ``__main__``.

    A notebook runs in its own folder, as in Jupyter, and its magics are run; see :class:`~caffetools.pycaffe.notebook_magics.Magics`. Names that
    NumPy and Python have removed since Caffe's time (``np.float``, ``time.clock``) are there; see :mod:`~caffetools.pycaffe.old_names`.

    Args:
        path: The script.
        arguments: Its ``sys.argv[1:]``.
        convert_python2: Convert the script, and modules of the user's that it imports, from Python 2.

    Raises:
        DataError: The file is missing, or not a notebook.
        CaffeToolsError: An error of caffetools that the script did not catch, with the script's line in it.
        Python2Error: The script is written for Python 2.
        ScriptFailed: Another exception that it did not catch.
    """
    if not path.exists():
        raise DataError("the script does not exist", path=path)
    kinds = _TEXTS if path.suffix == ".prototxt" else _SCRIPTS
    if other := wrong_kind(DataError, path, "a Python script or a notebook", allowed=kinds):
        raise other
    notebook = path.suffix == ".ipynb"
    source = path.resolve()
    with _as_main(path, arguments), old_names.provided(), _shown_as_python_does(path):
        if convert_python2:
            python2.install_importer()
        if notebook:
            _run_notebook(source, convert_python2)
        elif convert_python2:
            text = python2.read(path)
            _run_code(ModuleType("__main__"), str(path), text, python2.convert(text, str(path)))
        else:
            runpy.run_path(str(path), run_name="__main__")


def show_failure(error: BaseException) -> str:
    """Return the traceback of ``error`` as Python shows it, without the frames of caffetools and of what ran the script."""
    shown = traceback.TracebackException.from_exception(error)
    _leave_out_runners(shown)
    text = "".join(shown.format()).rstrip("\n")
    frames = traceback.extract_tb(error.__traceback__)
    # What the compiler refuses is raised where caffetools compiles it, but lies in the script.
    in_script = isinstance(error, SyntaxError) and not _is_ours(error.filename or "")
    if frames and _is_ours(frames[-1].filename) and frames[-1].filename != python2.__file__ and not in_script:
        place = f"{frames[-1].filename}:{frames[-1].lineno}"
        text += f"\n(raised inside caffetools, at {place}; `caffetools run --debug` shows all of it)"
    if hint := python2.hint(error):
        text += f"\n({hint})"
    return text


def _run_notebook(path: Path, convert_python2: bool) -> None:
    module = ModuleType("__main__")
    module.__file__ = str(path)
    cells = _Cells(module, path.name, convert_python2=convert_python2)
    before, sys.modules["__main__"] = sys.modules["__main__"], module
    try:
        with provided(module, cells.magics):
            for text in read_cells(path):
                cells.run(text)
    finally:
        sys.modules["__main__"] = before
        cells.close()


class _Cells:
    """Runs the cells of a notebook in a module, as IPython does: also with ``await``, and the value of a last expression is printed.

    Args:
        module: The module.
        name: The notebook's name in tracebacks.
        convert_python2: Convert cells, and scripts that they run, from Python 2.
    """

    def __init__(self, module: ModuleType, name: str, *, convert_python2: bool):
        self._module, self._name, self._convert = module, name, convert_python2
        # As exec puts it there; functions written in C that import look for it.
        vars(module).setdefault("__builtins__", builtins)
        self._future: set[str] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._count = 0
        self.magics = Magics(module, self._run_script, self._run)

    def run(self, text: str) -> None:
        """Run one cell."""
        self._count += 1
        self.magics.begin_cell(text)
        try:
            last = text.rstrip().splitlines()[-1:]
            shown = not re.search(r";\s*(#.*)?$", "".join(last))
            self.magics.end_cell(self._run(transform_cell(text), f"{self._name}, cell {self._count}"), shown=shown)
        finally:
            self.magics.end_capture()

    def close(self) -> None:
        """Close the event loop of the cells that wait."""
        if self._loop is not None:
            self._loop.close()

    def _run(self, text: str, name: str) -> object:
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        if self._convert:
            tree = python2.convert(text, name, future=self._future)
            self._future |= python2.futures(tree)
        else:
            tree = compile(text, name, "exec", ast.PyCF_ONLY_AST | flags, dont_inherit=True)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        self._wait(FunctionType(compile(tree, name, "exec", flags, dont_inherit=True), vars(self._module))())
        if not isinstance(last, ast.Expr):
            return None
        code = compile(ast.Expression(last.value), name, "eval", flags, dont_inherit=True)
        value = FunctionType(code, vars(self._module))()
        return self._wait(value) if code.co_flags & inspect.CO_COROUTINE else value

    def _wait(self, value: object) -> object:
        """Return what a cell with ``await`` gives."""
        if not inspect.iscoroutine(value):
            return value
        self._loop = self._loop or asyncio.new_event_loop()
        return self._loop.run_until_complete(value)

    def _run_script(self, path: str, names: dict[str, object] | None, run_name: str) -> dict[str, object]:
        """Run the script or notebook of ``%run`` in a module of its own, or with the variables ``names``; return its variables."""
        module = ModuleType(run_name)
        vars(module).update(names or {}, __name__=run_name, __file__=path)
        cells = _Cells(module, path, convert_python2=self._convert)
        if path.endswith(".ipynb"):
            for text in read_cells(Path(path)):
                cells.run(text)
        else:
            before, sys.modules["__main__"] = sys.modules["__main__"], module
            try:
                cells._run(python2.read(Path(path)), path)
            finally:
                sys.modules["__main__"] = before
        return vars(module)


def _run_code(module: ModuleType, name: str, text: str, code: str | ast.Module) -> None:
    """Run ``code`` (source or a syntax tree) in ``module`` as ``__main__``; tracebacks show lines of ``text``, of the file ``name``."""
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    if not getattr(module, "__file__", None):
        module.__file__ = name
    before, sys.modules["__main__"] = sys.modules["__main__"], module
    try:
        _CodeLoader(name, code).exec_module(module)
    finally:
        sys.modules["__main__"] = before


class _CodeLoader(InspectLoader):
    """Executes source text, or a syntax tree, in a module.

    Args:
        name: The file in tracebacks.
        source: What to execute.
    """

    def __init__(self, name: str, source: str | ast.Module):
        self._name, self._source = name, source

    def get_source(self, fullname: str) -> str | None:
        return self._source if isinstance(self._source, str) else None

    def get_code(self, fullname: str) -> CodeType:
        return compile(self._source, self._name, "exec", dont_inherit=True)


@contextmanager
def _shown_as_python_does(path: Path) -> Iterator[None]:
    """Turn what the script does not catch into an error whose text names the script's own file and line."""
    try:
        yield
    except CaffeToolsError as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_script(frame.filename, path)]
        if not frames:
            raise
        placed = CaffeToolsError(f"{frames[-1].filename}:{frames[-1].lineno}: {error}")
        placed.exit_code = error.exit_code
        raise placed from error
    except SyntaxError as error:
        if python2.is_python2(error):
            place = f"{error.filename}:{error.lineno}"
            raise python2.Python2Error(place, path) from error
        raise ScriptFailed(show_failure(error)) from error
    except Exception as error:
        raise ScriptFailed(show_failure(error)) from error


def _leave_out_runners(shown: traceback.TracebackException) -> None:
    users = [frame for frame in shown.stack if not _is_ours(frame.filename) and not _is_runner(frame.filename)]
    shown.stack = traceback.StackSummary.from_list(users)
    for other in (shown.__cause__, shown.__context__):
        if other is not None:
            _leave_out_runners(other)


def _is_ours(filename: str) -> bool:
    return filename.startswith(str(_PACKAGE))


def _is_runner(filename: str) -> bool:
    return any(name in filename for name in _RUNNERS) or filename == runpy.__file__


def _is_script(filename: str, path: Path) -> bool:
    return filename == str(path) or filename.startswith(f"{path.name}, cell ")


@contextmanager
def _as_main(path: Path, arguments: Sequence[str]) -> Iterator[None]:
    """Put the script's folder first on sys.path and its arguments in sys.argv, as when Python runs it; a notebook's is the current one."""
    argv, search, finders, folder = sys.argv, list(sys.path), list(sys.meta_path), Path.cwd()
    sys.argv = [str(path), *arguments]
    sys.path.insert(0, str(path.resolve().parent))
    try:
        if path.suffix == ".ipynb":
            os.chdir(path.resolve().parent)
        yield
    finally:
        os.chdir(folder)
        sys.argv, sys.path[:], sys.meta_path[:] = argv, search, finders
