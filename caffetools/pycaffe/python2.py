"""Scripts written for Python 2: recognizing them, and converting the usual ones."""

from __future__ import annotations

import ast
import importlib
import importlib.machinery
import re
import sys
import sysconfig
import tokenize
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import numpy as np

from caffetools.errors import CaffeToolsError

_PACKAGE = Path(__file__).parent.parent
# The fixers of 2to3 that scripts need; those that only change the style are left out.
_FIXERS = (
    *("apply", "basestring", "dict", "except", "exec", "execfile", "filter", "funcattrs", "getcwdu", "has_key", "import", "imports"),
    *("imports2", "input", "intern", "itertools", "itertools_imports", "long", "map", "metaclass", "methodattrs", "ne", "next", "nonzero"),
    *("numliterals", "paren", "print", "raise", "raw_input", "reduce", "reload", "renames", "repr", "standarderror", "sys_exc", "throw"),
    *("tuple_params", "types", "unicode", "urllib", "xrange", "xreadlines", "zip"),
)
_OLD_NAMES = ("xrange", "raw_input", "unicode", "long", "basestring", "reload", "execfile", "cmp", "reduce", "file", "unichr")
_OLD_MODULES = ("cPickle", "ConfigParser", "StringIO", "cStringIO", "urllib2", "Queue", "commands", "httplib", "Tkinter", "__builtin__")
_OLD_METHODS = ("has_key", "iteritems", "itervalues", "iterkeys")
_OLD_SYNTAX = re.compile(
    r"""^\s*print\s+[^(=\s]|^\s*print\s*>>|^\s*except\s+[\w.,() ]+,\s*\w+\s*:|^\s*raise\s+[\w.]+\s*,|<>|\bur?'|\b0[0-7]+\b|^\s*exec\s+[\w'"]|\d[lL]\b|`""",
    re.VERBOSE,
)
_DIVIDE = "__divide_as_python2__"


class Python2Error(CaffeToolsError):
    """A script that is written for Python 2.

    Args:
        place: File and line of the first statement that is not Python 3.
        script: The script that was run.
    """

    exit_code = 1

    def __init__(self, place: str, script: Path):
        super().__init__(f"{place}: this is written for Python 2; `caffetools run --py2 {script}` converts and runs it")


def is_python2(error: SyntaxError) -> bool:
    """Return whether the line of a syntax error is Python 2."""
    if isinstance(error, TabError) or "Missing parentheses in call to" in (error.msg or ""):
        return True
    return bool(error.text and _OLD_SYNTAX.search(error.text)) or "multiple exception types must be parenthesized" in (error.msg or "")


def hint(error: BaseException) -> str:
    """Return what to do where ``error`` comes from a name of Python 2; empty for other errors."""
    old = (
        (isinstance(error, NameError) and getattr(error, "name", None) in _OLD_NAMES)
        or (isinstance(error, ImportError) and error.name in _OLD_MODULES)
        or (isinstance(error, AttributeError) and getattr(error, "name", None) in _OLD_METHODS)
    )
    return "this is a name of Python 2; `caffetools run --py2 SCRIPT` converts the script" if old else ""


def read(path: Path) -> str:
    """Return the text of a Python file in the encoding that it names; Latin-1 where it names none and is not UTF-8."""
    try:
        with tokenize.open(path) as stream:
            return stream.read()
    except (SyntaxError, UnicodeDecodeError):
        return path.read_text(encoding="latin-1")


def convert(source: str, name: str) -> ast.Module:
    """Convert source from Python 2: statements and names by the fixers of 2to3, and ``/`` of integers, which rounds down there.

    Args:
        source: The text.
        name: Its file, for errors.

    Returns:
        Its syntax tree, with the line numbers of the source.

    Raises:
        CaffeToolsError: It cannot be converted; names file and line.
    """
    text = source.expandtabs(8)
    try:
        tree = ast.parse(_refactor(text if text.endswith("\n") else f"{text}\n", name), name)
    except SyntaxError as error:
        raise CaffeToolsError(f"cannot be converted from Python 2: {error.msg}", path=name, line=error.lineno or 0) from None
    if not any(isinstance(node, ast.ImportFrom) and node.module == "__future__" and _divides(node) for node in tree.body):
        tree = ast.fix_missing_locations(_Division().visit(tree))
    return tree


def install_importer() -> None:
    """Convert modules of the user's that are imported from now on; ``sys.meta_path`` gets a finder for them."""
    import builtins

    setattr(builtins, _DIVIDE, divide)
    sys.meta_path.insert(0, _Finder())


def divide(a: Any, b: Any) -> Any:
    """Divide as ``/`` of Python 2: integers, and arrays of integers, round down."""
    if _is_integer(a) and _is_integer(b):
        return a // b
    return a / b


def _is_integer(value: object) -> bool:
    return isinstance(value, (int, np.integer)) or (isinstance(value, np.ndarray) and np.issubdtype(value.dtype, np.integer))


class _Division(ast.NodeTransformer):
    """Replaces ``a / b`` and ``a /= b`` by a call of :func:`divide`."""

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        self.generic_visit(node)
        return ast.copy_location(_call(node.left, node.right), node) if isinstance(node.op, ast.Div) else node

    def visit_AugAssign(self, node: ast.AugAssign) -> ast.AST:
        self.generic_visit(node)
        # The value of an array is changed in place: only a plain name may be an integer that is assigned again.
        if not isinstance(node.op, ast.Div) or not isinstance(node.target, ast.Name):
            return node
        load = ast.copy_location(ast.Name(node.target.id, ast.Load()), node)
        return ast.copy_location(ast.Assign([node.target], _call(load, node.value)), node)


def _call(left: ast.expr, right: ast.expr) -> ast.Call:
    return ast.Call(ast.Name(_DIVIDE, ast.Load()), [left, right], [])


def _divides(node: ast.ImportFrom) -> bool:
    return any(alias.name == "division" for alias in node.names)


@cache
def _tool() -> Any:
    for package in ("fissix", "lib2to3"):
        try:
            refactor = importlib.import_module(f"{package}.refactor")
        except ImportError:
            continue
        return refactor.RefactoringTool([f"{package}.fixes.fix_{name}" for name in _FIXERS], {"print_function": False})
    raise CaffeToolsError("--py2 needs the package fissix (pip install caffetools[py2])")


def _refactor(source: str, name: str) -> str:
    tool = _tool()
    try:
        return str(tool.refactor_string(source, name))
    except Exception as error:
        # A file that already has print() as a function: the grammar of Python 2 does not take all of it.
        try:
            ast.parse(source)
        except SyntaxError:
            place: Any = getattr(error, "context", None)
            line = place[1][0] if place else 0
            raise CaffeToolsError("cannot be converted from Python 2: its syntax is not Python 2's either", path=name, line=line) from None
        return source


class _Finder:
    """Finds the user's modules: those that lie neither in the standard library nor in site-packages."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> Any:
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is None or not spec.origin or not spec.origin.endswith(".py") or _is_installed(spec.origin):
            return None
        spec.loader = _Loader(fullname, spec.origin)
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    def get_code(self, fullname: str) -> CodeType:
        # Not through the cache of byte code, which Python 3 shares.
        return compile(convert(read(Path(self.path)), self.path), self.path, "exec", dont_inherit=True)


def _is_installed(origin: str) -> bool:
    folders = [*(sysconfig.get_paths()[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")), str(_PACKAGE)]
    return "site-packages" in origin or "dist-packages" in origin or any(origin.startswith(folder) for folder in folders)
